"""What is chosen follows the processed distribution; a biased sampler fails the same tests.

Seeds are fixed, so a result is the same on every run: a verdict is no matter of luck.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from scipy import stats

from outrider.protocol import sampling
from outrider.protocol.sampling import Floats, Sampling, SamplingParams

DRAWS = 1500
SIZE = 24
Sampler = Callable[[Floats, Sampling, int], int]
PARAMS = {
    "plain": SamplingParams(),
    "cool, top-p": SamplingParams(temperature=0.8, top_p=0.95),
    "hot, top-k": SamplingParams(temperature=2.0, top_k=9),
    "min-p": SamplingParams(temperature=1.2, min_p=0.08),
    "all cuts": SamplingParams(temperature=1.5, top_k=15, top_p=0.9, min_p=0.03),
    "bias": SamplingParams(logit_bias=((1, 3.0), (2, -3.0))),
}


def scores(salt: int, size: int = SIZE) -> Floats:
    row: Floats = np.random.default_rng(salt).normal(0.0, 1.5, size)
    return row


def draw(choose: Sampler, row: Floats, params: SamplingParams, *, over: str) -> list[int]:
    """One draw each over positions of one seed, over seeds, or over choices."""
    how = Sampling(params, seed=2025)
    match over:
        case "positions":
            return [choose(row, how, place) for place in range(DRAWS)]
        case "seeds":
            return [choose(row, replace(how, seed=seed), 17) for seed in range(DRAWS)]
        case _:
            return [choose(row, replace(how, choice=n), 17) for n in range(DRAWS)]


@dataclass(frozen=True, slots=True)
class Verdict:
    p_value: float
    distance: float
    """Total variation between the shares drawn and the distribution."""
    expected: float
    """Mean of that distance for a true sampler, normal approximation."""

    @property
    def fair(self) -> bool:
        return self.p_value > 1e-4 and self.distance < 1.6 * self.expected


def judge(drawn: list[int], wanted: Floats) -> Verdict:
    counts = np.bincount(drawn, minlength=len(wanted)).astype(float)
    count = counts.sum()
    if counts[wanted == 0.0].any():
        return Verdict(0.0, 1.0, 0.0)
    kept = wanted > 0.0
    # Cells with few draws are counted as one, as the test asks for.
    rare = kept & (wanted * count < 5)
    cells = [
        *np.flatnonzero(kept & ~rare)[:, None],
        *([np.flatnonzero(rare)] if rare.any() else []),
    ]
    seen = np.array([counts[cell].sum() for cell in cells])
    mean = np.array([wanted[cell].sum() for cell in cells]) * count
    statistic = float(((seen - mean) ** 2 / mean).sum())
    spread = np.sqrt(2.0 * wanted * (1.0 - wanted) / (np.pi * count))
    return Verdict(
        float(stats.chi2.sf(statistic, len(cells) - 1)),
        0.5 * float(np.abs(counts / count - wanted).sum()),
        0.5 * float(spread.sum()),
    )


def wanted_of(row: Floats, params: SamplingParams) -> tuple[Floats, Floats]:
    """Penalised scores and the processed distribution."""
    prepared = sampling.prepare(row, Sampling(params, 0), None)
    return prepared, sampling.processed(prepared, params)


@pytest.mark.parametrize(
    ("name", "over"),
    [*((name, "positions") for name in PARAMS), ("plain", "seeds"), ("cool, top-p", "choices")],
)
def test_choices_follow_the_processed_distribution(name: str, over: str) -> None:
    row, wanted = wanted_of(scores(len(name)), PARAMS[name])
    verdict = judge(draw(sampling.choose, row, PARAMS[name], over=over), wanted)
    assert verdict.fair, verdict


# --- controls: what must fail ------------------------------------------------------------------


def shifted(row: Floats, how: Sampling, position: int) -> int:
    """Five draws in a hundred of the best token go to the lowest id."""
    chosen = sampling.choose(row, how, position)
    lucky = sampling.noise(how.key, position, np.array([10**6]))[0]
    rate = 0.05 / float(sampling.processed(row, how.params).max())
    return 0 if chosen == int(np.argmax(row)) and lucky > -np.log(-np.log1p(-rate)) else chosen


def same_noise(row: Floats, how: Sampling, position: int) -> int:
    """One noise value for all tokens: greedy in disguise."""
    ids, scaled = sampling.allowed(row, how.params)
    return int(ids[np.argmax(scaled + sampling.noise(how.key, position, np.zeros(1, int)))])


def same_place(row: Floats, how: Sampling, position: int) -> int:
    """The noise of few positions, used again and again."""
    return sampling.choose(row, how, position % 50)


def uniform_noise(row: Floats, how: Sampling, position: int) -> int:
    """Noise of another law."""
    ids, scaled = sampling.allowed(row, how.params)
    bits = sampling.random_bits(how.key, position, ids)
    return int(ids[np.argmax(scaled + bits * 2.0**-50)])


def cut_too_much(row: Floats, how: Sampling, position: int) -> int:
    """The token that crosses top-p left out."""
    return sampling.choose(row, replace(how, params=SamplingParams(top_k=SIZE - 8)), position)


@pytest.mark.parametrize(
    "biased",
    [shifted, same_noise, same_place, uniform_noise, cut_too_much],
    ids=lambda f: f.__name__,
)
def test_a_biased_sampler_is_found_out(biased: Sampler) -> None:
    params = SamplingParams()
    row, wanted = wanted_of(scores(len("plain")), params)
    assert not judge(draw(biased, row, params, over="positions"), wanted).fair


# --- independence ------------------------------------------------------------------------------


def pair_p_value(first: list[int], second: list[int], size: int) -> float:
    """Chi-square of a table of pairs against the product of its margins."""
    table = np.zeros((size, size))
    np.add.at(table, (first, second), 1.0)
    found: Any = stats.chi2_contingency(table, correction=False)
    return float(found.pvalue)


def chosen(row: Floats, places: range, *, seed: int = 5, choice: int = 0) -> list[int]:
    how = Sampling(SamplingParams(), seed, choice)
    return [sampling.choose(row, how, place) for place in places]


@pytest.mark.parametrize(
    ("places", "seed", "choice"),
    [(range(1, DRAWS + 1), 5, 0), (range(DRAWS), 5, 1), (range(DRAWS), 6, 0)],
    ids=["next position", "next choice", "next seed"],
)
def test_draws_are_independent(places: range, seed: int, choice: int) -> None:
    row = np.log(np.array([0.3, 0.25, 0.2, 0.15, 0.1]))
    first = chosen(row, range(DRAWS))
    assert pair_p_value(first, chosen(row, places, seed=seed, choice=choice), 5) > 1e-3


def test_dependent_draws_are_found_out() -> None:
    row = np.log(np.array([0.3, 0.25, 0.2, 0.15, 0.1]))
    first = chosen(row, range(DRAWS))
    # Every eighth draw is the other one's.
    mixed = [
        a if i % 8 == 0 else b
        for i, (a, b) in enumerate(zip(first, chosen(row, range(DRAWS), choice=1), strict=True))
    ]
    assert pair_p_value(first, mixed, 5) < 1e-3


def test_neighbouring_ids_have_independent_noise() -> None:
    key = sampling.derive_key(3, 0)
    grid = np.stack([sampling.noise(key, place, np.arange(64)) for place in range(500)])
    for pair in ((grid[:, :-1], grid[:, 1:]), (grid[:-1], grid[1:])):
        assert abs(np.corrcoef(pair[0].ravel(), pair[1].ravel())[0, 1]) < 4 / np.sqrt(pair[0].size)


# --- the drafter's coupling --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "noise_level"), [("plain", 0.1), ("plain", 1.5), ("cool, top-p", 0.5)]
)
def test_a_drafter_under_the_same_noise_agrees_as_often_as_the_coupling_promises(
    name: str, noise_level: float
) -> None:
    """P(equal) >= (1 - TV) / (1 + TV) (arXiv 2408.07978), and no coupling beats 1 - TV."""
    params = PARAMS[name]
    target = scores(1)
    draft = target + scores(2) * noise_level
    distance = 0.5 * float(
        np.abs(sampling.processed(target, params) - sampling.processed(draft, params)).sum()
    )
    pairs = zip(
        draw(sampling.choose, target, params, over="positions"),
        draw(sampling.choose, draft, params, over="positions"),
        strict=True,
    )
    rate = sum(a == b for a, b in pairs) / DRAWS
    slack = 4 * np.sqrt(0.25 / DRAWS)
    assert (1 - distance) / (1 + distance) - slack <= rate <= 1 - distance + slack


def test_a_drafter_under_other_noise_agrees_less() -> None:
    params, row = SamplingParams(), scores(1)
    first = draw(sampling.choose, row, params, over="positions")
    other = [sampling.choose(row, Sampling(params, 1), place) for place in range(DRAWS)]
    assert sum(a == b for a, b in zip(first, other, strict=True)) / DRAWS < 0.5
