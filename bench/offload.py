"""`bench offload`: a model four times as large as the memory that it may have.

The memory is enforced: each arm is a process of its own in a memory cgroup of the budget's
size, page cache included, entered once its libraries are loaded. Arms, in turn:

- `searched`    the policy that the search chose
- `layerwise`   the plain rival: every layer streamed, one read ahead, KV in memory, and as many
                answers at a time as fit beside
- `unhurried`   the searched policy without reading ahead (one staging buffer)

All serve the same answers (`ANSWERS` of them, `TOKENS` tokens each) and must give the text of
the engine that has all its weights in memory. `bytes_over_bound` counts bytes at the read call
over what is not resident, once a pass. Control: a reader that brings each layer twice.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast
from unittest.mock import patch

import torch
from safetensors.torch import load_file, save_file

from bench import harness
from bench.harness import note, ratio
from outrider.engine import Engine, EngineSpec, Span
from outrider.engines import registry
from outrider.engines.torch import blobs, offload
from outrider.engines.torch.offload import blob_of, kept_dtype
from outrider.models.config import load_config
from outrider.models.source import cache_dir, resolve
from outrider.testing import inflate
from outrider.testing.cage import Usage, cage

TIMES = 4
"""The model's bytes over the budget's."""
MARGIN = 1.05
"""The cage over what the engine is told: the interpreter's own objects grow too."""
INTERMEDIATE, KV_HEADS, LAYERS = 704, 2, 48
"""With four times the hidden size about 290 MB as stored, in float16."""
ANSWERS = 16
TOKENS = 12
PROMPT = 40
CONTEXT = 128
ROUNDS = 3
ARMS = ("searched", "layerwise", "unhurried")


@dataclass(frozen=True, slots=True)
class Run:
    """One arm's answers."""

    seconds: float
    tokens: int
    digest: str
    """Of all answers' ids."""
    passes: int
    weights_read: int
    weights_bound: int
    kv_read: int
    kv_written: int
    batch: int
    staging: int
    kv: str
    resident: int
    peak: int = 0
    cache: int = 0
    refused: int = 0

    @property
    def tokens_per_s(self) -> float:
        return self.tokens / self.seconds

    @property
    def over_bound(self) -> float:
        return self.weights_read / max(1, self.weights_bound * self.passes)


# --- in the child ------------------------------------------------------------------------------


def prompts(count: int, length: int, size: int) -> list[tuple[int, ...]]:
    return [tuple((i * 7919 + j * 104729 + 13) % size for j in range(length)) for i in range(count)]


def answer(engine: Engine, asked: Sequence[tuple[int, ...]], tokens: int) -> list[list[int]]:
    """All answers, as many at a time as the engine has slots."""
    found: list[list[int]] = []
    size = engine.info.max_slots
    for start in range(0, len(asked), size):
        found += _together(engine, asked[start : start + size], tokens)
    return found


def _together(engine: Engine, asked: Sequence[tuple[int, ...]], tokens: int) -> list[list[int]]:
    slots = [engine.open() for _ in asked]
    spans = [Span(s, 0, p, len(p) - 1) for s, p in zip(slots, asked, strict=True)]
    each = engine.info.max_rows // PROMPT
    passes = [spans[at : at + each] for at in range(0, len(spans), each)]
    answers = [[picked.ids[0]] for few in passes for picked in engine.extend(few)]
    for offset in range(tokens - 1):
        spans = [
            Span(s, len(p) + offset, (a[-1],))
            for s, p, a in zip(slots, asked, answers, strict=True)
        ]
        for ids, picked in zip(answers, engine.extend(spans), strict=True):
            ids.append(picked.ids[0])
    for slot in slots:
        engine.close(slot)
    return answers


def digest_of(answers: Sequence[Sequence[int]]) -> str:
    return hashlib.sha256(json.dumps(answers).encode()).hexdigest()


