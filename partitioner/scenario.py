"""The question that a plan answers: devices by name or file, links, and what-ifs."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from itertools import combinations
from pathlib import Path
from typing import Literal

from outrider.errors import ConfigError, InvalidProfile, NotFound
from outrider.partitioner.check import check_device
from outrider.partitioner.cost import item_bytes
from outrider.partitioner.device import DeviceProfile, LinkProfile
from outrider.partitioner.graph import ModelGraph
from outrider.partitioner.plan import Objective, Problem
from outrider.partitioner.profile import recommend, store
from outrider.partitioner.written import Fleet, read_fleet

LOCAL = "local"
NEAR_RTT_S, NEAR_BYTES_PER_S = 0.003, 12.5e6
FAR_RTT_S, FAR_UP_BYTES_PER_S, FAR_DOWN_BYTES_PER_S = 0.040, 2.5e6, 12.5e6
"""Where no link is known: 100 Mbit/s at home; 20 up and 100 down to a cloud 40 ms away."""
STORED = "stored"

_SIZES = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9}
_NUMBER = re.compile(r"([0-9.]+(?:e[+-]?[0-9]+)?)\s*([a-zA-Z/]*)")


def problem(graph: ModelGraph, names: Sequence[str], objective: Objective) -> Problem:
    """A model on named devices, asked as one person asks it; none named: this machine.

    Raises NotFound, InvalidProfile.
    """
    given = fleet(names)
    for device in given.devices:
        check_device(device)
    found = usable(given.devices, graph, None)
    return Problem(graph, found, linked(given), given.home or found[0].name, objective=objective)


# --- devices -----------------------------------------------------------------------------------


def fleet(names: Sequence[str]) -> Fleet:
    """Devices of a JSON file, of the catalogue, or `local`: this machine's saved profile.

    Raises NotFound for unknown names and where nothing was profiled, InvalidProfile.
    """
    wanted = [part for name in names for part in name.split(",") if part]
    if not wanted:
        return Fleet(1, (_this_device(),), store.load_link_profiles())
    devices: list[DeviceProfile] = []
    links: list[LinkProfile] = []
    drawn: list[frozenset[str]] = []
    home = None
    for name in wanted:
        if name.endswith(".json") or "/" in name:
            found = _file(Path(name))
            home = home or found.home
            devices += found.devices
            links += found.links
            drawn += [frozenset(device.name for device in found.devices)] if found.links else []
        else:
            devices.append(_named(name))
    if any(device.name == LOCAL for device in devices):
        links += store.load_link_profiles()
    return Fleet(1, tuple(devices), (*links, *_missing(devices, links, drawn)), home)


def _this_device() -> DeviceProfile:
    try:
        return store.load_device_profile()
    except NotFound:
        raise NotFound(
            "this device has not been measured yet",
            effect="nothing was planned",
            todo="`outrider profile` (half a minute), or name others: --devices rtx-3060-12gb,...",
        ) from None


def _missing(
    devices: Sequence[DeviceProfile], links: Sequence[LinkProfile], drawn: Sequence[frozenset[str]]
) -> Iterator[LinkProfile]:
    """Usual links where none is known, but not within a file that draws its own."""
    known = {frozenset((link.a, link.b)) for link in links}
    for a, b in combinations(devices, 2):
        ends = frozenset((a.name, b.name))
        if ends not in known and not any(ends <= names for names in drawn):
            yield _usual(a, b)


def _file(path: Path) -> Fleet:
    """A fleet, or the profile of a single device as `outrider profile --save` writes it."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise NotFound(
            f"there is no devices file {path}",
            effect="nothing was planned",
            todo="a JSON file, see docs/partitioner.md, or names of the catalogue",
        ) from None
    if b'"devices"' in data:
        return read_fleet(data, path.name)
    return Fleet(1, (store.load_device_profile(path),))


def _named(name: str) -> DeviceProfile:
    if name == LOCAL:
        return _this_device()
    known = {device.name: device for device in recommend.catalogue()}
    if name not in known:
        close = get_close_matches(name, known, 3, 0.4)
        raise NotFound(
            f"there is no device {name!r}",
            why="it is neither in the catalogue nor a .json file",
            effect="nothing was planned",
            todo=f"{' or '.join(close)}" if close else f"one of {', '.join(known)}",
        )
    return known[name]


