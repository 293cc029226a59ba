"""The hint window: hints of any kind in any order never change the text, and all are counted."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from outrider.cloud.accept import accepted
from outrider.cloud.hints import BUFFER, DEPTHS, Acceptance, HintWindow
from outrider.errors import RemoteProtocolError
from outrider.protocol.messages import Hint


def hint(seen: int, base: int, *tokens: int) -> Hint:
    return Hint(1, 0, seen, base, tokens)


# --- by example --------------------------------------------------------------------------------


def test_a_chain_ahead_is_live_and_shrinks_as_it_comes_true() -> None:
    window, text = HintWindow(), [1, 2]
    window.offer(hint(2, 2, 3, 4, 5), text)
    assert window.live(2) == (3, 4, 5)
    text += [3, 4]
    window.settle(text)
    assert window.live(4) == (5,)
    assert (window.received, window.compared, window.stale, window.pending) == (3, 2, 0, 1)


def test_a_chain_grows_at_its_end() -> None:
    window = HintWindow()
    window.offer(hint(0, 0, 1, 2), [])
    window.offer(hint(0, 2, 3), [])
    assert window.live(0) == (1, 2, 3)


def test_a_difference_kills_the_chain_and_what_continues_it() -> None:
    window = HintWindow()
    window.offer(hint(0, 0, 1, 2, 3), [])
    window.settle([1, 9])
    assert window.live(2) == ()
    assert (window.compared, window.stale) == (2, 1)
    window.offer(hint(0, 3, 4), [1, 9])
    assert window.live(2) == ()
    assert window.stale == 2


def test_a_late_chain_is_compared_on_arrival() -> None:
    window, text = HintWindow(), [1, 2, 3]
    window.offer(hint(1, 1, 2, 3, 4, 5), text)
    assert window.live(3) == (4, 5)
    window.offer(hint(2, 2, 8, 9), text)
    assert window.live(3) == ()
    assert (window.received, window.compared, window.stale) == (6, 3, 3)


def test_a_new_chain_replaces_the_old_one() -> None:
    window = HintWindow()
    window.offer(hint(0, 0, 1, 2, 3), [])
    window.offer(hint(0, 0, 4), [])
    assert window.live(0) == (4,)
    assert (window.stale, window.pending) == (3, 1)


def test_a_gap_is_stale_and_never_an_error() -> None:
    window = HintWindow()
    window.offer(hint(0, 0, 1, 2), [])
    window.offer(hint(0, 5, 6), [])
    assert window.live(0) == (1, 2)
    assert window.stale == 1


def test_an_empty_hint_only_acknowledges() -> None:
    window = HintWindow()
    window.offer(hint(0, 0, 1, 2), [])
    window.settle([1])
    window.offer(hint(1, 1), [1])
    assert (window.seen, window.received) == (1, 2)
    assert window.live(1) == (2,)


def test_seen_never_goes_back() -> None:
    window = HintWindow()
    window.offer(hint(3, 3), [1, 2, 3])
    window.offer(hint(1, 1), [1, 2, 3])
    assert window.seen == 3


def test_seeing_what_was_not_committed_is_refused_and_changes_nothing() -> None:
    window = HintWindow()
    with pytest.raises(RemoteProtocolError):
        window.offer(hint(2, 2, 5), [1])
    assert window == HintWindow()


def test_an_endless_chain_is_bounded() -> None:
    window = HintWindow()
    window.offer(hint(0, 0, *[7] * 32), [])
    for number in range(1, 100):
        window.offer(hint(0, 32 * number, *[7] * 32), [])
    assert len(window.live(0)) == len(window.chain) == BUFFER
    assert window.received == 3200
    assert window.stale == 3200 - BUFFER


# --- against a plain twin ----------------------------------------------------------------------


@dataclass
class Oracle:
    """Each hint token is an entry (position, token) with a fate; nothing is clever."""

    chain: list[tuple[int, int]] = field(default_factory=list)
    open: bool = False
    end: int = 0
    pending: int = 0
    compared: int = 0
    stale: int = 0

    def offer(self, message: Hint, committed: list[int]) -> None:
        if not message.tokens:
            return
        if message.base == message.seen:
            self.stale += len(self.chain)
            self.chain, self.open, self.end = [], True, message.base
        elif not self.open or message.base != self.end:
            self.stale += len(message.tokens)
            return
        for token in message.tokens:
            if self.end < len(committed) + BUFFER:
                self.chain.append((self.end, token))
                self.end += 1
            else:
                self.stale += 1
        self.settle(committed)

    def settle(self, committed: list[int]) -> None:
        while self.chain and self.chain[0][0] < len(committed):
            position, token = self.chain.pop(0)
            self.compared += 1
            if committed[position] != token:
                self.stale += len(self.chain)
                self.chain, self.open = [], False

    def live(self, end: int) -> tuple[int, ...]:
        return tuple(token for position, token in self.chain if position >= end)


def target(text: list[int]) -> int:
    """What the target says next; two letters, so that hints are often right."""
    return (len(text) * 7 + sum(text[-3:])) % 5 % 2


class AnyHints(RuleBasedStateMachine):
    """A committer at work while hints of all kinds come in."""

    def __init__(self) -> None:
        super().__init__()
        self.window, self.oracle = HintWindow(), Oracle()
        self.text: list[int] = []
        self.received = 0

    @rule(
        seen=st.integers(0, 6),
        base=st.one_of(st.just(0), st.just(-1), st.integers(0, 8)),
        tokens=st.lists(st.integers(0, 1), max_size=6),
    )
    def some_hint(self, seen: int, base: int, tokens: list[int]) -> None:
        """`seen` counts back from the end; base -1 is where the chain ends."""
        known = max(0, len(self.text) - seen)
        start = self.oracle.end if base < 0 else known + base
        self._hear(Hint(1, 0, known, max(known, start), tuple(tokens)))

    @rule(wrong=st.integers(0, 12), length=st.integers(1, 8), seen=st.integers(0, 3))
    def good_hint(self, wrong: int, length: int, seen: int) -> None:
        """What a good drafter sends, with a slip at `wrong`."""
        known = max(0, len(self.text) - seen)
        text = self.text[:known]
        for i in range(length):
            token = target(text)
            text.append(1 - token if i == wrong else token)
        self._hear(Hint(1, 0, known, known, tuple(text[known:])))

    def _hear(self, message: Hint) -> None:
        self.received += len(message.tokens)
        self.window.offer(message, self.text)
        self.oracle.offer(message, self.text)

    @rule(depth=st.integers(0, 7))
    def step(self, depth: int) -> None:
        """One pass: rows for the live hints, and what they and the target agree on."""
        hints = self.window.live(len(self.text))[:depth]
        chosen = [target([*self.text, *hints[:i]]) for i in range(len(hints) + 1)]
        self.text += chosen[: accepted(hints, chosen) + 1]
        self.window.settle(self.text)
        self.oracle.settle(self.text)

    @invariant()
    def the_text_is_the_targets(self) -> None:
        alone: list[int] = []
        while len(alone) < len(self.text):
            alone.append(target(alone))
        assert self.text == alone

    @invariant()
    def equals_the_oracle(self) -> None:
        end = len(self.text)
        assert self.window.live(end) == self.oracle.live(end)
        assert self.window.compared == self.oracle.compared
        assert self.window.stale == self.oracle.stale
        assert self.window.pending == len(self.oracle.chain)

    @invariant()
    def every_token_is_counted_once(self) -> None:
        window = self.window
        assert window.received == self.received
        assert window.received == window.compared + window.stale + window.pending
        assert min(window.compared, window.stale, window.pending) >= 0

    @invariant()
    def live_continues_the_committed_text(self) -> None:
        """The part of the chain below the end equals the text, as long as it lives."""
        window = self.window
        if window.alive:
            below = window.chain[: max(0, len(self.text) - window.start)]
            assert below == self.text[window.start : window.start + len(below)]


TestAnyHints = AnyHints.TestCase
TestAnyHints.settings = settings(max_examples=120, stateful_step_count=40, deadline=None)


# --- acceptance --------------------------------------------------------------------------------


def test_acceptance_begins_unknown_and_follows_what_happens() -> None:
    good, bad = Acceptance(), Acceptance()
    assert good.rate(0) == pytest.approx(0.6)
    for _ in range(50):
        good.note(0, equal=True)
        bad.note(0, equal=False)
    assert good.rate(0) > 0.95
    assert bad.rate(0) < 0.05


def test_old_news_fades() -> None:
    acceptance = Acceptance()
    for _ in range(200):
        acceptance.note(0, equal=True)
    for _ in range(100):
        acceptance.note(0, equal=False)
    assert acceptance.rate(0) < 0.1


def test_an_unknown_depth_leans_on_the_one_before() -> None:
    acceptance = Acceptance()
    for _ in range(50):
        acceptance.note(0, equal=False)
    assert acceptance.rate(1) < 0.1


@given(st.lists(st.tuples(st.integers(0, 100), st.booleans()), max_size=60))
def test_rates_are_probabilities_and_more_rows_never_bring_less(
    notes: list[tuple[int, bool]],
) -> None:
    acceptance = Acceptance()
    for depth, equal in notes:
        acceptance.note(depth, equal=equal)
    assert all(0.0 <= acceptance.rate(depth) <= 1.0 for depth in range(100))
    brought = [acceptance.expected(rows) for rows in range(12)]
    assert brought == sorted(brought)
    assert all(value <= rows for rows, value in enumerate(brought))


def _by_definition(known: Acceptance, depth: int) -> float:
    """The rate as it is defined, one depth after the other."""
    prior = 0.6 if depth == 0 else _by_definition(known, min(depth, 4) - 1)
    depth = min(depth, DEPTHS - 1)
    return (known.held[depth] + prior) / (known.tried[depth] + 1.0)


def test_the_rate_of_every_depth_is_what_its_definition_says() -> None:
    dice = random.Random(3)
    for _ in range(50):
        known = Acceptance()
        for _ in range(dice.randrange(200)):
            known.note(dice.randrange(40), equal=dice.random() < 0.7)
        for depth in range(40):
            assert known.rate(depth) == _by_definition(known, depth)
