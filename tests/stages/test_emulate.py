"""Emulated devices: how long passes take, what fits, and that waiting holds no core."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field

import pytest

from outrider.errors import ConfigError, EngineFailed, EngineFull
from outrider.stages.emulate import Memory, Processor, RealClock, parse_size, spell
from outrider.stages.local import LocalChain
from tests.stages.town import PATIENCE_S, ask, ranges, said, toy


@dataclass
class ToldClock:
    """Time that passes when it is told to."""

    now: float = 0.0
    spent: float = 0.0
    waited: list[float] = field(default_factory=list)

    def wall(self) -> float:
        return self.now

    def busy(self) -> float:
        return self.spent

    def wait(self, stopped: threading.Event, until: float) -> None:
        self.waited.append(until)
        self.now = max(self.now, until)

    def work(self, wall: float, busy: float) -> str:
        self.now, self.spent = self.now + wall, self.spent + busy
        return "done"


@pytest.mark.parametrize(
    ("speed", "threads", "wall", "busy", "takes"),
    [
        (1.0, 1, 2.0, 1.0, 2.0),
        (0.5, 1, 1.0, 1.0, 2.0),
        # Company on the cores made it wait: the device would not have.
        (0.5, 1, 3.0, 1.0, 3.0),
        (0.25, 1, 3.0, 1.0, 4.0),
        # Several threads compute, whose time is not this thread's.
        (0.5, 4, 3.0, 0.1, 6.0),
        (0.5, None, 3.0, 0.1, 6.0),
    ],
)
def test_a_pass_takes_as_long_as_on_the_device(
    speed: float, threads: int | None, wall: float, busy: float, takes: float
) -> None:
    clock = ToldClock(now=100.0)
    processor = Processor(speed, threads, clock)
    result, seconds = processor.run(lambda: clock.work(wall, busy))
    assert result == "done" and seconds == pytest.approx(takes)
    assert clock.now == pytest.approx(100.0 + takes)
    assert bool(clock.waited) == (speed < 1.0)


def test_work_that_fails_is_not_slowed_and_frees_the_processor() -> None:
    clock = ToldClock()
    processor = Processor(0.1, 1, clock)

    def broken() -> None:
        clock.work(1.0, 1.0)
        raise EngineFailed("broken")

    with pytest.raises(EngineFailed):
        processor.run(broken)
    assert clock.waited == []
    assert processor.run(lambda: 7)[0] == 7


def test_one_thing_at_a_time() -> None:
    processor = Processor()
    inside, release = threading.Event(), threading.Event()

    def long() -> None:
        inside.set()
        assert release.wait(PATIENCE_S)

    first = threading.Thread(target=lambda: processor.run(long))
    first.start()
    assert inside.wait(PATIENCE_S)
    done = threading.Event()
    second = threading.Thread(target=lambda: processor.run(done.set))
    second.start()
    assert not done.is_set()
    release.set()
    assert done.wait(PATIENCE_S)
    for thread in (first, second):
        thread.join(PATIENCE_S)


def test_the_wait_is_real_holds_no_core_and_ends_when_told() -> None:
    clock, stopped = RealClock(), threading.Event()
    began, busy = clock.wall(), clock.busy()
    clock.wait(stopped, began + 0.05)
    assert clock.wall() - began >= 0.05
    assert clock.busy() - busy < 0.04
    stopped.set()
    clock.wait(stopped, clock.wall() + 1e6)


def test_emulated_devices_overlap() -> None:
    """Two stages that wait 0.1 s a pass: four passes take five turns, not eight."""

    @dataclass
    class Slow(RealClock):
        def wait(self, stopped: threading.Event, until: float) -> None:
            super().wait(stopped, self.wall() + 0.1)

    stages = [toy(f"d{n}", part) for n, part in enumerate(ranges(0, 3, 6))]
    chain = LocalChain(
        [lambda: stages[0], lambda: stages[1]],
        processors=[Processor(0.5, 1, Slow()), Processor(0.5, 1, Slow())],
    )
    chain.open(0)
    began = time.monotonic()
    futures = [ask(chain, 0, n, (n,)) for n in range(4)]
    for future in futures:
        future.result(PATIENCE_S)
    elapsed = time.monotonic() - began
    assert elapsed >= 0.5
    spent = [each.compute_s for each in chain.times()]
    assert all(seconds >= 0.4 for seconds in spent) and elapsed < sum(spent)
    chain.shutdown()


def test_stages_of_one_device_take_turns_and_say_the_same() -> None:
    device = Processor()
    stages = [toy("d", part) for part in ranges(0, 2, 4, 6)]
    chain = LocalChain([lambda s=s: s for s in stages], processors=[device] * 3)  # type: ignore[misc]
    from tests.stages.town import alone

    assert said(chain) == alone()
    chain.shutdown()


@pytest.mark.parametrize("speed", [0.0, -1.0, 1.5, float("nan"), float("inf")])
def test_speeds_that_no_waiting_gives(speed: float) -> None:
    with pytest.raises(ConfigError, match="can not be emulated"):
        Processor(speed)


# --- memory ------------------------------------------------------------------------------------


def test_memory_is_claimed_and_given_back() -> None:
    memory = Memory(1000)
    memory.claim(600, "a")
    with pytest.raises(EngineFull, match="b does not fit this device: 1 B are missing") as found:
        memory.claim(401, "b")
    assert "it needs 401 B; of 1000 B, 600 B are taken" in str(found.value)
    memory.claim(400, "c")
    memory.release(600)
    memory.claim(600, "d")
    assert memory.claimed == 1000


def test_no_limit_bounds_nothing() -> None:
    memory = Memory()
    memory.claim(1 << 60, "a")
    assert memory.missing(1 << 60) == 0


@pytest.mark.parametrize(
    ("text", "size"),
    [("512M", 512 << 20), ("1.5G", 3 << 29), ("100", 100), ("2 kib", 2048), ("1TB", 1 << 40)],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "M", "0", "-1G", "12Q", "nan", "inf", "1e99", "1,5G"])
def test_sizes_that_are_none(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_size(text)


def test_sizes_for_people() -> None:
    assert [spell(n) for n in (5, 20_000, 64 << 20, 16 << 30)] == [
        "5 B", "19.5 KiB", "64.0 MiB", "16.0 GiB",
    ]  # fmt: skip
