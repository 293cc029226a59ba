"""What placement is decided from: curves and means learnt from every commit and every burst.

Pure: times are arguments, seconds on the device's monotonic clock. Nothing here knows
of requests or streams; `edge/placement.py` and the simulator feed the same objects.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from typing import Any, Literal

from outrider.partitioner.acceptance import Acceptance
from outrider.partitioner.bandit import Estimate
from outrider.partitioner.power.radio import Radio
from outrider.partitioner.power.state import Bounds, EnergyKind

Placement = Literal["edge", "cloud", "draft", "split", "handoff"]
PLACEMENTS: tuple[Placement, ...] = ("edge", "cloud", "draft", "split", "handoff")
Share = Literal["tokens", "hidden", "nothing"]
"""What may leave the device."""
Knots = tuple[tuple[float, float], ...]
KNOTS = 48
"""Row counts that a curve keeps."""
NEWS = 0.25
"""As a logarithm: a mean that is off by this much is no noise."""
STALL_MS = 200.0
"""The least retransmission timeout of common TCP stacks, beyond the round trip."""
MAX_DEPTH = 15
"""Tokens past the committed end that a committer ever wishes for."""


def at(knots: Knots, count: float, growth: float) -> float:
    """Milliseconds at a count: linear between knots, 0 without any.

    Outside of them it grows with `growth` of proportionality below the first knot,
    and above the last with the steepest slope seen, or that share of the mean slope.
    """
    if not knots:
        return 0.0
    place = bisect_left(knots, (count, -1.0))
    if place == 0:
        first, ms = knots[0]
        return ms * (1.0 - growth * (1.0 - count / first))
    if place == len(knots):
        last, ms = knots[-1]
        slopes = [(b - a) / (m - n) for (n, a), (m, b) in pairwise(knots)]
        return ms + max([*slopes, ms / last * growth * 0.25]) * (count - last)
    (low, a), (high, b) = knots[place - 1], knots[place]
    return a + (b - a) * (count - low) / (high - low)


@dataclass(slots=True)
class Curve:
    """Milliseconds by a count. What is common to all counts (a hot device, a slow hour) is
    learnt fast, the shape slowly, so that a count that was long not seen is not out of date."""

    growth: float
    scale: float = 0.0
    shape: dict[int, float] = field(default_factory=dict)
    off: float = 0.0
    """Fading mean of how far the latest were from what was expected, as a logarithm."""

    def note(self, count: int, ms: float) -> None:
        if ms <= 0.0 or count <= 0:
            return
        if not self.shape:
            self.scale, self.shape[count] = ms, 1.0
            return
        known = count in self.shape
        if not known and len(self.shape) >= KNOTS:
            return
        ratio = min(8.0, max(0.125, ms / self.ms(count)))
        self.off = 0.7 * self.off + 0.3 * math.log(ratio)
        if known:
            # Noise is averaged out; what is off again and again is news, and learnt at once.
            haste = 4.0 if abs(self.off) > NEWS else 1.0
            self.scale *= ratio ** (0.06 * haste)
            self.shape[count] *= ratio ** (0.03 * haste)
        else:
            self.shape[count] = ms / self.scale

    def ms(self, count: float) -> float:
        return at(self.knots(), count, self.growth)

    def knots(self) -> Knots:
        """Never falling with the count."""
        ordered = sorted(self.shape.items())
        rising = accumulate((share for _, share in ordered), max)
        return tuple(
            (float(count), self.scale * share)
            for (count, _), share in zip(ordered, rising, strict=True)
        )


# --- at one moment -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Bias:
    """Measured over predicted ms a token of one way to answer."""

    ratio: float = 1.0
    error: float = 0.35
    tries: float = 0.0


@dataclass(frozen=True, slots=True)
class PeerSignals:
    """One committer as the device knows it."""

    name: str
    kind: Literal["cloud", "split"] = "cloud"
    reachable: bool = True
    why: str = ""
    """Why it is not."""
    numeric_class: str = ""
    home: bool = True
    """Of a committer over this house's devices: the ends of its model lie on this one."""
    step: Knots = ()
    """ms of a pass by its rows."""
    rows: float = 1.0
    """Rows of a pass beside our hints: ours, and those of others that share the committer."""
    wait_ms: float = 0.0
    """From one pass to the next beside the step itself."""
    queue_ms: float = 0.0
    """Until an answer's first row."""
    prefill_ms: float = 0.0
    """A prompt token."""
    rtt_ms: float | None = None
    jitter_ms: float = 0.0
    up_bytes_per_s: float | None = None
    """None here, below and of `loss`: the traffic does not tell, and nothing is priced for it."""
    down_bytes_per_s: float | None = None
    loss: float | None = None
    """Of segments."""
    stall_ms: float = STALL_MS
    """What a lost segment keeps those behind it waiting."""
    expected_ms: float | None = None
    """ms a token by the planner, where nothing was measured."""
    busy_ms: float | None = None
    """Drafting time per committed token, where it was measured."""
    plain: Bias = Bias()
    drafted: Bias = Bias()
    wish: int | None = None
    """What the committer would look at, tokens past the committed end."""
    dollars_per_hour: float = 0.0


