"""`bench lossless`: is the committed answer what the target alone would have said, always?

Factors: target (torch; llama.cpp in F16 and Q8_0, all exact), drafter (every installed engine on
the bundled draft, n-gram, a hostile one, none), link (free-running target at RTT 0; a target that
waits for hints at RTT 80 ms), cut (none, reset, black hole), prompt (24 pieces of Python),
sampling (greedy; temperature 0.8, top-p 0.95). The first four make a batch of 16 answers at a
time over one connection; batches are taken from the grid in an order that covers all pairs of
levels first (`design.covering`), and prompts and samplings go round within them.

Every case goes the real way: device, shaping proxy, gRPC, a cloud in a process of its own, its
engine in a child. A cut is made once every answer of the batch has a token and one has a drawn
number; a case was in flight if it had some of its tokens then, lost its stream, and got the rest
under a higher fence. What counts are the final tokens that the device gave its client, compared
with the target's own plain loop: same engine and numeric class, one row at a time, alone, no
network.

Hint rows are priced at nothing here, so that a cloud verifies every hint that is still alive: a
cloud that served users on a small CPU would spend few rows on them, and test little.

Control: the same comparison with a cloud whose acceptance rule lets one wrong hint token in 100
through, and the hostile drafter. Beside it, engines that are not exact: how many answers differ,
and by what margin the target preferred its own token where they first do.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from random import Random
from statistics import median
from typing import Any, Literal
from unittest.mock import patch

from bench import design, harness
from bench.prompts import SNIPPETS
from bench.support import (
    TARGET,
    CloudSetup,
    Device,
    drafters,
    model_digest,
    pricing,
    q4_0,
    start_cloud,
    start_device,
    start_small,
)
from outrider.cloud import main as cloud_main
from outrider.cloud import verifier
from outrider.edge.daemon import Small
from outrider.edge.service import GenerateRequest
from outrider.edge.session import Request
from outrider.engine import Engine, EngineSpec, Picked, Span
from outrider.engines import registry
from outrider.errors import OutriderError
from outrider.models import served
from outrider.options import Address
from outrider.protocol.sampling import Sampling, SamplingParams, allowed, noise
from outrider.protocol.stream import Done, Started, Token, Waiting
from outrider.testing.link import Link
from outrider.testing.supervisor import Supervisor
from outrider.worker import EngineThread

SAMPLINGS = {
    "greedy": SamplingParams(temperature=0.0),
    "T=0.8 top-p 0.95": SamplingParams(temperature=0.8, top_p=0.95),
}
WAIT_MS = 200
"""Longer than a round trip of 80 ms and a burst of drafts for 16 answers."""
LINKS = {"free, RTT 0": ("free", 0.0), "wait, RTT 80 ms": (f"wait:{WAIT_MS}", 80.0)}
CUTS = ("none", "reset", "black hole")
FACTORS = ("target", "drafter", "link", "cut", "prompt", "sampling")
FULL_CASES = 1728
"""With three targets and six drafters: 16 answers of every combination of a batch's factors."""
COMMON = CloudSetup(hint_rows="all", ahead=12)
"""Targets may run 12 tokens ahead of their device: they can not end an answer while it is away,
and an answer that was cut goes on with hints."""
CONTROL_SIZE = 4
"""Answers at a time in the control: with few, most passes have a wrong hint to look at."""
BATCH_S = 90.0
"""A batch that takes longer has hung; what is missing then is not identical."""
NOTICE_S = 10.0
"""A black hole lasts until every answer in flight has noticed it, and no longer than this."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What is run."""

    targets: Mapping[str, CloudSetup]
    inexact: Mapping[str, CloudSetup]
    control: str
    """The target that the control spoils."""
    drafters: tuple[str, ...]
    """`hostile` stands for what `hostile` names."""
    hostile: str
    links: Mapping[str, tuple[str, float]]
    """Name to (trigger, RTT in ms)."""
    prompts: tuple[str, ...]
    least: int
    """Cases in exact mode; whole batches are run."""
    control_cases: int
    inexact_batches: int
    size: int = 16
    tokens: int = 48
    seeds: int = 2
    """A prompt is asked with so many in turn."""
    leak_every: int = 100
    """Of wrong tokens that the control's rule compares, one in so many passes."""
    cuts: tuple[str, ...] = CUTS
    seed: int = harness.SEED


