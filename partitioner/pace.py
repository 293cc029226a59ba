"""Expected milliseconds a token of each way to answer. Pure.

A committer that never waits (`free`) and one that waits for hints (`wait`) are both
priced, and the better one counts, since that is what the committer's own `auto`
trigger does. After a divergence the next draft is a lag away: the round trip and
the first draft steps. With s a pass without hints, s(k) one with k hint rows, E(k)
the hint tokens expected to hold, q the probability that all k do:

    wait:  (lag + P s(k)) / (P (1 + E(k))),          P = 1 / (1 - q) passes to a divergence
    free:  (n s + a P s(k)) / (n + a P (1 + E(k))),  n = tokens the target says meanwhile,
                                                     a = P(all n were foreseen)

`free` is never more than s: a hint can only shorten the stream. Where the link's bandwidth or loss
shows, no pass is shorter than its messages take, the lag has their bytes in it, and what waits for
a message waits for its retransmission; the stream alone runs on behind a lost segment.

Depth is an optimal stopping problem (UCB-SpecStop, arXiv 2606.20591): go deeper while the next
token is expected to bring more than it costs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from operator import mul
from typing import Literal

from outrider.partitioner.signals import MAX_DEPTH, Knots, PeerSignals, at
from outrider.partitioner.traffic import commit_ms, hint_ms, stall_ms

MAX_ROWS = 7
"""Hint rows of one choice in a pass."""
MOST_PASSES = 12.0
"""A chain is not expected to go on for longer than this without a divergence."""
PATIENCE = 1.5
"""Lags that a committer waits for a hint (`cloud/scheduler.py`)."""
SHARED = 1.5
"""Rows beside our hints from which on others share the passes."""
UNKNOWN_DRAFT = 0.15
"""A drafter that was never timed is taken to need this share of a step a token."""
UNKNOWN_STEP_MS = 50.0


@dataclass(frozen=True, slots=True)
class Drafted:
    """What drafting is expected to do."""

    ms: float
    """A committed token."""
    depth: int
    """Tokens to draft past the committed end."""
    busy_ms: float
    """Drafting time of the device per committed token."""
    trigger: Literal["free", "wait"]
    messages: float = 1.0
    """Commits per committed token; as many hints go up."""


def step_ms(peer: PeerSignals, hint_rows: int = 0) -> float:
    """A pass with that many hint rows of ours, and what lies between passes."""
    if not peer.step:
        return UNKNOWN_STEP_MS if peer.expected_ms is None else peer.expected_ms
    return at(peer.step, peer.rows + hint_rows, 0.0) + peer.wait_ms


def plain_ms(peer: PeerSignals) -> float:
    """Without hints: a pass a token, or a message where that takes longer."""
    return max(step_ms(peer), commit_ms(peer))


def token_ms(draft: Knots, step: float) -> float:
    """Drafting one token."""
    if not draft:
        return UNKNOWN_DRAFT * step
    longest, ms = draft[-1]
    return ms / longest


def lag_ms(peer: PeerSignals, draft: Knots, tokens: int = 1) -> float:
    """From a commit to the first draft made after it: a message each way, and the drafting."""
    step = plain_ms(peer)
    first = at(draft, tokens, 1.0) if draft else UNKNOWN_DRAFT * step * tokens
    way = (peer.rtt_ms or 0.0) + commit_ms(peer) + hint_ms(peer)
    return way + stall_ms(peer, 2) + first


def drafted(
    peer: PeerSignals, rates: Sequence[float], draft: Knots, cap: int, ms_per_busy: float = 0.0
) -> Drafted:
    """The best there is with at most `cap` tokens ahead; `ms_per_busy` prices drafting time."""
    costs = _Costs.of(peer, rates, draft, min(MAX_ROWS, max(0, cap)))
    best = Drafted(costs.single, min(1, max(0, cap)), costs.each, "free", 1.0)
    worth = math.inf
    for rows in range(1, len(costs.steps)):
        for found in (costs.free(rows), costs.wait(rows)):
            if found is None or found.depth > cap:
                continue
            price = found.ms + ms_per_busy * found.busy_ms
            if price < worth:
                best, worth = found, price
    return best


@dataclass(frozen=True, slots=True)
class _Costs:
    """What the two formulas need, reckoned once for all row counts."""

    single: float
    """ms of a token without hints."""
    steps: tuple[float, ...]
    """ms of a pass by our hint rows, with their messages."""
    reach: tuple[float, ...]
    """P(the first d tokens of a chain hold)."""
    each: float
    """ms of drafting a token."""
    lags: tuple[float, ...]
    """ms from a divergence to a hint of so many rows."""
    lost: float
    """ms a pass that the loss of hints costs a committer that waits for them."""
    shared: bool
    """Others are in the same passes."""

    @classmethod
    def of(cls, peer: PeerSignals, rates: Sequence[float], draft: Knots, most: int) -> _Costs:
        least = max(commit_ms(peer), hint_ms(peer))
        steps = tuple(max(step_ms(peer, rows), least) for rows in range(most + 1))
        depths = range(2 * MAX_ROWS + MAX_DEPTH)
        longer = (rates[min(depth, len(rates) - 1)] for depth in depths)
        reach = tuple(accumulate(longer, mul, initial=1.0))
        lags = tuple(lag_ms(peer, draft, max(1, rows)) for rows in range(most + 1))
        single, each = plain_ms(peer), token_ms(draft, step_ms(peer))
        # A hint that is lost in the middle of a chain is waited for, though not longer than a lag.
        lost = min(stall_ms(peer, 1), (peer.loss or 0.0) * PATIENCE * lags[0])
        return cls(single, steps, reach, each, lags, lost, peer.rows >= SHARED)

    def _passes(self, rows: int, start: int) -> tuple[float, float]:
        """Passes until a divergence, and tokens of each, from a depth on."""
        base = self.reach[start] or 1.0
        passes = 1.0 / max(1e-6, 1.0 - self.reach[start + rows] / base)
        held = sum(self.reach[start + 1 : start + rows + 1]) / base
        return min(MOST_PASSES, passes), 1.0 + held

    def free(self, rows: int) -> Drafted | None:
        """The committer runs on meanwhile; None where drafts never overtake it."""
        single, each = self.single, self.each
        if each >= single:
            return None
        lead = max(1, math.ceil((self.lags[0]) / (single - each)))
        if lead + rows > MAX_DEPTH:
            return None
        alive = self.reach[lead]
        passes, tokens = self._passes(rows, lead)
        took = max(self.steps[rows], each * tokens)
        total = lead + alive * passes * tokens
        ms = (lead * single + alive * passes * took) / total
        busy = each * (lead + rows + alive * passes * tokens) / total
        messages = (lead + alive * passes) / total
        return Drafted(min(ms, single), lead + rows, busy, "free", messages)

    def wait(self, rows: int) -> Drafted | None:
        """The committer waits for each hint; None where it would not."""
        lag, each = self.lags[rows], self.each
        if self.shared and lag >= self.single:
            # With others to serve it does not wait longer than a pass.
            return None
        passes, tokens = self._passes(rows, 0)
        took = max(self.steps[rows], each * tokens) + self.lost
        total = passes * tokens
        ms = (lag + passes * took) / total
        if ms >= self.single:
            return None
        busy = each * (rows + passes * tokens) / total
        return Drafted(ms, rows, busy, "wait", passes / total)
