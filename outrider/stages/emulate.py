"""A device that is not there: less memory than this machine has, and a slower processor.

The computing is real and so are its results; only how long it takes, and how much fits, are a
weaker device's. A pass that took this processor t seconds takes the device t / speed: the rest
is waited out without holding a core, so that several emulated devices can overlap on two cores
as they would with a processor each. docs/stages.md says what that leaves out.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from outrider.errors import ConfigError, EngineFull

T = TypeVar("T")


class Clock(Protocol):
    """Where seconds come from; tests bring their own."""

    def wall(self) -> float:
        """Monotonic."""
        ...

    def busy(self) -> float:
        """What the calling thread has spent on a processor."""
        ...

    def wait(self, stopped: threading.Event, until: float) -> None:
        """Until that moment of `wall`, or until stopped."""
        ...


class RealClock:
    """This machine's."""

    def wall(self) -> float:
        return time.monotonic()

    def busy(self) -> float:
        return time.thread_time()

    def wait(self, stopped: threading.Event, until: float) -> None:
        while (left := until - time.monotonic()) > 0 and not stopped.is_set():
            stopped.wait(left)


@dataclass(slots=True)
class Processor:
    """What a worker computes with. One thing at a time, as a phone does, however many stages.

    `speed` 1 is this machine as it is. Below it, time counts by the thread's processor time
    where that is all that is spent (`threads` 1), so that company on this machine's cores
    does not make the emulated device slower; else by the wall. Raises ConfigError.
    """

    speed: float = 1.0
    threads: int | None = 1
    clock: Clock = field(default_factory=RealClock)
    stopped: threading.Event = field(default_factory=threading.Event)
    """Set, nobody waits any more."""
    _turn: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        if not 0.0 < self.speed <= 1.0:
            raise ConfigError(
                f"a speed of {self.speed:g} can not be emulated",
                why="waiting makes a device slower, nothing makes it faster",
                todo="give a speed above 0, at most 1",
            )

    def run(self, work: Callable[[], T]) -> tuple[T, float]:
        """Its result, and the seconds that it took the device. Work that fails is not slowed."""
        with self._turn:
            began, busy = self.clock.wall(), self.clock.busy()
            result = work()
            spent = self._spent(began, busy)
            if self.speed < 1.0:
                self.clock.wait(self.stopped, began + spent / self.speed)
            return result, self.clock.wall() - began

    def _spent(self, began: float, busy: float) -> float:
        if self.threads == 1:
            return self.clock.busy() - busy
        return self.clock.wall() - began

    def stop(self) -> None:
        self.stopped.set()


@dataclass(slots=True)
class Memory:
    """What stages may claim, in bytes: weights and KV. None bounds nothing. Thread-safe."""

    limit: int | None = None
    claimed: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def claim(self, size: int, what: str) -> None:
        """Raises EngineFull naming how much is missing; then nothing is claimed."""
        with self._lock:
            self.check(size, what)
            self.claimed += size

    def release(self, size: int) -> None:
        with self._lock:
            self.claimed -= size

    def missing(self, size: int) -> int:
        """Bytes by which it does not fit; 0 when it does."""
        if self.limit is None:
            return 0
        return max(0, self.claimed + size - self.limit)

    def check(self, size: int, what: str, spare: int = 0) -> None:
        """Raises EngineFull where it would not fit even with `spare` bytes given up."""
        missing = self.missing(size) - spare
        if missing <= 0:
            return
        raise EngineFull(
            f"{what} does not fit this device: {spell(missing)} are missing",
            why=f"it needs {spell(size)}; of {spell(self.limit or 0)}, "
            f"{spell(self.claimed - spare)} are taken",
            effect="nothing was loaded",
            todo=f"fewer layers, slots or context, or a device with {spell(missing)} more",
        )


_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def spell(size: int) -> str:
    """Bytes for people, in powers of 1024; exact below 10 KiB."""
    unit = next((name for name in ("G", "M", "K") if size >= 10 * _UNITS[name]), "")
    return f"{size / _UNITS[unit]:.1f} {unit}iB" if unit else f"{size} B"


def parse_size(text: str) -> int:
    """`512M`, `1.5G`, `1073741824`: bytes, units of 1024. Raises ConfigError."""
    number, unit = text.strip().upper().removesuffix("IB").removesuffix("B"), ""
    if number and number[-1] in "KMGT":
        number, unit = number[:-1], number[-1]
    try:
        size = float(number) * _UNITS[unit]
    except ValueError:
        size = 0.0
    if not 1.0 <= size < 1 << 60:
        raise ConfigError(f"{text!r} is no amount of memory", todo="write it as 512M or 1.5G")
    return int(size)
