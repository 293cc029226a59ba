"""The cloud's own scheduler and hint windows, as the simulator asks for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from outrider.cloud.accept import accepted
from outrider.cloud.cost import StepCost
from outrider.cloud.scheduler import Plan, Scheduler, Trigger, Work
from outrider.cloud.session import Choice, Session
from outrider.engine import RowRule
from outrider.partitioner.sim.committer import RIGHT, Pass, Settled
from outrider.partitioner.sim.policies import Policy
from outrider.partitioner.sim.setup import CloudSetup
from outrider.protocol.messages import Hint, Open
from outrider.protocol.sampling import SamplingParams
from outrider.protocol.state import Ledger

GREEDY = SamplingParams(temperature=0.0)
KNOWN_ROWS = 32
"""A cloud times passes of up to so many rows before it serves, and learns the rest."""
NOTHING = cast(Any, None)


@dataclass(slots=True)
class RealCommitter:
    """One cloud's decisions: which choices run, which are held, which hint rows are verified."""

    scheduler: Scheduler
    choices: dict[int, Choice] = field(default_factory=dict)
    tickets: dict[int, int] = field(default_factory=dict)
    """`id` of a choice to its ticket."""
    planned: Plan | None = None

    def open(self, ticket: int, prompt: int, tokens: int, committed: int, now: float) -> None:
        asked = Open(ticket.to_bytes(16, "big"), 0, (RIGHT,) * prompt, (), GREEDY, 0, tokens)
        ledger = Ledger(0)
        ledger.tokens.extend([RIGHT] * committed)
        choice = Choice(Session("", asked), 0, NOTHING, NOTHING, ledger, opened_at=now)
        choice.window.seen = committed
        self.choices[ticket] = choice
        self.tickets[id(choice)] = ticket

    def seat(self, ticket: int) -> None:
        choice = self.choices[ticket]
        choice.slot, choice.filled = 0, 0

    def detach(self, ticket: int) -> None:
        self.choices[ticket].session.attached = False

    def attach(self, ticket: int, seen: int) -> int:
        choice = self.choices[ticket]
        choice.session.attached = True
        choice.window.seen = max(choice.window.seen, seen)
        return len(choice.committed)

    def close(self, ticket: int) -> None:
        choice = self.choices.pop(ticket, None)
        if choice is not None:
            self.tickets.pop(id(choice), None)

    def hear(self, ticket: int, seen: int, base: int, tokens: Sequence[int], now: float) -> None:
        self.choices[ticket].hear(Hint(0, 0, seen, base, tuple(tokens)), now)

    def plan(self, now: float) -> Pass:
        ready = [choice for choice in self.choices.values() if choice.slot is not None]
        plan = self.planned = self.scheduler.plan([c for c in ready if not _full(c)], now)
        prefill = sum(work.rows for work in plan.works if work.choice.prefilling)
        return Pass(plan.rows, len(plan.works), prefill, len(plan.held), plan.until)

    def waited(self) -> None:
        assert self.planned is not None
        for choice in self.planned.held:
            choice.waited = not choice.window.live(len(choice.committed))

    def settle(self, took_ms: float, now: float) -> list[Settled]:
        plan = self.planned
        assert plan is not None
        self.scheduler.cost.note(plan.rows, took_ms)
        for choice in plan.held:
            choice.passed_over += 1
        return [self._settle(work, now) for work in plan.works]

    def _settle(self, work: Work, now: float) -> Settled:
        choice = work.choice
        ticket = self.tickets.get(id(choice), -1)
        choice.passed_over = 0
        position = len(choice.committed)
        if not work.wants:
            choice.filled = work.base + work.rows
            return Settled(ticket, work.rows, position, 0, 0, 0, 0, done=False)
        held = accepted(work.hints, (RIGHT,) * (len(work.hints) + 1))
        choice.filled = work.base + work.rows - len(work.hints) + held
        choice.settle((RIGHT,) * (held + 1), None, now)
        wish = self.scheduler.wish(choice)
        hints = len(work.hints)
        return Settled(ticket, work.rows, position, held + 1, hints, held, wish, done=_full(choice))

    def step_ms(self, rows: int) -> float:
        return self.scheduler.cost.ms(rows)


def _full(choice: Choice) -> bool:
    return len(choice.committed) >= choice.session.open.max_tokens


def make(setup: CloudSetup, policy: Policy) -> RealCommitter:
    """A committer as a cloud starts it: calibrated on a few row counts."""
    cost = StepCost(RowRule(setup.minimum, setup.multiple, uniform=setup.uniform))
    known = [knot for knot in setup.step if knot[0] <= KNOWN_ROWS] or [setup.step[0]]
    for rows, ms in known:
        cost.note(int(rows), ms)
    trigger = Trigger(policy.trigger, policy.wait_ms)
    return RealCommitter(Scheduler(cost, trigger, setup.ahead, setup.max_rows))
