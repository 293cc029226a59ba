"""`bench split`: a model whose layers lie on several devices, against the same engine unsplit.

Every device is a process of its own (`outrider worker`); links are the shaping proxy.

- identity: 2 and 4 stages, greedy and sampled, with and without hint rows, and through cloud
  and device; lossless activations. Control: a stage that adds noise.
- pipeline: prefill over 4 emulated devices (they sleep: `--speed`), pieces as many as the
  engine chooses / one piece. Control: one piece on both sides.
- activations: bytes between the stages by code, and how far the text stays the same.
- speculation: decoding with the bundled draft / without, 30 ms of round trip on every way
  between devices: a pass goes to the first, on to the second, and back.
- kill: a device is killed in the middle of an answer, and the others go on.

What a split costs beside one device that holds it all stands under the losing cells.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench import harness
from bench.harness import Ratio, note, ratio
from bench.rtt import PROMPTS, SAMPLINGS
from bench.support import model_digest, start_small
from outrider.edge.daemon import Daemon
from outrider.edge.fanout import Fanout
from outrider.edge.link import Link as CloudLink
from outrider.edge.service import GenerateRequest
from outrider.engine import Engine, EngineSpec, Note, Picked, Span, Stage, StageInfo, StageSpan
from outrider.engines import registry
from outrider.engines.stages import build_stage
from outrider.lag import LoopLag
from outrider.models import served
from outrider.models.source import resolve
from outrider.options import Address, EdgeOptions
from outrider.protocol.activations import CODECS, ActivationCodec
from outrider.protocol.bus import NoBus
from outrider.protocol.sampling import Sampling, SamplingParams
from outrider.protocol.stream import Done, Token
from outrider.stages.chain import Chain
from outrider.stages.engine import SplitEngine
from outrider.stages.local import LocalChain
from outrider.stages.replan import Chosen, Layout, told
from outrider.testing.child import ChildSpec, ReadyFile
from outrider.testing.inflate import inflate
from outrider.testing.link import Link
from outrider.testing.proxy_process import ProxyProcess
from outrider.testing.supervisor import Supervisor

MODEL = "bundled:target"
SEED = 7
TOKENS = 48
SPEC = EngineSpec(MODEL, "torch", device="cpu", max_slots=4, max_rows=1024, threads=1)
RTT_MS = 30.0
SPEED = 0.125
"""Of an emulated device: four of them ask for half a core."""
PREFILL = 768
CONTROLS = 2
"""Rounds with a control beside them."""
LARGE: dict[str, Any] = {"hidden": 1024, "intermediate": 1408, "layers": 8}
"""The target blown up, so that rows cost what they cost in a model worth splitting."""
NOISE = 0.02
KILLED_AT = 16
_COMMAND = (sys.executable, "-c", "from outrider.cli import main; main()")


# --- answers of an engine ----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Case:
    """One answer to compare: `hints` rows follow each row, the last of them wrong."""

    prompt: tuple[int, ...]
    sampling: SamplingParams
    hints: int = 0


@dataclass(frozen=True, slots=True)
class Answer:
    ids: tuple[int, ...]
    seconds: float
    """From the first token to the last."""
    longest: float = 0.0
    """Of one pass."""


def answer(
    engine: Engine,
    case: Case,
    known: Sequence[int] = (),
    at: Callable[[int], None] = lambda count: None,
    tokens: int = TOKENS,
) -> Answer:
    """`known`: the answer, from which hints are made; `at` is told how many tokens there are."""
    slot = engine.open(Sampling(case.sampling, SEED, 0, len(case.prompt)))
    ids: list[int] = []
    pending, base, longest, began = case.prompt, 0, 0.0, 0.0
    while len(ids) < tokens:
        at(len(ids))
        hints = hints_of(known, len(ids), case.hints)
        before = time.perf_counter()
        span = Span(slot, base, (*pending, *hints), len(pending) - 1)
        picked = engine.extend([span])[0].ids
        began = began or time.perf_counter()
        longest = max(longest, time.perf_counter() - before)
        held = agreed(hints, picked)
        ids += picked[: held + 1]
        base += len(pending) + held
        pending = (picked[held],)
    seconds = time.perf_counter() - began
    engine.close(slot)
    return Answer(tuple(ids[:tokens]), seconds, longest)


def hints_of(known: Sequence[int], at: int, count: int) -> tuple[int, ...]:
    """The next tokens, of which the last is spoilt."""
    found = tuple(known[at : at + count])
    return (*found[:-1], found[-1] ^ 1) if found else ()


def agreed(hints: Sequence[int], picked: Sequence[int]) -> int:
    """Hints that hold."""
    for number, hint in enumerate(hints):
        if picked[number] != hint:
            return number
    return len(hints)


def cases(*, quick: bool) -> list[Case]:
    tokenizer = served.load(SPEC).tokenizer
    prompts = [tokenizer.encode(text, "add") for text in PROMPTS[: 1 if quick else 6]]
    return [
        Case(prompt, sampling, hints)
        for prompt in prompts
        for sampling in SAMPLINGS
        for hints in (0, 3)
    ]


def agreement(found: Sequence[int], expected: Sequence[int]) -> tuple[int, float]:
    """Where two answers part (their length: nowhere), and the share of equal places."""
    equal = [a == b for a, b in zip(found, expected, strict=True)]
    return equal.index(False) if False in equal else len(equal), sum(equal) / len(equal)


# --- devices -----------------------------------------------------------------------------------


@dataclass(slots=True)
class Bed:
    """Processes and links; everything ends with the stack."""

    stack: AsyncExitStack
    place: Path
    supervisor: Supervisor
    proxies: list[ProxyProcess] = field(default_factory=list)

    async def worker(self, name: str, model: str = MODEL, speed: float = 1.0) -> Address:
        found = await self._start(
            name, "worker", "--model", model, "--threads", "1", "--speed", str(speed),
            "--engine", "torch",
        )  # fmt: skip
        return Address.parse(found["address"], 0)

    async def workers(self, *names: str, **how: Any) -> list[Address]:
        return list(await asyncio.gather(*(self.worker(name, **how) for name in names)))

    async def cloud(self, workers: Sequence[Address], layers: str) -> Address:
        listed = ",".join(map(str, workers))
        found = await self._start(
            "cloud", "cloud", "--model", f"t={MODEL}", "--workers", listed, "--layers", layers,
            "--max-slots", "4",
        )  # fmt: skip
        return Address.parse(found["address"], 0)

    async def _start(self, name: str, verb: str, *flags: str) -> dict[str, str]:
        ready = self.place / f"{name}.json"
        ready.unlink(missing_ok=True)
        command = (
            *(*_COMMAND, verb, "--listen", "127.0.0.1:0"),
            *("--ready-file", str(ready), *flags),
        )
        environment = {"OUTRIDER_RUNTIME": str(self.place / name), "OMP_NUM_THREADS": "1"}
        await self.supervisor.start(
            ChildSpec(name, command, env=environment, ready=ReadyFile(ready))
        )
        found: dict[str, str] = json.loads(ready.read_text())
        return found

    async def behind(self, address: Address, link: Link) -> Address:
        proxy = await ProxyProcess.start(address.host, address.port, link)
        self.stack.push_async_callback(proxy.aclose)
        self.proxies.append(proxy)
        return Address(proxy.host, proxy.port)

    async def daemon(self, cloud: Address) -> Daemon:
        small = await start_small("onnx", 4, self.stack)
        options = EdgeOptions(clouds=(cloud,), fallback="wait", draft="none")
        fanout = Fanout(NoBus())
        link = CloudLink.make(options, fanout.publish)
        self.stack.push_async_callback(link.close)
        return Daemon(options, link, small, fanout, LoopLag())


def split(
    workers: Sequence[Address], layers: str, codec: ActivationCodec = "fp32", model: str = MODEL
) -> SplitEngine:
    options = (
        ("workers", ",".join(map(str, workers))),
        ("layers", layers),
        ("activations", codec),
    )
    engine = registry.build(replace(SPEC, model=model, engine="split", options=options))
    assert isinstance(engine, SplitEngine)
    return engine


def evenly(layers: int, stages: int) -> str:
    ends = [layers * number // stages for number in range(stages + 1)]
    return ",".join(f"{a}:{b}" for a, b in zip(ends, ends[1:], strict=False))


# --- identity ----------------------------------------------------------------------------------


@dataclass(slots=True)
class Counted:
    """Cases, and those that were equal."""

    cases: int = 0
    equal: int = 0

    def note(self, *, same: bool) -> None:
        self.cases += 1
        self.equal += same

    @property
    def share(self) -> float:
        return self.equal / self.cases


def compare(
    engine: Engine, given: Sequence[Case], expected: dict[Case, Answer], counted: Counted
) -> list[Answer]:
    found = []
    for case in given:
        known = expected[case].ids
        found.append(answer(engine, case, known))
        counted.note(same=found[-1].ids == known)
    return found


def rate(answers: Sequence[Answer]) -> float:
    """Tokens a second of decoding."""
    return sum(len(a.ids) - 1 for a in answers) / sum(a.seconds for a in answers)


class Noisy:
    """A stage whose hidden states are a little off."""

    def __init__(self, inner: Stage) -> None:
        self._inner = inner
        self._random = np.random.default_rng(1)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    @property
    def info(self) -> StageInfo:
        return self._inner.info

    def run(self, spans: Sequence[StageSpan]) -> list[NDArray[np.float32] | Picked]:
        return [
            part if isinstance(part, Picked) else self._spoilt(part)
            for part in self._inner.run(spans)
        ]

    def _spoilt(self, hidden: NDArray[np.float32]) -> NDArray[np.float32]:
        noise = self._random.standard_normal(hidden.shape).astype(np.float32)
        spoilt: NDArray[np.float32] = (hidden + NOISE * hidden.std() * noise).astype(np.float32)
        return spoilt


class NoisyFleet:
    """Two stages in this process, the first of them noisy."""

    def plan(self, without: str = "") -> Chosen:
        return Chosen(told("0:3,3:6", ["a", "b"], 6))

    def chain(self, layout: Layout) -> Chain:
        first, second = (placed.layers for placed in layout)
        builds: list[Callable[[], Any]] = [
            lambda: Noisy(build_stage(SPEC, first)),
            lambda: build_stage(SPEC, second),
        ]
        return LocalChain(builds, names=["a", "b"])

    def shutdown(self) -> None:
        """Nothing of its own."""


def noisy(given: Sequence[Case], expected: dict[Case, Answer]) -> float:
    counted = Counted()
    engine = SplitEngine(NoisyFleet(), None, clock=time.monotonic)
    compare(engine, given, expected, counted)
    engine.shutdown()
    return counted.share


# --- prefill in pieces -------------------------------------------------------------------------


def prefill_s(engine: SplitEngine, chunk: int | None) -> float:
    engine.pipeline.chunk = chunk
    tokens = tuple(int(t) for t in np.random.default_rng(SEED).integers(5, 4000, PREFILL))
    slot = engine.open()
    began = time.perf_counter()
    engine.extend([Span(slot, 0, tokens, PREFILL - 1)])
    seconds = time.perf_counter() - began
    engine.close(slot)
    return seconds


@dataclass(frozen=True, slots=True)
class Filled:
    """Seconds of a prefill, one piece and many; `control` is one piece against itself."""

    ratio: Ratio
    control: float
    one_s: float
    many_s: float
    rows: int


def pipelined(engine: SplitEngine, rounds: int) -> Filled:
    for chunk in (192, 64):
        prefill_s(engine, chunk)
    one, many, again = [], [], []
    for number in range(rounds):
        note(f"pipeline, round {number + 1} of {rounds}")
        one.append(prefill_s(engine, PREFILL))
        many.append(prefill_s(engine, None))
        if number < CONTROLS:
            again.append(prefill_s(engine, PREFILL))
    engine.pipeline.chunk = None
    return Filled(
        ratio(list(zip(one, many, strict=True))),
        ratio(list(zip(one, again, strict=False))).median,
        float(np.median(one)),
        float(np.median(many)),
        engine.pipeline.rows(PREFILL),
    )


# --- through cloud and device ------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Ride:
    ids: tuple[int, ...]
    tpot_ms: float
    passes: int


async def ride(daemon: Daemon, placement: Any, text: str, sampling: SamplingParams) -> Ride:
    request = GenerateRequest(
        prompt=text, sampling=sampling, max_tokens=TOKENS, seed=SEED, placement=placement
    )
    tokens: list[Token] = []
    done: Done | None = None
    async for event in daemon.generate(request):
        if isinstance(event, Token):
            tokens.append(event)
        elif isinstance(event, Done):
            done = event
    assert done is not None
    spent = tokens[-1].t_ms - tokens[0].t_ms
    return Ride(
        tuple(token.id for token in tokens),
        spent / max(1, len(tokens) - 1),
        done.speculation.passes,
    )


@dataclass(frozen=True, slots=True)
class Heard:
    """Prompts answered without and with hints."""

    rides: tuple[tuple[str, SamplingParams, Ride, Ride], ...]
    lateness_p99_ms: float

    @property
    def pairs(self) -> list[tuple[float, float]]:
        """ms a token; an answer that ends at once says nothing of decoding."""
        return [(a.tpot_ms, b.tpot_ms) for _, _, a, b in self.rides if len(a.ids) > TOKENS // 3]

    @property
    def ratio(self) -> Ratio:
        return ratio(self.pairs)


async def speculated(bed: Bed, workers: Sequence[Address], *, quick: bool) -> Heard:
    """With and without hints in turn, every way between devices RTT_MS long."""
    far = [await bed.behind(address, Link.of_rtt(RTT_MS)) for address in workers[:2]]
    daemon = await bed.daemon(await bed.cloud(far, evenly(6, 2)))
    asked = [(t, s) for t in PROMPTS[: 1 if quick else 8] for s in SAMPLINGS]
    await ride(daemon, "draft", *asked[0])
    for proxy in bed.proxies:
        await proxy.mark()
    rides = []
    for number, (text, sampling) in enumerate(asked):
        note(f"speculation, {number + 1} of {len(asked)}")
        without = await ride(daemon, "cloud", text, sampling)
        rides.append((text, sampling, without, await ride(daemon, "draft", text, sampling)))
    lateness = [(await proxy.statistics()).lateness_p99_ms for proxy in bed.proxies[-2:]]
    await daemon.close()
    return Heard(tuple(rides), max(lateness))


def through(
    rides: Sequence[tuple[str, SamplingParams, Ride, Ride]], engine: Engine, counted: Counted
) -> None:
    """Whether answers over cloud and device are the unsplit engine's; they end where they end."""
    tokenizer = served.load(SPEC).tokenizer
    for text, sampling, *found in rides:
        case = Case(tokenizer.encode(text, "add"), sampling)
        expected = answer(engine, case).ids
        for one in found:
            counted.note(same=one.ids == expected[: len(one.ids)])


