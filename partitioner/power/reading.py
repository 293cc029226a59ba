"""What readers give: charge, draws and heat, each with its source. A reader that fails says why."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from outrider.errors import OutriderError
from outrider.partitioner.power.state import EnergyKind, Profile, Supply

Run = Callable[[Sequence[str]], str]
"""Runs a command and gives its standard output; raises OSError when it can not be run or fails."""

Scope = Literal["device", "part", "inner"]
"""`device`: all that it draws; `part`: parts add up; `inner`: contained in another draw."""


Unit = Literal["all", "cpu", "gpu"]
"""What a draw covers."""


class SensorError(OutriderError):
    """A sensor of this machine that is there, and can not be read or makes no sense."""

    code = "sensor"


@dataclass(frozen=True, slots=True)
class Charge:
    """The supply, and all batteries together."""

    source: str
    supply: Supply
    battery: float | None = None
    """0 to 1."""
    charging: bool | None = None


@dataclass(frozen=True, slots=True)
class Draw:
    """Watts now, or a counter of joules that never falls. One of the two."""

    source: str
    scope: Scope
    watts: float | None = None
    joules: float | None = None
    kind: EnergyKind = "measured"
    of: Unit = "all"
    slow: bool = False
    """Refreshed every few seconds or more seldom, so that it says nothing of one request."""


@dataclass(frozen=True, slots=True)
class Heat:
    """One zone; `limit_c` is where it begins to throttle, if anything tells."""

    source: str
    celsius: float
    limit_c: float | None = None


@dataclass(frozen=True, slots=True)
class Reading:
    """What one reader found. `problems` are parts that it had to leave out."""

    charge: Charge | None = None
    draws: tuple[Draw, ...] = ()
    heats: tuple[Heat, ...] = ()
    throttled: bool | None = None
    """The machine says that it runs slower than it could, because of heat or supply."""
    profile: Profile | None = None
    problems: tuple[SensorError, ...] = ()


class Reader(Protocol):
    """One kind of sensor. May keep state (counters wrap), and may block for milliseconds."""

    @property
    def name(self) -> str: ...

    def read(self) -> Reading:
        """Raises SensorError when nothing of it can be read."""
        ...


@dataclass(frozen=True, slots=True)
class Absent:
    """A kind of sensor that is not here: where was looked, and what was missing."""

    name: str
    looked: str
    why: str
