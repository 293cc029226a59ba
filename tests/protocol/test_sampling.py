"""Sampling: known answers, golden vectors, and the fast way against the plain one."""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from decimal import Decimal, localcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from outrider.errors import EngineFailed, InvalidRequest
from outrider.protocol import sampling
from outrider.protocol.sampling import GREEDY, Floats, Sampling, SamplingParams

VECTORS: dict[str, Any] = json.loads(
    (Path(__file__).parent.parent / "vectors" / "sampling.json").read_text()
)
ONES = 0xFFFFFFFF


# --- the generator -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((ONES,) * 4, (ONES, ONES), (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
    ids=["zeros", "ones", "pi"],
)
def test_philox_gives_the_known_answers_of_random123(
    counter: tuple[int, ...], key: tuple[int, int], expected: tuple[int, ...]
) -> None:
    assert tuple(int(word) for word in sampling.philox4x32(counter, key)) == expected


def philox_of_one(counter: list[int], key: list[int]) -> list[int]:
    """The definition on Python integers."""
    for _ in range(10):
        high0, low0 = divmod(counter[0] * 0xD2511F53, 2**32)
        high1, low1 = divmod(counter[2] * 0xCD9E8D57, 2**32)
        counter = [high1 ^ counter[1] ^ key[0], low1, high0 ^ counter[3] ^ key[1], low0]
        key = [(key[0] + 0x9E3779B9) % 2**32, (key[1] + 0xBB67AE85) % 2**32]
    return counter


WORDS = st.integers(0, ONES)


@given(st.tuples(WORDS, WORDS, WORDS, WORDS), WORDS, st.lists(WORDS, min_size=1, max_size=5))
def test_bits_are_the_upper_52_of_two_words(
    key: tuple[int, int, int, int], position: int, ids: list[int]
) -> None:
    got = sampling.random_bits(key, position, np.array(ids))
    for token, bits in zip(ids, got, strict=True):
        first, second, _, _ = philox_of_one([token, position, key[2], key[3]], list(key[:2]))
        assert int(bits) == (first << 20) | (second >> 12)


def test_blocks_leave_no_seam() -> None:
    ids = np.arange(3 * sampling._BLOCK + 5)
    key = sampling.derive_key(1, 2)
    whole = sampling.random_bits(key, 9, ids)
    at = np.array([0, sampling._BLOCK - 1, sampling._BLOCK, 2 * sampling._BLOCK, ids[-1]])
    assert np.array_equal(whole[at], sampling.random_bits(key, 9, at))


@given(st.tuples(WORDS, WORDS, WORDS, WORDS), WORDS, st.integers(1, 2 * sampling._FEW))
def test_few_ids_and_many_get_the_same_bits(
    key: tuple[int, int, int, int], position: int, count: int
) -> None:
    ids = np.arange(3, 3 + 3 * sampling._FEW)
    many = sampling.random_bits(key, position, ids)
    assert np.array_equal(many[:count], sampling.random_bits(key, position, ids[:count]))


@pytest.mark.parametrize("case", VECTORS["noise"], ids=lambda c: f"{c['seed']}-{c['position']}")
def test_golden_noise(case: dict[str, Any]) -> None:
    key = sampling.derive_key(int(case["seed"]), case["choice"])
    assert list(key) == case["key"]
    bits = sampling.random_bits(key, case["position"], np.array(case["ids"]))
    assert [int(b) for b in bits] == case["bits"]
    expected = [float(text) for text in case["noise"]]
    assert sampling.noise(key, case["position"], np.array(case["ids"])) == pytest.approx(
        expected, rel=1e-8
    )


@pytest.mark.parametrize("bits", [0, 1, 2**51, 2**52 - 2, 2**52 - 1, round(2**52 / math.e), 12345])
def test_noise_is_within_four_ulp(bits: int) -> None:
    """Of 1 where the noise itself is smaller: it is added to scores."""
    with localcontext() as context:
        context.prec = 60
        exact = -(-((Decimal(bits) + Decimal("0.5")) / 2**52).ln()).ln()
        got = float(sampling.gumbel(np.array([bits], dtype=np.uint64))[0])
        assert abs(Decimal(got) - exact) <= 4 * Decimal(math.ulp(max(1.0, abs(got))))


def test_bounds_of_the_noise() -> None:
    extremes = sampling.gumbel(np.array([0, 2**52 - 1], dtype=np.uint64))
    assert extremes[0] == pytest.approx(sampling.LEAST_NOISE, rel=1e-15)
    assert extremes[1] == pytest.approx(sampling.MAX_NOISE, rel=1e-15)


