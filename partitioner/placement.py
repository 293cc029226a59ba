"""Where an answer runs, and when that changes: scores, hysteresis, bounded trying. Pure.

Each placement is scored in milliseconds a token, with joules and dollars priced in.
What a placement may not do is a constraint, and names itself. A change needs a margin
and a dwell; only a constraint acts at once. What is believed to be worse is tried
seldom, within the budget of `bandit.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from outrider.partitioner.bandit import PROBE_TOKENS, Budget, optimistic
from outrider.partitioner.book import Habit
from outrider.partitioner.pace import Drafted, drafted, plain_ms, token_ms
from outrider.partitioner.power.state import SHALLOW
from outrider.partitioner.signals import (
    MAX_DEPTH,
    Bias,
    Energy,
    PeerSignals,
    Placement,
    Share,
    Signals,
    last_tail_j,
    streamed_j,
)
from outrider.partitioner.traffic import COMMIT_BYTES, HINT_BYTES, stall_ms, upload_ms

NO_HANDOFF = "KV hand-over is not part of this version"
DEAR = 0.03
"""Share of the cost that drafting less deep must save before it is done."""
ACKS = 0.1
"""Acknowledgements a token that is not drafted."""
RANK: dict[Placement, int] = {"cloud": 0, "draft": 1, "split": 2, "handoff": 3, "edge": 4}
"""What asks more of the device comes later: it has to earn its place."""


ObjectiveName = Literal["latency", "balanced", "energy"]
WORTH: dict[ObjectiveName, float] = {"latency": 0.0, "balanced": 20.0, "energy": 200.0}
"""Milliseconds a joule."""


@dataclass(frozen=True, slots=True)
class Objective:
    """Milliseconds a token that a joule of the device, or a dollar, is worth.

    20 ms a joule: 50 ms are given for 2.5 J, about what an answer of 40 tokens costs a
    laptop that drafts all of it.
    """

    ms_per_joule: float = 20.0
    ms_per_dollar: float = 0.0

    @classmethod
    def named(cls, name: ObjectiveName) -> Objective:
        """`latency`: time alone; `balanced`: the default above; `energy`: ten times that, so that
        a laptop gives up what it would gain by drafting unless most drafts hold."""
        return cls(WORTH[name])


@dataclass(frozen=True, slots=True)
class Rules:
    """How reluctant a change is."""

    margin: float = 0.06
    """Share of the present cost that a more demanding placement must save."""
    tie: float = 0.01
    """Where the more demanding one saves no more time than this, the simpler one is taken, even
    when it costs as much more."""
    back: float = 0.02
    """Share that the simpler one must save where time is saved and joules are not."""
    move: float = 0.10
    """Share that going on at another committer must save, beyond what the move costs."""
    dwell_s: float = 5.0
    dwell_tokens: int = 16
    agree: int = 3
    """Looks in a row that must come to the same conclusion."""
    longest_dwell_s: float = 60.0
    """Each change that takes back the one before triples the dwell, up to this."""
    probes: bool = True


@dataclass(frozen=True, slots=True)
class Wants:
    """What a request allows, and how far it is."""

    pinned: Placement | None = None
    wished: Placement | None = None
    """By an operator, who may take it back while the answer runs."""
    exact_required: bool = False
    numeric_class: str = ""
    """Of what is committed."""
    small_allowed: bool = False
    """The small model's own answer will do."""
    share: Share = "tokens"
    drafter: str = ""
    """Why this answer can not be drafted; empty when it can."""
    barred: tuple[str, ...] = ()
    """Committers that refused this answer."""
    prompt: int = 0
    committed: int = 0
    remaining: int = 256