@dataclass(frozen=True, slots=True)
class Case:
    """One answer to compare."""

    target: str
    drafter: str
    link: str
    cut: str
    prompt: str
    sampling: str
    seed: int

    @property
    def row(self) -> design.Row:
        return self.target, self.drafter, self.link, self.cut, self.prompt, self.sampling

    @property
    def question(self) -> tuple[str, str, int]:
        """What the answer depends on, given the target."""
        return self.prompt, self.sampling, self.seed


@dataclass(slots=True)
class Ride:
    """One answer on its way, as a client of the device sees it."""

    case: Case
    ids: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    request: Request | None = None
    done: Done | None = None
    noticed: bool = False
    """It was told that the cloud is away."""
    had: int | None = None
    """Tokens it had when the link was cut; None when it was not cut."""
    error: str = ""

    @property
    def over(self) -> bool:
        return self.done is not None or bool(self.error)

    @property
    def in_flight(self) -> bool:
        """Cut between two of its tokens, and taken up again under a higher fence."""
        return (
            self.had is not None
            and 0 < self.had < len(self.ids)
            and self.noticed
            and self.request is not None
            and self.request.fence > 1
        )

    @property
    def accepted(self) -> int:
        return self.done.speculation.num_accepted_draft_tokens if self.done is not None else 0

    def identical(self, expected: Sequence[int]) -> bool:
        """Same tokens, each once and in order, and the answer says nothing else of itself."""
        return (
            self.ids == list(expected)
            and self.positions == list(range(len(expected)))
            and self.done is not None
            and self.done.error is None
            and self.done.mixed_from is None
            and not self.done.class_changed_at
        )


# --- the target alone --------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Alone:
    """A target's own plain loop."""

    engine: EngineThread
    prompts: Mapping[str, tuple[int, ...]]
    """Text to ids."""
    end: tuple[int, ...]
    answers: dict[tuple[str, str, int], tuple[int, ...]] = field(default_factory=dict)

    async def answer(self, case: Case, tokens: int) -> tuple[int, ...]:
        """Computed once per prompt, sampling and seed."""
        if case.question not in self.answers:
            prompt, sampling = self.prompts[case.prompt], self.sampling(case)
            self.answers[case.question] = await self.engine.run(
                lambda engine: plain_loop(engine, prompt, sampling, tokens, self.end)
            )
        return self.answers[case.question]

    def sampling(self, case: Case) -> Sampling:
        params = SAMPLINGS[case.sampling]
        return Sampling(params, case.seed, 0, len(self.prompts[case.prompt]))


async def start_alone(spec: EngineSpec, texts: Sequence[str], stack: AsyncExitStack) -> Alone:
    engine = await EngineThread.start(lambda: registry.build(spec))
    stack.push_async_callback(engine.shutdown)
    words = served.load(spec)
    ids = {text: words.tokenizer.encode(text, "add") for text in texts}
    return Alone(engine, ids, tuple(words.vocabulary.end))


def plain_loop(
    engine: Engine, prompt: Sequence[int], sampling: Sampling, tokens: int, end: Sequence[int]
) -> tuple[int, ...]:
    """Prompt and answer one row at a time in one slot: no batch, no hint, nothing to roll back."""
    slot = engine.open(sampling)
    answer: list[int] = []
    try:
        for at, token in enumerate(prompt[:-1]):
            _row(engine, slot, at, token)
        answer.append(_row(engine, slot, len(prompt) - 1, prompt[-1]).ids[0])
        while len(answer) < tokens and answer[-1] not in end:
            at = len(prompt) + len(answer) - 1
            answer.append(_row(engine, slot, at, answer[-1]).ids[0])
    finally:
        engine.close(slot)
    return tuple(answer)


def _row(engine: Engine, slot: int, at: int, token: int) -> Picked:
    return engine.extend([Span(slot, at, (token,))])[0]


