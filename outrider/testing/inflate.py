"""A small trained model blown up to a real one's shape, its function unchanged up to rounding.

What is added does nothing, and costs as much as if it did:

- hidden state: the old one stands in a corner, zeros around it. RMSNorm over a
  width grown by f (a power of 4) divides by a root that is sqrt(f) smaller, so its
  weights are divided by sqrt(f) and its epsilon by f; both are exact in binary;
- heads, neurons, layers: new ones have random weights, but output and down
  projections of zeros, which are really written.

    python -m outrider.testing.inflate SRC DST --step-ms 40 --threads 1
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from outrider.engine import Engine, EngineSpec, Span
from outrider.engines import registry
from outrider.errors import ConfigError
from outrider.models.config import ModelConfig, load_config, parse_config
from outrider.models.source import ModelFiles, cache_dir, resolve
from outrider.models.weights import Shape, Weights, expected

if TYPE_CHECKING:
    import torch

VERSION = 1
"""Changes whenever the same arguments would give another file; part of the cache's names."""

Clock = Callable[[], float]
"""Seconds, monotonic."""

_KEPT = ("tokenizer.json", "tokenizer_config.json", "generation_config.json")
_SPREAD = 0.03
"""Random weights are uniform in plus and minus this: about a trained model's spread."""


@dataclass(frozen=True, slots=True)
class Inflated:
    """A written model."""

    folder: Path
    parameters: int
    digest: str
    """Hex SHA-256 over weights and config."""


def inflate(
    source: Path,
    target: Path,
    *,
    hidden: int | None = None,
    layers: int | None = None,
    intermediate: int | None = None,
    kv_heads: int | None = None,
    seed: int = 1,
) -> Inflated:
    """Write a larger model that computes what `source` computes into the folder `target`.

    None keeps the old size. `hidden` grows by a power of 4; query heads grow with
    `kv_heads`, their ratio kept. The same arguments give the same file. Raises
    ConfigError (sizes), ModelError (source).
    """
    files = resolve(str(source))
    assert files.config is not None
    old = load_config(files.config)
    fields = _fields(files.config, old, hidden, layers, intermediate, kv_heads)
    new = parse_config(fields)
    _check_sizes(old, new)
    target.mkdir(parents=True, exist_ok=True)
    (target / "config.json").write_text(json.dumps(fields, indent=1))
    _copy_rest(files, target)
    parameters = _Writer(Weights(files, old), old, new, seed).write(target / "model.safetensors")
    return Inflated(target, parameters, resolve(str(target)).digest)


def _fields(
    config: Path,
    old: ModelConfig,
    hidden: int | None,
    layers: int | None,
    intermediate: int | None,
    kv_heads: int | None,
) -> dict[str, object]:
    """The source's config.json with the new sizes."""
    fields: dict[str, object] = json.loads(config.read_text())
    wide, heads = hidden or old.hidden_size, kv_heads or old.kv_heads
    fields |= {
        "hidden_size": wide,
        "num_hidden_layers": layers or old.layers,
        "intermediate_size": intermediate or old.intermediate_size,
        "num_key_value_heads": heads,
        "num_attention_heads": heads * old.group,
        "head_dim": old.head_dim,
        "rms_norm_eps": old.norm_eps * old.hidden_size / wide,
    }
    fields.pop("layer_types", None)
    return fields


def _check_sizes(old: ModelConfig, new: ModelConfig) -> None:
    factor = new.hidden_size / old.hidden_size
    if factor < 1 or math.log(factor, 4) != int(math.log(factor, 4)):
        raise ConfigError(
            f"the hidden size can not grow from {old.hidden_size} to {new.hidden_size}",
            why="its norms stay exact only for powers of 4",
            todo=f"take {old.hidden_size * 4} or {old.hidden_size * 16}",
        )
    sizes = ("layers", "intermediate_size", "kv_heads")
    if any(getattr(new, name) < getattr(old, name) for name in sizes):
        raise ConfigError("a model is only ever made larger", todo="ask for larger sizes")
    if any(window is not None for window in old.windows):
        raise ConfigError("models with sliding windows are not inflated")


def _copy_rest(files: ModelFiles, target: Path) -> None:
    for name in _KEPT:
        found = files.sibling(name)
        if found is not None:
            shutil.copyfile(found, target / name)


