"""What power and heat leave to placement: battery floor, charge, watt cap, heat, profile. Pure.

Each rule gives a level (free, shallow, off) and says why. A rule tightens at once; it loosens
only past a margin, and when the looser level has held for a while, so that nothing flaps.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from outrider.partitioner.power.state import Bounds, PowerState

FREE, SHALLOW, OFF = 0, 1, 2
"""Levels of a rule."""
NAMES: tuple[Literal["free", "shallow", "off"], ...] = ("free", "shallow", "off")
Choice = Literal["auto", "save", "off"]

MARGIN = 0.03
"""Of battery charge, before a rule of the battery loosens: more than a gauge wavers."""
SHALLOW_ABOVE_FLOOR = 0.3
"""Above the floor, drafts on battery are kept shallow up to here."""
NEARLY_FULL = 0.9
SUPPLY_HOLD_S = 5.0
"""A charger's contact may chatter while it is plugged in."""
HOLD_S = 30.0
"""Heat and watts must have been low for so long: the time constant of a laptop's heat sink."""
HORIZON_S = 30.0
"""Heat is looked at this far ahead, by its slope."""
NEAR_C = 2.0
"""So near to its limit a zone may throttle at any moment."""
COOL_C = 8.0
"""Below the limit; then heat is forgotten."""
SLOPE_S = 20.0
"""Over which the slope is taken."""
LEAST_SLOPE_S = 4.0
STEADY = 0.05
"""°C/s below which a temperature is taken as steady."""
OVER_CAP = 1.25
UNDER_CAP = 0.85


@dataclass(frozen=True, slots=True)
class Policy:
    """What the user asked for."""

    choice: Choice = "auto"
    """`auto`: the rules below; `save`: shallow drafts at the mains and none on battery, too;
    `off`: no rule."""
    battery_floor: float = 0.2
    watt_cap: float | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    level: int = FREE
    reason: str = ""


@dataclass(slots=True)
class _Rule:
    judge: Callable[[PowerState, int], Verdict]
    hold_s: float
    now: Verdict = Verdict()
    looser_since: float | None = None

    def step(self, state: PowerState) -> Verdict:
        found = self.judge(state, self.now.level)
        if found.level >= self.now.level:
            self.now, self.looser_since = found, None
            return self.now
        if self.looser_since is None:
            self.looser_since = state.at_s
        if state.at_s - self.looser_since >= self.hold_s:
            self.now, self.looser_since = found, None
        return self.now


