"""Numeric classes of whole models and of models cut into stages: one way to make both.

A class is a *stem* (weights, dtype, engine and version, instruction set, row rule,
sampler) hashed with the scores of a fixed probe. A stage can not give scores, so its
class is its stem, which does not depend on its layers. A chain whose stages all have
one stem and whose probe scores as the whole model's does is in the whole model's
class: the same text comes out, wherever it is cut.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

PROBE_ROWS = 12


def probe_tokens(vocabulary_size: int, length: int = PROBE_ROWS) -> tuple[int, ...]:
    """Spread over the vocabulary, without a pattern; the probe's, from an empty slot."""
    return tuple((i * i * 7919 + i * 104729 + 13) % vocabulary_size for i in range(length))


def digest_of(scores: NDArray[np.float32]) -> str:
    """Hex digest of the bits of the probe's scores, [PROBE_ROWS, vocabulary_size]."""
    return hashlib.sha256(scores.tobytes()).hexdigest()


def joined_class(stems: Sequence[str], digest: str) -> str:
    """The numeric class of a chain of stages, or of a whole model's one stem.

    `stems`: `StageInfo.numeric_class` in order, and a word for each thing between them that
    changes activations (a lossy wire). `digest`: `digest_of` what the chain scored.
    """
    parts = list(dict.fromkeys(stems)) if len(set(stems)) == 1 else list(stems)
    return hashlib.sha256("\n".join([*parts, digest]).encode()).hexdigest()
