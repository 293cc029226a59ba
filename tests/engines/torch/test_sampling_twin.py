"""The sampler on tensors against the one in numpy."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from outrider.engine import Picked, Span, Want
from outrider.engines.slots import Slot, pick
from outrider.engines.torch import sampling as twin
from outrider.errors import EngineFailed
from outrider.protocol import sampling
from outrider.protocol.sampling import Sampling, SamplingParams, Tally

DEVICES = [
    "cpu",
    pytest.param(
        "cuda:0",
        marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    ),
]
SIZE = 700
VECTORS: dict[str, Any] = json.loads(
    (Path(__file__).parents[2] / "vectors" / "sampling.json").read_text()
)


def params_of(random: np.random.Generator) -> SamplingParams:
    """One of the many ways to sample; each setting is used about half of the time."""
    on = random.random(8) < 0.5
    bias = {int(i): float(random.normal(0, 3)) for i in random.integers(0, SIZE + 20, 4)}
    return SamplingParams(
        temperature=float(random.uniform(0.2, 2.0)) if on[0] or on[1] else 0.0,
        top_k=int(random.integers(1, 60)) if on[2] else None,
        top_p=float(random.uniform(0.05, 1.0)) if on[3] else 1.0,
        min_p=float(random.uniform(0.0, 0.3)) if on[4] else 0.0,
        repetition_penalty=float(random.uniform(0.5, 2.0)) if on[5] else 1.0,
        presence_penalty=float(random.normal()) if on[6] else 0.0,
        frequency_penalty=float(random.normal()) if on[6] else 0.0,
        logit_bias=tuple(bias.items()) if on[7] else (),
    )


def scores_of(random: np.random.Generator, rows: int) -> NDArray[np.float32]:
    """Some rows coarse, so that equal scores are common; some with ids ruled out."""
    found = random.normal(0, 3, (rows, SIZE)).astype(np.float32)
    found[::3] = np.round(found[::3])
    found[1::4, ::5] = -np.inf
    return found


def cases(count: int, want: Want) -> Iterator[tuple[Span, Slot, NDArray[np.float32]]]:
    random = np.random.default_rng(11)
    for number in range(count):
        length, size = int(random.integers(0, 30)), int(random.integers(1, 7))
        history = random.integers(0, SIZE, length).tolist()
        tokens = tuple(random.integers(0, SIZE, size).tolist())
        tree = tuple(None if i == 0 else int(random.integers(0, i)) for i in range(size))
        seed = int.from_bytes(random.bytes(16), "little")
        how = Sampling(params_of(random), seed, number % 3, length // 2)
        first = int(random.integers(0, size))
        span = Span(0, length, tokens, first, tree if number % 2 else None, want, 5)
        yield span, Slot(0, how, history), scores_of(random, size - first)


def both(span: Span, slot: Slot, scores: NDArray[np.float32], device: str) -> tuple[Picked, Picked]:
    found = twin.pick_spans([span], [slot], torch.from_numpy(scores).to(device))[0]
    return pick(span, slot, scores), found


@pytest.mark.parametrize("device", DEVICES)
def test_choices_are_equal(device: str) -> None:
    for case in cases(600, "ids"):
        expected, found = both(*case, device)
        assert found == expected


@pytest.mark.parametrize("device", DEVICES)
def test_children_are_equal(device: str) -> None:
    for case in cases(200, "children"):
        expected, found = both(*case, device)
        assert found.ids == expected.ids
        assert found.children == expected.children


@pytest.mark.parametrize("device", DEVICES)
def test_logprobs_agree(device: str) -> None:
    for case in cases(100, "logprobs"):
        expected, found = both(*case, device)
        for ours, theirs in zip(found.logprobs or (), expected.logprobs or (), strict=True):
            assert ours.chosen == pytest.approx(theirs.chosen, abs=1e-9)
            assert [i for i, _ in ours.top] == [i for i, _ in theirs.top]


def test_many_spans_in_one_call() -> None:
    """Rows of different slots do not mix."""
    parts = list(cases(40, "ids"))
    spans, slots = [p[0] for p in parts], [p[1] for p in parts]
    scores = torch.from_numpy(np.concatenate([p[2] for p in parts]))
    assert twin.pick_spans(spans, slots, scores) == [pick(*part) for part in parts]


def test_the_generator_is_bit_equal() -> None:
    ids = np.array([0, 1, 77, 2**31, 2**32 - 1])
    key = sampling.derive_key(2**127 + 5, 3)
    mine = twin.philox4x32(
        [torch.from_numpy(ids), *(torch.tensor(w) for w in (123456, key[2], key[3]))],
        (torch.tensor(key[0]), torch.tensor(key[1])),
    )
    theirs = sampling.philox4x32((ids.astype(np.uint64), 123456, key[2], key[3]), key[:2])
    for ours, expected in zip(mine, theirs[:2], strict=True):
        assert (ours.numpy().astype(np.uint64) == expected).all()


def test_noise_is_within_four_last_places() -> None:
    """Of 1 where the noise itself is smaller: it is added to scores."""
    row = twin.Row(Sampling(SamplingParams(), seed=9), 41)
    mine = twin.noise([row], 5000, torch.device("cpu"))[0].numpy()
    theirs = sampling.noise(row.sampling.key, 41, np.arange(5000))
    assert (np.abs(mine - theirs) <= 4 * np.spacing(np.maximum(np.abs(theirs), 1.0))).all()


def golden_row(kind: str, size: int) -> NDArray[np.float64]:
    """As scripts/vectors makes it, written again."""
    bits = sampling.random_bits((1, 2, 3, 4), 0, np.arange(size))
    if kind == "flat":
        return np.zeros(size)
    if kind == "ties":
        return (bits % np.uint64(5)).astype(np.float64)
    row = (bits.astype(np.float64) * 2.0**-52 - 0.5) * 16.0
    if kind == "holes":
        row[bits % np.uint64(3) == 0] = -np.inf
    return row


@pytest.mark.parametrize("case", VECTORS["cases"], ids=lambda case: case["name"])
def test_golden_choices(case: dict[str, Any]) -> None:
    bias = tuple((int(i), float(v)) for i, v in case["params"].get("logit_bias", []))
    params = SamplingParams(**{**case["params"], "logit_bias": bias})
    how = Sampling(params, seed=2**127 + case["size"], choice=1, prompt_length=4)
    tally = Tally(4)
    tally.extend(VECTORS["history"])
    rows = [twin.Row(how, place, tally) for place in VECTORS["places"]]
    scores = torch.from_numpy(golden_row(case["scores"], case["size"]))
    assert twin.choose_rows(scores.expand(len(rows), -1), rows) == case["chosen"]
    best = twin.rank_rows(scores.unsqueeze(0), [twin.Row(how, 7, tally)], 3)
    assert list(best[0]) == case["best_three"]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_scores_that_are_not_finite_fail(bad: float) -> None:
    scores = torch.zeros(2, SIZE)
    scores[1] = bad
    row = twin.Row(Sampling(SamplingParams(), seed=9), 0)
    with pytest.raises(EngineFailed):
        twin.choose_rows(scores, [row, row])
