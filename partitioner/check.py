"""Whether a question to the planner makes sense, before any solver sees it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import fields, is_dataclass

from outrider.errors import InvalidProfile, Unplannable
from outrider.partitioner.device import DeviceProfile, LinkProfile, Rate
from outrider.partitioner.graph import ModelGraph
from outrider.partitioner.plan import Constraints, Problem, Workload

EFFECT = "nothing was planned"


def check(problem: Problem) -> None:
    """Raises InvalidProfile for what makes no sense, Unplannable for what contradicts itself."""
    check_graph(problem.graph)
    for device in problem.devices:
        check_device(device)
    names = _unique("devices", [device.name for device in problem.devices])
    _unique("links", [" and ".join(sorted((link.a, link.b))) for link in problem.links])
    for link in problem.links:
        check_link(link)
        _known(f"the link {link.a} to {link.b}", (link.a, link.b), names)
    _known("home", (problem.home,), names)
    check_workload(problem.workload, problem.graph)
    _check_limits(problem.constraints, names, len(problem.graph.units))
    _check_agreement(problem)


def wrong(what: str, why: str, todo: str) -> InvalidProfile:
    return InvalidProfile(what, why=why, effect=EFFECT, todo=todo)


# --- graph -------------------------------------------------------------------------------------


def check_graph(graph: ModelGraph) -> None:
    """Units with finite costs, joined by edges that go forward and reach all of them."""
    if not graph.units:
        raise wrong("the model graph is empty", "it has no units", "read the model's graph again")
    for unit in graph.units:
        _amounts(f"unit {unit.name!r}", unit, least=0.0)
    last = len(graph.units)
    for a, b in graph.edges:
        if not 0 <= a < b < last:
            raise wrong(
                f"the model graph has an edge from unit {a} to unit {b}",
                f"edges go forward between units 0 to {last - 1}",
                "put units in the order of computation",
            )
    fed = {b for _, b in graph.edges}
    lost = [graph.units[unit].name for unit in range(1, last) if unit not in fed]
    if lost:
        raise wrong(
            f"the model graph is disconnected at {', '.join(lost[:3])}",
            f"no edge leads there, though {graph.units[0].name!r} is where rows begin",
            "give an edge from what feeds it; a plain decoder's are graph.chain(units)",
        )
    _check_read(graph)


def _check_read(graph: ModelGraph) -> None:
    read = {a for a, _ in graph.edges}
    unread = [unit.name for place, unit in enumerate(graph.units[:-1]) if place not in read]
    if unread:
        raise wrong(
            f"the model graph is disconnected at {', '.join(unread[:3])}",
            "no unit reads what it computes",
            "give an edge to what it feeds; a plain decoder's are graph.chain(units)",
        )


# --- devices and links -------------------------------------------------------------------------


def check_device(device: DeviceProfile) -> None:
    name = f"device {device.name!r}"
    _amounts(name, device, least=0.0)
    _positive(name, (("memory_bytes", device.memory_bytes), ("slowdown", device.slowdown)))
    if not device.rates:
        raise wrong(f"{name} has no rates", "no engine was measured on it", "outrider profile")
    for rate in device.rates:
        _check_rate(name, rate)
    _unique(f"rates of {name}", [f"{rate.engine} at {rate.dtype}" for rate in device.rates])


def _check_rate(device: str, rate: Rate) -> None:
    name = f"{device}, {rate.engine} at {rate.dtype}"
    _amounts(name, rate, least=0.0)
    _positive(name, (("flops_per_s", rate.flops_per_s), ("bytes_per_s", rate.bytes_per_s)))
    if not rate.bytes_per_weight:
        _positive(name, (("weight_scale", rate.weight_scale),))
    for rows, factor in rate.rows:
        _positive(name, (("rows", rows), ("factor of rows", factor)))


def check_link(link: LinkProfile) -> None:
    name = f"link {link.a} to {link.b}"
    _amounts(name, link, least=0.0)
    if link.a == link.b:
        raise wrong(f"the {name} joins a device to itself", "both ends are equal", "leave it out")
    speeds = (("up_bytes_per_s", link.up_bytes_per_s), ("down_bytes_per_s", link.down_bytes_per_s))
    for field, speed in speeds:
        if speed <= 0:
            raise wrong(
                f"the {name} has no bandwidth",
                f"{field} is {speed:g}",
                "leave the link out where it does not exist; else measure it again",
            )
    if link.loss >= 1:
        raise wrong(f"the {name} loses everything", f"loss is {link.loss:g}", "leave it out")


def _amounts(name: str, value: object, *, least: float) -> None:
    """Every number of a dataclass is finite and at least `least`."""
    assert is_dataclass(value)
    for field in fields(value):
        found = getattr(value, field.name)
        if isinstance(found, int | float) and not (math.isfinite(found) and found >= least):
            raise wrong(
                f"{name} has {field.name} = {found:g}",
                f"it must be a finite number from {least:g} on",
                "measure it again: outrider profile",
            )


def _positive(name: str, values: Iterable[tuple[str, float]]) -> None:
    for field, value in values:
        if not (math.isfinite(value) and value > 0):
            raise wrong(
                f"{name} has {field} = {value:g}",
                "it must be a finite number above 0",
                "measure it again: outrider profile",
            )


def _unique(what: str, names: Sequence[str]) -> frozenset[str]:
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise wrong(f"{what}: {twice[0]!r} is there twice", "names must differ", "rename one")
    return frozenset(names)


def _known(what: str, named: Iterable[str], names: frozenset[str]) -> None:
    for name in named:
        if name not in names:
            raise wrong(
                f"{what} names the unknown device {name!r}",
                f"known are {', '.join(sorted(names)) or 'none'}",
                "add the device's profile, or name one of these",
            )


# --- workload and constraints ------------------------------------------------------------------


def check_workload(load: Workload, graph: ModelGraph) -> None:
    _amounts("the workload", load, least=0.0)
    whole = ("prompt_tokens", "sequences", "prefill_chunk", "batch", "rows", "tokens_per_pass")
    _positive("the workload", [(name, getattr(load, name)) for name in whole])
    if load.batch > load.sequences:
        raise contradiction(
            f"a batch of {load.batch} answers, and only {load.sequences} at a time",
            "batch is at most sequences",
            f"batch {load.sequences}",
        )
    if load.tokens_per_pass > load.rows * (1 + 1e-9) and load.rows >= 1:
        raise contradiction(
            f"{load.tokens_per_pass:g} tokens per pass of {load.rows:g} rows",
            "a row commits at most one token",
            f"tokens_per_pass {load.rows:g}",
        )
    wanted = load.prompt_tokens + load.new_tokens
    if wanted > graph.context:
        raise contradiction(
            f"{wanted} tokens do not fit the {graph.context} of {graph.name}",
            "prompt_tokens and new_tokens within the model's context",
            f"{graph.context} tokens",
        )


def contradiction(what: str, constraint: str, can: str) -> Unplannable:
    return Unplannable(what, constraint=constraint, nearest=can)


def _check_limits(limits: Constraints, names: frozenset[str], units: int) -> None:
    _known("exclude", limits.exclude, names)
    _known("include", limits.include, names)
    _known("max_watts", [name for name, _ in limits.max_watts], names)
    bounds = [("max_tpot_s", limits.max_tpot_s), ("max_ttft_s", limits.max_ttft_s)]
    bounds += [("max_joules_per_token", limits.max_joules_per_token)]
    bounds += [(f"max_watts of {name}", watts) for name, watts in limits.max_watts]
    _positive("a constraint", [(name, value) for name, value in bounds if value is not None])
    losses = [*(value for _, value in limits.dtype_loss), limits.max_loss or 0.0]
    if not all(math.isfinite(value) and value >= 0 for value in losses):
        raise wrong("a quality loss is no finite number from 0 on", f"{losses}", "correct it")
    for unit in limits.stay:
        if not 0 <= unit < units:
            raise contradiction(
                f"unit {unit} must stay, and the model has {units}",
                "stay names units of the model",
                f"units 0 to {units - 1}",
            )


def _check_agreement(problem: Problem) -> None:
    """Constraints that contradict each other whatever the devices are."""
    limits, home = problem.constraints, problem.home
    if limits.stay and home in limits.exclude:
        raise contradiction(
            f"units must stay on {home}, and {home} is excluded",
            f"stay and exclude of {home}",
            f"exclude without {home}, or no unit that must stay",
        )
    both = sorted(set(limits.exclude) & set(limits.include))
    if both:
        raise contradiction(
            f"{both[0]} is excluded and must have a part",
            f"include and exclude of {both[0]}",
            f"either of them for {both[0]}",
        )
    _check_count(problem)
    offered = {rate.dtype for device in problem.devices for rate in device.rates}
    if limits.dtype is not None and limits.dtype not in offered:
        raise contradiction(
            f"no device computes at {limits.dtype}",
            f"dtype {limits.dtype}",
            f"one of {', '.join(sorted(offered))}",
        )


def _check_count(problem: Problem) -> None:
    limits = problem.constraints
    needed = set(limits.include) | ({problem.home} if limits.stay else set())
    if limits.max_devices is not None and limits.max_devices < max(1, len(needed)):
        raise contradiction(
            f"at most {limits.max_devices} devices, and {max(1, len(needed))} must have a part",
            f"max_devices {limits.max_devices}",
            f"max_devices {max(1, len(needed))}",
        )
    if set(limits.exclude) >= {device.name for device in problem.devices}:
        raise contradiction(
            "every device is excluded", "exclude", "at least one device that is not excluded"
        )
