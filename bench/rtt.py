"""`bench rtt`: milliseconds a token over an emulated link, against four other ways to answer.

The target is inflated, so that a step takes as long as a real model's. Arms, in
turn for each prompt, in one process on one machine:

- `base`    cloud-only streaming; the device drafts too, its hints are thrown away
- `idle`    cloud-only streaming with an idle device
- `ours`    drafts as hints, trigger auto
- `hostile` the same with a drafter that is always wrong
- `beside`  the cloud with the same draft model at its side (no link between the two)
- `sync`    synchronous draft-verify: the target waits for every draft
- `bare`    the target engine's own loop, no network (`plain`: the same, exactness off)

What a commit costs outside the engines is measured beside these with the target as
it is bundled: a difference of two steps of a few milliseconds, not of two long ones.

A figure is a ratio of one interleaved run, with the 95 % interval of its pairs.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast
from unittest.mock import patch

from bench import harness
from bench.bare import BareLoop
from bench.harness import Ratio, note, ratio
from bench.support import thread_of
from outrider.edge import main as edges
from outrider.edge import session as sessions
from outrider.edge.answer import Answer
from outrider.edge.daemon import Daemon, Small
from outrider.edge.drafter import Drafter
from outrider.edge.fanout import Fanout
from outrider.edge.link import Link as CloudLink
from outrider.edge.service import GenerateRequest
from outrider.engine import EngineSpec, Picked, Span
from outrider.lag import LoopLag
from outrider.models.source import resolve
from outrider.options import Address, EdgeOptions
from outrider.partitioner.power.account import Accountant
from outrider.protocol import events
from outrider.protocol.bus import NoBus, subscribe
from outrider.protocol.messages import Hint
from outrider.protocol.sampling import SamplingParams
from outrider.protocol.stream import Done, Token
from outrider.testing.child import ChildSpec, ReadyFile
from outrider.testing.inflate import inflated
from outrider.testing.link import Link
from outrider.testing.proxy_process import ProxyProcess
from outrider.testing.supervisor import Supervisor
from outrider.worker import EngineThread

STEP_MS = 50.0
SHORT = "bundled:target"
RTTS_MS = (0.0, 20.0, 80.0)
TOKENS = 48
ROUNDS = 6
SHORT_RUNS = 24
"""Pairs of an idle stream and the bare loop with the target as it is bundled."""
NICENESS = 5
PROMPTS = (
    "import argparse\nimport os\n\n\ndef main():\n    parser = argparse.",
    "class Queue:\n    def __init__(self, maxsize=0):\n        self.maxsize = ",
    'def read_file(path):\n    """Read a file and return its lines."""\n',
    "import unittest\n\n\nclass TestQueue(unittest.TestCase):\n    def test_",
    "from collections import OrderedDict\n\n\ndef group(items, key):\n",
    "    def __repr__(self):\n        return ",
    "def parse(text):\n    for line in text.splitlines():\n        if not line",
    "try:\n    import ssl\nexcept ImportError:\n",
)
SAMPLINGS = (SamplingParams(temperature=0.0), SamplingParams(temperature=0.8, top_p=0.95))


@dataclass(frozen=True, slots=True)
class Run:
    """One answer of one arm."""

    tpot_ms: float
    tokens: int
    passes: int
    rows: int
    accepted: int
    sent: int
    bytes_up: int
    ids: tuple[int, ...]


class MutedAnswer(Answer):
    """Drafts like any other, but sends acknowledgements only."""

    def hint(self, slots: int, ahead: int) -> Hint | None:
        found = super().hint(slots, ahead)
        if found is None or not found.tokens:
            return found
        self.counts.sent -= len(found.tokens)
        self.acknowledged = found.seen
        return replace(found, base=found.seen, tokens=()) if found.seen % 16 == 0 else None


def muted() -> AbstractContextManager[Any]:
    """Requests that begin meanwhile throw their hints away."""
    return patch.object(sessions, "Answer", MutedAnswer)


class Hostile:
    """An engine whose choice is always the next id: never the target's."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def extend(self, spans: Sequence[Span]) -> list[Picked]:
        size = self._engine.info.vocabulary_size
        found = self._engine.extend(spans)
        return [replace(p, ids=tuple((i + 1) % size for i in p.ids)) for p in found]