@dataclass(frozen=True, slots=True)
class Score:
    """One placement's expected cost per token; `total` is what is compared."""

    placement: Placement
    peer: str
    ms: float
    joules: float
    dollars: float
    total: float
    error: float
    """Standard error of `total`."""
    tries: float
    depth: int = 0
    trigger: Literal["free", "wait", ""] = ""
    why: str = ""
    """Why it can not be; empty when it can."""

    @property
    def possible(self) -> bool:
        return not self.why and math.isfinite(self.total)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What to do from now on, and why."""

    placement: Placement
    peer: str
    depth: int
    """Tokens to draft past the committed end, at most; the committer's wish bounds it too."""
    trigger: Literal["free", "wait", ""]
    """What the committer is expected to do best; it decides by itself."""
    changed: bool
    probing: bool
    gain: float | None
    """Share of the cost that the change is expected to save, below 0 of a try that is only
    hoped to; None without either."""
    runner_up: str
    margin: float | None
    """Runner-up's cost over this one's, minus 1."""
    binding: str
    """The constraint without which another placement were better; `none`."""
    cause: str
    """The measurement that moved most since the last change."""
    reason: str
    scores: tuple[Score, ...]
    shifted: bool = False
    """Things stand otherwise than they did; what was learnt before counts less."""

    def score(self) -> Score:
        return next(s for s in self.scores if s.placement == self.placement and s.peer == self.peer)


# --- scores ------------------------------------------------------------------------------------


def scores(
    signals: Signals, wants: Wants, objective: Objective, here: str = ""
) -> tuple[Score, ...]:
    """All placements, possible or not. `here` names the committer in use."""
    cloud = _cloud(signals, here)
    found = [_edge(signals, wants, objective)]
    if cloud is not None:
        found += [
            _plain(signals, cloud, wants, objective, here),
            _draft(signals, cloud, wants, objective, here),
            _handoff(signals, cloud, wants, objective),
        ]
    found += [
        _split(signals, peer, wants, objective, here)
        for peer in signals.peers
        if peer.kind == "split"
    ]
    if wants.committed:
        return tuple(found)
    return tuple(_with_tail(one, signals.energy, wants, objective) for one in found)


def _with_tail(score: Score, energy: Energy, wants: Wants, objective: Objective) -> Score:
    """Before an answer begins, the radio need not be woken for it at all."""
    if not score.peer or energy.counted(score.placement) is not None:
        return score
    joules = last_tail_j(energy) / max(1, wants.remaining)
    return replace(
        score,
        joules=score.joules + joules,
        total=score.total + objective.ms_per_joule * joules,
    )


def _cloud(signals: Signals, here: str) -> PeerSignals | None:
    """The cloud in use, else the first that can be reached."""
    clouds = [peer for peer in signals.peers if peer.kind == "cloud"]
    used = [peer for peer in clouds if peer.name == here and peer.reachable]
    return next(iter([*used, *(p for p in clouds if p.reachable), *clouds]), None)


def _edge(signals: Signals, wants: Wants, objective: Objective) -> Score:
    ms = token_ms(signals.draft, 0.0) if signals.draft else math.inf
    why = ""
    if signals.drafter:
        why = signals.drafter
    elif wants.exact_required:
        why = "exact=required: the small model's answer is not the target's"
    elif not wants.small_allowed and wants.share != "nothing":
        why = "the small model's own answer is another text, and was not asked for"
    elif wants.committed:
        why = "the small model can start an answer, not go on with the target's"
    elif signals.bounds.compute == "avoid" and _elsewhere(signals, wants):
        why = signals.bounds.reason or "power and heat say: compute elsewhere"
    return _scored(signals, objective, "edge", None, ms, ms, Bias(), 0.0, why)


def _plain(
    signals: Signals, peer: PeerSignals, wants: Wants, objective: Objective, here: str
) -> Score:
    ms = plain_ms(peer)
    why = _closed(peer, wants)
    moved = _move_ms(peer, wants, here)
    return _scored(signals, objective, "cloud", peer, ms, 0.0, peer.plain, moved, why)


def _draft(
    signals: Signals, peer: PeerSignals, wants: Wants, objective: Objective, here: str
) -> Score:
    found = _best(signals, peer, objective)
    score = _scored(
        signals,
        objective,
        "draft",
        peer,
        found.ms,
        found.busy_ms if peer.busy_ms is None else peer.busy_ms,
        peer.drafted,
        _move_ms(peer, wants, here),
        _closed(peer, wants) or _no_draft(signals, wants),
        _rate_error(signals, peer, objective),
        found.messages,
    )
    return replace(score, depth=_depth(signals, peer, found, objective), trigger=found.trigger)


