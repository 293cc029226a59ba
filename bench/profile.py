"""`bench profile`: predicted against measured latency of passes that no fit has seen.

Per engine and precision a rate is fitted to synthetic models of three shapes, then asked for
other shapes (the bundled target among them), other row counts and other contexts, and for the
same while the device is throttled: the measuring process is stopped and let go in turns, as
`intel_powerclamp` injects idle time into a hot package (Linux only). How much it is throttled is
found by a probe of two reference passes, never told. An error is max(a / b, b / a) - 1, and
`geomean_error` is the geometric mean of a / b over all of these cells, less 1.

`reg_over_roofline`: squared log error of the calibrated model over that of the roofline alone,
with the best rates that were seen. The control fits to the same measurements with their times
shuffled. Links: a cloud behind the shaping proxy, its round trip and bandwidth as estimated
over what the proxy was told.
"""

from __future__ import annotations

import asyncio
import math
import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from bench import harness
from outrider.models import graph as graphs
from outrider.models.source import resolve
from outrider.options import Address
from outrider.partitioner.device import Rate
from outrider.partitioner.graph import ModelGraph
from outrider.partitioner.observe import Estimate
from outrider.partitioner.profile import cells as grids
from outrider.partitioner.profile import device, fit, synthetic
from outrider.partitioner.profile import link as links
from outrider.partitioner.profile.cells import Cell
from outrider.partitioner.profile.child import Child
from outrider.partitioner.profile.fit import Observation, Precision
from outrider.partitioner.profile.synthetic import Form
from outrider.partitioner.profile.worker import Job
from outrider.testing.child import ChildSpec, ReadyFile
from outrider.testing.link import Link
from outrider.testing.proxy_process import ProxyProcess
from outrider.testing.supervisor import Supervisor

PRECISIONS = (Precision("torch", "float32"), Precision("llama", "q8_0"), Precision("onnx", "int8"))
QUICK_PRECISIONS = PRECISIONS[1:]
HELD_OUT: tuple[Form | str, ...] = (
    Form(768, 2048, 5, 12, 4),
    Form(512, 1408, 12, 8, 4),
    "bundled:target",
)
QUICK_HELD_OUT: tuple[Form | str, ...] = (Form(768, 2048, 3, 12, 4), "bundled:target")
BUDGET_S, QUICK_BUDGET_S = 3.5, 0.4
THROTTLED_FORM = Form(896, 2432, 3, 14, 7)
THROTTLED = (Cell(1, 192), Cell(1, 800), Cell(6, 192, "all"), Cell(24, 192), Cell(96, 192))
DUTIES, QUICK_DUTIES = (0.7, 0.4), (0.5,)
"""Shares of the time in which the throttled process runs."""
PERIOD_S = 0.02
SPAN_S, QUICK_SPAN_S = 1.0, 0.4
LINKS = (
    Link.of_rtt(20, up_bits_per_s=20e6, down_bits_per_s=50e6),
    Link.of_rtt(80, up_bits_per_s=5e6, down_bits_per_s=20e6, jitter_ms=4),
    Link.of_rtt(40, up_bits_per_s=10e6, down_bits_per_s=100e6, loss=0.001),
)
BAR = 0.12
_CLOUD = (sys.executable, "-c", "from outrider.cli import main; main()", "cloud")


@dataclass(frozen=True, slots=True)
class Sizes:
    """What a run measures."""

    plan: device.Plan
    precisions: tuple[Precision, ...]
    held_out: tuple[Form | str, ...]
    checked: tuple[Cell, ...]
    duties: tuple[float, ...]
    span_s: float
    links: tuple[Link, ...]
    turns: int


FULL = Sizes(
    replace(device.FULL, held_out=(device.PROBE_FORM,), budget_s=BUDGET_S),
    PRECISIONS,
    HELD_OUT,
    grids.HELD_OUT,
    DUTIES,
    SPAN_S,
    LINKS,
    links.TURNS,
)
QUICK = Sizes(
    replace(device.QUICK, budget_s=QUICK_BUDGET_S),
    QUICK_PRECISIONS,
    QUICK_HELD_OUT,
    grids.grid((1, 3, 12, 48), (192, 800), 4),
    QUICK_DUTIES,
    QUICK_SPAN_S,
    LINKS[:1],
    6,
)


@dataclass(frozen=True, slots=True)
class Checked:
    """A held-out pass: measured, and predicted three ways."""

    kind: Precision
    model: str
    cell: Cell
    throttle: float
    """Share of the time that the process ran."""
    measured_s: float
    predicted_s: float
    roofline_s: float
    shuffled_s: float

    @property
    def what(self) -> str:
        return "throttled" if self.throttle < 1 else self.cell.kind

    def row(self) -> dict[str, Any]:
        return {
            "engine": self.kind.engine,
            "dtype": self.kind.dtype,
            "model": self.model,
            "rows": self.cell.rows,
            "head": self.cell.head,
            "context": self.cell.context,
            "duty": self.throttle,
            "measured_ms": self.measured_s * 1e3,
            "predicted_ms": self.predicted_s * 1e3,
            "ratio": self.predicted_s / self.measured_s,
        }