@dataclass(frozen=True, slots=True)
class Energy:
    """What the device draws beyond idle, in watts.

    The defaults are estimates for a laptop or a phone on a radio link: one busy core
    about 6 W; an active 4G or 5G radio 1 to 2.5 W while an answer streams.
    """

    draft_w: float = 6.0
    stream_w: float = 1.0
    cloud_w: float = 0.0
    """Of the committer, per session; 0 counts the device alone."""
    per_token: tuple[tuple[Placement, float], ...] = ()
    """Joules a token of placements where they were counted; they stand for the estimate."""
    kind: EnergyKind = "estimated"
    source: str = "one busy core, one active radio"
    tail_s: float = math.inf
    """How long the radio stays awake after a message; `stream_w` is drawn while it is."""
    wake_j: float = 0.0
    up_j_per_byte: float = 0.0
    down_j_per_byte: float = 0.0

    @classmethod
    def over(cls, radio: Radio, draft_w: float, **known: Any) -> Energy:
        """Messages go over this radio; `known` are further fields."""
        return cls(
            draft_w=draft_w,
            stream_w=radio.tail_w,
            tail_s=radio.tail_s,
            wake_j=radio.wake_j,
            up_j_per_byte=radio.up_j_per_byte,
            down_j_per_byte=radio.down_j_per_byte,
            **known,
        )

    def counted(self, placement: Placement) -> float | None:
        return next((joules for name, joules in self.per_token if name == placement), None)


def streamed_j(energy: Energy, ms: float, gap_ms: float) -> float:
    """Joules of a radio over which a message goes every `gap_ms`, for `ms` of a stream.

    It sleeps where its tail is shorter than the gaps, and is then woken for each message.
    """
    if not math.isfinite(ms) or gap_ms <= energy.tail_s * 1e3:
        return energy.stream_w * ms / 1e3
    return (energy.stream_w * energy.tail_s + energy.wake_j) * ms / gap_ms


def last_tail_j(energy: Energy) -> float:
    """Of an answer that used the radio at all: waking up, and the tail after its last message."""
    return energy.wake_j + (
        energy.stream_w * energy.tail_s if math.isfinite(energy.tail_s) else 0.0
    )


@dataclass(frozen=True, slots=True)
class Signals:
    """Everything a decision is made from."""

    at_s: float
    rates: tuple[float, ...]
    """Acceptance by depth, and the same one standard error down and up."""
    rates_low: tuple[float, ...]
    rates_high: tuple[float, ...]
    tries: float
    draft: Knots
    """ms of a burst by its tokens; empty before the first."""
    drafter: str = ""
    """Why nothing can be drafted; empty when it can."""
    peers: tuple[PeerSignals, ...] = ()
    bounds: Bounds = Bounds()
    energy: Energy = Energy()

    def peer(self, name: str) -> PeerSignals | None:
        return next((peer for peer in self.peers if peer.name == name), None)


# --- learnt ------------------------------------------------------------------------------------

DRIFT = 0.25
"""A pace that is off by this much, and surely so, is a surprise."""


