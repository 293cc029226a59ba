"""The way to a cloud as its live traffic shows it; nothing is sent for it.

Four kinds of exchange tell of it: an open and its answer, a heartbeat and its echo, a look at what
a cloud serves, and a hint that the committer waited for, with the commit of the pass that read it.
Each goes to the `LinkObserver` with the bytes that TCP carried and the time the cloud worked.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field, replace

from outrider.partitioner.observe import SPREAD, Estimate, Exchange, LinkObserver
from outrider.partitioner.traffic import FRAME
from outrider.protocol.messages import Commit, Hint

WINDOW = 65535
"""Bytes that gRPC lets be under way in a stream; a link that takes more in a round trip waits."""
BEHIND_S = 0.2
"""A segment that is lost holds up what is sent in this time after it, the shortest timeout."""
RECENT = 256
OWN = 2
"""Of the messages that were counted, those of the exchange itself."""
AGAIN_S = 0.25
"""An estimate is good for this long."""
NEWS = 1.5
"""A figure that moved by this factor is told."""


@dataclass(slots=True)
class Traffic:
    """Of one cloud, all sessions together. Times are monotonic seconds."""

    observer: LinkObserver = field(default_factory=LinkObserver)
    passing: deque[float] = field(default_factory=lambda: deque(maxlen=RECENT))
    """When the latest messages went up or down."""
    _known: Estimate | None = None
    _at_s: float = float("-inf")
    _told: Estimate | None = None

    def exchanged(
        self, up: int, down: int, sent_s: float, answered_s: float, worked_s: float = 0.0
    ) -> None:
        """Two messages of so many bytes, framing excluded."""
        since = sum(at > sent_s - BEHIND_S for at in self.passing)
        self.observer.note(
            Exchange(up + FRAME, down + FRAME, sent_s, answered_s, worked_s, max(0, since - OWN))
        )

    def passed(self, now: float) -> None:
        """A message went up or down, in any session."""
        self.passing.append(now)

    def estimate(self, now: float) -> Estimate | None:
        """None until there is enough to say."""
        if now - self._at_s >= AGAIN_S:
            self._at_s = now
            found = self.observer.estimate(now)
            self._known = None if found is None else _told_by_link(found)
        return self._known

    def news(self, now: float) -> Estimate | None:
        """What is worth telling: a figure that was not known, or is another than was told."""
        found = self.estimate(now)
        if found is None or (self._told is not None and _alike(found, self._told)):
            return None
        self._told = found
        return found


def _told_by_link(found: Estimate) -> Estimate:
    """A rate near what gRPC's window lets through tells of the window, not of the link."""
    most = WINDOW / max(found.rtt_s, 1e-6)
    down = found.down_bytes_per_s
    return replace(found, down_bytes_per_s=None if down is None or 2 * down > most else down)


def _alike(a: Estimate, b: Estimate) -> bool:
    pairs = (
        (a.rtt_s, b.rtt_s, 2e-3),
        (a.up_bytes_per_s, b.up_bytes_per_s, 0.0),
        (a.down_bytes_per_s, b.down_bytes_per_s, 0.0),
        (a.loss, b.loss, 0.02),
    )
    return all(_near(left, right, least) for left, right, least in pairs)


def _near(a: float | None, b: float | None, least: float) -> bool:
    if a is None or b is None:
        return a is b
    low, high = sorted((max(a, least), max(b, least)))
    return high <= NEWS * low


@dataclass(slots=True)
class Asked:
    """Hints of one stream that a committer may have waited for."""

    traffic: Traffic
    _chains: dict[int, tuple[int, int, float]] = field(default_factory=dict)
    """By choice: where the chain begins, bytes, when it was sent."""

    def hinted(self, hint: Hint, size: int, now: float) -> None:
        """A chain begins where the device has seen everything; what goes on with it does not."""
        if hint.tokens and hint.base == hint.seen:
            self._chains[hint.choice] = (hint.base, size, now)

    def committed(self, commit: Commit, size: int, now: float) -> None:
        """A pass that begins where the chain did, and read it, was begun when it came: had the
        committer run on, its end would have moved. Alone in its pass it waited for nothing else."""
        asked = self._chains.pop(commit.choice, None)
        alone = commit.rows == 1 + commit.hint_rows
        if asked is not None and alone and commit.hint_rows and asked[0] == commit.position:
            _, up, sent_s = asked
            self.traffic.exchanged(up, size, sent_s, now, commit.step_us / 1e6)


def is_bulk(size: int) -> bool:
    """Whether a message's bytes may be what its answer took."""
    return size > SPREAD