def _depth(signals: Signals, peer: PeerSignals, found: Drafted, objective: Objective) -> int:
    """How far to draft. The committer's wish is the better informed about time; what joules
    say comes off it, where they say enough."""
    fastest = _best(signals, peer, Objective(0.0))
    price = busy_price(signals.energy, peer, objective)
    saved = (fastest.ms + price * fastest.busy_ms) / (found.ms + price * found.busy_ms) - 1.0
    shed = fastest.depth - found.depth
    if shed <= 0 or saved < DEAR:
        return MAX_DEPTH
    return max(1, (peer.wish or fastest.depth) - shed)


def _handoff(signals: Signals, peer: PeerSignals, wants: Wants, objective: Objective) -> Score:
    """As the cloud, without the prompt's pass there."""
    saved = peer.prefill_ms * wants.prompt / max(1, wants.remaining)
    ms = max(0.0, plain_ms(peer) - (saved if not wants.committed else 0.0))
    return _scored(signals, objective, "handoff", peer, ms, 0.0, peer.plain, 0.0, NO_HANDOFF)


def _split(
    signals: Signals, peer: PeerSignals, wants: Wants, objective: Objective, here: str
) -> Score:
    """Decoded with speculation where drafting is possible."""
    why = _closed(peer, wants)
    if not why and signals.bounds.compute == "avoid" and _elsewhere(signals, wants):
        why = signals.bounds.reason or "power and heat say: compute elsewhere"
    plain = Drafted(plain_ms(peer), 0, 0.0, "free")
    alone = bool(_no_draft(signals, wants))
    found = plain if alone else _best(signals, peer, objective)
    bias = peer.plain if alone else peer.drafted
    moved = _move_ms(peer, wants, here)
    score = _scored(
        signals,
        objective,
        "split",
        peer,
        found.ms,
        found.busy_ms,
        bias,
        moved,
        why,
        messages=0.0 if alone else found.messages,
    )
    return replace(score, depth=_depth(signals, peer, found, objective), trigger=found.trigger)


def _elsewhere(signals: Signals, wants: Wants) -> bool:
    """Whether a cloud may have the answer."""
    return any(peer.kind == "cloud" and not _closed(peer, wants) for peer in signals.peers)


def _best(
    signals: Signals,
    peer: PeerSignals,
    objective: Objective,
    rates: Sequence[float] | None = None,
) -> Drafted:
    """The best depth within what power and heat leave."""
    cap = SHALLOW if signals.bounds.draft == "shallow" else MAX_DEPTH
    price = busy_price(signals.energy, peer, objective)
    return drafted(peer, rates or signals.rates, signals.draft, cap, price)


def depth_gain(
    signals: Signals, peer: PeerSignals, objective: Objective, old: int, new: int
) -> float:
    """Share of the cost that drafting `new` tokens ahead saves against `old`."""
    price = busy_price(signals.energy, peer, objective)
    before = drafted(peer, signals.rates, signals.draft, old)
    after = drafted(peer, signals.rates, signals.draft, new, price)
    cost = before.ms + price * before.busy_ms
    return 1.0 - (after.ms + price * after.busy_ms) / cost if cost > 0 else 0.0


def alone(signals: Signals, wants: Wants, objective: Objective, rules: Rules) -> Verdict | None:
    """The small model's own answer from the start, where that may be and saves enough."""
    found = scores(signals, wants, objective)
    edge = next(s for s in found if s.placement == "edge")
    rival = _second(found, edge)
    if not edge.possible or (rival is not None and _gain(rival, edge) < rules.margin):
        return None
    margin = None if rival is None else rival.total / edge.total - 1.0
    return Verdict(
        placement="edge",
        peer="",
        depth=0,
        trigger="",
        changed=True,
        probing=False,
        gain=None if rival is None else _gain(rival, edge),
        runner_up="none" if rival is None else rival.placement,
        margin=margin,
        binding=_binding(found, edge),
        cause="start",
        reason=_only(edge, found) if rival is None else _why(edge, rival, signals),
        scores=found,
    )


