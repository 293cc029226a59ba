"""Sysfs trees as machines have them: name to text, as recorded or as drivers document them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from outrider.partitioner.power.sysfs import Tree

Files = Mapping[str, str]
SUPPLY = "sys/class/power_supply"
RAPL = "sys/class/powercap"


def plant(root: Path, *files: Files) -> Tree:
    """Write the files below a root."""
    for group in files:
        for name, text in group.items():
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text + "\n")
    return Tree(root)


def under(folder: str, **attributes: object) -> dict[str, str]:
    return {f"{folder}/{name}": str(value) for name, value in attributes.items()}


def mains(name: str = "AC", online: int = 1) -> dict[str, str]:
    return under(f"{SUPPLY}/{name}", type="Mains", online=online)


THINKPAD_BATTERY = under(
    f"{SUPPLY}/BAT0",
    type="Battery", present=1, status="Discharging", technology="Li-poly",
    manufacturer="LGC", energy_full_design=57_000_000, energy_full=48_210_000,
    energy_now=19_770_000, power_now=11_312_000, voltage_min_design=11_520_000,
    voltage_now=11_284_000, capacity=41, cycle_count=213,
)  # fmt: skip
MOUSE = under(
    f"{SUPPLY}/hidpp_battery_0",
    type="Battery", scope="Device", status="Discharging", capacity=5, online=1,
)  # fmt: skip
THINKPAD_HEAT = {
    **under("sys/class/thermal/thermal_zone0", type="acpitz", temp=54000,
            trip_point_0_type="critical", trip_point_0_temp=128000),
    **under("sys/class/thermal/thermal_zone1", type="x86_pkg_temp", temp=61000,
            trip_point_0_type="passive", trip_point_0_temp=95000,
            trip_point_1_type="passive", trip_point_1_temp=0),
    **under("sys/class/thermal/thermal_zone2", type="iwlwifi_1"),
    **under("sys/class/hwmon/hwmon5", name="coretemp", temp1_input=62000, temp1_max=100000,
            temp1_crit=100000),
}  # fmt: skip
PROFILE = {
    "sys/firmware/acpi/platform_profile": "balanced",
    "sys/firmware/acpi/platform_profile_choices": "low-power balanced performance",
}


def rapl(
    package: int = 10_000_000, core: int = 4_000_000, dram: int = 2_000_000
) -> dict[str, str]:  # fmt: skip
    top = 262_143_328_850
    return {
        **under(f"{RAPL}/intel-rapl:0", name="package-0", energy_uj=package,
                max_energy_range_uj=top),
        **under(f"{RAPL}/intel-rapl:0:0", name="core", energy_uj=core, max_energy_range_uj=top),
        **under(f"{RAPL}/intel-rapl:0:1", name="dram", energy_uj=dram,
                max_energy_range_uj=65_712_999_613),
        # The same package once more, by memory-mapped registers.
        **under(f"{RAPL}/intel-rapl-mmio:0", name="package-0", energy_uj=package,
                max_energy_range_uj=top),
    }  # fmt: skip


THINKPAD = {**THINKPAD_BATTERY, **mains(online=0), **MOUSE, **THINKPAD_HEAT, **PROFILE, **rapl()}

DUAL = {
    **mains(online=0),
    **under(f"{SUPPLY}/BAT0", type="Battery", present=1, status="Unknown",
            energy_full=22_000_000, energy_now=21_000_000, power_now=0, capacity=95),
    **under(f"{SUPPLY}/BAT1", type="Battery", present=1, status="Discharging",
            energy_full=66_000_000, energy_now=11_000_000, power_now=8_700_000, capacity=16),
}  # fmt: skip
"""A laptop with an inner battery and an outer one: one is drained while the other waits."""

ASAHI = {
    **under(f"{SUPPLY}/macsmc-ac", type="Mains", online=0),
    **under(f"{SUPPLY}/macsmc-battery", type="Battery", present=1, status="Discharging",
            capacity=83, voltage_now=12_034_000, current_now=-512_000, power_now=-6_161_408,
            charge_full=6_075_000, charge_now=5_042_000),
    **under("sys/class/hwmon/hwmon1", name="macsmc_hwmon", power1_input=6_161_408,
            power1_label="Total System Power"),
}  # fmt: skip

DELL = {
    **mains(online=0),
    **under(f"{SUPPLY}/BAT0", type="Battery", present=1, status="Discharging", capacity=63,
            charge_full=7_890_000, charge_now=4_971_000, voltage_now=12_260_000,
            current_now=803_000),
}  # fmt: skip
"""No power_now: volts times amperes."""

DESKTOP = {
    **under("sys/class/hwmon/hwmon2", name="k10temp", temp1_input=48250, temp1_label="Tctl"),
    **rapl(package=900_000_000),
}

ORIN_NANO = {
    "proc/device-tree/model": "NVIDIA Jetson Orin Nano Developer Kit\0",
    **under("sys/class/hwmon/hwmon1", name="ina3221",
            in1_label="VDD_IN", in1_input=5000, curr1_input=1312,
            in2_label="VDD_CPU_GPU_CV", in2_input=4992, curr2_input=480,
            in3_label="VDD_SOC", in3_input=4992, curr3_input=296,
            in7_label="sum of shunt voltages", in7_input=2),
    **under("sys/class/thermal/thermal_zone0", type="cpu-thermal", temp=52843,
            trip_point_0_type="critical", trip_point_0_temp=104500,
            trip_point_1_type="passive", trip_point_1_temp=99000),
    **under("sys/class/thermal/thermal_zone1", type="gpu-thermal", temp=91500,
            trip_point_0_type="passive", trip_point_0_temp=99000,
            trip_point_1_type="active", trip_point_1_temp=35000),
    **under("sys/class/thermal/thermal_zone2", type="cv0-thermal"),
}  # fmt: skip

AGX_ORIN = {
    **under("sys/class/hwmon/hwmon3", name="ina3221",
            in1_label="VDD_GPU_SOC", in1_input=19000, curr1_input=400,
            in2_label="VDD_CPU_CV", in2_input=19000, curr2_input=100,
            in3_label="VIN_SYS_5V0", in3_input=5000, curr3_input=900),
    **under("sys/class/hwmon/hwmon4", name="ina3221",
            in1_label="NC", in1_input=0, curr1_input=0,
            in2_label="VDDQ_VDD2_1V8AO", in2_input=5000, curr2_input=100),
}  # fmt: skip

RASPBERRY = {
    "proc/device-tree/model": "Raspberry Pi 5 Model B Rev 1.0\0",
    "sys/devices/platform/soc/soc:firmware/get_throttled": "50000",
    **under("sys/class/thermal/thermal_zone0", type="cpu-thermal", temp=67250,
            trip_point_0_type="critical", trip_point_0_temp=110000),
}  # fmt: skip

PMSET_BATT = """Now drawing from 'Battery Power'
 -InternalBattery-0 (id=23068771)\t83%; discharging; 4:12 remaining present: true
"""
PMSET_AC = """Now drawing from 'AC Power'
 -InternalBattery-0 (id=23068771)\t95%; charging; 0:31 remaining present: true
"""
IOREG = """+-o AppleSmartBattery  <class AppleSmartBattery, id 0x1000004c2>
    {
      "ExternalConnected" = No
      "InstantAmperage" = 18446744073709551104
      "Voltage" = 12034
      "CurrentCapacity" = 83
    }
"""
PMSET = """System-wide power settings:
Currently in use:
 lowpowermode         1
 sleep                1 (sleep prevented by powerd)
"""
PMSET_THERM = """Note: No thermal warning level has been recorded
CPU_Power notify
\tCPU_Scheduler_Limit \t= 100
\tCPU_Available_CPUs \t= 8
\tCPU_Speed_Limit \t= 72
"""
POWERMETRICS = """*** Sampled system activity (201.43ms elapsed) ***
**** Processor usage ****
CPU Power: 2893 mW
GPU Power: 312 mW
ANE Power: 0 mW
Combined Power (CPU + GPU + ANE): 3205 mW
"""
