"""What a fleet goes through: who asks what and when, and what changes meanwhile. Pure.

A trace is made from a seed, or read from JSON lines: first `{"trace": {...}}`, then
`{"device": {...}}` in order, `{"ask": {...}}` and `{"change": {...}}` in order of time.
Lengths are heavy-tailed (log-normal with a standard deviation of 1 in the logarithm, as
in the production traces of arXiv 2311.18677 and 2408.00741), and so is how much each
device asks.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from outrider.errors import ConfigError
from outrider.partitioner.power.state import Supply
from outrider.partitioner.signals import Placement

SCHEMA = 1
Name = Literal["steady", "bursty", "diurnal", "battery"]
NAMES: tuple[Name, ...] = ("steady", "bursty", "diurnal", "battery")

PER_HOUR = 4.0
"""Answers that a device asks for in an hour, on average."""
TOKENS = (96.0, 1.0, 8, 1024)
PROMPT = (180.0, 1.0, 8, 4096)
"""Median, standard deviation of the logarithm, least, most."""
ACTIVITY = 0.8
"""Standard deviation of the logarithm of how much a device asks."""
BURST_S = 30.0
BURST_SHAPE = 0.6
"""In a bursty trace each stretch's rate is drawn from a gamma distribution of this shape."""
GRID_S = 5.0


@dataclass(frozen=True, slots=True)
class Rider:
    """A device of the fleet as the trace begins."""

    gear: str = "laptop"
    rtt_ms: float = 20.0
    jitter_ms: float = 0.0
    battery: float | None = None
    """Charge, 0 to 1; None without a battery."""
    supply: Supply = "ac"


@dataclass(frozen=True, slots=True)
class Ask:
    """One answer that is asked for."""

    at_s: float
    device: int
    prompt: int
    tokens: int
    """Length of the answer: a property of the text, not of who computes it."""
    skill: float = 0.0
    """How much better than usual the drafter knows this text, in standard deviations."""
    placement: Placement | None = None
    """Asked for by the request itself; None leaves it to the policy."""


@dataclass(frozen=True, slots=True)
class Change:
    """Something that happens to a device; -1 means to all."""

    at_s: float
    device: int = -1
    rtt_ms: float | None = None
    cut_s: float | None = None
    """The link is down for so long."""
    supply: Supply | None = None


@dataclass(frozen=True, slots=True)
class Trace:
    name: str
    seed: int
    seconds: float
    devices: tuple[Rider, ...]
    asks: tuple[Ask, ...]
    changes: tuple[Change, ...] = ()

    @property
    def tokens(self) -> int:
        return sum(ask.tokens for ask in self.asks)


# --- made from a seed --------------------------------------------------------------------------


def generate(
    name: Name, *, devices: int, hours: float, seed: int, per_hour: float = PER_HOUR
) -> Trace:
    """`steady`: arrivals without memory; `bursty`: everybody at once, then nobody; `diurnal`:
    a day's rise and fall within `hours`; `battery`: such a day of devices that leave the mains
    and their Wi-Fi in the morning and come back in the evening. Raises ConfigError."""
    _check(name, devices, hours, per_hour)
    random = np.random.default_rng(seed)
    seconds = hours * 3600.0
    riders = tuple(_rider(random, name) for _ in range(devices))
    times = _times(random, name, seconds, devices * per_hour * hours)
    asks = tuple(_asks(random, times, devices))
    changes = tuple(_day(random, riders, seconds)) if name == "battery" else ()
    return Trace(name, seed, seconds, riders, asks, changes)


def _check(name: str, devices: int, hours: float, per_hour: float) -> None:
    if name not in NAMES:
        raise ConfigError(
            f"there is no trace {name!r}",
            effect="nothing was simulated",
            todo=f"one of {', '.join(NAMES)}, or a file of JSON lines",
        )
    for what, value in (("devices", devices), ("hours", hours), ("asks per hour", per_hour)):
        if not 0 < value < 1e7:
            raise ConfigError(
                f"{value:g} {what} make no trace",
                why="it must be above 0",
                effect="nothing was simulated",
            )


