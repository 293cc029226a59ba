"""`bench lossless` on the fake engine: the real path, a few answers, and the control."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from random import Random
from typing import Any

import msgspec
import pytest

pytest.importorskip("grpc", reason="needs outrider[edge,cloud]")

from bench import harness, lossless
from bench.lossless import Case, Leak, Plan, Ride
from bench.support import CloudSetup, Hostile
from outrider.edge.session import Request
from outrider.engine import EngineSpec, Span
from outrider.engines.fake import FakeEngine
from outrider.protocol.sampling import Sampling, SamplingParams
from outrider.protocol.stream import Done, Speculation

PLAN = Plan(
    targets={"fake": CloudSetup("target", engine="fake", hint_rows="all", ahead=8)},
    inexact={},
    control="fake",
    drafters=("fake", "hostile", "none"),
    hostile="hostile:fake",
    links={"wait, RTT 2 ms": ("wait:100", 2.0)},
    cuts=("none", "reset"),
    prompts=("def main():", "import os", "class A:"),
    least=24,
    control_cases=16,
    inexact_batches=1,
    size=4,
    tokens=32,
    leak_every=2,
)
CASE = Case("fake", "fake", "free", "reset", "p", "greedy", 1)


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    """One small run of everything."""
    return asyncio.run(lossless.measure(PLAN))


def test_answers_are_the_targets_own(found: dict[str, Any]) -> None:
    figures = found["figures"]
    assert figures["identical_share"] == 1.0, found["failures"]
    assert (found["cases"], figures["cells"], figures["not_exact"]) == (24, 6, 0)
    assert figures["min_cell_accepted"] > 0
    assert found["failures"] == found["losing"] == []


def test_cuts_were_in_flight(found: dict[str, Any]) -> None:
    assert (found["figures"]["cuts"], found["figures"]["cuts_in_flight_share"]) == (12, 1.0)
    cells = {(cell["drafter"], cell["cut"]): cell["cut_in_flight"] for cell in found["cells"]}
    assert cells["hostile", "reset"] == cells["none", "reset"] == 4
    assert cells["hostile", "none"] == cells["none", "none"] == 0


def test_leaking_rule_turns_it_red(found: dict[str, Any]) -> None:
    controls = found["controls"]
    assert controls["control_cases"] == 16
    assert controls["control_leaked_tokens"] > 0
    assert controls["control_identical_share"] <= 0.9


def test_result_has_the_harness_form(found: dict[str, Any]) -> None:
    made = harness.result("lossless", found, quick=True, seed=0, seconds=1.0)
    assert made.seed == harness.SEED
    assert set(made.details) == {"failures", "inexact", "prompts", "control_cells"}
    assert len(made.receipt.models["fake"]) == 64
    assert harness.as_json(made)


# --- what makes an answer not identical --------------------------------------------------------


def ridden(**changes: Any) -> Ride:
    """An answer of three tokens that went well, but for the changes."""
    ride = Ride(CASE, ids=[5, 6, 7], positions=[0, 1, 2])
    done = Done(
        finish_reason="length",
        completion_tokens=3,
        prompt_tokens=1,
        speculation=Speculation(),
        exact=True,
        mixed_from=None,
        class_changed_at=(),
        queue_ms=0,
        prefill_ms=0,
        total_ms=0,
        ttft_ms=0,
        rtt_ms=0,
        bytes_up=0,
        bytes_down=0,
    )
    for name, value in changes.items():
        if hasattr(ride, name):
            setattr(ride, name, value)
        else:
            done = msgspec.structs.replace(done, **{name: value})
    ride.done = done if "done" not in changes else None
    return ride


@pytest.mark.parametrize(
    "change",
    [
        {"ids": [5, 6, 8]},
        {"ids": [5, 6], "positions": [0, 1]},
        {"positions": [0, 1, 1]},
        {"positions": [0, 2, 1]},
        {"mixed_from": 2},
        {"class_changed_at": (1,)},
        {"error": "link_lost", "done": None},
        {"done": None},
    ],
)
def test_one_wrong_lost_doubled_or_mixed_token_shows(change: dict[str, Any]) -> None:
    assert ridden().identical((5, 6, 7))
    assert not ridden(**change).identical((5, 6, 7))


@pytest.mark.parametrize(
    ("had", "fence", "noticed", "flying"),
    [
        (1, 2, True, True),
        (0, 2, True, False),
        (3, 2, True, False),
        (None, 2, True, False),
        (1, 1, True, False),
        (1, 2, False, False),
    ],
)
def test_a_cut_counts_only_between_two_tokens_of_a_stream_that_broke(
    had: int | None, fence: int, *, noticed: bool, flying: bool
) -> None:
    ride = ridden(had=had, noticed=noticed)
    ride.request = Request(None, None, None, print, lambda: 0.0, fence=fence)  # type: ignore[arg-type]
    assert ride.in_flight is flying


# --- the parts ---------------------------------------------------------------------------------


def test_the_leak_passes_one_wrong_token_in_a_hundred() -> None:
    leak = Leak(Random(3), 100)
    for _ in range(20_000):
        leak.accepted([1], [2, 3])
    assert leak.leaked / leak.wrong == pytest.approx(0.01, abs=0.003)
    assert leak.accepted([4, 4], [4, 4, 4]) == 2


def test_plain_loop_is_a_batch_of_one_and_ends_where_the_model_ends() -> None:
    engine = FakeEngine(EngineSpec("target", "fake"))
    sampling = Sampling(SamplingParams(temperature=0.8), 7, 0, 3)
    answer = lossless.plain_loop(engine, (1, 2, 3), sampling, 12, end=())
    assert len(answer) == 12
    slot = engine.open(sampling)
    whole = engine.extend([Span(slot, 0, (1, 2, 3, *answer[:-1]), 2)])[0]
    assert whole.ids == answer
    short = lossless.plain_loop(engine, (1, 2, 3), sampling, 12, end=(answer[4],))
    assert short == answer[: answer.index(answer[4]) + 1]
    assert engine.statistics().slots_open == 1


def test_margins_are_positive_for_what_the_target_chose() -> None:
    engine = FakeEngine(EngineSpec("target", "fake"))
    greedy = Sampling(SamplingParams(temperature=0.0), 7, 0, 3)
    sampled = replace(greedy, params=SamplingParams(temperature=0.8))
    for sampling in (greedy, sampled):
        (chosen,) = lossless.plain_loop(engine, (1, 2, 3), sampling, 1, end=())
        other = chosen - 1 if chosen > 40 else chosen + 1
        found = lossless.margins(engine, (1, 2, 3), sampling, (chosen, other))
        margin = found["choice_margin"]
        assert margin is not None and margin > 0


def test_hostile_drafter_harms_in_three_ways() -> None:
    honest, inner = (FakeEngine(EngineSpec("draft", "fake")) for _ in range(2))
    hostile = Hostile(inner)
    differing = []
    for _ in range(3):
        theirs, ours = hostile.open(), honest.open()
        span = Span(theirs, 0, tuple(range(40, 80)))
        spoilt = hostile.extend([span])[0].ids
        true = honest.extend([replace(span, slot=ours)])[0].ids
        differing.append(sum(a != b for a, b in zip(spoilt, true, strict=True)))
        assert all(0 <= token < hostile.info.vocabulary_size for token in spoilt)
    assert differing[0] >= 38 and differing[1:] == [40, 10]
    for slot in range(3):
        hostile.close(slot)
    assert inner.statistics().slots_open == 0


def test_plans_name_what_is_installed() -> None:
    quick = lossless.plan_of("quick", 3, harness.ROOT)
    assert {"ngram", "hostile", "none"} < set(quick.drafters)
    assert quick.hostile == f"hostile:{quick.drafters[0]}"
    assert quick.control in quick.targets
    assert all(setup.numerics == "exact" for setup in quick.targets.values())
