"""Expected milliseconds a token of each way to answer. Pure.

A committer that never waits (`free`) and one that waits for hints (`wait`) are both
priced, and the better one counts, since that is what the committer's own `auto`
trigger does. After a divergence the next draft is a lag away: the round trip and
the first draft steps. With s a pass without hints, s(k) one with k hint rows, E(k)
the hint tokens expected to hold, q the probability that all k do:

    wait:  (lag + P s(k)) / (P (1 + E(k))),          P = 1 / (1 - q) passes to a divergence
    free:  (n s + a P s(k)) / (n + a P (1 + E(k))),  n = tokens the target says meanwhile,
                                                     a = P(all n were foreseen)

`free` is never more than s: a hint can only shorten the stream. Depth is an optimal
stopping problem (UCB-SpecStop, arXiv 2606.20591): go deeper while the next token is
expected to bring more than it costs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from outrider.partitioner.acceptance import expected, survival
from outrider.partitioner.signals import MAX_DEPTH, Knots, PeerSignals, at

MAX_ROWS = 7
"""Hint rows of one choice in a pass."""
MOST_PASSES = 12.0
"""A chain is not expected to go on for longer than this without a divergence."""
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


def step_ms(peer: PeerSignals, hint_rows: int = 0) -> float:
    """A pass with that many hint rows of ours, and what lies between passes."""
    if not peer.step:
        return UNKNOWN_STEP_MS if peer.expected_ms is None else peer.expected_ms
    return at(peer.step, peer.rows + hint_rows, 0.0) + peer.wait_ms


def plain_ms(peer: PeerSignals) -> float:
    """Without hints."""
    return step_ms(peer)


def token_ms(draft: Knots, step: float) -> float:
    """Drafting one token."""
    if not draft:
        return UNKNOWN_DRAFT * step
    longest, ms = draft[-1]
    return ms / longest


def lag_ms(peer: PeerSignals, draft: Knots, tokens: int = 1) -> float:
    """From a commit to the first draft made after it."""
    step = plain_ms(peer)
    first = at(draft, tokens, 1.0) if draft else UNKNOWN_DRAFT * step * tokens
    return (peer.rtt_ms or 0.0) + first


def drafted(
    peer: PeerSignals, rates: Sequence[float], draft: Knots, cap: int, ms_per_busy: float = 0.0
) -> Drafted:
    """The best there is with at most `cap` tokens ahead; `ms_per_busy` prices drafting time."""
    single = plain_ms(peer)
    best = Drafted(single, min(1, max(0, cap)), token_ms(draft, single), "free")
    worth = math.inf
    for rows in range(1, min(MAX_ROWS, max(0, cap)) + 1):
        for found in (_free(peer, rates, draft, rows), _wait(peer, rates, draft, rows)):
            if found is None or found.depth > cap:
                continue
            price = found.ms + ms_per_busy * found.busy_ms
            if price < worth:
                best, worth = found, price
    return best


def _passes(rates: Sequence[float], rows: int, start: int) -> tuple[float, float]:
    """Passes until a divergence, and tokens of each, from a depth on."""
    all_hold = survival(rates[start:] or rates[-1:], rows)
    passes = min(MOST_PASSES, 1.0 / max(1e-6, 1.0 - all_hold))
    return passes, 1.0 + expected(rates, rows, start)


def _free(peer: PeerSignals, rates: Sequence[float], draft: Knots, rows: int) -> Drafted | None:
    single, each = plain_ms(peer), token_ms(draft, plain_ms(peer))
    if each >= single:
        return None
    lead = max(1, math.ceil(lag_ms(peer, draft) / (single - each)))
    if lead + rows > MAX_DEPTH + MAX_ROWS:
        return None
    alive = survival(rates, lead)
    passes, tokens = _passes(rates, rows, min(lead, len(rates) - 1))
    took = max(step_ms(peer, rows), each * tokens)
    total = lead + alive * passes * tokens
    ms = (lead * single + alive * passes * took) / total
    depth = min(MAX_DEPTH, lead + rows)
    busy = each * (depth + alive * passes * tokens) / total
    return Drafted(min(ms, single), depth, busy, "free")


def _wait(peer: PeerSignals, rates: Sequence[float], draft: Knots, rows: int) -> Drafted | None:
    single = plain_ms(peer)
    lag = lag_ms(peer, draft, rows)
    if peer.rows >= 1.5 and lag >= single:
        # A committer with others to serve does not wait longer than a pass.
        return None
    each = token_ms(draft, single)
    passes, tokens = _passes(rates, rows, 0)
    took = max(step_ms(peer, rows), each * tokens)
    total = passes * tokens
    ms = (lag + passes * took) / total
    if ms >= single:
        # Then it does not wait.
        return None
    return Drafted(ms, rows, each * (rows + passes * tokens) / total, "wait")
