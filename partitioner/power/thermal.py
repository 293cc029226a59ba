"""Temperatures, and where each zone begins to throttle.

Thermal zones (kernel: sysfs-class-thermal) throttle at their lowest `passive` trip point. Intel's
coretemp names its limit as `temp1_max`. A Raspberry Pi's firmware throttles at 80 °C without a
trip point for it, and tells in `get_throttled`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from outrider.partitioner.power.reading import Absent, Heat, Reading, SensorError
from outrider.partitioner.power.sysfs import Tree

ZONES = "sys/class/thermal"
HWMON = "sys/class/hwmon"
MODEL = "proc/device-tree/model"
PI_THROTTLED = "sys/devices/platform/soc/soc:firmware/get_throttled"
PI_LIMIT_C = 80.0
"""Raspberry Pi documentation, "Frequency management and thermal control"."""
PI_NOW = 0b1110
"""Bits of `get_throttled` that speak of now: frequency capped, throttled, soft limit."""
COLDEST_MC, HOTTEST_MC = -40_000, 150_000
TRIPS = 12
LEAST_TRIP_MC = 30_000
"""Trip points below are switched off, or make no sense (-274 °C, 0)."""
CRITICAL_MARGIN_C = 10.0
"""Where only the temperature of the emergency stop is told, firmware throttles before it; most
by about this much."""


@dataclass(frozen=True, slots=True)
class ThermalReader:
    tree: Tree
    name: str = "thermal"

    def read(self) -> Reading:
        pi = "Raspberry Pi" in (self.tree.text(MODEL) or "")
        limit = PI_LIMIT_C if pi else None
        heats = tuple([*self._zones(limit), *self._cores()])
        return Reading(heats=heats, throttled=self._pi_throttled() if pi else None)

    def _zones(self, known: float | None) -> Iterator[Heat]:
        for place in self.tree.folders(f"{ZONES}/thermal_zone*"):
            kind = self.tree.text(f"{place}/type") or place.rpartition("/")[2]
            celsius = self._celsius(f"{place}/temp")
            if celsius is not None:
                yield Heat(kind, celsius, known or self._limit(place))

    def _limit(self, place: str) -> float | None:
        trips: dict[str, float] = {}
        for number in range(TRIPS):
            kind = self.tree.text(f"{place}/trip_point_{number}_type")
            celsius = self._celsius(f"{place}/trip_point_{number}_temp")
            if kind is None:
                break
            if celsius is not None and celsius * 1e3 >= LEAST_TRIP_MC:
                trips[kind] = min(celsius, trips.get(kind, celsius))
        for kind in ("passive", "hot"):
            if kind in trips:
                return trips[kind]
        return trips["critical"] - CRITICAL_MARGIN_C if "critical" in trips else None

    def _cores(self) -> Iterator[Heat]:
        for place in self.tree.folders(f"{HWMON}/hwmon*"):
            kind = self.tree.text(f"{place}/name")
            if kind not in ("coretemp", "k10temp"):
                continue
            celsius = self._celsius(f"{place}/temp1_input")
            limit = self._celsius(f"{place}/temp1_max")
            if celsius is not None:
                yield Heat(kind, celsius, limit if limit and limit > 30 else None)

    def _celsius(self, path: str) -> float | None:
        """None where the driver gives nothing or nonsense; zones without a sensor do that."""
        try:
            value = self.tree.number(path, COLDEST_MC, HOTTEST_MC)
        except SensorError:
            return None
        return None if value is None else value / 1e3

    def _pi_throttled(self) -> bool | None:
        text = self.tree.text(PI_THROTTLED)
        try:
            return None if text is None else bool(int(text, 16) & PI_NOW)
        except ValueError:
            return None


def find(tree: Tree) -> ThermalReader | Absent:
    zones = any(True for _ in tree.folders(f"{ZONES}/thermal_zone*"))
    cores = any(
        tree.text(f"{place}/name") in ("coretemp", "k10temp")
        for place in tree.folders(f"{HWMON}/hwmon*")
    )
    if zones or cores:
        return ThermalReader(tree)
    return Absent("thermal", f"/{ZONES}/thermal_zone*", "no thermal zone and no core sensor")
