"""One device, one link, one committer in virtual time, under the code that decides in earnest.

Real: the cloud's `Scheduler`, hint window and step cost; the edge's `Governor`, `Steering`
and all of the policy. Emulated: the clock, the link (a delay with jitter), the target (the
time of a pass by its rows) and the drafter (time a token, right with a probability; after a
wrong token the rest of its chain is wrong). Seconds, except where a name says ms.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, cast

import numpy as np

from outrider.cloud.accept import accepted
from outrider.cloud.cost import StepCost
from outrider.cloud.scheduler import Plan, Scheduler, Work
from outrider.cloud.session import Choice, Session
from outrider.edge.drafter import BURST
from outrider.edge.link import Link, Peer
from outrider.edge.placement import Governor, Steering
from outrider.engine import RowRule
from outrider.partitioner.book import Book, Heard
from outrider.partitioner.placement import Objective, Rules, Wants
from outrider.partitioner.power.state import Bounds
from outrider.partitioner.signals import Energy, Placement
from outrider.protocol import events
from outrider.protocol.messages import Commit, Hint, ModelDescription, Open
from outrider.protocol.sampling import SamplingParams
from outrider.protocol.state import Ledger

MODEL = "t"
RIGHT, WRONG = 1, 0
"""The target always says RIGHT: only whether a draft equals it matters here."""
ANSWER_TOKENS = 256
SLOTS = 8
BEAT_S = 1.0
TRUTH = 1 << 18
"""Positions whose difficulty is drawn before the run; then they repeat."""
ENERGY = Energy(draft_w=6.0, stream_w=0.2, source="constants of the bench")


@dataclass(frozen=True, slots=True)
class World:
    """How things stand at a moment."""

    rtt_ms: float = 20.0
    jitter: float = 0.1
    """Standard deviation of the round trip, and of a pass, as a share of it."""
    step_ms: float = 50.0
    row_ms: float = 3.0
    """Each row beyond the first."""
    others: int = 0
    """Answers of other devices in the same passes."""
    draft_ms: float = 6.0
    holds: float = 0.65
    """P(a draft is right), position by position."""
    bounds: Bounds = Bounds()


Trace = Sequence[tuple[float, World]]
"""(until, how things are until then), in order; the last one ends the run."""


@dataclass(slots=True)
class Ridden:
    """What a run cost, and what was decided."""

    tokens: int = 0
    seconds: float = 0.0
    busy_s: float = 0.0
    hints: int = 0
    decisions: list[events.Decision] = field(default_factory=list)
    costs: list[tuple[float, int, float]] = field(default_factory=list)
    """(Second, tokens, busy seconds) of each commit."""

    def cost(self, objective: Objective) -> float:
        """Objective per token: milliseconds with joules priced in."""
        return cost_of(self.seconds, self.busy_s, self.tokens, objective)

    def made(self, what: str) -> list[events.Decision]:
        return [d for d in self.decisions if d.what == what and d.phase == "made"]

    def per_minute(self, what: str) -> float:
        return len(self.made(what)) / max(self.seconds, 1e-9) * 60.0


def cost_of(seconds: float, busy_s: float, tokens: int, objective: Objective) -> float:
    joules = ENERGY.stream_w * seconds + ENERGY.draft_w * busy_s
    return (seconds * 1e3 + objective.ms_per_joule * joules) / max(1, tokens)


@dataclass(slots=True)
class _Chain:
    """The device's lane: drafts past the committed end, and how far they were sent."""

    end: int = 0
    tokens: list[int] = field(default_factory=list)
    sent: int = 0
    """Of `tokens`."""
    held: int = 0
    began: int = 0
    """Where the chain on the wire began; a new one begins at `end`."""
    fresh: bool = True
    epoch: int = 0
    """Rises when a burst under way is of no use any more."""
    acknowledged: int = 0


