"""The state of a session, as a table; both ends run it on what they send and receive.

Rule 1: everything about the order of messages stands here. Rule 2: nothing here
knows which end it runs on; a message out of order is the sender's bug, and
`Conversation` says whose that is. No I/O.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum, auto

from outrider.errors import LocalProtocolError, RemoteProtocolError
from outrider.protocol.messages import (
    Close,
    Commit,
    Down,
    Finished,
    Heartbeat,
    Hint,
    Open,
    Opened,
    Reason,
    Up,
)


class Role(Enum):
    EDGE = auto()
    CLOUD = auto()


class State(Enum):
    IDLE = auto()
    OPENING = auto()
    LIVE = auto()
    CLOSING = auto()
    ENDED = auto()


class LastFinished:
    """The `Finished` after which no choice is left; a row of the table, never on the wire."""


TRANSITIONS: dict[State, dict[tuple[Role, type], State]] = {
    State.IDLE: {
        (Role.EDGE, Open): State.OPENING,
    },
    State.OPENING: {
        (Role.CLOUD, Opened): State.LIVE,
        (Role.CLOUD, Heartbeat): State.OPENING,
        (Role.EDGE, Heartbeat): State.OPENING,
        (Role.EDGE, Close): State.CLOSING,
    },
    State.LIVE: {
        (Role.EDGE, Hint): State.LIVE,
        (Role.EDGE, Heartbeat): State.LIVE,
        (Role.EDGE, Close): State.CLOSING,
        (Role.CLOUD, Commit): State.LIVE,
        (Role.CLOUD, Finished): State.LIVE,
        (Role.CLOUD, LastFinished): State.ENDED,
        (Role.CLOUD, Heartbeat): State.LIVE,
    },
    State.CLOSING: {
        (Role.CLOUD, Opened): State.CLOSING,
        (Role.CLOUD, Commit): State.CLOSING,
        (Role.CLOUD, Finished): State.CLOSING,
        (Role.CLOUD, LastFinished): State.ENDED,
        (Role.CLOUD, Heartbeat): State.CLOSING,
    },
    State.ENDED: {
        # What was under way when the last choice ended.
        (Role.EDGE, Hint): State.ENDED,
        (Role.EDGE, Heartbeat): State.ENDED,
        (Role.EDGE, Close): State.ENDED,
    },
}


@dataclass(slots=True)
class Conversation:
    """One session's state at one end."""

    role: Role
    state: State = State.IDLE
    opened: frozenset[int] = frozenset()
    """Choices that the open names."""
    open_choices: set[int] = field(default_factory=set)
    """Those of them that have not finished."""

    def send(self, message: Up | Down) -> None:
        """Raises LocalProtocolError when this end must not send it now."""
        if not self._move(self.role, message):
            raise LocalProtocolError(f"{_name(message)} can not be sent while {self._where}")

    def receive(self, message: Up | Down) -> None:
        """Raises RemoteProtocolError when the peer must not have sent it."""
        peer = Role.CLOUD if self.role is Role.EDGE else Role.EDGE
        if not self._move(peer, message):
            raise RemoteProtocolError(f"{_name(message)} can not come while {self._where}")

    @property
    def _where(self) -> str:
        return self.state.name.lower()

    def _move(self, sender: Role, message: Up | Down) -> bool:
        kind: type = type(message)
        if isinstance(message, Finished):
            if message.choice not in self.open_choices:
                return False
            if self.open_choices == {message.choice}:
                kind = LastFinished
        if isinstance(message, Hint | Commit) and message.choice not in self.opened:
            return False
        target = TRANSITIONS[self.state].get((sender, kind))
        if target is None:
            return False
        self._note(message)
        self.state = target
        return True

    def _note(self, message: Up | Down) -> None:
        if isinstance(message, Open):
            self.opened = frozenset(choice.choice for choice in message.choices)
            self.open_choices = set(self.opened)
        elif isinstance(message, Finished):
            self.open_choices.discard(message.choice)


def _name(message: object) -> str:
    return type(message).__name__.lower()


@dataclass(slots=True)
class Ledger:
    """The committed tokens of one choice: append-only, under a fence that only rises.

    Both ends keep one; after each message they agree up to what is under way.
    """

    fence: int
    tokens: list[int] = field(default_factory=list)
    finished: Reason | None = None
    discarded: int = 0

    def commit(self, position: int, tokens: Sequence[int], fence: int) -> tuple[int, ...]:
        """The new tokens; empty for an older fence or a repeat.

        Raises RemoteProtocolError when it leaves a gap, contradicts what is
        committed, comes from a fence not yet given out, or after the end.
        """
        if fence < self.fence:
            return ()
        known = len(self.tokens) - position
        if fence > self.fence or position < 0 or known < 0:
            raise RemoteProtocolError(
                "a commit does not follow the committed tokens",
                why=f"fence {fence} at {position}, here fence {self.fence} at {len(self.tokens)}",
                effect="the session ends; nothing committed is lost",
            )
        overlap = tuple(tokens[:known])
        if overlap != tuple(self.tokens[position : position + len(overlap)]):
            raise RemoteProtocolError("a commit contradicts tokens that are already committed")
        fresh = tuple(tokens[known:])
        if fresh and self.finished is not None:
            raise RemoteProtocolError("a commit came after the end of its choice")
        self.tokens.extend(fresh)
        return fresh

    def finish(self, message: Finished) -> bool:
        """Whether it was the end; False for an older fence. Raises RemoteProtocolError."""
        if message.fence < self.fence:
            return False
        if message.fence > self.fence:
            raise RemoteProtocolError("a choice ended under a fence that was not given out")
        if message.tokens != len(self.tokens):
            raise RemoteProtocolError(
                "a choice ended at another length than was committed",
                why=f"the end names {message.tokens} tokens, here are {len(self.tokens)}",
            )
        self.finished = message.reason
        self.discarded = message.discarded
        return True
