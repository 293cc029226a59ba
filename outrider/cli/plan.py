"""`outrider plan`: where the layers of a model would run, why, and what if."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from outrider.cli import console
from outrider.cli.servers import missing
from outrider.errors import ConfigError

if TYPE_CHECKING:
    from outrider.partitioner.plan import Constraints, Plan, Problem, Workload


@dataclass(frozen=True)
class LoadFlags:
    """What is asked of the model."""

    prompt_tokens: int = 512
    """Of a request."""
    new_tokens: int = 128
    """Of an answer."""
    sequences: int = 1
    """Answers at a time; each keeps KV."""
    batch: int = 1
    """Answers whose rows share a decode pass."""
    rows: float | None = None
    """Rows of an answer's decode pass: 1 and its hints; by default as many as are committed."""
    tokens_per_pass: float = 1.0
    """Tokens that a pass is expected to commit: measured acceptance."""
    activation_bytes: float = 2.0
    """Of a number of a hidden state on the wire."""


@dataclass(frozen=True)
class LimitFlags:
    """What a plan must keep to."""

    max_tpot: str = ""
    """Time per token, as 50ms."""
    max_ttft: str = ""
    """Time to the first token, as 2s."""
    max_joules: float | None = None
    """Per token."""
    max_devices: int | None = None
    """That have a part."""
    stay: str = ""
    """Units that must not leave home: ends (embedding and head), or numbers as 0,1,33."""
    exclude: Sequence[str] = ()
    """Devices that must have no part."""
    include: Sequence[str] = ()
    """Devices that must have a part."""
    loss: str = ""
    """Quality that a unit loses at a precision, as q8_0=0.1,q4_k=1; see max-loss."""
    max_loss: float | None = None
    """Of the sum over units."""


LOAD, LIMITS = LoadFlags(), LimitFlags()


def plan(
    model: str,
    /,
    *,
    devices: Sequence[str] = (),
    home: str | None = None,
    objective: Literal["latency", "throughput", "energy", "cost"] = "latency",
    solver: Literal["auto", "dp", "milp", "genetic", "brute", "phases"] = "auto",
    precision: str | None = None,
    what_if: str = "",
    load: Annotated[LoadFlags, Parameter(name="*")] = LOAD,
    limits: Annotated[LimitFlags, Parameter(name="*")] = LIMITS,
    json: bool = False,
) -> int:
    """Plan where the layers of a model run, with the reasons; nothing is loaded or moved.

    Args:
        model: A folder, a file, bundled:target, or shape:NAME of a well-known model.
        devices: A .json file of devices and links, names of the catalogue, or local, this
            machine's saved profile; by commas or repeated. By default local.
        home: Where prompts are and tokens are wanted; by default the file's, or the first.
        objective: latency (of a token), throughput (of all sequences), energy or cost.
        solver: auto, dp (exact), milp (HiGHS), genetic, brute, or phases (prefill elsewhere).
        precision: Of all stages, as q8_0; any lets it vary. By default the weights as stored.
        what_if: Plan again with changes, as rtt=80ms,bw=20M,power=10W or laptop.memory=8G.
        json: Print one JSON object.
    """
    try:
        from outrider.cli import plan_page
        from outrider.models import graph as graphs
        from outrider.partitioner import scenario
        from outrider.partitioner.check import check_device
        from outrider.partitioner.differences import differences
        from outrider.partitioner.plan import Problem
    except ModuleNotFoundError as error:
        raise missing("plan,edge", error) from None
    asked = scenario.changes(what_if)
    graph = graphs.read(model)
    given = scenario.fleet(devices)
    for device in given.devices:
        check_device(device)
    found = scenario.usable(given.devices, graph, precision)
    limit = _constraints(limits, precision, len(graph.units))
    problem = Problem(
        graph,
        found,
        scenario.linked(given),
        home or given.home or found[0].name,
        _workload(load),
        objective,
        limit,
    )
    first = _solve(problem, solver)
    if not asked:
        console.as_json({"plan": first}) if json else console.out(plan_page.page(problem, first))
        return 0
    other = scenario.changed(problem, asked)
    second = _solve(other, solver)
    told = differences(first, second)
    if json:
        console.as_json(
            {"plan": first, "what_if": {"asked": what_if, "plan": second, "changes": told}}
        )
    else:
        console.out(plan_page.page(other, second))
        console.out(plan_page.heading(f"what {what_if} changes") + "\n" + "\n".join(told))
    return 0


def _solve(problem: Problem, solver: str) -> Plan:
    from outrider.partitioner.solve import choose, phases

    return phases.solve(problem) if solver == "phases" else choose.solve(problem, solver)


def _workload(load: LoadFlags) -> Workload:
    from outrider.partitioner.plan import Workload

    return Workload(
        prompt_tokens=load.prompt_tokens,
        new_tokens=load.new_tokens,
        sequences=load.sequences,
        batch=load.batch,
        rows=max(1.0, load.tokens_per_pass) if load.rows is None else load.rows,
        tokens_per_pass=load.tokens_per_pass,
        activation_bytes=load.activation_bytes,
    )


def _constraints(given: LimitFlags, precision: str | None, units: int) -> Constraints:
    from outrider.cli.profile import seconds
    from outrider.partitioner.plan import Constraints

    found = Constraints(
        max_tpot_s=seconds(given.max_tpot, "--max-tpot"),
        max_ttft_s=seconds(given.max_ttft, "--max-ttft"),
        max_joules_per_token=given.max_joules,
        stay=_stay(given.stay, units),
        exclude=_split(given.exclude),
        include=_split(given.include),
        max_devices=given.max_devices,
        dtype_loss=_losses(given.loss),
        max_loss=given.max_loss,
    )
    return found if precision in (None, "any") else replace(found, dtype=precision)


def _split(names: Sequence[str]) -> tuple[str, ...]:
    return tuple(part for name in names for part in name.split(",") if part)


def _stay(text: str, units: int) -> tuple[int, ...]:
    if text == "ends":
        return (0, units - 1)
    try:
        return tuple(int(part) for part in text.split(",") if part)
    except ValueError:
        raise _no_flag("--stay", text, "ends, or numbers of units as 0,1,33") from None


def _losses(text: str) -> tuple[tuple[str, float], ...]:
    try:
        pairs = [part.split("=") for part in text.split(",") if part]
        return tuple((name, float(value)) for name, value in pairs)
    except ValueError:
        raise _no_flag("--loss", text, "as q8_0=0.1,q4_k=1") from None


def _no_flag(flag: str, text: Any, todo: str) -> ConfigError:
    return ConfigError(f"{flag} does not take {text!r}", effect="nothing was planned", todo=todo)
