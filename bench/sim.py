"""`bench sim`: how well the simulator foretells the real runtime, and how fast it is.

Real: a cloud in a process of its own with an inflated target, a shaping proxy, a daemon with
the bundled drafter, and a trace of concurrent requests in real time. Some traces calibrate
the simulator's constants (pass by rows, what lies between passes, the drafter's passes,
acceptance by depth, overheads); three others, with other arrivals, lengths, round trips and
texts, are foretold and then compared, answer latency at p50 and p95. Calibration and the
others take turns, and how fast the machine was is taken from the calibration on both sides
of a trace: it drifts by tenths within minutes. Of these others the
simulator knows what a trace says: when each answer is asked for, how long its prompt is,
and how long its text came out, which is a property of the text.

Two cores hold the target (one), and drafter, daemon, cloud server and proxy (the other). The
calibration runs under the same crowding, so its constants hold it; how much more a trace
that is busier is slowed is not modelled.

Controls: the simulator without queueing (any number of slots), and without acceptance.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from statistics import fmean, median
from typing import Any, Literal, cast
from unittest.mock import patch

import numpy as np

from bench import harness
from bench.harness import note
from outrider.cli.committer import make
from outrider.cloud import joining
from outrider.edge import drafter as drafters
from outrider.edge import main as edges
from outrider.edge import session as sessions
from outrider.edge.answer import Answer
from outrider.edge.daemon import Daemon, Small
from outrider.edge.fanout import Fanout
from outrider.edge.link import Link as CloudLink
from outrider.edge.service import GenerateRequest
from outrider.engine import EngineSpec, Picked, Span
from outrider.engines import registry
from outrider.engines.base import BaseEngine
from outrider.lag import LoopLag
from outrider.models.source import BUNDLED, resolve
from outrider.options import Address, EdgeOptions
from outrider.partitioner.signals import at
from outrider.partitioner.sim import fleet, scenario
from outrider.partitioner.sim import trace as traces
from outrider.partitioner.sim.agreement import Agreement
from outrider.partitioner.sim.calibrate import Observed, fit
from outrider.partitioner.sim.exact import simulate
from outrider.partitioner.sim.policies import parse
from outrider.partitioner.sim.result import Served, Slo, quantile, summarise
from outrider.partitioner.sim.setup import CloudSetup, Gear, World
from outrider.partitioner.sim.trace import Ask, Rider, Trace
from outrider.protocol.bus import NoBus
from outrider.protocol.messages import Commit, Finished
from outrider.protocol.sampling import SamplingParams
from outrider.protocol.stream import Done, Token
from outrider.testing.child import ChildSpec, ReadyFile
from outrider.testing.inflate import inflated
from outrider.testing.link import Link
from outrider.testing.proxy_process import ProxyProcess
from outrider.testing.supervisor import Supervisor
from outrider.worker import EngineThread

Kind = Literal["inflated", "paced"]
CLI = ("outrider.cli", "main")
STEP_MS = 40.0
PACE_MS, PACE_ROW_MS = 36.0, 1.0
"""Of a paced target's pass, and of each of its rows."""
SLOTS = 4
"""Of the cloud: more answers than that wait."""
NICENESS = 5
DRAWS = 12
"""Simulated runs of a trace, each with other rights and wrongs."""
SAMPLING = SamplingParams(temperature=0.8, top_p=0.95)
BUSY = "laptop"
FLEET = 10_000
BAR = 0.10
"""Of the errors at p50 and p95: what the controls must miss."""


# --- traces ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Shape:
    """A real trace: small enough to run in real time."""

    name: str
    rtt_ms: float
    seconds: float
    per_s: float
    tokens: tuple[float, float, int, int]
    """Median, standard deviation of the logarithm, least, most."""
    burst: int = 1
    """Answers that are asked for at a time."""
    plain: float = 0.0
    """Share of answers that ask for no drafts."""
    seed: int = 0