# --- a batch -----------------------------------------------------------------------------------


async def ride_batch(
    device: Device, cases: Sequence[Case], prompts: Mapping[str, tuple[int, ...]], plan: Plan
) -> list[Ride]:
    """All answers at a time, with the cut of the batch in the middle of them."""
    rides = [Ride(case) for case in cases]
    moved = asyncio.Event()
    tasks = [asyncio.create_task(_ride(device, r, prompts, plan, moved)) for r in rides]
    cutter = asyncio.create_task(cut(device, rides, plan, moved))
    _, hung = await asyncio.wait(tasks, timeout=BATCH_S)
    for task in (*hung, cutter):
        task.cancel()
    results = await asyncio.gather(*tasks, cutter, return_exceptions=True)
    for ride, found in zip(rides, results, strict=False):
        if isinstance(found, BaseException):
            ride.error = type(found).__name__
    if isinstance(results[-1], Exception):
        raise results[-1]
    await device.proxy.restore()
    return rides


async def _ride(
    device: Device,
    ride: Ride,
    prompts: Mapping[str, tuple[int, ...]],
    plan: Plan,
    moved: asyncio.Event,
) -> None:
    case = ride.case
    request = GenerateRequest(
        prompt=prompts[case.prompt],
        model=TARGET,
        sampling=SAMPLINGS[case.sampling],
        max_tokens=plan.tokens,
        seed=case.seed,
        # Left to itself the device would stop to draft where it does not pay, as here.
        placement="cloud" if case.drafter == "none" else "draft",
    )
    try:
        async with aclosing(device.daemon.generate(request)) as events:  # type: ignore[type-var]
            async for event in events:
                _note(device, ride, event)
                moved.set()
    except OutriderError as error:
        ride.error = error.code
        moved.set()


def _note(device: Device, ride: Ride, event: object) -> None:
    match event:
        case Started():
            ride.request = device.daemon.running.get(event.request)
        case Token():
            ride.ids.append(event.id)
            ride.positions.append(event.position)
        case Waiting():
            ride.noticed = True
        case Done():
            ride.done = event


