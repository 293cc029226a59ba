"""What every bench has alike: its result object, options, receipt, table, and statistics of ratios.

A bench is a module `bench.NAME` with a function `run(*, quick)`, or `run(*, quick, seed)`, that
returns `cases`, `figures` (flat, name to number), and as it needs them `controls`, `cells`,
`losing`, `models` (name to digest) and `seed`; whatever else it returns stands under `details`.
The harness adds commit and machine. `outrider bench NAME` and `python -m bench.NAME` are one:

    if __name__ == "__main__":
        sys.exit(harness.main("NAME", run))
"""

from __future__ import annotations

import argparse
import inspect
import math
import os
import platform
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

ROOT = Path(__file__).resolve().parent.parent
RECEIPTS = ROOT / "bench" / "receipts"
SCHEMA = 1
SEED = 20
CONFIDENCE = 0.95
RESAMPLES = 2000
LIBRARIES = (
    "torch",
    "onnxruntime",
    "llama-cpp-python",
    "grpcio",
    "numpy",
    "tokenizers",
    "protobuf",
    "pyzmq",
    "uvicorn",
)
FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "bf16", "i8mm")
"""Instruction sets that decide which kernels the libraries take."""

Run = Callable[..., Mapping[str, Any]]


# --- the result --------------------------------------------------------------------------------


class Machine(msgspec.Struct, frozen=True):
    """Where it ran; no name and no path of it."""

    cpu: str
    cores: int
    """Those that this process may use."""
    flags: tuple[str, ...]
    memory_gib: float
    accelerators: tuple[str, ...]
    system: str
    python: str
    libraries: dict[str, str]


class Receipt(msgspec.Struct, frozen=True):
    """How to get the same figures again."""

    command: str
    models: dict[str, str]
    """Name to SHA-256."""
    seconds: float
    file: str | None = None
    """Where it was written, from the repository's root; None when it was not."""


class BenchResult(msgspec.Struct, frozen=True):
    """The one object that a bench prints."""

    schema: int
    bench: str
    commit: str
    machine: Machine
    seed: int
    quick: bool
    cases: int
    figures: dict[str, float]
    controls: dict[str, float]
    cells: list[dict[str, Any]]
    losing: list[dict[str, Any]]
    receipt: Receipt
    details: dict[str, Any] = {}


OWN = ("cases", "figures", "controls", "cells", "losing", "models", "seed")


def result(
    name: str, found: Mapping[str, Any], *, quick: bool, seed: int, seconds: float
) -> BenchResult:
    """What a bench found, made complete. Raises TypeError for a figure that is no number."""
    for group in ("figures", "controls"):
        for key, value in found.get(group, {}).items():
            if not isinstance(value, int | float):
                raise TypeError(f"{group}.{key} of bench {name} is a {type(value).__name__}")
    seed = int(found.get("seed", seed))
    return BenchResult(
        schema=SCHEMA,
        bench=name,
        commit=commit(),
        machine=machine(),
        seed=seed,
        quick=quick,
        cases=found["cases"],
        figures=dict(found["figures"]),
        controls=dict(found.get("controls", {})),
        cells=list(found.get("cells", [])),
        losing=list(found.get("losing", [])),
        receipt=Receipt(
            command=_command(name, seed, quick=quick),
            models=dict(found.get("models", {})),
            seconds=round(seconds, 1),
        ),
        details={key: value for key, value in found.items() if key not in OWN},
    )


def _command(name: str, seed: int, *, quick: bool) -> str:
    return " ".join(["outrider bench", name, *(["--quick"] if quick else []), f"--seed {seed}"])


def commit() -> str:
    """The commit, with `-dirty` when tracked files differ from it; `unknown` outside git."""

    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    try:
        head = git("rev-parse", "HEAD")
        changed = git("status", "--porcelain", "-uno", "--", ".", ":!bench/receipts")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return f"{head}-dirty" if changed else head