# --- golden choices ----------------------------------------------------------------------------


def golden_row(kind: str, size: int) -> Floats:
    """As scripts/vectors makes it, written again."""
    if kind == "flat":
        return np.zeros(size)
    bits = sampling.random_bits((1, 2, 3, 4), 0, np.arange(size))
    if kind == "ties":
        return (bits % np.uint64(5)).astype(np.float64)
    row: Floats = (bits.astype(np.float64) * 2.0**-52 - 0.5) * 16.0
    if kind == "holes":
        row[bits % np.uint64(3) == 0] = -np.inf
    return row


@pytest.mark.parametrize("case", VECTORS["cases"], ids=lambda case: case["name"])
@pytest.mark.parametrize("way", ["fast", "plain"])
def test_golden_choices(case: dict[str, Any], way: str) -> None:
    allowed = sampling.allowed if way == "fast" else sampling.allowed_plain
    choose = sampling.choose if way == "fast" else sampling.choose_plain
    bias = tuple((int(i), float(v)) for i, v in case["params"].get("logit_bias", []))
    params = SamplingParams(**{**case["params"], "logit_bias": bias})
    how = Sampling(params, seed=2**127 + case["size"], choice=1, prompt_length=4)
    tally = sampling.Tally(4)
    tally.extend(VECTORS["history"])
    row = sampling.prepare(golden_row(case["scores"], case["size"]), how, tally)
    assert [choose(row, how, place) for place in VECTORS["places"]] == case["chosen"]
    assert list(sampling.rank(row, how, 7, 3)) == case["best_three"]
    if not params.greedy:
        check_ids(allowed(row, params)[0], case["allowed"])


def check_ids(ids: sampling.Ids, expected: dict[str, Any]) -> None:
    if "ids" in expected:
        assert ids.tolist() == expected["ids"]
    else:
        assert len(ids) == expected["count"]
        assert hashlib.sha256(ids.astype("<u4").tobytes()).hexdigest() == expected["sha256"]


# --- the fast way is the plain way -------------------------------------------------------------


@st.composite
def rows(draw: st.DrawFn) -> Floats:
    """Scores with ties, holes, one peak or none, around the sizes at which the code branches."""
    size = draw(st.sampled_from([1, 2, 50, 127, 128, 129, 513, 700, 1030]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    spread = draw(st.sampled_from([0.0, 0.5, 3.0, 30.0, 1e6]))
    row: Floats = rng.normal(0.0, 1.0, size) * spread
    if draw(st.booleans()):
        row = np.round(row)
    if draw(st.booleans()):
        row[rng.random(size) < 0.4] = -np.inf
    if draw(st.booleans()) or not np.isfinite(row.max()):
        row[rng.integers(size)] = draw(st.sampled_from([0.0, 12.0, 200.0]))
    return row


PARAMS = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.0, 1e-6, 0.1, 0.8, 1.0, 2.0, 100.0]),
    top_k=st.sampled_from([None, None, 1, 2, 40, 128, 600, 5000]),
    top_p=st.sampled_from([1.0, 1.0, 1e-9, 0.1, 0.3, 0.5, 0.95, 0.999999, 1 - 2**-53]),
    min_p=st.sampled_from([0.0, 0.0, 1e-9, 0.05, 0.5, 1.0]),
)


@settings(max_examples=400)
@given(rows(), PARAMS, st.integers(0, 2**128 - 1), st.integers(0, ONES))
def test_fast_equals_plain(row: Floats, params: SamplingParams, seed: int, position: int) -> None:
    how = Sampling(params, seed)
    assert sampling.choose(row, how, position) == sampling.choose_plain(row, how, position)
    if not params.greedy:
        fast, plain = sampling.allowed(row, params), sampling.allowed_plain(row, params)
        assert np.array_equal(fast[0], plain[0])
        assert np.array_equal(fast[1], plain[1])


