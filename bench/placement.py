"""`bench placement`: what the policy costs against the best fixed placement, when things change.

Two kinds of cells, told apart by `kind`:

- `real`     the inflated target in a process, a shaping proxy, a daemon, real drafts and real
             answers; round trip, load, battery or the drafter's quality changes in the middle
             of an answer
- `virtual`  hours of the same policy code (and the cloud's own scheduler) in virtual time:
             single changes, many changes, and steady states under noise (`bench/virtual.py`)

A cost is milliseconds a token with joules priced in (`Objective`). Regret is the policy's cost
over that of the better one of `cloud` and `draft` held through the whole cell, minus 1. The
joules are the same constants for all arms. Where a cell takes drafting away (battery), it is
taken from the fixed placements too.
"""

from __future__ import annotations

import asyncio
import math
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import AsyncExitStack
from copy import deepcopy
from dataclasses import dataclass, field, replace
from multiprocessing import get_context
from typing import Any, cast

import numpy as np

from bench import harness
from bench.harness import note, ratio
from bench.rtt import PROMPTS, SAMPLINGS, Bed, Hostile
from bench.support import thread_of
from bench.virtual import ENERGY, FIXED, Ridden, Ride, Trace, World, best_fixed, cost_of
from outrider.edge.daemon import Daemon
from outrider.edge.drafter import Drafter
from outrider.edge.fanout import Fanout
from outrider.edge.link import Link as CloudLink
from outrider.edge.placement import Steering
from outrider.edge.service import GenerateRequest
from outrider.engine import Picked, Span
from outrider.models.source import resolve
from outrider.options import Address, EdgeOptions
from outrider.partitioner.book import Book
from outrider.partitioner.placement import Objective, Pilot, Rules, Score, Verdict, Wants
from outrider.partitioner.power.state import Bounds
from outrider.partitioner.signals import Signals
from outrider.protocol import events
from outrider.protocol.bus import NoBus
from outrider.protocol.stream import Done, Token
from outrider.testing.inflate import inflated
from outrider.testing.link import Link
from outrider.worker import EngineThread

BAR_REGRET = 0.10
BAR_FLIPS = 2.0
OFF = Bounds(draft="off", reason="battery 18 % < floor 20 %")
PLAIN = Objective()
THRIFTY = Objective(ms_per_joule=150.0)
"""A joule is worth so much that a draft must be right more often than not."""


# --- virtual -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Cell:
    name: str
    trace: Trace
    seed: int = 20
    objective: Objective = PLAIN

    @property
    def steady(self) -> bool:
        return len(self.trace) == 1


def thirds(usual: World, changed: World, each_s: float) -> Trace:
    """As usual, changed, and as usual again."""
    return [(each_s, usual), (2 * each_s, changed), (3 * each_s, usual)]


def changes(each_s: float, seed: int) -> list[Cell]:
    """One thing changes, and changes back."""
    usual = World()
    pairs: dict[str, tuple[World, World]] = {
        "round trip 20-200-20 ms": (usual, replace(usual, rtt_ms=200.0)),
        "round trip 200-5-200 ms": (replace(usual, rtt_ms=200.0), replace(usual, rtt_ms=5.0)),
        "load 0-6-0 others": (usual, replace(usual, others=6)),
        "load 4-0-4 others": (replace(usual, others=4), usual),
        "battery free-off-free": (usual, replace(usual, bounds=OFF)),
        "drafter .8-.05-.8 right": (replace(usual, holds=0.8), replace(usual, holds=0.05)),
        "drafter .1-.8-.1 right": (replace(usual, holds=0.1), replace(usual, holds=0.8)),
        "drafter 6-70-6 ms": (usual, replace(usual, draft_ms=70.0)),
        "pass 50-10-50 ms": (usual, replace(usual, step_ms=10.0, row_ms=2.0)),
    }
    found = [Cell(name, thirds(*pair, each_s), seed) for name, pair in pairs.items()]
    dear = thirds(replace(usual, holds=0.8), replace(usual, holds=0.35), each_s)
    return [*found, Cell("thrifty, drafter .8-.35-.8 right", dear, seed, THRIFTY)]


