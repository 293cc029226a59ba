"""Batteries and chargers: the kernel's power_supply class (Documentation/ABI sysfs-class-power).

Power is a figure of the whole device only while the battery discharges; the firmware refreshes
it every 1 to 30 s, and its sign differs between drivers.
"""

from __future__ import annotations

from dataclasses import dataclass

from outrider.partitioner.power.reading import Absent, Charge, Draw, Reading, SensorError
from outrider.partitioner.power.state import Supply
from outrider.partitioner.power.sysfs import Tree

PLACE = "sys/class/power_supply"
MICRO = 1e-6
MOST_W = 500.0
_CHARGERS = ("Mains", "USB", "Wireless")


@dataclass(frozen=True, slots=True)
class _Battery:
    name: str
    status: str
    held: float | None
    """Wh, Ah or a share; comparable with `full` alone."""
    full: float | None
    unit: str
    watts: float | None


@dataclass(frozen=True, slots=True)
class BatteryReader:
    tree: Tree
    name: str = "battery"

    def read(self) -> Reading:
        problems: list[SensorError] = []
        batteries: list[_Battery] = []
        online: list[bool] = []
        for place in self.tree.folders(f"{PLACE}/*"):
            kind = self.tree.text(f"{place}/type")
            if kind in _CHARGERS:
                online.append(self.tree.text(f"{place}/online") == "1")
            elif kind == "Battery" and _powers_us(self.tree, place):
                batteries.append(self._battery(place, problems))
        supply = _supply(batteries, online)
        charge = Charge(
            source="+".join(battery.name for battery in batteries) or "mains",
            supply=supply,
            battery=_level(batteries),
            charging=any(b.status == "Charging" for b in batteries) if batteries else None,
        )
        return Reading(charge, _draws(batteries, supply), problems=tuple(problems))

    def _battery(self, place: str, problems: list[SensorError]) -> _Battery:
        status = self.tree.text(f"{place}/status") or "Unknown"
        held, full, unit = self._charge(place, problems)
        name = place.rpartition("/")[2]
        return _Battery(name, status, held, full, unit, self._watts(place, problems))

    def _charge(
        self, place: str, problems: list[SensorError]
    ) -> tuple[float | None, float | None, str]:
        for unit in ("energy", "charge"):
            held = self._number(f"{place}/{unit}_now", 0, 1e9, problems)
            full = self._number(f"{place}/{unit}_full", 1, 1e9, problems)
            if held is not None and full is not None:
                return min(held, full), full, unit
        share = self._number(f"{place}/capacity", 0, 100, problems)
        return (share, 100.0, "capacity") if share is not None else (None, None, "")

    def _watts(self, place: str, problems: list[SensorError]) -> float | None:
        power = self._number(f"{place}/power_now", -1e9, 1e9, problems)
        if power is None:
            volts = self._number(f"{place}/voltage_now", 0, 1e8, problems)
            amps = self._number(f"{place}/current_now", -1e8, 1e8, problems)
            if volts is None or amps is None:
                return None
            power = volts * amps * MICRO
        watts = abs(power) * MICRO
        return watts if watts <= MOST_W else None

    def _number(
        self, path: str, low: float, high: float, problems: list[SensorError]
    ) -> float | None:
        try:
            return self.tree.number(path, low, high)
        except SensorError as problem:
            problems.append(problem)
            return None


def find(tree: Tree) -> BatteryReader | Absent:
    if any(True for _ in tree.folders(f"{PLACE}/*")):
        return BatteryReader(tree)
    return Absent("battery", f"/{PLACE}", "no battery and no charger is known to the kernel")


def _powers_us(tree: Tree, place: str) -> bool:
    """Not that of a mouse or headset, and really in its bay."""
    return tree.text(f"{place}/scope") != "Device" and tree.text(f"{place}/present") != "0"


def _supply(batteries: list[_Battery], online: list[bool]) -> Supply:
    if any(online):
        return "ac"
    if any(battery.status == "Discharging" for battery in batteries):
        return "battery"
    if any(battery.status in ("Charging", "Full") for battery in batteries):
        return "ac"
    return "battery" if online and batteries else "unknown"


def _level(batteries: list[_Battery]) -> float | None:
    """All together, by what each can hold; by their mean when they count in different units."""
    known = [b for b in batteries if b.held is not None and b.full]
    if not known:
        return None
    if len({battery.unit for battery in known}) == 1:
        return sum(b.held or 0.0 for b in known) / sum(b.full or 0.0 for b in known)
    return sum((b.held or 0.0) / (b.full or 1.0) for b in known) / len(known)


def _draws(batteries: list[_Battery], supply: Supply) -> tuple[Draw, ...]:
    drained = [b for b in batteries if b.status == "Discharging" and b.watts]
    if supply != "battery" or not drained:
        return ()
    source = "+".join(battery.name for battery in drained)
    return (Draw(source, "device", watts=sum(b.watts or 0.0 for b in drained), slow=True),)
