"""How long a client waits, and how often it tries."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from outrider.errors import OutriderError, TimedOut
from outrider.protocol.stream import Done, Started, Token

_PINGS = 4.0
"""Pings in a time limit: what is not noticed at one of them is at the next."""
LEAST_PING_S, MOST_PING_S = 0.05, 15.0


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Seconds. None waits as long as the daemon is alive."""

    connect_s: float = 5.0
    """To reach the daemon."""
    first_token_s: float | None = None
    """From the question to its first committed token: queue, loading and prefill are in it."""
    token_s: float | None = None
    """Between two committed tokens, of whichever choice."""
    silence_s: float = 60.0
    """Without a byte, pings included: then the daemon is taken for dead."""
    resume_s: float = 10.0
    """How long an answer whose connection was cut goes on, and is tried to be taken up
    again; 0: a cut ends it."""

    def shortest(self) -> float | None:
        """The tighter limit on tokens."""
        return min((s for s in (self.first_token_s, self.token_s) if s is not None), default=None)

    def ping_s(self) -> float | None:
        """How often the daemon must say that it is there; None: as often as it likes."""
        bound = self.shortest()
        if bound is None:
            return None
        return min(max(bound / _PINGS, LEAST_PING_S), MOST_PING_S)

    def read_s(self) -> float:
        """Longest silence of a stream, whose pings are `ping_s` apart."""
        bound = self.shortest()
        return self.silence_s if bound is None else min(self.silence_s, max(bound, LEAST_PING_S))


class Watch:
    """Holds a stream against its limits, at every event and every ping."""

    def __init__(self, timeouts: Timeouts, clock: Callable[[], float]) -> None:
        self._timeouts = timeouts
        self._clock = clock
        self._since = clock()
        self._open: set[int] = set()
        self._begun = False
        self._over = False

    def heard(self, event: object) -> None:
        """An event, or None for a ping. Raises TimedOut."""
        if isinstance(event, Started):
            self._open.add(event.choice)
        elif isinstance(event, Done):
            self._open.discard(event.choice)
            self._over = not self._open
        elif isinstance(event, Token):
            self._since, self._begun = self._clock(), True
        else:
            self.check()

    def check(self) -> None:
        """Raises TimedOut when a limit has passed."""
        limit = self._timeouts.token_s if self._begun else self._timeouts.first_token_s
        if limit is None or self._over or self._clock() - self._since <= limit:
            return
        raise TimedOut(
            f"no {'further' if self._begun else 'first'} token within {limit:g} s",
            why="the time limit that the client was given has passed",
            effect="the answer was cancelled",
            todo="see Client.status(), or give Timeouts more room",
        )


@dataclass(frozen=True, slots=True)
class Retry:
    """When the start of a request is tried again: only where nothing was begun, that is when
    no connection was made, or the daemon refused with 429 or 503 and did not forbid it
    (`x-should-retry: false`). What only reads is tried again after a cut, too."""

    attempts: int = 3
    """In all; 1 tries once."""
    first_wait_s: float = 0.5
    """Doubles from try to try, less up to half of it, by chance."""
    longest_wait_s: float = 8.0
    """A daemon that asks for more patience than this gets none, and the error is raised."""
    budget: float = 10.0
    """Retries that a client may have in hand: each costs 1, each request that went well brings
    0.1 back, and below half of it nothing is tried again. So a daemon in trouble is not beaten."""

    def wait_s(self, attempt: int, asked_s: float | None) -> float | None:
        """Before try number `attempt` (1 is the second); None when the daemon asks for too much."""
        if asked_s is not None:
            return asked_s if asked_s <= self.longest_wait_s else None
        wait = min(self.longest_wait_s, self.first_wait_s * 2.0 ** (attempt - 1))
        return wait * random.uniform(0.5, 1.0)


class Budget:
    """The retries of one client."""

    def __init__(self, retry: Retry) -> None:
        self._most = self._left = retry.budget

    def went_well(self) -> None:
        self._left = min(self._most, self._left + 0.1)

    def spend(self) -> bool:
        """Whether one more may be had; it is then taken."""
        if self._left <= self._most / 2:
            return False
        self._left -= 1.0
        return True


def asked_wait_s(error: OutriderError, headers: Mapping[str, str]) -> float | None:
    """How long the daemon, or a proxy before it, asked to wait; None when it did not say."""
    for name, unit in (("retry-after-ms", 1e-3), ("retry-after", 1.0)):
        try:
            return max(0.0, float(headers[name]) * unit)
        except (KeyError, ValueError):
            continue
    wait = getattr(error, "retry_after_s", None)
    return float(wait) if wait is not None else None
