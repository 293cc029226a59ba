"""From the spans of a pass to the index tensors that one run of the decoder needs.

Attention sees *chains*: rows of one sequence at consecutive positions. A span
without parents is one chain (long ones are cut into tiles); a tree becomes one
chain per leaf, whose earlier tokens are found through an index, so that a row's
keys lie at the same absolute positions as if its path had been a chain of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from outrider.engine import Span

BLOCK = 64
"""Keys in a block; blocks start at multiples of this."""
TILE = 128
"""Most rows of one chain; longer ones are cut."""

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Chain:
    """Rows of one slot at positions `start`, `start + 1`, and so on."""

    slot: int
    start: int
    rows: Sequence[int]
    """Their places in the pass."""
    path: Ints | None = None
    """Cache place of each position up to the last row's; None when they are the same."""

    @property
    def stop(self) -> int:
        return self.start + len(self.rows)


@dataclass(frozen=True, slots=True)
class Group:
    """Chains whose attention runs as one; S chains padded to Q rows, N keys each."""

    shape: tuple[int, int]
    """Products and rows of each: (S * kv_heads, Q * group)."""
    queries: Tensor
    """Place of each query in the pass's heads laid end to end, [S * kv_heads * Q * group]."""
    keys: int
    slots: slice | Tensor
    """Pool rows; a slice where the slots are neighbours, so that nothing is copied."""
    places: Tensor | None
    """Cache places [S, N] where they differ from the positions (trees)."""
    bias: dict[int | None, Tensor]
    """By window: 0 or -inf, [S * kv_heads, Q * group, N]."""


@dataclass(frozen=True, slots=True)
class Batch:
    """One pass; R rows, padded ones last."""

    tokens: Tensor
    positions: Tensor
    append: Tensor
    """Where each real row's keys and values go in a layer's flat pool, [rows, 2 * kv_heads]."""
    rows: int
    groups: tuple[Group, ...]
    gather: Tensor
    """Place of each row's heads in the groups' outputs laid end to end, [R * heads]."""
    outputs: Tensor | None
    """Rows whose scores are wanted, padded; None: all of them."""
    wanted: int


@dataclass(frozen=True, slots=True)
class Layout:
    """What planning must know about model and pool."""

    slots: int
    kv_heads: int
    group: int
    """Query heads of each key-value head."""
    capacity: int
    """Tokens in a slot, a multiple of `BLOCK`."""
    windows: tuple[int | None, ...]
    """The different windows of the layers."""
    device: torch.device

    @property
    def stride(self) -> int:
        """Heads of a row: queries, keys, values."""
        return self.kv_heads * (self.group + 2)


