"""From parts to a `Plan`, as every solver gives it; its comparisons are `choose`'s."""

from __future__ import annotations

from collections.abc import Sequence

from outrider.partitioner import price
from outrider.partitioner.plan import Plan, Problem


def make(problem: Problem, solver: str, parts: Sequence[price.Placed], gap: float | None) -> Plan:
    """The plan of these parts; nothing is compared yet."""
    estimate = price.price(problem, parts)
    used = {part.device for part in parts}
    return Plan(
        model=problem.graph.name,
        solver=solver,
        objective=problem.objective,
        value=price.value(problem, estimate),
        stages=price.stage_plans(problem, parts),
        estimate=estimate,
        verdict="one device" if len(used) == 1 else "split",
        runner_up=None,
        margin=None,
        binding="none",
        gap=gap,
    )


def summary(problem: Problem, parts: Sequence[price.Placed]) -> str:
    """Stages in one line, as `laptop 0-12, cloud 13-33` by units."""
    return ", ".join(f"{part.device} {part.start}-{part.stop - 1}" for part in parts)
