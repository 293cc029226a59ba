"""`bench draft`: how fast the bundled draft decodes on ONNX Runtime, llama.cpp, and without us.

One sequence, one row a pass, greedy, from a prompt of 128 tokens to 256. Arms take short
turns of 32 tokens (A B C, C B A, ...), so that what else the machine does meets all of
them; a figure is the median over rounds of a ratio within the round, with the 95 %
interval of that median. Each arm first tries 1 and 2 threads and two precisions, and
enters with its best: `onnx_over_llama` is best against best, whatever the precision.

`llama_over_own_bench` sets our llama.cpp adapter against llama.cpp's own decode loop
with its own greedy sampler, on the same file, without our layer.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import llama_cpp

from bench import harness
from bench.harness import Bar, Ratio, ratio
from outrider.engine import Engine, EngineSpec, Span
from outrider.engines import registry
from outrider.models import gguf, tokenizer
from outrider.models.source import resolve

lib: Any = llama_cpp
"""Its annotations speak of null pointers that a loaded model does not have."""
MODEL = "bundled:draft"
PROMPT = 128
STEPS = 128
TURN = 32
THREADS = (1, 2)
TRIALS = 12
ROUNDS, QUICK_ROUNDS = 400, 60
CONTROL_ROUNDS = 20
SLOWED = 4
"""How often the control's arm decodes each token."""
BARS = {
    "onnx_over_llama": Bar(at_least=1.0),
    "llama_over_own_bench": Bar(at_least=0.9),
}

SOURCE = '''"""Read settings from a file and apply what the command line says on top."""

import argparse
import os
from pathlib import Path


class Settings:
    """Values by name, with a default for each."""

    def __init__(self, defaults):
        self._values = dict(defaults)
        self._known = frozenset(defaults)

    def load(self, path):
        if not os.path.exists(path):
            return self
        with open(path, encoding="utf-8") as stream:
            found = json.load(stream)
        for name, value in found.items():
            if name not in self._known:
                raise KeyError(f"unknown setting {name!r} in {path}")
            self._values[name] = value
        return self
'''

Seconds = list[float]


def prompt() -> tuple[int, ...]:
    """The first 128 tokens of a piece of Python."""
    return tokenizer.load(resolve(MODEL)).encode(SOURCE)[:PROMPT]


class Arm(Protocol):
    """One way to decode: each call goes on by `TURN` tokens, and after `STEPS` starts anew."""

    @property
    def name(self) -> str: ...

    def decode(self) -> None: ...

    def close(self) -> None: ...


class EngineArm:
    """Through the engine interface, as a drafter does."""

    def __init__(self, engine: str, dtype: str, threads: int, ids: Sequence[int]) -> None:
        self.name = f"{engine} {dtype}, {threads} thread{'s' * (threads > 1)}"
        self.engine = built(engine, dtype, threads)
        self._ids = ids
        self._said: list[int] = []
        self._slot = self.engine.open()
        self.engine.extend([Span(self._slot, 0, tuple(ids))])

    def decode(self, repeat: int = 1) -> None:
        """`repeat`: how often each token is computed; more than once is the control."""
        if len(self._said) >= STEPS:
            self._said.clear()
        for _ in range(TURN):
            at = len(self._ids) + len(self._said) - 1
            span = Span(self._slot, at, ((self._said or self._ids)[-1],))
            picked = [self.engine.extend([span])[0] for _ in range(repeat)]
            self._said.append(picked[0].ids[0])

    def choices(self, ids: Sequence[int]) -> tuple[int, ...]:
        """The choice after each token of a text, from an empty slot on."""
        self._said.clear()
        return self.engine.extend([Span(self._slot, 0, tuple(ids))])[0].ids

    def close(self) -> None:
        self.engine.shutdown()


@dataclass(frozen=True, slots=True)
class Slowed:
    """The control: an arm that computes every token several times."""

    name: str
    arm: EngineArm

    def decode(self) -> None:
        self.arm.decode(SLOWED)

    def close(self) -> None:
        """The arm is closed by its owner."""


def built(engine: str, dtype: str, threads: int, *, slots: int = 1) -> Engine:
    return registry.build(
        EngineSpec(
            model=MODEL,
            engine=engine,
            device="cpu",
            dtype=dtype,
            numerics="plain",
            context=512,
            max_slots=slots,
            threads=threads,
        )
    )