def steady(each_s: float, seed: int) -> list[Cell]:
    """Nothing changes but noise; some where both placements cost the same."""
    usual = World()
    worlds = {
        "drafts pay": usual,
        "drafts never hold": replace(usual, holds=0.05),
        "far": replace(usual, rtt_ms=150.0),
        "even, by distance": replace(usual, rtt_ms=60.0, holds=0.5),
        "even, by drafting time": replace(usual, draft_ms=12.0, holds=0.6),
        "even, much noise": replace(usual, rtt_ms=40.0, holds=0.5, jitter=0.3),
        "loaded": replace(usual, others=5),
    }
    return [Cell(f"steady: {name}", [(each_s, world)], seed) for name, world in worlds.items()]


def wandering(total_s: float, seed: int) -> Trace:
    """Everything changes every 30 to 90 seconds, over the whole range."""
    random, now = np.random.default_rng(seed), 0.0

    def between(low: float, high: float) -> float:
        return float(math.exp(random.uniform(math.log(low), math.log(high))))

    trace: list[tuple[float, World]] = []
    while now < total_s:
        now += random.uniform(30.0, 90.0)
        world = World(
            rtt_ms=between(3.0, 250.0),
            step_ms=between(20.0, 100.0),
            draft_ms=between(3.0, 40.0),
            holds=float(random.uniform(0.1, 0.9)),
            others=int(random.choice([0, 0, 0, 2, 5])),
        )
        trace.append((now, world))
    return trace


def virtual_cells(seed: int, *, quick: bool) -> list[Cell]:
    each_s, total_s, count = (30.0, 180.0, 1) if quick else (60.0, 450.0, 2)
    wanders = [
        Cell(f"everything wanders, {number}", wandering(total_s, seed + number), seed + number)
        for number in range(count)
    ]
    found = [*changes(each_s, seed), *steady(120.0 if quick else 240.0, seed), *wanders]
    return found[::3] if quick else found


def ride(cell: Cell) -> dict[str, Any]:
    """One row: the fixed placements, the policy, and an oracle of phases."""
    goal = cell.objective
    best, fixed = best_fixed(cell.trace, cell.seed, goal)
    ours = Ride(cell.trace, seed=cell.seed, objective=goal).run()
    costs = {name: run.cost(goal) for name, run in fixed.items()}
    return {
        "kind": "virtual",
        "cell": cell.name,
        "cloud": costs["cloud"],
        "draft": costs["draft"],
        "auto": ours.cost(goal),
        "best": best,
        "regret": ours.cost(goal) / costs[best] - 1.0,
        "over_oracle": ours.cost(goal) / oracle(cell.trace, fixed.values(), goal) - 1.0,
        "flips_per_min": ours.per_minute("placement"),
        "probes_per_min": ours.per_minute("drafting") / 2.0,
        "steady": cell.steady,
        "virtual_s": cell.trace[-1][0],
    }


def oracle(trace: Trace, runs: Any, goal: Objective) -> float:
    """Cost of the better fixed placement of each phase, known beforehand."""
    found, began = list(runs), 0.0
    spent = tokens = 0.0
    for until, _ in trace:
        phases = [_phase(run, began, until, goal) for run in found]
        count, cost = min(phases, key=lambda phase: phase[1])
        tokens, spent, began = tokens + count, spent + count * cost, until
    return spent / max(1.0, tokens)


def _phase(run: Ridden, began: float, until: float, goal: Objective) -> tuple[int, float]:
    """(Tokens, cost per token) between two seconds."""
    inside = [entry for entry in run.costs if began <= entry[0] < until]
    tokens = sum(count for _, count, _ in inside)
    busy_s = inside[-1][2] - inside[0][2] if inside else 0.0
    return tokens, cost_of(until - began, busy_s, tokens, goal)


# --- controls ----------------------------------------------------------------------------------

RESTLESS = Rules(margin=0.0, tie=0.0, dwell_s=0.0, dwell_tokens=0, agree=1, longest_dwell_s=0.0)
CONTROL_SEEDS = 3
"""No margin, no dwell: whatever looks better at the moment."""


