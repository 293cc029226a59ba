"""The torch engine on a budget of memory: build it, and see what it moves."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from outrider.engine import EngineSpec
from outrider.engines.torch.blobs import Index
from outrider.engines.torch.cache import Cache, capacity
from outrider.engines.torch.engine import Identity, TorchEngine
from outrider.engines.torch.kv_disk import DiskCache
from outrider.engines.torch.linear import Kind
from outrider.engines.torch.offload import (
    Budget,
    Store,
    TieredDecoder,
    blob_of,
    choose,
    graph_of,
    kept_dtype,
    measure,
    wide_bytes,
)
from outrider.engines.torch.probe import SLOTS, Finding
from outrider.engines.torch.runner import Runner
from outrider.engines.torch.settle import settle
from outrider.errors import ConfigError
from outrider.models.config import ModelConfig
from outrider.models.source import ModelFiles, cache_dir
from outrider.models.weights import expected
from outrider.partitioner.graph import ModelGraph
from outrider.partitioner.offload import SPARE, OffloadPolicy, OffloadWork, Tiers, streamed_units

MOST_ROWS = 160
"""Rows of a pass: the activations of more would take the room of a layer. The probe's largest
trial has as many."""
_BASE = 8 << 20


def workspace_bytes(config: ModelConfig, rows: int) -> int:
    """What a pass needs beside weights and KV: measured at 1 to 500 rows, some 16 numbers of
    hidden and intermediate width a row, and what the allocator keeps."""
    return _BASE + rows * 4 * (8 * config.hidden_size + 6 * config.intermediate_size)


@dataclass(frozen=True, slots=True)
class Traffic:
    """Bytes at the read and write calls since the engine was loaded."""

    passes: int
    weights_read: int
    weights_bound: int
    """Of one pass: what is not resident, read once."""
    kv_read: int
    kv_written: int


class TieredEngine(TorchEngine):
    """A `TorchEngine` that streams part of its weights, and may keep KV on disk."""

    def __init__(
        self, spec: EngineSpec, identity: Identity, runner: Runner, finding: Finding,
        store: Store, graph: ModelGraph, policy: OffloadPolicy,
    ) -> None:  # fmt: skip
        super().__init__(spec, identity, runner, finding)
        self.policy = policy
        self._store = store
        self._disk = runner.cache if isinstance(runner.cache, DiskCache) else None
        self._bound = sum(graph.units[i].weight_bytes for i in streamed_units(graph, policy))
        self._before = self._read()

    def _read(self) -> tuple[int, int, int]:
        kv = self._disk.scratch.file if self._disk is not None else None
        return (
            self._store.file.bytes_read,
            kv.bytes_read if kv is not None else 0,
            kv.bytes_written if kv is not None else 0,
        )

    def traffic(self) -> Traffic:
        now = [a - b for a, b in zip(self._read(), self._before, strict=True)]
        return Traffic(self._passes, now[0], self._bound, now[1], now[2])

    def shutdown(self) -> None:
        super().shutdown()
        self._store.close()
        if self._disk is not None:
            self._disk.close()
            self._disk = None


def build(
    spec: EngineSpec, budget: Budget, files: ModelFiles, config: ModelConfig,
    vocabulary: tuple[str, int], context: int, device: torch.device, dtype: torch.dtype,
) -> TieredEngine:  # fmt: skip
    """Raises Unplannable when the budget holds nothing that runs, ConfigError."""
    path, index = _blob(files, config, dtype, budget.ram_bytes)
    graph = graph_of(index, config, dtype, files.name)
    speed, row_s = measure(path, index, dtype, time.perf_counter)
    rows = min(spec.max_rows, MOST_ROWS)
    taken = workspace_bytes(config, rows) + wide_bytes(index, dtype)
    tiers = Tiers(budget.ram_bytes, speed, speed / 2, taken, budget.accelerator_bytes)
    work = OffloadWork(spec.max_slots, capacity(context))
    policy = choose(graph, tiers, budget.policy, work, row_s)
    if device.type != "cpu" and policy.kv == "disk":
        raise ConfigError(
            "KV does not lie on disk beside an accelerator",
            effect="the model was not loaded",
            todo="use fewer slots, a shorter context, or more memory",
        )
    cache = _cache(config, policy, context, device, dtype)
    store = Store(path, index, policy, graph, device, dtype)

    def load(kind: Kind) -> TieredDecoder:
        return TieredDecoder(config, store, capacity(context))

    parameters = graph.weight_bytes // dtype.itemsize
    runner, finding = settle(load, ("plain",), spec.numerics, cache, vocabulary[1], parameters)
    spec = replace(spec, max_slots=policy.batch, max_rows=rows)
    identity = Identity(files.name, files.digest, vocabulary[0])
    return TieredEngine(spec, identity, runner, finding, store, graph, policy)


def _blob(
    files: ModelFiles, config: ModelConfig, dtype: torch.dtype, memory: int
) -> tuple[Path, Index]:
    """In the files' own dtype, half the bytes to read, unless all fits in the one to compute in."""
    numbers = sum(math.prod(shape) for shape in expected(config).values())
    fits = numbers * dtype.itemsize <= memory
    return blob_of(files, config, dtype if fits else kept_dtype(files, dtype))


def _cache(
    config: ModelConfig, policy: OffloadPolicy, context: int, device: torch.device,
    dtype: torch.dtype,
) -> Cache:  # fmt: skip
    slots = max(policy.batch + SPARE, SLOTS)
    if policy.kv == "disk":
        return DiskCache(config, slots, context, dtype, cache_dir() / "kv")
    return Cache(config, slots, context, device, dtype)
