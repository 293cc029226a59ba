"""One draft model for all requests: each has a lane, every pass serves all lanes that want.

A lane's *chain* is what the draft model would say past the committed end, under
the same noise as the target. Committed tokens that equal the chain's start only
shorten it; one that differs empties it, and drafting begins anew from there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from outrider.edge.foretold import Foretold
from outrider.engine import Engine, Span
from outrider.errors import EngineFull, OutriderError
from outrider.models.kept import Kept
from outrider.protocol.sampling import Sampling
from outrider.worker import EngineThread

BURST = 8
"""Tokens drafted in one visit to the engine's thread, at most: what one hint holds, so that a
committer that waits gets all of it at once."""
PREFILL_ROWS = 64
"""Rows of a long prompt per pass, so that other lanes wait for no more than that."""


@dataclass(slots=True, eq=False)
class Lane:
    """One answer's drafts. `tokens` are prompt and committed answer, final."""

    sampling: Sampling
    tokens: list[int]
    grown: Callable[[], None]
    """Called on the loop after the chain grew, or could not."""
    chain: list[int] = field(default_factory=list)
    depth: int = 0
    """Wanted length of the chain; 0 rests."""
    slot: int | None = None
    held: list[int] = field(default_factory=list)
    """What the engine's slot holds."""
    silent: bool = False
    """The drafter had nothing to propose after the last token; a commit wakes it."""
    closed: bool = False
    draft_ms: float = 0.0
    """Time the last burst took."""
    drawn: Callable[[int, float, float], None] | None = None
    """Told of each burst: tokens of this lane, ms of the burst, this lane's share of them.
    A burst that only filled a prompt has no tokens: it draws power and tells no speed."""
    owner: str = ""
    """The request that it drafts for; its share of a burst is reported under this name."""
    foretold: Foretold | None = None
    """A text that the answer probably repeats; where it fits, nothing else drafts."""
    resting: bool = False
    """The model does not draft; what is foretold costs nothing, and is told all the same."""
    told: set[int] = field(default_factory=set)
    """Positions in the chain that were foretold."""
    foretold_right: int = 0
    foretold_wrong: int = 0

    def commit(self, tokens: Sequence[int]) -> None:
        """Committed tokens arrived: they shorten the chain, or end it."""
        for token in tokens:
            if self.foretold is not None:
                self._score(token)
                self.foretold.follow(token)
            self.tokens.append(token)
            if self.chain and self.chain[0] == token:
                del self.chain[0]
            else:
                self.chain.clear()
        self.silent = False

    def _score(self, token: int) -> None:
        """Before a token is final: whether it was foretold, rightly or not."""
        if self.chain and self.chain[0] == token:
            self.foretold_right += len(self.tokens) in self.told
            self.told.discard(len(self.tokens))
        else:
            self.foretold_wrong += len(self.told)
            self.told.clear()

    def foretell(self) -> None:
        """Let the chain grow by what is foretold, up to the wanted depth."""
        if self.foretold is None or self.closed:
            return
        fresh = self.foretold.ahead(self.chain, self.depth - len(self.chain))
        end = len(self.tokens) + len(self.chain)
        self.told.update(range(end, end + len(fresh)))
        self.chain.extend(fresh)

    def speak(self) -> None:
        """From here on the chain is to be the model's own: what was foretold leaves it."""
        first = min(self.told, default=None)
        if first is not None:
            del self.chain[first - len(self.tokens) :]
        self.foretold_wrong += len(self.told)
        self.told.clear()
        self.foretold, self.resting = None, False

    def wants(self, context: int) -> bool:
        room = len(self.tokens) + len(self.chain) < context and not self.resting
        return room and not self.closed and not self.silent and len(self.chain) < self.depth


@dataclass(frozen=True, slots=True)
class _Job:
    """What one lane asks of a burst; a copy, since the lane may change meanwhile."""

    lane: Lane
    sequence: tuple[int, ...]
    """Committed tokens and chain when the job was made."""
    final: int
    """How many of them were committed."""
    base: int
    tokens: tuple[int, ...]
    want: int
    """Tokens to draft; 0 while a prompt goes on being filled."""

    def holds(self, drafted: Sequence[int]) -> bool:
        """Whether what was committed meanwhile agrees with the sequence and these drafts."""
        fresh = self.lane.tokens[self.final :]
        foreseen = (*self.sequence[self.final :], *drafted)
        return all(a == b for a, b in zip(fresh, foreseen, strict=False))