async def cut(device: Device, rides: Sequence[Ride], plan: Plan, moved: asyncio.Event) -> None:
    """Break the link once every answer has a token and one has as many as were drawn."""
    first = rides[0].case
    if first.cut == "none":
        return
    draw = Random(f"{plan.seed} {first}")
    enough = draw.randint(2, plan.tokens // 3)
    await _until(moved, lambda: _ripe(rides, enough))
    for ride in rides:
        ride.had = len(ride.ids)
    if first.cut == "reset":
        device.proxy.reset()
        return
    flying = [ride for ride in rides if not ride.over]
    device.proxy.black_hole()
    try:
        async with asyncio.timeout(NOTICE_S):
            await _until(moved, lambda: all(ride.noticed or ride.over for ride in flying))
    except TimeoutError:
        harness.note(f"{first.row[:4]}: the black hole was not noticed in {NOTICE_S} s")
    await device.proxy.restore()


def _ripe(rides: Sequence[Ride], enough: int) -> bool:
    if any(ride.over for ride in rides):
        return True
    return all(ride.ids for ride in rides) and max(len(ride.ids) for ride in rides) >= enough


async def _until(moved: asyncio.Event, holds: Callable[[], bool]) -> None:
    while not holds():
        moved.clear()
        await moved.wait()


# --- a target ----------------------------------------------------------------------------------


@dataclass(slots=True)
class Outcome:
    """One batch, compared."""

    rides: list[Ride]
    expected: list[tuple[int, ...]]
    seconds: float

    @property
    def identical(self) -> int:
        return sum(
            ride.identical(expected)
            for ride, expected in zip(self.rides, self.expected, strict=True)
        )

    @property
    def cuts(self) -> list[Ride]:
        return [ride for ride in self.rides if ride.case.cut != "none"]

    def cell(self) -> dict[str, Any]:
        case, rides = self.rides[0].case, self.rides
        found = [ride.done.speculation for ride in rides if ride.done is not None]
        return {
            **dict(zip(FACTORS[:4], case.row, strict=False)),
            "cases": len(rides),
            "identical": self.identical,
            "tokens": sum(len(ride.ids) for ride in rides),
            "sent": sum(s.sent_draft_tokens for s in found),
            "hint_rows": sum(s.num_draft_tokens for s in found),
            "accepted": sum(s.num_accepted_draft_tokens for s in found),
            "passes": sum(s.passes for s in found),
            "cut_in_flight": sum(ride.in_flight for ride in self.cuts),
            "seconds": round(self.seconds, 2),
        }


Batch = tuple[Case, ...]


@dataclass(slots=True)
class Bench:
    """The drafters, shared by all devices, and what the targets said alone."""

    plan: Plan
    folder: Path
    stack: AsyncExitStack
    """What lives as long as the bench: drafters, and the targets' own loops."""
    smalls: dict[str, Small | None] = field(default_factory=dict)
    loops: dict[str, Alone] = field(default_factory=dict)

    async def begin(self) -> None:
        """Load the drafters."""
        for name in self.plan.drafters:
            chosen = self.plan.hostile if name == "hostile" else name
            self.smalls[name] = await start_small(chosen, self.plan.size, self.stack)

    async def alone(self, name: str, setup: CloudSetup) -> Alone:
        if name not in self.loops:
            self.loops[name] = await start_alone(setup.spec(), self.plan.prompts, self.stack)
        return self.loops[name]

    async def lane(
        self, cloud: Address, rtt_ms: float, batches: Sequence[Batch], alone: Alone
    ) -> list[Outcome]:
        """Batches one after the other on one cloud, over one device per drafter."""
        outcomes: list[Outcome] = []
        async with AsyncExitStack() as stack:
            devices: dict[str, Device] = {}
            for batch in batches:
                drafter = batch[0].drafter
                if drafter not in devices:
                    devices[drafter] = await start_device(
                        cloud,
                        Link.of_rtt(rtt_ms),
                        self.smalls[drafter],
                        self.plan.size,
                        stack,
                    )
                outcomes.append(await self._compare(devices[drafter], batch, alone))
        return outcomes

    async def _compare(self, device: Device, batch: Batch, alone: Alone) -> Outcome:
        expected = [await alone.answer(case, self.plan.tokens) for case in batch]
        began = time.monotonic()
        rides = await ride_batch(device, batch, alone.prompts, self.plan)
        outcome = Outcome(rides, expected, time.monotonic() - began)
        _tell(outcome)
        return outcome

    async def target(self, name: str, setup: CloudSetup, batches: Sequence[Batch]) -> list[Outcome]:
        """The links of one target one after the other, each with a cloud of its own: side by
        side they would take the drafters' core, and hints would come too late to be tried."""
        links = [link for link in self.plan.links if any(b[0].link == link for b in batches)]
        async with AsyncExitStack() as stack:
            supervisor = await stack.enter_async_context(Supervisor())
            starting = [asyncio.create_task(self._cloud(supervisor, setup, link)) for link in links]
            alone = await self.alone(name, setup)
            if not self.smalls:
                await self.begin()
            clouds = await asyncio.gather(*starting)
            outcomes: list[Outcome] = []
            for link, cloud in zip(links, clouds, strict=True):
                own = [batch for batch in batches if batch[0].link == link]
                outcomes += await self.lane(cloud, self.plan.links[link][1], own, alone)
        return outcomes

    async def _cloud(self, supervisor: Supervisor, setup: CloudSetup, link: str) -> Address:
        place = self.folder / link[:4]
        trigger = self.plan.links[link][0]
        here = replace(setup, trigger=trigger, runtime_dir=str(place))
        return await start_cloud(supervisor, f"cloud {link}", here)

    async def leaky(self) -> tuple[list[Outcome], Leak]:
        """The control: a cloud in this process whose acceptance rule leaks."""
        plan = replace(self.plan, size=CONTROL_SIZE)
        leak = Leak(Random(plan.seed), plan.leak_every)
        rows = [("leaky", "hostile", "control", "none")]
        batches = cases_of(plan, rows, plan.control_cases)
        setup = replace(
            plan.targets[plan.control],
            trigger="wait:1000",
            runtime_dir=str(self.folder / "leaky"),
        )
        alone = await self.alone(plan.control, setup)
        async with AsyncExitStack() as stack:
            stack.enter_context(pricing(setup))
            stack.enter_context(patch.object(verifier, "accepted", leak.accepted))
            running = await cloud_main.start(setup.options(), stack)
            address = Address.parse(running.address, 0)
            outcomes = await self.lane(address, 0.0, batches, alone)
        return outcomes, leak


def _tell(outcome: Outcome) -> None:
    cell = outcome.cell()
    errors = sorted({ride.error for ride in outcome.rides if ride.error})
    harness.note(
        f"{' | '.join(outcome.rides[0].case.row[:4])}: {cell['identical']} of {cell['cases']} "
        f"identical, {cell['accepted']} of {cell['sent']} hints accepted, "
        f"{cell['cut_in_flight']} cut in flight, {cell['seconds']} s {' '.join(errors)}"
    )


# --- the control -------------------------------------------------------------------------------


@dataclass(slots=True)
class Leak:
    """An acceptance rule that takes a wrong hint token for a right one, one time in `every`."""

    draw: Random
    every: int
    wrong: int = 0
    leaked: int = 0

    def accepted(self, hints: Sequence[int], chosen: Sequence[int]) -> int:
        count = 0
        while count < len(hints) and (hints[count] == chosen[count] or self._passes()):
            count += 1
        return count

    def _passes(self) -> bool:
        self.wrong += 1
        passes = self.draw.randrange(self.every) == 0
        self.leaked += passes
        return passes


# --- engines that are not exact ----------------------------------------------------------------


def divergence(engine: Engine, alone: Alone, ride: Ride, expected: Sequence[int]) -> dict[str, Any]:
    """Where an answer first differs, and by what the target alone preferred its own token there.

    `logit_margin`: its logit less that of the token that was said. `choice_margin`: the same of
    what the choice compares, logit over temperature plus noise; None outside the nucleus.
    """
    at = next(
        (i for i, (a, b) in enumerate(zip(ride.ids, expected, strict=False)) if a != b),
        min(len(ride.ids), len(expected)),
    )
    found: dict[str, Any] = {
        "sampling": ride.case.sampling,
        "prompt": alone_index(alone, ride.case.prompt),
        "position": at,
        "logit_margin": None,
        "choice_margin": None,
    }
    if at < min(len(ride.ids), len(expected)):
        pair = (expected[at], ride.ids[at])
        prefix = (*alone.prompts[ride.case.prompt], *expected[:at])
        found |= margins(engine, prefix, alone.sampling(ride.case), pair)
    return found


def alone_index(alone: Alone, prompt: str) -> int:
    """A prompt's number."""
    return list(alone.prompts).index(prompt)


def margins(
    engine: Engine, prefix: Sequence[int], sampling: Sampling, pair: tuple[int, int]
) -> dict[str, float | None]:
    """Of the first of the pair over the second, after the prefix, fed one row at a time."""
    slot = engine.open(sampling)
    try:
        for at, token in enumerate(prefix[:-1]):
            _row(engine, slot, at, token)
        span = Span(slot, len(prefix) - 1, (prefix[-1],), want="scores")
        scores = engine.extend([span])[0].scores
    finally:
        engine.close(slot)
    assert scores is not None
    row = scores[0].astype("float64")
    logit = float(row[pair[0]] - row[pair[1]])
    if sampling.params.greedy:
        return {"logit_margin": logit, "choice_margin": logit}
    ids, scaled = allowed(row, sampling.params)
    keyed = dict(
        zip(ids.tolist(), (scaled + noise(sampling.key, len(prefix), ids)).tolist(), strict=True)
    )
    inside = all(token in keyed for token in pair)
    choice = keyed[pair[0]] - keyed[pair[1]] if inside else None
    return {"logit_margin": logit, "choice_margin": choice}


async def inexact(bench: Bench, name: str, setup: CloudSetup) -> dict[str, Any]:
    """One engine that claims no exactness: its answers with hints against its plain loop."""
    plan = bench.plan
    drafter = plan.drafters[0]
    rows = [(name, drafter, next(iter(plan.links)), "none")]
    batches = cases_of(plan, rows, plan.inexact_batches * plan.size)
    outcomes = await bench.target(name, setup, batches)
    alone = await bench.alone(name, setup)
    pairs = [p for o in outcomes for p in zip(o.rides, o.expected, strict=True)]
    different = [(ride, expected) for ride, expected in pairs if ride.ids != list(expected)]
    found = await alone.engine.run(
        lambda engine: [divergence(engine, alone, *pair) for pair in different]
    )
    return {
        "engine": name,
        "exact": alone.engine.info.exact,
        "cases": len(pairs),
        "diverged": len(found),
        "divergences": found,
    }


# --- the whole ---------------------------------------------------------------------------------


def cases_of(plan: Plan, rows: Sequence[design.Row], least: int) -> list[Batch]:
    """Batches of cases; a sampled case's seed changes whenever its prompt comes round."""
    within = [(str(i), name) for i, name in product(range(len(plan.prompts)), SAMPLINGS)]
    made = design.batches(rows, within, plan.size, least)
    return [
        tuple(_case(plan, row, int(prompt), sampling, number) for prompt, sampling in inner)
        for number, (row, inner) in enumerate(made)
    ]


def _case(plan: Plan, row: design.Row, prompt: int, sampling: str, batch: int) -> Case:
    target, drafter, link, broken = row
    seed = plan.seed * 10_000 + prompt * 10 + batch % plan.seeds
    return Case(target, drafter, link, broken, plan.prompts[prompt], sampling, seed)


def grid(plan: Plan) -> tuple[tuple[str, ...], ...]:
    """Levels of the factors of a batch."""
    return tuple(plan.targets), plan.drafters, tuple(plan.links), plan.cuts


def full_grid(plan: Plan) -> tuple[tuple[str, ...], ...]:
    """Levels of all factors."""
    return (*grid(plan), plan.prompts, tuple(SAMPLINGS))


async def measure(plan: Plan) -> dict[str, Any]:
    """Runs a plan to figures, controls and cells."""
    batches = cases_of(plan, design.covering(grid(plan), plan.seed), plan.least)
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="outrider-")))
        bench = Bench(plan, folder, stack)
        outcomes: list[Outcome] = []
        for name, setup in plan.targets.items():
            own = [batch for batch in batches if batch[0].target == name]
            harness.note(f"{name}: {len(own)} batches of {plan.size}")
            outcomes += await bench.target(name, setup, own)
        harness.note("control")
        control, leak = await bench.leaky()
        best_effort = [await inexact(bench, n, s) for n, s in plan.inexact.items()]
    return summary(plan, outcomes, control, leak, best_effort)