# --- bytes -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Carried:
    codec: ActivationCodec
    bytes: int
    """Hidden states alone, as they went over the wire."""
    wire: int
    """All that went to the second device, framing and orders included."""
    first_divergence: int
    agreement: float


async def carried(
    bed: Bed, workers: Sequence[Address], given: Sequence[Case], expected: dict[Case, Answer]
) -> list[Carried]:
    near = [await bed.behind(address, Link()) for address in workers[:2]]
    proxy = bed.proxies[-1]
    found = []
    for codec in CODECS:
        note(f"activations as {codec}")
        engine = await asyncio.to_thread(split, near, evenly(6, 2), codec)
        before, sent = (await proxy.statistics()).bytes_up, engine.chain.times()[1].bytes_in
        answers = [await asyncio.to_thread(answer, engine, case) for case in given]
        after, now = (await proxy.statistics()).bytes_up, engine.chain.times()[1].bytes_in
        await asyncio.to_thread(engine.shutdown)
        alike = [agreement(a.ids, expected[c].ids) for a, c in zip(answers, given, strict=True)]
        found.append(
            Carried(
                codec,
                now - sent,
                after - before,
                min(first for first, _ in alike),
                float(np.mean([share for _, share in alike])),
            )
        )
    return found


# --- a device that goes away -------------------------------------------------------------------


