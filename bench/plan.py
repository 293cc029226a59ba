"""`bench plan`: the planner against brute force, an even split, a useless device and the clock.

- `optimal_share`: random cases of up to 12 layers and 5 devices, with all kinds of constraints,
  each for latency, throughput and energy; `dp` must give brute force's value (1e-8 relative),
  keep every constraint, and find nothing exactly where brute force does.
- `dp_ms`: 80 layers of Llama 3 70B's shape on 16 unlike devices at three sites, for latency and
  for throughput: the median over seeds of the best of three calls. `milp_gap` is the largest
  of the gaps that HiGHS is left with on the same fleets for throughput, `milp_s` its longest call.
- `over_even`: planned throughput over that of equal numbers of units on every device, in the
  order of the list, home first; geometric mean over fleets on which the even split fits in
  memory. Those on which it does not are left out and counted (`even_infeasible`).
- `dropped_share`: fleets with one device more that takes a second for any pass, or has room for
  two fifths of the model behind a link of 1.5 s and 20 kB/s: the plan must have no part of it.

Controls: a planner blind to cost, which fills the largest memories first, in the place of `dp`
(`optimal_share`); the even split over the devices in reverse in its place (`over_even`); the even
split, where every device has a part, in the place of the plan (`dropped_share`).
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from bench import harness
from bench.plan_cases import fleet, small, with_useless
from outrider.errors import Unplannable
from outrider.partitioner import price
from outrider.partitioner.plan import Objective, Problem, Workload
from outrider.partitioner.solve import brute, choose, dp, genetic, milp

SAME = 1e-8
OBJECTIVES: tuple[Objective, ...] = ("latency", "throughput", "energy")
MANY = 32
"""Answers at a time where throughput counts."""


@dataclass(frozen=True, slots=True)
class Size:
    """How many cases of each kind."""

    small: int
    fleets: int
    even: int
    useless: int
    rivals: int


FULL = Size(small=350, fleets=9, even=260, useless=200, rivals=3)
QUICK = Size(small=30, fleets=3, even=30, useless=12, rivals=1)


def run(*, quick: bool, seed: int = harness.SEED) -> dict[str, Any]:
    size = QUICK if quick else FULL
    harness.note(f"{size.small * len(OBJECTIVES)} cases against brute force")
    exact = against_brute([small(seed + i) for i in range(size.small)])
    harness.note(f"{size.fleets} fleets of 16 devices")
    times, cells = timed(seed, size)
    harness.note(f"{size.even} fleets against an even split")
    even = against_even(seed, size.even)
    harness.note(f"{size.useless} fleets with a useless device")
    dropped = against_useless(seed, size.useless)
    return {
        "cases": exact["cases"] + size.even + size.useless + 2 * size.fleets,
        "figures": {
            "optimal_share": exact["same"] / exact["cases"],
            "optimal_cases": exact["cases"],
            "optimal_unplannable": exact["none"],
            **times,
            **even["figures"],
            "dropped_share": dropped["left_out"] / dropped["cases"],
        },
        "controls": {
            "optimal_share_of_cost_blind": exact["blind"] / exact["cases"],
            "over_even_of_reversed_even": even["control"],
            "dropped_share_of_even": dropped["control"] / dropped["cases"],
        },
        "cells": cells,
        "losing": exact["losing"],
    }


# --- brute force -------------------------------------------------------------------------------


def against_brute(problems: Sequence[Problem]) -> dict[str, Any]:
    found: dict[str, Any] = {"cases": 0, "same": 0, "none": 0, "blind": 0, "losing": []}
    for number, problem in enumerate(problems):
        for objective in OBJECTIVES:
            asked = replace(problem, objective=objective)
            best = brute.best(asked)
            mine = dp.best(asked)
            found["cases"] += 1
            found["none"] += best is None
            same = equal(asked, best, None if mine is None else mine.parts)
            found["same"] += same
            found["blind"] += equal(asked, best, cost_blind(asked))
            if not same:
                found["losing"].append({"case": number, "objective": objective})
    return found


def equal(
    problem: Problem, best: Sequence[price.Part] | None, other: Sequence[price.Part] | None
) -> bool:
    """Whether a planner's parts keep all constraints and are worth what brute force's are."""
    if best is None or other is None:
        return best is other
    try:
        if price.violations(problem, other):
            return False
    except Unplannable:
        return False
    return valued(problem, other) <= valued(problem, best) * (1 + SAME)


def valued(problem: Problem, parts: Sequence[price.Placed]) -> float:
    return price.value(problem, price.price(problem, parts))


def cost_blind(problem: Problem) -> tuple[price.Part, ...] | None:
    """The control: the largest memories first, as full as they go, whatever that costs."""
    ready, found, start = price.prepared(problem), [], 0
    units = len(problem.graph.units)
    for device in sorted(ready.devices, key=lambda device: -device.memory_bytes):
        rate, stop = device.rates[0], start
        while stop < units:
            part = price.Part(device.name, start, stop + 1, rate.engine, rate.dtype)
            if price.memory_bytes(ready, part) > device.memory_bytes:
                break
            stop += 1
        if stop > start:
            found.append(price.Part(device.name, start, stop, rate.engine, rate.dtype))
            start = stop
    return tuple(found) if start == units else None


# --- the clock ---------------------------------------------------------------------------------


def timed(seed: int, size: Size) -> tuple[dict[str, float], list[dict[str, Any]]]:
    cells = []
    for objective in OBJECTIVES[:2]:
        for number in range(size.fleets):
            load = Workload(sequences=MANY if objective == "throughput" else 1)
            room = (1.5, 2.0, 3.0)[number % 3]
            problem = fleet(seed + number, 80, 16, room, objective, load)
            rivals = number < size.rivals
            cells.append(_cell(problem, seed + number, room, rivals="yes" if rivals else "no"))
    first = [cell for cell in cells if cell["objective"] == "throughput" and "milp_gap" in cell]
    figures = {
        "dp_ms": float(np.median([cell["dp_ms"] for cell in cells])),
        "dp_ms_worst": max(cell["dp_ms"] for cell in cells),
        "dp_proven_share": sum(cell["dp_gap"] == 0 for cell in cells) / len(cells),
        "milp_gap": max(cell["milp_gap"] for cell in first),
        "milp_s": max(cell["milp_s"] for cell in first),
        "milp_over_dp": _geomean([cell["milp_over_dp"] for cell in first]),
        "genetic_over_dp": _geomean([cell["genetic_over_dp"] for cell in first]),
    }
    for objective in OBJECTIVES[:2]:
        own = [cell["dp_ms"] for cell in cells if cell["objective"] == objective]
        figures[f"dp_ms_{objective}"] = float(np.median(own))
    return figures, cells


def _cell(problem: Problem, seed: int, room: float, rivals: str) -> dict[str, Any]:
    found = dp.best(problem)
    assert found is not None
    times = []
    for _ in range(3):
        began = time.perf_counter()
        dp.best(problem)
        times.append(1e3 * (time.perf_counter() - began))
    value = valued(problem, found.parts)
    cell: dict[str, Any] = {
        "objective": problem.objective,
        "seed": seed,
        "room": room,
        "dp_ms": min(times),
        "dp_gap": found.gap,
        "stages": len(found.parts),
    }
    if rivals == "yes":
        cell |= _rivals(problem, seed, value)
    return cell


def _rivals(problem: Problem, seed: int, value: float) -> dict[str, Any]:
    began = time.perf_counter()
    linear = milp.solve(problem)
    milp_s = time.perf_counter() - began
    bred = genetic.best(problem, seed)
    return {
        "milp_s": milp_s,
        "milp_gap": linear.gap,
        "milp_over_dp": linear.value / value,
        "genetic_over_dp": valued(problem, bred) / value if bred else math.inf,
    }


def _geomean(values: Sequence[float]) -> float:
    return float(np.exp(np.mean(np.log(values))))


# --- the even split ----------------------------------------------------------------------------


def even(problem: Problem) -> tuple[price.Part, ...]:
    """Equal numbers of units on every device, in the order of the list."""
    edges = np.linspace(0, len(problem.graph.units), len(problem.devices) + 1).round().astype(int)
    return tuple(
        price.Part(device.name, int(a), int(b), device.rates[0].engine, device.rates[0].dtype)
        for device, a, b in zip(problem.devices, edges, edges[1:], strict=False)
        if b > a
    )


def hetero(seed: int) -> Problem:
    """A fleet of 3 to 8 devices with 16 to 80 layers, several answers at a time."""
    random = np.random.default_rng(seed)
    layers, count = int(random.integers(16, 81)), int(random.integers(3, 9))
    load = Workload(sequences=MANY)
    room = float(random.uniform(2, 8))
    return fleet(seed, layers, count, room, "throughput", load)


def against_even(seed: int, count: int) -> dict[str, Any]:
    ratios, shuffled, infeasible = [], [], 0
    for number in range(count):
        problem = hetero(seed + number)
        plain = even(problem)
        if price.violations(problem, plain):
            infeasible += 1
            continue
        planned = dp.best(problem)
        assert planned is not None
        ratios.append(valued(problem, plain) / valued(problem, planned.parts))
        other = even(replace(problem, devices=tuple(reversed(problem.devices))))
        shuffled.append(valued(problem, plain) / valued(problem, other))
    low, high = harness.mean_interval(np.log(ratios).tolist())
    return {
        "figures": {
            "over_even": _geomean(ratios),
            "over_even_low": math.exp(low),
            "over_even_high": math.exp(high),
            "even_cases": len(ratios),
            "even_infeasible": infeasible,
        },
        "control": _geomean(shuffled),
    }


def against_useless(seed: int, count: int) -> dict[str, int]:
    found = {"cases": 0, "left_out": 0, "control": 0}
    for number in range(count):
        problem, name = with_useless(seed + number)
        plan = choose.solve(problem)
        found["cases"] += 1
        found["left_out"] += all(stage.device != name for stage in plan.stages)
        found["control"] += all(part.device != name for part in even(problem))
    return found


if __name__ == "__main__":
    sys.exit(harness.main("plan", run))