class Bed:
    """Two clouds (auto and pinned to wait), their links, and daemons in this process."""

    def __init__(self, stack: AsyncExitStack, model: str, step_ms: float) -> None:
        self.stack = stack
        self.model = model
        self.step_ms = step_ms
        self.lag = LoopLag()
        self.cloud_lag_ms = 0.0
        self.daemons: dict[str, Daemon] = {}
        self.proxies: dict[str, ProxyProcess] = {}
        self.bare: dict[str, BareLoop] = {}
        self.class_of: dict[str, str] = {}

    async def start(self) -> None:
        place = Path(self.stack.enter_context(tempfile.TemporaryDirectory(prefix="outrider-")))
        supervisor = await self.stack.enter_async_context(Supervisor())
        for numerics in ("exact", "plain"):
            await self._bare(numerics, self.model, numerics)
        await self._bare("short", SHORT, "exact")
        addresses = {}
        for name, trigger in (("auto", "auto"), ("sync", "wait:500")):
            addresses[name] = await self._cloud(supervisor, place, name, trigger, self.model)
        short = await self._cloud(supervisor, place, "short", "free", SHORT)
        os.nice(NICENESS)
        for name, address in addresses.items():
            # A link that is late is no link: it does not stand behind edge and client.
            proxy = await ProxyProcess.start(address.host, address.port, Link())
            self.stack.push_async_callback(proxy.aclose)
            self.proxies[name] = proxy
        good, bad = await self._small(hostile=False), await self._small(hostile=True)
        through = {name: Address(p.host, p.port) for name, p in self.proxies.items()}
        self.daemons = {
            "ours": self._daemon(through["auto"], good),
            "hostile": self._daemon(through["auto"], bad),
            "beside": self._daemon(addresses["auto"], good),
            "sync": self._daemon(through["sync"], good),
            "control": self._daemon(through["sync"], bad),
            "short": self._daemon(short, good),
        }
        # Loading is over: from here on the loop serves.
        sys.setswitchinterval(edges.SWITCH_S)
        self.lag.start()
        self.stack.callback(self.lag.stop)

    async def _bare(self, name: str, model: str, numerics: Any) -> None:
        spec = EngineSpec(
            model=model,
            engine="torch",
            device="cpu",
            numerics=numerics,
            context=256,
            max_slots=2,
            threads=1,
        )
        self.bare[name] = await BareLoop.start(spec)
        self.stack.push_async_callback(self.bare[name].aclose)

    async def _cloud(
        self, supervisor: Supervisor, place: Path, name: str, trigger: str, model: str
    ) -> Address:
        note = place / f"{name}.json"
        command = (
            *(sys.executable, "-c", "from outrider.cli import main; main()", "cloud"),
            *("--listen", "127.0.0.1:0", "--ready-file", str(note), "--model", f"t={model}"),
            *("--engine", "torch", "--device", "cpu", "--threads", "1", "--context", "512"),
            *("--max-slots", "4", "--trigger", trigger),
        )
        environment = {"OUTRIDER_RUNTIME": str(place / name), "OMP_NUM_THREADS": "1"}
        await supervisor.start(
            ChildSpec(name, command, env=environment, ready=ReadyFile(note), ready_timeout_s=120)
        )
        ready = json.loads(note.read_text())
        if name == "auto":
            task = asyncio.create_task(self._listen(ready["events"]))
            self.stack.callback(task.cancel)
        return Address.parse(ready["address"], 0)

    async def _listen(self, address: str) -> None:
        async for event in subscribe(address):
            # Each speaks of the last minute; what is left at the end says nothing of set-up.
            if isinstance(event, events.Lag):
                self.cloud_lag_ms = event.p99_ms

    async def _small(self, *, hostile: bool) -> Small:
        small, _ = await edges._small(EdgeOptions(), self.stack, lambda event: None, Accountant())
        assert small is not None
        if not hostile:
            return small
        thread = thread_of(small)
        engine = EngineThread(cast(Any, Hostile(thread._engine)), thread._pool)
        drafter = Drafter(engine, small.drafter.clock)
        self.stack.callback(asyncio.create_task(drafter.run()).cancel)
        return replace(small, drafter=drafter)

    def _daemon(self, cloud: Address, small: Small) -> Daemon:
        options = EdgeOptions(clouds=(cloud,), fallback="wait")
        fanout = Fanout(NoBus())
        link = CloudLink.make(options, fanout.publish)
        self.stack.push_async_callback(link.close)
        return Daemon(options, link, small, fanout, self.lag)

    async def run(self, arm: str, prompt: str, sampling: SamplingParams, tokens: int) -> Run:
        """One answer of one arm."""
        if arm == "base":
            with muted():
                return await self._answer("ours", "draft", prompt, sampling, tokens)
        if arm == "idle":
            return await self._answer("ours", "cloud", prompt, sampling, tokens)
        if arm == "short":
            return await self._answer("short", "cloud", prompt, sampling, tokens)
        return await self._answer(arm, "draft", prompt, sampling, tokens)

    async def _answer(
        self, daemon: str, placement: Any, prompt: str, sampling: SamplingParams, tokens: int
    ) -> Run:
        proxy = self.proxies["sync" if daemon in ("sync", "control") else "auto"]
        before = (await proxy.statistics()).bytes_up
        request = GenerateRequest(
            prompt=prompt, sampling=sampling, max_tokens=tokens, seed=7, placement=placement
        )
        got: list[Token] = []
        done: Done | None = None
        async for event in self.daemons[daemon].generate(request):
            if isinstance(event, Token):
                got.append(event)
            elif isinstance(event, Done):
                done = event
        assert done is not None and len(got) > 1
        after = (await proxy.statistics()).bytes_up
        spec = done.speculation
        return Run(
            tpot_ms=(got[-1].t_ms - got[0].t_ms) / (len(got) - 1),
            tokens=len(got),
            passes=spec.passes,
            rows=spec.num_draft_tokens,
            accepted=spec.num_accepted_draft_tokens,
            sent=spec.sent_draft_tokens,
            bytes_up=after - before,
            ids=tuple(token.id for token in got),
        )