async def killed(bed: Bed, workers: Sequence[Address], case: Case) -> tuple[Answer, Note]:
    """Of three devices the second is killed; the answer, and what was decided."""
    note("a device is killed in the middle of an answer")
    engine = await asyncio.to_thread(split, workers[:3], evenly(6, 3))
    child = bed.supervisor["b"]

    def at(count: int) -> None:
        if count == KILLED_AT:
            os.kill(child.pid, signal.SIGKILL)

    found = await asyncio.to_thread(answer, engine, case, (), at)
    [decided] = engine.statistics().notes
    await asyncio.to_thread(engine.shutdown)
    return found, decided


# --- the bench ---------------------------------------------------------------------------------


@dataclass(slots=True)
class Found:
    """What the parts add to."""

    given: list[Case]
    whole: Engine
    """The same engine, unsplit."""
    expected: dict[Case, Answer]
    counted: Counted = field(default_factory=Counted)
    figures: dict[str, float] = field(default_factory=dict)
    controls: dict[str, float] = field(default_factory=dict)
    cells: list[dict[str, Any]] = field(default_factory=list)
    losing: list[dict[str, Any]] = field(default_factory=list)
    decided: dict[str, str] = field(default_factory=dict)

    @property
    def plain(self) -> list[Case]:
        return [case for case in self.given if not case.hints]

    @property
    def unsplit(self) -> float:
        return rate([self.expected[case] for case in self.plain])

    def decoding(self, what: str, tokens_per_s: float) -> None:
        """A cell, and where it is slower than one device that holds all, a losing one."""
        cell = {"what": what, "tokens_per_s": tokens_per_s}
        self.cells.append(cell)
        if tokens_per_s < self.unsplit:
            ratio = tokens_per_s / self.unsplit
            self.losing.append({**cell, "unsplit": self.unsplit, "ratio": ratio})


