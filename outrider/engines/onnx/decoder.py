"""One model in ONNX Runtime: the session, the KV cache of all slots, and bound passes.

The cache of a layer is one array [slots, kv_heads, capacity, head_dim] that never
moves. A run binds the part of it that belongs to a run of neighbouring slots as
past and as present, so that attention writes new keys in place; ids, lengths and
scores stand in arrays that stay bound, so that decoding a row writes a few
integers and calls the session.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from outrider.engines.onnx.provider import Provider
from outrider.errors import ConfigError, EngineFailed, ModelCorrupt
from outrider.models.onnx_notes import Notes, parse

SLACK = 8
"""Room behind a slot's last token for padding rows."""
SPIN_US = 200
"""Microseconds that a thread without work stays awake: from one pass of a drafter to the next,
and no longer, because others want the cores."""
_KEPT_BINDINGS = 64
_KEPT_SCORES = 1 << 20
"""Elements of scores up to which a binding is kept."""

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Call:
    """One run over neighbouring slots, each with the same number of rows."""

    slot: int
    """The first of them."""
    ids: Sequence[Sequence[int]]
    """Per slot its rows."""
    past: Sequence[int]
    """Per slot the tokens already in the cache."""
    wanted: Sequence[int]
    """Indices into the rows of all slots, one after the other."""


@dataclass(frozen=True, slots=True)
class _Bound:
    """A binding and the arrays behind it."""

    binding: Any
    ids: NDArray[np.int64]
    lengths: NDArray[np.int32]
    total: NDArray[np.int32]
    wanted: NDArray[np.int64]
    scores: Floats


def _context(wanted: int | None, trained: int) -> int:
    """As the other engines: never more than the model was made for. Raises ConfigError."""
    if wanted is not None and not 1 <= wanted <= trained:
        raise ConfigError(
            f"a context of {wanted} tokens is not possible",
            why=f"the model was made for {trained}",
            effect="the model was not loaded",
            todo=f"ask for at most {trained}",
        )
    return wanted or trained


class Decoder:
    """`context`: tokens per slot, None for what the model was made for; a few more fit."""

    def __init__(
        self, path: Path, provider: Provider, *, threads: int, slots: int, context: int | None
    ) -> None:
        self._session = _opened(path, provider, threads)
        self.notes: Notes = parse(self._session.get_modelmeta().custom_metadata_map)
        self.context = _context(context, self.notes.context)
        self.capacity = self.context + SLACK
        self._cos, self._sin = self.notes.turns(self.capacity)
        shape = (slots, self.notes.kv_heads, self.capacity, self.notes.head_dim)
        self._cache = [
            (np.zeros(shape, dtype=np.float32), np.zeros(shape, dtype=np.float32))
            for _ in range(self.notes.first, self.notes.stop)
        ]
        self._bound: OrderedDict[tuple[int, int, int, int], _Bound] = OrderedDict()

    def run(self, call: Call) -> Floats:
        """Scores [wanted, vocab_size]; a view that the next run may overwrite."""
        rows = len(call.ids[0])
        bound = self._binding(call.slot, len(call.ids), rows, len(call.wanted))
        bound.ids[:] = call.ids
        bound.total[0] = max(call.past) + rows
        bound.lengths[:] = [past + rows - 1 for past in call.past]
        bound.wanted[:] = call.wanted
        return self._ran(bound)

    def step(self, slot: int, token: int, past: int) -> Floats:
        """`run` of one row: its scores, [vocab_size]."""
        bound = self._binding(slot, 1, 1, 1)
        bound.ids[0, 0] = token
        bound.total[0] = past + 1
        bound.lengths[0] = past
        bound.wanted[0] = 0
        row: Floats = self._ran(bound)[0]
        return row

    def _ran(self, bound: _Bound) -> Floats:
        # The library's errors share no base class.
        try:
            self._session.run_with_iobinding(bound.binding)
        except Exception as error:
            raise EngineFailed(
                "onnxruntime failed in a pass",
                why=_first_line(error),
                effect="the pass gave nothing",
            ) from error
        return bound.scores

    def read(self, slot: int, start: int, stop: int) -> Floats:
        """Keys and values of a range, [layer, 2, kv_head, token, head_dim]."""
        return np.stack([[part[slot, :, start:stop] for part in pair] for pair in self._cache])

    def write(self, slot: int, start: int, data: NDArray[np.floating]) -> None:
        """The inverse of `read`."""
        for pair, layer in zip(self._cache, data, strict=True):
            for part, rows in zip(pair, layer, strict=True):
                part[slot, :, start : start + data.shape[3]] = rows

    def _binding(self, slot: int, count: int, rows: int, wanted: int) -> _Bound:
        key = (slot, count, rows, wanted)
        found = self._bound.get(key)
        if found is None:
            found = self._bind(*key)
            if found.scores.size <= _KEPT_SCORES:
                self._bound[key] = found
                if len(self._bound) > _KEPT_BINDINGS:
                    self._bound.popitem(last=False)
        else:
            self._bound.move_to_end(key)
        return found

    def _bind(self, slot: int, count: int, rows: int, wanted: int) -> _Bound:
        bound = _Bound(
            self._session.io_binding(),
            np.zeros((count, rows), dtype=np.int64),
            np.zeros(count, dtype=np.int32),
            np.zeros(1, dtype=np.int32),
            np.zeros(wanted, dtype=np.int64),
            np.zeros((wanted, self.notes.vocab_size), dtype=np.float32),
        )
        inputs: dict[str, NDArray[Any]] = {
            "input_ids": bound.ids,
            "lengths": bound.lengths,
            "total": bound.total,
            "wanted": bound.wanted,
            "cos": self._cos,
            "sin": self._sin,
        }
        for name, array in inputs.items():
            _bind_input(bound.binding, name, array)
        _bind_output(bound.binding, "logits", bound.scores)
        self._bind_cache(bound.binding, slice(slot, slot + count))
        return bound

    def _bind_cache(self, binding: Any, slots: slice) -> None:
        for index, pair in enumerate(self._cache, self.notes.first):
            for part, array in zip(("key", "value"), pair, strict=True):
                _bind_input(binding, f"past.{index}.{part}", array[slots])
                _bind_output(binding, f"present.{index}.{part}", array[slots])


def _bind_input(binding: Any, name: str, array: NDArray[Any]) -> None:
    kind = array.dtype.type
    binding.bind_input(name, "cpu", 0, kind, array.shape, array.ctypes.data)


def _bind_output(binding: Any, name: str, array: NDArray[Any]) -> None:
    kind = array.dtype.type
    binding.bind_output(name, "cpu", 0, kind, array.shape, array.ctypes.data)


def _first_line(error: Exception) -> str:
    """What the library says; it speaks of nodes and shapes, never of tokens."""
    return f"{type(error).__name__}: {str(error).splitlines()[0][:300]}"


def _opened(path: Path, provider: Provider, threads: int) -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 4
    options.add_session_config_entry("session.intra_op.spin_duration_us", str(SPIN_US))
    # The library's errors share no base class.
    try:
        return ort.InferenceSession(str(path), options, providers=provider.chain)
    except Exception as error:
        raise ModelCorrupt(
            f"onnxruntime can not load {path.name}",
            why=_first_line(error),
            effect="no model was loaded",
            todo="export it again",
        ) from error
