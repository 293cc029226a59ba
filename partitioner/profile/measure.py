"""Times of passes on a real engine, robust on a machine that others use too.

Cells take turns, round by round, so that what else the machine does meets all of them, and
the lower quartile over the rounds stands for each. Where the kernel counts it, the time that
the calling thread stood in the queue for a core is taken off (`/proc/thread-self/schedstat`,
second field, nanoseconds): it belongs to others' load. Being stopped or slowed is not queueing
and stays in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from outrider.engine import Engine, Span
from outrider.partitioner.profile.cells import Cell, Sample

Clock = Callable[[], float]
"""Seconds."""

LEAST_ROUNDS, MOST_ROUNDS = 5, 40
STRETCHES = 5
CHUNK = 256
"""Rows of the passes that fill a slot up to a context."""
_TRIES = 8
_SCHEDSTAT = Path("/proc/thread-self/schedstat")


def queued_s() -> float:
    """Seconds that this thread has waited for a core; 0 where the kernel does not say."""
    try:
        return int(_SCHEDSTAT.read_text().split()[1]) / 1e9
    except (OSError, IndexError, ValueError):
        return 0.0


@dataclass(frozen=True, slots=True)
class Watch:
    """A clock that stands still while others have the core."""

    clock: Clock
    queued: Clock = queued_s

    def now(self) -> float:
        """Both are read as of one moment: a thread that waits between the reads reads again."""
        before, at, after = self.queued(), self.clock(), self.queued()
        for _ in range(_TRIES):
            if before == after:
                break
            before, at, after = after, self.clock(), self.queued()
        return at - after


@dataclass(slots=True)
class Bench:
    """An engine with one slot for each context."""

    engine: Engine
    watch: Watch
    slots: dict[int, int] = field(default_factory=dict)

    def fill(self, contexts: Sequence[int]) -> None:
        """A slot of each length."""
        for context in contexts:
            slot = self.engine.open()
            for base in range(0, context, CHUNK):
                rows = min(CHUNK, context - base)
                self.engine.extend([Span(slot, base, ids(rows), first=rows - 1)])
            self.slots[context] = slot

    def once(self, cell: Cell) -> float:
        """Seconds of one pass; the next one of its slot cuts it off again."""
        first = 0 if cell.head == "all" else cell.rows - 1
        span = Span(self.slots[cell.context], cell.context, ids(cell.rows), first=first)
        began = self.watch.now()
        self.engine.extend([span])
        return max(self.watch.now() - began, 1e-9)


def ids(count: int) -> tuple[int, ...]:
    """Token ids within any vocabulary."""
    return tuple(1 + i % 250 for i in range(count))


def measure(
    engine: Engine, cells: Sequence[Cell], *, budget_s: float, watch: Watch
) -> tuple[Sample, ...]:
    """Each cell's time; rounds go on for about `budget_s` seconds of wall clock."""
    bench = Bench(engine, watch)
    bench.fill(sorted({cell.context for cell in cells}))
    for cell in cells:
        bench.once(cell)
    taken: dict[Cell, list[float]] = {cell: [] for cell in cells}
    for _ in rounds(budget_s, watch.clock):
        for cell in cells:
            taken[cell].append(bench.once(cell))
    return tuple(Sample(cell, quartile(times), len(times)) for cell, times in taken.items())


def rounds(budget_s: float, clock: Clock) -> Iterator[int]:
    """At least `LEAST_ROUNDS`, at most `MOST_ROUNDS`."""
    began = clock()
    for number in range(MOST_ROUNDS):
        if number >= LEAST_ROUNDS and clock() - began >= budget_s:
            return
        yield number


def quartile(times: Sequence[float]) -> float:
    """The lower one: disturbances only ever add."""
    return sorted(times)[(len(times) - 1) // 4]


def sustained(
    engine: Engine, cells: Sequence[Cell], *, span_s: float, watch: Watch
) -> tuple[Sample, ...]:
    """Passes as they come out over `span_s` each: pauses that a throttle makes count."""
    bench = Bench(engine, watch)
    bench.fill(sorted({cell.context for cell in cells}))
    return tuple(_sustained(bench, cell, span_s) for cell in cells)


def _sustained(bench: Bench, cell: Cell, span_s: float) -> Sample:
    """The median of a few stretches, each long enough for a throttle's pauses to even out."""
    bench.once(cell)
    stretches = [_stretch(bench, cell, span_s / STRETCHES) for _ in range(STRETCHES)]
    seconds = sorted(seconds for seconds, _ in stretches)[STRETCHES // 2]
    return Sample(cell, seconds, sum(passes for _, passes in stretches))


def _stretch(bench: Bench, cell: Cell, span_s: float) -> tuple[float, int]:
    """Seconds a pass, pauses between passes included; and how many passes."""
    watch = bench.watch
    began, start, passes = watch.clock(), watch.now(), 0
    while not passes or watch.clock() - began < span_s:
        bench.once(cell)
        passes += 1
    return (watch.now() - start) / passes, passes
