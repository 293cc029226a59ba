"""What the daemon tells of power: for `outrider power`, `/outrider/v1/status` and metrics.

msgspec alone, so that the SDK needs nothing of the edge's. Watts, joules and °C; None where
nothing tells it. `kind` is `measured`, `estimated` or `none`.
"""

from __future__ import annotations

import msgspec


class DrawStatus(msgspec.Struct, frozen=True):
    """One source of watts."""

    source: str
    watts: float | None
    kind: str
    scope: str
    """`device`, `part` (parts add up) or `inner` (contained in another)."""


class HeatStatus(msgspec.Struct, frozen=True):
    zone: str
    celsius: float
    limit_c: float | None
    """Where it begins to throttle."""


class AbsentStatus(msgspec.Struct, frozen=True):
    """A kind of sensor that was looked for in vain."""

    name: str
    looked: str
    why: str


class PlacementEnergy(msgspec.Struct, frozen=True):
    """What tokens cost under one placement, of the requests that have ended."""

    placement: str
    joules_per_token: float
    """Fading: of about the last 500 tokens. The next three are its parts."""
    device: float
    radio: float
    cloud: float
    kind: str
    tokens: int
    joules: float
    """Of all tokens."""
    wasted_j: float
    """Of the device's part: drafts that were sent and not accepted."""


class PowerStatus(msgspec.Struct, frozen=True):
    supply: str = "unknown"
    battery: float | None = None
    """0 to 1."""
    charging: bool | None = None
    profile: str | None = None
    watts: float | None = None
    watts_kind: str = "none"
    watts_source: str = ""
    idle_watts: float | None = None
    """Of the counter that requests are accounted by, while nothing runs."""
    accounted_by: str = ""
    """That counter; empty when busy time is taken at estimated watts."""
    temperature_c: float | None = None
    limit_c: float | None = None
    zone: str = ""
    throttled: bool | None = None
    radio: str = "none"
    policy: str = "auto"
    battery_floor: float = 0.0
    watt_cap: float | None = None
    draft: str = "free"
    """What the policy leaves: free, shallow, off."""
    compute: str = "free"
    """free, or avoid: place whole answers and layers elsewhere."""
    reason: str = ""
    draws: tuple[DrawStatus, ...] = ()
    heats: tuple[HeatStatus, ...] = ()
    absent: tuple[AbsentStatus, ...] = ()
    troubles: tuple[str, ...] = ()
    """Sensors that are there and can not be read."""
    placements: tuple[PlacementEnergy, ...] = ()
