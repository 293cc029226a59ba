"""The process that measures: engines run here one by one, so that none disturbs the next, and a
native library that dies takes nobody with it.

Reads jobs as JSON, one a line, from standard input; answers each with one line: `Answer`.
The cache folder is the job's own, so that synthetic models leave nothing behind.
"""

from __future__ import annotations

import os
import sys
import time

import msgspec

from outrider.engine import Engine, EngineSpec
from outrider.engines import registry
from outrider.errors import OutriderError
from outrider.partitioner.profile.cells import Cell, Sample
from outrider.partitioner.profile.measure import Watch, measure, sustained


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """Load a model and measure it."""

    model: str
    engine: str
    dtype: str
    numerics: str = "exact"
    device: str = "cpu"
    threads: int = 1
    cache: str = ""
    """OUTRIDER_CACHE of the process, for the forms that engines make of a model."""
    cells: tuple[Cell, ...] = ()
    budget_s: float = 1.0
    probes: tuple[Cell, ...] = ()
    """Measured as `sustained` instead."""
    span_s: float = 0.5


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What a job gave, or why it gave nothing."""

    samples: tuple[Sample, ...] = ()
    dtype: str = ""
    device: str = ""
    exact: bool = False
    load_s: float = 0.0
    resident_bytes: int = 0
    error: str = ""


def answer(job: Job) -> Answer:
    if job.cache:
        os.environ["OUTRIDER_CACHE"] = job.cache
    began = time.perf_counter()
    try:
        engine = registry.build(_spec(job))
        load_s = time.perf_counter() - began
        samples = _samples(engine, job)
    except OutriderError as error:
        return Answer(error=f"{error.what}: {error.why}" if error.why else error.what)
    info = engine.info
    engine.shutdown()
    return Answer(
        samples=samples, dtype=info.dtype, device=info.device, exact=info.exact, load_s=load_s
    )


def _samples(engine: Engine, job: Job) -> tuple[Sample, ...]:
    watch = Watch(time.perf_counter)
    if job.cells:
        return measure(engine, job.cells, budget_s=job.budget_s, watch=watch)
    return sustained(engine, job.probes, span_s=job.span_s, watch=watch)


def _spec(job: Job) -> EngineSpec:
    cells = (*job.cells, *job.probes)
    contexts = {cell.context for cell in cells}
    most = max(cell.rows for cell in cells)
    return EngineSpec(
        model=job.model,
        engine=job.engine,
        device=job.device,
        dtype=job.dtype,
        numerics="plain" if job.numerics == "plain" else "exact",
        context=max(contexts) + most + 8,
        max_slots=max(len(contexts), 1),
        max_rows=max(most, 256),
        threads=job.threads,
    )


def main() -> int:
    """Until standard input ends."""
    for line in sys.stdin.buffer:
        found = answer(msgspec.json.decode(line, type=Job))
        sys.stdout.buffer.write(msgspec.json.encode(found) + b"\n")
        sys.stdout.buffer.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