def busy_price(energy: Energy, peer: PeerSignals, objective: Objective) -> float:
    """What a millisecond of drafting weighs against one of the answer, which costs joules too:
    radio and, where they count, the committer's."""
    per_ms = objective.ms_per_joule / 1e3
    streamed = energy.stream_w + energy.cloud_w / max(1.0, peer.rows)
    return per_ms * energy.draft_w / (1.0 + per_ms * streamed)


def _rate_error(signals: Signals, peer: PeerSignals, objective: Objective) -> float:
    """What not knowing the acceptance better means, ms a token."""
    low = _best(signals, peer, objective, signals.rates_low).ms
    high = _best(signals, peer, objective, signals.rates_high).ms
    return abs(low - high) / 2.0


def _closed(peer: PeerSignals, wants: Wants) -> str:
    """Why a committer can not take this answer."""
    if not peer.reachable:
        return peer.why or f"{peer.name} can not be reached"
    if peer.name in wants.barred:
        return f"{peer.name} refused to take this answer over"
    if wants.share == "nothing":
        return "share=nothing: nothing may leave the device"
    if wants.share == "hidden" and peer.kind == "cloud":
        return "share=hidden: token ids may not leave the device"
    if wants.share == "hidden" and not peer.home:
        return "share=hidden: embedding and head of the split model may lie on another device"
    other = peer.numeric_class and wants.numeric_class not in ("", peer.numeric_class)
    if other and wants.exact_required:
        return f"exact=required: {peer.name} is of another numeric class"
    return ""


def _no_draft(signals: Signals, wants: Wants) -> str:
    if wants.drafter or signals.drafter:
        return wants.drafter or signals.drafter
    bounds, energy = signals.bounds, signals.energy
    if bounds.draft == "off":
        return bounds.reason or "power and heat say: no drafting"
    cap, watts = bounds.watt_cap, energy.draft_w + energy.stream_w
    if cap is not None and watts > cap:
        return f"drafting draws {watts:.1f} W > cap {cap:.1f} W"
    return ""


def _move_ms(peer: PeerSignals, wants: Wants, here: str) -> float:
    """The upload, the first row's wait and the prompt's pass there, spread over what is left to
    say."""
    if here == peer.name:
        return 0.0
    known = wants.prompt + wants.committed
    whole = peer.queue_ms + upload_ms(peer, known) + stall_ms(peer, 2)
    if here:
        prefill = peer.prefill_ms or plain_ms(peer) / 16.0
        whole += (peer.rtt_ms or 0.0) + prefill * known
    return whole / max(1, wants.remaining)


def _scored(
    signals: Signals,
    objective: Objective,
    placement: Placement,
    peer: PeerSignals | None,
    raw_ms: float,
    busy_ms: float,
    bias: Bias,
    moved_ms: float,
    why: str,
    error_ms: float = 0.0,
    messages: float = 0.0,
) -> Score:
    """`messages` are commits a token that a hint each goes up for; 0 for a stream alone."""
    ms = raw_ms * bias.ratio + moved_ms
    sharing = peer.rows if peer is not None else 1.0
    streamed = _streamed_j(signals.energy, ms, messages, sharing) if peer is not None else 0.0
    joules = signals.energy.counted(placement)
    if joules is None:
        joules = streamed + signals.energy.draft_w * busy_ms / 1e3
    hourly = peer.dollars_per_hour if peer is not None else 0.0
    dollars = hourly * ms / 3.6e6 / sharing if math.isfinite(ms) else 0.0
    return Score(
        placement,
        peer.name if peer is not None else "",
        ms,
        joules,
        dollars,
        ms + objective.ms_per_joule * joules + objective.ms_per_dollar * dollars,
        math.hypot(bias.error * raw_ms, error_ms) if math.isfinite(ms) else 0.0,
        bias.tries,
        why=why,
    )


