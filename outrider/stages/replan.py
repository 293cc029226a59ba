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
from outrider.partitioner.device import LinkProfile
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
class Chosen:
    """A planned layout, and why: the constraint that binds, and what came second."""

    layout: Layout
    binding: str = ""
    runner_up: str = ""
    links: tuple[LinkProfile, ...] = ()
    """Between neighbours of the layout, as they were planned with."""
    remarks: tuple[str, ...] = ()
    """What else comes with it, such as weights that have to be sent."""

    @property
    def told(self) -> str:
        """Links and remarks, for people; empty without any."""
        ways = ", ".join(map(spelled, self.links))
        return "; ".join(filter(None, (f"links {ways}" if ways else "", *self.remarks)))


class Fleet(Protocol):
    """The devices that may hold stages of one model."""

    def plan(self, without: str = "") -> Chosen:
        """Where the layers best lie on those that answer now, leaving one out that was lost.

        Raises PlanError when they can not hold them."""
        ...

    def chain(self, layout: Layout) -> Chain:
        """Load what is missing and join the stages. Raises StageLost, ModelError, and EngineFull,
        after which a plan reckons with less memory."""
        ...

    def shutdown(self) -> None: ...


def spelled(link: LinkProfile) -> str:
    """`a-b 3.1 ms 12.5 MB/s (measured)`: the round trip, and the slower of both ways."""
    rate = min(link.up_bytes_per_s, link.down_bytes_per_s) / 1e6
    return f"{link.a}-{link.b} {1e3 * link.rtt_s:.3g} ms {rate:.3g} MB/s ({link.source})"


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