def child() -> None:
    """Loads the libraries on a small model, says so, waits to be caged, serves, tells."""
    setting = json.loads(sys.argv[1])
    warm = registry.build(EngineSpec("bundled:draft", "torch", "cpu", context=64, threads=1))
    answer(warm, prompts(1, 8, warm.info.vocabulary_size), 2)
    warm.shutdown()
    print("ready", flush=True)
    sys.stdin.readline()
    with _arm(setting["arm"]):
        engine = cast(Any, registry.build(_spec(setting)))
        asked = prompts(setting["answers"], PROMPT, engine.info.vocabulary_size)
        began = time.perf_counter()
        answers = answer(engine, asked, setting["tokens"])
        seconds = time.perf_counter() - began
    print(json.dumps(asdict(_told(engine, answers, seconds))), flush=True)
    sys.stdin.readline()


def _spec(setting: dict[str, Any]) -> EngineSpec:
    policy = "layerwise" if setting["arm"] == "layerwise" else "searched"
    return EngineSpec(
        model=setting["model"],
        engine="torch",
        device="cpu",
        context=CONTEXT,
        max_slots=setting["answers"],
        threads=1,
        options=(("memory", str(setting["memory"])), ("offload", policy)),
    )


def _arm(name: str) -> Any:
    if name == "unhurried":
        chosen = offload.choose
        return patch(
            "outrider.engines.torch.tiered.choose",
            lambda *given: replace(chosen(*given), staging=1),
        )
    if name == "twice":
        read = blobs.Stream._fill

        def again(stream: Any, slot: Any, number: int) -> None:
            read(stream, slot, number)
            read(stream, slot, number)

        return patch.object(blobs.Stream, "_fill", again)
    return nullcontext()


def _told(engine: Any, answers: list[list[int]], seconds: float) -> Run:
    moved, policy = engine.traffic(), engine.policy
    return Run(
        seconds=seconds,
        tokens=sum(map(len, answers)),
        digest=digest_of(answers),
        passes=moved.passes,
        weights_read=moved.weights_read,
        weights_bound=moved.weights_bound,
        kv_read=moved.kv_read,
        kv_written=moved.kv_written,
        batch=policy.batch,
        staging=policy.staging,
        kv=policy.kv,
        resident=len(policy.resident),
    )


# --- in the parent -----------------------------------------------------------------------------


def large_model() -> Path:
    """The bundled target, inflated; made once."""
    source = resolve("bundled:target")
    name = f"{source.digest[:12]}-offload-{INTERMEDIATE}x{LAYERS}-f16-v{inflate.VERSION}"
    folder = cache_dir() / "inflated" / name
    if not (folder / "done").exists():
        inflate.inflate(
            source.folder, folder, hidden=_grown(source.folder), layers=LAYERS,
            intermediate=INTERMEDIATE, kv_heads=KV_HEADS,
        )  # fmt: skip
        _halve(folder / "model.safetensors")
        (folder / "done").touch()
    return folder


def _halve(path: Path) -> None:
    """Stored in float16, as models of this size are."""
    narrow = {name: tensor.half() for name, tensor in load_file(path).items()}
    save_file(narrow, path)


def _grown(folder: Path) -> int:
    old = int(json.loads((folder / "config.json").read_text())["hidden_size"])
    return old * 4


def blob_bytes(model: Path) -> int:
    """The weights as they are stored and read; the file is made here, outside the cage."""
    files = resolve(str(model))
    assert files.config is not None
    path, _ = blob_of(files, load_config(files.config), kept_dtype(files, torch.float32))
    return path.stat().st_size