def _streamed_j(energy: Energy, ms: float, messages: float, sharing: float) -> float:
    """Joules a token of radio and, where it counts, committer."""
    up = HINT_BYTES * (messages or ACKS) * energy.up_j_per_byte
    down = COMMIT_BYTES * (messages or 1.0) * energy.down_j_per_byte
    gap_ms = ms / (2.0 * messages) if messages else ms
    return streamed_j(energy, ms, gap_ms) + up + down + energy.cloud_w * ms / sharing / 1e3


# --- decisions ---------------------------------------------------------------------------------


@dataclass(slots=True)
class _Probe:
    began_s: float
    at: int
    """Committed tokens when it began."""
    back: Placement


@dataclass(slots=True)
class Pilot:
    """One answer's placement over time. `budget` is shared by all answers of a device."""

    wants: Wants
    placement: Placement
    peer: str
    budget: Budget = field(default_factory=Budget)
    objective: Objective = field(default_factory=Objective)
    rules: Rules = field(default_factory=Rules)
    since_s: float = 0.0
    since_at: int = 0
    dwell_s: float = 0.0
    before: Placement | None = None
    """The placement before the last change."""
    changes: int = 0
    probe: _Probe | None = None
    agreed: int = 0
    """Looks in a row that found something better."""
    seen: Signals | None = None
    """As of the last change."""
    marked: Signals | None = None
    """As of the last time that things were found to have shifted."""
    shifted: bool = False

    def __post_init__(self) -> None:
        self.dwell_s = self.dwell_s or self.rules.dwell_s

    @classmethod
    def of(
        cls, habit: Habit, wants: Wants, budget: Budget, objective: Objective, rules: Rules
    ) -> Pilot:
        """A new answer begins where those before it ran, and is as slow to leave."""
        return cls(
            wants,
            habit.placement,
            "",
            budget,
            objective,
            rules,
            since_s=habit.since_s,
            dwell_s=habit.dwell_s or rules.dwell_s,
            before=habit.before,
            seen=habit.seen,
            marked=habit.marked,
        )

    def habit(self) -> Habit:
        """What the next answer begins with."""
        placement = self.probe.back if self.probe is not None else self.placement
        return Habit(placement, self.since_s, self.dwell_s, self.before, self.seen, self.marked)

    def decide(self, signals: Signals, wants: Wants) -> Verdict:
        """At a commit, or before the first."""
        self.wants = wants
        self.seen = self.seen or signals
        self.marked = self.marked or signals
        self.shifted = _shift(self.marked, signals) > SHIFT
        if self.shifted:
            self.marked = signals
        found = scores(signals, wants, self.objective, self.peer)
        if wants.pinned is not None:
            return self._stay(found, signals, f"{wants.pinned} was asked for")
        now = self._now(found)
        if (there := self._wished(found)) is not None:
            return self._obey(now, there, found, signals)
        best = min((s for s in found if s.possible), key=_total, default=None)
        if best is None:
            return self._stay(found, signals, now.why or "nothing else is possible")
        if not now.possible:
            return self._force(now, best, found, signals)
        if self.probe is not None:
            return self._probed(now, best, found, signals)
        better = self._better(now, found)
        self.agreed = 0 if better is None else self.agreed + 1
        if self._may_change(signals):
            sure = self.agreed >= self.rules.agree or not wants.committed
            if better is not None and sure:
                return self._change(now, better, found, signals, _why(better, now, signals))
            tried = self._worth_trying(now, found, signals)
            if tried is not None and better is None:
                return self._try(tried, found, signals)
        second = _second(found, now)
        reason = _why(now, second, signals) if second is not None else _only(now, found)
        return self._stay(found, signals, reason)

    def end(self, now_s: float, committed: int) -> None:
        """The answer is over; a probe that it was making counts."""
        if self.probe is not None:
            self.budget.end(now_s, committed - self.probe.at, taught=False)
            self.probe = None

    # --- the steps of a decision -------------------------------------------------------------

    def _now(self, found: Sequence[Score]) -> Score:
        """The score of where it runs."""
        same = [s for s in found if s.placement == self.placement]
        used = next((s for s in same if s.peer == self.peer), None) or next(iter(same), None)
        if used is not None:
            return used
        gone = f"there is no {self.placement} any more"
        nothing = (math.inf, math.inf, 0.0, math.inf, 0.0, 0.0)
        return Score(self.placement, self.peer, *nothing, why=gone)

    def _wished(self, found: Sequence[Score]) -> Score | None:
        """Where an operator wants it, if that can be; power and heat do not forbid a wish."""
        wish = self.wants.wished
        if wish in (None, "edge") or (wish == "draft" and self.wants.drafter):
            return None
        open_to = {s.peer for s in found if s.possible and s.placement != "draft"}
        same = [s for s in found if s.placement == wish and s.peer in open_to]
        return next((s for s in same if s.peer == self.peer), None) or next(iter(same), None)

    def _obey(
        self, now: Score, there: Score, found: tuple[Score, ...], signals: Signals
    ) -> Verdict:
        self._end_probe(signals, taught=False)
        reason = f"{there.placement} was asked for"
        if there.placement == self.placement:
            return self._stay(found, signals, reason)
        verdict = self._change(now, there, found, signals, reason)
        return replace(verdict, cause="an operator's pin")

    def _may_change(self, signals: Signals) -> bool:
        here = _cloud(signals, self.peer)
        if here is not None and not here.step and self.placement in ("cloud", "draft"):
            # Nothing was measured: the first answers tell.
            return False
        waited = signals.at_s - self.since_s >= self.dwell_s
        said = self.wants.committed - self.since_at >= self.rules.dwell_tokens
        # Before its first token an answer is nowhere yet.
        return waited and (said or not self.wants.committed)

    def _better(self, now: Score, found: Sequence[Score]) -> Score | None:
        """What saves enough and is known well enough."""
        ahead = [
            s
            for s in found
            if s.possible and s is not now and _gain(now, s) >= self._needed(now, s)
        ]
        return min(ahead, key=_total, default=None)

    def _needed(self, now: Score, other: Score) -> float:
        if other.peer != now.peer and now.peer and self.wants.committed:
            return self.rules.move
        if RANK[other.placement] > RANK[now.placement]:
            return self.rules.margin
        useless = now.ms >= (1.0 - self.rules.tie) * other.ms
        return -self.rules.tie if useless else self.rules.back

    def _worth_trying(self, now: Score, found: Sequence[Score], signals: Signals) -> Score | None:
        """The other way to use the same committer, if it might be better after all."""
        if not self.rules.probes or not self.budget.allows(signals.at_s):
            return None
        if self.wants.remaining < 2 * PROBE_TOKENS or not self.wants.committed:
            return None
        near = [s for s in found if s.possible and s.peer == now.peer and s is not now]
        hopeful = [
            s
            for s in near
            if s.placement in ("cloud", "draft")
            and optimistic(s.total, s.error, self.budget.probes)
            < now.total * (1.0 - self._needed(now, s))
        ]
        return min(hopeful, key=_total, default=None)

    # --- what comes of it ----------------------------------------------------------------------

    def _force(
        self, now: Score, best: Score, found: tuple[Score, ...], signals: Signals
    ) -> Verdict:
        """A constraint acts at once."""
        self._end_probe(signals, taught=False)
        verdict = self._change(now, best, found, signals, now.why)
        return replace(verdict, binding=f"{now.placement}: {now.why}")

    def _try(self, other: Score, found: tuple[Score, ...], signals: Signals) -> Verdict:
        self.budget.begin()
        self.probe = _Probe(signals.at_s, self.wants.committed, self.placement)
        left = self._now(found)
        self.placement = other.placement
        reason = f"{other.placement} is tried for {PROBE_TOKENS} tokens: it may be better"
        verdict = self._verdict(other, found, signals, reason, changed=False)
        return replace(verdict, gain=_gain(left, other))

    def _probed(
        self, now: Score, best: Score, found: tuple[Score, ...], signals: Signals
    ) -> Verdict:
        """While trying; at its end stay with what was tried only if it earns it."""
        probe = self.probe
        assert probe is not None
        if self.wants.committed - probe.at < PROBE_TOKENS:
            return self._verdict(now, found, signals, f"{now.placement} is tried", changed=False)
        self.placement = probe.back
        back = self._now(found)
        good = back.possible and _gain(back, now) >= self._needed(back, now)
        self._end_probe(signals, taught=good)
        if good:
            return self._change(back, now, found, signals, _why(now, back, signals))
        return self._stay(found, signals, _why(back, now, signals))

    def _end_probe(self, signals: Signals, *, taught: bool) -> None:
        if self.probe is not None:
            spent = self.wants.committed - self.probe.at
            self.budget.end(signals.at_s, spent, taught=taught)
            self.probe = None

    def _change(
        self,
        old: Score,
        new: Score,
        found: tuple[Score, ...],
        signals: Signals,
        reason: str,
    ) -> Verdict:
        gain = _gain(old, new) if math.isfinite(old.total) else None
        cause = _cause(self.seen, signals)
        again = new.placement == self.before
        longest = self.rules.longest_dwell_s
        calm = signals.at_s - self.since_s > 2.0 * longest
        shifted = _shift(self.seen, signals) > SHIFT
        grown = min(longest, 3.0 * self.dwell_s) if again and not calm else self.rules.dwell_s
        self.dwell_s = self.rules.dwell_s if shifted else grown
        self.before, self.placement, self.peer = old.placement, new.placement, new.peer
        self.since_s, self.since_at = signals.at_s, self.wants.committed
        self.seen = signals
        self.changes += 1
        verdict = self._verdict(new, found, signals, reason, changed=True)
        return replace(verdict, gain=gain, cause=cause)

    def _stay(self, found: tuple[Score, ...], signals: Signals, reason: str) -> Verdict:
        return self._verdict(self._now(found), found, signals, reason, changed=False)

    def _verdict(
        self,
        score: Score,
        found: tuple[Score, ...],
        signals: Signals,
        reason: str,
        *,
        changed: bool,
    ) -> Verdict:
        second = _second(found, score)
        known = second is not None and math.isfinite(score.total) and score.total > 0
        return Verdict(
            placement=score.placement,
            peer=score.peer,
            depth=self._depth(score, signals),
            trigger=score.trigger,
            changed=changed,
            probing=self.probe is not None,
            gain=None,
            runner_up=second.placement if second is not None else "none",
            margin=second.total / score.total - 1.0 if second is not None and known else None,
            binding=_binding(found, score),
            cause=_cause(self.seen, signals),
            reason=reason,
            scores=found,
            shifted=self.shifted,
        )

    def _depth(self, score: Score, signals: Signals) -> int:
        if score.placement not in ("draft", "split") or _no_draft(signals, self.wants):
            return 0
        cap = SHALLOW if signals.bounds.draft == "shallow" else MAX_DEPTH
        return min(cap, score.depth) if self.wants.pinned is None else cap