@dataclass(frozen=True, slots=True)
class Padding:
    """How many rows are computed for those wanted: the row rule, and the one inside attention."""

    minimum: int = 1
    multiple: int = 1
    attention: int = 1
    """Query rows times group are padded to a multiple of this."""

    def rows(self, wanted: int) -> int:
        return -(-max(wanted, self.minimum) // self.multiple) * self.multiple

    def queries(self, wanted: int, group: int) -> int:
        """Rows of a chain: a power of two whose product with `group` keeps the rule."""
        size = 1
        while size < wanted or size * group % self.attention:
            size *= 2
        return size


def plan(spans: Sequence[Span], layout: Layout, padding: Padding) -> Batch:
    """All index tensors of a pass, on the device."""
    chains = [chain for part in _chains(spans) for chain in _tiles(part)]
    rows = sum(len(span.tokens) for span in spans)
    total = padding.rows(rows)
    tokens = np.zeros(total, dtype=np.int64)
    tokens[:rows] = [token for span in spans for token in span.tokens]
    positions = np.zeros(total, dtype=np.int64)
    for chain in chains:
        positions[list(chain.rows)] = np.arange(chain.start, chain.stop)
    members = _grouped(chains, layout, padding)
    outputs = _outputs(spans, padding)
    wanted = sum(len(span.tokens) - span.first for span in spans)
    return Batch(
        tokens=_send(tokens, layout),
        positions=_send(positions, layout),
        append=_send(_append(spans, layout), layout),
        rows=rows,
        groups=tuple(_group(part, queries, layout) for queries, part in members),
        gather=_send(_gather(members, total, layout), layout),
        outputs=None if outputs is None else _send(outputs, layout),
        wanted=wanted,
    )


def _send(array: Ints, layout: Layout) -> Tensor:
    found = torch.from_numpy(array)
    if layout.device.type == "cuda":
        return found.pin_memory().to(layout.device, non_blocking=True)
    return found if layout.device.type == "cpu" else found.to(layout.device)


# --- chains ------------------------------------------------------------------------------------


def _chains(spans: Sequence[Span]) -> Iterator[Chain]:
    at = 0
    for span in spans:
        count = len(span.tokens)
        if span.parents is None or all(p == (i - 1 if i else None) for i, p in _counted(span)):
            yield Chain(span.slot, span.base, range(at, at + count))
        else:
            yield from _branches(span, at)
        at += count


def _counted(span: Span) -> Iterable[tuple[int, int | None]]:
    return enumerate(span.parents or ())


def _branches(span: Span, at: int) -> Iterator[Chain]:
    """One chain per leaf; it computes the rows of its path that no earlier leaf did."""
    parents = span.parents or ()
    inner = {parent for parent in parents if parent is not None}
    done: set[int] = set()
    for leaf in range(len(parents)):
        if leaf in inner:
            continue
        path = ancestry(parents, leaf)
        fresh = [row for row in path if row not in done]
        done.update(fresh)
        places = np.concatenate([np.arange(span.base), span.base + np.array(path)])
        start = span.base + len(path) - len(fresh)
        yield Chain(span.slot, start, [at + row for row in fresh], places.astype(np.int64))


def ancestry(parents: Sequence[int | None], row: int) -> list[int]:
    """Rows from the root down to `row`, its own included."""
    path = []
    at: int | None = row
    while at is not None:
        path.append(at)
        at = parents[at]
    return path[::-1]


def _tiles(chain: Chain) -> Iterator[Chain]:
    """Cut a long chain, so that early rows do not pay for late keys."""
    for first in range(0, len(chain.rows), TILE):
        rows = chain.rows[first : first + TILE]
        yield Chain(chain.slot, chain.start + first, rows, chain.path)


# --- groups ------------------------------------------------------------------------------------

Members = list[tuple[int, list[Chain]]]


def _grouped(chains: Sequence[Chain], layout: Layout, padding: Padding) -> Members:
    """Chains of like size together; within a group, ascending by slot."""
    found: dict[tuple[int, int, bool], list[Chain]] = {}
    for chain in chains:
        queries = padding.queries(len(chain.rows), layout.group)
        blocks = -(-chain.stop // BLOCK)
        size = max(blocks - 1, 3).bit_length() // 2
        found.setdefault((queries, size, chain.path is None), []).append(chain)
    return [(key[0], sorted(part, key=lambda c: c.slot)) for key, part in found.items()]


def _group(chains: Sequence[Chain], queries: int, layout: Layout) -> Group:
    keys = -(-max(chain.stop for chain in chains) // BLOCK) * BLOCK
    rows, positions = _queries(chains, queries)
    return Group(
        shape=(len(chains) * layout.kv_heads, queries * layout.group),
        queries=_send(_heads(rows, layout), layout),
        keys=keys,
        slots=_slots([chain.slot for chain in chains], layout),
        places=_places(chains, keys, layout),
        bias={window: _bias(positions, keys, window, layout) for window in layout.windows},
    )


def _heads(rows: Ints, layout: Layout) -> Ints:
    """Rows [S, Q] to places of their query heads, ordered [S, kv_heads, Q, group]."""
    heads = np.arange(layout.kv_heads * layout.group).reshape(layout.kv_heads, 1, layout.group)
    places = rows[:, None, :, None] * layout.stride + heads[None]
    return places.reshape(-1)


def _queries(chains: Sequence[Chain], queries: int) -> tuple[Ints, Ints]:
    """Rows and positions, [S, Q]; what is padded repeats the chain's last row."""
    rows = np.empty((len(chains), queries), dtype=np.int64)
    positions = np.empty((len(chains), queries), dtype=np.int64)
    for i, chain in enumerate(chains):
        count = len(chain.rows)
        rows[i, :count] = chain.rows
        rows[i, count:] = chain.rows[-1]
        positions[i] = chain.start + np.minimum(np.arange(queries), count - 1)
    return rows, positions


def _slots(numbers: Sequence[int], layout: Layout) -> slice | Tensor:
    first, last = numbers[0], numbers[-1]
    if list(numbers) == list(range(first, last + 1)):
        return slice(first, last + 1)
    return _send(np.array(numbers, dtype=np.int64), layout)


def _places(chains: Sequence[Chain], keys: int, layout: Layout) -> Tensor | None:
    if all(chain.path is None for chain in chains):
        return None
    found = np.zeros((len(chains), keys), dtype=np.int64)
    for i, chain in enumerate(chains):
        if chain.path is not None:
            found[i, : len(chain.path)] = chain.path
    return _send(found, layout)


def _bias(positions: Ints, keys: int, window: int | None, layout: Layout) -> Tensor:
    """0 where a query may look, -inf elsewhere, for every head of a group."""
    at = torch.from_numpy(positions).unsqueeze(-1)
    key = torch.arange(keys)
    hidden = key > at
    if window is not None:
        hidden |= key <= at - window
    size, queries = positions.shape
    bias = torch.zeros(size, 1, queries, 1, keys).masked_fill_(
        hidden.view(size, 1, queries, 1, keys), float("-inf")
    )
    wide = bias.expand(size, layout.kv_heads, queries, layout.group, keys)
    return wide.reshape(size * layout.kv_heads, queries * layout.group, keys).to(layout.device)


# --- rows --------------------------------------------------------------------------------------


def _append(spans: Sequence[Span], layout: Layout) -> Ints:
    """Flat pool row of each (row, key or value, head): [rows, 2 * kv_heads]."""
    start = [s.slot * layout.kv_heads * layout.capacity + s.base for s in spans]
    parts = [np.arange(at, at + len(s.tokens)) for at, s in zip(start, spans, strict=True)]
    rows = np.concatenate(parts)
    heads = np.arange(layout.kv_heads) * layout.capacity
    values = layout.slots * layout.kv_heads * layout.capacity
    steps = np.concatenate([heads, values + heads])
    found: Ints = rows[:, None] + steps[None, :]
    return found


def _gather(members: Members, total: int, layout: Layout) -> Ints:
    """Where each row's heads lie in the outputs [S, kv_heads, Q, group] of all groups."""
    found = np.zeros((total, layout.kv_heads, layout.group), dtype=np.int64)
    group = np.arange(layout.group)
    at = 0
    for queries, chains in members:
        heads = np.arange(layout.kv_heads)[:, None] * queries * layout.group + group
        for chain in chains:
            steps = np.arange(len(chain.rows)) * layout.group
            found[list(chain.rows)] = at + steps[:, None, None] + heads
            at += queries * layout.kv_heads * layout.group
    return found.reshape(-1)


def _outputs(spans: Sequence[Span], padding: Padding) -> Ints | None:
    """Rows to score, the last one repeated until the row rule holds."""
    if all(span.first == 0 for span in spans):
        return None
    found: list[int] = []
    at = 0
    for span in spans:
        found += range(at + span.first, at + len(span.tokens))
        at += len(span.tokens)
    found += found[-1:] * (padding.rows(len(found)) - len(found))
    return np.array(found, dtype=np.int64)
