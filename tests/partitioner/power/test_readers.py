"""Every reader on the trees of real machines, and on broken ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from outrider.partitioner.power import (
    battery,
    ina3221,
    macos,
    nvml,
    profile,
    rapl,
    thermal,
)
from outrider.partitioner.power.machine import Machine
from outrider.partitioner.power.reading import Absent, Draw, Heat, Reading, SensorError
from tests.partitioner.power import trees


def read(found: Any) -> Reading:
    assert not isinstance(found, Absent)
    reading: Reading = found.read()
    return reading


# --- battery -----------------------------------------------------------------------------------


def test_a_thinkpad_on_battery(tmp_path: Path) -> None:
    found = read(battery.find(trees.plant(tmp_path, trees.THINKPAD)))
    assert found.charge is not None
    assert found.charge.supply == "battery"
    assert found.charge.battery == pytest.approx(19.77 / 48.21)
    assert found.charge.charging is False
    (draw,) = found.draws
    assert (draw.source, draw.scope, draw.slow) == ("BAT0", "device", True)
    assert draw.watts == pytest.approx(11.312)
    assert not found.problems


def test_a_charging_battery_says_nothing_of_what_the_device_draws(tmp_path: Path) -> None:
    tree = trees.plant(tmp_path, trees.THINKPAD, trees.mains(online=1))
    (tmp_path / trees.SUPPLY / "BAT0/status").write_text("Charging\n")
    found = read(battery.find(tree))
    assert found.charge is not None
    assert (found.charge.supply, found.charge.charging) == ("ac", True)
    assert found.draws == ()


def test_a_mouse_is_not_our_battery(tmp_path: Path) -> None:
    found = read(battery.find(trees.plant(tmp_path, trees.MOUSE, trees.mains())))
    assert found.charge is not None
    assert (found.charge.supply, found.charge.battery) == ("ac", None)


def test_two_batteries_count_by_what_they_hold(tmp_path: Path) -> None:
    found = read(battery.find(trees.plant(tmp_path, trees.DUAL)))
    assert found.charge is not None
    assert found.charge.battery == pytest.approx(32 / 88)
    assert found.draws == (Draw("BAT1", "device", watts=8.7, slow=True),)


def test_a_macbook_under_linux_draws_a_negative_current(tmp_path: Path) -> None:
    found = read(battery.find(trees.plant(tmp_path, trees.ASAHI)))
    assert found.charge is not None
    assert found.charge.battery == pytest.approx(5042 / 6075)
    assert found.draws[0].watts == pytest.approx(6.161408)


def test_volts_times_amperes_where_there_is_no_power(tmp_path: Path) -> None:
    found = read(battery.find(trees.plant(tmp_path, trees.DELL)))
    assert found.draws[0].watts == pytest.approx(12.26 * 0.803)


@pytest.mark.parametrize("text", ["garbage", "", "nan", "-7", "1e30", "\x00\xff"])
def test_a_garbage_value_is_left_out_and_named(tmp_path: Path, text: str) -> None:
    tree = trees.plant(tmp_path, trees.THINKPAD)
    (tmp_path / trees.SUPPLY / "BAT0/energy_now").write_text(text)
    found = read(battery.find(tree))
    assert found.charge is not None
    assert found.charge.battery == pytest.approx(0.41), "its capacity is still there"
    (problem,) = found.problems
    assert "BAT0/energy_now" in problem.what
    assert str(tmp_path) not in str(problem)


def test_a_desktop_has_no_battery(tmp_path: Path) -> None:
    found = battery.find(trees.plant(tmp_path, trees.DESKTOP))
    assert isinstance(found, Absent)
    assert found.looked == "/sys/class/power_supply"


# --- rapl --------------------------------------------------------------------------------------


def joules(reading: Reading) -> dict[str, float]:
    return {draw.source: draw.joules for draw in reading.draws if draw.joules is not None}


def test_package_and_memory_add_up_and_cores_lie_within(tmp_path: Path) -> None:
    reader = rapl.find(trees.plant(tmp_path, trees.rapl()))
    read(reader)
    trees.plant(tmp_path, trees.rapl(package=13_500_000, core=6_000_000, dram=2_250_000))
    found = read(reader)
    assert joules(found) == pytest.approx(
        {"rapl package-0": 3.5, "rapl core-0": 2.0, "rapl dram-0": 0.25}
    )
    assert [draw.scope for draw in found.draws] == ["part", "inner", "part"]


def test_a_counter_wraps_at_its_range(tmp_path: Path) -> None:
    top = 262_143_328_850
    reader = rapl.find(trees.plant(tmp_path, trees.rapl(package=top - 1_000_000)))
    read(reader)
    trees.plant(tmp_path, trees.rapl(package=2_000_000))
    assert joules(read(reader))["rapl package-0"] == pytest.approx(3.0)


def test_a_platform_counter_is_the_whole_device(tmp_path: Path) -> None:
    psys = trees.under(
        f"{trees.RAPL}/intel-rapl:1", name="psys", energy_uj=5, max_energy_range_uj=10**11
    )
    found = read(rapl.find(trees.plant(tmp_path, trees.rapl(), psys)))
    assert [(d.source, d.scope) for d in found.draws][-1] == ("rapl psys", "device")


def test_permission_denied_is_one_clear_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = trees.plant(tmp_path, trees.rapl())
    real = Path.open

    def guarded(self: Path, *args: Any, **named: Any) -> Any:
        if self.name == "energy_uj":
            raise PermissionError(13, "Permission denied")
        return real(self, *args, **named)

    monkeypatch.setattr(Path, "open", guarded)
    reader = rapl.find(tree)
    assert not isinstance(reader, Absent)
    with pytest.raises(SensorError) as caught:
        reader.read()
    assert caught.value.what == "/sys/class/powercap/intel-rapl:0/energy_uj can not be read"
    assert "udev" in caught.value.todo


def test_a_container_has_no_counters(tmp_path: Path) -> None:
    assert isinstance(rapl.find(trees.plant(tmp_path, trees.RASPBERRY)), Absent)


# --- ina3221 -----------------------------------------------------------------------------------


def test_the_input_rail_of_a_jetson_is_the_whole_module(tmp_path: Path) -> None:
    found = read(ina3221.find(trees.plant(tmp_path, trees.ORIN_NANO)))
    assert [(d.source, d.scope) for d in found.draws] == [
        ("ina3221 VDD_IN", "device"),
        ("ina3221 VDD_CPU_GPU_CV", "inner"),
        ("ina3221 VDD_SOC", "inner"),
    ]
    assert found.draws[0].watts == pytest.approx(6.56)


def test_the_rails_of_an_agx_add_up(tmp_path: Path) -> None:
    found = read(ina3221.find(trees.plant(tmp_path, trees.AGX_ORIN)))
    parts = [draw.watts or 0.0 for draw in found.draws if draw.scope == "part"]
    assert sum(parts) == pytest.approx(7.6 + 1.9 + 4.5)


def test_a_garbage_rail_is_left_out(tmp_path: Path) -> None:
    tree = trees.plant(tmp_path, trees.ORIN_NANO)
    (tmp_path / "sys/class/hwmon/hwmon1/curr3_input").write_text("oops")
    found = read(ina3221.find(tree))
    assert len(found.draws) == 2
    assert "curr3_input" in found.problems[0].what


# --- thermal -----------------------------------------------------------------------------------


def test_zones_and_their_limits(tmp_path: Path) -> None:
    found = read(thermal.find(trees.plant(tmp_path, trees.THINKPAD)))
    assert found.heats == (
        Heat("acpitz", 54.0, 118.0),
        Heat("x86_pkg_temp", 61.0, 95.0),
        Heat("coretemp", 62.0, 100.0),
    )


def test_a_raspberry_throttles_at_80_though_its_trip_point_says_110(tmp_path: Path) -> None:
    tree = trees.plant(tmp_path, trees.RASPBERRY)
    found = read(thermal.find(tree))
    assert found.heats == (Heat("cpu-thermal", 67.25, 80.0),)
    assert found.throttled is False, "0x50000 tells of the past"
    (tmp_path / thermal.PI_THROTTLED).write_text("50005\n")
    assert read(thermal.find(tree)).throttled is True


def test_nonsense_temperatures_are_no_temperatures(tmp_path: Path) -> None:
    tree = trees.plant(tmp_path, trees.ORIN_NANO)
    (tmp_path / "sys/class/thermal/thermal_zone0/temp").write_text("-274000\n")
    assert [heat.source for heat in read(thermal.find(tree)).heats] == ["gpu-thermal"]


def test_a_core_sensor_without_a_limit(tmp_path: Path) -> None:
    found = read(thermal.find(trees.plant(tmp_path, trees.DESKTOP)))
    assert found.heats == (Heat("k10temp", 48.25, None),)


# --- profile -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [("low-power", "low-power"), ("quiet", "low-power"), ("balanced", "balanced"), ("?", None)],
)
def test_profiles(tmp_path: Path, text: str, expected: str | None) -> None:
    tree = trees.plant(tmp_path, {profile.PLACE: text})
    assert read(profile.find(tree)).profile == expected


# --- macOS -------------------------------------------------------------------------------------


def mac(**outputs: str) -> Callable[[Sequence[str]], str]:
    def run(words: Sequence[str]) -> str:
        key = "_".join(word.strip("-") for word in words)
        for name, text in outputs.items():
            if key == name or (name == "powermetrics" and words[0] == name):
                return text
        raise OSError(2, "no such tool")

    return run


MAC = {"pmset_g_therm": trees.PMSET_THERM, "pmset_g": trees.PMSET}


def test_a_mac_on_battery() -> None:
    run = mac(pmset_g_batt=trees.PMSET_BATT, ioreg_r_n_AppleSmartBattery=trees.IOREG, **MAC)
    found = read(macos.find(run))
    assert found.charge is not None
    assert (found.charge.supply, found.charge.battery) == ("battery", 0.83)
    assert found.charge.charging is False
    assert found.draws[0].watts == pytest.approx(0.512 * 12.034)
    assert (found.profile, found.throttled) == ("low-power", True)


def test_a_mac_at_the_mains() -> None:
    found = read(macos.find(mac(pmset_g_batt=trees.PMSET_AC, **MAC)))
    assert found.charge is not None
    assert (found.charge.supply, found.charge.charging) == ("ac", True)
    assert found.draws == ()


def test_powermetrics_is_for_root() -> None:
    run = mac(powermetrics=trees.POWERMETRICS)
    assert isinstance(macos.find_powermetrics(run, 501), Absent)
    found = read(macos.find_powermetrics(run, 0))
    assert found.draws[0].watts == pytest.approx(3.205)


def test_powermetrics_in_another_form_is_an_error() -> None:
    reader = macos.find_powermetrics(mac(powermetrics="something else"), 0)
    with pytest.raises(SensorError, match="names no power"):
        read(reader)


@pytest.mark.parametrize("text", ["", "Now drawing from", "999%; charging; (no estimate)"])
def test_garbage_of_pmset_is_unknown(text: str) -> None:
    charge = macos.parse_batt(text)
    assert (charge.supply, charge.battery) == ("unknown", None)


def test_no_mac_tools() -> None:
    assert isinstance(macos.find(mac()), Absent)


# --- NVML --------------------------------------------------------------------------------------


class NVMLError(Exception):
    """As pynvml's."""