def _total(score: Score) -> float:
    return score.total


def _gain(old: Score, new: Score) -> float:
    if not math.isfinite(old.total):
        return 1.0
    return 1.0 - new.total / old.total if old.total > 0 else 0.0


def _second(found: Sequence[Score], first: Score) -> Score | None:
    others = [s for s in found if s.possible and s is not first]
    return min(others, key=_total, default=None)


def _binding(found: Sequence[Score], chosen: Score) -> str:
    """The reason that keeps the cheapest impossible placement out, if it were better. The small
    model's own answer is always cheaper, so it is named only where nothing else is kept out."""
    kept_out = [s for s in found if s.why and s.total < chosen.total]
    first = min(kept_out, key=lambda s: (s.placement == "edge", s.total), default=None)
    return f"{first.placement}: {first.why}" if first is not None else "none"


# --- reasons -----------------------------------------------------------------------------------


def _why(chosen: Score, other: Score, signals: Signals) -> str:
    """One sentence for people."""
    if not math.isfinite(other.total):
        return f"{chosen.placement} is the only way at present"
    costs = f"{chosen.total:.1f} against {other.total:.1f} ms a token with energy priced in"
    if (chosen.placement, other.placement) == ("cloud", "draft"):
        held = f"{signals.rates[0]:.0%} of first drafts hold"
        return f"drafting does not pay: {costs}, {held}"
    return f"{chosen.placement} is cheaper than {other.placement}: {costs}"