ARMS = ("base", "ours", "hostile", "beside", "sync", "idle")


@dataclass(slots=True)
class Cell:
    """All runs at one round trip."""

    rtt_ms: float
    runs: dict[str, list[Run]]
    bare_ms: list[float]
    plain_ms: list[float]
    lateness_p99_ms: float = 0.0

    def ratio(self, arm: str) -> Ratio:
        """ms a token, arm / base, pair by pair."""
        pairs = zip(self.runs[arm], self.runs["base"], strict=True)
        return ratio([(a.tpot_ms, b.tpot_ms) for a, b in pairs])

    def mean(self, arm: str) -> float:
        runs = self.runs[arm]
        return sum(run.tpot_ms for run in runs) / len(runs)

    def total(self, arm: str, name: str) -> int:
        return sum(getattr(run, name) for run in self.runs[arm])

    def identical(self) -> bool:
        return all(
            run.ids == base.ids
            for arm in ARMS
            for run, base in zip(self.runs[arm], self.runs["base"], strict=True)
        )


async def measure(bed: Bed, rtt_ms: float, rounds: int, tokens: int) -> Cell:
    for proxy in bed.proxies.values():
        await proxy.set(Link.of_rtt(rtt_ms))
        await proxy.mark()
    cell = Cell(rtt_ms, {arm: [] for arm in ARMS}, [], [])
    await bed.run("ours", PROMPTS[0], SAMPLINGS[0], 16)
    await bed.run("hostile", PROMPTS[0], SAMPLINGS[0], 16)
    await bed.run("sync", PROMPTS[0], SAMPLINGS[0], 16)
    for number in range(rounds):
        note(f"RTT {rtt_ms:g} ms, round {number + 1} of {rounds}")
        prompt = PROMPTS[number % len(PROMPTS)]
        sampling = SAMPLINGS[(number + number // len(PROMPTS)) % 2]
        turned = ARMS[number % len(ARMS) :] + ARMS[: number % len(ARMS)]
        for arm in turned:
            cell.runs[arm].append(await bed.run(arm, prompt, sampling, tokens))
        cell.bare_ms.append(await bed.bare["exact"].run(tokens // 2))
        cell.plain_ms.append(await bed.bare["plain"].run(tokens // 2))
    statistics = [await proxy.statistics() for proxy in bed.proxies.values()]
    cell.lateness_p99_ms = max(each.lateness_p99_ms for each in statistics)
    return cell


def rows_of(cell: Cell) -> list[dict[str, Any]]:
    """One flat row per arm."""
    step_ms = sum(cell.bare_ms) / len(cell.bare_ms)
    return [_row(cell, arm, step_ms) for arm in ARMS]


def _row(cell: Cell, arm: str, step_ms: float) -> dict[str, Any]:
    tokens = cell.total(arm, "tokens")
    over = cell.ratio(arm)
    return {
        "rtt_ms": cell.rtt_ms,
        "arm": arm,
        "tpot_ms": round(cell.mean(arm), 3),
        "over_base": over.median,
        "low": over.low,
        "high": over.high,
        "passes_per_token": cell.total(arm, "passes") / tokens,
        "hint_yield": cell.total(arm, "accepted") / max(1, cell.total(arm, "sent")),
        "acceptance": cell.total(arm, "accepted") / max(1, cell.total(arm, "rows")),
        "bytes_up_per_token": cell.total(arm, "bytes_up") / tokens,
        "late_p99_ms": cell.lateness_p99_ms,
        "void": cell.lateness_p99_ms > step_ms / 10,
        "identical": cell.identical(),
    }


OURS = ("ours", "hostile")


def figures(rows: Sequence[dict[str, Any]], cells: Sequence[Cell], bed: Bed) -> dict[str, float]:
    pairs = [
        (base.tpot_ms, idle.tpot_ms, bare, plain)
        for cell in cells
        for base, idle, bare, plain in zip(
            cell.runs["base"], cell.runs["idle"], cell.bare_ms, cell.plain_ms, strict=True
        )
    ]
    step_ms = sum(bare for _, _, bare, _ in pairs) / len(pairs)
    # On a machine so busy that every cell is void, the figures say what was seen all the same.
    valid = [row for row in rows if not row["void"]] or list(rows)
    raced = [row for row in valid if row["arm"] in OURS]
    ours = [row for row in valid if row["arm"] == "ours"]
    near = [row for row in ours if row["rtt_ms"] <= step_ms] or ours
    over_bare = ratio([(base, bare) for base, _, bare, _ in pairs])
    idle_over_bare = ratio([(idle, bare) for _, idle, bare, _ in pairs])
    worst = max(raced, key=lambda row: float(row["over_base"]))
    best = min(ours, key=lambda row: float(row["over_base"]))
    return {
        "step_ms": step_ms,
        "worst_tpot_ratio": worst["over_base"],
        "worst_tpot_ratio_low": worst["low"],
        "worst_tpot_ratio_high": worst["high"],
        "best_tpot_ratio": best["over_base"],
        "best_tpot_ratio_low": best["low"],
        "best_tpot_ratio_high": best["high"],
        "passes_per_token": max(row["passes_per_token"] for row in near),
        "hint_yield": min(row["hint_yield"] for row in near),
        **over_bare.flat("baseline_over_bare"),
        **idle_over_bare.flat("idle_over_bare"),
        **ratio([(bare, plain) for _, _, bare, plain in pairs]).flat("exact_cost"),
        "bytes_up_per_token": max(row["bytes_up_per_token"] for row in raced),
        "loop_lag_p99_ms": max(bed.lag.quantile_ms(0.99), bed.cloud_lag_ms),
        "loop_lag_p99_edge_ms": bed.lag.quantile_ms(0.99),
        "loop_lag_p99_cloud_ms": bed.cloud_lag_ms,
        "identical_share": sum(row["identical"] for row in rows) / len(rows),
        "void_cells": sum(row["void"] for row in rows),
    }


async def overhead(bed: Bed, runs: int, tokens: int) -> dict[str, float]:
    """Milliseconds that a commit costs outside the engines: streaming minus the bare loop."""
    pairs = []
    for _ in range(runs):
        idle = await bed.run("short", PROMPTS[0], SAMPLINGS[0], tokens)
        pairs.append((idle.tpot_ms, await bed.bare["short"].run(tokens)))
    added = sorted(idle - bare for idle, bare in pairs)
    return {
        "round_overhead_ms": added[len(added) // 2],
        "round_overhead_low_ms": added[len(added) // 20],
        "round_overhead_high_ms": added[-1 - len(added) // 20],
        "short_step_ms": sum(bare for _, bare in pairs) / len(pairs),
    }


def losing(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Where another arm is ahead of ours, or a bad drafter behind doing nothing."""
    by = {(row["rtt_ms"], row["arm"]): row for row in rows}
    lost = []
    for rtt_ms in sorted({row["rtt_ms"] for row in rows}):
        pairs = [("ours", arm) for arm in ("base", "beside", "sync", "idle")]
        for one, other in [*pairs, ("hostile", "base"), ("hostile", "idle")]:
            over = by[rtt_ms, one]["tpot_ms"] / by[rtt_ms, other]["tpot_ms"]
            if over > 1.0:
                lost.append({"rtt_ms": rtt_ms, "arm": one, "behind": other, "ratio": over})
    return lost


@asynccontextmanager
async def bed_of(step_ms: float) -> AsyncIterator[Bed]:
    model = str(await asyncio.to_thread(inflated, step_ms=step_ms))
    async with AsyncExitStack() as stack:
        bed = Bed(stack, model, step_ms)
        await bed.start()
        yield bed


async def measured(*, quick: bool) -> dict[str, Any]:
    rounds, rtts = (1, (0.0, 20.0)) if quick else (ROUNDS, RTTS_MS)
    tokens = 16 if quick else TOKENS
    async with bed_of(STEP_MS) as bed:
        cells = [await measure(bed, rtt_ms, rounds, tokens) for rtt_ms in rtts]
        rows = [row for cell in cells for row in rows_of(cell)]
        found = figures(rows, cells, bed)
        found |= await overhead(bed, 4 if quick else SHORT_RUNS, TOKENS)
        digest = resolve(bed.model).digest
        waiting = await control(bed, tokens)
    return {
        "cases": sum(len(runs) for cell in cells for runs in cell.runs.values()),
        "figures": found,
        "controls": {"worst_tpot_ratio_when_waiting": waiting, "red": waiting > 1.05},
        "cells": rows,
        "losing": losing(rows),
        "models": {"target, inflated": digest, "draft": resolve("bundled:draft").digest},
    }


async def control(bed: Bed, tokens: int) -> float:
    """A target that waits for every draft of a drafter that is always wrong: the bar for the
    worst ratio must catch it."""
    pairs = []
    for _ in range(2):
        base = await bed.run("base", PROMPTS[0], SAMPLINGS[0], tokens // 2)
        waiting = await bed.run("control", PROMPTS[0], SAMPLINGS[0], tokens // 2)
        pairs.append((waiting.tpot_ms, base.tpot_ms))
    return ratio(pairs).median


def run(*, quick: bool) -> dict[str, Any]:
    """Milliseconds a token at round trips of 0, 20 and 80 ms, against cloud-only streaming."""
    return asyncio.run(measured(quick=quick))


if __name__ == "__main__":
    sys.exit(harness.main("rtt", run))
