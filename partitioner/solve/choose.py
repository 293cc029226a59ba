"""The planner's front: picks a solver, and says why its plan is as it is.

The runner-up is the best plan with another set of devices: it lacks a device of the plan, or
has one that the plan has not, so it is found by forbidding and by demanding each in turn. The
binding constraint is the one whose lifting gains most.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from outrider.errors import ConfigError, OutriderError, Unplannable
from outrider.partitioner import price
from outrider.partitioner.check import check
from outrider.partitioner.device import LinkProfile
from outrider.partitioner.plan import Alternative, Objective, Plan, Problem, StagePlan
from outrider.partitioner.solve import answers, brute, dp, genetic, milp, nearest
from outrider.partitioner.solve.limits import bounded, lifted, present, with_memory

MANY = 20
"""Devices from which on the exact search is left to the others."""
CALM = 8
"""Up to so many devices comparisons are exact, too; beyond, they are narrow searches."""
NARROW = 96
WORTH = 1e-6
"""Relative gain that counts as better."""
THRIFT = 0.005
"""A device that gains less than this share is left out: each one more can be lost."""

Solver = Callable[[Problem], Plan]

SOLVERS: dict[str, Solver] = {
    "dp": dp.solve,
    "milp": milp.solve,
    "genetic": genetic.solve,
    "brute": brute.solve,
}

UNITS: dict[Objective, Callable[[float], str]] = {
    "latency": lambda value: f"{1e3 * value:.4g} ms a token",
    "throughput": lambda value: f"{1 / value:.4g} tokens/s",
    "energy": lambda value: f"{value:.4g} J a token",
    "cost": lambda value: f"${value:.4g} a million tokens",
}


def solve(problem: Problem, solver: str = "auto") -> Plan:
    """The best plan with its reasons. Raises InvalidProfile, Unplannable, ConfigError."""
    check(problem)
    if solver == "auto":
        plan = _picked(problem)
    elif solver in SOLVERS:
        plan = SOLVERS[solver](problem)
    else:
        raise ConfigError(
            f"there is no solver {solver!r}",
            why=f"there are auto, {', '.join(SOLVERS)}",
            effect="nothing was planned",
            todo="--solver auto",
        )
    return explained(problem, thrifty(problem, plan) if solver == "auto" else plan)


def thrifty(problem: Problem, plan: Plan) -> Plan:
    """Without devices that gain less than `THRIFT` in all."""
    lean = plan
    while len({stage.device for stage in lean.stages}) > 1:
        others = [_rival(problem, _leaner(problem, lean, stage.device)) for stage in lean.stages]
        known = [other for other in others if other is not None]
        best = min(known, key=lambda other: other.value, default=None)
        if best is None or best.value > plan.value * (1 + THRIFT):
            break
        gap = None if plan.gap is None else max(plan.gap, 1 - (1 - plan.gap) * _ratio(plan, best))
        lean = answers.make(problem, plan.solver, best.parts, gap)
    return lean


def _ratio(plan: Plan, other: Rival) -> float:
    return plan.value / other.value if other.value > 0 else 1.0


def _leaner(problem: Problem, plan: Plan, name: str) -> Problem | None:
    """Without one of a plan's devices, and with no other in its place."""
    used = {stage.device for stage in plan.stages} - {name}
    limits = problem.constraints
    if name in limits.include or (limits.stay and name == problem.home):
        return None
    rest = {device.name for device in problem.devices} - used
    return bounded(problem, "exclude", tuple(sorted(rest)))


def _picked(problem: Problem) -> Plan:
    """Exact up to `MANY` devices; beyond, the better of HiGHS and the genetic search."""
    if len(problem.devices) <= MANY or price.both_ends_stay(problem):
        return dp.solve(problem)
    plans = []
    failure: OutriderError | None = None
    for attempt in (milp.solve, genetic.solve):
        try:
            plans.append(attempt(problem))
        except (ConfigError, Unplannable) as error:
            failure = error
    if not plans:
        raise failure or Unplannable("no plan", constraint="all", nearest="none")
    return min(plans, key=lambda plan: plan.value)


@dataclass(frozen=True, slots=True)
class Rival:
    """A plan with another set of devices, and what was asked for to get it."""

    parts: tuple[price.Part, ...]
    value: float


