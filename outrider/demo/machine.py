"""The files of a laptop that is played: a charger and a battery that a script turns."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

SUPPLY = "sys/class/power_supply"
HEAT = "sys/class/thermal/thermal_zone0"
FULL_UWH = 50_000_000
DRAWN_UW = 9_500_000
"""While it runs on its battery."""


@dataclass(frozen=True, slots=True)
class Laptop:
    """Below `root`, as Linux has them; the daemon reads them through OUTRIDER_POWER_ROOT."""

    root: Path

    def plant(self) -> None:
        self._write(f"{SUPPLY}/AC/type", "Mains")
        battery = f"{SUPPLY}/BAT0"
        self._write(f"{battery}/type", "Battery")
        self._write(f"{battery}/present", 1)
        self._write(f"{battery}/energy_full", FULL_UWH)
        self._write(f"{battery}/power_now", DRAWN_UW)
        self._write(f"{HEAT}/type", "x86_pkg_temp")
        self._write(f"{HEAT}/trip_point_0_type", "passive")
        self._write(f"{HEAT}/trip_point_0_temp", 95_000)
        self.plugged(0.64)

    def plugged(self, charge: float) -> None:
        """On mains, at a charge of 0 to 1."""
        self._set(charge, online=1, status="Charging", celsius=61)

    def unplugged(self, charge: float) -> None:
        self._set(charge, online=0, status="Discharging", celsius=68)

    def _set(self, charge: float, *, online: int, status: str, celsius: int) -> None:
        self._write(f"{SUPPLY}/AC/online", online)
        battery = f"{SUPPLY}/BAT0"
        self._write(f"{battery}/status", status)
        self._write(f"{battery}/capacity", round(charge * 100))
        self._write(f"{battery}/energy_now", round(charge * FULL_UWH))
        self._write(f"{HEAT}/temp", celsius * 1000)

    def _write(self, name: str, value: object) -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{value}\n")