@pytest.mark.parametrize("spread", [1.0, 4.0, 1e308])
def test_a_rough_sum_never_decides_where_the_exact_one_could(spread: float) -> None:
    """Shares as near as can be to what the best few tokens reach, on both sides."""
    rng = np.random.default_rng(11)
    for size in (5, 200, 3000):
        row = rng.random(size) * spread
        weights = np.sort(np.exp(row - row.max()))[::-1]
        reached = np.cumsum(weights / weights.sum())
        for kept in (0, 1, size // 8, size // 2):
            for off in (-3e-5, -1e-5, -1e-9, 0.0, 1e-9, 1e-5, 3e-5):
                params = SamplingParams(top_p=min(float(reached[kept]) * (1.0 + off), 1.0))
                fast, plain = sampling.allowed(row, params), sampling.allowed_plain(row, params)
                assert np.array_equal(fast[0], plain[0])


@given(rows(), PARAMS, st.integers(0, 2**64), st.integers(1, 12))
def test_rank_begins_with_the_choice(
    row: Floats, params: SamplingParams, seed: int, k: int
) -> None:
    how = Sampling(params, seed)
    ranked = sampling.rank(row, how, 3, k)
    assert ranked[0] == sampling.choose(row, how, 3)
    assert len(set(ranked)) == len(ranked) <= k
    assert all(np.isfinite(row[i]) for i in ranked)


def test_many_positions_of_a_large_vocabulary() -> None:
    """Flat rows leave the most to the noise, and so to the bound on its integers."""
    for position in range(60):
        row = np.random.default_rng(position).normal(0.0, 0.2 + position / 20, 4096)
        how = Sampling(SamplingParams(), seed=position)
        assert sampling.choose(row, how, position) == sampling.choose_plain(row, how, position)


# --- corners -----------------------------------------------------------------------------------


def ids_of(row: list[float], **fields: Any) -> list[int]:
    return [int(i) for i in sampling.allowed(np.array(row), SamplingParams(**fields))[0]]


def test_the_token_that_crosses_top_p_is_kept() -> None:
    row = [math.log(share) for share in (0.5, 0.3, 0.15, 0.05)]
    assert ids_of(row, top_p=0.49) == [0]
    assert ids_of(row, top_p=0.51) == [0, 1]
    assert ids_of(row, top_p=0.81) == [0, 1, 2]


@pytest.mark.parametrize(("kept", "count"), [(1, 3), (3, 10), (7, 25), (23, 42), (500, 1000)])
def test_equal_probabilities_that_meet_top_p_are_cut_by_count(kept: int, count: int) -> None:
    """In float64 7 / 25 * 25 > 7: the last bit has no say."""
    assert len(ids_of([1.0] * count, top_p=kept / count)) == kept


def test_ties_go_to_the_lowest_id() -> None:
    assert ids_of([1.0, 2.0, 2.0, 2.0], top_k=2) == [1, 2]
    assert sampling.choose(np.array([1.0, 3.0, 3.0]), Sampling(GREEDY, 1), 0) == 1
    assert sampling.rank(np.array([1.0, 3.0, 3.0]), Sampling(GREEDY, 1), 0, 3) == (1, 2, 0)


def test_top_k_comes_before_top_p_and_top_p_before_min_p() -> None:
    row = [math.log(share) for share in (0.4, 0.3, 0.2, 0.1)]
    # Of the two best 0.4 is 57 %, so that half of the rest is reached by one.
    assert ids_of(row, top_k=2, top_p=0.57) == [0]
    assert ids_of(row, top_p=0.5, min_p=0.8) == [0]


def test_impossible_ids_are_never_allowed() -> None:
    row = [0.0, -math.inf, 1.0, -math.inf]
    for fields in ({}, {"top_k": 3}, {"top_p": 1 - 1e-16}, {"min_p": 1e-300}):
        assert ids_of(row, **fields) == [0, 2]


def test_a_tiny_temperature_is_nearly_greedy_and_finite() -> None:
    row = np.array([3.0e38, 1.0, 2.9e38])
    how = Sampling(SamplingParams(temperature=1e-6), seed=5)
    assert {sampling.choose(row, how, place) for place in range(20)} == {0}


# --- scores that can not be used ---------------------------------------------------------------


@pytest.mark.parametrize(
    "row", [[0.0, math.nan], [math.inf, 0.0], [-math.inf, -math.inf], [math.nan] * 3, []]
)
def test_scores_that_are_not_finite_fail(row: list[float]) -> None:
    with pytest.raises(EngineFailed, match="not finite"):
        sampling.finite(np.array(row, dtype=np.float32))


def test_holes_are_no_failure() -> None:
    assert sampling.finite(np.array([-np.inf, 1.0], dtype=np.float32)).tolist() == [-np.inf, 1.0]


# --- parameters --------------------------------------------------------------------------------

NOT_A_NUMBER = math.nan


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *((name, NOT_A_NUMBER) for name in ("temperature", "top_p", "min_p")),
        *((name, math.inf) for name in ("temperature", "presence_penalty", "frequency_penalty")),
        *((f"{kind}_penalty", NOT_A_NUMBER) for kind in ("repetition", "presence", "frequency")),
        ("temperature", -0.1),
        ("temperature", 100.1),
        ("temperature", 1e-7),
        ("temperature", 5e-324),
        ("temperature", 10**400),
        ("top_p", 0.0),
        ("top_p", -0.5),
        ("top_p", 1.0000001),
        ("min_p", -1e-9),
        ("min_p", 1.1),
        ("top_k", 0),
        ("top_k", -1),
        ("top_k", 2**32),
        ("repetition_penalty", 0.0),
        ("repetition_penalty", -1.0),
        ("presence_penalty", 101.0),
        ("frequency_penalty", -101.0),
        ("logit_bias", ((1, math.nan),)),
        ("logit_bias", ((1, 1001.0),)),
        ("logit_bias", ((-1, 1.0),)),
        ("logit_bias", ((2**32, 1.0),)),
        ("logit_bias", ((1, 1.0), (1, 2.0))),
        ("logit_bias", tuple((i, 0.0) for i in range(1025))),
    ],
)
def test_parameters_out_of_range_are_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(InvalidRequest) as caught:
        SamplingParams(**{name: value})
    assert caught.value.param == name
    assert name in caught.value.what