def fake_nvml(**functions: Any) -> ModuleType:
    def refuse(*_: object) -> Any:
        raise NVMLError

    given: dict[str, Any] = {
        "nvmlInit": lambda: None,
        "nvmlDeviceGetCount": lambda: 1,
        "nvmlDeviceGetHandleByIndex": lambda i: f"gpu{i}",
        "nvmlDeviceGetTotalEnergyConsumption": lambda handle: 123_456,
        "nvmlDeviceGetPowerUsage": lambda handle: 71_000,
        "nvmlDeviceGetTemperature": lambda handle, kind: 44,
        "nvmlDeviceGetTemperatureThreshold": refuse,
        "NVML_TEMPERATURE_GPU": 0,
        "NVML_TEMPERATURE_THRESHOLD_SLOWDOWN": 1,
        "NVMLError": NVMLError,
        **functions,
    }
    return SimpleNamespace(**given)  # type: ignore[return-value]


def refuse(*_: object) -> Any:
    raise NVMLError


def test_a_gpu_counts_its_joules() -> None:
    found = read(nvml.find(lambda name: fake_nvml()))
    assert found.draws == (Draw("nvml gpu0", "part", joules=123.456, of="gpu"),)
    assert found.heats == (Heat("gpu0", 44.0, None),)


def test_an_old_gpu_tells_watts() -> None:
    library = fake_nvml(nvmlDeviceGetTotalEnergyConsumption=refuse)
    found = read(nvml.find(lambda name: library))
    assert found.draws == (Draw("nvml gpu0", "part", watts=71.0, of="gpu"),)


