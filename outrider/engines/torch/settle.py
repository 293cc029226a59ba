"""Chooses how passes are computed: the fastest way that the probe finds exact."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch

from outrider.engine import Numerics
from outrider.engines.torch.attention import blocked, joined
from outrider.engines.torch.batch import Padding
from outrider.engines.torch.cache import Cache
from outrider.engines.torch.decoder import Decoder
from outrider.engines.torch.linear import Kind, Linear
from outrider.engines.torch.probe import Finding, examine
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
    load: Load, kinds: tuple[Kind, ...], numerics: Numerics, cache: Cache, vocabulary_size: int
) -> tuple[Runner, Finding]:
    """A runner, and what the probe found under its way. The order of trial is fixed, never
    measured: two machines of one make settle on the same way, and so on one numeric class."""
    ways = _exact_ways(kinds) if numerics == "exact" else iter(())
    decoder = None
    for way in ways:
        if decoder is None or decoder.kind != way.kind:
            decoder = load(way.kind)
        runner = Runner(decoder, cache, way, vocabulary_size)
        if linears_agree(decoder, way.padding):
            finding = examine(runner, vocabulary_size, cache.context)
            if finding.exact:
                return runner, finding
    way = Way("sized" if "packed" in kinds else "plain", joined, Padding())
    runner = Runner(load(way.kind), cache, way, vocabulary_size)
    return runner, replace(examine(runner, vocabulary_size, cache.context), exact=False)


def _exact_ways(kinds: tuple[Kind, ...]) -> Iterator[Way]:
    for kind in kinds:
        yield from (Way(kind, blocked, padding) for padding in PADDINGS)


_MOST_ROWS = 256
_COUNTS = (1, 2, 3, 5, 8, 17, 64, 100, 255)


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