def summary(
    plan: Plan,
    outcomes: Sequence[Outcome],
    control: Sequence[Outcome],
    leak: Leak,
    best_effort: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """Figures of what was run."""
    rides = [ride for outcome in outcomes for ride in outcome.rides]
    cuts = [ride for outcome in outcomes for ride in outcome.cuts]
    cells = [outcome.cell() for outcome in outcomes]
    helped = [c["accepted"] for c in cells if c["drafter"] not in ("hostile", "none")]
    leaky_rides = [ride for outcome in control for ride in outcome.rides]
    return {
        "seed": plan.seed,
        "cases": len(rides),
        "figures": {
            "cases": len(rides),
            "identical_share": _share(sum(o.identical for o in outcomes), len(rides)),
            "min_cell_accepted": min(helped, default=0),
            "cuts_in_flight_share": _share(sum(r.in_flight for r in cuts), len(cuts)),
            "cuts": len(cuts),
            "cells": len({(c["target"], c["drafter"], c["link"], c["cut"]) for c in cells}),
            "uncovered_pairs": len(
                design.uncovered(full_grid(plan), (ride.case.row for ride in rides))
            ),
            "tokens": sum(len(ride.ids) for ride in rides),
            "accepted": sum(ride.accepted for ride in rides),
            "not_exact": sum(ride.done is None or not ride.done.exact for ride in rides),
        }
        | _inexact_figures(best_effort),
        "controls": {
            "control_identical_share": _share(sum(o.identical for o in control), len(leaky_rides)),
            "control_cases": len(leaky_rides),
            "control_wrong_tokens": leak.wrong,
            "control_leaked_tokens": leak.leaked,
        },
        "cells": cells,
        "losing": [c for c in cells if c["identical"] < c["cases"]],
        "models": {n: model_digest(s.spec()) for n, s in {**plan.targets, **plan.inexact}.items()},
        "failures": [_failure(r, e) for o in outcomes for r, e in _wrong(o)],
        "inexact": list(best_effort),
        "prompts": len(plan.prompts),
        "control_cells": [outcome.cell() for outcome in control],
    }


def _inexact_figures(best_effort: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    found: dict[str, float] = {}
    for one in best_effort:
        name = one["engine"].replace(" ", "_").replace(".", "_")
        margins = [d["choice_margin"] for d in one["divergences"] if d["choice_margin"] is not None]
        found[f"inexact_{name}_cases"] = one["cases"]
        found[f"inexact_{name}_diverged"] = one["diverged"]
        found[f"inexact_{name}_median_margin"] = median(margins) if margins else 0.0
        found[f"inexact_{name}_max_margin"] = max(margins, default=0.0)
    return found


def _wrong(outcome: Outcome) -> list[tuple[Ride, tuple[int, ...]]]:
    pairs = zip(outcome.rides, outcome.expected, strict=True)
    return [(ride, expected) for ride, expected in pairs if not ride.identical(expected)]


def _failure(ride: Ride, expected: Sequence[int]) -> dict[str, Any]:
    """Enough to run that case again."""
    case = ride.case
    return {
        **dict(zip(FACTORS, case.row, strict=True)),
        "seed": case.seed,
        "had": ride.had,
        "fence": None if ride.request is None else ride.request.fence,
        "error": ride.error,
        "positions_in_order": ride.positions == list(range(len(ride.positions))),
        "got": ride.ids,
        "expected": list(expected),
    }


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0


def targets() -> dict[str, CloudSetup]:
    """The exact targets of the engines that are installed."""
    found: dict[str, CloudSetup] = {}
    if "torch" in registry.installed():
        found["torch"] = replace(COMMON, engine="torch")
    if "llama" in registry.installed():
        found["llama f16"] = replace(COMMON, engine="llama", dtype="f16")
        found["llama q8_0"] = replace(COMMON, engine="llama", dtype="q8_0")
    return found


def inexact_targets(folder: Path) -> dict[str, CloudSetup]:
    """Engines that claim no exactness."""
    found: dict[str, CloudSetup] = {}
    if "torch" in registry.installed():
        found["torch plain"] = replace(COMMON, engine="torch", numerics="plain")
    if "llama" in registry.installed():
        found["llama q4_0"] = replace(
            COMMON, model=str(q4_0(folder)), engine="llama", numerics="plain"
        )
    return found


Length = Literal["quick", "full"]


def plan_of(length: Length, seed: int, folder: Path) -> Plan:
    """The plan for what is installed here."""
    exact = targets()
    names = drafters()
    full = length == "full"
    first = next(iter(exact))
    return Plan(
        tokens=48 if full else 40,
        seeds=2 if full else 1,
        targets=exact if full else {first: exact[first]},
        inexact=inexact_targets(folder) if full else {},
        control=first,
        drafters=names,
        hostile=f"hostile:{names[0]}",
        links=LINKS,
        prompts=SNIPPETS if full else SNIPPETS[:8],
        least=FULL_CASES if full else 8 * 16,
        control_cases=96 if full else 32,
        inexact_batches=3,
        seed=seed,
    )


def run(*, quick: bool, seed: int = harness.SEED) -> Mapping[str, Any]:
    """Compares answers under drafts, links and cuts with what the target says alone."""
    with tempfile.TemporaryDirectory(prefix="outrider-") as folder:
        return asyncio.run(measure(plan_of("quick" if quick else "full", seed, Path(folder))))


if __name__ == "__main__":
    sys.exit(harness.main("lossless", run))