@dataclass(slots=True)
class Drafter:
    engine: EngineThread | Kept[EngineThread]
    clock: Callable[[], float]
    spent: Callable[[str, float, int], None] = lambda owner, busy_s, drafted: None
    """Told after a burst, for each lane: owner, its seconds of the engine, tokens it drafted."""
    lanes: list[Lane] = field(default_factory=list)
    _wake: asyncio.Event = field(default_factory=asyncio.Event)
    _closing: list[int] = field(default_factory=list)

    @property
    def speaks(self) -> bool:
        """Whether it is a model that could answer alone."""
        return self.engine.info.engine != "ngram"

    def open(
        self, sampling: Sampling, tokens: Sequence[int], grown: Callable[[], None], owner: str = ""
    ) -> Lane:
        lane = Lane(sampling, list(tokens), grown, owner=owner)
        self.lanes.append(lane)
        return lane

    def close(self, lane: Lane) -> None:
        lane.closed = True
        if lane in self.lanes:
            self.lanes.remove(lane)
        if lane.slot is not None:
            self._closing.append(lane.slot)
            lane.slot = None
        self._wake.set()

    def wake(self) -> None:
        """A lane's wishes or its committed tokens changed."""
        self._wake.set()

    async def run(self) -> None:
        """Until cancelled: burst after burst for whoever wants."""
        while True:
            self._wake.clear()
            await self._free_slots()
            jobs = [job for lane in list(self.lanes) if (job := await self._job(lane))]
            if jobs:
                await self._burst(jobs)
            else:
                await self._wake.wait()

    async def _free_slots(self) -> None:
        while self._closing:
            await self.engine.close(self._closing.pop())

    async def _job(self, lane: Lane) -> _Job | None:
        if not lane.wants(self.engine.info.context) or not await self._seated(lane):
            return None
        sequence = (*lane.tokens, *lane.chain)
        final = len(lane.tokens)
        base = _common(lane.held, sequence, len(sequence) - 1)
        pending = sequence[base:]
        if len(pending) > PREFILL_ROWS:
            return _Job(lane, sequence, final, base, pending[:PREFILL_ROWS], 0)
        room = self.engine.info.context - len(sequence)
        want = min(BURST, lane.depth - len(lane.chain), room)
        return _Job(lane, sequence, final, base, pending, max(1, want))

    async def _seated(self, lane: Lane) -> bool:
        """Whether the lane has a slot; with all slots taken it drafts when one is free."""
        if lane.slot is None:
            try:
                slot = await self.engine.open(lane.sampling)
            except EngineFull:
                return False
            except OutriderError:
                # It was put away and can not be loaded again: answers go on without hints.
                lane.silent = True
                lane.grown()
                return False
            if lane.closed:
                self._closing.append(slot)
                return False
            lane.slot, lane.held = slot, []
        return True

    async def _burst(self, jobs: Sequence[_Job]) -> None:
        began = self.clock()
        slots = [job.lane.slot for job in jobs if job.lane.slot is not None]
        if len(slots) != len(jobs):
            return
        try:
            drafts = await self.engine.run(lambda engine: draft(engine, jobs, slots))
        except Exception:  # noqa: BLE001 - whatever a library raises, answers go on without hints
            self._give_up(jobs)
            return
        took = self.clock() - began
        self._report(jobs, drafts, took)
        for job, drafted in zip(jobs, drafts, strict=True):
            _take(job, drafted, took * 1e3)

    def _report(
        self, jobs: Sequence[_Job], drafts: Sequence[tuple[int, ...] | None], took_s: float
    ) -> None:
        """The burst's time, shared by the rows that each lane had in it."""
        counts = [len(drafted or ()) for drafted in drafts]
        rows = [len(job.tokens) + count for job, count in zip(jobs, counts, strict=True)]
        for job, count, own in zip(jobs, counts, rows, strict=True):
            share_s = took_s * own / sum(rows)
            self.spent(job.lane.owner, share_s, count)
            if job.lane.drawn is not None:
                job.lane.drawn(count, took_s * 1e3, share_s * 1e3)

    def _give_up(self, jobs: Sequence[_Job]) -> None:
        """The engine failed on this pass: these answers go on without hints."""
        for job in jobs:
            job.lane.silent = True
            job.lane.held = []
            job.lane.grown()


def draft(
    engine: Engine, jobs: Sequence[_Job], slots: Sequence[int]
) -> list[tuple[int, ...] | None]:
    """Up to `want` tokens per job, one pass per token over all jobs that still want.

    Runs in the engine's thread. None for a job that only filled its prompt. A job
    ends early when the drafter proposes nothing, or its lane diverged meanwhile.
    """
    results: list[list[int]] = [[] for _ in jobs]
    going = list(range(len(jobs)))
    while going:
        spans = [_next_span(jobs[i], slots[i], results[i]) for i in going]
        picked = engine.extend(spans)
        still = []
        for i, found in zip(going, picked, strict=True):
            if jobs[i].want and (found.proposes is None or found.proposes[-1]):
                results[i].append(found.ids[-1])
                if len(results[i]) < jobs[i].want and jobs[i].holds(results[i]):
                    still.append(i)
        going = still
    return [tuple(r) if job.want else None for r, job in zip(results, jobs, strict=True)]


def _next_span(job: _Job, slot: int, drafted: Sequence[int]) -> Span:
    if not drafted:
        return Span(slot, job.base, job.tokens, len(job.tokens) - 1)
    return Span(slot, job.base + len(job.tokens) + len(drafted) - 1, (drafted[-1],))


def _take(job: _Job, drafted: tuple[int, ...] | None, took_ms: float) -> None:
    lane = job.lane
    fed = (*job.tokens, *(drafted or ())[:-1])
    lane.held[job.base :] = fed
    if drafted is None or lane.closed:
        return
    lane.draft_ms = took_ms
    if job.holds(drafted):
        # What was committed meanwhile is no longer a draft, nor what was foretold.
        known = [*lane.tokens[job.final :], *lane.chain][len(job.sequence) - job.final :]
        if tuple(known) == drafted[: len(known)]:
            lane.chain.extend(drafted[len(known) :])
        lane.silent = not drafted
    lane.grown()


def _common(held: Sequence[int], sequence: Sequence[int], limit: int) -> int:
    """Length of the common prefix, at most `limit`, so that one row is left to compute."""
    count = 0
    top = min(len(held), limit)
    while count < top and held[count] == sequence[count]:
        count += 1
    return count