@pytest.mark.parametrize("seed", [-1, 2**128])
def test_a_seed_out_of_range_is_refused_and_not_told(seed: int) -> None:
    with pytest.raises(InvalidRequest) as caught:
        Sampling(GREEDY, seed)
    assert caught.value.param == "seed"
    assert str(seed) not in str(caught.value)


# --- penalties ---------------------------------------------------------------------------------


def penalised_plainly(
    row: Floats, params: SamplingParams, prompt: list[int], answer: list[int]
) -> Floats:
    """The definition, one token at a time."""
    result = row.copy()
    for token in set(prompt + answer):
        factor = params.repetition_penalty
        result[token] = result[token] / factor if result[token] > 0 else result[token] * factor
    for token, count in Counter(answer).items():
        result[token] -= params.presence_penalty + params.frequency_penalty * count
    for token, bias in params.logit_bias:
        if token < len(result):
            result[token] += bias
    return result


TOKENS = st.lists(st.integers(0, 29), max_size=8)


@given(
    st.builds(
        SamplingParams,
        temperature=st.sampled_from([0.0, 0.7]),
        repetition_penalty=st.sampled_from([1.0, 0.5, 1.3]),
        presence_penalty=st.sampled_from([0.0, 1.5, -2.0]),
        frequency_penalty=st.sampled_from([0.0, 0.25]),
        logit_bias=st.sampled_from([(), ((3, 4.0), (99, 1.0))]),
    ),
    st.lists(st.integers(0, 29), min_size=1, max_size=8),
    TOKENS,
    st.lists(st.integers(0, 29), min_size=1, max_size=6),
    st.data(),
)
def test_penalties_along_a_path_equal_a_recomputation(
    params: SamplingParams,
    prompt: list[int],
    answer: list[int],
    path: list[int],
    data: st.DataObject,
) -> None:
    first = data.draw(st.integers(0, len(path) - 1))
    scores = np.random.default_rng(len(path)).normal(0, 3, (len(path) - first, 30))
    how = Sampling(params, seed=11, prompt_length=len(prompt))
    got = sampling.pick_path(scores.astype(np.float32), how, prompt + answer, path, first)
    for i, chosen in enumerate(got):
        said = answer + path[: first + i + 1]
        row = penalised_plainly(scores[i].astype(np.float32).astype(float), params, prompt, said)
        assert chosen == sampling.choose_plain(row, how, len(prompt) + len(said))


def test_a_copied_tally_grows_alone() -> None:
    tally = sampling.Tally(1)
    tally.extend([4, 5])
    branch = tally.copy()
    branch.add(5)
    assert (tally.seen, tally.said) == ({4: 1, 5: 1}, {5: 1})
    assert (branch.seen, branch.said) == ({4: 1, 5: 2}, {5: 2})


# --- logprobs ----------------------------------------------------------------------------------


@given(rows(), st.integers(0, 20))
def test_logprobs_are_the_log_softmax_of_unprocessed_scores(row: Floats, top_n: int) -> None:
    chosen = int(np.argmax(row))
    found = sampling.logprobs(row, chosen, top_n)
    whole = math.fsum(math.exp(score - row.max()) for score in row)
    normal = row - row.max() - math.log(whole)
    assert found.chosen == pytest.approx(normal[chosen], abs=1e-9)
    assert found.chosen <= 0.0
    order = sorted(range(len(row)), key=lambda i: (-row[i], i))[:top_n]
    assert [i for i, _ in found.top] == order
    assert [value for _, value in found.top] == pytest.approx(normal[order], rel=1e-9, abs=1e-9)
