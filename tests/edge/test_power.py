"""The watcher on machines made of files: what it holds, what it says, what it hands on."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest

from outrider.cli.power import page
from outrider.edge.api.metrics import Metrics
from outrider.edge.power import PowerWatch, accountant
from outrider.options import Address, EdgeOptions
from outrider.partitioner.power.account import Accountant, Costs, Traffic
from outrider.partitioner.power.machine import Machine
from outrider.partitioner.power.sysfs import Tree
from outrider.protocol import events
from outrider.testing.local_edge import LocalEdge
from tests.partitioner.power import trees

AWAY = EdgeOptions(clouds=(Address("cloud.example", 1),), cloud_ca=Path("ca.pem"))


def missing(name: str) -> ModuleType:
    raise ModuleNotFoundError(name)


def silent(words: object) -> str:
    raise OSError(2, "no such tool")


def machine(root: Path, *files: trees.Files) -> Machine:
    return Machine(trees.plant(root, *files), silent, "linux", 1000, missing)


@dataclass
class Bench:
    """A watcher with a clock of its own."""

    watch: PowerWatch
    said: list[events.Event]
    now: float = 0.0

    def look(self, at_s: float) -> None:
        self.now = at_s
        asyncio.run(self.watch.look())


def bench(found: Machine, options: EdgeOptions = AWAY) -> Bench:
    said: list[events.Event] = []
    watch = PowerWatch(
        options, accountant(options, found), said.append, lambda: made.now, machine=found
    )
    made = Bench(watch, said)
    return made


def test_unplugged_with_a_low_battery(tmp_path: Path) -> None:
    found = bench(machine(tmp_path, trees.THINKPAD, trees.mains(online=1)))
    found.look(0.0)
    assert found.watch.bounds.draft == "free"
    trees.plant(tmp_path, trees.mains(online=0))
    (tmp_path / trees.SUPPLY / "BAT0/energy_now").write_text("8000000\n")
    found.look(1.0)
    assert (found.watch.bounds.draft, found.watch.bounds.compute) == ("off", "avoid")
    (said,) = found.said
    assert isinstance(said, events.Decision)
    assert (said.what, said.old, said.new) == ("drafting", "free", "off")
    assert said.reason == "battery 17 % < floor 20 %"
    found.look(2.0)
    assert len(found.said) == 1, "nothing changed"


def test_the_counter_reaches_the_accountant(tmp_path: Path) -> None:
    found = bench(machine(tmp_path, trees.THINKPAD, trees.mains()))
    found.look(0.0)
    trees.plant(tmp_path, trees.rapl(package=20_000_000, dram=2_000_000))
    found.look(10.0)
    energy = found.watch.energy
    assert energy.idle_w == pytest.approx(1.0)
    energy.begin("a", "edge")
    energy.worked("a", 2.0, 10)
    trees.plant(tmp_path, trees.rapl(package=60_000_000, dram=2_000_000))
    found.look(20.0)
    bill = energy.finish("a", Traffic(10))
    assert bill.joules == pytest.approx(30.0)
    assert bill.kind == "measured"
    status = found.watch.status()
    assert status.accounted_by == "rapl package-0 + rapl dram-0"
    assert status.placements[0].joules_per_token == pytest.approx(3.0)


def test_a_sensor_that_may_not_be_read_is_one_trouble(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Path.open

    def guarded(self: Path, *args: object, **named: object) -> object:
        if self.name == "energy_uj":
            raise PermissionError(13, "Permission denied")
        return real(self, *args, **named)  # type: ignore[call-overload]

    found = bench(machine(tmp_path, trees.DESKTOP))
    monkeypatch.setattr(Path, "open", guarded)
    for at in range(5):
        found.look(float(at))
    (said,) = found.said
    assert isinstance(said, events.Trouble)
    assert said.code == "sensor"
    assert "energy_uj can not be read" in said.what
    assert found.watch.state.temperature_c == 48.25, "the others go on"
    assert "energy_uj" in page(found.watch.status())


def test_the_radio_is_looked_at_again(tmp_path: Path) -> None:
    route = "Iface Destination Gateway Flags RefCnt Use Metric Mask\n{} 00000000 1 3 0 0 1 0"
    found = bench(machine(tmp_path, {"proc/net/route": route.format("wwan0")}))
    found.look(0.0)
    assert found.watch.energy.costs.radio.name == "cellular"
    trees.plant(tmp_path, {"proc/net/route": route.format("eth0")})
    found.look(1.0)
    assert found.watch.energy.costs.radio.name == "cellular", "not every second"
    found.look(31.0)
    assert found.watch.energy.costs.radio.name == "none"


def test_a_cloud_on_this_machine_needs_no_radio(tmp_path: Path) -> None:
    found = bench(machine(tmp_path, trees.THINKPAD), EdgeOptions())
    assert found.watch.energy.costs.radio.name == "none"


def test_what_people_and_scrapers_see(tmp_path: Path) -> None:
    found = bench(machine(tmp_path, trees.THINKPAD))
    found.look(0.0)
    trees.plant(tmp_path, trees.rapl(package=16_000_000))
    found.look(1.0)
    text = page(found.watch.status())
    assert "battery, battery 41 %, not charging, profile balanced" in text
    assert "11.3 W, measured (BAT0)" in text
    assert "x86_pkg_temp 61 °C, throttles at 95 °C: 34 °C to go" in text
    assert "shallow: on battery, 41 % < 50 %" in text
    assert "nvml: its bindings are not installed" in text
    metrics = Metrics()
    metrics._set_power(found.watch.status())
    from prometheus_client import generate_latest

    shown = generate_latest(metrics.registry).decode()
    assert 'outrider_power_watts{kind="measured",scope="part",source="rapl package-0"} 6.0' in shown
    assert "outrider_battery_ratio" in shown
    assert "outrider_power_draft_level 1.0" in shown


def test_a_bare_machine_says_what_it_looked_for(tmp_path: Path) -> None:
    found = bench(Machine(Tree(tmp_path), silent, "linux", 1000, missing))
    found.look(0.0)
    text = page(found.watch.status())
    for name in ("battery", "rapl", "ina3221", "thermal", "profile", "nvml"):
        assert f"not found  {name}: " in text
    assert "requests are accounted at estimated watts" in text
    assert found.watch.bounds.draft == "free"


def test_nothing_of_power_leaves_the_page_of_metrics_alone() -> None:
    assert b"outrider_power_watts{" not in Metrics().text(LocalEdge())


def test_costs_of_this_kind_of_machine(tmp_path: Path) -> None:
    board = accountant(AWAY, machine(tmp_path / "pi", trees.RASPBERRY))
    laptop = accountant(AWAY, machine(tmp_path / "laptop", trees.THINKPAD))
    assert board.costs.device_w < laptop.costs.device_w
    assert Accountant(Costs()).costs.device_w == laptop.costs.device_w
