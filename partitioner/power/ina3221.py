"""INA3221 rails of a Jetson, by hwmon (kernel: hwmon/ina3221). The carrier board is not seen."""

from __future__ import annotations

from dataclasses import dataclass

from outrider.partitioner.power.reading import Absent, Draw, Reading, Scope, SensorError
from outrider.partitioner.power.sysfs import Tree

PLACE = "sys/class/hwmon"
CHANNELS = (1, 2, 3)
WHOLE = ("VDD_IN", "POM_5V_IN", "VIN_SYS", "5V_IN")
"""Rails that feed the whole module, on Orin Nano and NX, Nano, and others."""
INNER = ("VDDQ_VDD2_1V8AO", "NC")
"""Of AGX Orin: drawn from VIN_SYS_5V0; and a rail that is not connected."""


@dataclass(frozen=True, slots=True)
class _Rail:
    label: str
    milliwatts: float


@dataclass(frozen=True, slots=True)
class Ina3221Reader:
    tree: Tree
    places: tuple[str, ...]
    name: str = "ina3221"

    def read(self) -> Reading:
        rails: list[_Rail] = []
        problems: list[SensorError] = []
        for place in self.places:
            for channel in CHANNELS:
                try:
                    rail = self._rail(place, channel)
                except SensorError as problem:
                    problems.append(problem)
                else:
                    rails += [rail] if rail is not None else []
        if problems and not rails:
            raise problems[0]
        whole = any(rail.label in WHOLE for rail in rails)
        draws = tuple(_draw(rail, inside=whole) for rail in rails)
        return Reading(draws=draws, problems=tuple(problems))

    def _rail(self, place: str, channel: int) -> _Rail | None:
        label = self.tree.text(f"{place}/in{channel}_label")
        millivolts = self.tree.number(f"{place}/in{channel}_input", 0, 32_000)
        milliamps = self.tree.number(f"{place}/curr{channel}_input", -100_000, 100_000)
        if not label or millivolts is None or milliamps is None:
            return None
        return _Rail(label, max(0.0, millivolts * milliamps / 1e3))


def _draw(rail: _Rail, *, inside: bool) -> Draw:
    scope: Scope = "part"
    if rail.label in WHOLE:
        scope = "device"
    elif inside or rail.label in INNER:
        scope = "inner"
    return Draw(f"ina3221 {rail.label}", scope, watts=rail.milliwatts / 1e3)


def find(tree: Tree) -> Ina3221Reader | Absent:
    found = tuple(p for p in tree.folders(f"{PLACE}/hwmon*") if tree.text(f"{p}/name") == "ina3221")
    if found:
        return Ina3221Reader(tree, found)
    return Absent("ina3221", f"/{PLACE}/hwmon*/name", "no INA3221 (it is on Jetson modules)")
