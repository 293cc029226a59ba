"""Keys and values over a link: at which level, and which of them are computed again instead. Pure.

Every segment of a context is either shipped or recomputed by its receiver. What is shipped goes
through four stages, each doing one segment at a time: coded and sealed, sent, on its way, opened
and decoded. What is recomputed needs all that stands before it, and the receiver's processor;
decoding has a thread of its own. So the head is recomputed while the tail streams in, and with
segments of unequal size now and then one in the middle. Shipping in order of position is never
worse, since whatever waits, waits for what stands before it.

Rungs are chosen as CacheGen does (arXiv 2310.07240): the most faithful that comes in time, of
those that cost no more quality than was allowed.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace

from outrider.errors import InvalidRequest

MOST_STATES = 256
"""Ways to go on that are kept at each segment. While they suffice the plan is the best one;
beyond, it is never worse than the best head and tail."""
REMEMBERED = 8
"""Sendings that a link's rate is measured over."""


@dataclass(frozen=True, slots=True)
class Rung:
    """A level of the codec as it was measured."""

    name: str
    token_bytes: float
    """On the wire, sealed."""
    loss: float
    """Perplexity ratio - 1 on held-out text; 0 for what is exact."""
    encode_s: float
    """Of one token: coding and sealing."""
    decode_s: float
    """Of one token: opening and decoding."""


@dataclass(frozen=True, slots=True)
class Wire:
    """The link as it is measured now."""

    bytes_per_s: float
    delay_s: float = 0.0
    """One way."""


@dataclass(frozen=True, slots=True)
class Prefill:
    """The receiver's own speed."""

    token_s: float
    """Of one token in an empty context."""
    position_s: float = 0.0
    """More for each token that stands before it: attention."""

    def seconds(self, start: int, stop: int) -> float:
        """Tokens [start, stop), with all before them present."""
        positions = (start + stop - 1) * (stop - start) / 2
        return (stop - start) * self.token_s + positions * self.position_s


@dataclass(frozen=True, slots=True)
class Piece:
    """Tokens [start, stop) of a context."""

    start: int
    stop: int
    held: bool = False
    """The receiver has it already: nothing is to be done. A piece that was lost is planned with
    the others held."""

    @property
    def tokens(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True, slots=True)
class Shipment:
    """What becomes of each piece, by its index."""

    shipped: tuple[int, ...]
    """In the order of sending."""
    recomputed: tuple[int, ...]
    finish_s: float
    """Until the receiver has everything."""
    ship_all_s: float
    recompute_all_s: float


# --- the rate ----------------------------------------------------------------------------------


class Throughput:
    """Bytes a second over the latest sendings, each weighted by its time."""

    def __init__(self, first_guess: float) -> None:
        self._guess = first_guess
        self._sent: deque[tuple[float, float]] = deque(maxlen=REMEMBERED)

    def sent(self, size: float, seconds: float) -> None:
        """One sending that kept the link busy for so long; nothing is learnt from none."""
        if size > 0 and seconds > 0:
            self._sent.append((size, seconds))

    @property
    def bytes_per_s(self) -> float:
        if not self._sent:
            return self._guess
        return sum(s for s, _ in self._sent) / sum(t for _, t in self._sent)


def choose(
    rungs: Sequence[Rung],
    wire: Wire,
    tokens: int,
    most_loss: float,
    within_s: float | None = None,
) -> Rung:
    """The rung to ship so many tokens at.

    Of those that cost at most `most_loss`: the most faithful that arrives `within_s`; where none
    does, or no time is given, the fastest. Raises InvalidRequest where none is faithful enough.
    """
    allowed = [rung for rung in rungs if rung.loss <= most_loss]
    if not allowed:
        raise InvalidRequest(
            "no KV codec is as faithful as was asked for",
            param="most_loss",
            why=f"the most faithful one costs {min((r.loss for r in rungs), default=0.0):g}",
            effect="nothing is shipped",
            todo="allow more loss, or recompute",
        )
    timely = [r for r in allowed if within_s is not None and _alone(r, wire, tokens) <= within_s]
    if timely:
        return min(timely, key=lambda r: (r.loss, _alone(r, wire, tokens)))
    return min(allowed, key=lambda r: (_alone(r, wire, tokens), r.loss))


