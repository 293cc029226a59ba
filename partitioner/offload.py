"""Where weights and KV lie when a device is too small for its model, and how many answers share
a pass over the weights.

The policy is searched as in FlexGen (arXiv 2303.06865) over what stays resident, how far
ahead is read, where KV lies and the size of the batch that each load of a layer serves;
what is not resident is moved once a pass and nothing twice (the bound of ZeRO-Offload,
arXiv 2101.06840). Pure: bytes, seconds, no I/O.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Literal

from outrider.errors import Unplannable
from outrider.partitioner.graph import ModelGraph, Unit

KvPlace = Literal["ram", "disk"]
PAGE = 4096
"""Files are read past the operating system's cache in multiples of this."""
STAGINGS = (1, 2, 3)
SPARE = 1
"""Slots beyond the batch: one keeps company to the re-checks of exactness."""


@dataclass(frozen=True, slots=True)
class Tiers:
    """What there is to lie in. On a CPU the accelerator's tier is the RAM."""

    ram_bytes: int
    """For weights, KV and staging together. Files are read past the page cache, so that it
    counts no bytes of its own."""
    read_bytes_per_s: float
    write_bytes_per_s: float
    reserved_bytes: int = 0
    """Of the RAM, for what is neither weights nor KV: activations."""
    accelerator_bytes: int = 0
    upload_bytes_per_s: float = float("inf")
    """From RAM to the accelerator."""

    @property
    def room(self) -> int:
        return self.ram_bytes - self.reserved_bytes


@dataclass(frozen=True, slots=True)
class OffloadWork:
    """Answers at a time, and how long they get."""

    sequences: int
    tokens: int
    """Prompt and answer, each."""
    rows: int = 1
    """Rows of an answer in a pass."""


@dataclass(frozen=True, slots=True)
class OffloadPolicy:
    resident: tuple[int, ...]
    """Units of the graph that stay in memory, on the accelerator if there is one."""
    pinned: tuple[int, ...]
    """Units that stay in RAM and are uploaded each pass; empty without an accelerator."""
    staging: int
    """Buffers for units read from disk: 1 reads when asked, more read ahead."""
    kv: KvPlace
    batch: int


@dataclass(frozen=True, slots=True)
class OffloadEstimate:
    pass_s: float
    sequences_per_s: float
    """Rows' worth of tokens a second over all answers, at one token a row."""
    memory_bytes: int
    read_bytes: int
    """Each pass, from disk."""
    write_bytes: int


def price(
    graph: ModelGraph, tiers: Tiers, work: OffloadWork, policy: OffloadPolicy, compute_s: float
) -> OffloadEstimate:
    """`compute_s`: one pass of one answer with all weights at hand."""
    streamed = streamed_units(graph, policy)
    weights = sum(paged(graph.units[i].weight_bytes) for i in streamed)
    kept, tail = _kv_traffic(graph, work, policy)
    read = weights + kept
    uploads = sum(graph.units[i].weight_bytes for i in (*streamed, *policy.pinned))
    moved_s = read / tiers.read_bytes_per_s + tail / tiers.write_bytes_per_s
    moved_s = max(moved_s, uploads / tiers.upload_bytes_per_s)
    busy_s = compute_s * policy.batch
    pass_s = max(moved_s, busy_s) if policy.staging > 1 else moved_s + busy_s
    memory = memory_bytes(graph, work, policy)
    return OffloadEstimate(pass_s, policy.batch * work.rows / pass_s, memory, read, tail)


def streamed_units(graph: ModelGraph, policy: OffloadPolicy) -> tuple[int, ...]:
    """Units read from disk in every pass, in order; the embedding's rows are looked up alone."""
    held = {*policy.resident, *policy.pinned}
    return tuple(
        i for i, unit in enumerate(graph.units) if i not in held and unit.kind != "embedding"
    )


def memory_bytes(graph: ModelGraph, work: OffloadWork, policy: OffloadPolicy) -> int:
    """All that lies in RAM (or on the accelerator) at a time."""
    held = sum(graph.units[i].weight_bytes for i in (*policy.resident, *policy.pinned))
    sizes = [paged(graph.units[i].weight_bytes) for i in streamed_units(graph, policy)]
    return held + policy.staging * max(sizes, default=0) + _kv_memory(graph, work, policy)


def _kv_memory(graph: ModelGraph, work: OffloadWork, policy: OffloadPolicy) -> int:
    each = [unit.kv_bytes * work.tokens for unit in graph.units if unit.kv_bytes]
    slots = policy.batch + SPARE
    if policy.kv == "ram":
        return slots * sum(each)
    return slots * (2 * max(each, default=0) + PAGE * len(each))