def linked(given: Fleet) -> tuple[LinkProfile, ...]:
    """Links between devices of the fleet; this machine's others lead elsewhere."""
    names = {device.name for device in given.devices}
    if given.home is not None:
        return given.links
    return tuple(link for link in given.links if {link.a, link.b} <= names)


def _usual(a: DeviceProfile, b: DeviceProfile) -> LinkProfile:
    far = "cloud" in (a.kind, b.kind) and a.kind != b.kind
    if not far:
        speed = NEAR_BYTES_PER_S
        return LinkProfile(a.name, b.name, NEAR_RTT_S, speed, speed, source="estimated")
    up, down = FAR_UP_BYTES_PER_S, FAR_DOWN_BYTES_PER_S
    if a.kind == "cloud":
        up, down = down, up
    return LinkProfile(a.name, b.name, FAR_RTT_S, up, down, source="estimated")


# --- precisions --------------------------------------------------------------------------------


def at_precision(device: DeviceProfile, graph: ModelGraph, wanted: str | None) -> DeviceProfile:
    """Rates that may be used: without a wish those that keep the stored weights as they are.

    A catalogue rate for `stored` is one of the model's own precision.
    """
    rates = [
        replace(rate, dtype=graph.dtype, bytes_per_weight=item_bytes(graph.dtype))
        if rate.dtype == STORED
        else rate
        for rate in device.rates
    ]
    if wanted is None:
        size = item_bytes(graph.dtype)
        rates = [r for r in rates if r.dtype == graph.dtype or item_bytes(r.dtype) > size]
    return replace(device, rates=tuple(rates))


def usable(
    devices: Sequence[DeviceProfile], graph: ModelGraph, wanted: str | None
) -> tuple[DeviceProfile, ...]:
    """The same for all. Raises InvalidProfile where a device is left without a rate."""
    found = tuple(at_precision(device, graph, wanted) for device in devices)
    empty = [device for device in found if not device.rates]
    if empty:
        given = next(device for device in devices if device.name == empty[0].name)
        raise InvalidProfile(
            f"device {empty[0].name!r} has no rate that keeps {graph.dtype} weights as they are",
            why=f"it was measured at {', '.join(rate.dtype for rate in given.rates)}",
            effect="nothing was planned",
            todo="--precision any, or one of these",
        )
    return found


# --- what-if -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Change:
    """`rtt=80ms`, or `laptop.memory=8G` for one device."""

    key: str
    value: str
    device: str | None


def changes(text: str) -> tuple[Change, ...]:
    """Raises ConfigError for what is no assignment or an unknown key."""
    found = []
    for part in filter(None, (piece.strip() for piece in text.split(","))):
        name, equals, value = part.partition("=")
        device, _, key = name.rpartition(".")
        if not equals or not value or key not in KEYS:
            raise ConfigError(
                f"--what-if does not know {part!r}",
                why=f"it takes KEY=VALUE or DEVICE.KEY=VALUE; keys are {', '.join(KEYS)}",
                effect="nothing was planned",
                todo="as --what-if rtt=80ms,bw=20M,power=10W",
            )
        found.append(Change(key, value, device or None))
    return tuple(found)


def changed(problem: Problem, asked: Sequence[Change]) -> Problem:
    """The problem after all changes. Raises ConfigError, NotFound for an unknown device."""
    names = [device.name for device in problem.devices]
    for change in asked:
        if change.device is not None and change.device not in names:
            raise NotFound(
                f"--what-if names the unknown device {change.device!r}",
                effect="nothing was planned",
                todo=f"one of {', '.join(names)}",
            )
        problem = KEYS[change.key](problem, change)
    return problem


def _links(problem: Problem, change: Change, made: Callable[[LinkProfile], LinkProfile]) -> Problem:
    """All links of the named device; without a name, of home."""
    name = change.device or problem.home
    links = tuple(made(link) if name in (link.a, link.b) else link for link in problem.links)
    return replace(problem, links=links)