# --- devices -----------------------------------------------------------------------------------


@dataclass(slots=True)
class Arm:
    """One engine and precision: fitted, then asked."""

    kind: Precision
    sizes: Sizes
    folder: Path
    seed: int
    forms: dict[Form, Path] = field(default_factory=dict)

    def checked(self) -> list[Checked]:
        harness.note(f"{self.kind.engine} {self.kind.dtype}: fitting")
        plan = self.sizes.plan
        forms = {form: self.path(form) for form in (*plan.fitted, *plan.held_out)}
        found = device.one(self.kind, device.Wanted(), plan, forms, self.folder)
        rates = Rates.of(self.kind, found, self.seed)
        with Child.start() as child:
            cells = [cell for model in self.sizes.held_out for cell in self.held(child, model)]
            checked = [self.judged(rates, one, 1.0, 1.0) for one in cells]
            for duty in self.sizes.duties:
                checked += self.throttled(child, rates, duty)
        return checked

    def path(self, form: Form) -> Path:
        if form not in self.forms:
            self.forms[form] = synthetic.write(form, self.folder)
        return self.forms[form]

    def held(self, child: Child, model: Form | str) -> Iterator[Observation]:
        harness.note(f"  held out: {model if isinstance(model, str) else model.name}")
        graph, place = self.model(model)
        budget = self.sizes.plan.budget_s
        job = replace_job(self.job(place), cells=self.sizes.checked, budget_s=budget)
        for sample in ask(child, job):
            yield Observation(graph, sample.cell, sample.seconds)

    def model(self, model: Form | str) -> tuple[ModelGraph, str]:
        if isinstance(model, str):
            return graphs.read(model), model
        return device.graph_of(model), str(self.path(model))

    def job(self, model: str) -> Job:
        return Job(
            model=model,
            engine=self.kind.engine,
            dtype=self.kind.dtype,
            cache=str(self.folder / "cache"),
        )

    def throttled(self, child: Child, rates: Rates, duty: float) -> Iterator[Checked]:
        """The probe before and after, so that what else changed meanwhile is halved."""
        harness.note(f"  throttled to {duty:.0%}")
        probe = self.sustained(device.PROBE_FORM, device.PROBE)
        cells = self.sustained(THROTTLED_FORM, THROTTLED)
        graph = device.graph_of(THROTTLED_FORM)
        for job in (probe, cells):
            ask(child, job)
        with throttle(child.pid, duty):
            before, found, after = (ask(child, job) for job in (probe, cells, probe))
        slow = math.sqrt(
            math.prod(
                fit.slowdown(rates.calibrated.probe_s, [sample.seconds for sample in samples])
                for samples in (before, after)
            )
        )
        for sample in found:
            one = Observation(graph, sample.cell, sample.seconds)
            yield self.judged(rates, one, duty, slow)

    def sustained(self, form: Form, cells: tuple[Cell, ...]) -> Job:
        job = self.job(str(self.path(form)))
        return replace_job(job, probes=cells, span_s=self.sizes.span_s)

    def judged(self, rates: Rates, one: Observation, duty: float, slow: float) -> Checked:
        calibrated, roofline, shuffled = (
            fit.predicted(rate, one.graph, one.cell, slow)
            for rate in (rates.calibrated, rates.roofline, rates.shuffled)
        )
        return Checked(
            self.kind, one.graph.name, one.cell, duty, one.seconds, calibrated, roofline, shuffled
        )


@dataclass(frozen=True, slots=True)
class Rates:
    """Of one precision: as fitted, the roofline alone, and fitted to shuffled times."""

    calibrated: Rate
    roofline: Rate
    shuffled: Rate

    @classmethod
    def of(cls, kind: Precision, found: device.Measured, seed: int) -> Rates:
        times = [one.seconds for one in found.fitted]
        random.Random(seed).shuffle(times)
        mixed = [replace(o, seconds=t) for o, t in zip(found.fitted, times, strict=True)]
        return cls(found.rate, fit.analytic(kind, found.fitted), fit.fit(kind, mixed))


def replace_job(job: Job, **changes: Any) -> Job:
    import msgspec

    return msgspec.structs.replace(job, **changes)


def ask(child: Child, job: Job) -> tuple[Any, ...]:
    """Samples, or what went wrong."""
    found = child.ask(job)
    if found.error:
        raise RuntimeError(found.error)
    return found.samples


@contextmanager
def throttle(pid: int, duty: float) -> Iterator[None]:
    """Lets a process run for `duty` of the time: stopped in proportion to what it has computed,
    so that others' load does not change how much it is throttled."""
    ended = threading.Event()

    def turn() -> None:
        owed, before = 0.0, computed_s(pid)
        while not ended.wait(PERIOD_S * duty):
            now = computed_s(pid)
            owed, before = owed + (now - before) * (1 - duty) / duty, now
            if owed > 0:
                owed -= stopped_s(pid, owed, ended)

    thread = threading.Thread(target=turn, name="throttle")
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        os.kill(pid, signal.SIGCONT)