def _kv_traffic(graph: ModelGraph, work: OffloadWork, policy: OffloadPolicy) -> tuple[int, int]:
    """Bytes of KV read and written in a pass of half-grown answers."""
    if policy.kv == "ram":
        return 0, 0
    kept = sum(unit.kv_bytes for unit in graph.units)
    layers = sum(unit.kv_bytes > 0 for unit in graph.units)
    written = policy.batch * max(kept * work.rows, layers * PAGE * work.rows // 4)
    return policy.batch * kept * work.tokens // 2, written


def paged(size: int) -> int:
    return -(-size // PAGE) * PAGE


# --- policies ----------------------------------------------------------------------------------


def layerwise(graph: ModelGraph, tiers: Tiers, work: OffloadWork) -> OffloadPolicy:
    """The plain rival: every layer streamed, one read ahead, KV in RAM, the batch that fits."""
    policy = OffloadPolicy((), (), 2, "ram", 1)
    fitting = [
        replace(policy, batch=batch)
        for batch in range(1, work.sequences + 1)
        if memory_bytes(graph, work, replace(policy, batch=batch)) <= tiers.room
    ]
    if not fitting:
        raise _too_small(tiers, memory_bytes(graph, work, policy))
    return fitting[-1]


def search(
    graph: ModelGraph, tiers: Tiers, work: OffloadWork, compute_s: float
) -> tuple[OffloadPolicy, OffloadEstimate]:
    """The policy of most tokens a second. Raises `Unplannable` when nothing fits."""
    found = [
        (price(graph, tiers, work, policy, compute_s), policy)
        for policy in _candidates(graph, tiers, work)
    ]
    if not found:
        least = OffloadPolicy((), (), 1, "disk", 1)
        raise _too_small(tiers, memory_bytes(graph, work, least))
    best, policy = max(found, key=_merit)
    return policy, best


def _merit(found: tuple[OffloadEstimate, OffloadPolicy]) -> tuple[float, int, int]:
    """Tokens a second; among equals (to a hundredth) more answers at a time, then less memory."""
    estimate, policy = found
    digits = 2 - math.ceil(math.log10(estimate.sequences_per_s))
    return round(estimate.sequences_per_s, digits), policy.batch, -estimate.memory_bytes


def _candidates(graph: ModelGraph, tiers: Tiers, work: OffloadWork) -> Iterator[OffloadPolicy]:
    places: tuple[KvPlace, ...] = ("ram", "disk")
    for staging, kv, batch in product(STAGINGS, places, range(1, work.sequences + 1)):
        bare = OffloadPolicy((), (), staging, kv, batch)
        if (policy := _filled(graph, tiers, work, bare)) is not None:
            yield policy


def _filled(
    graph: ModelGraph, tiers: Tiers, work: OffloadWork, policy: OffloadPolicy
) -> OffloadPolicy | None:
    """As much resident as fits beside the rest; None when the rest alone does not."""
    order = sorted(range(len(graph.units)), key=lambda i: _worth(graph.units[i]))
    on_card = _packed(graph, order, tiers.accelerator_bytes) if tiers.accelerator_bytes else ()
    policy = replace(policy, resident=tuple(sorted(on_card)))
    outside = sum(graph.units[i].weight_bytes for i in on_card)
    if memory_bytes(graph, work, policy) - outside > tiers.room:
        return None
    for i in order:
        if i in on_card:
            continue
        more = _with(policy, i, tiers)
        if memory_bytes(graph, work, more) - outside <= tiers.room:
            policy = more
    return policy


def _with(policy: OffloadPolicy, unit: int, tiers: Tiers) -> OffloadPolicy:
    if tiers.accelerator_bytes:
        return replace(policy, pinned=tuple(sorted((*policy.pinned, unit))))
    return replace(policy, resident=tuple(sorted((*policy.resident, unit))))


def _worth(unit: Unit) -> tuple[bool, int]:
    """The largest of those that every pass needs come first; an embedding's rows are few."""
    return unit.kind == "embedding", -unit.weight_bytes


def _packed(graph: ModelGraph, order: Sequence[int], room: int) -> tuple[int, ...]:
    taken: list[int] = []
    for i in order:
        if graph.units[i].weight_bytes <= room:
            room -= graph.units[i].weight_bytes
            taken.append(i)
    return tuple(taken)


def _too_small(tiers: Tiers, least: int) -> Unplannable:
    """`least`: bytes of the smallest policy, what is reserved left out."""
    nearest = least + tiers.reserved_bytes
    return Unplannable(
        f"the model does not run in {tiers.ram_bytes / 1e6:.1f} MB",
        constraint=f"a memory of {tiers.ram_bytes} bytes",
        nearest=f"a memory of {nearest} bytes ({nearest / 1e6:.1f} MB)",
    )
