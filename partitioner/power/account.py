"""Joules of requests: the device's work, the radio with its tail, the cloud's share. Pure.

Device: each request's share of the busy time, at the watts above idle that a counter measured
over the same stretch, or at estimated watts where there is no counter. Radio and cloud are
estimated from sourced constants (`constants.json`), unless the cloud tells its own figure. A sum
is called measured only when nothing in it is an estimate.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from outrider.partitioner.power import constants
from outrider.partitioner.power.radio import Radio, Tail
from outrider.partitioner.power.state import EnergyKind

FADE = 0.8
"""Of the running mean of idle watts."""
MEMORY = 512.0
"""Tokens after which a figure per token has forgotten half of what was before."""
LEAST_BUSY_S = 0.005
"""A stretch with less work than this tells nothing of the watts of work."""
EXTRAPOLATED = 0.05
"""Share of a request's busy time that may be taken at the watts of the stretch before it, and its
device joules still be called measured."""


@dataclass(frozen=True, slots=True)
class Costs:
    """Where nothing is measured."""

    device_w: float = field(default_factory=lambda: constants.busy_w("laptop"))
    """Drawn beyond idle while the small model computes."""
    cloud_w: Callable[[str], float] = constants.cloud_w
    """Drawn by what computes a target pass, cooling and host included; by its device's name."""
    radio: Radio = field(default_factory=lambda: constants.radio("wifi"))


@dataclass(frozen=True, slots=True)
class Parts:
    """Joules of one request, or of many."""

    device_j: float = 0.0
    radio_j: float = 0.0
    cloud_j: float = 0.0

    @property
    def joules(self) -> float:
        return self.device_j + self.radio_j + self.cloud_j

    def __add__(self, other: Parts) -> Parts:
        return Parts(
            self.device_j + other.device_j,
            self.radio_j + other.radio_j,
            self.cloud_j + other.cloud_j,
        )

    def scaled(self, by: float) -> Parts:
        return Parts(self.device_j * by, self.radio_j * by, self.cloud_j * by)


@dataclass(frozen=True, slots=True)
class Bill:
    """What a request took. `joules` is None when nothing was done for it."""

    joules: float | None = None
    kind: EnergyKind = "none"
    parts: Parts = Parts()
    wasted_j: float = 0.0
    """Of the device's part: drafts that were sent and not accepted."""
    tokens: int = 0


@dataclass(frozen=True, slots=True)
class PerToken:
    """Of one placement: joules over committed tokens, fading over `MEMORY` tokens."""

    joules_per_token: float
    parts: Parts
    """Per token."""
    kind: EnergyKind
    tokens: int
    """All that were counted, without fading."""
    joules: float
    wasted_j: float


@dataclass(slots=True)
class _Leg:
    """One request under one placement."""

    tokens: int = 0
    busy_s: float = 0.0
    pending_s: float = 0.0
    """Of `busy_s`: since the last reading of the counter."""
    settled_s: float = 0.0
    """Of `busy_s`: priced by the counter."""
    device_j: float = 0.0
    radio_j: float = 0.0
    cloud_j: float = 0.0
    drafted: int = 0


@dataclass(slots=True)
class _Request:
    placement: str
    cloud_w: float
    legs: dict[str, _Leg] = field(default_factory=dict)
    kept_j: float = 0.0
    """Estimated for clouds that it left; a later cloud's own figure does not hold it."""
    told_j: float | None = None
    told_kind: EnergyKind = "none"

    @property
    def leg(self) -> _Leg:
        return self.legs.setdefault(self.placement, _Leg())


@dataclass(slots=True)
class _Sum:
    """Of one placement: all there was, and a fading sum of it."""

    tokens: int = 0
    joules: float = 0.0
    wasted_j: float = 0.0
    recent: Parts = Parts()
    recent_tokens: float = 0.0
    kind: EnergyKind = "none"

    def add(self, tokens: int, parts: Parts, wasted_j: float, kind: EnergyKind) -> None:
        fade = 0.5 ** (tokens / MEMORY)
        self.tokens += tokens
        self.joules += parts.joules
        self.wasted_j += wasted_j
        self.recent = self.recent.scaled(fade) + parts
        self.recent_tokens = self.recent_tokens * fade + tokens
        self.kind = worst(self.kind, kind)


@dataclass(frozen=True, slots=True)
class Traffic:
    """What the session knows when a request ends."""

    tokens: int = 0
    """Committed or final tokens of all its answers."""
    bytes_up: int = 0
    bytes_down: int = 0
    sent: int = 0
    """Draft tokens sent up."""
    accepted: int = 0


