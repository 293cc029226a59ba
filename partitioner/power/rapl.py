"""RAPL counters of the processor, by the kernel's powercap class (AMD's too).

Root alone may read them since CVE-2020-8694, unless an administrator allows it; virtual machines
and most containers have none.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from outrider.partitioner.power.reading import Absent, Draw, Reading, Scope, SensorError, Unit
from outrider.partitioner.power.sysfs import Tree

PLACE = "sys/class/powercap"
MICRO = 1e-6
MOST_UJ = 2.0**64


@dataclass(slots=True)
class _Zone:
    place: str
    source: str
    scope: Scope
    range_uj: float
    last_uj: float | None = None
    joules: float = 0.0

    def advance(self, now_uj: float) -> None:
        """The counter wraps at its range; it is read far more often than it wraps."""
        if self.last_uj is not None:
            drawn = now_uj - self.last_uj
            self.joules += (drawn if drawn >= 0 else drawn + self.range_uj) * MICRO
        self.last_uj = now_uj


@dataclass(slots=True)
class RaplReader:
    tree: Tree
    zones: list[_Zone] = field(default_factory=list)
    name: str = "rapl"

    def read(self) -> Reading:
        draws: list[Draw] = []
        problems: list[SensorError] = []
        for zone in self.zones:
            try:
                now = self.tree.number(f"{zone.place}/energy_uj", 0, MOST_UJ)
            except SensorError as problem:
                problems.append(problem)
                continue
            if now is not None:
                zone.advance(now)
                draws.append(_draw(zone))
        if problems and not draws:
            raise problems[0]
        return Reading(draws=tuple(draws), problems=tuple(problems))


def find(tree: Tree) -> RaplReader | Absent:
    """`intel-rapl-mmio` counts the same package a second time, and is left out."""
    zones = []
    for place in tree.folders(f"{PLACE}/intel-rapl:*"):
        name = tree.text(f"{place}/name")
        if name is not None and (found := _zone(tree, place, name)) is not None:
            zones.append(found)
    if not zones:
        return Absent("rapl", f"/{PLACE}/intel-rapl:*", "the kernel offers no energy counters")
    return RaplReader(tree, zones)


def _zone(tree: Tree, place: str, name: str) -> _Zone | None:
    package = place.rpartition("/")[2].split(":")[1]
    try:
        most = tree.number(f"{place}/max_energy_range_uj", 1, MOST_UJ)
    except SensorError:
        return None
    if most is None:
        return None
    source = f"rapl {name}" if name.startswith(("package", "psys")) else f"rapl {name}-{package}"
    return _Zone(place, source, _scope(name), most)


def _draw(zone: _Zone) -> Draw:
    of: Unit = "all" if zone.scope == "device" else "cpu"
    return Draw(zone.source, zone.scope, joules=zone.joules, of=of)


def _scope(name: str) -> Scope:
    if name == "psys":
        return "device"
    return "part" if name.startswith("package") or name == "dram" else "inner"