@dataclass(slots=True)
class Governor:
    """Holds what the rules said last; feed it every state in order of time."""

    policy: Policy = field(default_factory=Policy)
    bounds: Bounds = field(default_factory=Bounds)
    _heat: deque[tuple[float, float]] = field(default_factory=deque)
    _zone: str = ""
    _rules: list[_Rule] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._rules = [
            _Rule(self._floor, SUPPLY_HOLD_S),
            _Rule(self._charge, SUPPLY_HOLD_S),
            _Rule(self._cap, HOLD_S),
            _Rule(self._warmth, HOLD_S),
            _Rule(self._profile, SUPPLY_HOLD_S),
        ]

    def step(self, state: PowerState) -> Bounds:
        """The bounds from now on."""
        if self.policy.choice == "off":
            return self.bounds
        self._remember(state)
        verdicts = [rule.step(state) for rule in self._rules]
        level = max(verdict.level for verdict in verdicts)
        reasons = [v.reason for v in verdicts if v.level == level and v.reason]
        self.bounds = Bounds(
            draft=NAMES[level],
            compute="avoid" if level == OFF else "free",
            watt_cap=self.policy.watt_cap,
            reason="; ".join(reasons),
        )
        return self.bounds

    # --- battery ----------------------------------------------------------------------------

    def _floor(self, state: PowerState, held: int) -> Verdict:
        """Below the floor nothing is computed here on battery, and little while it charges."""
        if state.battery is None:
            return Verdict()
        floor = self.policy.battery_floor
        if state.battery >= floor + (MARGIN if held else 0.0):
            return Verdict()
        if state.supply == "battery":
            return Verdict(OFF, f"battery {_percent(state.battery)} < floor {_percent(floor)}")
        if state.charging:
            text = f"charging from {_percent(state.battery)}, floor {_percent(floor)}"
            return Verdict(SHALLOW, text)
        return Verdict()

    def _charge(self, state: PowerState, held: int) -> Verdict:
        """On battery drafts get shallower with the charge; at the mains they are free."""
        saves = self.policy.choice == "save"
        if state.supply == "battery" and saves:
            return Verdict(OFF, "on battery, and --power save")
        if state.supply != "battery":
            return self._saving(state) if saves else Verdict()
        until = min(NEARLY_FULL, self.policy.battery_floor + SHALLOW_ABOVE_FLOOR)
        if state.battery is None or state.battery >= until + (MARGIN if held else 0.0):
            return Verdict()
        return Verdict(SHALLOW, f"on battery, {_percent(state.battery)} < {_percent(until)}")

    def _saving(self, state: PowerState) -> Verdict:
        if state.charging and state.battery is not None and state.battery < NEARLY_FULL:
            return Verdict(SHALLOW, f"charging at {_percent(state.battery)}, and --power save")
        return Verdict()

    # --- watts, heat, profile ---------------------------------------------------------------

    def _cap(self, state: PowerState, held: int) -> Verdict:
        cap = self.policy.watt_cap
        if cap is None or state.watts is None:
            return Verdict()
        text = f"{state.watts:.1f} W of {cap:g} W ({state.watts_source})"
        if state.watts > cap * OVER_CAP:
            return Verdict(OFF, text)
        if state.watts > cap:
            return Verdict(OFF if held == OFF else SHALLOW, text)
        low = state.watts < cap * UNDER_CAP
        return Verdict() if low else Verdict(SHALLOW if held else FREE, text if held else "")

    def _warmth(self, state: PowerState, held: int) -> Verdict:
        """Backs off before the limit: by where the temperature will be, not where it is."""
        if state.throttled:
            return Verdict(OFF, "the machine is throttled now")
        if state.temperature_c is None or state.limit_c is None:
            return Verdict()
        now, limit, slope = state.temperature_c, state.limit_c, self._slope()
        text = f"{state.zone or 'temperature'} {now:.0f} °C, throttles at {limit:.0f} °C"
        if now >= limit - NEAR_C:
            return Verdict(OFF, text)
        if slope > STEADY and now + slope * HORIZON_S >= limit:
            in_s = (limit - now) / slope
            return Verdict(max(held, SHALLOW), f"{text}, there in {in_s:.0f} s")
        cool = now < limit - COOL_C and slope <= STEADY
        return Verdict() if cool or not held else Verdict(SHALLOW, text)

    def _remember(self, state: PowerState) -> None:
        if state.temperature_c is None:
            return
        if state.zone != self._zone:
            self._heat.clear()
            self._zone = state.zone
        self._heat.append((state.at_s, state.temperature_c))
        while self._heat[-1][0] - self._heat[0][0] > SLOPE_S:
            self._heat.popleft()

    def _slope(self) -> float:
        """°C/s by least squares; 0 with too little to go by."""
        points = list(self._heat)
        if len(points) < 3 or points[-1][0] - points[0][0] < LEAST_SLOPE_S:
            return 0.0
        mean_t = sum(t for t, _ in points) / len(points)
        mean_c = sum(c for _, c in points) / len(points)
        spread = sum((t - mean_t) ** 2 for t, _ in points)
        return sum((t - mean_t) * (c - mean_c) for t, c in points) / spread

    def _profile(self, state: PowerState, held: int) -> Verdict:
        if state.profile == "low-power":
            return Verdict(SHALLOW, "the machine's profile is low-power")
        return Verdict()


def _percent(share: float) -> str:
    return f"{share * 100:.0f} %"
