"""A plan for people: the strip of units, its stages, what it does, and why."""

from __future__ import annotations

from collections.abc import Sequence

from outrider.cli import console
from outrider.partitioner.plan import Estimate, Plan, Problem, StagePlan
from outrider.partitioner.solve.choose import UNITS

WIDTH = 72
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
MIB = 1 << 20


def heading(text: str) -> str:
    return "\n" + console.bold(text)


def page(problem: Problem, plan: Plan) -> str:
    """All of it; the last lines are the reasons."""
    lines = [
        f"{plan.model}: {plan.verdict}, {UNITS[plan.objective](plan.value)} ({plan.objective},"
        f" solver {plan.solver})",
        "",
        *strip(plan.stages, len(problem.graph.units)),
        "",
        console.table(_stages(plan.stages)),
    ]
    if plan.prefill:
        lines += [heading("prefill"), console.table(_stages(plan.prefill))]
    lines += ["", *_estimate(plan.estimate), *_links(problem, plan)]
    if plan.runner_up is not None:
        lines.append(f"runner-up   {plan.runner_up.summary}{_margin(plan)}")
    lines.append(f"binding     {plan.binding}")
    lines += [f"left out    {name}: {why}" for name, why in plan.dropped]
    return "\n".join([*lines, heading("why"), *plan.reasons])


def _margin(plan: Plan) -> str:
    return "" if plan.margin is None else f", {100 * plan.margin:.3g} % behind"


def strip(stages: Sequence[StagePlan], units: int) -> list[str]:
    """Units from left to right, a letter for each device."""
    names = list(dict.fromkeys(stage.device for stage in stages))
    letter = {name: LETTERS[place % len(LETTERS)] for place, name in enumerate(names)}
    owner = [letter[stage.device] for stage in stages for _ in range(stage.start, stage.stop)]
    width = min(WIDTH, units)
    row = "".join(owner[place * units // width] for place in range(width))
    ends = f"embedding{'head':>{max(5, width - 9)}}" if width > 13 else ""
    key = "  ".join(f"{letter[name]} {name}" for name in names)
    return [line for line in (ends, row, key) if line]


def _stages(stages: Sequence[StagePlan]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = [
        ("DEVICE", "UNITS", "ENGINE", "PRECISION", "MS A PASS", "MS A PROMPT", "MiB")
    ]
    return rows + [
        (
            stage.device,
            f"{stage.start}-{stage.stop - 1}",
            stage.engine,
            stage.dtype,
            f"{1e3 * stage.decode_s:.2f}",
            f"{1e3 * stage.prefill_s:.1f}",
            f"{stage.memory_bytes / MIB:.0f}",
        )
        for stage in stages
    ]


def _estimate(found: Estimate) -> list[str]:
    lines = [
        f"first token {_ms(found.ttft_s)}, then {_ms(found.tpot_s)} a token;"
        f" {found.tokens_per_s:.4g} tokens/s in all",
        f"per pass    {_ms(found.hop_s)} on links",
        f"per token   {found.joules_per_token:.4g} J, ${found.dollars_per_mtoken:.4g} a million",
    ]
    if found.kv_s:
        lines.append(f"KV travels  {_ms(found.kv_s)} per answer, within the first token")
    return lines


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.4g} ms"


def _links(problem: Problem, plan: Plan) -> list[str]:
    """Links that were not measured, where the plan uses any."""
    used = {stage.device for stage in plan.stages} | {problem.home}
    assumed = [
        f"{link.a} to {link.b} {1e3 * link.rtt_s:g} ms"
        for link in problem.links
        if link.source == "estimated" and {link.a, link.b} <= used
    ]
    return [f"assumed     {', '.join(assumed)} (outrider profile --link)"] if assumed else []