def test_a_gpu_that_tells_nothing_is_an_error() -> None:
    library = fake_nvml(nvmlDeviceGetTotalEnergyConsumption=refuse, nvmlDeviceGetPowerUsage=refuse)
    with pytest.raises(SensorError, match="neither energy nor power"):
        read(nvml.find(lambda name: library))


def test_no_bindings_and_no_driver_are_told_apart() -> None:
    def missing(name: str) -> ModuleType:
        raise ModuleNotFoundError(name)

    absent = nvml.find(missing)
    assert isinstance(absent, Absent)
    assert "outrider[nvml]" in absent.why
    silent = nvml.find(lambda name: fake_nvml(nvmlInit=refuse))
    assert isinstance(silent, Absent)
    assert "driver" in silent.why


# --- machines ----------------------------------------------------------------------------------


def machine(root: Path, *files: trees.Files, platform: str = "linux") -> Machine:
    def missing(name: str) -> ModuleType:
        raise ModuleNotFoundError(name)

    return Machine(trees.plant(root, *files), mac(), platform, 1000, missing)


@pytest.mark.parametrize(
    ("files", "kind", "readers"),
    [
        (trees.THINKPAD, "laptop", ["battery", "rapl", "thermal", "profile"]),
        (trees.DESKTOP, "desktop", ["rapl", "thermal"]),
        (trees.ORIN_NANO, "jetson", ["ina3221", "thermal"]),
        (trees.RASPBERRY, "board", ["thermal"]),
    ],
)
def test_what_a_machine_has(
    tmp_path: Path, files: trees.Files, kind: str, readers: list[str]
) -> None:
    found = machine(tmp_path, files)
    assert found.kind() == kind
    meter = found.meter()
    assert [reader.name for reader in meter.readers] == readers
    names = {reader.name for reader in meter.readers} | {one.name for one in meter.absent}
    assert names == {"battery", "rapl", "ina3221", "thermal", "profile", "nvml"}