CALIBRATION = (
    Shape("calibration 1", 20.0, 20.0, 1.2, (24.0, 0.5, 8, 80), plain=0.25, seed=1),
    Shape("calibration 2", 20.0, 20.0, 1.2, (24.0, 0.5, 8, 80), plain=0.25, seed=5),
    Shape("calibration 3", 20.0, 20.0, 1.2, (24.0, 0.5, 8, 80), plain=0.25, seed=6),
    Shape("calibration 4", 20.0, 20.0, 1.2, (24.0, 0.5, 8, 80), plain=0.25, seed=7),
)
HELD_OUT = (
    Shape("bursts", 50.0, 45.0, 1.2, (22.0, 0.5, 8, 64), burst=6, plain=0.1, seed=2),
    Shape("long answers", 5.0, 45.0, 0.6, (48.0, 0.4, 24, 96), seed=3),
    Shape("heavy tail", 80.0, 45.0, 1.1, (18.0, 0.7, 8, 100), plain=0.4, seed=4),
)


@dataclass(frozen=True, slots=True)
class Request:
    at_s: float
    ids: tuple[int, ...]
    tokens: int
    drafts: bool
    seed: int


def requests_of(shape: Shape, corpus: Sequence[int], seconds: float) -> list[Request]:
    """When what is asked for, from the shape's seed; texts begin anywhere in real code."""
    random = np.random.default_rng((7, shape.seed))
    count = max(shape.burst, round(seconds * shape.per_s))
    waves = -(-count // shape.burst)
    starts = np.sort(random.random(waves) * seconds)
    found = []
    median, spread, least, most = shape.tokens
    for number in range(count):
        size = int(random.integers(16, 96))
        begin = int(random.integers(0, len(corpus) - size))
        tokens = int(np.clip(random.lognormal(np.log(median), spread), least, most))
        at_s = float(starts[number // shape.burst]) + 0.01 * (number % shape.burst)
        ids = tuple(corpus[begin : begin + size])
        found.append(Request(at_s, ids, tokens, bool(random.random() >= shape.plain), number))
    return sorted(found, key=lambda request: request.at_s)


# --- what is watched ---------------------------------------------------------------------------


@dataclass(slots=True)
class Watch:
    """Everything that a run shows; reset before each trace."""

    commits: dict[int, list[tuple[float, Commit]]] = field(
        default_factory=lambda: defaultdict(list)
    )
    """By answer: (second, message)."""
    finished: dict[int, Finished] = field(default_factory=dict)
    chains: dict[int, list[tuple[int, bool]]] = field(default_factory=lambda: defaultdict(list))
    drafts: list[tuple[int, float]] = field(default_factory=list)
    bursts: list[float] = field(default_factory=list)
    burst_ms: float = 0.0
    rtts: list[float] = field(default_factory=list)


WATCH = Watch()


class WatchedAnswer(Answer):
    """Tells what came, and which drafts held."""

    def commit(self, message: Commit) -> tuple[int, ...]:
        WATCH.commits[id(self)].append((time.monotonic(), message))
        return super().commit(message)

    def finish(self, message: Finished) -> None:
        WATCH.finished[id(self)] = message
        super().finish(message)

    def _compare(self, chain: Sequence[int], fresh: Sequence[int]) -> None:
        depth = self.held
        for draft, token in zip(chain, fresh, strict=False):
            WATCH.chains[id(self)].append((depth, draft == token))
            if draft != token:
                break
            depth += 1
        super()._compare(chain, fresh)


class WatchedDrafter(drafters.Drafter):
    def _report(self, jobs: Any, drafts: Any, took_s: float) -> None:
        WATCH.bursts.append(took_s * 1e3 - WATCH.burst_ms)
        WATCH.burst_ms = 0.0
        super()._report(jobs, drafts, took_s)


class Timed:
    """An engine whose passes are timed."""

    def __init__(self, engine: BaseEngine) -> None:
        self._engine = engine

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def extend(self, spans: Sequence[Span]) -> list[Picked]:
        began = time.perf_counter()
        found = self._engine.extend(spans)
        took = (time.perf_counter() - began) * 1e3
        WATCH.drafts.append((sum(len(span.tokens) for span in spans), took))
        WATCH.burst_ms += took
        return found


# --- the real runtime --------------------------------------------------------------------------


class Paced:
    """The bundled target with passes as long as a device's of its own: it computes, then waits.

    Nothing is crowded by it, so what is left of the error is the simulator's own.
    """

    def __init__(self, engine: BaseEngine) -> None:
        self._engine = engine
        self._waits = threading.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def extend(self, spans: Sequence[Span]) -> list[Picked]:
        rows = self._engine.info.row_rule.padded(sum(len(span.tokens) for span in spans))
        ends = time.monotonic() + (PACE_MS + PACE_ROW_MS * rows) / 1e3
        found = self._engine.extend(spans)
        while (left := ends - time.monotonic()) > 0:
            self._waits.wait(left)
        return found


class PacedProcess:
    """In place of an engine's process."""

    @staticmethod
    async def start(spec: EngineSpec) -> EngineThread:
        return await EngineThread.start(
            lambda: cast(BaseEngine, Paced(cast(BaseEngine, registry.build(spec))))
        )


def paced_cloud() -> None:
    """`outrider cloud` with a paced target; the command line is its own."""
    from outrider.cli import main

    with patch.object(joining, "EngineProcess", PacedProcess):
        main()


class Bed:
    """One cloud, one proxy, one daemon with a drafter."""

    def __init__(self, stack: AsyncExitStack, kind: Kind) -> None:
        self.stack = stack
        self.kind = kind
        self.model = "bundled:target" if kind == "paced" else str(inflated(step_ms=STEP_MS))
        self.corpus: tuple[int, ...] = ()

    async def start(self) -> None:
        place = Path(self.stack.enter_context(tempfile.TemporaryDirectory(prefix="outrider-")))
        supervisor = await self.stack.enter_async_context(Supervisor())
        cloud = await self._cloud(supervisor, place)
        os.nice(NICENESS)
        self.proxy = await ProxyProcess.start(cloud.host, cloud.port, Link())
        self.stack.push_async_callback(self.proxy.aclose)
        options = EdgeOptions(
            clouds=(Address(self.proxy.host, self.proxy.port),), fallback="wait", max_running=32
        )
        fanout = Fanout(NoBus())
        self.link = CloudLink.make(options, fanout.publish)
        self.stack.push_async_callback(self.link.close)
        small = await self._small()
        self.daemon = Daemon(options, self.link, small, fanout, LoopLag())
        self.stack.push_async_callback(self.daemon.close)
        sys.setswitchinterval(edges.SWITCH_S)
        await self._first()

    async def _cloud(self, supervisor: Supervisor, place: Path) -> Address:
        ready = place / "cloud.json"
        module, name = ("bench.sim", "paced_cloud") if self.kind == "paced" else CLI
        command = (
            *(sys.executable, "-c", f"from {module} import {name}; {name}()", "cloud"),
            *("--listen", "127.0.0.1:0", "--ready-file", str(ready), "--model", f"t={self.model}"),
            *("--engine", "torch", "--device", "cpu", "--threads", "1", "--context", "512"),
            *("--max-slots", str(SLOTS), "--trigger", "auto"),
        )
        environment = {
            "OUTRIDER_RUNTIME": str(place / "cloud"),
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(harness.ROOT),
        }
        await supervisor.start(
            ChildSpec(
                "cloud", command, env=environment, ready=ReadyFile(ready), ready_timeout_s=120
            )
        )
        return Address.parse(json.loads(ready.read_text())["address"], 0)

    async def _small(self) -> Small:
        name = next(n for n in ("onnx", "torch", "llama") if n in registry.installed())
        spec = EngineSpec("bundled:draft", name, numerics="plain", max_slots=32, threads=1)

        def build() -> BaseEngine:
            return cast(BaseEngine, Timed(cast(BaseEngine, registry.build(spec))))

        engine = await EngineThread.start(build)
        self.stack.push_async_callback(engine.shutdown)
        drafter = WatchedDrafter(engine, time.monotonic)
        self.stack.callback(asyncio.create_task(drafter.run()).cancel)
        return Small(name, drafter, None, 0.0)

    async def _first(self) -> None:
        """Everything is loaded and connected; the corpus as token ids."""
        request = GenerateRequest("import os\n", sampling=SAMPLING, max_tokens=24, seed=1)
        async for _ in self.daemon.generate(request):
            pass
        text = (BUNDLED / "corpus.txt").read_text(encoding="utf-8")
        ids: list[int] = []
        for begin in range(0, 60_000, 3_000):
            part = GenerateRequest(text[begin : begin + 3_000])
            ids += self.daemon.render(part)
        self.corpus = tuple(ids)

    async def ride(self, shape: Shape, seconds: float) -> Ridden:
        """A trace in real time."""
        await self.proxy.set(Link.of_rtt(shape.rtt_ms))
        await asyncio.sleep(1.5)
        _reset()
        wanted = requests_of(shape, self.corpus, seconds)
        began = time.monotonic()
        beats = asyncio.create_task(self._listen())
        try:
            got = await asyncio.gather(*(self._answer(one, began) for one in wanted))
        finally:
            beats.cancel()
        return Ridden(shape, wanted, list(got), _kept())

    async def _listen(self) -> None:
        while True:
            await asyncio.sleep(1.0)
            WATCH.rtts += [peer.rtt_s * 1e3 for peer in self.link.peers if peer.rtt_s is not None]

    async def _answer(self, wanted: Request, began: float) -> Timing:
        await asyncio.sleep(max(0.0, wanted.at_s - (time.monotonic() - began)))
        asked_s = time.monotonic()
        request = GenerateRequest(
            wanted.ids,
            sampling=SAMPLING,
            max_tokens=wanted.tokens,
            seed=wanted.seed,
            placement="draft" if wanted.drafts else "cloud",
        )
        got: list[float] = []
        done: Done | None = None
        async for event in self.daemon.generate(request):
            if isinstance(event, Token):
                got.append(time.monotonic() - asked_s)
            elif isinstance(event, Done):
                done = event
        assert done is not None and got
        return Timing(
            asked_s - began, len(got), got[0], got[-1], done.queue_ms, done.prefill_ms, done
        )


def _reset() -> None:
    for name in ("commits", "finished", "chains", "drafts", "bursts", "rtts"):
        getattr(WATCH, name).clear()


def _kept() -> Watch:
    copied = {
        name: type(getattr(WATCH, name))(getattr(WATCH, name))
        for name in ("finished", "drafts", "bursts", "rtts")
    }
    return Watch(commits=dict(WATCH.commits), chains=dict(WATCH.chains), **copied)


@dataclass(frozen=True, slots=True)
class Timing:
    """One real answer; seconds from its ask."""

    at_s: float
    tokens: int
    ttft_s: float
    latency_s: float
    queue_ms: float
    prefill_ms: float
    done: Done

    @property
    def tpot_s(self) -> float:
        return (self.latency_s - self.ttft_s) / max(1, self.tokens - 1)


@dataclass(slots=True)
class Ridden:
    shape: Shape
    wanted: list[Request]
    got: list[Timing]
    watch: Watch

    def trace(self) -> Trace:
        """As the simulator gets it."""
        asks = tuple(
            Ask(
                timing.at_s,
                0,
                len(request.ids),
                timing.tokens,
                placement="draft" if request.drafts else "cloud",
            )
            for request, timing in zip(self.wanted, self.got, strict=True)
        )
        ordered = tuple(sorted(asks, key=lambda ask: ask.at_s))
        rider = Rider(BUSY, self.shape.rtt_ms, supply="ac")
        return Trace(self.shape.name, self.shape.seed, ordered[-1].at_s, (rider,), ordered)

    def observed(self) -> Observed:
        """For the fit."""
        rtt_ms = self.shape.rtt_ms
        return Observed(
            passes=sorted({(m.rows, m.step_us / 1e3) for _, m in self._messages() if m.rows}),
            gaps=list(self._gaps()),
            drafts=self.watch.drafts,
            bursts=self.watch.bursts,
            chains=dict(self.watch.chains),
            openings=[
                one.ttft_s * 1e3 - rtt_ms - one.queue_ms - one.prefill_ms for one in self.got
            ],
            rtts=[max(0.0, rtt - rtt_ms) for rtt in self.watch.rtts],
        )

    def median_step_ms(self) -> float:
        return median(message.step_us / 1e3 for _, message in self._messages())

    def _messages(self) -> list[tuple[float, Commit]]:
        return [pair for pairs in self.watch.commits.values() for pair in pairs]

    def _gaps(self) -> Any:
        """Between commits of one answer in passes right after each other."""
        for pairs in self.watch.commits.values():
            for (before, _), (after, message) in zip(pairs, pairs[1:], strict=False):
                gap = (after - before) * 1e3 - message.step_us / 1e3
                if gap < 0.3 * message.step_us / 1e3:
                    yield gap


BASE = World(
    gears=(Gear(BUSY, ((1.0, 3.0),)),),
    cloud=CloudSetup(((1.0, STEP_MS),), slots=SLOTS),
    running=32,
)


# --- the foretold ------------------------------------------------------------------------------


def foretell(trace: Trace, world: World, draws: int) -> list[list[Served]]:
    """Run by run, each with another draw of what is not known beforehand: which drafts are
    right, and how long each pass takes."""
    found = []
    for draw in range(draws):
        random = np.random.default_rng((11, draw))
        asks = tuple(replace(ask, skill=float(random.standard_normal())) for ask in trace.asks)
        run = simulate(replace(trace, asks=asks), world, parse("auto"), make, seed=draw)
        found.append(run.served)
    return found


SHARES = (0.5, 0.95)


def compare(ridden: Ridden, told: Sequence[Sequence[Served]]) -> dict[str, Any]:
    """One row: real against foretold, the mean over draws of each one's quantile."""
    flat = [one for run in told for one in run]
    tokens = sum(one.tokens for one in ridden.got)
    row: dict[str, Any] = {
        "trace": ridden.shape.name,
        "rtt_ms": ridden.shape.rtt_ms,
        "answers": len(ridden.got),
        "tokens": tokens,
        "waited": sum(one.queue_ms > ridden.median_step_ms() for one in ridden.got),
    }
    for name in ("latency_s", "ttft_s", "tpot_s"):
        for share in SHARES:
            real = quantile((getattr(one, name) for one in ridden.got), share)
            guess = fmean(quantile((getattr(one, name) for one in run), share) for run in told)
            key = f"{name[:-2]}_p{share * 100:.0f}"
            row |= {f"{key}_real": real, f"{key}_sim": guess, f"{key}_error": abs(guess / real - 1)}
    row["passes_per_token_real"] = sum(o.done.speculation.passes for o in ridden.got) / tokens
    row["passes_per_token_sim"] = sum(o.passes for o in flat) / sum(o.tokens for o in flat)
    return row


def errors(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """The worst of the traces."""
    return {
        f"p{share * 100:.0f}_error": max(row[f"latency_p{share * 100:.0f}_error"] for row in rows)
        for share in SHARES
    }


def foretold(ridden: Sequence[Ridden], world: Sequence[World], draws: int) -> list[dict[str, Any]]:
    """A row for each trace, each in its world."""
    pairs = zip(ridden, world, strict=True)
    return [compare(one, foretell(one.trace(), its, draws)) for one, its in pairs]


def unqueued(world: World) -> World:
    """Nobody ever waits for a slot, or for another's rows."""
    first, ms = world.cloud.step[0]
    return replace(world, cloud=replace(world.cloud, slots=10_000, step=((first, ms),)))


def disagreeing(world: World) -> World:
    """No draft ever holds."""
    return replace(world, agreement=Agreement((0.0,), 0.0))


# --- fleets ------------------------------------------------------------------------------------


def fleets(devices: int, hours: float) -> dict[str, float]:
    """How long a large fleet takes, on the estimated world of `outrider sim`."""
    note(f"{devices} devices, {hours:g} h")
    trace = traces.generate("diurnal", devices=devices, hours=hours, seed=20)
    world = replace(scenario.world(), clouds=max(1, round(3 * devices / FLEET)))
    began = time.perf_counter()
    run = fleet.simulate(trace, world, parse("auto"), seed=20)
    took = time.perf_counter() - began
    return {
        "sim_minutes": took / 60.0,
        "sim_devices": float(devices),
        "sim_hours": hours,
        "sim_answers": float(len(run.served)),
        "sim_tokens": float(trace.tokens),
        "sim_passes": float(sum(use.passes for use in run.clouds)),
        "sim_unserved": float(run.unserved),
    }


def agree(devices: int, hours: float) -> dict[str, float]:
    """The fleet mode over the exact one, on a trace that both can run."""
    trace = traces.generate("bursty", devices=devices, hours=hours, seed=21, per_hour=30.0)
    gears = tuple(Gear(name, ((1.0, 6.0), (64.0, 30.0))) for name in ("laptop", "phone", "jetson"))
    step = ((1.0, 60.0), (8.0, 62.0), (32.0, 70.0), (64.0, 80.0), (256.0, 140.0))
    world = World(gears, CloudSetup(step, noise=0.03))
    found = {}
    for name in ("cloud", "draft", "auto"):
        both = (
            simulate(trace, world, parse(name), make, seed=3),
            fleet.simulate(trace, world, parse(name), seed=3),
        )
        exact, lean = (summarise(run, Slo()) for run in both)
        for key in ("latency_p50_s", "latency_p95_s", "passes_per_token", "joules_per_token"):
            found[f"fleet_over_exact_{name}_{key.removesuffix('_s')}"] = getattr(
                lean, key
            ) / getattr(exact, key)
    return found


# --- the whole ---------------------------------------------------------------------------------


async def ridden(kind: Kind, share: float) -> tuple[list[Ridden], list[Ridden], str]:
    """(Calibration, held out) in real time, in turns: calibration first and last."""
    async with AsyncExitStack() as stack:
        stack.enter_context(patch.object(sessions, "Answer", WatchedAnswer))
        bed = Bed(stack, kind)
        await bed.start()
        digest = resolve(bed.model).digest
        found = {}
        for shape in in_turns(CALIBRATION, HELD_OUT):
            note(f"{shape.name}: {shape.seconds * share:.0f} s in real time")
            found[shape.name] = await bed.ride(shape, shape.seconds * share)
    known, unknown = ([found[shape.name] for shape in shapes] for shapes in (CALIBRATION, HELD_OUT))
    return known, unknown, digest


def in_turns(outer: Sequence[Shape], inner: Sequence[Shape]) -> list[Shape]:
    """Each inner one between two outer ones."""
    found = [outer[0]]
    for inside, after in zip(inner, outer[1:], strict=True):
        found += [inside, after]
    return found


def worlds(known: Sequence[Ridden]) -> list[World]:
    """One for each held-out trace: what the texts and the protocol do is taken from all of the
    calibration, how long passes take from the parts before and after the trace."""
    parts = [one.observed() for one in known]
    whole = fit(merged(parts), BASE)
    found = []
    for pair in pairwise(parts):
        near = fit(merged(pair), BASE)
        cloud = replace(whole.cloud, step=near.cloud.step, gap_ms=near.cloud.gap_ms)
        cloud = replace(cloud, noise=near.cloud.noise)
        found.append(replace(whole, cloud=cloud, gears=near.gears))
    return found


def merged(parts: Sequence[Observed]) -> Observed:
    whole = Observed()
    for part in parts:
        for name in ("passes", "gaps", "drafts", "bursts", "openings", "rtts"):
            getattr(whole, name).extend(getattr(part, name))
        whole.chains |= {len(whole.chains) + n: c for n, c in enumerate(part.chains.values())}
    return whole


def quiet(known: Sequence[Ridden]) -> dict[str, float]:
    """Whether the machine was: on one that others use, passes waver and drift, and what was
    foretold from one minute says little of the next. Above a few hundredths the run is void."""
    passes = [at(fit(one.observed(), BASE).cloud.step, 4, 0.0) for one in known]
    return {"pass_drift": max(abs(after / before - 1.0) for before, after in pairwise(passes))}


def constants(world: World) -> dict[str, Any]:
    """What the calibration found, as a cell."""
    (gear,) = world.gears
    return {
        "calibrated": "constants",
        "step_1_ms": at(world.cloud.step, 1, 0.0),
        "step_4_ms": at(world.cloud.step, 4, 0.0),
        "step_8_ms": at(world.cloud.step, 8, 0.0),
        "step_64_ms": at(world.cloud.step, 64, 0.0),
        "noise": world.cloud.noise,
        "gap_ms": world.cloud.gap_ms,
        "draft_ms": at(gear.draft, 1, 0.0),
        "burst_ms": gear.burst_ms,
        "open_ms": world.overheads.open_ms,
        "way_ms": world.overheads.up_ms,
        "acceptance": world.agreement.rates[0],
        "spread": world.agreement.spread,
    }


@dataclass(frozen=True, slots=True)
class Told:
    """What was foretold of a target of one kind, beside what came."""

    kind: Kind
    digest: str
    figures: dict[str, float]
    controls: dict[str, float]
    rows: list[dict[str, Any]]
    constants: list[dict[str, Any]]


def told(kind: Kind, share: float, draws: int) -> Told:
    """Ride in real time, then foretell."""
    known, unknown, digest = asyncio.run(ridden(kind, share))
    note("foretelling")
    its = worlds(known)
    rows = foretold(unknown, its, draws)
    # How far a simulator that leaves something out is off, at its worst quantile.
    off = {
        f"error_without_{name}": max(
            errors(foretold(unknown, list(map(less, its)), max(2, draws // 4))).values()
        )
        for name, less in (("queueing", unqueued), ("acceptance", disagreeing))
    }
    found = errors(rows) | {
        "mean_p50_error": fmean(row["latency_p50_error"] for row in rows),
        "mean_p95_error": fmean(row["latency_p95_error"] for row in rows),
        "pass_noise": fmean(world.cloud.noise for world in its),
        **quiet(known),
    }
    named = [{"target": kind, **cell} for cell in (*rows, *map(constants, its))]
    return Told(kind, digest, found, off, named[: len(rows)], named[len(rows) :])


def run(*, quick: bool) -> dict[str, Any]:
    """Latency foretold against the real runtime's, and the time that a large fleet takes.

    `p50_error` and `p95_error` are of the inflated target, which shares two cores with all the
    rest; `paced_...` of one that waits out its pass instead of computing, so that what the
    processor does by the way is left out. Quick: short traces on the paced one, a small fleet.
    """
    paced = told("paced", 0.15 if quick else 1.0, 4 if quick else DRAWS)
    main = paced if quick else told("inflated", 1.0, DRAWS)
    beside = {} if quick else {f"paced_{name}": value for name, value in paced.figures.items()}
    fleet = (agree(20, 0.05), fleets(500, 0.1)) if quick else (agree(60, 0.1), fleets(FLEET, 1.0))
    every = [main] if quick else [main, paced]
    rows = [row for one in every for row in one.rows]
    return {
        "cases": sum(row["answers"] for row in rows),
        "figures": {**main.figures, **beside, **fleet[0], **fleet[1]},
        "controls": {**main.controls, "red": all(v > BAR for v in main.controls.values())},
        "cells": [*rows, *(cell for one in every for cell in one.constants)],
        "losing": [row for row in rows if max(errors([row]).values()) > BAR],
        "models": {
            **{f"target, {one.kind}": one.digest for one in every},
            "draft": resolve("bundled:draft").digest,
        },
    }


if __name__ == "__main__":
    sys.exit(harness.main("sim", run))
