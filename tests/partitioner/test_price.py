"""What a placement does: by hand on small cases, and what must hold on all."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.plan_cases import device, graph, link, small
from outrider.errors import InvalidProfile, Unplannable
from outrider.partitioner import price
from outrider.partitioner.cost import stage_bytes, stage_s
from outrider.partitioner.plan import Constraints, Objective, Problem, Workload
from outrider.partitioner.price import Part
from outrider.partitioner.solve import dp

SEEDS = st.integers(0, 5000)
BIG = 1 << 40
MODEL = graph(4)
"""Units 0 to 5."""


def two(**fields: object) -> Problem:
    """A slow home and a fast device 10 ms away."""
    devices = (device("home", 1e10, BIG), device("fast", 1e11, BIG))
    made = Problem(MODEL, devices, (link("home", "fast"),), "home")
    return replace(made, **fields)  # type: ignore[arg-type]


def parts(*spans: tuple[str, int, int]) -> tuple[Part, ...]:
    return tuple(Part(name, a, b, "torch", "float16") for name, a, b in spans)


SPLIT = parts(("home", 0, 2), ("fast", 2, 6))


def pass_s(problem: Problem, place: int, start: int, stop: int) -> float:
    owner = problem.devices[place]
    context = price.mean_context(problem.workload)
    return stage_s(problem.graph, start, stop, owner, owner.rates[0], 1.0, context)


def test_a_pass_is_its_stages_and_hops_over_the_tokens_it_commits() -> None:
    problem = two(workload=Workload(rows=1.0, tokens_per_pass=1.0))
    hops = 0.01 + (1024 * 2 + price.ID_BYTES) / 1e7
    cycle = pass_s(problem, 0, 0, 2) + pass_s(problem, 1, 2, 6) + hops
    found = price.price(problem, SPLIT)
    assert found.tpot_s == pytest.approx(cycle)
    assert found.hop_s == pytest.approx(hops)
    assert found.tokens_per_s == pytest.approx(1 / cycle)
    fewer = replace(problem, workload=replace(problem.workload, rows=4.0, tokens_per_pass=2.0))
    once = replace(fewer, workload=replace(fewer.workload, tokens_per_pass=1.0))
    assert price.price(fewer, SPLIT).tpot_s == pytest.approx(price.price(once, SPLIT).tpot_s / 2)


def test_a_device_with_the_whole_model_streams_and_a_stage_of_a_chain_asks() -> None:
    problem = two()
    alone = parts(("fast", 0, 6))
    assert price.price(problem, alone).tpot_s == pytest.approx(pass_s(problem, 1, 0, 6))
    asks = replace(problem, workload=replace(problem.workload, alone="asks"))
    waited = price.price(asks, alone).tpot_s - pass_s(problem, 1, 0, 6)
    assert waited == pytest.approx(0.01 + 2 * price.ID_BYTES / 1e7)


def test_a_full_pipeline_is_as_fast_as_its_slowest_part() -> None:
    problem = two(workload=Workload(sequences=64))
    slowest = max(pass_s(problem, 0, 0, 2), pass_s(problem, 1, 2, 6))
    assert price.price(problem, SPLIT).tokens_per_s == pytest.approx(1 / slowest)
    thin = replace(problem, links=(link("home", "fast", speed=1e5),))
    assert price.price(thin, SPLIT).tokens_per_s == pytest.approx(1e5 / 2048)


def test_few_answers_do_not_fill_it() -> None:
    one, many = two(), two(workload=Workload(sequences=3))
    cycle = price.price(one, SPLIT).tpot_s
    assert price.price(many, SPLIT).tokens_per_s == pytest.approx(3 / cycle)


def test_a_prompt_fills_and_drains_the_stages() -> None:
    load = Workload(prompt_tokens=256, prefill_chunk=64)
    problem = two(workload=load)
    ready = price.prepared(problem)
    each, last = zip(*(price.chunk_s(ready, part, 4) for part in SPLIT), strict=True)
    send = 64 * 1024 * 2 / 1e7
    first, back = 0.0, 0.005 + price.ID_BYTES / 1e7
    expected = first + sum(each) + 0.005 + send + 3 * max(*each, send) + sum(last) + back
    assert price.price(problem, SPLIT).ttft_s == pytest.approx(expected)
    alone = price.price(problem, parts(("home", 0, 6))).ttft_s
    assert alone == pytest.approx(sum(price.chunk_s(ready, Part("home", 0, 6, *RATE), 1)))


RATE = ("torch", "float16")


def test_the_head_computes_one_row_of_a_prompt() -> None:
    problem = two(workload=Workload(prompt_tokens=512))
    each, last = price.chunk_s(problem, Part("home", 0, 6, *RATE), 8)
    body, none = price.chunk_s(problem, Part("home", 0, 5, *RATE), 8)
    assert each == body and none == 0.0
    owner = problem.devices[0]
    head = stage_s(MODEL, 5, 6, owner, owner.rates[0], 1.0, 256) - 1e-4
    assert last == pytest.approx(head)


def test_energy_is_what_stages_draw_and_bytes_cost() -> None:
    wires = replace(link("home", "fast"), joules_per_byte=1e-6)
    problem = two(links=(wires,))
    seconds = pass_s(problem, 0, 0, 2) + pass_s(problem, 1, 2, 6)
    found = price.price(problem, SPLIT).joules_per_token
    assert found == pytest.approx(22.0 * seconds + 1e-6 * (2048 + price.ID_BYTES))


def test_dollars_are_per_second_of_computing() -> None:
    devices = (two().devices[0], replace(two().devices[1], dollars_per_hour=3.6))
    problem = two(devices=devices)
    expected = 1e6 * 3.6 / 3600 * pass_s(problem, 1, 2, 6)
    assert price.price(problem, SPLIT).dollars_per_mtoken == pytest.approx(expected)


def test_a_cap_slows_a_device_to_it() -> None:
    capped = two(constraints=Constraints(max_watts=(("fast", 12.0),)))
    ready = price.prepared(capped)
    assert ready.devices[1].slowdown == pytest.approx(2.0)
    assert price.stage_watts(ready.devices[1]) == pytest.approx(12.0)
    assert price.prepared(ready) == ready
    idle = two(constraints=Constraints(max_watts=(("fast", 2.0),)))
    assert math.isinf(price.price(idle, SPLIT).tpot_s)


def test_memory_grows_with_answers_and_their_tokens() -> None:
    load = Workload(prompt_tokens=100, new_tokens=50, sequences=4)
    problem = two(workload=load)
    rate = problem.devices[1].rates[0]
    expected = stage_bytes(MODEL, 2, 6, rate, 600)
    assert price.memory_bytes(problem, SPLIT[1]) == expected
    assert price.stage_plans(problem, SPLIT)[1].memory_bytes == expected


def test_violations_name_the_constraint() -> None:
    limits = Constraints(
        max_tpot_s=1e-9,
        max_ttft_s=1e-9,
        max_joules_per_token=1e-9,
        exclude=("fast",),
        stay=(3,),
        max_devices=1,
        dtype="int8",
        dtype_loss=(("float16", 1.0),),
        max_loss=2.0,
    )
    problem = two(constraints=limits, devices=(device("home", 1e10, 10), two().devices[1]))
    found = " ".join(price.violations(problem, SPLIT))
    for name in (
        "max_tpot_s", "max_ttft_s", "max_joules_per_token", "exclude: fast", "stay: unit 3",
        "max_devices", "dtype", "max_loss", "memory of home",
    ):  # fmt: skip
        assert name in found
    assert price.violations(two(), SPLIT) == ()


def test_home_may_hold_both_ends_only_where_both_must_stay() -> None:
    shape = parts(("home", 0, 1), ("fast", 1, 5), ("home", 5, 6))
    assert price.violations(two(), shape) == ("one range per device: home",)
    ends = two(constraints=Constraints(stay=(0, 5)))
    assert price.violations(ends, shape) == ()
    held = sum(price.memory_bytes(ends, shape[i]) for i in (0, 2))
    tight = replace(ends, devices=(device("home", 1e10, held - 1), two().devices[1]))
    assert "memory of home" in price.violations(tight, shape)[0]


@pytest.mark.parametrize(
    "wrong",
    [(), (("home", 0, 5),), (("home", 0, 3), ("fast", 2, 6)), (("home", 1, 6),)],
)
def test_parts_must_join(wrong: tuple[tuple[str, int, int], ...]) -> None:
    with pytest.raises(Unplannable, match="units"):
        price.price(two(), parts(*wrong))


def test_unknown_devices_rates_and_links_are_named() -> None:
    with pytest.raises(InvalidProfile, match="moon"):
        price.price(two(), parts(("moon", 0, 6)))
    with pytest.raises(InvalidProfile, match="int3"):
        price.price(two(), (Part("home", 0, 6, "torch", "int3"),))
    with pytest.raises(Unplannable, match="home and fast"):
        price.price(two(links=()), SPLIT)


def test_activations_that_skip_a_stage_cross_every_cut() -> None:
    skipping = replace(MODEL, edges=(*MODEL.edges, (0, 4)))
    assert price.cut_numbers(MODEL, 2) == 1024
    assert price.cut_numbers(skipping, 2) == 2048
    assert price.cut_numbers(skipping, 5) == 1024


# --- on all ------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(SEEDS, st.floats(1.0, 50.0))
def test_a_longer_way_is_never_faster(seed: int, factor: float) -> None:
    problem = small(seed)
    found = dp.best(problem)
    if found is None:
        return
    near = price.price(problem, found.parts)
    links = tuple(replace(link, rtt_s=link.rtt_s * factor) for link in problem.links)
    far = price.price(replace(problem, links=links), found.parts)
    assert far.tpot_s >= near.tpot_s and far.ttft_s >= near.ttft_s
    assert far.tokens_per_s <= near.tokens_per_s
    if len(found.parts) > 1 and factor > 1.01:
        assert far.tpot_s > near.tpot_s


@settings(max_examples=40, deadline=None)
@given(SEEDS, st.sampled_from(["latency", "throughput", "energy", "cost"]))
def test_plans_keep_memory_and_what_must_stay(seed: int, objective: Objective) -> None:
    problem = replace(small(seed), objective=objective)
    found = dp.best(problem)
    if found is None:
        return
    held: dict[str, int] = {}
    for part in found.parts:
        held[part.device] = held.get(part.device, 0) + price.memory_bytes(problem, part)
        inside = set(range(part.start, part.stop)) & set(problem.constraints.stay)
        assert not inside or part.device == problem.home
    for name, size in held.items():
        assert size <= price.device_of(problem, name).memory_bytes
