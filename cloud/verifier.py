"""The committer of one model: plan a pass, run it, settle it, repeat.

It never waits for a device to go on: hints that equal what it would commit let
one pass commit several tokens, and nothing else depends on them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace

from outrider.cloud.accept import accepted
from outrider.cloud.cost import StepCost
from outrider.cloud.scheduler import Plan, Scheduler, Work
from outrider.cloud.session import Choice, Session, finished
from outrider.engine import EngineInfo, Note, Picked, Span
from outrider.errors import EngineFailed, EngineFull, OutriderError
from outrider.partitioner.power import constants
from outrider.partitioner.power.account import pass_shares
from outrider.protocol import events
from outrider.protocol.messages import Commit, Down, Reason
from outrider.testing import failpoints
from outrider.worker import AsyncEngine

CALIBRATION_ROWS = (1, 2, 4, 5, 8, 12, 16, 24, 32)
CALIBRATION_MS = 1500.0
MAX_STRIKES = 2
SUSPECT_FOR = 16
"""Tokens a session must commit alone, after an engine ended on it, to share passes again."""
EVENT_EVERY = 16
"""Passes between two `stepped` events."""


@dataclass(frozen=True, slots=True)
class VerifierStatistics:
    passes: int
    rows: int
    hint_rows: int
    accepted: int
    committed: int
    sessions: int
    engine_ms: float


@dataclass(slots=True)
class _Counts:
    passes: int = 0
    rows: int = 0
    hint_rows: int = 0
    accepted: int = 0
    committed: int = 0
    engine_ms: float = 0.0


@dataclass(slots=True)
class Verifier:
    engine: AsyncEngine
    scheduler: Scheduler
    publish: Callable[[events.Event], None]
    clock: Callable[[], float]
    """Monotonic seconds."""
    restart: Callable[[], Awaitable[AsyncEngine]]
    """Makes the engine anew after its process ended."""
    changed: Callable[[EngineInfo], None] = lambda info: None
    """Told when the engine is another than it was: one made anew, or one whose layers moved."""
    sessions: dict[tuple[str, bytes], Session] = field(default_factory=dict)
    counts: _Counts = field(default_factory=_Counts)
    _wake: asyncio.Event = field(default_factory=asyncio.Event)
    _closing: list[int] = field(default_factory=list)
    _known: EngineInfo = field(init=False)
    _decisions: int = 0
    """Told so far of triggers."""
    _noted: int = 0
    """The last note of the engine that was passed on."""

    def __post_init__(self) -> None:
        self._known = self.engine.info

    # --- the hot loop ----------------------------------------------------------------------

    async def run(self) -> None:
        """Until cancelled; an engine that is gone is replaced, and the sessions go on."""
        while True:
            try:
                await self._turn()
            except Exception as error:  # noqa: BLE001 - the loop outlives whatever one turn met
                await self._recover(error)

    async def _turn(self) -> None:
        self._wake.clear()
        await self._free_slots()
        await self._take_slots()
        await self._look_at_engine()
        plan = self.scheduler.plan(self._choices(), self.clock())
        if plan.works:
            await self._step(plan)
        else:
            await self._sleep(plan)

    async def _step(self, plan: Plan) -> None:
        began = self.clock()
        for choice in (work.choice for work in plan.works):
            choice.started_at = choice.started_at or began
        failpoints.hit("cloud.before_pass")
        found = await self._compute_all(plan.works)
        await self._look_at_engine()
        failpoints.hit("cloud.after_pass")
        step_ms = (self.clock() - began) * 1e3
        self.scheduler.cost.note(plan.rows, step_ms)
        self._count(plan, step_ms)
        self._charge(plan, step_ms / 1e3)
        # What is settled here is sent by the writers while the next pass computes.
        for work, picked in found:
            self._settle(work, picked, plan, step_ms)

    async def _compute_all(self, works: Sequence[Work]) -> list[tuple[Work, Picked]]:
        """A session that an engine ended on runs alone: the next end tells whose fault it is."""
        found = await self._compute([w for w in works if not w.choice.session.strikes])
        for work in works:
            if work.choice.session.strikes:
                found += await self._compute([work])
        return found

    async def _compute(self, works: Sequence[Work]) -> list[tuple[Work, Picked]]:
        """One pass over all; when it fails, each alone, so that one bad session harms itself."""
        # A session may have ended, or the engine, since the pass was planned.
        works = [work for work in works if work.choice.slot is not None]
        if not works:
            return []
        try:
            picked = await self.engine.extend([_span(work) for work in works])
            return list(zip(works, picked, strict=True))
        except OutriderError as error:
            if not self.engine.alive:
                await self._replace_engine(works)
                return []
            if len(works) == 1:
                self._fail(works[0].choice.session, error)
                return []
        return [pair for work in works for pair in await self._compute([work])]

    async def _replace_engine(self, works: Sequence[Work]) -> None:
        """Start another engine; every session is filled again from its tokens.

        A session that two engines ended on is refused: it may be what ends them.
        """
        gone = EngineFailed(
            "the engine's process ended while it worked on this session",
            effect="the session ended; what was committed stays",
            todo="try again, or with another prompt",
        )
        self.publish(events.Trouble(code=gone.code, what="the engine's process ended"))
        for session in {id(work.choice.session): work.choice.session for work in works}.values():
            session.strike(SUSPECT_FOR)
            if session.strikes >= MAX_STRIKES:
                self._fail(session, gone)
        for choice in self._choices():
            choice.slot, choice.filled = None, 0
        self._closing.clear()
        await self.engine.shutdown()
        try:
            self.engine, self._noted = await self.restart(), 0
        except (OutriderError, OSError):
            # The next session asks for another try.
            self._fail_all(gone)

    async def _look_at_engine(self) -> None:
        """Pass on what the engine became; sessions do not go on under another numeric class
        without their devices' word, so what was computed for them since is not committed."""
        info, before = self.engine.info, self._known
        if info is before:
            return
        self._known = info
        self.changed(info)
        for note in (await self.engine.statistics()).notes:
            if note.number > self._noted:
                self._noted = note.number
                self.publish(_decision(note))
        if info.numeric_class != before.numeric_class:
            self._fail_all(
                EngineFailed(
                    "the engine goes on under another numeric class",
                    why=f"it was {before.numeric_class[:12]}, it is {info.numeric_class[:12]}",
                    effect="the session ended; what was committed stays",
                    todo="open it again, here or at a cloud of the old class",
                )
            )

    async def _recover(self, error: Exception) -> None:
        """What no session is to blame for: an engine that ended between passes, or a bug."""
        if not self.engine.alive:
            await self._replace_engine(())
            return
        what = f"the committer failed: {type(error).__name__}"
        self._fail_all(EngineFailed(what, effect="the session ended; what was committed stays"))

    def _fail_all(self, error: OutriderError) -> None:
        self.publish(events.Trouble(code=error.code, what=error.what))
        for session in list(self.sessions.values()):
            self._fail(session, error)

    def _fail(self, session: Session, error: OutriderError) -> None:
        session.fail(error)
        self.drop(session, error.code)

    async def _sleep(self, plan: Plan) -> None:
        """Until something changes, or the first choice held back must run."""
        timeout = None if plan.until is None else max(0.0, plan.until - self.clock())
        try:
            await asyncio.wait_for(self._wake.wait(), timeout)
        except TimeoutError:
            for choice in plan.held:
                choice.waited = not choice.window.live(len(choice.committed))

    def _settle(self, work: Work, found: Picked, plan: Plan, step_ms: float) -> None:
        choice = work.choice
        if choice.passed_over and not work.hints:
            # Held back for a hint that did not come: not again until one does. A device that
            # stopped to draft would else have every second pass only.
            choice.waited = True
        choice.passed_over = 0
        if choice.slot is None or choice.done:
            return
        if not work.wants:
            choice.filled = work.base + work.rows
            return
        held = accepted(work.hints, found.ids)
        choice.filled = work.base + work.rows - len(work.hints) + held
        count, reason = choice.cutter.cut(found.ids[: held + 1])
        commit = self._commit(work, found, held, count, plan.rows, step_ms)
        failpoints.hit("cloud.before_commit")
        messages: list[Down] = [commit]
        if reason is not None:
            choice.ledger.finished = reason
            choice.ledger.discarded = held + 1 - count
            messages.append(finished(choice, reason))
            self._release(choice)
        choice.session.emit(messages)
        self._watch_trigger(choice, count, len(plan.works) + len(plan.held))
        if choice.session.done and choice.session.attached:
            self._end(choice.session, reason.name.lower() if reason else "")

    def _watch_trigger(self, choice: Choice, tokens: int, sharing: int) -> None:
        """Say when its passes begin or cease to wait for hints, and what that brought."""
        watch, now = choice.trigger, self.clock()
        told = watch.committed(tokens, now)
        if told is not None:
            self.publish(told)
        weighed = self.scheduler.weighed(choice, sharing) if watch.due() else None
        if weighed is None or choice.done:
            return
        position = len(choice.committed)
        made = watch.look(weighed, choice.session.name, position, self._decisions + 1, now)
        if made is not None:
            self._decisions += 1
            self.publish(made)

    def _commit(
        self, work: Work, found: Picked, held: int, count: int, rows: int, step_ms: float
    ) -> Commit:
        """Commit `count` of the chosen tokens, `held` of which were hints; the message of it."""
        choice, position, now = work.choice, len(work.choice.committed), self.clock()
        tokens = found.ids[:count]
        logprobs = found.logprobs[:count] if found.logprobs is not None else None
        choice.decoding_at = choice.decoding_at or now
        choice.settle(tokens, logprobs, now)
        choice.session.clear()
        self.counts.committed += count
        self.counts.accepted += held
        return Commit(
            choice.session.open.fence,
            choice.number,
            position,
            tokens,
            hint_rows=len(work.hints),
            from_hints=min(held, count),
            wish=self.scheduler.wish(choice),
            rows=rows,
            step_us=int(step_ms * 1e3),
            logprobs=logprobs,
        )

    def _charge(self, plan: Plan, step_s: float) -> None:
        """Each choice's joules of a pass."""
        watts = constants.cloud_w(self.engine.info.device)
        common_s = self.scheduler.cost.ms(len(plan.works)) / 1e3
        parts = pass_shares(step_s, common_s, [work.rows for work in plan.works])
        for work, seconds in zip(plan.works, parts, strict=True):
            work.choice.joules += watts * seconds

    def _count(self, plan: Plan, step_ms: float) -> None:
        for choice in plan.held:
            choice.passed_over += 1
        self.counts.passes += 1
        self.counts.rows += plan.rows
        self.counts.hint_rows += sum(len(work.hints) for work in plan.works)
        self.counts.engine_ms += step_ms
        if self.counts.passes % EVENT_EVERY == 0:
            self.publish(self._stepped(plan, step_ms))

    def _stepped(self, plan: Plan, step_ms: float) -> events.Stepped:
        return events.Stepped(
            every=EVENT_EVERY,
            sessions=len(plan.works),
            rows=plan.rows,
            hint_rows=sum(len(work.hints) for work in plan.works),
            accepted=self.counts.accepted,
            committed=self.counts.committed,
            step_ms=round(step_ms, 3),
            waiting=len(plan.held),
        )

    # --- sessions --------------------------------------------------------------------------

    def add(self, session: Session) -> None:
        self.sessions[session.key] = session
        self._wake.set()

    def wake(self) -> None:
        """A hint, an acknowledgement or a stream came or went."""
        self._wake.set()

    def drop(self, session: Session, reason: str) -> None:
        """Free everything of a session that is not over; the running pass is not disturbed."""
        for choice in session.choices.values():
            self._release(choice)
        self._end(session, reason)
        self._wake.set()

    def leave(self, choice: Choice) -> None:
        """The device wants nothing more of this one choice."""
        if not choice.done:
            choice.ledger.finished = Reason.CANCELLED
            self._release(choice)

    def _end(self, session: Session, reason: str) -> None:
        if self.sessions.get(session.key) is not session:
            return
        del self.sessions[session.key]
        self.publish(
            events.SessionClosed(
                session=session.name,
                reason=reason,
                tokens=session.length,
            )
        )

    def _release(self, choice: Choice) -> None:
        if choice.slot is not None:
            self._closing.append(choice.slot)
            choice.slot = None

    async def _free_slots(self) -> None:
        while self._closing:
            await self.engine.close(self._closing.pop())

    async def _take_slots(self) -> None:
        for session in list(self.sessions.values()):
            for choice in session.choices.values():
                if choice.slot is None and not choice.done and session.attached:
                    await self._take_slot(choice)

    async def _take_slot(self, choice: Choice) -> None:
        """Leaves the choice waiting while the engine is full of others."""
        try:
            slot = await self.engine.open(choice.sampling)
        except EngineFull:
            self._evict()
            return
        except OutriderError as error:
            if not self.engine.alive:
                raise
            self._fail(choice.session, error)
            return
        if self.sessions.get(choice.session.key) is choice.session:
            choice.slot, choice.filled = slot, 0
        else:
            self._closing.append(slot)

    def _evict(self) -> None:
        """Give the slots of the session that is longest without its device to others."""
        idle = [s for s in self.sessions.values() if not s.attached and _slots(s)]
        if idle:
            for choice in min(idle, key=lambda s: s.detached_at).choices.values():
                self._release(choice)
            self._wake.set()

    def expire(self, ttl_s: float) -> None:
        """End sessions whose device has been away for longer than `ttl_s`."""
        now = self.clock()
        for session in list(self.sessions.values()):
            if not session.attached and now - session.detached_at > ttl_s:
                self.drop(session, "expired")

    def _choices(self) -> list[Choice]:
        return [
            choice
            for session in self.sessions.values()
            for choice in session.choices.values()
            if choice.slot is not None and not choice.done
        ]

    # --- figures ---------------------------------------------------------------------------

    def statistics(self) -> VerifierStatistics:
        counts = self.counts
        return VerifierStatistics(
            counts.passes,
            counts.rows,
            counts.hint_rows,
            counts.accepted,
            counts.committed,
            len(self.sessions),
            counts.engine_ms,
        )

    async def calibrate(self) -> StepCost:
        """Time passes of a few row counts on a slot of their own, and learn what rows cost."""
        cost = self.scheduler.cost
        slot = await self.engine.open()
        spent = 0.0
        limit = min(self.engine.info.max_rows, self.engine.info.context)
        for rows in (r for r in CALIBRATION_ROWS if r <= limit):
            span = Span(slot, 0, (0,) * rows, rows - 1)
            await self.engine.extend([span])
            began = self.clock()
            await self.engine.extend([span])
            took = (self.clock() - began) * 1e3
            cost.note(rows, took)
            spent += 2 * took
            if spent > CALIBRATION_MS:
                break
        await self.engine.close(slot)
        return cost


def _decision(note: Note) -> events.Decision:
    return events.Decision(
        request="",
        what=note.what,
        old=note.old,
        new=note.new,
        reason=note.reason,
        binding=note.binding,
        runner_up=note.runner_up,
        predicted_gain=note.predicted_gain,
    )


def _slots(session: Session) -> list[int]:
    return [c.slot for c in session.choices.values() if c.slot is not None]


def _span(work: Work) -> Span:
    choice = work.choice
    assert choice.slot is not None
    wanted = len(work.hints) + 1 if work.wants else 1
    span = Span(choice.slot, work.base, work.tokens, work.rows - wanted)
    top = choice.session.open.top_logprobs
    if top is None or not work.wants:
        return span
    return replace(span, want="logprobs", top_n=top)
