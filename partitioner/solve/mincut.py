"""The host/device cut with the least traffic, over any graph of operators.

ZeRO-Offload (arXiv 2101.06840) cuts its data-flow graph so that the fewest bytes cross between
accelerator and host, by hand; here a minimum s-t cut does it, with costs of computing on either
side if they are given (as in Neurosurgeon and DADS). A budget of device memory enters as a
price per byte, searched until the budget is kept; the bound of that search is returned, so
that it can be seen how far from the best the answer may be.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from outrider.errors import ConfigError, InvalidProfile, Unplannable

Side = Literal["device", "host"]
HALVINGS = 60
FINE = 1 << 50
"""What all costs together count in whole numbers."""
_DEVICE, _HOST = "\0device", "\0host"


@dataclass(frozen=True, slots=True)
class Operator:
    name: str
    on_device: float = 0.0
    """What it costs there, in the unit of the traffic: bytes, or seconds for all."""
    on_host: float = 0.0
    memory_bytes: float = 0.0
    """Taken on the device."""
    pinned: Side | None = None


@dataclass(frozen=True, slots=True)
class Flow:
    """What goes between two operators, paid when they are on different sides."""

    a: str
    b: str
    cost: float


@dataclass(frozen=True, slots=True)
class Cut:
    device: frozenset[str]
    host: frozenset[str]
    cost: float
    """Traffic across, and computing on both sides."""
    traffic: float
    memory_bytes: float
    bound: float
    """No cut within the budget costs less; equal to `cost` where this one is proven best."""


def solve(
    operators: Sequence[Operator], flows: Sequence[Flow], budget_bytes: float = math.inf
) -> Cut:
    """The cheapest cut. Raises InvalidProfile for graphs that make no sense, Unplannable where
    what is pinned to the device exceeds the budget, ConfigError without networkx."""
    _check(operators, flows)
    network = _networkx()
    free = _cut(network, operators, flows, 0.0)
    if free.memory_bytes <= budget_bytes:
        return free
    pinned = sum(op.memory_bytes for op in operators if op.pinned == "device")
    if pinned > budget_bytes:
        raise Unplannable(
            f"operators pinned to the device take {pinned:.4g} bytes",
            constraint=f"a device budget of {budget_bytes:.4g} bytes",
            nearest=f"{pinned:.4g} bytes",
        )
    return _within(network, operators, flows, budget_bytes, free.cost)


def _within(
    network: Any, operators: Sequence[Operator], flows: Sequence[Flow], budget: float, bound: float
) -> Cut:
    """The cheapest cut met that keeps the budget while a price per byte is searched."""
    low, high = 0.0, _dearest(operators, flows)
    best = _cut(network, operators, flows, high)
    for _ in range(HALVINGS):
        price = (low + high) / 2
        found = _cut(network, operators, flows, price)
        bound = max(bound, found.cost + price * (found.memory_bytes - budget))
        if found.memory_bytes <= budget:
            high = price
            best = min(best, found, key=lambda cut: cut.cost)
        else:
            low = price
        if high - low <= 1e-12 * high:
            break
    return Cut(
        best.device, best.host, best.cost, best.traffic, best.memory_bytes, min(bound, best.cost)
    )


def _dearest(operators: Sequence[Operator], flows: Sequence[Flow]) -> float:
    """A price at which no operator stays on the device that need not."""
    total = sum(flow.cost for flow in flows) + sum(op.on_device + op.on_host for op in operators)
    least = min((op.memory_bytes for op in operators if op.memory_bytes > 0), default=1.0)
    return 2 * (total + 1) / least


def _cut(network: Any, operators: Sequence[Operator], flows: Sequence[Flow], price: float) -> Cut:
    """The minimum cut at a price per byte of device memory.

    Capacities are whole numbers: sums of floats can not be compared for equality, which is how
    a saturated edge is known.
    """
    there = {op.name: op.on_device + price * op.memory_bytes for op in operators}
    total = sum(there.values()) + sum(op.on_host for op in operators)
    scale = FINE / ((total + sum(flow.cost for flow in flows)) or 1.0)
    graph = network.DiGraph()
    graph.add_nodes_from((_DEVICE, _HOST))
    for op in operators:
        _join(graph, _DEVICE, op.name, op.on_host * scale, pinned=op.pinned == "device")
        _join(graph, op.name, _HOST, there[op.name] * scale, pinned=op.pinned == "host")
    for flow in flows:
        for a, b in ((flow.a, flow.b), (flow.b, flow.a)):
            already = graph.edges[a, b]["capacity"] if graph.has_edge(a, b) else 0
            graph.add_edge(a, b, capacity=already + round(flow.cost * scale))
    _, (kept, _) = network.minimum_cut(graph, _DEVICE, _HOST)
    return _valued(operators, flows, frozenset(kept) - {_DEVICE})


def _join(graph: Any, a: str, b: str, cost: float, *, pinned: bool) -> None:
    """An edge without a capacity can not be cut."""
    if pinned:
        graph.add_edge(a, b)
    else:
        graph.add_edge(a, b, capacity=round(cost))


def _valued(operators: Sequence[Operator], flows: Sequence[Flow], device: frozenset[str]) -> Cut:
    traffic = sum(flow.cost for flow in flows if (flow.a in device) != (flow.b in device))
    computing = sum(op.on_device if op.name in device else op.on_host for op in operators)
    held = sum(op.memory_bytes for op in operators if op.name in device)
    host = frozenset(op.name for op in operators) - device
    cost = traffic + computing
    return Cut(device, host, cost, traffic, held, cost)


def _check(operators: Sequence[Operator], flows: Sequence[Flow]) -> None:
    names = [op.name for op in operators]
    if len(set(names)) < len(names):
        raise _wrong("two operators have one name", "names must differ")
    known = set(names)
    for flow in flows:
        if not {flow.a, flow.b} <= known or flow.a == flow.b:
            raise _wrong(f"a flow goes from {flow.a!r} to {flow.b!r}", "it must join two operators")
    numbers = [flow.cost for flow in flows]
    for op in operators:
        numbers += [op.on_device, op.on_host, op.memory_bytes]
    if not all(math.isfinite(number) and number >= 0 for number in numbers):
        raise _wrong("a cost is no finite number from 0 on", "costs and sizes are measured amounts")


def _wrong(what: str, why: str) -> InvalidProfile:
    return InvalidProfile(what, why=why, effect="nothing was cut", todo="correct the graph")


def _networkx() -> Any:
    try:
        import networkx
    except ModuleNotFoundError as error:
        raise ConfigError(
            "the minimum cut needs networkx",
            why=f"{error.name} is not installed",
            effect="nothing was cut",
            todo='pip install "outrider[plan]"',
        ) from None
    return networkx