class OwnLoop:
    """llama.cpp as its own examples use it: one token a batch, the library's greedy sampler."""

    def __init__(self, quant: gguf.Quant, threads: int, ids: Sequence[int]) -> None:
        self.name = f"own loop {quant}, {threads} thread{'s' * (threads > 1)}"
        self._ids = ids
        path = gguf.cached(resolve(MODEL), quant).path
        params = lib.llama_model_default_params()
        params.n_gpu_layers = 0
        self._model = lib.llama_model_load_from_file(str(path).encode(), params)
        settings = lib.llama_context_default_params()
        settings.n_ctx = 512
        settings.n_threads = settings.n_threads_batch = threads
        self._context = lib.llama_init_from_model(self._model, settings)
        self._memory = lib.llama_get_memory(self._context)
        self._greedy = lib.llama_sampler_init_greedy()
        self._said: list[int] = []
        self._decode(ids[:-1])

    def decode(self) -> None:
        if len(self._said) >= STEPS:
            lib.llama_memory_seq_rm(self._memory, 0, len(self._ids) - 1, -1)
            self._said.clear()
        for _ in range(TURN):
            self._decode((self._said or self._ids)[-1:])
            self._said.append(lib.llama_sampler_sample(self._greedy, self._context, -1))

    def _decode(self, ids: Sequence[int]) -> None:
        tokens = (lib.llama_token * len(ids))(*ids)
        batch = lib.llama_batch_get_one(tokens, len(ids))
        if lib.llama_decode(self._context, batch) != 0:
            raise RuntimeError("llama.cpp could not decode")

    def close(self) -> None:
        lib.llama_sampler_free(self._greedy)
        lib.llama_free(self._context)
        lib.llama_model_free(self._model)


# --- measuring ---------------------------------------------------------------------------------


def interleaved(arms: Sequence[Arm], rounds: int) -> dict[str, Seconds]:
    """Seconds of each round by arm; the order turns round every time."""
    found: dict[str, Seconds] = {arm.name: [] for arm in arms}
    for turn in range(rounds):
        for arm in arms if turn % 2 == 0 else reversed(arms):
            started = time.perf_counter()
            arm.decode()
            found[arm.name].append(time.perf_counter() - started)
    return found


def speed(mine: Seconds, other: Seconds) -> Ratio:
    """Tokens a second of one arm over another's, round by round; above 1 `mine` is the faster."""
    return ratio(list(zip(other, mine, strict=True)))


_Some = TypeVar("_Some", bound=Arm)


def fastest(arms: Sequence[_Some]) -> _Some:
    """By the median of a few trials."""
    found = interleaved(arms, TRIALS)
    return min(arms, key=lambda arm: statistics.median(found[arm.name]))


def kept(arms: Sequence[_Some], stack: ExitStack) -> _Some:
    """The fastest; the others are closed, so that their idle threads disturb nobody."""
    best = fastest(arms)
    for arm in arms:
        if arm is not best:
            arm.close()
    stack.callback(best.close)
    return best


def same_choice(first: EngineArm, second: EngineArm, ids: Sequence[int]) -> float:
    """Share of positions of one text at which both choose the same id."""
    pairs = zip(first.choices(ids), second.choices(ids), strict=True)
    return sum(a == b for a, b in pairs) / len(ids)


def four_slots_ms(ids: Sequence[int]) -> float:
    """Milliseconds of a pass with one row in each of four slots, onnx as a drafter runs it."""
    engine = built("onnx", "auto", 1, slots=4)
    slots = [engine.open() for _ in range(4)]
    engine.extend([Span(slot, 0, tuple(ids)) for slot in slots])
    times = []
    for at in range(len(ids), len(ids) + STEPS):
        started = time.perf_counter()
        engine.extend([Span(slot, at, (at,)) for slot in slots])
        times.append(time.perf_counter() - started)
    engine.shutdown()
    return 1e3 * statistics.median(times)


# --- the bench ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Entrants:
    """Each the best of its kind over thread counts."""

    int8: EngineArm
    float32: EngineArm
    q8: EngineArm
    f16: EngineArm
    own: OwnLoop


def entrants(ids: Sequence[int], stack: ExitStack) -> Entrants:
    def best(engine: str, dtype: str) -> EngineArm:
        return kept([EngineArm(engine, dtype, threads, ids) for threads in THREADS], stack)

    q8, f16 = best("llama", "q8_0"), best("llama", "f16")
    quant: gguf.Quant = "q8_0" if fastest([q8, f16]) is q8 else "f16"
    own = kept([OwnLoop(quant, threads, ids) for threads in THREADS], stack)
    return Entrants(best("onnx", "int8"), best("onnx", "float32"), q8, f16, own)