def explained(problem: Problem, plan: Plan) -> Plan:
    """The plan with runner-up, margin, binding constraint, dropped devices and reasons."""
    used = {stage.device for stage in plan.stages}
    unused = [d.name for d in problem.devices if d.name not in used]
    with_it = {name: _rival(problem, _demanded(problem, name)) for name in unused}
    without = [_rival(problem, _forbidden(problem, name)) for name in sorted(used)]
    rivals = [rival for rival in (*with_it.values(), *without) if rival is not None]
    second = min(rivals, key=lambda rival: rival.value, default=None)
    runner_up = margin = None
    if second is not None:
        runner_up = Alternative(answers.summary(problem, second.parts), second.value)
        margin = second.value / plan.value - 1 if plan.value > 0 else None
    said = replace(
        plan,
        runner_up=runner_up,
        margin=margin,
        binding=_binding(problem, plan),
        links=_links(problem, plan),
        dropped=tuple((name, _why_dropped(problem, plan, name, with_it[name])) for name in unused),
    )
    return replace(said, reasons=_reasons(problem, said, second))


def _links(problem: Problem, plan: Plan) -> tuple[LinkProfile, ...]:
    found = (hop.link for hop in price.hops(problem, plan.stages))
    return tuple(link for link in found if link is not None)


def _best(problem: Problem) -> dp.Found | None:
    exact = len(problem.devices) <= CALM
    return dp.best(problem) if exact else dp.best(problem, NARROW)


def _rival(problem: Problem, changed: Problem | None) -> Rival | None:
    found = None if changed is None else _best(changed)
    if found is None:
        return None
    return Rival(found.parts, price.value(problem, price.price(problem, found.parts)))


def _demanded(problem: Problem, name: str) -> Problem | None:
    if name in problem.constraints.exclude:
        return None
    return bounded(problem, "include", (*problem.constraints.include, name))


def _forbidden(problem: Problem, name: str) -> Problem | None:
    limits = problem.constraints
    if name in limits.include or (limits.stay and name == problem.home):
        return None
    return bounded(problem, "exclude", (*limits.exclude, name))


# --- what binds --------------------------------------------------------------------------------


def _binding(problem: Problem, plan: Plan) -> str:
    """The constraint without which the plan would be better by most."""
    gains = {name: _gain(plan, lifted(problem, name)) for name in present(problem)}
    if _gain(plan, with_memory(problem, nearest.MORE)) > WORTH:
        for device in problem.devices:
            more = with_memory(problem, nearest.MORE, device.name)
            gains[f"memory of {device.name}"] = _gain(plan, more)
        if max(gains.values()) <= WORTH:
            gains["memory of several devices"] = 1.0
    name = max(gains, key=lambda key: gains[key], default="none")
    return name if gains.get(name, 0.0) > WORTH else "none"


def _gain(plan: Plan, freed: Problem) -> float:
    """How much better, relative, the objective is in another problem."""
    found = _best(freed)
    if found is None or plan.value <= 0:
        return 0.0
    return 1 - price.value(freed, price.price(freed, found.parts)) / plan.value


# --- words -------------------------------------------------------------------------------------


def _why_dropped(problem: Problem, plan: Plan, name: str, rival: Rival | None) -> str:
    device, limits = price.device_of(problem, name), problem.constraints
    if name in limits.exclude:
        return "excluded by the caller"
    if limits.dtype is not None and all(rate.dtype != limits.dtype for rate in device.rates):
        return f"it does not compute at {limits.dtype}"
    cap = dict(limits.max_watts).get(name)
    if cap is not None and cap <= device.idle_w:
        return f"its cap of {cap:g} W is no more than its idle draw"
    if not _fits(problem, name):
        return f"its {_gib(device.memory_bytes)} hold no unit with KV"
    if name != problem.home and not _linked(problem, name):
        return "it has no link"
    if rival is None:
        return "no placement with a part of it keeps all constraints"
    worse = _percent(rival.value, plan.value)
    if rival.value <= plan.value:
        return f"it would gain less than {100 * THRIFT:g} %, and one device more can be lost"
    return f"with a part of it the best plan is {worse}: {_cause(problem, plan, name, rival)}"


