"""Why there is no plan: the constraint that can not be met, and the nearest that can."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Protocol

from outrider.errors import Unplannable
from outrider.partitioner import price
from outrider.partitioner.plan import Estimate, Objective, Problem
from outrider.partitioner.solve.limits import bounded, lifted, present, with_memory

HALVINGS = 12
MORE = math.inf
"""Times the memory that is there: as much as any model needs."""
ROUNDING = 1.001
"""So that what is named can really be met."""
GIB = float(1 << 30)
MOST = 2.0**60
"""A factor beyond which nothing is looked for."""


class Placement(Protocol):
    @property
    def parts(self) -> Sequence[price.Placed]: ...


Best = Callable[[Problem], Placement | None]

MEASURED: dict[str, tuple[Objective, Callable[[Estimate], float]]] = {
    "max_tpot_s": ("latency", lambda found: found.tpot_s),
    "max_joules_per_token": ("energy", lambda found: found.joules_per_token),
}
"""Limits whose figure is an objective: the best that can be met is that objective's optimum."""


def explain(problem: Problem, best: Best) -> Unplannable:
    """The error for a checked problem in which `best` finds nothing."""
    names = present(problem)
    helps = [name for name in names if best(lifted(problem, name)) is not None]
    if helps:
        others = f"; lifting {' or '.join(helps[1:])} would do as well" if helps[1:] else ""
        return _error(
            problem, _named(problem, helps[0]), _nearest(problem, helps[0], best) + others
        )
    if best(with_memory(problem, MORE)) is not None:
        return _memory(problem, best)
    if best(lifted(problem, *names)) is not None:
        found = " and ".join(_named(problem, name) for name in names)
        return _error(problem, f"{found}, together", "any plan without them; lift them in turn")
    free = lifted(problem, *names)
    if best(with_memory(free, MORE)) is not None:
        return _memory(free, best)
    return _error(problem, "links", f"a link between {problem.home} and a device that can compute")


def _error(problem: Problem, constraint: str, nearest: str) -> Unplannable:
    return Unplannable(
        f"no placement of {problem.graph.name} keeps all constraints",
        constraint=constraint,
        nearest=nearest,
    )


def _named(problem: Problem, name: str) -> str:
    value = getattr(problem.constraints, name)
    if isinstance(value, float):
        return f"{name} {value:.4g}"
    if isinstance(value, tuple):
        value = ", ".join(
            f"{item[0]} {item[1]:g}" if isinstance(item, tuple) else str(item) for item in value
        )
    return f"{name} {value}"


def _nearest(problem: Problem, name: str, best: Best) -> str:
    """What the constraint would have to be."""
    free = lifted(problem, name)
    found = best(free)
    assert found is not None
    if name in MEASURED:
        goal, figure = MEASURED[name]
        least = best(replace(free, objective=goal)) or found
        return f"{name} {ROUNDING * figure(price.price(free, least.parts)):.4g}"
    if name == "max_ttft_s":
        top = price.price(free, found.parts).ttft_s
        return f"{name} {_least(problem, name, top, best):.4g}"
    if name == "max_loss":
        top = price.loss(problem.constraints, found.parts)
        return f"{name} {_least(problem, name, top, best):.4g}"
    if name == "max_devices":
        return f"{name} {_count(problem, best)}"
    if name == "max_watts":
        return _watts(problem, best)
    used = ", ".join(dict.fromkeys(f"{part.device} at {part.dtype}" for part in found.parts))
    return f"without {name}: {used}"


def _least(problem: Problem, name: str, top: float, best: Best) -> float:
    """The smallest limit that can be met, found between what is asked and what was reached."""
    low, high = float(getattr(problem.constraints, name)), top * ROUNDING
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        if best(bounded(problem, name, middle)) is None:
            low = middle
        else:
            high = middle
    return high * ROUNDING


def _count(problem: Problem, best: Best) -> int:
    most = len(problem.devices)
    first = (problem.constraints.max_devices or 0) + 1
    met = (n for n in range(first, most) if best(bounded(problem, "max_devices", n)) is not None)
    return next(met, most)


def _watts(problem: Problem, best: Best) -> str:
    """All caps raised by one factor."""
    caps = problem.constraints.max_watts

    def met(factor: float) -> bool:
        raised = tuple((name, watts * factor) for name, watts in caps)
        return best(bounded(problem, "max_watts", raised)) is not None

    factor = _smallest(met)
    return "max_watts " + ", ".join(f"{name} {watts * factor:.4g}" for name, watts in caps)


def _memory(problem: Problem, best: Best) -> Unplannable:
    """How much memory would do: on all devices alike, or on home alone."""
    load = problem.workload
    held = sum(device.memory_bytes for device in problem.devices) / GIB
    every = _factor(problem, best, None)
    parts = [f"{every:.3g} times the memory on every device ({held * every:.4g} GiB in all)"]
    home = price.device_of(problem, problem.home)
    if best(with_memory(problem, MORE, home.name)) is not None:
        alone = home.memory_bytes * _factor(problem, best, home.name) / GIB
        parts.append(f"{alone:.4g} GiB on {home.name} instead of {home.memory_bytes / GIB:.4g}")
    need = f"{problem.graph.weight_bytes / GIB:.4g} GiB of weights as stored"
    need += f" and KV for {price.kept_tokens(load)} tokens"
    have = f"devices hold {held:.4g} GiB"
    return _error(problem, f"memory: {need}; {have}", ", or ".join(parts))


def _factor(problem: Problem, best: Best, name: str | None) -> float:
    return _smallest(lambda factor: best(with_memory(problem, factor, name)) is not None)


def _smallest(met: Callable[[float], bool]) -> float:
    """The least factor above 1 that meets it, known to be met by a large one; slightly above."""
    low, high = 1.0, 2.0
    while not met(high) and high < MOST:
        low, high = high, 2 * high
    for _ in range(HALVINGS):
        middle = (low * high) ** 0.5
        if met(middle):
            high = middle
        else:
            low = middle
    return high * ROUNDING