@dataclass(slots=True)
class Pace:
    """Measured over predicted ms a token, with an eye on sudden change."""

    unknown: float = 0.35
    """Standard error of the prediction before anything was measured."""
    mean: Estimate = field(default_factory=lambda: Estimate(fade=0.98))
    recent: Estimate = field(default_factory=lambda: Estimate(fade=0.7, half_life_s=30.0))

    def note(self, ratio: float, now_s: float, weight: float) -> bool:
        """True when the latest differs surely from what was believed: belief follows at once."""
        ratio = min(20.0, max(0.05, ratio))
        self.recent.note(ratio, now_s, weight)
        self.mean.note(ratio, now_s, weight)
        off = abs(self.recent.mean - self.mean.mean)
        if self.recent.weight < 2.0 or off < max(DRIFT, 3.0 * self.recent.error(0.0)):
            return False
        self.mean.mean, self.mean.weight = self.recent.mean, self.recent.weight
        return True

    def forget(self, keep: float) -> None:
        """Believe what was measured less surely."""
        self.mean.weight *= keep

    def bias(self, now_s: float) -> Bias:
        """Shrunk towards 1 while little was seen."""
        self.mean.age(now_s)
        weight = self.mean.weight
        ratio = (self.mean.mean * weight + 2.0) / (weight + 2.0)
        return Bias(ratio, self.mean.error(self.unknown), weight)


@dataclass(slots=True)
class PeerMeter:
    """One committer's costs for one model."""

    step: Curve = field(default_factory=lambda: Curve(growth=0.0))
    rows: Estimate = field(default_factory=lambda: Estimate(fade=0.9))
    wait: Estimate = field(default_factory=lambda: Estimate(fade=0.95))
    queue: Estimate = field(default_factory=lambda: Estimate(fade=0.8))
    prefill: Estimate = field(default_factory=lambda: Estimate(fade=0.8))
    rtt: Estimate = field(default_factory=lambda: Estimate(fade=0.6))
    busy: Estimate = field(default_factory=lambda: Estimate(fade=0.95))
    plain: Pace = field(default_factory=lambda: Pace(unknown=0.08))
    """A pass without hints is all there is to predict."""
    drafted: Pace = field(default_factory=Pace)
    wish: int | None = None

    def passed(self, rows: int, hint_rows: int, step_ms: float, now_s: float) -> None:
        """A target pass: rows of all sessions, of which ours were hints."""
        self.step.note(rows, step_ms)
        self.rows.note(max(1.0, float(rows - hint_rows)), now_s)

    def gap(self, ms: float, step_ms: float, now_s: float) -> None:
        """Between two commits with nothing of ours to wait for."""
        self.wait.note(max(0.0, ms - step_ms), now_s)

    def round_trip(self, ms: float, now_s: float) -> None:
        self.rtt.note(ms, now_s)

    def finished(self, queue_ms: float, prefill_ms: float, prompt: int, now_s: float) -> None:
        self.queue.note(queue_ms, now_s)
        self.prefill.note(prefill_ms / max(1, prompt), now_s)

    def signals(self, name: str, now_s: float, **known: object) -> PeerSignals:
        """As it looks now; `known` are fields that are not measured here."""
        found: dict[str, object] = {
            "step": self.step.knots(),
            "rows": self.rows.mean if self.rows.weight else 1.0,
            "wait_ms": self.wait.mean,
            "queue_ms": self.queue.mean,
            "prefill_ms": self.prefill.mean,
            "rtt_ms": self.rtt.mean if self.rtt.weight else None,
            "jitter_ms": self.rtt.spread**0.5,
            "busy_ms": self.busy.mean if self.busy.weight > 2.0 else None,
            "plain": self.plain.bias(now_s),
            "drafted": self.drafted.bias(now_s),
            "wish": self.wish,
        }
        return PeerSignals(name, **(found | known))  # type: ignore[arg-type]


@dataclass(slots=True)
class DraftMeter:
    """The device's drafter: its speed, and how often it is right."""

    bursts: Curve = field(default_factory=lambda: Curve(growth=1.0))
    acceptance: Acceptance = field(default_factory=Acceptance)

    def burst(self, tokens: int, ms: float) -> None:
        self.bursts.note(tokens, ms)

    def signals(
        self,
        now_s: float,
        peers: Sequence[PeerSignals],
        *,
        acceptance: Acceptance | None = None,
        bounds: Bounds | None = None,
        energy: Energy | None = None,
        drafter: str = "",
    ) -> Signals:
        """`acceptance` is that of one answer, where there is one."""
        known = acceptance or self.acceptance
        self.acceptance.age(now_s)
        return Signals(
            now_s,
            known.rates(),
            known.rates(-1.0),
            known.rates(1.0),
            known.tries(0),
            self.bursts.knots(),
            drafter,
            tuple(peers),
            bounds or Bounds(),
            energy or Energy(),
        )
