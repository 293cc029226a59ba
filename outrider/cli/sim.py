"""`outrider sim`: a fleet of devices and clouds in virtual time, policy beside policy."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from outrider.cli import console
from outrider.cli.servers import missing
from outrider.errors import ConfigError

if TYPE_CHECKING:
    from outrider.partitioner.sim.oracle import Study
    from outrider.partitioner.sim.policies import Policy
    from outrider.partitioner.sim.result import Outcome, Summary
    from outrider.partitioner.sim.setup import World
    from outrider.partitioner.sim.trace import Trace

POLICIES = ("auto", "cloud", "draft")
EXACT_TOKENS = 60_000
"""Traces with fewer tokens are simulated exactly where nothing else is asked for."""
ORACLE_CASES = 24
BUSY = 0.6
"""Share of the clouds' time that a fleet of unsaid size of cloud is given."""
Mode = Literal["auto", "exact", "fleet"]


def sim(
    *,
    devices: int = 200,
    hours: float = 0.5,
    trace: str = "diurnal",
    policy: tuple[str, ...] = POLICIES,
    cloud_gpus: int | None = None,
    per_hour: float = 4.0,
    target: str = "shape:qwen2.5-32b",
    draft: str = "shape:qwen2.5-0.5b",
    mode: Mode = "auto",
    ttft_ms: float = 1000.0,
    tpot_ms: float = 60.0,
    seed: int = 20,
    save: Path | None = None,
    plot: Path | None = None,
    oracle: bool = False,
    json: bool = False,
) -> int:
    """What a fleet would see: SLO, tokens, passes, joules, dollars, policy beside policy.

    Args:
        devices: How many, in a trace that is made.
        hours: How long it lasts.
        trace: steady, bursty, diurnal, battery, or a file of JSON lines.
        policy: auto, mains, cloud, draft, edge; with /free, /auto or /wait:MS for the clouds'
            trigger. May be given several times.
        cloud_gpus: Accelerators in all; a target that needs several takes them together.
            Without it as many as the trace needs.
        per_hour: Answers that a device asks for in an hour.
        target: The clouds' model: a folder, a file, or shape:NAME.
        draft: The devices' model.
        mode: exact (every message is an event), fleet (one event a pass), or auto by size.
        ttft_ms: What a first token may take.
        tpot_ms: What each further token may take.
        seed: Of trace and run.
        save: Keep the trace as JSON lines.
        plot: Draw an SVG (needs the extra bench).
        oracle: Compare the cloud's schedule with the best there is, on small cases.
        json: Print one JSON object.
    """
    try:
        import simpy  # noqa: F401

        from outrider.cli import committer
        from outrider.partitioner.sim import oracle as oracles
        from outrider.partitioner.sim import policies, result, scenario
    except ModuleNotFoundError as error:
        raise missing("edge,plan", error) from None
    chosen = [policies.parse(text) for text in policy]
    if oracle:
        cases = oracles.cases(ORACLE_CASES, scenario.world(target, draft, slots=4).cloud, seed)
        return _show_oracle(oracles.study(cases, committer.make), json=json)
    asked = _trace(trace, devices, hours, seed, per_hour)
    if save is not None:
        _save(asked, save)
    if cloud_gpus is not None and cloud_gpus < 1:
        raise ConfigError(
            "a fleet without a cloud is none", todo="--cloud-gpus 1, or --policy edge"
        )
    world = scenario.world(target, draft, gpus=cloud_gpus)
    if cloud_gpus is None:
        world = replace(world, clouds=_enough(asked, world))
    slo = result.Slo(ttft_ms, tpot_ms)
    outcomes = []
    for one in chosen:
        console.note(f"{one.name}: {len(asked.asks)} answers, {asked.tokens} tokens")
        outcomes.append(_run(asked, world, one, mode, seed))
    rows = [result.summarise(outcome, slo) for outcome in outcomes]
    if plot is not None:
        from outrider.partitioner.sim.plot import draw

        draw(outcomes, rows, slo, plot)
        console.note(f"drawn: {plot}")
    if json:
        console.as_json(_object(asked, world, rows, slo))
    else:
        console.out(_page(asked, world, rows, slo))
    return 0


# --- what is run -------------------------------------------------------------------------------


def _trace(name: str, devices: int, hours: float, seed: int, per_hour: float) -> Trace:
    from outrider.partitioner.sim import trace as traces

    names: dict[str, traces.Name] = {one: one for one in traces.NAMES}
    known = names.get(name)
    if known is None:
        return traces.load(Path(name))
    return traces.generate(known, devices=devices, hours=hours, seed=seed, per_hour=per_hour)


