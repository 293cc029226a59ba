"""What a device knows of its power and heat at one moment, and what follows for placement."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Supply = Literal["ac", "battery", "unknown"]
EnergyKind = Literal["none", "estimated", "measured"]
Profile = Literal["low-power", "balanced", "performance"]


@dataclass(frozen=True, slots=True)
class PowerState:
    """None where no reader of this machine tells it."""

    at_s: float
    """Monotonic seconds of the reading."""
    supply: Supply = "unknown"
    battery: float | None = None
    """Charge left, 0 to 1."""
    charging: bool | None = None
    watts: float | None = None
    """Drawn by the whole device, or by what `watts_source` names."""
    watts_kind: EnergyKind = "none"
    watts_source: str = ""
    temperature_c: float | None = None
    """Of the hottest zone that throttles."""
    limit_c: float | None = None
    """Where that zone begins to throttle."""
    zone: str = ""
    """Its name."""
    throttled: bool | None = None
    """The machine says that it is slowed down now."""
    profile: Profile | None = None
    """What the user chose for the machine."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """What power and heat leave to placement; `reason` is for people and events."""

    draft: Literal["free", "shallow", "off"] = "free"
    """`shallow`: at most `SHALLOW` tokens ahead; `off`: no drafting on this device."""
    compute: Literal["free", "avoid"] = "free"
    """`avoid`: place layers and whole answers elsewhere while there is an elsewhere."""
    watt_cap: float | None = None
    reason: str = ""


SHALLOW = 2
