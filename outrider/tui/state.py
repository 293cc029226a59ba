"""What the screens show: plain data that grows event by event. No Textual, no clock, bounded."""

from __future__ import annotations

import re
from collections import Counter, OrderedDict, deque
from dataclasses import dataclass, field

from outrider.protocol import events
from outrider.tui.graph import quantile
from outrider.tui.ride import Mark, Ride

SAMPLE_MS = 500.0
"""What one value of a curve stands for."""
SAMPLES = 600
"""Of a curve: five minutes."""
MAX_GAP = 8
"""Samples that a silence is filled with, at most."""
RIDES = 200
DECISIONS = 400
LOGS = 2000
MARKS = 2000
PASSES = 400
"""Over which the histogram of acceptance counts."""
FIRSTS = 50
"""Requests over which times to the first token are told."""
REMARK_MS = 20_000.0
"""How long a remark stays on the screen."""
PLACED = re.compile(r"(\S+)=(\d+):(\d+)")
"""A device and its layers in the words of a split target: `a=0:3 b=3:6`."""


def _ring(size: int) -> deque[float]:
    return deque(maxlen=size)


def push(curve: deque[float], value: float, times: int) -> None:
    """Add a value; the oldest go in pairs, so that a curve whose cells hold two of them moves
    only every second time."""
    curve.extend([value] * times)
    while len(curve) > SAMPLES:
        curve.popleft()
        curve.popleft()


@dataclass(slots=True)
class Curves:
    """Values over time, one per `SAMPLE_MS`, newest last; kept short by `push`."""

    speed: deque[float] = field(default_factory=deque)
    """Tokens a second."""
    acceptance: deque[float] = field(default_factory=deque)
    """Share of verified drafts that held; 0 where none was verified."""
    rtt: deque[float] = field(default_factory=deque)
    """Of the link in use; 0 while it is away."""


@dataclass(slots=True)
class LinkView:
    """One committer over time."""

    now: events.LinkGauge
    rtt: deque[float] = field(default_factory=deque)
    up_per_s: float | None = None
    """Bytes of sessions."""
    down_per_s: float | None = None
    most_per_s: float = 0.0
    """The highest rate seen, both ways."""
    losses: int = 0
    """Times it was lost or became unreachable."""
    away_ms: float = 0.0
    away_since: float | None = None
    known_since: float = 0.0

    def uptime(self, t_ms: float) -> float | None:
        """Share of the time watched in which it was there."""
        whole = t_ms - self.known_since
        if whole <= 0:
            return None
        away = self.away_ms + (t_ms - self.away_since if self.away_since is not None else 0.0)
        return max(0.0, 1.0 - away / whole)


@dataclass(frozen=True, slots=True)
class Stage:
    """Layers of the target on a device."""

    device: str
    start: int
    stop: int


