"""The best schedule there is, for cases small enough to search; and how near policies come.

The oracle knows every arrival and length beforehand, and may take an answer out of any pass
and put it back at no cost: a bound, not a policy (INFERMAX, arXiv 2411.07447, states it as a
constraint problem). A state is the time, what is left of each answer that has come, and how
many are still to come; answers that have come are interchangeable, so states are kept sorted,
and one that is no better than another seen before is dropped. Pure.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from outrider.errors import Unplannable
from outrider.partitioner.sim.committer import Committer
from outrider.partitioner.sim.policies import Policy
from outrider.partitioner.sim.rules import Floats, cost_table
from outrider.partitioner.sim.setup import CloudSetup

MOST_REQUESTS = 8
MOST_STATES = 400_000
Goal = Literal["makespan", "completion"]
GOALS: tuple[Goal, ...] = ("makespan", "completion")


@dataclass(frozen=True, slots=True)
class Small:
    """One request of a case."""

    at_ms: float
    prompt: int
    tokens: int


@dataclass(frozen=True, slots=True)
class Case:
    requests: tuple[Small, ...]
    setup: CloudSetup


Left = tuple[int, int]
"""(Prompt rows not read yet, tokens not said yet) of an answer that has come."""


def optimum(case: Case, goal: Goal, most_states: int = MOST_STATES) -> float:
    """The least makespan, or the least mean completion (from each arrival), in ms.

    Raises Unplannable for a case that is too large to search.
    """
    if len(case.requests) > MOST_REQUESTS:
        raise _too_large(f"{len(case.requests)} requests")
    return _Search(case, goal).best(most_states)


def _too_large(what: str) -> Unplannable:
    return Unplannable(
        f"a case of {what} is too large for the schedule oracle",
        constraint=f"at most {MOST_REQUESTS} requests and {MOST_STATES} states",
        nearest="fewer requests, or shorter answers",
    )


class _Search:
    """Best first, by what is spent plus a bound of what must still be."""

    def __init__(self, case: Case, goal: Goal) -> None:
        self.goal = goal
        self.coming = sorted(case.requests, key=lambda one: one.at_ms)
        self.cost = cost_table(case.setup)
        self.slots = case.setup.slots
        self.gap = case.setup.gap_ms

    def best(self, most_states: int) -> float:
        count = itertools.count()
        start = self._admit(0.0, (), 0)
        heap = [(self._bound(0.0, *start), next(count), 0.0, 0.0, start)]
        seen: dict[tuple[tuple[Left, ...], int], list[tuple[float, float]]] = {}
        while heap:
            _, _, now, spent, (here, came) = heapq.heappop(heap)
            if not here and came == len(self.coming):
                return now if self.goal == "makespan" else spent / len(self.coming)
            if self._known(seen, (here, came), now, spent):
                continue
            if len(seen) > most_states:
                raise _too_large(f"more than {most_states} states")
            for state in self._next(now, spent, here, came):
                heapq.heappush(heap, (self._worth(*state), next(count), *state))
        raise AssertionError("every case has a schedule")

    def _known(
        self,
        seen: dict[tuple[tuple[Left, ...], int], list[tuple[float, float]]],
        key: tuple[tuple[Left, ...], int],
        now: float,
        spent: float,
    ) -> bool:
        """Whether the same was reached no later and no dearer before."""
        points = seen.setdefault(key, [])
        if any(t <= now + 1e-9 and s <= spent + 1e-9 for t, s in points):
            return True
        points.append((now, spent))
        return False

    def _worth(self, now: float, spent: float, state: tuple[tuple[Left, ...], int]) -> float:
        bound = self._bound(now, *state)
        return bound if self.goal == "makespan" else spent + bound

    def _bound(self, now: float, here: Sequence[Left], came: int) -> float:
        """No schedule does better: each answer needs a pass a token, at the price of one row."""
        each = float(self.cost[1]) + self.gap
        if self.goal == "makespan":
            ends = [now + left * each - self.gap for _, left in here]
            later = [one.at_ms + one.tokens * each - self.gap for one in self.coming[came:]]
            return max([now, *ends, *later])
        waits = [left * each - self.gap for _, left in here]
        return sum(waits) + sum(one.tokens * each - self.gap for one in self.coming[came:])

    def _admit(self, now: float, here: Sequence[Left], came: int) -> tuple[tuple[Left, ...], int]:
        new = list(here)
        while came < len(self.coming) and self.coming[came].at_ms <= now + 1e-9:
            new.append((self.coming[came].prompt, self.coming[came].tokens))
            came += 1
        return tuple(sorted(new)), came

    def _next(
        self, now: float, spent: float, here: tuple[Left, ...], came: int
    ) -> Iterator[tuple[float, float, tuple[tuple[Left, ...], int]]]:
        for chosen in _choices(here, self.slots):
            rows = sum(prompt or 1 for prompt, _ in chosen)
            took = float(self.cost[rows]) if rows < len(self.cost) else float(self.cost[-1])
            after = list(here)
            for one in chosen:
                after.remove(one)
            after += [(0, left - 1) for _, left in chosen if left > 1]
            end = now + took
            yield self._to(end + self.gap, spent, now, here, chosen, took, after, came)
        if came < len(self.coming):
            until = self.coming[came].at_ms
            if until > now:
                waited = spent + (until - now) * len(here)
                yield until, waited, self._admit(until, here, came)

    def _to(
        self,
        then: float,
        spent: float,
        now: float,
        here: Sequence[Left],
        chosen: Sequence[Left],
        took: float,
        after: Sequence[Left],
        came: int,
    ) -> tuple[float, float, tuple[tuple[Left, ...], int]]:
        """The clock, and what waiting cost: from arrival to the end of the last pass."""
        ended = sum(left == 1 for _, left in chosen)
        spent += (then - now) * len(here) - self.gap * ended
        new = [one for one in self.coming[came:] if one.at_ms <= then + 1e-9]
        spent += sum(then - one.at_ms for one in new)
        state = self._admit(then, after, came)
        last = not state[0] and state[1] == len(self.coming)
        return (now + took if last else then), spent, state


def _choices(here: Sequence[Left], slots: int) -> set[tuple[Left, ...]]:
    """Every different group of answers that a pass may hold."""
    return {
        chosen
        for size in range(1, min(slots, len(here)) + 1)
        for chosen in itertools.combinations(here, size)
    }


# --- policies on the same case -------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Played:
    makespan_ms: float
    completion_ms: float

    def of(self, goal: Goal) -> float:
        return self.makespan_ms if goal == "makespan" else self.completion_ms


def play(case: Case, committer: Committer, most: int | None = None) -> Played:
    """The committer's own order: first come, first in a slot, every answer in every pass.

    `most` allows fewer slots: 1 is one answer after another.
    """
    coming = sorted(range(len(case.requests)), key=lambda i: case.requests[i].at_ms)
    waiting, seated = list(coming), 0
    ends: dict[int, float] = {}
    now, queue, last = 0.0, list[int](), 0.0
    slots = case.setup.slots if most is None else most
    cost = cost_table(case.setup)
    while len(ends) < len(case.requests):
        while waiting and case.requests[waiting[0]].at_ms <= now + 1e-9:
            queue.append(waiting.pop(0))
            one = case.requests[queue[-1]]
            committer.open(queue[-1], one.prompt, one.tokens, 0, now / 1e3)
        while queue and seated < slots:
            committer.seat(queue.pop(0))
            seated += 1
        plan = committer.plan(now / 1e3)
        if not plan.rows:
            now = case.requests[waiting[0]].at_ms
            continue
        took = float(cost[plan.rows])
        for settled in committer.settle(took, (now + took) / 1e3):
            if settled.done:
                ends[settled.ticket] = last = now + took
                committer.close(settled.ticket)
                seated -= 1
        now += took + case.setup.gap_ms
    total = sum(ends[i] - case.requests[i].at_ms for i in ends)
    return Played(last, total / len(ends))


def cases(count: int, setup: CloudSetup, seed: int) -> list[Case]:
    """Random small cases: 3 to 7 requests, some at once, some later."""
    random = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        size = int(random.integers(3, 8))
        step = float(cost_table(setup)[1])
        requests = tuple(
            Small(
                float(round(max(0.0, random.uniform(-4, 8)) * step, 3)),
                int(random.choice([4, 16, 64])),
                int(random.integers(1, 6)),
            )
            for _ in range(size)
        )
        found.append(Case(requests, setup))
    return found


@dataclass(frozen=True, slots=True)
class Study:
    """Policy over oracle, over cases."""

    policy: str
    goal: Goal
    cases: int
    mean: float
    worst: float
    optimal_share: float


def study(given: Sequence[Case], make: Callable[[CloudSetup, Policy], Committer]) -> list[Study]:
    """The runtime's own order, and one answer after another, against the optimum."""
    policy = Policy("runtime")
    arms: tuple[tuple[str, int | None], ...] = (("runtime", None), ("one by one", 1))
    best = {goal: [optimum(case, goal) for case in given] for goal in GOALS}
    found = []
    for name, most in arms:
        played = [play(case, make(case.setup, policy), most) for case in given]
        for goal in GOALS:
            ratios = [p.of(goal) / b for p, b in zip(played, best[goal], strict=True)]
            share = sum(ratio < 1.0 + 1e-6 for ratio in ratios) / len(ratios)
            mean = sum(ratios) / len(ratios)
            found.append(Study(name, goal, len(given), mean, max(ratios), share))
    return found


__all__ = ["Case", "Floats", "Small", "Study", "cases", "optimum", "play", "study"]