class Contrary(Pilot):
    """Takes the worst of what is possible."""

    __slots__ = ()

    def decide(self, signals: Signals, wants: Wants) -> Verdict:
        found = super().decide(signals, replace(wants, pinned=self.placement))
        self.wants = wants
        possible = [score for score in found.scores if score.possible]
        worst = max(possible, key=_total, default=None)
        if worst is None or not wants.committed:
            return found
        changed = worst.placement != self.placement
        self.placement, self.peer = worst.placement, worst.peer
        return replace(found, placement=worst.placement, peer=worst.peer, changed=changed)


def _total(score: Score) -> float:
    return score.total


def contrary(steering: Steering) -> Steering:
    pilot = steering.pilot
    steering.pilot = Contrary(pilot.wants, pilot.placement, pilot.peer, pilot.budget)
    return steering


def restless(cell: Cell) -> float:
    """Flips a minute of a policy without hysteresis, the mean of some seeds."""
    seeds = range(cell.seed, cell.seed + CONTROL_SEEDS)
    runs = [Ride(cell.trace, seed=seed, rules=RESTLESS).run() for seed in seeds]
    return sum(run.per_minute("placement") for run in runs) / CONTROL_SEEDS


def always_wrong(cell: Cell) -> float:
    """Regret of a policy that takes the worst."""
    best, fixed = best_fixed(cell.trace, cell.seed)
    wrong = Ride(cell.trace, seed=cell.seed, steer=contrary).run()
    return wrong.cost(PLAIN) / fixed[best].cost(PLAIN) - 1.0


def control_cells(seed: int) -> tuple[Cell, Cell]:
    usual = World()
    even = Cell("even", [(60.0, replace(usual, rtt_ms=40.0, holds=0.5, jitter=0.3))], seed)
    return even, Cell("pays", [(60.0, replace(usual, holds=0.8))], seed)


# --- real --------------------------------------------------------------------------------------

STEP_MS = 50.0
TOKENS = 80
ARMS = ("auto", "cloud", "draft")
NEAR_MS, FAR_MS = 10.0, 200.0


class Fickle(Hostile):
    """An honest drafter until it is told to be wrong."""

    def __init__(self, engine: Any) -> None:
        super().__init__(engine)
        self.wrong = False

    def extend(self, spans: Sequence[Span]) -> list[Picked]:
        if self.wrong:
            return super().extend(spans)
        found: list[Picked] = self._engine.extend(spans)
        return found


class Clouds(Bed):
    """Without the engines' own loops, which have no part here."""

    async def _bare(self, name: str, model: str, numerics: Any) -> None:
        """Nothing is compared with them."""


@dataclass(slots=True)
class Answered:
    """One real answer: what it cost, and what it said."""

    cost: float
    tpot_ms: float
    busy_ms: float
    ids: tuple[int, ...]
    changes: int