@dataclass(slots=True)
class Accountant:
    """Told by session and drafter what happens, and by the watcher what counters say."""

    costs: Costs = field(default_factory=Costs)
    requests: dict[str, _Request] = field(default_factory=dict)
    sums: dict[str, _Sum] = field(default_factory=dict)
    idle_w: float | None = None
    busy_w: float | None = None
    """Above idle while the device worked, as last measured."""
    busy_kind: EnergyKind = "estimated"
    tail: Tail = field(init=False)
    _counter: tuple[float, float] | None = None
    """(seconds, joules) of the last reading."""
    _source: str = ""
    _ended_s: float = 0.0
    """Busy time since the last reading of requests that have ended meanwhile."""

    def __post_init__(self) -> None:
        self.tail = Tail(self.costs.radio)

    # --- what the session and the drafter tell ----------------------------------------------

    def begin(self, request: str, placement: str) -> None:
        self.requests[request] = _Request(placement, self.costs.cloud_w("cuda"))

    def opened(self, request: str, device: str, at_s: float, *, resumed: bool = False) -> None:
        """A cloud took it, whose engine computes on `device` (`cuda:0`, `cpu`); `resumed` if that
        cloud still knew it, with all that it had spent."""
        if (found := self.requests.get(request)) is not None:
            if not resumed:
                found.kept_j = sum(leg.cloud_j for leg in found.legs.values())
            found.cloud_w = self.costs.cloud_w(device)
            self.sent(request, at_s)

    def placed(self, request: str, placement: str) -> None:
        """From here on it runs elsewhere; what it took so far stays with the old placement."""
        if (found := self.requests.get(request)) is not None:
            found.leg.radio_j += self.tail.collect(request)
            found.placement = placement

    def worked(self, request: str, busy_s: float, drafted: int) -> None:
        """The device computed for it; its share of a pass that served several."""
        if (found := self.requests.get(request)) is not None:
            found.leg.busy_s += busy_s
            found.leg.pending_s += busy_s
            found.leg.drafted += drafted

    def sent(self, request: str, at_s: float) -> None:
        """A message of it went up or came down."""
        if request in self.requests:
            self.tail.touch(request, at_s)

    def committed(
        self, request: str, tokens: int, at_s: float, *, step_s: float, rows: int, of_rows: int
    ) -> None:
        """A target pass of `of_rows` rows, `rows` of them its own, committed its tokens."""
        self.sent(request, at_s)
        if (found := self.requests.get(request)) is not None:
            share = min(1.0, rows / of_rows) if of_rows > 0 else 1.0
            found.leg.tokens += tokens
            found.leg.cloud_j += step_s * share * found.cloud_w

    def prefilled(self, request: str, seconds: float) -> None:
        """The cloud read its prompt in so much time; taken as all its own, the upper bound."""
        if (found := self.requests.get(request)) is not None:
            found.leg.cloud_j += seconds * found.cloud_w

    def told(self, request: str, joules: float, kind: EnergyKind) -> None:
        """The cloud's own figure for its share takes the place of ours."""
        if (found := self.requests.get(request)) is not None and kind != "none":
            found.told_j = (found.told_j or 0.0) + joules
            found.told_kind = worst(found.told_kind, kind)

    # --- what the watcher tells -------------------------------------------------------------

    def counter(
        self, at_s: float, joules: float, kind: EnergyKind, own: float = 1.0, source: str = ""
    ) -> None:
        """All joules that the device drew so far, by a reader; `own` is this process's share of
        the machine's work since the last call. A counter that fell, or is another one than
        before, is begun anew."""
        if source != self._source:
            self._counter, self._source, self.idle_w = None, source, None
        before, self._counter = self._counter, (at_s, joules)
        if before is None or joules < before[1] or at_s <= before[0]:
            self._ended_s = 0.0
            return
        drawn_j, span_s = joules - before[1], at_s - before[0]
        busy_s = self._ended_s + sum(leg.pending_s for leg in self._legs())
        self._ended_s = 0.0
        if busy_s < LEAST_BUSY_S:
            self._note_idle(drawn_j / span_s)
        elif self.idle_w is not None:
            above = max(0.0, drawn_j - self.idle_w * span_s) * min(1.0, max(0.0, own))
            self.busy_w, self.busy_kind = above / busy_s, kind
            self._settle(above / busy_s)

    def over(self, radio: Radio) -> None:
        """Messages go over this radio from now on."""
        self.costs = replace(self.costs, radio=radio)
        self.tail.radio = radio

    def _note_idle(self, watts: float) -> None:
        old = self.idle_w
        self.idle_w = watts if old is None else min(watts, old * FADE + watts * (1 - FADE))

    def _settle(self, watts: float) -> None:
        for leg in self._legs():
            leg.device_j += leg.pending_s * watts
            leg.settled_s += leg.pending_s
            leg.pending_s = 0.0

    def _legs(self) -> Iterator[_Leg]:
        for request in self.requests.values():
            yield from request.legs.values()

    # --- what they ask ----------------------------------------------------------------------

    def bill(self, request: str) -> Bill:
        """Of a request that runs, so far; without bytes and without the tail to come."""
        found = self.requests.get(request)
        if found is None:
            return Bill()
        parts = sum((self._parts(leg) for leg in found.legs.values()), Parts())
        return self._billed(found, parts, 0.0, sum(leg.tokens for leg in found.legs.values()))

    def finish(self, request: str, traffic: Traffic) -> Bill:
        """It ended: its bill, which also goes to its placements' figures per token."""
        found = self.requests.pop(request, None)
        if found is None:
            return Bill()
        last = found.leg
        last.radio_j += self.tail.leave(request)
        if found.placement == "edge":
            # Nobody commits to the small model's own tokens; they are what is left over.
            last.tokens += max(0, traffic.tokens - sum(leg.tokens for leg in found.legs.values()))
        self._spread_bytes(found, traffic)
        self._spread_told(found)
        self._ended_s += sum(leg.pending_s for leg in found.legs.values())
        parts, wasted = Parts(), 0.0
        for placement, leg in found.legs.items():
            here = self._parts(leg)
            lost = self._wasted(leg, here, traffic) if placement == "draft" else 0.0
            kind = self._kind(found, [leg], here)
            self.sums.setdefault(placement, _Sum()).add(leg.tokens, here, lost, kind)
            parts, wasted = parts + here, wasted + lost
        return self._billed(found, parts, wasted, traffic.tokens)

    def _spread_bytes(self, request: _Request, traffic: Traffic) -> None:
        """Bytes by committed tokens, over the placements that have a cloud."""
        legs = [leg for name, leg in request.legs.items() if name != "edge"] or [request.leg]
        joules = self.costs.radio.bytes_j(traffic.bytes_up, traffic.bytes_down)
        tokens = sum(leg.tokens for leg in legs)
        for leg in legs:
            leg.radio_j += joules * (leg.tokens / tokens if tokens else 1 / len(legs))

    def _spread_told(self, request: _Request) -> None:
        """The cloud's own total in place of our estimates, in their proportion."""
        if request.told_j is None:
            return
        ours = sum(leg.cloud_j for leg in request.legs.values())
        for leg in request.legs.values():
            share = leg.cloud_j / ours if ours else 1 / len(request.legs)
            leg.cloud_j = (request.kept_j + request.told_j) * share

    def _parts(self, leg: _Leg) -> Parts:
        watts = self.costs.device_w if self.busy_w is None else self.busy_w
        return Parts(leg.device_j + leg.pending_s * watts, leg.radio_j, leg.cloud_j)

    def _wasted(self, leg: _Leg, parts: Parts, traffic: Traffic) -> float:
        refused = max(0, traffic.sent - traffic.accepted)
        return parts.device_j * min(1.0, refused / leg.drafted) if leg.drafted else 0.0

    def _billed(self, found: _Request, parts: Parts, wasted_j: float, tokens: int) -> Bill:
        kind = self._kind(found, list(found.legs.values()), parts)
        if kind == "none":
            return Bill(tokens=tokens)
        return Bill(parts.joules, kind, parts, wasted_j, tokens)

    def _kind(self, found: _Request, legs: list[_Leg], parts: Parts) -> EnergyKind:
        kind: EnergyKind = "none"
        busy = sum(leg.busy_s for leg in legs)
        if busy:
            settled = sum(leg.settled_s for leg in legs)
            known = self.busy_kind if settled >= busy * (1 - EXTRAPOLATED) else "estimated"
            kind = worst(kind, known)
        if parts.radio_j:
            kind = worst(kind, "estimated")
        if parts.cloud_j:
            told = found.told_j is not None and not found.kept_j
            kind = worst(kind, found.told_kind if told else "estimated")
        return kind

    def per_token(self) -> Mapping[str, PerToken]:
        """By placement, of the requests that have ended."""
        return {
            placement: PerToken(
                joules_per_token=found.recent.joules / found.recent_tokens,
                parts=found.recent.scaled(1 / found.recent_tokens),
                kind=found.kind,
                tokens=found.tokens,
                joules=found.joules,
                wasted_j=found.wasted_j,
            )
            for placement, found in self.sums.items()
            if found.recent_tokens
        }

    def joules_per_token(self, placement: str) -> float | None:
        """For placement: what a token has cost there, or None when nothing ran there yet."""
        found = self.sums.get(placement)
        if found is None or not found.recent_tokens:
            return None
        return found.recent.joules / found.recent_tokens


def pass_shares(step_s: float, common_s: float, rows: Sequence[int]) -> list[float]:
    """Seconds of a target pass that each answer is charged with; they add up to `step_s`.

    `common_s` is what one row for each would have taken: it is shared alike. What further rows
    (hints, prompts) added is paid by their number.
    """
    further = sum(rows) - len(rows)
    common_s = min(step_s, common_s) if further else step_s
    each = common_s / len(rows)
    return [each + ((step_s - common_s) * (own - 1) / further if further else 0.0) for own in rows]


ORDER: tuple[EnergyKind, ...] = ("none", "measured", "estimated")


def worst(a: EnergyKind, b: EnergyKind) -> EnergyKind:
    """An estimate in a sum makes the sum one."""
    return a if ORDER.index(a) >= ORDER.index(b) else b
