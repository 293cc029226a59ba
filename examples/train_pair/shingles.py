"""Shingles: hashed runs of words, to find text that two files share.

A file becomes words and punctuation marks; white space is dropped and both quote characters
count as one, so that reformatting does not hide a copy. Near-duplicates by shingles:
Broder, "On the resemblance and containment of documents", 1997.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]

_WORD = re.compile(r"\w+|[^\w\s]")
_BASE = 0x9E3779B97F4A7C15
_MASK = (1 << 64) - 1


class Lexicon:
    """Numbers the words of many files, so that equal words hash alike within one run."""

    def __init__(self) -> None:
        self._ids: dict[str, int] = {}

    def words(self, text: str) -> Hashes:
        """The word numbers of a text, from 1 up."""
        ids = self._ids
        found = _WORD.findall(text.replace('"', "'"))
        return np.fromiter((ids.setdefault(w, len(ids) + 1) for w in found), np.uint64, len(found))

    def shingles(self, text: str, length: int) -> Hashes:
        """One 64-bit hash for each run of `length` words, in text order."""
        return rolling(self.words(text), length)


def rolling(words: Hashes, length: int) -> Hashes:
    """Polynomial hash of each window of `length` words, built from windows of powers of two.

    A window of a + b words hashes to hash(a) * base**b + hash(b), modulo 2**64.
    """
    count = len(words) - length + 1
    if count <= 0:
        return np.zeros(0, np.uint64)
    power, span = words, 1
    total, done = np.zeros(count, np.uint64), 0
    while True:
        if length & span:
            total = total * _shift(span) + power[done : done + count]
            done += span
        if done == length:
            return total
        power = power[: len(power) - span] * _shift(span) + power[span:]
        span *= 2


def _shift(words: int) -> np.uint64:
    return np.uint64(pow(_BASE, words, _MASK + 1))


@dataclass(frozen=True, slots=True)
class Likeness:
    """How far two sets of shingles agree, both as shares in 0..1."""

    jaccard: float
    """Shared shingles / all shingles of both."""
    containment: float
    """Shared shingles / shingles of the first."""


def likeness(first: Hashes, second: Hashes) -> Likeness:
    """Compares two sets of distinct hashes; empty sets agree in nothing."""
    shared = len(np.intersect1d(first, second, assume_unique=True))
    union = len(first) + len(second) - shared
    return Likeness(shared / union if union else 0.0, shared / len(first) if len(first) else 0.0)


def shared_with(held_out: Hashes, texts: Iterable[str], lexicon: Lexicon, length: int) -> Hashes:
    """The distinct hashes of `held_out` that occur in any of the texts."""
    wanted = np.unique(held_out)
    seen = np.zeros(len(wanted), bool)
    for text in texts:
        hashes = lexicon.shingles(text, length)
        if len(hashes):
            seen |= np.isin(wanted, hashes)
    return wanted[seen]
