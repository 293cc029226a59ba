"""A link as live traffic shows it. Pure: times are arguments, nothing is sent for it.

Whoever exchanges messages tells each exchange (bytes each way, when sent, when the answer was
there, how long the other side worked on it); a window of them gives round trip, jitter,
bandwidth each way and loss. An exchange takes `rtt + up / bandwidth + down / bandwidth`, plus
noise that only ever adds. Lost segments show as delays of a retransmission timeout, since TCP
hides them otherwise (RFC 6298: at least 200 ms in common stacks, 1 s by the letter).
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from outrider.partitioner.device import LinkProfile

WINDOW_S = 60.0
"""What is older says nothing about the link as it is."""
BULK_S = 600.0
"""A bandwidth that showed is believed for this long without another large message."""
MOST = 512
LEAST = 4
"""Exchanges without which nothing is said."""
TIMEOUT_S = 0.18
"""Beyond what the fit explains: a retransmission, not jitter."""
SEGMENT = 1448
"""Bytes of TCP payload in an Ethernet frame."""
SPREAD = 4 * SEGMENT
"""Sizes must differ by this for a bandwidth to show."""
SURE = 2.0
"""The largest messages must take longer than the smallest by this many jitters."""
UNBOUNDED = 1.25e9
"""Bytes per second taken where a link is too fast to tell: 10 Gbit/s."""
_FITS = 3
_HALVINGS = 30


@dataclass(frozen=True, slots=True)
class Exchange:
    """A message and its answer. Bytes and seconds."""

    up: int
    down: int
    sent_s: float
    answered_s: float
    worked_s: float = 0.0
    """Of the time between, spent by the other side."""
    others: int = 0
    """Further segments that it may have stood behind: TCP keeps their order."""

    @property
    def took_s(self) -> float:
        return max(self.answered_s - self.sent_s - self.worked_s, 1e-9)


@dataclass(frozen=True, slots=True)
class Estimate:
    """A link as measured. None where the traffic can not tell."""

    rtt_s: float
    """Median, of an exchange without bytes."""
    rtt_min_s: float
    jitter_s: float
    """Mean distance from the median, retransmissions left out."""
    up_bytes_per_s: float | None
    down_bytes_per_s: float | None
    loss: float
    """Of segments."""
    exchanges: int
    stall_s: float | None = None
    """What the late ones were late by, on average; None where none was."""

    def link(self, a: str, b: str, joules_per_byte: float = 0.0) -> LinkProfile:
        """As a profile; a bandwidth that did not show is taken for plenty."""
        return LinkProfile(
            a=a,
            b=b,
            rtt_s=self.rtt_s,
            up_bytes_per_s=self.up_bytes_per_s or UNBOUNDED,
            down_bytes_per_s=self.down_bytes_per_s or UNBOUNDED,
            jitter_s=self.jitter_s,
            loss=self.loss,
            joules_per_byte=joules_per_byte,
        )


@dataclass(slots=True)
class LinkObserver:
    """Keeps a window of exchanges; `estimate` is None until there are enough."""

    window_s: float = WINDOW_S
    _kept: deque[Exchange] = field(default_factory=lambda: deque(maxlen=MOST))
    _up: _Rate = field(default_factory=lambda: _Rate())
    _down: _Rate = field(default_factory=lambda: _Rate())

    def note(self, exchange: Exchange) -> None:
        """One more. Times that make no sense (a clock that went back) are passed over."""
        times = (exchange.sent_s, exchange.answered_s, exchange.worked_s)
        sane = all(math.isfinite(time) for time in times) and exchange.answered_s > exchange.sent_s
        if sane and exchange.up >= 0 and exchange.down >= 0:
            self._kept.append(exchange)

    def note_rtt(self, seconds: float, now: float) -> None:
        """A round trip of next to no bytes, as heartbeats tell it."""
        self.note(Exchange(0, 0, now - seconds, now))

    def estimate(self, now: float) -> Estimate | None:
        """From what is not older than the window at `now`."""
        recent = [kept for kept in self._kept if now - kept.answered_s <= self.window_s]
        if len(recent) < LEAST:
            return None
        found = measured(recent)
        return replace(
            found,
            up_bytes_per_s=self._up.last(found.up_bytes_per_s, now),
            down_bytes_per_s=self._down.last(found.down_bytes_per_s, now),
        )


@dataclass(slots=True)
class _Rate:
    """Large messages are rare: what they showed last is believed for a while."""

    value: float | None = None
    at_s: float = 0.0

    def last(self, found: float | None, now: float) -> float | None:
        if found is not None:
            self.value, self.at_s = found, now
        elif now - self.at_s > BULK_S:
            self.value = None
        return self.value


def measured(exchanges: Sequence[Exchange]) -> Estimate:
    """Of at least one exchange."""
    took = np.array([exchange.took_s for exchange in exchanges])
    up = np.array([float(exchange.up) for exchange in exchanges])
    down = np.array([float(exchange.down) for exchange in exchanges])
    late = np.zeros(len(took), dtype=bool)
    per_up, per_down, bare = 0.0, 0.0, took
    for _ in range(_FITS):
        per_up, per_down = _slopes(took[~late], up[~late], down[~late])
        bare = took - per_up * up - per_down * down
        late = bare > np.median(bare) + TIMEOUT_S
    calm = bare[~late]
    rtt = max(float(np.median(calm)), 0.0)
    return Estimate(
        rtt_s=rtt,
        rtt_min_s=max(float(calm.min()), 0.0),
        jitter_s=float(np.abs(calm - rtt).mean()),
        up_bytes_per_s=1 / per_up if per_up else None,
        down_bytes_per_s=1 / per_down if per_down else None,
        loss=_loss(list(_segments(exchanges)), late),
        exchanges=len(exchanges),
        stall_s=float(bare[late].mean()) - rtt if late.any() else None,
    )


Floats = NDArray[np.float64]


def _slopes(took: Floats, up: Floats, down: Floats) -> tuple[float, float]:
    """Seconds per byte each way; 0 where sizes hardly differ, or the difference drowns in noise."""
    per_up = per_down = 0.0
    for _ in range(_FITS):
        per_up = _slope(took - per_down * down, up)
        per_down = _slope(took - per_up * up, down)
    return per_up, per_down


def _slope(took: Floats, size: Floats) -> float:
    """Between the calm exchanges of the small and of the large: the lower quartile of each.

    Noise only adds, so low quantiles of both cancel what is common to them.
    """
    low, high = size.min(), size.max()
    if high - low < SPREAD:
        return 0.0
    small, large = size <= low + (high - low) / 4, size >= high - (high - low) / 4
    near, far = (float(np.quantile(took[part], 0.25)) for part in (small, large))
    noise = float(np.median(np.abs(took[small] - np.median(took[small]))))
    if far - near <= SURE * noise:
        return 0.0
    return (far - near) / float(np.median(size[large]) - np.median(size[small]))


def _loss(segments: Sequence[int], late: NDArray[np.bool_]) -> float:
    """The share of segments under which so many exchanges would be late, by halving.

    An exchange of n segments is late unless all of them arrive: 1 - (1 - loss)^n.
    """
    sizes, wanted = np.array(segments, dtype=np.float64), float(late.sum())
    low, high = 0.0, 0.9
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if float((1 - (1 - middle) ** sizes).sum()) < wanted:
            low = middle
        else:
            high = middle
    return low if wanted else 0.0


def _segments(exchanges: Sequence[Exchange]) -> Iterator[int]:
    for exchange in exchanges:
        own = max(-(-exchange.up // SEGMENT), 1) + max(-(-exchange.down // SEGMENT), 1)
        yield own + max(exchange.others, 0)