def run(*, quick: bool = False) -> dict[str, object]:
    """Figures, one cell an arm, and controls; `quick` plays fewer rounds."""
    ids = prompt()
    with ExitStack() as stack:
        return _measured(entrants(ids, stack), ids, QUICK_ROUNDS if quick else ROUNDS)


def _measured(some: Entrants, ids: Sequence[int], rounds: int) -> dict[str, object]:
    arms: list[Arm] = [some.int8, some.float32, some.q8, some.f16, some.own]
    times = interleaved(arms, rounds)
    onnx, llama = (_best(pair, times) for pair in ((some.int8, some.float32), (some.q8, some.f16)))
    ratios = _ratios(some, onnx, llama, times)
    more = {
        "onnx_decode_ms": _ms(times[onnx.name]),
        "onnx_four_slots_ms": four_slots_ms(ids),
        "llama_decode_ms": _ms(times[llama.name]),
        "own_loop_decode_ms": _ms(times[some.own.name]),
        "onnx_int8_same_choice": same_choice(some.int8, some.float32, ids),
        "onnx_llama_same_choice": same_choice(some.float32, some.f16, ids),
    }
    return {
        "cases": rounds * len(arms),
        "figures": _flat(ratios) | more,
        "controls": _controls(some.own, onnx, llama, times),
        "cells": [_cell(arm, times[arm.name]) for arm in arms],
        "losing": [
            {"figure": name, "median": ratios[name].median, "high": ratios[name].high}
            for name, bar in BARS.items()
            if bar.failed(ratios[name])
        ],
        "models": {MODEL: resolve(MODEL).digest},
    }


def _best(arms: Sequence[EngineArm], times: Mapping[str, Seconds]) -> EngineArm:
    return min(arms, key=lambda arm: statistics.median(times[arm.name]))


def _ratios(
    some: Entrants, onnx: EngineArm, llama: EngineArm, times: Mapping[str, Seconds]
) -> dict[str, Ratio]:
    def over(mine: Arm, other: Arm) -> Ratio:
        return speed(times[mine.name], times[other.name])

    adapter = some.q8 if some.own.name.startswith("own loop q8_0") else some.f16
    return {
        "onnx_over_llama": over(onnx, llama),
        "llama_over_own_bench": over(adapter, some.own),
        "onnx_int8_over_llama_q8_0": over(some.int8, some.q8),
        "onnx_float32_over_llama_f16": over(some.float32, some.f16),
        "onnx_over_own_bench": over(onnx, some.own),
    }


def _flat(ratios: Mapping[str, Ratio]) -> dict[str, float]:
    found: dict[str, float] = {}
    for name, value in ratios.items():
        found |= value.flat(name)
    return found


def _controls(
    own: OwnLoop, onnx: EngineArm, llama: EngineArm, times: Mapping[str, Seconds]
) -> dict[str, float]:
    """Both bars must be missed by arms that compute every token several times, and an arm's
    even rounds against its odd ones must come out near 1."""
    slow = [Slowed(f"slowed {arm.name}", arm) for arm in (onnx, llama)]
    found = interleaved([*slow, llama, own], CONTROL_ROUNDS)
    usual = times[own.name]
    return {
        "control_onnx_over_llama": speed(found[slow[0].name], found[llama.name]).median,
        "control_llama_over_own_bench": speed(found[slow[1].name], found[own.name]).median,
        "control_own_over_own": speed(usual[0 : len(usual) // 2 * 2 : 2], usual[1::2]).median,
    }


def _ms(seconds: Seconds) -> float:
    return 1e3 * statistics.median(seconds) / TURN


def _cell(arm: Arm, seconds: Seconds) -> dict[str, object]:
    middle = statistics.median(seconds)
    return {
        "arm": arm.name,
        "tokens_per_s": TURN / middle,
        "best_ms": 1e3 * min(seconds) / TURN,
        "median_ms": 1e3 * middle / TURN,
        "worst_ms": 1e3 * max(seconds) / TURN,
        "rounds": len(seconds),
    }


if __name__ == "__main__":
    sys.exit(harness.main("draft", run))