def _save(asked: Trace, path: Path) -> None:
    from outrider.partitioner.sim import trace as traces

    traces.save(asked, path)
    console.note(f"trace kept: {path}")


def _enough(asked: Trace, world: World) -> int:
    """Clouds that a trace keeps busy for about `BUSY` of the time without any drafts."""
    from outrider.partitioner.signals import at

    half = world.cloud.slots / 2
    per_s = half / at(world.cloud.step, half, 0.0) * 1e3
    return max(1, math.ceil(asked.tokens / max(1.0, asked.seconds) / per_s / BUSY))


def _run(asked: Trace, world: World, policy: Policy, mode: Mode, seed: int) -> Outcome:
    from outrider.cli import committer
    from outrider.partitioner.sim import exact, fleet

    small = asked.tokens <= EXACT_TOKENS
    if mode == "exact" or (mode == "auto" and small):
        return exact.simulate(asked, world, policy, committer.make, seed=seed)
    return fleet.simulate(asked, world, policy, seed=seed)


# --- what is shown -----------------------------------------------------------------------------


def _object(asked: Trace, world: World, rows: list[Summary], slo: object) -> dict[str, object]:
    return {
        "trace": asked.name,
        "devices": len(asked.devices),
        "seconds": asked.seconds,
        "answers": len(asked.asks),
        "clouds": world.clouds,
        "slo": slo,
        "estimated": True,
        "policies": rows,
    }


def _page(asked: Trace, world: World, rows: list[Summary], slo: object) -> str:
    from outrider.partitioner.sim.result import Slo

    assert isinstance(slo, Slo)
    single = next(ms for rows_, ms in world.cloud.step)
    head = (
        f"{asked.name}: {len(asked.devices)} devices, {asked.seconds / 3600:g} h,"
        f" {len(asked.asks)} answers; {world.clouds} clouds, {single:.1f} ms a pass of one row"
        f" (estimated)"
    )
    table = [("", *(row.policy for row in rows))]
    table += [(name, *(show(row) for row in rows)) for name, show in _LINES]
    kept = f"SLO: first token within {slo.ttft_ms:g} ms, then {slo.tpot_ms:g} ms a token"
    return "\n".join([head, console.table(table), kept])


_LINES = (
    ("SLO kept", lambda row: f"{row.slo_attainment:.1%}"),
    ("unserved", lambda row: str(row.unserved)),
    ("first token p50, p95", lambda row: f"{row.ttft_p50_ms:.0f}, {row.ttft_p95_ms:.0f} ms"),
    ("a token p50, p95", lambda row: f"{row.tpot_p50_ms:.1f}, {row.tpot_p95_ms:.1f} ms"),
    ("an answer p50, p95", lambda row: f"{row.latency_p50_s:.2f}, {row.latency_p95_s:.2f} s"),
    ("tokens a second", lambda row: f"{row.tokens_per_s:.1f}"),
    ("passes a token", lambda row: f"{row.passes_per_token:.3f}"),
    ("hints that held", lambda row: f"{row.hint_yield:.0%}"),
    ("clouds busy", lambda row: f"{row.cloud_busy:.0%}"),
    ("joules a token", lambda row: f"{row.joules_per_token:.2f}"),
    ("  device", lambda row: f"{row.device_j / max(1, row.tokens):.3f}"),
    ("  radio", lambda row: f"{row.radio_j / max(1, row.tokens):.3f}"),
    ("  cloud", lambda row: f"{row.cloud_j / max(1, row.tokens):.3f}"),
    ("dollars a million tokens", lambda row: f"{row.dollars_per_mtoken:.2f}"),
    ("placements", lambda row: ", ".join(f"{k} {v:.0%}" for k, v in row.shares.items())),
    ("mode", lambda row: row.mode),
)


def _show_oracle(found: list[Study], *, json: bool) -> int:
    if json:
        console.as_json({"oracle": found})
        return 0
    rows = [("SCHEDULE", "GOAL", "CASES", "OVER OPTIMUM", "WORST", "OPTIMAL")]
    rows += [
        (
            s.policy,
            s.goal,
            str(s.cases),
            f"{s.mean:.3f}",
            f"{s.worst:.3f}",
            f"{s.optimal_share:.0%}",
        )
        for s in found
    ]
    console.out(console.table(rows))
    return 0