def _rider(random: np.random.Generator, name: Name) -> Rider:
    """Half laptops on Wi-Fi, a third phones, the rest Jetsons on a cable."""
    gear = str(random.choice(["laptop", "phone", "jetson"], p=[0.5, 0.35, 0.15]))
    median = {"laptop": 25.0, "phone": 45.0, "jetson": 12.0}[gear]
    rtt_ms = float(np.clip(random.lognormal(np.log(median), 0.5), 2.0, 400.0))
    charge = None if gear == "jetson" else float(random.uniform(0.25, 1.0))
    full = 1.0 if name == "battery" and charge is not None else charge
    return Rider(gear, round(rtt_ms, 2), round(rtt_ms * 0.05, 3), full)


def _times(
    random: np.random.Generator, name: Name, seconds: float, expected: float
) -> NDArray[np.float64]:
    """Arrivals by inversion of the intensity over a grid."""
    edges = np.arange(0.0, seconds + GRID_S, GRID_S)
    rate = _intensity(random, name, edges[:-1] / seconds, seconds)
    total = np.concatenate([[0.0], np.cumsum(rate)])
    # A burst is no rarer because others are stronger: the expectation is over bursts, too.
    count = random.poisson(expected * total[-1] / max(1, len(rate)))
    drawn = np.interp(random.random(count) * total[-1], total, edges)
    return np.sort(np.minimum(drawn, seconds))


def _intensity(
    random: np.random.Generator, name: Name, at: NDArray[np.float64], seconds: float
) -> NDArray[np.float64]:
    """Relative to the mean; `at` runs from 0 to 1 over the trace."""
    if name == "steady":
        return np.ones(len(at))
    if name == "bursty":
        stretches = max(1, round(seconds / BURST_S))
        heights = random.gamma(BURST_SHAPE, 1.0 / BURST_SHAPE, stretches)
        place = np.minimum((at * stretches).astype(int), stretches - 1)
        return np.asarray(heights[place], dtype=np.float64)
    return np.asarray(1.0 - 0.85 * np.cos(2.0 * np.pi * at), dtype=np.float64)


def _lengths(
    random: np.random.Generator, count: int, form: tuple[float, float, int, int]
) -> NDArray[np.int64]:
    median, spread, least, most = form
    drawn = random.lognormal(np.log(median), spread, count)
    return np.clip(np.round(drawn), least, most).astype(np.int64)


def _asks(random: np.random.Generator, times: NDArray[np.float64], devices: int) -> Iterator[Ask]:
    eager = random.lognormal(0.0, ACTIVITY, devices)
    who = random.choice(devices, size=len(times), p=eager / eager.sum())
    prompts, tokens = (_lengths(random, len(times), form) for form in (PROMPT, TOKENS))
    skills = random.normal(0.0, 1.0, len(times))
    for at, device, prompt, count, skill in zip(times, who, prompts, tokens, skills, strict=True):
        yield Ask(round(float(at), 4), int(device), int(prompt), int(count), round(float(skill), 4))


def _day(random: np.random.Generator, riders: Sequence[Rider], seconds: float) -> Iterator[Change]:
    """Away between a quarter and four fifths of the day, on cellular; now and then no link."""
    found = []
    for number, rider in enumerate(riders):
        if rider.battery is None:
            continue
        leaves, comes = random.uniform(0.2, 0.35) * seconds, random.uniform(0.7, 0.85) * seconds
        away = rider.rtt_ms * random.uniform(1.5, 4.0)
        found.append(Change(leaves, number, rtt_ms=round(away, 2), supply="battery"))
        found.append(Change(comes, number, rtt_ms=rider.rtt_ms, supply="ac"))
        if random.random() < 0.3:
            found.append(Change(random.uniform(leaves, comes), number, cut_s=random.uniform(2, 20)))
    yield from sorted(found, key=lambda change: change.at_s)