@dataclass(slots=True)
class State:
    """`apply` every event in order; everything else reads."""

    t_ms: float = 0.0
    """The daemon's clock, as of its last event."""
    at: float = 0.0
    """The same moment in Unix seconds."""
    heard: int = 0
    gauge: events.Gauge | None = None
    curves: Curves = field(default_factory=Curves)
    rides: OrderedDict[str, Ride] = field(default_factory=OrderedDict)
    decisions: deque[events.Decision] = field(default_factory=lambda: deque(maxlen=DECISIONS))
    links: OrderedDict[str, LinkView] = field(default_factory=OrderedDict)
    plans: dict[str, events.PlanMade] = field(default_factory=dict)
    models: dict[str, events.ModelLoaded] = field(default_factory=dict)
    """By role and name; those that were heard of."""
    logs: deque[events.Event] = field(default_factory=lambda: deque(maxlen=LOGS))
    marks: deque[Mark] = field(default_factory=lambda: deque(maxlen=MARKS))
    """Of all requests: what went over the link."""
    kept: deque[tuple[int, int]] = field(default_factory=lambda: deque(maxlen=PASSES))
    """(hint rows, of them accepted) of the latest passes."""
    firsts: deque[float] = field(default_factory=lambda: _ring(FIRSTS))
    gaps: deque[float] = field(default_factory=lambda: _ring(PASSES))
    """ms a token between commits."""
    stepped: events.Stepped | None = None
    """The cloud's own word, where it can be heard."""
    remark: events.Remark | None = None
    ended: str = ""
    """Why the daemon ended; empty while it runs."""
    _drafts: tuple[int, int] = (0, 0)
    """(hint rows, accepted) as of the last sample."""

    # --- views -----------------------------------------------------------------------------

    @property
    def plan(self) -> events.PlanMade | None:
        """The last verdict on the default model, or on any."""
        name = self.gauge.model if self.gauge is not None else ""
        return self.plans.get(name) or next(reversed(self.plans.values()), None)

    @property
    def link(self) -> LinkView | None:
        """The one that matters now: the first that is connected, else the first."""
        found = list(self.links.values())
        return next((one for one in found if one.now.state == "connected"), None) or next(
            iter(found), None
        )

    @property
    def running(self) -> list[Ride]:
        return [ride for ride in self.rides.values() if ride.phase != "done"]

    @property
    def newest(self) -> list[Ride]:
        """Rides, the latest first."""
        return list(reversed(self.rides.values()))

    def speed(self, samples: int = 4) -> float | None:
        """Tokens a second over the last two seconds."""
        recent = list(self.curves.speed)[-samples:]
        return sum(recent) / len(recent) if recent else None

    def acceptance(self) -> float | None:
        """Over the latest passes."""
        rows = sum(rows for rows, _ in self.kept)
        return sum(held for _, held in self.kept) / rows if rows else None

    def length(self) -> float | None:
        """Tokens a pass commits, of those with hints."""
        passes = sum(1 for rows, _ in self.kept if rows)
        return 1.0 + sum(held for _, held in self.kept) / passes if passes else None

    def histogram(self, top: int = 8) -> list[int]:
        """Passes with hints by how many held; the last counts those beyond."""
        counts = Counter(min(top, held) for rows, held in self.kept if rows)
        return [counts[n] for n in range(max(counts, default=-1) + 1)]

    def rtt(self, share: float) -> float | None:
        link = self.link
        return None if link is None else quantile([v for v in link.rtt if v > 0], share)

    def minutes_left(self) -> float | None:
        """On battery: by its charge and how fast it went down while it was watched."""
        gauge = self.gauge
        if gauge is None or gauge.battery is None or self._discharge is None:
            return None
        since_ms, was = self._discharge
        gone = was - gauge.battery
        if gauge.charging or gone < 0.005 or self.t_ms <= since_ms:
            return None
        return gauge.battery / gone * (self.t_ms - since_ms) / 60_000.0

    _discharge: tuple[float, float] | None = None

    def stages(self) -> tuple[Stage, ...]:
        """Where the target's layers lie, when several devices hold them; in order."""
        link = self.links.get(self.plan.peer) if self.plan is not None else None
        view = link or self.link
        if view is None:
            return ()
        return tuple(Stage(d, int(a), int(b)) for d, a, b in PLACED.findall(view.now.device))

    def story(self) -> str:
        """A remark that is fresh enough to be shown."""
        remark = self.remark
        fresh = remark is not None and self.t_ms - remark.t_ms < REMARK_MS
        return remark.said if remark is not None and fresh else ""

    # --- events ----------------------------------------------------------------------------

    def apply(self, event: events.Event) -> None:
        """Take one event; unknown requests begin with it."""
        self.heard += 1
        if not isinstance(event, events.Gauge):
            self.logs.append(event)
        if not event.source.startswith("cloud"):
            self.t_ms, self.at = max(self.t_ms, event.t_ms), max(self.at, event.at)
        match event:
            case events.Gauge():
                self._gauge(event)
            case events.PlanMade():
                self.plans.pop(event.model, None)
                self.plans[event.model] = event
            case events.LinkChanged():
                self._link_changed(event)
            case events.Decision():
                self._decided(event)
            case events.ModelLoaded():
                self.models[f"{event.role} {event.model}"] = event
            case events.Stepped():
                self.stepped = event
            case events.Remark():
                self.remark = event
            case events.Up():
                self.ended = "" if event.role == "edge" else self.ended
            case events.Down():
                self.ended = event.reason if event.role == "edge" else self.ended
            case _:
                self._of_ride(event)

    def _of_ride(self, event: events.Event) -> None:
        match event:
            case events.RequestStarted():
                self._ride(event.request).started(event)
            case events.HintSent():
                self._ride(event.request).hint(event)
                self.marks.append(Mark(event.t_ms, "hint", event.tokens, event.draft_ms))
            case events.CommitReceived():
                self._committed(event)
            case events.LocalTokens():
                self._ride(event.request).local(event)
                self.marks.append(Mark(event.t_ms, "local", event.tokens))
            case events.Fallback():
                self._ride(event.request).fallback(event)
                kind = "back" if event.to == "cloud" else "cut"
                self.marks.append(Mark(event.t_ms, "back" if kind == "back" else "cut"))
            case events.RequestDone():
                self._ride(event.request).ended(event)
                if event.ttft_ms:
                    self.firsts.append(event.ttft_ms)
            case _:
                pass

    def _ride(self, request: str) -> Ride:
        found = self.rides.get(request)
        if found is None:
            found = self.rides[request] = Ride(request)
            while len(self.rides) > RIDES:
                self.rides.popitem(last=False)
        return found

    def _committed(self, event: events.CommitReceived) -> None:
        ride = self._ride(event.request)
        before = ride.last_ms if ride.passes else None
        last = next((m.t_ms for m in reversed(ride.marks) if m.kind == "commit"), before)
        ride.commit(event)
        self.marks.append(ride.marks[-1])
        if event.hint_rows:
            self.kept.append((event.hint_rows, event.from_hints))
        if last is not None and event.tokens:
            self.gaps.append((event.t_ms - last) / event.tokens)

    def _decided(self, event: events.Decision) -> None:
        """What was measured takes the place of what was made."""
        # A cloud's decisions name its own sessions, which are no requests of the daemon.
        if (ride := self.rides.get(event.request)) is not None:
            ride.moved(event)
        if event.phase == "measured" and event.number:
            for place, known in enumerate(self.decisions):
                if (known.number, known.source) == (event.number, event.source):
                    self.decisions[place] = event
                    return
        self.decisions.append(event)

    def _link_changed(self, event: events.LinkChanged) -> None:
        view = self.links.get(event.cloud)
        if view is None:
            state = "unreachable" if event.state == "lost" else event.state
            told = events.LinkGauge(event.cloud, state, rtt_ms=event.rtt_ms, detail=event.detail)
            view = self.links[event.cloud] = LinkView(told, known_since=event.t_ms)
        away = event.state in ("lost", "unreachable")
        if away and view.away_since is None:
            view.losses += 1
        _away(view, event.t_ms, "gone" if away else "there")

    # --- the gauge -------------------------------------------------------------------------

    def _gauge(self, now: events.Gauge) -> None:
        before, self.gauge = self.gauge, now
        if before is None or before.pid != now.pid:
            self._drafts = (now.hint_rows, now.accepted)
            self._discharge = None
            self._see_links(now, None)
            return
        ms = now.t_ms - before.t_ms
        times = max(1, min(MAX_GAP, round(ms / SAMPLE_MS)))
        seconds = max(1e-3, ms / 1e3)
        curves = self.curves
        push(curves.speed, max(0.0, (now.tokens - before.tokens) / seconds), times)
        rows, held = now.hint_rows - self._drafts[0], now.accepted - self._drafts[1]
        self._drafts = (now.hint_rows, now.accepted)
        push(curves.acceptance, held / rows if rows > 0 else 0.0, times)
        self._see_links(now, before)
        link = self.link
        reached = link is not None and link.now.state == "connected"
        push(curves.rtt, (link.now.rtt_ms if link is not None and reached else None) or 0.0, times)
        self._see_battery(now, before)

    def _see_battery(self, now: events.Gauge, before: events.Gauge) -> None:
        """Where the present discharge began."""
        if now.battery is None or now.charging or before.charging:
            self._discharge = None
        if self._discharge is None and now.battery is not None and not now.charging:
            self._discharge = (now.t_ms, now.battery)

    def _see_links(self, now: events.Gauge, before: events.Gauge | None) -> None:
        ms = now.t_ms - before.t_ms if before is not None else 0.0
        times = max(1, min(MAX_GAP, round(ms / SAMPLE_MS)))
        for told in now.links:
            view = self.links.get(told.cloud)
            if view is None:
                view = self.links[told.cloud] = LinkView(told, known_since=now.t_ms)
            old, view.now = view.now, told
            if ms > 0:
                view.up_per_s = max(0.0, (told.bytes_up - old.bytes_up) / ms * 1e3)
                view.down_per_s = max(0.0, (told.bytes_down - old.bytes_down) / ms * 1e3)
                view.most_per_s = max(view.most_per_s, view.up_per_s, view.down_per_s)
            there = told.state == "connected"
            push(view.rtt, (told.rtt_ms or 0.0) if there else 0.0, times)
            if told.state != "connecting":
                _away(view, now.t_ms, "there" if there else "gone")
        for gone in [name for name in self.links if all(t.cloud != name for t in now.links)]:
            del self.links[gone]


def _away(view: LinkView, t_ms: float, how: str) -> None:
    if how == "gone" and view.away_since is None:
        view.away_since = t_ms
    elif how == "there" and view.away_since is not None:
        view.away_ms += t_ms - view.away_since
        view.away_since = None