class _Writer:
    """Makes the tensors of the new model from those of the old one."""

    def __init__(self, weights: Weights, old: ModelConfig, new: ModelConfig, seed: int) -> None:
        import torch

        self._weights = weights
        self._old, self._new = old, new
        self._generator = torch.Generator().manual_seed(seed)
        self._dtype = weights.tensor("model.embed_tokens.weight").dtype
        self._places = {place: layer for layer, place in enumerate(spread(old.layers, new.layers))}

    def write(self, path: Path) -> int:
        from safetensors.torch import save_file

        tensors = {name: self._tensor(name, shape) for name, shape in expected(self._new).items()}
        save_file(tensors, path, metadata={"format": "pt"})
        return sum(tensor.numel() for tensor in tensors.values())

    def _tensor(self, name: str, shape: Shape) -> torch.Tensor:
        """The old tensor in a corner of zeros or of noise."""
        import torch

        old = self._ancestor(name)
        if name.endswith(("q_norm.weight", "k_norm.weight")) and old is not None:
            return old.float()
        norm = name.endswith("norm.weight")
        result = torch.empty(shape, dtype=torch.float32 if norm else self._dtype)
        if _silent(name):
            result.zero_()
        else:
            middle, width = (1.0, 0.5) if norm else (0.0, _SPREAD)
            result.uniform_(middle - width, middle + width, generator=self._generator)
        if old is not None:
            shrink = math.sqrt(self._new.hidden_size / self._old.hidden_size) if norm else 1.0
            result[tuple(slice(size) for size in old.shape)] = old.float() / shrink
        return result

    def _ancestor(self, name: str) -> torch.Tensor | None:
        """The tensor that this one continues; None in an added layer."""
        if not name.startswith("model.layers."):
            return self._weights.tensor(name)
        _, _, number, rest = name.split(".", 3)
        layer = self._places.get(int(number))
        return None if layer is None else self._weights.tensor(f"model.layers.{layer}.{rest}")


