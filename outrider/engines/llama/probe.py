"""Finds out, on the loaded weights, under which row rule scores are bit-equal in any company."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from outrider.engine import RowRule, Span
from outrider.engines.llama.plan import Cost
from outrider.engines.llama.runner import Runner, Scores

RULES = (
    RowRule(2, 1, uniform=True),
    RowRule(8, 8, uniform=True),
    RowRule(16, 16, uniform=True),
)
"""Cheapest first. Seen on AVX2: F32, F16, BF16 and Q8_0 hold the first; Q4 to Q6, whose kernels
take rows by eight, the second."""

_ALWAYS_JOIN, _NEVER_JOIN = Cost(1e9, 1.0), Cost(0.0, 1.0)
_LENGTH = 44
_LONG = 300
"""Beyond one block of 256 cells, where llama.cpp's attention gets longer rows."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What was seen: `rule` is the one that held, or that of no padding."""

    exact: bool
    rule: RowRule
    digest: str
    """SHA-256 of the reference scores' bits."""


def examine(runner: Runner, slots: int, context: int) -> Finding:
    """Try each rule; leaves all slots empty and the runner under the rule found."""
    for rule in RULES:
        runner.rule = rule
        exact, digest = holds(runner, slots, context)
        if exact:
            return Finding(exact, rule, digest)
    return survey(runner, context)


def survey(runner: Runner, context: int) -> Finding:
    """Without any rule: the reference alone."""
    runner.rule = RowRule()
    probe = _Probe(runner, 1, context)
    return Finding(exact=False, rule=runner.rule, digest=_digest(probe.reference()))


def holds(runner: Runner, slots: int, context: int) -> tuple[bool, str]:
    """Whether every grouping gives the same bits under the runner's rule, and their digest."""
    probe, usual = _Probe(runner, min(slots, 4), context), runner.cost
    try:
        reference = probe.reference()
        exact = all(found() for found in probe.trials(reference))
    finally:
        runner.cost = usual
        probe.clear()
    return exact, _digest(reference)


def _digest(scores: Scores) -> str:
    return hashlib.sha256(np.ascontiguousarray(scores).tobytes()).hexdigest()


def same(left: Scores, right: Scores) -> bool:
    """Bit for bit."""
    return left.shape == right.shape and left.tobytes() == right.tobytes()


class _Probe:
    def __init__(self, runner: Runner, slots: int, context: int) -> None:
        self._runner = runner
        self._slots = slots
        self._context = context
        longest = min(context, _LONG)
        self._tokens = tuple((i * i * 7919 + i * 104729 + 13) % runner.size for i in range(longest))
        self._short = self._tokens[: min(_LENGTH, context)]

    def clear(self) -> None:
        for slot in range(self._slots):
            self._runner.cut(slot, 0)

    def _run(self, spans: Sequence[Span]) -> list[Scores]:
        found: dict[int, Scores] = {}

        def take(place: int, scores: Scores) -> None:
            found[place] = scores.copy()

        self._runner.run(spans, take)
        return [found[i] for i in range(len(spans))]

    def _chunks(self, slot: int, tokens: Sequence[int], sizes: Sequence[int]) -> Scores:
        """The tokens alone, in chunks of these sizes, over and over."""
        self._runner.cut(slot, 0)
        parts, at, turn = [], 0, 0
        while at < len(tokens):
            size = min(sizes[turn % len(sizes)], self._runner.limit)
            parts += self._run([Span(slot, at, tuple(tokens[at : at + size]))])
            at, turn = at + size, turn + 1
        return np.concatenate(parts)

    def reference(self) -> Scores:
        """Token by token, alone."""
        scores = self._chunks(0, self._short, (1,))
        self.clear()
        return scores

    def trials(self, reference: Scores) -> Iterator[Callable[[], bool]]:
        """Each a comparison, the cheap ones first."""
        last = self._slots - 1
        whole = (len(self._short),)
        for sizes in (whole, (2,), (1, 2, 3, 5, 8), (7,), (9,), (11,), (17,)):
            yield lambda sizes=sizes: same(  # type: ignore[misc]
                reference, self._chunks(last, self._short, sizes)
            )
        yield lambda: self._last_row(reference)
        if self._slots > 1:
            for cost in (_ALWAYS_JOIN, _NEVER_JOIN):
                yield lambda cost=cost: self._company(reference, cost)  # type: ignore[misc]
        yield lambda: same(
            self._chunks(0, self._tokens, (100,)), self._chunks(last, self._tokens, (64, 7, 1))
        )

    def _last_row(self, reference: Scores) -> bool:
        """A prefill that wants one row."""
        self._runner.cut(0, 0)
        found = self._run([Span(0, 0, self._short, len(self._short) - 1)])[0]
        return same(reference[-1:], found)

    def _company(self, reference: Scores, cost: Cost) -> bool:
        """Ragged, gapped and even company, before and after the slot that is watched."""
        self._runner.cost = cost
        self.clear()
        watched = self._slots - 1 if self._slots < 3 else 2
        others = [slot for slot in range(self._slots) if slot != watched]
        parts, at, turn = [], 0, 0
        while at < len(self._short):
            size = (3, 1, 6, 1, 1, 2)[turn % 6]
            tokens = self._short[at : at + size]
            company = [
                Span(slot, 0, self._tokens[slot : slot + 1 + (turn + i) % 5 * (turn % 3)])
                for i, slot in enumerate(others)
                if (turn + slot) % 3
            ]
            for span in company:
                self._runner.cut(span.slot, 0)
            parts.append(self._run([*company, Span(watched, at, tokens)])[-1])
            at, turn = at + len(tokens), turn + 1
        return same(reference, np.concatenate(parts))


def measure(runner: Runner, clock: Callable[[], float]) -> Cost:
    """Base and slope of a decode's time in seconds, from two sizes; the best of three each."""
    few, many = 2, max(min(32, runner.limit), 3)
    times = {}
    for rows in (few, many):
        taken = []
        for _ in range(3):
            runner.cut(0, 0)
            begun = clock()
            runner.run_alone(Span(0, 0, (0,) * rows, rows - 1), rows)
            taken.append(clock() - begun)
        times[rows] = min(taken)
    runner.cut(0, 0)
    slope = max((times[many] - times[few]) / (many - few), 1e-9)
    return Cost(max(times[few] - few * slope, 0.0), slope)
