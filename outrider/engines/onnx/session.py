"""A stage's session in ONNX Runtime: the KV cache of all slots, and bound runs.

As `outrider.engines.onnx.decoder`: the cache never moves and is bound as past and as
present, so that attention writes new keys in place.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from outrider.engines.onnx.provider import Provider
from outrider.errors import EngineFailed, ModelCorrupt
from outrider.models.stage_export import cache_names
from outrider.models.stage_notes import StageNotes, parse_stage

SLACK = 8
"""Room behind a slot's last row for padding rows."""
_KEPT = 64
_Key = tuple[int, int, int, int]
"""First slot, slots, rows of each, rows wanted."""

Floats = NDArray[np.float32]
Given = NDArray[np.int64] | Floats
"""Token ids [batch, rows], or hidden rows [batch, rows, hidden_size]."""


@dataclass(frozen=True, slots=True)
class _Bound:
    """A binding and the arrays behind it."""

    binding: Any
    arrays: Mapping[str, NDArray[Any]]
    result: Floats


class StageSession:
    """`context`: tokens per slot."""

    def __init__(
        self, session: Any, notes: StageNotes, provider: Provider, *, slots: int, context: int
    ) -> None:
        self._session = session
        self.notes = notes
        self.provider = provider
        self.context = context
        self.capacity = context + SLACK
        cos, sin = notes.turns(self.capacity)
        shape = (slots, notes.kv_heads, self.capacity, notes.head_dim)
        self._cache = {name: np.zeros(shape, np.float32) for name in cache_names(notes.layers)}
        self._turns = {"cos": cos, "sin": sin} if self._cache else {}
        self._kept: OrderedDict[_Key, _Bound] = OrderedDict()

    @property
    def cache_bytes(self) -> int:
        return sum(array.nbytes for array in self._cache.values())

    def run(self, slot: int, given: Given, past: Sequence[int], wanted: Sequence[int]) -> Floats:
        """Neighbouring slots from `slot` on, each with the same number of rows on top of `past`.

        Hidden rows [batch, rows, hidden_size]; behind the head scores [wanted, vocab_size] of the
        rows `wanted`, counted through all slots. A view that the next run may overwrite.
        """
        count, rows = given.shape[:2]
        bound = self._binding((slot, count, rows, len(wanted)))
        arrays = bound.arrays
        arrays["input_ids" if self.notes.embedding else "hidden"][:] = given
        if self._cache:
            arrays["total"][0] = max(past) + rows
            arrays["lengths"][:] = [length + rows - 1 for length in past]
        if self.notes.head:
            arrays["wanted"][:] = wanted
        run_bound(self._session, bound.binding)
        return bound.result

    def forget(self, slot: int, start: int, stop: int) -> None:
        """Zeros for keys and values."""
        for array in self._cache.values():
            array[slot, :, start:stop] = 0

    def _binding(self, key: _Key) -> _Bound:
        found = self._kept.pop(key, None) or self._bind(*key)
        self._kept[key] = found
        if len(self._kept) > _KEPT:
            self._kept.popitem(last=False)
        return found

    def _bind(self, slot: int, count: int, rows: int, wanted: int) -> _Bound:
        notes = self.notes
        size = (wanted, notes.vocab_size) if notes.head else (count, rows, notes.hidden_size)
        bound = _Bound(
            self._session.io_binding(),
            self._inputs(count, rows, wanted),
            np.empty(size, np.float32),
        )
        for name, array in {**bound.arrays, **self._turns}.items():
            _bind_input(bound.binding, name, array)
        _bind_output(bound.binding, "logits" if notes.head else "hidden_out", bound.result)
        for name, array in self._cache.items():
            part = array[slot : slot + count]
            _bind_input(bound.binding, f"past.{name}", part)
            _bind_output(bound.binding, f"present.{name}", part)
        return bound

    def _inputs(self, count: int, rows: int, wanted: int) -> dict[str, NDArray[Any]]:
        """Arrays that are written before each run, by name."""
        found: dict[str, NDArray[Any]] = {}
        if self.notes.embedding:
            found["input_ids"] = np.zeros((count, rows), np.int64)
        else:
            found["hidden"] = np.zeros((count, rows, self.notes.hidden_size), np.float32)
        if self._cache:
            found["lengths"] = np.zeros(count, np.int32)
            found["total"] = np.zeros(1, np.int32)
        if self.notes.head:
            found["wanted"] = np.zeros(wanted, np.int64)
        return found


def _bind_input(binding: Any, name: str, array: NDArray[Any]) -> None:
    binding.bind_input(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)


def _bind_output(binding: Any, name: str, array: NDArray[Any]) -> None:
    binding.bind_output(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)


def run_bound(session: Any, binding: Any) -> None:
    """Raises EngineFailed: the library's errors share no base class."""
    try:
        session.run_with_iobinding(binding)
    except Exception as error:
        raise EngineFailed(
            "onnxruntime failed in a pass",
            why=first_line(error),
            effect="the pass gave nothing",
        ) from error


def first_line(error: Exception) -> str:
    """What the library says; it speaks of nodes and shapes, never of tokens."""
    return f"{type(error).__name__}: {str(error).splitlines()[0][:300]}"


def opened(path: Path, provider: Provider, threads: int) -> tuple[Any, StageNotes]:
    """The session of a checked file. Raises ModelCorrupt, ModelUnsupported."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 4
    # Threads may spin while a run lasts, not between runs: other stages want the cores then.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    # Processors with AVX2 and no VNNI add pairs of INT8 products in 16 bits, which saturate;
    # no NPU does.
    options.add_session_config_entry("session.x64quantprecision", "1")
    # The library's errors share no base class.
    try:
        session = ort.InferenceSession(str(path), options, providers=provider.chain)
    except Exception as error:
        raise ModelCorrupt(
            f"onnxruntime can not load {path.name}",
            why=first_line(error),
            effect="no stage was built",
            todo="export it again",
        ) from error
    return session, parse_stage(session.get_modelmeta().custom_metadata_map)