def spread(old: int, new: int) -> list[int]:
    """Where the old layers stand among the new ones, evenly."""
    return [layer * new // old for layer in range(old)]


def _silent(name: str) -> bool:
    """Whatever writes into the hidden state: its added parts are zero."""
    return "embed_tokens" in name or "o_proj" in name or "down_proj" in name


# --- by step time ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Sizes:
    """Everything but the number of layers; the default is a half-billion model's width."""

    hidden: int = 1024
    intermediate: int = 2816
    kv_heads: int = 8


SIZES = Sizes()


def inflated(
    model: str = "bundled:target",
    *,
    step_ms: float = 40.0,
    threads: int = 1,
    sizes: Sizes = SIZES,
    clock: Clock = time.perf_counter,
) -> Path:
    """The folder of an inflated `model` whose plain step takes about `step_ms` here.

    Made once and kept in the cache folder; a kept one is used again while its
    digest is the one that was noted. Takes some seconds the first time.
    """
    source = resolve(model)
    name = f"{source.digest[:12]}-{sizes.hidden}-{step_ms:g}ms-{threads}t-v{VERSION}"
    folder = cache_dir() / "inflated" / name
    note = folder / "inflated.json"
    if _intact(folder, note):
        return folder
    layers = layers_for(source.folder, step_ms, threads, sizes, clock)
    folder.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with tempfile.TemporaryDirectory(prefix=f"{name}-", dir=folder.parent) as draft:
        made = _made(source.folder, Path(draft) / name, layers, sizes)
        text = json.dumps({"digest": made.digest, "layers": layers})
        (made.folder / note.name).write_text(text)
        # Whoever has the old files open keeps them: they are unlinked, never written over.
        shutil.rmtree(folder, ignore_errors=True)
        made.folder.rename(folder)
    return folder


def _intact(folder: Path, note: Path) -> bool:
    try:
        return bool(json.loads(note.read_text())["digest"] == resolve(str(folder)).digest)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _made(source: Path, target: Path, layers: int, sizes: Sizes) -> Inflated:
    return inflate(
        source,
        target,
        hidden=sizes.hidden,
        layers=layers,
        intermediate=sizes.intermediate,
        kv_heads=sizes.kv_heads,
    )


def layers_for(
    source: Path,
    step_ms: float,
    threads: int,
    sizes: Sizes = SIZES,
    clock: Clock = time.perf_counter,
) -> int:
    """How many layers make a step of `step_ms`: a model of few is written and timed."""
    config = load_config(source / "config.json")
    with tempfile.TemporaryDirectory(prefix="outrider-inflate-") as name:
        few = _made(source, Path(name), config.layers, sizes)
        took = step_time(few.folder, threads=threads, clock=clock)
    head = config.vocab_size * sizes.hidden
    layer = (few.parameters - head) / config.layers
    a_layer_ms = took * layer / few.parameters
    return max(config.layers, round((step_ms - took * head / few.parameters) / a_layer_ms))


def step_time(folder: Path, *, threads: int, clock: Clock = time.perf_counter) -> float:
    """Milliseconds of a plain step of one row at 128 tokens: the least of thirty."""
    engine = _engine(folder, threads)
    slot = engine.open()
    engine.extend([Span(slot, 0, tuple(range(128)), 127)])
    taken = []
    for _ in range(30):
        start = clock()
        engine.extend([Span(slot, 128, (1,))])
        taken.append(clock() - start)
    engine.shutdown()
    return min(taken) * 1e3


def _engine(folder: Path, threads: int | None = None) -> Engine:
    spec = EngineSpec(
        model=str(folder),
        engine="torch",
        device="cpu",
        dtype="float32",
        numerics="plain",
        context=256,
        max_slots=1,
        threads=threads,
    )
    return registry.build(spec)


# --- check -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Check:
    """How an inflated model compares with its source."""

    worst_difference: float
    """Largest distance of two scores over all rows."""
    agreeing: int
    """Greedy tokens that were equal."""
    tokens: int
    """Greedy tokens compared."""
    resident_bytes: int
    """Memory the process gained by loading the inflated model."""
    weight_bytes: int
    """Bytes of its weights in float32."""

    @property
    def holds(self) -> bool:
        """Same tokens, close scores, and the memory is really used."""
        close = self.worst_difference <= 1e-3 and self.agreeing == self.tokens
        return close and self.resident_bytes >= self.weight_bytes * 0.95


def check_inflated(
    source: Path, folder: Path, prompts: Sequence[Sequence[int]], *, steps: int = 24
) -> Check:
    """Decode each prompt greedily with the source, and score the same rows with both."""
    small = _engine(source)
    paths = [_decoded(small, prompt, steps) for prompt in prompts]
    expected_rows = [_scores(small, path) for path in paths]
    small.shutdown()
    before = _resident()
    large = _engine(folder)
    resident = _resident() - before
    found_rows = [_scores(large, path) for path in paths]
    again = [_decoded(large, prompt, steps) for prompt in prompts]
    large.shutdown()
    pairs = list(zip(expected_rows, found_rows, strict=True))
    config = load_config(folder / "config.json")
    return Check(
        worst_difference=max(float(np.abs(a - b).max()) for a, b in pairs),
        agreeing=sum(_equal(a, b, len(p)) for a, b, p in zip(paths, again, prompts, strict=True)),
        tokens=steps * len(prompts),
        resident_bytes=resident,
        weight_bytes=4 * sum(math.prod(shape) for shape in expected(config).values()),
    )


def _decoded(engine: Engine, prompt: Sequence[int], steps: int) -> tuple[int, ...]:
    slot, path = engine.open(), list(prompt)
    span = Span(slot, 0, tuple(prompt), len(prompt) - 1)
    for _ in range(steps):
        path.append(engine.extend([span])[0].ids[0])
        span = Span(slot, len(path) - 1, (path[-1],))
    engine.close(slot)
    return tuple(path)


def _scores(engine: Engine, path: tuple[int, ...]) -> np.ndarray:
    slot = engine.open()
    found = engine.extend([Span(slot, 0, path, want="scores")])[0].scores
    engine.close(slot)
    assert found is not None
    return found


def _equal(first: Sequence[int], second: Sequence[int], start: int) -> int:
    return sum(a == b for a, b in zip(first[start:], second[start:], strict=True))


def _resident() -> int:
    """Bytes of this process in memory."""
    import psutil

    return int(psutil.Process().memory_info().rss)


# --- command line ------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m outrider.testing.inflate")
    parser.add_argument("source", help="a folder, or bundled:target")
    parser.add_argument("target", type=Path, help="the folder to write")
    parser.add_argument("--step-ms", type=float, default=40.0, help="wanted time of a step")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--layers", type=int, help="instead of a wanted time")
    chosen = parser.parse_args(arguments)
    source = resolve(chosen.source).folder
    layers = chosen.layers or layers_for(source, chosen.step_ms, chosen.threads)
    made = _made(source, chosen.target, layers, SIZES)
    line = {"folder": str(made.folder), "parameters": made.parameters, "layers": layers}
    sys.stdout.write(json.dumps(line | {"digest": made.digest}) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