async def identity(found: Found, workers: Sequence[Address]) -> None:
    for stages in (2, 4):
        note(f"{stages} stages")
        engine = await asyncio.to_thread(split, workers[:stages], evenly(6, stages))
        same = engine.info.numeric_class == found.whole.info.numeric_class
        found.figures[f"same_class_{stages}"] = float(same)
        answers = await asyncio.to_thread(
            compare, engine, found.given, found.expected, found.counted
        )
        await asyncio.to_thread(engine.shutdown)
        plain = [a for a, case in zip(answers, found.given, strict=True) if not case.hints]
        found.decoding(f"{stages} stages, loopback", rate(plain))
    share = await asyncio.to_thread(noisy, found.given[:8], found.expected)
    found.controls["control_identical_share"] = share


async def activations(found: Found, bed: Bed, workers: Sequence[Address]) -> None:
    codes = await carried(bed, workers, found.plain[:6], found.expected)
    size = {code.codec: code for code in codes}
    int8, fp32, bf16 = (size[name] for name in ("int8", "fp32", "bf16"))
    found.counted.note(same=fp32.agreement == 1.0)
    found.figures |= {
        "activation_bytes_ratio_fp32": int8.bytes / fp32.bytes,
        "activation_bytes_ratio_bf16": int8.bytes / bf16.bytes,
        "wire_bytes_ratio_fp32": int8.wire / fp32.wire,
        "int8_first_divergence": int8.first_divergence,
        "int8_agreement": int8.agreement,
    }
    found.cells += [{"what": f"activations {code.codec}", **asdict(code)} for code in codes]