def _only(chosen: Score, found: Sequence[Score]) -> str:
    """Why there is no other way: what keeps out what a device usually can."""
    usual = [s for s in found if s.why and s.placement in ("cloud", "draft", "split")]
    kept_out = "; ".join(f"{s.placement}: {s.why}" for s in usual)
    return f"{chosen.placement} is the only way at present; {kept_out}".rstrip("; ")


UNSTEADY = ("acceptance", "loss")
"""Measurements that wander by themselves: told as causes, no news of another situation."""
PLENTY = 250e3
"""Bytes a second beyond which messages take no time that matters."""
SHIFT = 0.4
"""A measurement that moved by this much, as a natural logarithm, is another situation."""


def _cause(old: Signals | None, new: Signals) -> str:
    """What moved most, as `round trip 21 -> 83 ms`; `start` before anything did."""
    if old is None or old is new:
        return "start"
    if old.bounds != new.bounds:
        return new.bounds.reason or "power and heat leave more room"
    if _reach(old) != _reach(new):
        return "a committer came or went"
    moved = sorted(_moves(old, new), key=lambda item: -item[0])
    return moved[0][1] if moved and moved[0][0] > 0.05 else "steady"


def _shift(old: Signals | None, new: Signals) -> float:
    if old is None:
        return 0.0
    if old.bounds != new.bounds or _reach(old) != _reach(new):
        return math.inf
    sizes = [size for size, words in _moves(old, new) if not words.startswith(UNSTEADY)]
    return max(sizes, default=0.0)


