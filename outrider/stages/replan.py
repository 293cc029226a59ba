"""Which device holds which layers: told, planned, and planned anew when a device goes away.

A `Layout` is what a plan comes down to for the chain. Layers that were told stay as
they were told until a device is lost; from then on what is left is planned.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from outrider.engine import LayerRange, StageInfo
from outrider.errors import ConfigError, PlanError
from outrider.stages.chain import Chain

AUTO = "auto"


@dataclass(frozen=True, slots=True)
class Placed:
    """Layers on a device."""

    device: str
    layers: LayerRange

    def __str__(self) -> str:
        return f"{self.device}={self.layers.start}:{self.layers.stop}"


Layout = tuple[Placed, ...]
"""Stages in order; a device may stand in it more than once."""


@dataclass(frozen=True, slots=True)
class Member:
    """A device that answered, as far as it matters to what it may hold."""

    name: str
    layers_that_fit: int
    """Decoder layers that its memory holds, KV included."""
    speed: float = 1.0
    """Layers that it computes in the time in which a device of speed 1 computes one."""


class Fleet(Protocol):
    """The devices that may hold stages of one model."""

    @property
    def layers(self) -> int:
        """Decoder layers of the model."""
        ...

    def members(self, without: str = "") -> tuple[Member, ...]:
        """Those that answer now, in the order in which they were named; one is not asked."""
        ...

    def plan(self, members: Sequence[Member]) -> Layout:
        """Where the layers best lie on these. Raises PlanError when they can not hold them."""
        ...

    def chain(self, layout: Layout) -> Chain:
        """Load what is missing and join the stages. Raises StageLost, EngineFull, ModelError."""
        ...

    def shutdown(self) -> None: ...


def describe(layout: Layout) -> str:
    """`a=0:3 b=3:6`, for people."""
    return " ".join(map(str, layout))


def ranges(bounds: Sequence[tuple[int, int]], layers: int) -> tuple[LayerRange, ...]:
    """Bounds as ranges, the first with the embedding and the last with the head; only these
    may be without layers. Raises ConfigError unless they cover [0, layers) without a gap."""
    at, last = 0, len(bounds) - 1
    for number, (start, stop) in enumerate(bounds):
        if start != at or not start + (0 < number < last) <= stop <= layers:
            raise _bad(f"{start}:{stop} does not go on from layer {at}", layers)
        at = stop
    if at != layers:
        raise _bad(f"the last range ends at layer {at}", layers)
    return tuple(LayerRange(a, b, i == 0, i == last) for i, (a, b) in enumerate(bounds))


def _bad(why: str, layers: int) -> ConfigError:
    return ConfigError(
        "--layers does not spell the whole model",
        why=why,
        effect="nothing was loaded",
        todo=f"write ranges A:B,B:C,... from 0 to {layers}, one for each worker in turn, or auto",
    )


def told(text: str, devices: Sequence[str], layers: int) -> Layout:
    """A layout as `--layers` spells it: `0:3,3:6`, ranges dealt to the devices in turn, so that
    more ranges than devices give each several chunks. Raises ConfigError."""
    try:
        pairs = [(int(a), int(b)) for a, b in (part.split(":") for part in text.split(","))]
    except ValueError:
        raise _bad(f"{text!r} is no list of ranges", layers) from None
    if len(pairs) < len(devices):
        raise _bad(f"{len(devices)} devices and {len(pairs)} ranges", layers)
    return tuple(
        Placed(devices[i % len(devices)], found) for i, found in enumerate(ranges(pairs, layers))
    )


def by_speed(members: Sequence[Member], layers: int) -> Layout:
    """Each device gets layers by its speed, as far as its memory goes. Raises PlanError."""
    room = sum(member.layers_that_fit for member in members)
    if room < layers:
        raise PlanError(
            f"{layers} layers do not fit the devices that are left",
            why="they hold "
            + (", ".join(f"{m.name}: {m.layers_that_fit}" for m in members) or "nothing"),
            effect="the model is not served until more memory joins",
            todo=f"start a worker with room for {layers - room} more layers",
        )
    counts = _counts(members, layers)
    bounds, names, at = [], [], 0
    for member, count in zip(members, counts, strict=True):
        if count:
            bounds.append((at, at + count))
            names.append(member.name)
            at += count
    return tuple(map(Placed, names, ranges(bounds, layers)))


def _counts(members: Sequence[Member], layers: int) -> list[int]:
    """Layer after layer to the device that would be done with it first."""
    counts = [0] * len(members)
    for _ in range(layers):
        free = [i for i, member in enumerate(members) if counts[i] < member.layers_that_fit]
        counts[min(free, key=lambda i: ((counts[i] + 1) / members[i].speed, i))] += 1
    return counts


# --- what joined stages are --------------------------------------------------------------------


def check(layout: Layout, infos: Sequence[StageInfo]) -> None:
    """Whether the stages of a layout make one model. Raises PlanError naming what differs."""
    if not infos:
        raise PlanError("a split model needs a stage", effect="nothing was joined")
    first = infos[0]
    for placed, info in zip(layout, infos, strict=True):
        for what in ("weights_digest", "vocabulary_digest", "hidden_size", "model_layers"):
            ours, theirs = getattr(first, what), getattr(info, what)
            if ours != theirs:
                raise PlanError(
                    f"{placed.device} holds a stage of another model",
                    why=f"its {what.replace('_', ' ')} is {_short(theirs)}, "
                    f"that of {layout[0].device} is {_short(ours)}",
                    effect="the stages were not joined",
                    todo="start both workers with the same model",
                )
    _check_ranges([info.layers for info in infos], first.model_layers)


def _short(value: object) -> str:
    return str(value)[:12]


def _check_ranges(found: Sequence[LayerRange], layers: int) -> None:
    whole = ranges([(one.start, one.stop) for one in found], layers)
    if tuple(found) != whole:
        raise PlanError(
            "the stages do not make a whole model",
            why="the embedding belongs to the first stage, the head to the last",
            effect="the stages were not joined",
        )
