"""Readers as one: which watts are shown, by which counter requests are accounted, what breaks."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pytest

from outrider.partitioner.power import battery, ina3221, rapl, thermal
from outrider.partitioner.power.meter import RETRY_S, Meter
from outrider.partitioner.power.reading import Absent, Draw, Heat, Reading, SensorError
from outrider.partitioner.power.share import STAT, Share
from tests.partitioner.power import trees


@dataclass
class Scripted:
    """Gives its readings one after the other; the last stays."""

    readings: list[Reading | SensorError]
    name: str = "scripted"
    calls: int = 0

    def read(self) -> Reading:
        found = self.readings[min(self.calls, len(self.readings) - 1)]
        self.calls += 1
        if isinstance(found, SensorError):
            raise found
        return found


def draws(*found: Draw) -> Reading:
    return Reading(draws=found)


def test_a_thinkpad_shows_the_battery_and_accounts_by_the_processor(tmp_path: Path) -> None:
    tree = trees.plant(tmp_path, trees.THINKPAD)
    found = [battery.find(tree), rapl.find(tree), thermal.find(tree)]
    meter = Meter([one for one in found if not isinstance(one, Absent)])
    meter.poll(0.0)
    trees.plant(tmp_path, trees.rapl(package=22_000_000, dram=4_000_000))
    poll = meter.poll(2.0)
    assert poll.state.supply == "battery"
    assert poll.state.watts == pytest.approx(11.312)
    assert (poll.state.watts_kind, poll.state.watts_source) == ("measured", "BAT0")
    assert (poll.state.zone, poll.state.limit_c) == ("x86_pkg_temp", 95.0)
    assert poll.counted is not None
    assert poll.counted.source == "rapl package-0 + rapl dram-0"
    assert poll.counted.joules == pytest.approx(14.0)
    rated = {draw.source: watts for draw, watts in poll.watts}
    assert rated["rapl package-0"] == pytest.approx(6.0)


def test_a_jetson_is_accounted_by_its_input_rail(tmp_path: Path) -> None:
    tree = trees.plant(tmp_path, trees.ORIN_NANO)
    reader = ina3221.find(tree)
    assert not isinstance(reader, Absent)
    meter = Meter([reader])
    meter.poll(0.0)
    (tmp_path / "sys/class/hwmon/hwmon1/curr1_input").write_text("2312\n")
    poll = meter.poll(2.0)
    assert poll.counted is not None
    assert poll.counted.joules == pytest.approx((6.56 + 11.56) / 2 * 2.0), "between two samples"
    assert poll.state.watts == pytest.approx(11.56)


def test_a_slow_battery_accounts_only_where_nothing_else_does() -> None:
    slow = Draw("BAT0", "device", watts=10.0, slow=True)
    alone = Meter([Scripted([draws(slow)])]).poll(0.0)
    assert alone.counted is not None
    assert alone.counted.source == "BAT0"
    part = Draw("rapl package-0", "part", joules=1.0, of="cpu")
    both = Meter([Scripted([draws(slow, part)])]).poll(0.0)
    assert both.counted is not None
    assert both.counted.source == "rapl package-0"


def test_a_gpu_alone_does_not_account_for_drafts_on_the_processor() -> None:
    gpu = draws(Draw("nvml gpu0", "part", joules=5.0, of="gpu"))
    assert Meter([Scripted([gpu])]).poll(0.0).counted is None
    assert Meter([Scripted([gpu])], drafts_on="gpu").poll(0.0).counted is not None


def test_inner_draws_are_not_counted_twice() -> None:
    found = draws(
        Draw("rapl package-0", "part", watts=6.0, of="cpu"),
        Draw("rapl core-0", "inner", watts=4.0, of="cpu"),
    )
    assert Meter([Scripted([found])]).poll(0.0).state.watts == 6.0


def test_a_broken_reader_is_named_once_and_left_out() -> None:
    broken = Scripted([SensorError("/sys/x can not be read")])
    sound = Scripted([Reading(heats=(Heat("cpu", 50.0, 90.0),))], name="sound")
    meter = Meter([broken, sound])
    first = meter.poll(0.0)
    assert [problem.what for problem in first.problems] == ["/sys/x can not be read"]
    assert first.state.temperature_c == 50.0, "the others go on"
    later = [meter.poll(at) for at in (1.0, 2.0, RETRY_S - 1)]
    assert not any(poll.problems for poll in later)
    assert broken.calls == 1, "it is left alone"
    assert meter.poll(RETRY_S + 1).problems == (), "tried again, and not named again"
    assert broken.calls == 2


def test_a_counter_that_fell_adds_nothing() -> None:
    readings: list[Reading | SensorError] = [
        draws(Draw("c", "part", joules=value, of="cpu")) for value in (100.0, 5.0, 9.0)
    ]
    meter = Meter([Scripted(readings)])
    joules = [poll.counted.joules for at in range(3) if (poll := meter.poll(float(at))).counted]
    assert joules == [0.0, 0.0, 4.0]


def test_the_zone_nearest_to_its_limit_is_shown() -> None:
    heats = (Heat("battery", 99.0), Heat("cpu", 70.0, 95.0), Heat("gpu", 65.0, 80.0))
    state = Meter([Scripted([Reading(heats=heats)])]).poll(0.0).state
    assert (state.zone, state.temperature_c, state.limit_c) == ("gpu", 65.0, 80.0)


def test_nothing_at_all() -> None:
    poll = Meter([]).poll(3.0)
    assert poll.state.at_s == 3.0
    assert (poll.state.watts, poll.state.watts_kind, poll.counted) == (None, "none", None)


# --- the share of this process -----------------------------------------------------------------


@dataclass
class Own:
    seconds: list[float] = field(default_factory=list)

    def __call__(self) -> float:
        return self.seconds.pop(0)


def stat(busy: int, idle: int) -> dict[str, str]:
    return {STAT: f"cpu  {busy} 0 0 {idle} 70 0 0 0 0 0\ncpu0 1 2 3"}


def test_the_share_of_the_processors_work(tmp_path: Path) -> None:
    share = Share(trees.plant(tmp_path, stat(1000, 9)), Own([1.0, 2.0, 9.0]))
    assert share.since_last() == 1.0, "nothing to compare with yet"
    trees.plant(tmp_path, stat(1400, 99))
    assert share.since_last() == pytest.approx(0.25)
    trees.plant(tmp_path, stat(1500, 99))
    assert share.since_last() == 1.0, "clocks differ a little: never above 1"


def test_a_machine_that_does_not_tell(tmp_path: Path) -> None:
    assert Share(trees.plant(tmp_path, {STAT: "nothing"}), Own([1.0])).since_last() == 1.0
