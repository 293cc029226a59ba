"""Chooses how passes are computed: the fastest way that the probe finds exact."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol, TypeVar

import torch
from torch import Tensor

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
Held = TypeVar("Held")


class HasShapes(Protocol):
    """A decoder, or a part of one."""

    cos: Tensor
    dtype: torch.dtype

    def shapes(self) -> Iterable[tuple[Linear, int]]:
        """One product of each shape, with its input width."""
        ...


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

    def holds(decoder: Decoder, way: Way) -> bool:
        return _holds(decoder, cache, way, vocabulary_size)

    found = first_exact(load, kinds, holds) if numerics == "exact" else None
    if found is not None:
        return _found(*found, cache, vocabulary_size, "exact")
    way = plain_way(kinds, parameters)
    return _found(load(way.kind), way, cache, vocabulary_size, "plain")


def first_exact(
    load: Callable[[Kind], Held], kinds: tuple[Kind, ...], holds: Callable[[Held, Way], bool]
) -> tuple[Held, Way] | None:
    """The cheapest way that `holds`, and what was loaded for it."""
    for kind in kinds:
        loaded = load(kind)
        for padding in PADDINGS:
            way = Way(kind, blocked, padding)
            if holds(loaded, way):
                return loaded, way
        del loaded
    return None


def plain_way(kinds: tuple[Kind, ...], parameters: int) -> Way:
    """`parameters`: of the whole model."""
    return Way(fastest(kinds, parameters), joined, Padding())


def _found(
    decoder: Decoder, way: Way, cache: Cache, vocabulary_size: int, numerics: Numerics
) -> tuple[Runner, Finding]:
    runner = Runner(decoder, cache, way, vocabulary_size)
    digest = fingerprint(runner, vocabulary_size)
    return runner, Finding(exact=numerics == "exact", digest=digest)


def _holds(decoder: Decoder, cache: Cache, way: Way, vocabulary_size: int) -> bool:
    runner = Runner(decoder, cache, way, vocabulary_size, telling(decoder.config.windows))
    return regroups(runner, vocabulary_size, cache.capacity) and linears_agree(decoder, way.padding)


def telling(windows: Sequence[int | None]) -> list[int]:
    """Layers of one window compute alike, so one of each kind is run, and at least two."""
    return sorted({windows.index(window) for window in windows} | set(range(len(windows))[:2]))


_MOST_ROWS = 160
_COUNTS = (1, 2, 5, 17, 33, 100)


def linears_agree(decoder: HasShapes, padding: Padding) -> bool:
    """Whether each shape of product gives a row the same bits in larger passes too.

    One product of each shape is tried alone, with more rows than the probe's passes have.
    """
    with torch.inference_mode():
        return all(_agrees(linear, into, decoder, padding) for linear, into in decoder.shapes())


def _agrees(linear: Linear, into: int, decoder: HasShapes, padding: Padding) -> bool:
    device = decoder.cos.device
    rows = torch.arange(_MOST_ROWS * into, device=device, dtype=torch.float32)
    rows = (rows * 0.37).sin_().view(_MOST_ROWS, into).to(decoder.dtype)
    full = linear(rows)
    for count in (padding.rows(count) for count in _COUNTS):
        start = (_MOST_ROWS - count) // 2
        part = rows[start : start + count].clone()
        if not torch.equal(linear(part), full[start : start + count]):
            return False
    return True
