"""Chooses how passes are computed: the fastest way that the probe finds exact."""

from __future__ import annotations

from collections.abc import Callable

import torch

from outrider.engine import Numerics
from outrider.engines.torch.attention import blocked, joined
from outrider.engines.torch.batch import Padding
from outrider.engines.torch.cache import Cache
from outrider.engines.torch.decoder import Decoder
from outrider.engines.torch.linear import Kind, Linear, fastest
from outrider.engines.torch.probe import Finding, fingerprint, regroups
from outrider.engines.torch.runner import Runner, Way

PADDINGS = (
    Padding(1, 1, 1),
    Padding(1, 1, 4),
    Padding(4, 1, 4),
    Padding(4, 4, 4),
    Padding(8, 8, 8),
    Padding(16, 16, 16),
)
"""Row rules from the cheapest on."""

Load = Callable[[Kind], Decoder]


def settle(
    load: Load,
    kinds: tuple[Kind, ...],
    numerics: Numerics,
    cache: Cache,
    vocabulary_size: int,
    parameters: int,
) -> tuple[Runner, Finding]:
    """A runner, and what the probe found under its way. The order of trial is fixed, never
    measured: two machines of one make settle on the same way, and so on one numeric class."""
    if numerics == "exact":
        for kind in kinds:
            decoder = load(kind)
            for padding in PADDINGS:
                way = Way(kind, blocked, padding)
                if _holds(decoder, cache, way, vocabulary_size):
                    return _found(decoder, cache, way, vocabulary_size, "exact")
            del decoder
    way = Way(fastest(kinds, parameters), joined, Padding())
    return _found(load(way.kind), cache, way, vocabulary_size, "plain")


def _found(
    decoder: Decoder, cache: Cache, way: Way, vocabulary_size: int, numerics: Numerics
) -> tuple[Runner, Finding]:
    runner = Runner(decoder, cache, way, vocabulary_size)
    digest = fingerprint(runner, vocabulary_size)
    return runner, Finding(exact=numerics == "exact", digest=digest)


def _holds(decoder: Decoder, cache: Cache, way: Way, vocabulary_size: int) -> bool:
    """Layers of one window compute alike, so one of each kind is run, and at least two."""
    windows = decoder.config.windows
    layers = sorted({windows.index(window) for window in windows} | set(range(len(windows))[:2]))
    runner = Runner(decoder, cache, way, vocabulary_size, layers)
    return regroups(runner, vocabulary_size, cache.capacity) and linears_agree(decoder, way.padding)


_MOST_ROWS = 160
_COUNTS = (1, 2, 5, 17, 33, 100)


def linears_agree(decoder: Decoder, padding: Padding) -> bool:
    """Whether each shape of product gives a row the same bits in larger passes too.

    One product of each shape is tried alone, with more rows than the probe's passes have.
    """
    with torch.inference_mode():
        return all(_agrees(linear, into, decoder, padding) for linear, into in decoder.shapes())


def _agrees(linear: Linear, into: int, decoder: Decoder, padding: Padding) -> bool:
    device = decoder.embedding.device
    rows = torch.arange(_MOST_ROWS * into, device=device, dtype=torch.float32)
    rows = (rows * 0.37).sin_().view(_MOST_ROWS, into).to(decoder.dtype)
    full = linear(rows)
    for count in (padding.rows(count) for count in _COUNTS):
        start = (_MOST_ROWS - count) // 2
        part = rows[start : start + count].clone()
        if not torch.equal(linear(part), full[start : start + count]):
            return False
    return True
