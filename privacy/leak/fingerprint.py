"""Which of N known prompts was it? What an onlooker learns from the wire without reading it.

The onlooker has seen every prompt several times, and now sees one more answer. Two classifiers
try, and the better one counts: nearest neighbour, and extremely randomised trees (Geurts, Ernst,
Wehenkel 2006), which find the one telling number among many. The threat: "When Speculation
Spills Secrets", arXiv 2411.01076.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

TREES = 60

Floats = NDArray[np.float64]
Ints = NDArray[np.intp]
Classify = Callable[[Floats, Ints, Floats], Ints]
"""(known [N, features], their labels [N], asked [M, features]) to labels [M]."""


@dataclass(frozen=True, slots=True)
class Found:
    """How often the classifiers were right, each case asked about once."""

    nearest: float
    trees: float

    @property
    def best(self) -> float:
        return max(self.nearest, self.trees)


def accuracy(features: Floats, labels: Ints, runs: Ints, seed: int = 0) -> Found:
    """Leave one run out: `features` [cases, n], the prompt and the run of each case.

    Raises ValueError for fewer than two runs.
    """
    if len(set(runs.tolist())) < 2:
        raise ValueError("an onlooker needs a run to learn from, and another to be asked about")

    def forest(known: Floats, of: Ints, asked: Floats) -> Ints:
        return trees(known, of, asked, np.random.default_rng(seed))

    return Found(_share(features, labels, runs, nearest), _share(features, labels, runs, forest))


def _share(features: Floats, labels: Ints, runs: Ints, classify: Classify) -> float:
    right = 0
    for run in sorted(set(runs.tolist())):
        asked = runs == run
        said = classify(features[~asked], labels[~asked], features[asked])
        right += int((said == labels[asked]).sum())
    return right / len(labels)


def nearest(known: Floats, labels: Ints, asked: Floats) -> Ints:
    """The label of the nearest case; a feature counts by how much less it differs between the
    runs of a prompt than between prompts (Fisher's ratio)."""
    names, numbers = np.unique(labels, return_inverse=True)
    means = np.stack([known[numbers == i].mean(0) for i in range(len(names))])
    within = np.abs(known - means[numbers]).mean(0)
    spread = np.abs(known - known.mean(0)).mean(0)
    telling = spread > 0
    weight = 1.0 / (within + 0.01 * spread)[telling]
    left, right = (part[:, telling] * weight for part in (asked, known))
    away = np.abs(left[:, None] - right[None]).sum(-1)
    found: Ints = labels[away.argmin(1)]
    return found


# --- extremely randomised trees ----------------------------------------------------------------


def trees(known: Floats, labels: Ints, asked: Floats, random: np.random.Generator) -> Ints:
    """The vote of `TREES` trees."""
    names, numbers = np.unique(labels, return_inverse=True)
    votes = np.zeros((len(asked), len(names)))
    for _ in range(TREES):
        _grow(known, numbers, asked, np.arange(len(asked)), votes, random)
    found: Ints = names[votes.argmax(1)]
    return found


def _grow(
    known: Floats,
    labels: Ints,
    asked: Floats,
    which: Ints,
    votes: Floats,
    random: np.random.Generator,
) -> None:
    """One tree, grown only where it is asked."""
    if not len(which):
        return
    cut = _cut(known, labels, random) if len(set(labels.tolist())) > 1 else None
    if cut is None:
        share = np.bincount(labels, minlength=votes.shape[1]) / len(labels)
        votes[which] += share
        return
    feature, at = cut
    left, low = known[:, feature] < at, asked[which, feature] < at
    _grow(known[left], labels[left], asked, which[low], votes, random)
    _grow(known[~left], labels[~left], asked, which[~low], votes, random)


def _cut(known: Floats, labels: Ints, random: np.random.Generator) -> tuple[int, float] | None:
    """The best of a few random cuts; None where all cases look alike."""
    low, high = known.min(0), known.max(0)
    open_ones = np.flatnonzero(high > low)
    if not len(open_ones):
        return None
    tries = min(len(open_ones), 1 + int(len(open_ones) ** 0.5))
    chosen = random.choice(open_ones, tries, replace=False)
    places = random.uniform(low[chosen], high[chosen])
    # A cut at the lowest value would leave one side empty.
    places = np.maximum(places, np.nextafter(low[chosen], high[chosen]))
    gains = [_purity(labels, known[:, f] < at) for f, at in zip(chosen, places, strict=True)]
    best = int(np.argmax(gains))
    return int(chosen[best]), float(places[best])


def _purity(labels: Ints, left: NDArray[np.bool_]) -> float:
    """Higher is better: the sum of squared class counts by size (Gini)."""
    parts = (np.bincount(labels[side]) for side in (left, ~left))
    return sum(float((count**2).sum() / count.sum()) for count in parts)


# --- what an onlooker looks at -----------------------------------------------------------------


def common(rows: Sequence[Sequence[float]], most: int) -> Floats:
    """The first values of every case, as many as the shortest has: how many there were in all
    does not show. [cases, n]"""
    shortest = min(most, *(len(row) for row in rows))
    return np.array([row[:shortest] for row in rows], dtype=np.float64)


def filled(rows: Sequence[Sequence[float]], most: int) -> Floats:
    """The first `most` values of each case, zeros behind the last: the number shows, too."""
    found = np.zeros((len(rows), most))
    for place, row in zip(found, rows, strict=True):
        part = row[:most]
        place[: len(part)] = part
    return found
