"""A laptop's day of writing, asking and travelling: the trace of `bench power`, and its making.

Nothing was recorded from a real laptop. The day is constructed from a fixed seed: a timetable (home
to home, over train, office and lunch) sets radio, round trip, charger, air temperature and how
many others the cloud serves; requests come as a Poisson process whose rate follows the timetable,
with bursts of three on the train. `traces/battery_day.json` is its outcome, kept so that figures
do not move with a library's random numbers; `python -m bench.battery_day` writes it anew.

Kinds of requests, with their share of all requests:
  complete  40 %  a few words where one types; the small model's answer is allowed; due in 2 s
  triage    15 %  a mail in one line, in the background; small model allowed; due in 60 s
  chat      35 %  an answer of the target; first words and reading pace: 2.5 s + 0.1 s a token
  write     10 %  a page or a function of the target; the same pace
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

TRACE = Path(__file__).parent / "traces" / "battery_day.json"
SEED = 20
HOUR = 3600.0


class Segment(msgspec.Struct, frozen=True):
    """A stretch of the day. Times in seconds after midnight."""

    name: str
    start: float
    stop: float
    radio: str
    rtt_ms: float
    charger: bool
    air_c: float
    others: int
    """Answers of others in each of the cloud's passes."""
    per_hour: float
    """Requests."""
    reachable: bool = True


class Ask(msgspec.Struct, frozen=True):
    """One request."""

    at: float
    kind: str
    prompt: int
    tokens: int
    due_s: float
    small_allowed: bool
    holds: float
    """Probability that a drafted token is the target's."""


class Day(msgspec.Struct, frozen=True):
    made: str
    seed: int
    segments: list[Segment]
    asks: list[Ask]

    def segment(self, at: float) -> Segment:
        """The one that holds at a time; after midnight the last."""
        found = (part for part in self.segments if part.start <= at < part.stop)
        return next(found, self.segments[-1])


@dataclass(frozen=True, slots=True)
class Kind:
    share: float
    prompt: float
    """Median tokens; lengths are log-normal."""
    tokens: float
    spread: float
    due_s: float
    due_per_token_s: float
    small_allowed: bool
    holds: float


KINDS = {
    "complete": Kind(0.40, 320, 24, 0.5, 2.0, 0.0, small_allowed=True, holds=0.72),
    "triage": Kind(0.15, 700, 60, 0.5, 60.0, 0.0, small_allowed=True, holds=0.72),
    "chat": Kind(0.35, 420, 170, 0.7, 2.5, 0.1, small_allowed=False, holds=0.72),
    "write": Kind(0.10, 600, 420, 0.5, 2.5, 0.1, small_allowed=False, holds=0.80),
}
TIMETABLE = (
    Segment("home", 7.0, 8.0, "wifi", 22, charger=True, air_c=21, others=6, per_hour=10),
    Segment("train", 8.0, 8.4, "cellular", 65, charger=False, air_c=24, others=12, per_hour=24),
    Segment(
        "tunnel",
        8.4,
        8.42,
        "cellular",
        65,
        charger=False,
        air_c=24,
        others=12,
        per_hour=24,
        reachable=False,
    ),
    Segment("train", 8.42, 9.0, "cellular", 65, charger=False, air_c=24, others=14, per_hour=24),
    Segment("office", 9.0, 10.5, "wifi", 18, charger=False, air_c=22, others=22, per_hour=26),
    Segment("desk", 10.5, 12.0, "wifi", 18, charger=True, air_c=22, others=24, per_hour=26),
    Segment("lunch", 12.0, 13.0, "cellular", 48, charger=False, air_c=26, others=16, per_hour=10),
    Segment("office", 13.0, 16.0, "wifi", 18, charger=False, air_c=23, others=24, per_hour=24),
    Segment("desk", 16.0, 17.0, "wifi", 18, charger=True, air_c=23, others=20, per_hour=22),
    Segment("train", 17.0, 18.2, "cellular", 70, charger=False, air_c=33, others=18, per_hour=24),
    Segment("home", 18.2, 20.5, "wifi", 22, charger=False, air_c=24, others=14, per_hour=12),
    Segment("home", 20.5, 23.5, "wifi", 22, charger=True, air_c=23, others=8, per_hour=8),
)
"""Start and stop in hours here."""


def make(seed: int = SEED) -> Day:
    rng = np.random.default_rng(seed)
    segments = [
        msgspec.structs.replace(part, start=part.start * HOUR, stop=part.stop * HOUR)
        for part in TIMETABLE
    ]
    asks = [ask for part in segments for ask in _asks(part, rng)]
    made = "constructed by bench/battery_day.py, not recorded"
    return Day(made, seed, segments, sorted(asks, key=lambda ask: ask.at))


def _asks(part: Segment, rng: np.random.Generator) -> list[Ask]:
    hours = (part.stop - part.start) / HOUR
    times = rng.uniform(part.start, part.stop, rng.poisson(part.per_hour * hours))
    burst = 3 if part.name == "train" else 1
    starts = [at for at in times[: max(1, len(times) // burst)] for _ in range(burst)]
    late = [at + rng.uniform(0.2, 6.0) * (i % burst) for i, at in enumerate(starts)]
    return [_ask(min(at, part.stop - 1.0), rng) for at in late[: len(times)]]


def _ask(at: float, rng: np.random.Generator) -> Ask:
    names = list(KINDS)
    name = names[int(rng.choice(len(names), p=[KINDS[n].share for n in names]))]
    kind = KINDS[name]
    prompt = int(np.clip(rng.lognormal(np.log(kind.prompt), kind.spread), 16, 4000))
    tokens = int(np.clip(rng.lognormal(np.log(kind.tokens), kind.spread), 4, 1200))
    holds = float(np.clip(rng.normal(kind.holds, 0.07), 0.3, 0.95))
    due_s = kind.due_s + kind.due_per_token_s * tokens
    return Ask(
        round(float(at), 3),
        name,
        prompt,
        tokens,
        round(due_s, 3),
        kind.small_allowed,
        round(holds, 3),
    )


def load() -> Day:
    """The day as it is kept."""
    return msgspec.json.decode(TRACE.read_bytes(), type=Day)


def main() -> int:
    TRACE.parent.mkdir(exist_ok=True)
    TRACE.write_bytes(msgspec.json.format(msgspec.json.encode(make()), indent=0) + b"\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