def machine() -> Machine:
    """This machine, as far as it matters to figures."""
    described = _cpu_description()
    flags = described.get("flags", described.get("Features", "")).split()
    return Machine(
        cpu=described.get("model name") or platform.processor() or platform.machine(),
        cores=_cores(),
        flags=tuple(flag for flag in FLAGS if flag in flags),
        memory_gib=round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1),
        accelerators=_accelerators(),
        system=f"{platform.system()} {platform.machine()}",
        python=platform.python_version(),
        libraries={name: version for name in LIBRARIES if (version := _version(name))},
    )


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _cpu_description() -> dict[str, str]:
    """The first processor's lines of /proc/cpuinfo; empty where there is none."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return {}
    pairs = (line.partition(":") for line in text.partition("\n\n")[0].splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}


def _accelerators() -> tuple[str, ...]:
    """GPUs by name, where the bench loaded a library that can tell."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return ()
    return tuple(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))


def _version(library: str) -> str:
    try:
        return metadata.version(library)
    except metadata.PackageNotFoundError:
        return ""


# --- statistics --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Ratio:
    """Median of the pairs' ratios a / b, with its interval."""

    median: float
    low: float
    high: float
    pairs: int
    coverage: float
    """Of the interval: at least `CONFIDENCE`, except with fewer than six pairs."""

    def flat(self, name: str) -> dict[str, float]:
        """As figures: `name`, `name_low`, `name_high`."""
        return {name: self.median, f"{name}_low": self.low, f"{name}_high": self.high}


def ratio(pairs: Sequence[tuple[float, float]]) -> Ratio:
    """a / b over interleaved pairs (A B A B): each ratio is within a pair, so that what else the
    machine did in the meantime meets both sides. Raises ValueError without pairs.

    The interval is that of the sign test: order statistics of the ratios, whatever their
    distribution. Below six pairs it is the whole range, which covers 1 - 2 ** (1 - pairs).
    """
    ratios = sorted(a / b for a, b in pairs)
    if not ratios:
        raise ValueError("a ratio needs pairs")
    cut, coverage = sign_interval(len(ratios))
    middle = float(np.median(ratios))
    return Ratio(middle, ratios[cut], ratios[-1 - cut], len(ratios), coverage)