@dataclass(slots=True)
class Ground:
    """The bed of `bench rtt` with a daemon of its own, whose world can be changed."""

    bed: Bed
    daemon: Daemon
    fickle: Fickle
    busy_s: float = 0.0
    bounds: Bounds = Bounds()
    decisions: list[events.Decision] = field(default_factory=list)
    known: Book = field(default_factory=Book)
    """What the device had learnt before anything changed: each answer begins with that."""
    crowd: list[asyncio.Task[None]] = field(default_factory=list)

    async def usual(self) -> None:
        """As it was before anything changed."""
        self.fickle.wrong, self.bounds = False, Bounds()
        await self.bed.proxies["auto"].set(Link.of_rtt(NEAR_MS))
        for task in self.crowd:
            task.cancel()
        await asyncio.gather(*self.crowd, return_exceptions=True)
        self.crowd.clear()

    async def warm(self) -> None:
        """Learn the usual state; the answers of a cell do not learn from each other."""
        self.daemon.governor.book = Book()
        for arm in ("draft", "cloud", "auto"):
            await self.answer(arm, PROMPTS[2], self.usual, tokens=TOKENS // 2)
        self.known = self.daemon.governor.book

    async def far(self) -> None:
        await self.bed.proxies["auto"].set(Link.of_rtt(FAR_MS))

    async def battery(self) -> None:
        self.bounds = OFF

    async def drafter(self) -> None:
        self.fickle.wrong = True

    async def load(self) -> None:
        """Two more answers share the target from now on."""
        self.crowd = [asyncio.create_task(self._other(number)) for number in range(2)]

    async def _other(self, number: int) -> None:
        request = GenerateRequest(
            prompt=PROMPTS[number + 4], max_tokens=200, seed=number, placement="cloud"
        )
        async for _ in self.bed.daemons["beside"].generate(request):
            pass

    async def answer(
        self, arm: str, prompt: str, change: Callable[[], Any], tokens: int = TOKENS
    ) -> Answered:
        """One answer under an arm; the world changes after half of it."""
        await self.usual()
        request = GenerateRequest(
            prompt=prompt,
            sampling=SAMPLINGS[1],
            max_tokens=tokens,
            seed=7,
            placement=cast(Any, arm),
        )
        got: list[Token] = []
        done: Done | None = None
        drawn = self.busy_s
        async for event in self.daemon.generate(request):
            if isinstance(event, Token):
                got.append(event)
                if len(got) == tokens // 2:
                    await change()
                    if arm == "draft" and self.bounds.draft == "off":
                        self._rest()
            elif isinstance(event, Done):
                done = event
        await self.usual()
        assert done is not None and len(got) > 1
        seconds = (got[-1].t_ms - got[0].t_ms) / 1e3
        busy_s, gaps = self.busy_s - drawn, len(got) - 1
        return Answered(
            cost_of(seconds, busy_s, gaps, PLAIN),
            seconds * 1e3 / gaps,
            busy_s * 1e3 / gaps,
            tuple(token.id for token in got),
            done.decisions,
        )

    def _rest(self) -> None:
        """What takes drafting away takes it from a fixed placement too."""
        for running in self.daemon.running.values():
            for answer in running.answers:
                answer.drafting = False
                answer.aim(None)


async def ground(stack: AsyncExitStack) -> Ground:
    model = str(await asyncio.to_thread(inflated, step_ms=STEP_MS))
    bed = Clouds(stack, model, STEP_MS)
    await bed.start()
    small = bed.daemons["ours"].small
    assert small is not None
    thread = thread_of(small)
    fickle = Fickle(thread._engine)
    proxy = bed.proxies["auto"]
    options = EdgeOptions(clouds=(Address(proxy.host, proxy.port),), fallback="wait")
    fanout = Fanout(NoBus())
    link = CloudLink.make(options, fanout.publish)
    stack.push_async_callback(link.close)
    daemon = Daemon(options, link, None, fanout, bed.lag)
    found = Ground(bed, daemon, fickle)

    def spent(owner: str, busy_s: float, drafted: int) -> None:
        found.busy_s += busy_s

    drafter = Drafter(
        EngineThread(cast(Any, fickle), thread._pool), small.drafter.clock, spent=spent
    )
    stack.callback(asyncio.create_task(drafter.run()).cancel)
    daemon.small = replace(small, drafter=drafter)
    daemon.governor.power = lambda: found.bounds
    daemon.governor.energy = lambda: ENERGY
    daemon.governor.publish = _heard(found.decisions)
    return found


def _heard(decisions: list[events.Decision]) -> Callable[[events.Event], None]:
    def publish(event: events.Event) -> None:
        if isinstance(event, events.Decision):
            decisions.append(event)

    return publish


async def real_cells(rounds: int, *, quick: bool) -> tuple[list[dict[str, Any]], dict[str, str]]:
    async with AsyncExitStack() as stack:
        field_ = await ground(stack)
        kinds: dict[str, Callable[[], Any]] = {
            f"round trip {NEAR_MS:g}-{FAR_MS:g} ms": field_.far,
            "load 0-2 others": field_.load,
            "battery free-off": field_.battery,
            "drafter right-wrong": field_.drafter,
        }
        await field_.warm()
        names = list(kinds)[:1] if quick else list(kinds)
        rows = [await real_cell(field_, name, kinds[name], rounds) for name in names]
        return rows, {"target, inflated": resolve(field_.bed.model).digest}


async def real_cell(
    here: Ground, name: str, change: Callable[[], Any], rounds: int
) -> dict[str, Any]:
    """All arms in turn on the same prompts; pairs of one round are compared."""
    note(f"real: {name}")
    runs: dict[str, list[Answered]] = {arm: [] for arm in ARMS}
    began, told = time.monotonic(), len(here.decisions)
    for number in range(rounds):
        turned = ARMS[number % 3 :] + ARMS[: number % 3]
        for arm in turned:
            here.daemon.governor.book = deepcopy(here.known)
            runs[arm].append(await here.answer(arm, PROMPTS[number % len(PROMPTS)], change))
    costs = {arm: sum(run.cost for run in runs[arm]) / rounds for arm in ARMS}
    best = min(FIXED, key=lambda arm: costs[arm])
    over = ratio([(a.cost, b.cost) for a, b in zip(runs["auto"], runs[best], strict=True)])
    flips = sum(run.changes for run in runs["auto"])
    spent_s = sum(run.tpot_ms for run in runs["auto"]) * TOKENS / 1e3
    equal = all(run.ids == runs["cloud"][i].ids for arm in ARMS for i, run in enumerate(runs[arm]))
    return {
        "kind": "real",
        "cell": name,
        **costs,
        "best": best,
        "regret": over.median - 1.0,
        "regret_low": over.low - 1.0,
        "regret_high": over.high - 1.0,
        "flips_per_min": flips / spent_s * 60.0,
        "steady": False,
        "identical": equal,
        "pairs": [a.cost / b.cost for a, b in zip(runs["auto"], runs[best], strict=True)],
        "decisions": len(here.decisions) - told,
        "seconds": time.monotonic() - began,
    }


# --- the result --------------------------------------------------------------------------------


def figures(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """A real cell counts by the nearer end of its interval, and so do all of them together: they
    fail only if all of that does."""
    virtual = [row for row in rows if row["kind"] == "virtual"]
    real = [row for row in rows if row["kind"] == "real"]
    worst = max(row["regret"] for row in virtual)
    seen = max((row["regret_low"] for row in real), default=0.0)
    pairs = [(pair, 1.0) for row in real for pair in row["pairs"]] or [(1.0, 1.0)]
    pooled = ratio(pairs)
    return {
        "regret_vs_best_fixed": max(worst, seen, pooled.low - 1.0),
        "regret_real_pooled": pooled.median - 1.0,
        "regret_real_pooled_low": pooled.low - 1.0,
        "regret_real_pooled_high": pooled.high - 1.0,
        "regret_virtual_worst": worst,
        "regret_virtual_mean": float(np.mean([row["regret"] for row in virtual])),
        "regret_real_worst": max((row["regret"] for row in real), default=0.0),
        "regret_real_worst_low": seen,
        "over_oracle_mean": float(np.mean([row["over_oracle"] for row in virtual])),
        "flips_per_min": max(row["flips_per_min"] for row in rows if row["steady"]),
        "probes_per_min": max(row["probes_per_min"] for row in virtual),
        "identical_share": float(np.mean([row["identical"] for row in real])) if real else 1.0,
        "virtual_hours": sum(3 * row["virtual_s"] for row in virtual) / 3600.0,
    }


def virtual(seed: int, *, quick: bool) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """All virtual cells and the two controls, on as many processes as there are cores."""
    even, pays = control_cells(seed)
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        flips, regret = pool.submit(restless, even), pool.submit(always_wrong, pays)
        rows = list(pool.map(ride, virtual_cells(seed, quick=quick)))
        found = {
            "flips_per_min_without_hysteresis": flips.result(),
            "regret_always_wrong": regret.result(),
        }
    red = (
        found["flips_per_min_without_hysteresis"] > BAR_FLIPS
        and found["regret_always_wrong"] > BAR_REGRET
    )
    return rows, {**found, "red": red}


def run(*, quick: bool, seed: int = harness.SEED) -> dict[str, Any]:
    """The policy's cost over the best fixed placement while things change, real and virtual."""
    note("virtual cells")
    rows, controls = virtual(seed, quick=quick)
    real, models = asyncio.run(real_cells(1 if quick else 3, quick=quick))
    rows = [*real, *rows]
    return {
        "cases": len(rows) * 3,
        "figures": figures(rows),
        "controls": controls,
        "cells": rows,
        "losing": [row for row in rows if row["regret"] > 0.0],
        "models": {**models, "draft": resolve("bundled:draft").digest},
        "seed": seed,
    }


if __name__ == "__main__":
    sys.exit(harness.main("placement", run))