def _cause(problem: Problem, plan: Plan, name: str, rival: Rival) -> str:
    """Whether the links or the computing of a device make it a loss."""
    found = price.price(problem, rival.parts)
    hops = found.hop_s - plan.estimate.hop_s
    pace, best = _pace(problem, name), min(_pace(problem, s.device) for s in plan.stages)
    if problem.objective in ("energy", "cost"):
        return "it pays more for a pass than it saves"
    if hops > 0 and pace <= best * 4:
        return f"{1e3 * hops:.3g} ms more on links"
    return f"a layer takes it {1e3 * pace:.3g} ms, the plan's fastest {1e3 * best:.3g} ms"


def _pace(problem: Problem, name: str) -> float:
    """Seconds of a decode pass through a middle unit at the device's best rate."""
    ready = price.prepared(problem)
    middle = len(ready.graph.units) // 2
    rates = price.device_of(ready, name).rates
    parts = [price.Part(name, middle, middle + 1, rate.engine, rate.dtype) for rate in rates]
    return min(price.decode_s(ready, part) for part in parts)


def _fits(problem: Problem, name: str) -> bool:
    ready = price.prepared(problem)
    device = price.device_of(ready, name)
    sizes = (
        price.memory_bytes(ready, price.Part(name, unit, unit + 1, rate.engine, rate.dtype))
        for unit in range(len(ready.graph.units))
        for rate in device.rates
    )
    return min(sizes) <= device.memory_bytes


def _linked(problem: Problem, name: str) -> bool:
    return any(name in (link.a, link.b) for link in problem.links)


def _reasons(problem: Problem, plan: Plan, second: Rival | None) -> tuple[str, ...]:
    said = [_verdict(problem, plan, second), _slowest(problem, plan)]
    if plan.binding != "none":
        said.append(f"Binding is {plan.binding}: without it a better plan would be possible.")
    if plan.gap is None:
        said.append(f"The solver {plan.solver} proves nothing; dp does.")
    elif plan.gap > 0:
        said.append(
            f"At most {100 * plan.gap:.2g} % from the best that is possible; devices that gain"
            f" less than {100 * THRIFT:g} % are left out."
        )
    else:
        said.append("Proven: no placement of these devices is better.")
    return tuple(said)


def _verdict(problem: Problem, plan: Plan, second: Rival | None) -> str:
    show = UNITS[problem.objective]
    if plan.verdict == "one device":
        name = plan.stages[0].device
        if second is None:
            return f"Do not split: {name} is the only device that can take part."
        worse = _percent(second.value, plan.value)
        other = answers.summary(problem, second.parts)
        return f"Do not split: {name} alone is best; the next best ({other}) is {worse}."
    alone = _rival(problem, _single(problem))
    if alone is None:
        return "Split: no single device keeps all constraints."
    worse = _percent(alone.value, plan.value)
    name = alone.parts[0].device
    return f"Split: the best single device, {name}, gives {show(alone.value)}, {worse}."


def _single(problem: Problem) -> Problem | None:
    return bounded(problem, "max_devices", 1) if len(problem.constraints.include) < 2 else None


def _slowest(problem: Problem, plan: Plan) -> str:
    """Where a pass spends its time."""
    estimate, load = plan.estimate, problem.workload
    top: StagePlan = max(plan.stages, key=lambda stage: stage.decode_s)
    cycle = estimate.tpot_s * load.tokens_per_pass
    if estimate.hop_s > top.decode_s:
        said = f"Most of a pass is on links: {1e3 * estimate.hop_s:.3g} of {1e3 * cycle:.3g} ms"
    else:
        said = f"Most of a pass is {top.device}: {1e3 * top.decode_s:.3g} of {1e3 * cycle:.3g} ms"
    return f"{said}; a pass commits {load.tokens_per_pass:.3g} tokens."


def _percent(other: float, mine: float) -> str:
    if mine <= 0:
        return "dearer" if other > mine else "as good"
    more = other / mine - 1
    if more < 0.0005:
        return "as good"
    return f"{100 * more:.3g} % worse" if more < 10 else f"{other / mine:.3g} times worse"


def _gib(size: int) -> str:
    return f"{size / (1 << 30):.3g} GiB"