def run_arm(arm: str, model: Path, memory: int, answers: int, tokens: int) -> Run:
    """One arm in its cage. Raises RuntimeError when its process is ended by the kernel."""
    setting = {
        "arm": arm, "model": str(model), "memory": int(memory / MARGIN),
        "answers": answers, "tokens": tokens,
    }  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with cage("outrider-offload", memory) as held:
        process = subprocess.Popen(
            [sys.executable, "-c", "from bench.offload import child; child()", json.dumps(setting)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
        )  # fmt: skip
        try:
            return _served(process, held)
        finally:
            process.kill()
            process.wait()


def _served(process: subprocess.Popen[str], held: Any) -> Run:
    assert process.stdin is not None and process.stdout is not None
    if process.stdout.readline().strip() != "ready":
        raise RuntimeError("the arm's process did not start")
    if held is not None:
        held.enter(process.pid)
    process.stdin.write("go\n")
    process.stdin.flush()
    line = process.stdout.readline()
    if not line:
        raise RuntimeError("the arm's process was ended: it did not keep to its memory")
    usage = held.usage() if held is not None else Usage(0, 0, 0)
    found = Run(**json.loads(line))
    return replace(found, peak=usage.peak, cache=usage.cache, refused=usage.refused)


def reference(model: Path, answers: int, tokens: int) -> tuple[str, float]:
    """Digest of the answers with all weights in memory, and seconds."""
    engine = registry.build(
        EngineSpec(str(model), "torch", "cpu", context=CONTEXT, max_slots=answers, threads=1)
    )
    asked = prompts(answers, PROMPT, engine.info.vocabulary_size)
    began = time.perf_counter()
    found = answer(engine, asked, tokens)
    seconds = time.perf_counter() - began
    engine.shutdown()
    return digest_of(found), seconds


def measured(*, quick: bool) -> dict[str, Any]:
    answers, tokens, rounds = (8, 6, 1) if quick else (ANSWERS, TOKENS, ROUNDS)
    model = large_model()
    size = blob_bytes(model)
    memory = size // TIMES
    whole, resident_s = reference(model, answers, tokens)
    runs: dict[str, list[Run]] = {arm: [] for arm in ARMS}
    for number in range(rounds):
        for arm in ARMS:
            note(f"round {number + 1} of {rounds}: {arm}")
            runs[arm].append(run_arm(arm, model, memory, answers, tokens))
    twice = run_arm("twice", model, memory, min(answers, 4), 3)
    return {
        "cases": sum(len(each) for each in runs.values()),
        "figures": figures(runs, whole, size, memory, resident_s),
        "controls": {"bytes_over_bound_when_read_twice": twice.over_bound,
                     "red": twice.over_bound > 1.05},
        "cells": [row(arm, run) for arm in ARMS for run in runs[arm]],
        "losing": losing(runs),
        "models": {"target, inflated": resolve(str(model)).digest},
    }  # fmt: skip


def figures(
    runs: dict[str, list[Run]], whole: str, size: int, memory: int, resident_s: float
) -> dict[str, float]:
    every = [run for each in runs.values() for run in each]
    pairs = list(zip(runs["searched"], runs["layerwise"], strict=True))
    ahead = list(zip(runs["searched"], runs["unhurried"], strict=True))
    tokens_per_s = [run.tokens_per_s for run in runs["searched"]]
    return {
        "model_over_budget": size / memory,
        "budget_mb": memory / 1e6,
        "bytes_over_bound": max(run.over_bound for run in runs["searched"]),
        **ratio([(a.tokens_per_s, b.tokens_per_s) for a, b in pairs]).flat(
            "searched_over_layerwise"
        ),
        **ratio([(a.tokens_per_s, b.tokens_per_s) for a, b in ahead]).flat("ahead_over_unhurried"),
        "identical_share": sum(run.digest == whole for run in every) / len(every),
        "enforced": float(all(run.peak > 0 for run in every)),
        "peak_over_budget": max(run.peak for run in every) / memory,
        "page_cache_mb": max(run.cache for run in every) / 1e6,
        "tokens_per_s": sum(tokens_per_s) / len(tokens_per_s),
        "resident_tokens_per_s": runs["searched"][0].tokens / resident_s,
    }


def row(arm: str, run: Run) -> dict[str, Any]:
    return {
        "arm": arm,
        "tokens_per_s": run.tokens_per_s,
        "batch": run.batch,
        "staging": run.staging,
        "kv": run.kv,
        "resident": run.resident,
        "over_bound": run.over_bound,
        "kv_read_mb": run.kv_read / 1e6,
        "peak_mb": run.peak / 1e6,
        "page_cache_mb": run.cache / 1e6,
        "refused": run.refused,
    }


def losing(runs: dict[str, list[Run]]) -> list[dict[str, Any]]:
    """Rounds in which a plainer policy was faster."""
    return [
        {"round": number, "behind": arm, "ratio": other.tokens_per_s / ours.tokens_per_s}
        for number, ours in enumerate(runs["searched"])
        for arm in ("layerwise", "unhurried")
        if (other := runs[arm][number]).tokens_per_s > ours.tokens_per_s
    ]


def run(*, quick: bool) -> dict[str, Any]:
    """A model of four times its memory: bytes moved, and the searched policy against layerwise."""
    return measured(quick=quick)


if __name__ == "__main__":
    sys.exit(harness.main("offload", run))