def stopped_s(pid: int, seconds: float, ended: threading.Event) -> float:
    """Stops a process for a while; for how long it really was."""
    began = time.monotonic()
    os.kill(pid, signal.SIGSTOP)
    ended.wait(seconds)
    os.kill(pid, signal.SIGCONT)
    return time.monotonic() - began


def computed_s(pid: int) -> float:
    """Processor time of a process's main thread, where its engine computes."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9


# --- links -------------------------------------------------------------------------------------


async def probed(sizes: Sizes, folder: Path) -> list[tuple[Link, Estimate]]:
    """A cloud behind each link."""
    found = []
    async with AsyncExitStack() as stack:
        supervisor = await stack.enter_async_context(Supervisor())
        note = folder / "cloud.json"
        listen = ("--listen", "127.0.0.1:0", "--ready-file", str(note), "--threads", "1")
        environment = {"OUTRIDER_RUNTIME": str(folder / "run"), "OMP_NUM_THREADS": "1"}
        command = (*_CLOUD, "--numerics", "plain", *listen)
        await supervisor.start(
            ChildSpec("cloud", command, env=environment, ready=ReadyFile(note), nice=0)
        )
        host, _, port = str(_address(note)).rpartition(":")
        proxy = await ProxyProcess.start(host, int(port), sizes.links[0])
        stack.push_async_callback(proxy.aclose)
        for link in sizes.links:
            await proxy.set(link)
            harness.note(f"link of {link.rtt_ms:g} ms")
            target = links.Target(Address(proxy.host, proxy.port))
            found.append((link, await links.probe(target, turns=sizes.turns)))
    return found


def _address(note: Path) -> str:
    import json

    return str(json.loads(note.read_text())["address"])


def link_rows(found: Sequence[tuple[Link, Estimate]]) -> list[dict[str, Any]]:
    return [
        {
            "rtt_ms": link.rtt_ms,
            "rtt_over_true": estimate.rtt_s * 1e3 / link.rtt_ms,
            "up_over_true": _over(estimate.up_bytes_per_s, link.up_bits_per_s),
            "down_over_true": _over(estimate.down_bytes_per_s, link.down_bits_per_s),
            "loss": link.loss,
            "loss_found": estimate.loss,
        }
        for link, estimate in found
    ]


def _over(found: float | None, bits: float | None) -> float:
    """1 / 100 where the estimate does not know."""
    return found * 8 / bits if found and bits else 0.01


# --- figures -----------------------------------------------------------------------------------


def run(*, quick: bool, seed: int) -> Mapping[str, Any]:
    """Fit, ask, throttle, and measure links."""
    sizes = QUICK if quick else FULL
    with tempfile.TemporaryDirectory(prefix="outrider-bench-") as place:
        folder = Path(place)
        arms = [Arm(kind, sizes, folder, seed) for kind in sizes.precisions]
        checked = [one for arm in arms for one in arm.checked()]
        rows = link_rows(asyncio.run(probed(sizes, folder)))
    losing = [one.row() for one in checked if error([_ratio(one)]) > BAR]
    return {
        "cases": len(checked) + len(rows),
        "figures": figures(checked) | link_figures(rows),
        "controls": {
            "shuffled_error": error([one.shuffled_s / one.measured_s for one in checked]),
            "shuffled_misses_bar": float(
                error([one.shuffled_s / one.measured_s for one in checked]) > BAR
            ),
        },
        "cells": [one.row() for one in checked],
        "losing": losing,
        "links": rows,
        "models": {"bundled:target": resolve("bundled:target").digest},
        "seed": seed,
    }


def figures(checked: Sequence[Checked]) -> dict[str, float]:
    """The errors together, of each kind of pass, and of each engine."""
    ratios = [_ratio(one) for one in checked]
    low, high = harness.mean_interval([abs(math.log(ratio)) for ratio in ratios])
    found = {
        "geomean_error": error(ratios),
        "geomean_error_low": math.expm1(low),
        "geomean_error_high": math.expm1(high),
        "p90_error": fit.quantile_error(ratios, 0.9),
        "reg_over_roofline": squared(ratios)
        / squared([one.roofline_s / one.measured_s for one in checked]),
        "roofline_error": error([one.roofline_s / one.measured_s for one in checked]),
    }
    for what in dict.fromkeys(one.what for one in checked):
        found[f"{what}_error"] = error([_ratio(one) for one in checked if one.what == what])
    for kind in dict.fromkeys(one.kind for one in checked):
        mine = [_ratio(one) for one in checked if one.kind == kind]
        found[f"{kind.engine}_{kind.dtype}_error"] = error(mine)
    return found


def link_figures(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {
        f"link_{name}_error": error([row[f"{name}_over_true"] for row in rows])
        for name in ("rtt", "up", "down")
    }


def _ratio(one: Checked) -> float:
    return one.predicted_s / one.measured_s


error = fit.geomean_error


def squared(ratios: Sequence[float]) -> float:
    """Sum of squared logarithms."""
    return sum(math.log(ratio) ** 2 for ratio in ratios)


if __name__ == "__main__":
    sys.exit(harness.main("profile", run))