ROUTE = "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT"


def route(*interfaces: tuple[str, int]) -> dict[str, str]:
    lines = [
        f"{name}\t00000000\t0101A8C0\t0003\t0\t0\t{m}\t00000000\t0\t0\t0" for name, m in interfaces
    ]
    return {
        "proc/net/route": "\n".join(
            [ROUTE, "lo\t0000007F\t00000000\t1\t0\t0\t0\t0\t0\t0\t0", *lines]
        )
    }


@pytest.mark.parametrize(
    ("files", "kind"),
    [
        ([route(("wlp2s0", 600)), {"sys/class/net/wlp2s0/uevent": "DEVTYPE=wlan"}], "wifi"),
        ([route(("wwan0", 700)), {"sys/class/net/wwan0/uevent": "DEVTYPE=wwan"}], "cellular"),
        ([route(("eth0", 100)), {"sys/class/net/eth0/uevent": "INTERFACE=eth0"}], "ethernet"),
        ([route(("wwan0", 700), ("eth0", 100))], "ethernet"),
        ([route()], "none"),
        ([{}], "none"),
    ],
)  # fmt: skip
def test_what_the_default_route_goes_over(
    tmp_path: Path, files: list[trees.Files], kind: str
) -> None:
    assert machine(tmp_path, *files).radio() == kind
