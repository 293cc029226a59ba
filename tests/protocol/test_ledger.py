"""The ledger: committed tokens are append-only, whatever comes."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from outrider.errors import RemoteProtocolError
from outrider.protocol.messages import Finished, Reason
from outrider.protocol.state import Ledger


def ledger(fence: int = 2) -> Ledger:
    made = Ledger(fence)
    made.commit(0, (1, 2, 3), fence)
    return made


def end(tokens: int, fence: int = 2) -> Finished:
    return Finished(fence, 0, Reason.STOP, tokens, discarded=4)


def test_commits_append() -> None:
    made = ledger()
    assert made.commit(3, (4, 5), 2) == (4, 5)
    assert made.tokens == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("position", "tokens", "fresh"),
    [(0, (1, 2, 3), ()), (1, (2,), ()), (2, (3, 4), (4,)), (0, (1, 2, 3, 4), (4,)), (3, (), ())],
)
def test_repeats_add_only_what_is_new(
    position: int, tokens: tuple[int, ...], fresh: tuple[int, ...]
) -> None:
    made = ledger()
    assert made.commit(position, tokens, 2) == fresh
    assert made.tokens == [1, 2, 3, *fresh]


@pytest.mark.parametrize(
    ("position", "tokens", "fence"),
    [
        (4, (9,), 2),
        (2**32 - 1, (9,), 2),
        (-1, (1,), 2),
        (3, (4,), 3),
        (0, (1, 9), 2),
        (2, (9, 4), 2),
        (1, (2, 3, 4), 9),
    ],
    ids=["gap", "far gap", "negative", "fence to come", "contradiction", "late one", "other fence"],
)
def test_what_does_not_follow_is_refused_and_changes_nothing(
    position: int, tokens: tuple[int, ...], fence: int
) -> None:
    made = ledger()
    with pytest.raises(RemoteProtocolError):
        made.commit(position, tokens, fence)
    assert made == ledger()


def test_an_older_fence_is_dropped_even_when_it_contradicts() -> None:
    made = ledger()
    assert made.commit(0, (9, 9, 9, 9), 1) == ()
    assert not made.finish(end(1, fence=1))
    assert made == ledger()


def test_nothing_comes_after_the_end_but_repeats() -> None:
    made = ledger()
    assert made.finish(end(3))
    assert (made.finished, made.discarded) == (Reason.STOP, 4)
    assert made.commit(1, (2, 3), 2) == ()
    with pytest.raises(RemoteProtocolError, match="after the end"):
        made.commit(3, (4,), 2)
    assert made.tokens == [1, 2, 3]


@pytest.mark.parametrize("message", [end(2), end(4), end(3, fence=3)], ids=str)
def test_an_end_that_does_not_fit_is_refused(message: Finished) -> None:
    made = ledger()
    with pytest.raises(RemoteProtocolError):
        made.finish(message)
    assert made == ledger()


TOKENS = st.lists(st.integers(0, 2), max_size=5).map(tuple)


class AppendOnly(RuleBasedStateMachine):
    """Any commits at all, against a plain model of the rule."""

    def __init__(self) -> None:
        super().__init__()
        self.ledger = Ledger(1)
        self.model: tuple[int, ...] = ()
        self.ended = False

    @rule(back=st.integers(-2, 6), tokens=TOKENS, fence=st.integers(-1, 1))
    def commit(self, back: int, tokens: tuple[int, ...], fence: int) -> None:
        position = len(self.model) - back
        merged = (*self.model[: max(0, position)], *tokens)
        shorter = min(len(merged), len(self.model))
        follows = 0 <= position <= len(self.model) and merged[:shorter] == self.model[:shorter]
        grows = len(merged) > len(self.model)
        if fence < 0:
            assert self.ledger.commit(position, tokens, self.ledger.fence + fence) == ()
        elif fence > 0 or not follows or (grows and self.ended):
            with pytest.raises(RemoteProtocolError):
                self.ledger.commit(position, tokens, self.ledger.fence + fence)
        else:
            fresh = self.ledger.commit(position, tokens, self.ledger.fence)
            assert self.model + fresh == (merged if grows else self.model)
            self.model += fresh

    @rule(length=st.integers(0, 1))
    def finish(self, length: int) -> None:
        message = end(len(self.model) + length, self.ledger.fence)
        if length:
            with pytest.raises(RemoteProtocolError):
                self.ledger.finish(message)
        else:
            self.ended = self.ledger.finish(message)

    @rule()
    def reconnect(self) -> None:
        self.ledger.fence += 1

    @invariant()
    def holds_the_model(self) -> None:
        assert tuple(self.ledger.tokens) == self.model


TestAppendOnly = AppendOnly.TestCase
TestAppendOnly.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
