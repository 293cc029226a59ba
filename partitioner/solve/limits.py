"""A problem with one constraint lifted: what binds a plan, and what can not be met."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from outrider.partitioner.plan import Problem

PLENTY = 1 << 60
"""Bytes that no model needs."""

LIFTED: dict[str, Any] = {
    "exclude": (),
    "include": (),
    "max_devices": None,
    "dtype": None,
    "max_loss": None,
    "stay": (),
    "max_watts": (),
    "max_ttft_s": None,
    "max_tpot_s": None,
    "max_joules_per_token": None,
}
"""Constraint to the value that lifts it."""


def with_memory(problem: Problem, factor: float, name: str | None = None) -> Problem:
    """All devices, or one, with so many times their memory."""
    devices = tuple(
        replace(device, memory_bytes=int(min(PLENTY, device.memory_bytes * factor)))
        if name in (None, device.name)
        else device
        for device in problem.devices
    )
    return replace(problem, devices=devices)


def present(problem: Problem) -> tuple[str, ...]:
    """The constraints that the problem sets."""
    limits = problem.constraints
    return tuple(name for name, empty in LIFTED.items() if getattr(limits, name) != empty)


def bounded(problem: Problem, name: str, value: Any) -> Problem:
    """With another value of one constraint."""
    return replace(problem, constraints=replace(problem.constraints, **{name: value}))


def lifted(problem: Problem, *names: str) -> Problem:
    """Without some constraints."""
    cleared = {name: LIFTED[name] for name in names}
    return replace(problem, constraints=replace(problem.constraints, **cleared))