def sign_interval(count: int) -> tuple[int, float]:
    """How many ordered values to leave off at each end so that what is left covers the median
    with `CONFIDENCE`, and how surely it then does."""
    tail, cut, coverage = 0.0, 0, 1.0 - 2.0 ** (1 - count)
    for left_off in range((count - 1) // 2 + 1):
        tail += math.comb(count, left_off) / 2.0**count
        if 1.0 - 2.0 * tail < CONFIDENCE:
            break
        cut, coverage = left_off, 1.0 - 2.0 * tail
    return cut, coverage


def mean_interval(values: Sequence[float], seed: int = SEED) -> tuple[float, float]:
    """95 % interval of a mean by seeded resampling; the values must be independent."""
    given = np.asarray(values, dtype=np.float64)
    drawn = np.random.default_rng(seed).choice(given, (RESAMPLES, len(given))).mean(1)
    low, high = np.quantile(drawn, (0.5 - CONFIDENCE / 2, 0.5 + CONFIDENCE / 2))
    return float(low), float(high)


@dataclass(frozen=True, slots=True)
class Bar:
    """What a figure has to keep to."""

    at_most: float = math.inf
    at_least: float = -math.inf

    def failed(self, found: Ratio) -> bool:
        """Only when the whole interval lies beyond the bar."""
        return found.low > self.at_most or found.high < self.at_least


async def interleave(
    arms: Sequence[Callable[[], Awaitable[float]]], rounds: int
) -> list[tuple[float, ...]]:
    """Runs the arms in turns, A B A B; one tuple a round, in the order of the arms."""
    return [tuple([await arm() for arm in arms]) for _ in range(rounds)]


# --- running -----------------------------------------------------------------------------------


def load(name: str) -> Run:
    """The `run` of a bench; ModuleNotFoundError when there is none of that name."""
    run: Run = import_module(f"bench.{name}").run
    return run


def names() -> tuple[str, ...]:
    """The benches that there are: modules of this folder with a `run`."""
    modules = sorted(Path(__file__).parent.glob("*.py"))
    return tuple(path.stem for path in modules if "\ndef run(" in path.read_text())


def execute(name: str, run: Run, *, quick: bool, seed: int) -> BenchResult:
    """Runs a bench to its result; the seed goes to those that take one."""
    given: dict[str, Any] = {"quick": quick}
    if "seed" in inspect.signature(run).parameters:
        given["seed"] = seed
    began = time.monotonic()
    found = run(**given)
    return result(name, found, quick=quick, seed=seed, seconds=time.monotonic() - began)


def write_receipt(found: BenchResult, folder: Path = RECEIPTS) -> BenchResult:
    """Keeps a full run's result; ValueError for a quick one."""
    if found.quick:
        raise ValueError("a receipt stands for a full run, not a quick one")
    path = folder / f"{found.bench}.json"
    place = str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else path.name
    receipt = msgspec.structs.replace(found.receipt, file=place)
    kept = msgspec.structs.replace(found, receipt=receipt)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(as_json(kept) + b"\n")
    return kept


def as_json(found: BenchResult) -> bytes:
    return msgspec.json.format(msgspec.json.encode(found), indent=1)


def note(text: str) -> None:
    """Progress, for people: standard output is for the result alone."""
    print(text, file=sys.stderr, flush=True)


def main(name: str, run: Run, argv: Sequence[str] | None = None) -> int:
    """`python -m bench.NAME`: the exit status is 0 when it ran, whatever the figures."""
    parser = argparse.ArgumentParser(prog=f"bench {name}", description=(run.__doc__ or "").strip())
    parser.add_argument("--quick", action="store_true", help="under a minute; no receipt")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--receipt", action="store_true", help="keep it under bench/receipts/")
    options = parser.parse_args(argv)
    if options.quick and options.receipt:
        parser.error("a receipt stands for a full run: leave off --quick")
    found = execute(name, run, quick=options.quick, seed=options.seed)
    if options.receipt:
        found = write_receipt(found)
    print(as_json(found).decode() if options.json else table(found), flush=True)
    return 0


# --- for people --------------------------------------------------------------------------------


def table(found: BenchResult) -> str:
    """Figures, controls, cells and losing cells in columns."""
    lines = [
        f"bench {found.bench}{' (quick)' if found.quick else ''}, {found.cases} cases, "
        f"seed {found.seed}, {found.receipt.seconds} s, commit {found.commit[:12]}",
        f"{found.machine.cpu}, {found.machine.cores} cores, {found.machine.memory_gib} GiB, "
        f"Python {found.machine.python}",
    ]
    for title, group in (("figures", found.figures), ("controls", found.controls)):
        lines += _pairs(title, group)
    for title, rows in (("cells", found.cells), ("losing cells", found.losing)):
        lines += columns(title, rows)
    return "\n".join(lines)


def _pairs(title: str, group: Mapping[str, float]) -> list[str]:
    if not group:
        return []
    width = max(map(len, group))
    return ["", title, *(f"  {key:<{width}}  {_shown(value)}" for key, value in group.items())]


def columns(title: str, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Rows of equal keys, one line each below a heading."""
    if not rows:
        return []
    keys = list(dict.fromkeys(key for row in rows for key in row))
    body = [[_shown(row.get(key)) for key in keys] for row in rows]
    widths = [max(len(line[i]) for line in [keys, *body]) for i in range(len(keys))]
    lines = [
        "  " + "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True))
        for line in [keys, *body]
    ]
    return ["", title, *(line.rstrip() for line in lines)]


def _shown(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value)