class Ride:
    """A run over a trace. `pinned` fixes the placement; None leaves it to the policy."""

    def __init__(
        self,
        trace: Trace,
        *,
        seed: int,
        pinned: Placement | None = None,
        objective: Objective | None = None,
        rules: Rules | None = None,
        steer: Callable[[Steering], Steering] = lambda steering: steering,
    ) -> None:
        self.trace, self.steer = trace, steer
        self.pinned: Placement | None = pinned
        self.random = np.random.default_rng(seed)
        self.hard = np.random.default_rng(seed + 1).random(TRUTH)
        self.now = 0.0
        self.found = Ridden()
        self.chain = _Chain()
        self.peer = Peer("cloud", cast(Any, None), models=(_described(),), rtt_s=None)
        link = cast(Link, _Peers([self.peer]))
        self.governor = Governor(
            link,
            self._publish,
            lambda: self.now,
            power=lambda: self.world.bounds,
            energy=lambda: ENERGY,
            objective=objective or Objective(),
            rules=rules or Rules(),
            book=Book(),
        )
        self.wish = 4
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0
        self._drafting: float | None = None
        """When the burst under way began."""
        self._cloud_starts()
        self.steering = self._answer()

    # --- time ----------------------------------------------------------------------------------

    @property
    def world(self) -> World:
        return next((world for until, world in self.trace if self.now < until), self.trace[-1][1])

    def run(self) -> Ridden:
        end = self.trace[-1][0]
        self._later(0.0, self._turn)
        self._later(BEAT_S, self._beat)
        while self._queue and self._queue[0][0] <= end:
            self.now, _, work = heapq.heappop(self._queue)
            work()
        self.found.seconds = end
        self.steering.end()
        return self.found

    def _later(self, seconds: float, work: Callable[[], None]) -> None:
        self._count += 1
        heapq.heappush(self._queue, (self.now + max(0.0, seconds), self._count, work))

    def _noisy(self, seconds: float) -> float:
        return seconds * math.exp(self.random.normal(0.0, self.world.jitter))

    def _way(self) -> float:
        return self._noisy(self.world.rtt_ms / 2e3)

    def _publish(self, event: events.Event) -> None:
        if isinstance(event, events.Decision):
            self.found.decisions.append(replace_time(event, self.now))

    # --- the cloud -----------------------------------------------------------------------------

    def _cloud_starts(self) -> None:
        cost = StepCost(RowRule())
        first = self.trace[0][1]
        for rows in (1, 2, 4, 8):
            cost.note(rows, first.step_ms + first.row_ms * (rows - 1))
        self.scheduler = Scheduler(cost)
        self.choice = _choice()
        self.others: list[Choice] = []
        self.passing = False
        self._waking = 0

    def _turn(self) -> None:
        """Begin the next pass, or wait for a hint as long as the scheduler says."""
        if self.passing:
            return
        while len(self.others) < self.world.others:
            self.others.append(_choice())
        del self.others[self.world.others :]
        for other in self.others:
            other.window.seen = len(other.committed)
        plan = self.scheduler.plan([self.choice, *self.others], self.now)
        if plan.works:
            self.passing = True
            world = self.world
            took = self._noisy((world.step_ms + world.row_ms * (plan.rows - 1)) / 1e3)
            self._later(took, lambda: self._passed(plan, took))
        elif plan.until is not None:
            self._waking += 1
            number = self._waking
            self._later(plan.until - self.now, lambda: self._woken(plan, number))

    def _woken(self, plan: Plan, number: int) -> None:
        if number != self._waking or self.passing:
            return
        for choice in plan.held:
            choice.waited = not choice.window.live(len(choice.committed))
        self._turn()

    def _passed(self, plan: Plan, took_s: float) -> None:
        self.passing = False
        self.scheduler.cost.note(plan.rows, took_s * 1e3)
        for choice in plan.held:
            choice.passed_over += 1
        for work in plan.works:
            self._settle(work, plan.rows, took_s)
        self._turn()

    def _settle(self, work: Work, rows: int, took_s: float) -> None:
        choice = work.choice
        if choice.passed_over and not work.hints:
            choice.waited = True
        choice.passed_over = 0
        held = accepted(work.hints, (RIGHT,) * (len(work.hints) + 1))
        choice.filled = work.base + work.rows - len(work.hints) + held
        position, tokens = len(choice.committed), (RIGHT,) * (held + 1)
        choice.settle(tokens, None, self.now)
        if choice is not self.choice:
            return
        commit = Commit(
            0,
            0,
            position,
            tokens,
            hint_rows=len(work.hints),
            from_hints=held,
            wish=self.scheduler.wish(choice),
            rows=rows,
            step_us=int(took_s * 1e6),
        )
        self._later(self._way(), lambda: self._heard(commit))

    def _hinted(self, hint: Hint) -> None:
        self.choice.hear(hint, self.now)
        self._turn()

    # --- the device ----------------------------------------------------------------------------

    def _answer(self) -> Steering:
        """The next answer; text and time simply go on."""
        wants = self._wants(0)
        found = self.governor.steer("r", MODEL, wants, "draft")
        found = self.steer(found)
        found.begin()
        found.opened("cloud", "cloud")
        return found

    def _wants(self, committed: int) -> Wants:
        left = max(1, ANSWER_TOKENS - committed)
        return Wants(pinned=self.pinned, prompt=32, committed=committed, remaining=left)

    def _beat(self) -> None:
        """A heartbeat and its echo tell the round trip."""
        took = self._way() + self._way()
        self._later(took, lambda: self.peer.note_rtt(took))
        self._later(BEAT_S, self._beat)

    def _heard(self, commit: Commit) -> None:
        if commit.position != self.chain.end:
            # Jitter let a later commit overtake; on a real stream order is kept.
            self._later(1e-6, lambda: self._heard(commit))
            return
        self.wish = commit.wish
        self._compare(len(commit.tokens))
        self._told(commit)
        self._draft()
        self._send()

    def _told(self, commit: Commit) -> None:
        steering = self.steering
        steering.heard(Heard.of(commit, len(commit.tokens)))
        self.found.tokens += len(commit.tokens)
        self.found.costs.append((self.now, len(commit.tokens), self.found.busy_s))
        if steering.committed >= ANSWER_TOKENS:
            steering.end()
            self.steering = self._answer()
        elif steering.due():
            steering.look(self._wants(steering.committed))

    def _compare(self, count: int) -> None:
        """What was drafted and is now committed: it held, or the chain ends."""
        chain = self.chain
        held = 0
        while held < min(count, len(chain.tokens)) and chain.tokens[held] == RIGHT:
            held += 1
        broke = held < min(count, len(chain.tokens))
        self.steering.acceptance.follow(held, chain.held, broke=broke)
        chain.end += count
        if broke or len(chain.tokens) < count:
            chain.epoch += 1
            chain.tokens, chain.sent, chain.held, chain.fresh = [], 0, 0, True
        else:
            del chain.tokens[:count]
            chain.sent = max(0, chain.sent - count)
            chain.held += held
            chain.fresh = chain.fresh or not chain.tokens

    def _depth(self) -> int:
        steering = self.steering
        if not steering.drafts or (self.pinned and self.world.bounds.draft == "off"):
            return 0
        wish = max(steering.floor, self.wish if self.wish or self.chain.end % 24 else 1)
        return wish if steering.depth is None else min(wish, steering.depth)

    def _draft(self) -> None:
        want = min(BURST, self._depth() - len(self.chain.tokens))
        if self._drafting is not None or want <= 0:
            return
        self._drafting = self.now
        epoch, base = self.chain.epoch, self.chain.end + len(self.chain.tokens)
        each = self.world.draft_ms / 1e3
        self._later(each, lambda: self._drew(epoch, base, want, 1))

    def _drew(self, epoch: int, base: int, want: int, done: int) -> None:
        """A token is drafted; a burst ends when it is whole, or of no use any more."""
        if epoch == self.chain.epoch and done < want:
            self._later(self.world.draft_ms / 1e3, lambda: self._drew(epoch, base, want, done + 1))
            return
        assert self._drafting is not None
        took, self._drafting = self.now - self._drafting, None
        self.found.busy_s += took
        self.steering.burst(done, took * 1e3, took * 1e3, 0)
        if epoch == self.chain.epoch:
            self._grow(base, done)
        self._draft()
        self._send()

    def _grow(self, base: int, count: int) -> None:
        """Drafts as far as they are not committed yet; after a wrong one all are wrong."""
        chain = self.chain
        good = not chain.tokens or chain.tokens[-1] == RIGHT
        for place in range(base, base + count):
            good = good and bool(self.hard[place % TRUTH] < self.world.holds)
            if place >= chain.end + len(chain.tokens):
                chain.tokens.append(RIGHT if good else WRONG)

    def _send(self) -> None:
        chain = self.chain
        drafts = chain.tokens[chain.sent : chain.sent + SLOTS] if self._depth() else []
        due = chain.end - chain.acknowledged >= self.scheduler.ahead // 4
        if not drafts and not due:
            return
        if drafts and chain.fresh:
            chain.sent, chain.fresh = 0, False
            drafts = chain.tokens[:SLOTS]
        base = chain.end + chain.sent
        hint = Hint(0, 0, chain.end, base, tuple(drafts))
        chain.sent += len(drafts)
        chain.acknowledged = chain.end
        self.found.hints += len(drafts)
        self._later(self._way(), lambda: self._hinted(hint))