def _device(
    problem: Problem, change: Change, made: Callable[[DeviceProfile], DeviceProfile]
) -> Problem:
    name = change.device or problem.home
    devices = tuple(made(one) if one.name == name else one for one in problem.devices)
    return replace(problem, devices=devices)


def _rtt(problem: Problem, change: Change) -> Problem:
    rtt_s = amount(change, {"ms": 1e-3, "s": 1.0, "us": 1e-6})
    return _links(problem, change, lambda link: replace(link, rtt_s=rtt_s))


def _bw(problem: Problem, change: Change) -> Problem:
    return _up(_down(problem, change), change)


def _up(problem: Problem, change: Change) -> Problem:
    return _way(problem, change, "up")


def _down(problem: Problem, change: Change) -> Problem:
    return _way(problem, change, "down")


def _way(problem: Problem, change: Change, way: Literal["up", "down"]) -> Problem:
    """One direction as seen from the device: `up` is what it sends."""
    name, speed = change.device or problem.home, _bandwidth(change)

    def made(link: LinkProfile) -> LinkProfile:
        if (link.a == name) == (way == "up"):
            return replace(link, up_bytes_per_s=speed)
        return replace(link, down_bytes_per_s=speed)

    return _links(problem, change, made)


def _bandwidth(change: Change) -> float:
    """`20M` and `20Mbit` are megabits per second."""
    units = {f"{prefix}{unit}": size for prefix, size in _SIZES.items() for unit in ("", "bit")}
    return amount(change, units) / 8


def _power(problem: Problem, change: Change) -> Problem:
    watts = amount(change, {"W": 1.0, "": 1.0, "mW": 1e-3})
    name, limits = change.device or problem.home, problem.constraints
    others = tuple(cap for cap in limits.max_watts if cap[0] != name)
    capped = replace(limits, max_watts=(*others, (name, watts)))
    return replace(problem, constraints=capped)


def _memory(problem: Problem, change: Change) -> Problem:
    units = {"": 1.0, "M": 2.0**20, "MiB": 2.0**20, "G": 2.0**30, "GiB": 2.0**30}
    size = int(amount(change, units))
    return _device(problem, change, lambda device: replace(device, memory_bytes=size))


def _slowdown(problem: Problem, change: Change) -> Problem:
    factor = amount(change, {"": 1.0, "x": 1.0})
    return _device(problem, change, lambda device: replace(device, slowdown=factor))


def _sequences(problem: Problem, change: Change) -> Problem:
    count = int(amount(change, {"": 1.0}))
    return replace(problem, workload=replace(problem.workload, sequences=count))


def _tokens(problem: Problem, change: Change) -> Problem:
    """Acceptance: tokens that a pass commits; rows follow where they were fewer."""
    tokens = amount(change, {"": 1.0})
    load = problem.workload
    rows = max(load.rows, float(math.ceil(tokens)))
    return replace(problem, workload=replace(load, tokens_per_pass=tokens, rows=rows))


def _without(problem: Problem, change: Change) -> Problem:
    limits = problem.constraints
    gone = replace(limits, exclude=(*limits.exclude, change.value))
    return replace(problem, constraints=gone)


KEYS: dict[str, Callable[[Problem, Change], Problem]] = {
    "rtt": _rtt,
    "bw": _bw,
    "up": _up,
    "down": _down,
    "power": _power,
    "memory": _memory,
    "slowdown": _slowdown,
    "sequences": _sequences,
    "tokens": _tokens,
    "without": _without,
}


def amount(change: Change, units: dict[str, float]) -> float:
    """A number with one of the units. Raises ConfigError."""
    match = _NUMBER.fullmatch(change.value.strip())
    try:
        if match is None or match[2] not in units:
            raise ValueError
        return float(match[1]) * units[match[2]]
    except ValueError:
        known = ", ".join(unit or "none" for unit in units)
        raise ConfigError(
            f"--what-if {change.key}={change.value!r} is no amount",
            why=f"a number with a unit is wanted: {known}",
            effect="nothing was planned",
            todo="as --what-if rtt=80ms,bw=20M,power=10W",
        ) from None
