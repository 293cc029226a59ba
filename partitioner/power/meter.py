"""All readers of a machine as one: the latest state, and one counter of joules to account by.

Shown watts are those of the whole device where something tells them, else the sum of its parts.
Requests are accounted by a source that is fast and covers what drafts: the whole device by a
counter or a live sensor, else processor and GPU together, else the battery.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from outrider.partitioner.power.reading import (
    Absent,
    Charge,
    Draw,
    Heat,
    Reader,
    Reading,
    SensorError,
    Unit,
)
from outrider.partitioner.power.state import EnergyKind, PowerState

RETRY_S = 300.0
"""A reader that failed is left out for so long."""


@dataclass(frozen=True, slots=True)
class Counted:
    """Joules since the meter was made, by `source`; comparable while the source stays."""

    joules: float
    source: str
    kind: EnergyKind


@dataclass(frozen=True, slots=True)
class Poll:
    """Everything that is known at one moment."""

    state: PowerState
    watts: tuple[tuple[Draw, float | None], ...] = ()
    """Each draw, and its watts over the time since the last poll; None at a counter's first."""
    heats: tuple[Heat, ...] = ()
    counted: Counted | None = None
    problems: tuple[SensorError, ...] = ()
    """Only those that were not told before."""


@dataclass(slots=True)
class Meter:
    """Not for the event loop: readers may block for milliseconds."""

    readers: Sequence[Reader]
    absent: Sequence[Absent] = ()
    drafts_on: Unit = "cpu"
    """What computes the drafts; requests are accounted by a source that covers it."""
    _until: dict[str, float] = field(default_factory=dict)
    _told: set[str] = field(default_factory=set)
    _last: dict[str, tuple[float, Draw]] = field(default_factory=dict)
    _joules: dict[str, float] = field(default_factory=dict)
    """By source of the account."""

    def poll(self, at_s: float) -> Poll:
        """Reads everything once; calls come in order of time."""
        readings, problems = self._read(at_s)
        draws = [draw for reading in readings for draw in reading.draws]
        heats = tuple(heat for reading in readings for heat in reading.heats)
        rated = [(draw, *self._rate(draw, at_s)) for draw in draws]
        watts = tuple((draw, w) for draw, w, _ in rated)
        return Poll(
            state=_state(at_s, readings, watts, heats),
            watts=watts,
            heats=heats,
            counted=self._count([(draw, joules) for draw, _, joules in rated]),
            problems=problems,
        )

    def _read(self, at_s: float) -> tuple[list[Reading], tuple[SensorError, ...]]:
        readings: list[Reading] = []
        problems: list[SensorError] = []
        for reader in self.readers:
            if at_s < self._until.get(reader.name, at_s):
                continue
            try:
                readings.append(reader.read())
            except SensorError as error:
                self._until[reader.name] = at_s + RETRY_S
                problems.append(error)
            else:
                problems.extend(readings[-1].problems)
        return readings, tuple(problem for problem in problems if self._first_told(problem))

    def _first_told(self, problem: SensorError) -> bool:
        """A sensor is named once, whatever it says the next time."""
        key = problem.what.split(" ", 1)[0]
        fresh = key not in self._told
        self._told.add(key)
        return fresh

    def _rate(self, draw: Draw, at_s: float) -> tuple[float | None, float]:
        """Watts, and joules since the last poll."""
        before = self._last.get(draw.source)
        self._last[draw.source] = (at_s, draw)
        span_s = at_s - before[0] if before is not None else 0.0
        if draw.watts is not None:
            old = before[1].watts if before is not None and before[1].watts else draw.watts
            return draw.watts, (draw.watts + old) / 2 * span_s
        if before is None or draw.joules is None or before[1].joules is None or span_s <= 0:
            return None, 0.0
        joules = max(0.0, draw.joules - before[1].joules)
        return joules / span_s, joules

    def _count(self, rated: Sequence[tuple[Draw, float]]) -> Counted | None:
        chosen = self._accounted([draw for draw, _ in rated])
        if not chosen:
            return None
        source = " + ".join(draw.source for draw in chosen)
        fresh = sum(joules for draw, joules in rated if draw in chosen)
        self._joules[source] = self._joules.get(source, 0.0) + fresh
        return Counted(self._joules[source], source, _kind(chosen))

    def _accounted(self, draws: Sequence[Draw]) -> list[Draw]:
        whole = [draw for draw in draws if draw.scope == "device" and not draw.slow]
        parts = [draw for draw in draws if draw.scope == "part"]
        if whole:
            return whole[:1]
        if any(draw.of in ("all", self.drafts_on) for draw in parts):
            return parts
        return [draw for draw in draws if draw.scope == "device"][:1]


def _kind(draws: Sequence[Draw]) -> EnergyKind:
    return "measured" if all(draw.kind == "measured" for draw in draws) else "estimated"


def _state(
    at_s: float,
    readings: Sequence[Reading],
    watts: Sequence[tuple[Draw, float | None]],
    heats: Sequence[Heat],
) -> PowerState:
    charge = next((r.charge for r in readings if r.charge is not None), Charge("", "unknown"))
    shown = _shown([(draw, value) for draw, value in watts if value is not None])
    hottest = max(heats, key=_nearness, default=None)
    throttled = [r.throttled for r in readings if r.throttled is not None]
    return PowerState(
        at_s=at_s,
        supply=charge.supply,
        battery=charge.battery,
        charging=charge.charging,
        watts=sum(value for _, value in shown) if shown else None,
        watts_kind=_kind([draw for draw, _ in shown]) if shown else "none",
        watts_source=" + ".join(draw.source for draw, _ in shown),
        temperature_c=hottest.celsius if hottest is not None else None,
        limit_c=hottest.limit_c if hottest is not None else None,
        zone=hottest.source if hottest is not None else "",
        throttled=any(throttled) if throttled else None,
        profile=next((r.profile for r in readings if r.profile is not None), None),
    )


def _shown(watts: Sequence[tuple[Draw, float]]) -> list[tuple[Draw, float]]:
    whole = [pair for pair in watts if pair[0].scope == "device"]
    return whole[:1] or [pair for pair in watts if pair[0].scope == "part"]


def _nearness(heat: Heat) -> tuple[int, float]:
    """Zones with a limit first, the one nearest to its limit before the others."""
    if heat.limit_c is None:
        return 0, heat.celsius
    return 1, heat.celsius - heat.limit_c