# --- as a file ---------------------------------------------------------------------------------


def save(trace: Trace, path: Path) -> None:
    """JSON lines; the same trace gives the same bytes."""
    path.write_bytes(b"".join(line + b"\n" for line in _lines(trace)))


def _lines(trace: Trace) -> Iterator[bytes]:
    head = {"name": trace.name, "seed": trace.seed, "seconds": trace.seconds}
    yield msgspec.json.encode({"trace": {"schema": SCHEMA, **head}})
    groups: tuple[tuple[str, Iterable[Any]], ...] = (
        ("device", trace.devices),
        ("ask", trace.asks),
        ("change", trace.changes),
    )
    for kind, items in groups:
        for item in items:
            yield msgspec.json.encode({kind: item})


KINDS: dict[str, type[Any]] = {"device": Rider, "ask": Ask, "change": Change}


def load(path: Path) -> Trace:
    """Raises ConfigError, naming the line."""
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise ConfigError(
            f"the trace {path.name} can not be read: {error.strerror}",
            effect="nothing was simulated",
            todo=f"one of {', '.join(NAMES)}, or a file of JSON lines",
        ) from None
    found: dict[str, list[Any]] = {kind: [] for kind in KINDS}
    head: dict[str, Any] = {}
    for number, line in enumerate(lines, start=1):
        try:
            ((kind, fields),) = msgspec.json.decode(line).items()
            if kind == "trace":
                head = _head(fields)
            else:
                found[kind].append(msgspec.convert(fields, KINDS[kind]))
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise _malformed(path, number, str(error)) from None
    return _whole(path, head, found)


def _head(fields: dict[str, Any]) -> dict[str, Any]:
    if fields["schema"] > SCHEMA:
        raise ValueError(f"schema {fields['schema']} is newer than {SCHEMA}")
    return {"name": fields["name"], "seed": fields["seed"], "seconds": float(fields["seconds"])}


def _malformed(path: Path, number: int, why: str) -> ConfigError:
    return ConfigError(
        f"line {number} of {path.name} is no part of a trace",
        why=why,
        effect="nothing was simulated",
        todo="docs/simulator.md shows a line of each kind",
    )


def _whole(path: Path, head: dict[str, Any], found: dict[str, list[Any]]) -> Trace:
    if not head or not found["device"]:
        raise _malformed(path, 1, "a trace begins with its head, and has a device")
    trace = Trace(
        **head,
        devices=tuple(found["device"]),
        asks=tuple(sorted(found["ask"], key=lambda ask: ask.at_s)),
        changes=tuple(sorted(found["change"], key=lambda change: change.at_s)),
    )
    check(trace)
    return trace


def check(trace: Trace) -> None:
    """Raises ConfigError for what can not be simulated."""
    for ask in trace.asks:
        if not 0 <= ask.device < len(trace.devices):
            raise _impossible(f"an ask at {ask.at_s:g} s names device {ask.device}")
        if not (0 <= ask.at_s < 1e9 and ask.prompt > 0 and ask.tokens > 0):
            raise _impossible(f"an ask at {ask.at_s:g} s has no prompt, no tokens, or no time")
    for rider in trace.devices:
        if not (0 <= rider.rtt_ms < 1e6 and 0 <= rider.jitter_ms < 1e6):
            raise _impossible(f"a device has a round trip of {rider.rtt_ms} ms")


def _impossible(what: str) -> ConfigError:
    return ConfigError(what, why="the trace makes no sense", effect="nothing was simulated")


def pinned(trace: Trace, placement: Placement | None) -> Trace:
    """The same trace with every answer's placement asked for; None frees all."""
    asks = tuple(replace(ask, placement=placement) for ask in trace.asks)
    return replace(trace, asks=asks)