class _Peers:
    """A link that knows its peers, and nothing of sockets."""

    def __init__(self, peers: list[Peer]) -> None:
        self.peers = peers


def replace_time(event: events.Decision, now_s: float) -> events.Decision:
    """Stamped with virtual time."""
    import msgspec

    return msgspec.structs.replace(event, t_ms=now_s * 1e3)


def _choice() -> Choice:
    asked = Open(bytes(16), 0, (1, 1), (), SamplingParams(), 0, 1 << 30)
    session = Session("", asked)
    nothing = cast(Any, None)
    choice = Choice(session, 0, nothing, nothing, Ledger(0))
    choice.filled = 1
    return choice


def _described() -> ModelDescription:
    return ModelDescription(
        name=MODEL,
        model_digest="",
        vocabulary_digest="",
        numeric_class="class",
        vocabulary_size=2,
        context=1 << 20,
        exact=True,
        engine="virtual",
        device="",
        dtype="",
        end_ids=(),
        chat_template="",
        tokenizer_digest="",
        created=0,
    )


Fixed = Literal["cloud", "draft"]
FIXED: tuple[Fixed, ...] = ("cloud", "draft")


def best_fixed(
    trace: Trace, seed: int, objective: Objective | None = None
) -> tuple[Fixed, dict[Fixed, Ridden]]:
    """Each placement over the whole trace, and the name of the cheaper one."""
    goal = objective or Objective()
    runs: dict[Fixed, Ridden] = {
        name: Ride(trace, seed=seed, pinned=name, objective=goal).run() for name in FIXED
    }
    return min(FIXED, key=lambda name: runs[name].cost(goal)), runs


__all__ = ["FIXED", "Ride", "Ridden", "Trace", "World", "best_fixed", "cost_of"]
