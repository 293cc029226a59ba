"""A device's profile: each engine and precision measured in a process of its own, and fitted.

The models are synthetic (`synthetic`), the engines real. What was measured to check the fit is
never used to make it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from outrider.engines import registry
from outrider.errors import ConfigError, EngineMissing, InvalidProfile, OutriderError
from outrider.models import graph as graphs
from outrider.models.config import parse_config
from outrider.partitioner.device import DeviceKind, DeviceProfile, Rate
from outrider.partitioner.graph import ModelGraph
from outrider.partitioner.profile import cells as grids
from outrider.partitioner.profile import fit, machine, synthetic
from outrider.partitioner.profile.cells import Cell
from outrider.partitioner.profile.child import Child
from outrider.partitioner.profile.fit import Observation, Precision
from outrider.partitioner.profile.synthetic import Form
from outrider.partitioner.profile.worker import Job

PRECISIONS: dict[str, tuple[str, ...]] = {
    "torch": ("float32", "bfloat16"),
    "llama": ("q8_0", "f16"),
    "onnx": ("int8", "float32"),
}
"""Engine to its precisions, the usual one first."""

WATTS: dict[DeviceKind, tuple[float, float]] = {
    "phone": (0.8, 4.0),
    "laptop": (6.0, 22.0),
    "jetson": (5.0, 12.0),
    "desktop": (40.0, 65.0),
    "server": (90.0, 150.0),
    "cloud": (90.0, 150.0),
}
"""Idle, and beyond it while one engine computes: estimates of the class, until power readers
say better. Orders of magnitude as in docs/profiles.md."""

PROBE_FORM = Form(640, 1792, 3, 10, 5)
PROBE = (Cell(1, 192), Cell(48, 192))
"""The reference passes. Each plan measures them, and never fits to them."""
PROBE_S = 0.5


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is measured."""

    fitted: tuple[Form, ...]
    held_out: tuple[Form, ...]
    cells: tuple[Cell, ...]
    checked: tuple[Cell, ...]
    budget_s: float
    """Of one model on one engine, after loading."""
    precisions: Literal["usual", "all"] = "all"
    """Of an engine that is not asked for with one: the first of `PRECISIONS`, or each."""


FULL = Plan(
    fitted=(Form(256, 704, 10, 4, 2), Form(512, 1408, 3, 8, 4), Form(1024, 2816, 4, 16, 8)),
    held_out=(PROBE_FORM, Form(768, 2048, 5, 12, 4)),
    cells=grids.FULL,
    checked=grids.HELD_OUT,
    budget_s=4.0,
)
QUICK = Plan(
    fitted=(Form(256, 704, 6, 4, 2), Form(512, 1408, 3, 8, 4), Form(1024, 2816, 2, 16, 8)),
    held_out=(PROBE_FORM,),
    cells=grids.QUICK,
    checked=grids.grid((1, 3, 12, 48), (192,), 4),
    budget_s=0.4,
    precisions="usual",
)


@dataclass(frozen=True, slots=True)
class Measured:
    """One engine and precision."""

    rate: Rate
    fitted: tuple[Observation, ...]
    held_out: tuple[Observation, ...]
    device: str = "cpu"


@dataclass(frozen=True, slots=True)
class Found:
    """A profile, and what it was made of. `missing`: engine and precision to why not."""

    device: DeviceProfile
    measured: tuple[Measured, ...]
    missing: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Wanted:
    """What to profile."""

    engines: tuple[str, ...] = ()
    """`torch`, or with a precision `torch:float32`; empty takes what is installed and pays here."""
    numerics: str = "exact"
    device: str = "cpu"
    threads: int = 1
    name: str = "local"
    kind: DeviceKind | None = None


Note = Callable[[str], None]


def profile(wanted: Wanted, plan: Plan, note: Note = lambda text: None) -> Found:
    """Measure and fit. Raises ConfigError for engines that are not known, EngineMissing when
    none is left."""
    with tempfile.TemporaryDirectory(prefix="outrider-profile-") as folder:
        measured, missing = _measured(wanted, plan, Path(folder), note)
    if not measured:
        raise EngineMissing("any engine", "torch")
    return Found(described(wanted, [one.rate for one in measured]), tuple(measured), missing)


def described(wanted: Wanted, rates: Sequence[Rate]) -> DeviceProfile:
    """This machine with these rates."""
    kind = wanted.kind or machine.kind()
    idle, busy = WATTS[kind]
    return DeviceProfile(
        name=wanted.name,
        kind=kind,
        memory_bytes=machine.memory().usable,
        rates=tuple(rates),
        idle_w=idle,
        busy_w=busy,
        accelerators=machine.accelerators(),
    )