async def killing(found: Found, bed: Bed, workers: list[Address]) -> None:
    case = next(case for case in found.plain if case.sampling == SAMPLINGS[1])
    done, decided = await killed(bed, workers, case)
    workers[1] = await bed.worker("b")
    same = done.ids == found.expected[case].ids
    found.counted.note(same=same)
    found.figures |= {"killed_identical": float(same), "recovery_s": done.longest}
    found.decided = {"old": decided.old, "new": decided.new, "reason": decided.reason}
    found.cells.append({"what": f"device killed at token {KILLED_AT}", "s": done.longest})


async def filling(found: Found, bed: Bed, rounds: int) -> None:
    folder = bed.place / "large"
    source = resolve(MODEL).folder
    await asyncio.to_thread(lambda: inflate(source, folder, **LARGE))
    slow = await bed.workers("p", "q", "r", "s", model=str(folder), speed=SPEED)
    layers = evenly(LARGE["layers"], 4)
    engine = await asyncio.to_thread(split, slow, layers, "fp32", str(folder))
    done = await asyncio.to_thread(pipelined, engine, rounds)
    await asyncio.to_thread(engine.shutdown)
    if rounds > CONTROLS:
        await dealt(found, slow[:2], str(folder))
    await asyncio.gather(*(bed.supervisor[name].end() for name in ("p", "q", "r", "s")))
    found.figures |= done.ratio.flat("pipeline_ratio")
    found.controls["control_pipeline_ratio"] = done.control
    what = f"prefill of {PREFILL}, 4 devices at speed {SPEED}"
    found.cells.append({"what": f"{what}, one piece", "s": done.one_s})
    found.cells.append({"what": f"{what}, pieces of {done.rows} rows", "s": done.many_s})


