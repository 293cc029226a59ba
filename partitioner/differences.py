"""What another question changes in a plan, told in sentences."""

from __future__ import annotations

from collections.abc import Sequence

from outrider.partitioner.plan import Plan, StagePlan
from outrider.partitioner.solve.choose import UNITS


def differences(old: Plan, new: Plan) -> list[str]:
    """What another question changes, in sentences."""
    show = UNITS[old.objective]
    lines = [f"{show(old.value)} become {show(new.value)}."]
    if [_place(stage) for stage in old.stages] == [_place(stage) for stage in new.stages]:
        return [*lines, "The plan stays the same."]
    if old.verdict != new.verdict:
        lines.append(f"The verdict was {old.verdict} and is {new.verdict}.")
    were, are = _owners(old), _owners(new)
    moved: dict[tuple[str, str], list[int]] = {}
    for unit, (a, b) in enumerate(zip(were, are, strict=True)):
        if a != b:
            moved.setdefault((a, b), []).append(unit)
    lines += [f"Units {_ranges(units)} move from {a} to {b}." for (a, b), units in moved.items()]
    if not moved:
        lines.append("Units stay on their devices; engine or precision change.")
    if old.binding != new.binding:
        lines.append(f"Binding was {old.binding} and is {new.binding}.")
    return lines


def _place(stage: StagePlan) -> tuple[str, int, int, str, str]:
    return stage.device, stage.start, stage.stop, stage.engine, stage.dtype


def _owners(plan: Plan) -> list[str]:
    return [stage.device for stage in plan.stages for _ in range(stage.start, stage.stop)]


def _ranges(units: Sequence[int]) -> str:
    """`0-3, 7`."""
    parts: list[list[int]] = []
    for unit in units:
        if parts and unit == parts[-1][1] + 1:
            parts[-1][1] = unit
        else:
            parts.append([unit, unit])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in parts)