def _measured(
    wanted: Wanted, plan: Plan, folder: Path, note: Note
) -> tuple[list[Measured], dict[str, str]]:
    found: list[Measured] = []
    missing: dict[str, str] = {}
    kinds = list(precisions(wanted, plan.precisions))
    forms = {form: synthetic.write(form, folder) for form in (*plan.fitted, *plan.held_out)}
    for kind in kinds:
        note(f"measuring {kind.engine} {kind.dtype}")
        try:
            found.append(one(kind, wanted, plan, forms, folder))
        except OutriderError as error:
            missing[f"{kind.engine} {kind.dtype}"] = error.what
            note(f"  {error.what}")
    return found, missing


def precisions(wanted: Wanted, how: Literal["usual", "all"] = "all") -> Iterator[Precision]:
    """What is asked for; by default those of installed engines, without bfloat16 where the
    processor does not compute in it: there each row costs as much as the first."""
    installed = registry.installed()
    for name in wanted.engines or [engine for engine in PRECISIONS if engine in installed]:
        engine, _, dtype = name.partition(":")
        if engine not in PRECISIONS:
            raise ConfigError(f"no engine {engine!r}", todo=f"one of {', '.join(PRECISIONS)}")
        known = PRECISIONS[engine]
        chosen = (dtype,) if dtype else known[:1] if how == "usual" else known
        for one_dtype in chosen:
            if dtype or one_dtype != "bfloat16" or _computes_bfloat16(wanted.device):
                yield Precision(engine, one_dtype, wanted.numerics)


def _computes_bfloat16(device: str) -> bool:
    if not device.startswith("cpu"):
        return True
    import torch

    has = torch.cpu.get_capabilities()
    return bool(has.get("avx512_bf16") or has.get("amx_bf16"))


def one(
    kind: Precision, wanted: Wanted, plan: Plan, forms: dict[Form, Path], folder: Path
) -> Measured:
    """Measure one engine and precision in a fresh process, and fit it."""

    def ask(child: Child, form: Form, cells: Sequence[Cell]) -> Iterator[Observation]:
        job = Job(
            model=str(forms[form]),
            engine=kind.engine,
            dtype=kind.dtype,
            numerics=kind.numerics,
            device=wanted.device,
            threads=wanted.threads,
            cache=str(folder / "cache"),
            cells=tuple(cells),
            budget_s=plan.budget_s,
        )
        answer = child.ask(job)
        if answer.error:
            raise OutriderError(answer.error)
        graph = graph_of(form)
        for sample in answer.samples:
            yield Observation(graph, sample.cell, sample.seconds)

    with Child.start(wanted.threads) as child:
        fitted = [o for form in plan.fitted for o in ask(child, form, plan.cells)]
        held = [o for form in plan.held_out for o in ask(child, form, plan.checked)]
    rate = fit.fit(kind, fitted)
    error = fit.geomean_error(fit.ratios(rate, held)) if held else None
    times = {(o.graph.name, o.cell): o.seconds for o in held}
    probes = tuple(times[PROBE_FORM.name, cell] for cell in PROBE)
    rate = replace(rate, error=error, probe_s=probes)
    return Measured(rate, tuple(fitted), tuple(held), wanted.device)


def graph_of(form: Form) -> ModelGraph:
    return graphs.from_config(parse_config(form.fields()), form.name)


# --- throttled now? ----------------------------------------------------------------------------


def probed(device: DeviceProfile, wanted: Wanted) -> float:
    """How much slower the device is now than its profile says, by one short probe.

    The rate that was measured with the least error is run; pauses of a throttle count, time in
    the queue for a core does not. Raises InvalidProfile when no rate has a probe to compare with.
    """
    rates = [rate for rate in device.rates if rate.probe_s]
    if not rates:
        raise InvalidProfile(
            f"device {device.name} has no measured rate",
            effect="the slowdown is not known",
            todo="measure the profile again: outrider profile",
        )
    rate = min(rates, key=lambda rate: rate.error or 0.0)
    with tempfile.TemporaryDirectory(prefix="outrider-probe-") as folder:
        model = synthetic.write(PROBE_FORM, Path(folder))
        job = Job(
            model=str(model),
            engine=rate.engine,
            dtype=rate.dtype,
            numerics=rate.numerics,
            device=wanted.device,
            threads=wanted.threads,
            cache=str(Path(folder) / "cache"),
            probes=PROBE,
            span_s=PROBE_S,
        )
        with Child.start(wanted.threads) as child:
            answer = child.ask(job)
    if answer.error:
        raise OutriderError(answer.error)
    return fit.slowdown(rate.probe_s, [sample.seconds for sample in answer.samples])