def _reach(signals: Signals) -> tuple[tuple[str, bool], ...]:
    return tuple((peer.name, peer.reachable) for peer in signals.peers)


Measure = tuple[str, str, Callable[[Signals], float]]


def _moves(old: Signals, new: Signals) -> list[tuple[float, str]]:
    """(Size of the change, its words) for each measurement that both know."""
    return [
        (abs(math.log(after / before)), f"{name} {before:.3g} -> {after:.3g} {unit}".rstrip())
        for name, unit, read in _measures(new)
        if (before := read(old)) > 0.0 and (after := read(new)) > 0.0
    ]


def _measures(new: Signals) -> list[Measure]:
    found: list[Measure] = [
        ("acceptance", "", lambda s: s.rates[0] if s.tries > 4.0 else 0.0),
        ("draft", "ms", lambda s: token_ms(s.draft, 0.0)),
        ("power", "W", lambda s: s.energy.draft_w),
    ]
    cloud = _cloud(new, "")
    if cloud is None:
        return found

    def of(read: Callable[[PeerSignals], float]) -> Callable[[Signals], float]:
        return lambda s: read(peer) if (peer := s.peer(cloud.name)) is not None else 0.0

    return [
        *found,
        # Below a few milliseconds a round trip is noise to everything here.
        ("round trip", "ms", of(lambda p: max(4.0, p.rtt_ms) if p.rtt_ms is not None else 0.0)),
        ("pass", "ms", of(lambda p: plain_ms(p) if p.step else 0.0)),
        ("rows of a pass", "", of(lambda p: p.rows)),
        ("bandwidth up", "kB/s", of(lambda p: _kilo(p.up_bytes_per_s))),
        ("bandwidth down", "kB/s", of(lambda p: _kilo(p.down_bytes_per_s))),
        ("loss", "%", of(lambda p: 0.0 if p.loss is None else max(1.0, 100.0 * p.loss))),
    ]


def _kilo(bytes_per_s: float | None) -> float:
    """A link on which no bandwidth shows has plenty."""
    return min(PLENTY, bytes_per_s or PLENTY) / 1e3