async def dealt(found: Found, slow: Sequence[Address], model: str) -> None:
    """Two devices with two chunks of layers each, against one each."""
    layers = LARGE["layers"]
    took = {}
    for chunks in (1, 2):
        note(f"{chunks} chunks a device")
        ranges = evenly(layers, 2 * chunks)
        engine = await asyncio.to_thread(split, slow, ranges, "fp32", model)
        runs = [await asyncio.to_thread(prefill_s, engine, chunk) for chunk in (96, 96)]
        took[chunks] = min(runs)
        what = f"prefill of {PREFILL}, 2 devices, {chunks} chunks of layers each, pieces of 96 rows"
        found.cells.append({"what": what, "s": took[chunks]})
        await asyncio.to_thread(engine.shutdown)
    found.figures["chunks_ratio"] = took[1] / took[2]


async def speaking(found: Found, bed: Bed, workers: Sequence[Address], *, quick: bool) -> None:
    done = await speculated(bed, workers, quick=quick)
    await asyncio.to_thread(through, done.rides, found.whole, found.counted)
    found.figures |= done.ratio.flat("split_spec_ratio")
    found.figures["proxy_lateness_p99_ms"] = done.lateness_p99_ms
    for what, side in (("without hints", 0), ("with hints", 1)):
        spent = float(np.mean([pair[side] for pair in done.pairs]))
        found.decoding(f"2 stages, {RTT_MS:g} ms, {what}", 1e3 / spent)


async def _measure(bed: Bed, *, quick: bool) -> Found:
    given = cases(quick=quick)
    whole = await asyncio.to_thread(registry.build, SPEC)
    expected = {case: answer(whole, replace(case, hints=0)) for case in given}
    found = Found(given, whole, expected)
    workers = await bed.workers("a", "b", "c", "d")
    await identity(found, workers)
    await activations(found, bed, workers)
    await killing(found, bed, workers)
    await speaking(found, bed, workers, quick=quick)
    await asyncio.gather(*(bed.supervisor[name].end() for name in ("a", "b", "c", "d", "cloud")))
    await filling(found, bed, 2 if quick else 5)
    found.figures["identical_share"] = found.counted.share
    found.figures["unsplit_tokens_per_s"] = found.unsplit
    return found


async def _run(*, quick: bool) -> Found:
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    async with AsyncExitStack() as stack:
        place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="outrider-")))
        supervisor = await stack.enter_async_context(Supervisor())
        return await _measure(Bed(stack, place, supervisor), quick=quick)


def run(*, quick: bool) -> dict[str, object]:
    """Measures a split model: its text, its prefill, its wire, its decoding, its losses."""
    found = asyncio.run(_run(quick=quick))
    return {
        "cases": found.counted.cases,
        "figures": found.figures,
        "controls": found.controls,
        "cells": found.cells,
        "losing": found.losing,
        "models": {"target": model_digest(SPEC)},
        "decided": found.decided,
    }


if __name__ == "__main__":
    sys.exit(harness.main("split", run))