def _alone(rung: Rung, wire: Wire, tokens: int) -> float:
    """Seconds to ship tokens in small segments: the slowest stage's time, and the way."""
    slowest = max(rung.encode_s, rung.token_bytes / wire.bytes_per_s, rung.decode_s)
    return tokens * slowest + wire.delay_s


def break_even(rung: Rung, prefill: Prefill, tokens: int, wire: Wire) -> float:
    """Bytes a second above which shipping all tokens is faster than computing them; infinite
    where coding alone takes longer. Of `wire` only the delay counts."""
    left = prefill.seconds(0, tokens) - wire.delay_s
    if left <= tokens * max(rung.encode_s, rung.decode_s):
        return math.inf
    return tokens * rung.token_bytes / left


# --- ship or recompute -------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _State:
    """When each stage is free again, and when all pieces so far are present."""

    coded: float = 0.0
    sent: float = 0.0
    decoded: float = 0.0
    present: float = 0.0
    computed: tuple[int, ...] = ()

    def shipping(self, tokens: int, rung: Rung, wire: Wire) -> _State:
        coded = self.coded + tokens * rung.encode_s
        sent = max(coded, self.sent) + tokens * rung.token_bytes / wire.bytes_per_s
        decoded = max(sent + wire.delay_s, self.decoded) + tokens * rung.decode_s
        return _State(coded, sent, decoded, max(self.present, decoded), self.computed)

    def computing(self, number: int, piece: Piece, prefill: Prefill) -> _State:
        present = self.present + prefill.seconds(piece.start, piece.stop)
        return replace(self, present=present, computed=(*self.computed, number))

    def beats(self, other: _State) -> bool:
        return (
            self.coded <= other.coded
            and self.sent <= other.sent
            and self.decoded <= other.decoded
            and self.present <= other.present
        )


def plan(pieces: Sequence[Piece], rung: Rung, wire: Wire, prefill: Prefill) -> Shipment:
    """The way to have all pieces soonest. They are in order of position and do not overlap.

    Called again whenever the link's rate has changed, with what has arrived as held.
    """
    _check(pieces)
    wanted = [(number, piece) for number, piece in enumerate(pieces) if not piece.held]
    way = _Way(rung, wire, prefill)
    heads = [way.after_head(wanted, head) for head in range(len(wanted) + 1)]
    best = min([*way.searched(wanted), *heads], key=lambda s: (s.present, len(s.computed)))
    return Shipment(
        shipped=tuple(number for number, _ in wanted if number not in best.computed),
        recomputed=best.computed,
        finish_s=best.present,
        ship_all_s=heads[0].present,
        recompute_all_s=heads[-1].present,
    )


@dataclass(frozen=True, slots=True)
class _Way:
    """What a piece costs either way."""

    rung: Rung
    wire: Wire
    prefill: Prefill

    def after_head(self, wanted: Sequence[tuple[int, Piece]], head: int) -> _State:
        """So many computed, the others shipped: always looked at, however many pieces."""
        state = _State()
        for number, piece in wanted[:head]:
            state = state.computing(number, piece, self.prefill)
        for _, piece in wanted[head:]:
            state = state.shipping(piece.tokens, self.rung, self.wire)
        return state

    def searched(self, wanted: Sequence[tuple[int, Piece]]) -> list[_State]:
        states = [_State()]
        for number, piece in wanted:
            going_on = [s.shipping(piece.tokens, self.rung, self.wire) for s in states]
            going_on += [s.computing(number, piece, self.prefill) for s in states]
            states = _pruned(going_on)
        return states


def _pruned(states: list[_State]) -> list[_State]:
    """Those that no other one beats, the earliest present first."""
    kept: list[_State] = []
    for state in sorted(states, key=lambda s: (s.present, s.sent, s.decoded, s.coded)):
        if not any(better.beats(state) for better in kept):
            kept.append(state)
    if len(kept) <= MOST_STATES:
        return kept
    return kept[:: -(-len(kept) // MOST_STATES)]


def _check(pieces: Sequence[Piece]) -> None:
    ends = [0, *(piece.stop for piece in pieces)]
    for before, piece in zip(ends, pieces, strict=False):
        if not before <= piece.start < piece.stop:
            raise InvalidRequest(
                "the pieces of KV are not in order",
                why=f"one goes from {piece.start} to {piece.stop} after {before}",
                effect="nothing was planned",
            )
