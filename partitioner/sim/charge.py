"""A device's battery, and what the power policy makes of it. Pure; times are arguments."""

from __future__ import annotations

from dataclasses import dataclass, field

from outrider.partitioner.power.policy import Governor
from outrider.partitioner.power.state import Bounds, PowerState, Supply
from outrider.partitioner.sim.setup import Gear

JOULES_PER_WH = 3600.0
LOOK_S = 10.0
"""A device that was not looked at for longer is looked at twice: once at the end of the gap,
once this much before, so that what had to hold for a while has held."""


@dataclass(slots=True)
class Battery:
    """`draw` takes joules beyond the base draw; `bounds` asks the runtime's power policy."""

    gear: Gear
    charge: float | None
    supply: Supply
    at_s: float = 0.0
    governor: Governor = field(default_factory=Governor)
    looked_s: float = -1e9
    _spent_j: float = 0.0

    def draw(self, joules: float) -> None:
        self._spent_j += joules

    def plug(self, supply: Supply, now: float) -> None:
        self._pass(now)
        self.supply = supply

    def bounds(self, now: float) -> Bounds:
        if self.charge is None and self.supply != "battery":
            return self.governor.bounds
        if now - self.looked_s > LOOK_S:
            self._look(max(self.at_s, now - LOOK_S))
        return self._look(now)

    def _look(self, now: float) -> Bounds:
        self._pass(now)
        self.looked_s = now
        charging = self.supply == "ac" and (self.charge or 0.0) < 1.0
        return self.governor.step(
            PowerState(now, supply=self.supply, battery=self.charge, charging=charging)
        )

    def _pass(self, now: float) -> None:
        """Time goes by: the base draw, and what was drawn beyond it, or the charger's power."""
        spent, self._spent_j = self._spent_j, 0.0
        seconds, self.at_s = max(0.0, now - self.at_s), max(self.at_s, now)
        if self.charge is None or not self.gear.battery_wh:
            return
        drained = self.gear.base_w * seconds + spent
        gained = self.gear.charge_w * seconds if self.supply == "ac" else 0.0
        moved = (gained - drained) / (self.gear.battery_wh * JOULES_PER_WH)
        self.charge = min(1.0, max(0.0, self.charge + moved))
