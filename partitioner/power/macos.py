"""macOS: `pmset`, `ioreg`, and `powermetrics` where this process may run it (it needs root)."""

from __future__ import annotations

import re
from dataclasses import dataclass

from outrider.partitioner.power.reading import Absent, Charge, Draw, Reading, Run, SensorError
from outrider.partitioner.power.state import Profile, Supply

SIGNED = 2**64
MOST_MA = 2**31
SAMPLE_MS = 200
"""How long powermetrics watches."""


@dataclass(frozen=True, slots=True)
class MacBatteryReader:
    """Charge by `pmset -g batt`, watts by `ioreg` while the battery is drained."""

    run: Run
    name: str = "pmset"

    def read(self) -> Reading:
        charge = parse_batt(self._output("pmset", "-g", "batt"))
        watts = None
        if charge.supply == "battery":
            watts = parse_ioreg(self._output("ioreg", "-r", "-n", "AppleSmartBattery"))
        draws = () if watts is None else (Draw("ioreg battery", "device", watts=watts, slow=True),)
        return Reading(
            charge,
            draws,
            throttled=parse_therm(self._output("pmset", "-g", "therm")),
            profile=parse_profile(self._output("pmset", "-g")),
        )

    def _output(self, *command: str) -> str:
        return output(self.run, *command)


@dataclass(frozen=True, slots=True)
class PowermetricsReader:
    run: Run
    name: str = "powermetrics"

    def read(self) -> Reading:
        text = output(
            self.run, "powermetrics", "-n", "1", "-i", str(SAMPLE_MS),
            "--samplers", "cpu_power,gpu_power",
        )  # fmt: skip
        watts = parse_powermetrics(text)
        if watts is None:
            raise SensorError(
                "powermetrics names no power",
                why="its output has another form than this version knows",
                effect="it is left out of the power readings",
            )
        return Reading(draws=(Draw("powermetrics CPU+GPU+ANE", "part", watts=watts),))


def output(run: Run, *command: str) -> str:
    """Raises SensorError."""
    try:
        return run(command)
    except OSError as error:
        raise SensorError(
            f"{command[0]} failed",
            why=error.strerror or type(error).__name__,
            effect="it is left out of the power readings",
        ) from None


def parse_batt(text: str) -> Charge:
    """Of `Now drawing from 'Battery Power'` and `83%; discharging; 4:12 remaining`."""
    supply: Supply = "unknown"
    if match := re.search(r"drawing from '([^']*)'", text):
        supply = "battery" if match[1] == "Battery Power" else "ac"
    level = re.search(r"(\d{1,3})%;\s*([^;]*);", text)
    if level is None or int(level[1]) > 100:
        return Charge("pmset", supply)
    return Charge("pmset", supply, int(level[1]) / 100, level[2].strip() == "charging")


def parse_ioreg(text: str) -> float | None:
    """Watts of `"Voltage" = 12034` mV and `"InstantAmperage" = 18446744073709550416` mA, which
    is a negative number written as an unsigned one."""
    volts = re.search(r'"Voltage"\s*=\s*(\d+)', text)
    amps = re.search(r'"(?:InstantAmperage|Amperage)"\s*=\s*(-?\d+)', text)
    if volts is None or amps is None:
        return None
    milliamps = int(amps[1])
    milliamps -= SIGNED if milliamps > SIGNED // 2 else 0
    return abs(milliamps) * int(volts[1]) / 1e6 if abs(milliamps) < MOST_MA else None


def parse_therm(text: str) -> bool | None:
    """`CPU_Speed_Limit = 100` is full speed; Apple silicon notes nothing while all is well."""
    match = re.search(r"CPU_Speed_Limit\s*=\s*(\d+)", text)
    return None if match is None else int(match[1]) < 100


def parse_profile(text: str) -> Profile | None:
    match = re.search(r"^\s*lowpowermode\s+(\d)", text, re.MULTILINE)
    return None if match is None else "low-power" if match[1] == "1" else "balanced"


def parse_powermetrics(text: str) -> float | None:
    """`Combined Power (CPU + GPU + ANE): 3205 mW`, or Intel's package in watts."""
    if match := re.search(r"Combined Power[^:]*:\s*(\d+(?:\.\d+)?)\s*mW", text):
        return float(match[1]) / 1e3
    match = re.search(r"\(CPUs\+GT\+SA\):\s*(\d+(?:\.\d+)?)W", text)
    return None if match is None else float(match[1])


def find(run: Run) -> MacBatteryReader | Absent:
    try:
        run(("pmset", "-g", "batt"))
    except OSError as error:
        return Absent("pmset", "pmset -g batt", error.strerror or type(error).__name__)
    return MacBatteryReader(run)


def find_powermetrics(run: Run, user: int) -> PowermetricsReader | Absent:
    if user == 0:
        return PowermetricsReader(run)
    return Absent("powermetrics", "powermetrics", "it needs root")
