"""Graphs of fixed sizes on ONNX Runtime: prompts of any length in chunks, built once.

Two sessions, one for a chunk of rows and one for a single row, share the cache of each
slot. A prompt's last rows go through the chunk's graph too, padded, where that takes
fewer runs: no graph is ever built for a length.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from outrider.engine import EngineSpec, LayerRange, Picked, RowRule, StageInfo, StageSpan
from outrider.engines.onnx import class_stem
from outrider.engines.onnx.provider import Provider, choose
from outrider.engines.onnx.session import first_line, opened
from outrider.engines.slots import pick
from outrider.engines.stage import BaseStage, Hidden, Result, answering
from outrider.engines.stages import check_layers
from outrider.errors import ConfigError, EngineFailed, ModelUnsupported
from outrider.models.check import check_onnx
from outrider.models.npu_export import ChunkFiles, files_at
from outrider.models.npu_graph import HIDDEN
from outrider.models.stage_export import cache_names
from outrider.models.stage_notes import StageNotes

Array = NDArray[Any]
Given = NDArray[np.int32] | Hidden
"""Token ids [rows], or hidden rows [rows, hidden_size]."""
Watch = Callable[[Mapping[str, Array], int], None]
"""Sees a run's outputs by name, and how many of its rows are real."""

FEW = 4
"""Rows up to which single runs are taken rather than one padded chunk."""


@dataclass(slots=True)
class Graph:
    """One session; its inputs are made once and written over."""

    session: Any
    notes: StageNotes
    inputs: dict[str, Array]
    outputs: list[str]

    @property
    def rows(self) -> int:
        return self.notes.chunk

    def run(self) -> dict[str, Array]:
        # The library's errors share no base class.
        try:
            found = self.session.run(self.outputs, self.inputs)
        except Exception as error:
            raise EngineFailed(
                "onnxruntime failed in a pass",
                why=first_line(error),
                effect="the pass gave nothing",
            ) from error
        return dict(zip(self.outputs, found, strict=True))


_TYPES = {"tensor(float)": np.float32, "tensor(uint8)": np.uint8, "tensor(int32)": np.int32}


@dataclass(slots=True)
class Counters:
    graphs_built: int = 0
    """Sessions made since the runner was; more than two means that a length had its own."""
    runs: dict[int, int] = field(default_factory=dict)
    """By rows of the graph."""


class Chunks:
    """Both graphs and the caches of `slots` sequences."""

    def __init__(self, files: ChunkFiles, provider: Provider, *, threads: int, slots: int) -> None:
        self.counters = Counters()
        self._provider = provider
        self._threads = threads
        self.long, self.single = (self._opened(path) for path in (files.prefill, files.decode))
        self.notes = self.long.notes
        self.provider = provider
        names = cache_names(self.notes.layers)
        self._cache = {
            name: np.zeros((slots, *self.long.inputs[f"past.{name}"].shape), self._kind(name))
            for name in names
        }
        self._cos, self._sin = self.notes.turns(self.notes.context)

    def _kind(self, name: str) -> Any:
        return self.long.inputs[f"past.{name}"].dtype

    def _opened(self, path: Path) -> Graph:
        check_onnx(path)
        session, notes = opened(path, self._provider, self._threads)
        self.counters.graphs_built += 1
        ports = session.get_inputs()
        inputs = {port.name: np.zeros(port.shape, _TYPES[port.type]) for port in ports}
        return Graph(session, notes, inputs, [port.name for port in session.get_outputs()])

    @property
    def cache_bytes(self) -> int:
        return sum(array.nbytes for array in self._cache.values())

    def run(self, slot: int, base: int, given: Given, watch: Watch | None = None) -> Hidden:
        """Rows on top of `base` tokens: hidden rows or scores, one for each."""
        parts, at = [], 0
        while at < len(given):
            graph = self._graph(len(given) - at)
            count = min(graph.rows, len(given) - at)
            parts.append(self._chunk(graph, slot, base + at, given[at : at + count], watch))
            at += count
        return np.concatenate(parts)

    def _graph(self, left: int) -> Graph:
        return self.single if left <= FEW else self.long

    def _chunk(
        self, graph: Graph, slot: int, base: int, given: Given, watch: Watch | None
    ) -> Hidden:
        count = len(given)
        self._set(graph, slot, base, given)
        found = graph.run()
        for name, array in self._cache.items():
            array[slot, :, base : base + count] = found[f"present.{name}"][:, :count]
        if watch is not None:
            watch(found, count)
        self.counters.runs[graph.rows] = self.counters.runs.get(graph.rows, 0) + 1
        rows: Hidden = found["logits" if self.notes.head else "hidden_out"][:count]
        return rows

    def _set(self, graph: Graph, slot: int, base: int, given: Given) -> None:
        inputs, count = graph.inputs, len(given)
        rows = inputs["input_ids" if self.notes.embedding else "hidden"]
        rows[:count], rows[count:] = given, 0
        if not self._cache:
            return
        # Padded rows stand at the last position; nothing reads what they give.
        positions = np.minimum(np.arange(base, base + graph.rows), self.notes.context - 1)
        inputs["cos"][:], inputs["sin"][:] = self._cos[positions], self._sin[positions]
        for name, window in (("mask", 0), ("mask_windowed", self.notes.window)):
            if name in inputs:
                inputs[name][:] = mask(graph.rows, self.notes.context, base, window)
        for name, array in self._cache.items():
            inputs[f"past.{name}"] = array[slot]

    def forget(self, slot: int, start: int, stop: int) -> None:
        for array in self._cache.values():
            array[slot, :, start:stop] = 0


def mask(rows: int, capacity: int, base: int, window: int) -> Hidden:
    """[rows, capacity + rows]: 0 where a row may look. The past lies at 0 to `base`, the rows'
    own keys behind the capacity. `window`: how many of the last tokens a row sees, 0 for all."""
    row = base + np.arange(rows)[:, None]
    key = np.concatenate([np.arange(capacity), base + np.arange(rows)])
    there = np.concatenate([np.arange(capacity) < base, np.ones(rows, bool)])
    seen = there & (key <= row)
    if window:
        seen &= key > row - window
    return np.where(seen, 0, HIDDEN).astype(np.float32)


# --- the stage ---------------------------------------------------------------------------------


def build(spec: EngineSpec, layers: LayerRange, path: Path) -> StaticStage:
    """`path`: the first file of an export with `--target npu`. It is never exact: a row's place
    in its chunk decides in which order keys are summed. Raises ConfigError, ModelError."""
    chunks = load(path, spec.device, spec.threads or 1, spec.max_slots)
    notes = chunks.notes
    check_layers(path.name, notes, layers)
    if spec.context is not None and spec.context > notes.context:
        raise ConfigError(
            f"a context of {spec.context} tokens is not possible",
            why=f"{path.name} was exported for {notes.context}",
            effect="no stage was built",
            todo="export it again with --context",
        )
    return StaticStage(_info(spec, chunks, path), chunks)


def load(path: Path, device: str = "cpu", threads: int = 1, slots: int = 1) -> Chunks:
    """Raises ModelCorrupt, ModelUnsupported, ConfigError."""
    files = files_at(path)
    if not files.decode.is_file():
        raise ModelUnsupported(
            f"{files.decode.name} is not there",
            why="a stage of fixed sizes has two graphs, for a chunk and for a row",
            effect="no stage was built",
            todo=f"put it beside {path.name}, or export both again",
        )
    chunks = Chunks(files, choose(device), threads=threads, slots=slots)
    if chunks.single.notes.layers != chunks.notes.layers or chunks.single.rows != 1:
        raise ModelUnsupported(
            f"{files.decode.name} does not belong to {path.name}",
            effect="no stage was built",
            todo="export both again",
        )
    return chunks


class StaticStage(BaseStage):
    """Fixed graphs behind the stage's interface; each span runs alone."""

    def __init__(self, info: StageInfo, chunks: Chunks) -> None:
        super().__init__(info)
        self.chunks = chunks

    def _pass(self, spans: Sequence[StageSpan]) -> list[Result]:
        return [self._ran(span) for span in spans]

    def _ran(self, span: StageSpan) -> Result:
        given: Given | None = span.hidden
        if self._info.layers.embedding:
            given = np.array(span.tokens, np.int32)
        assert given is not None
        rows = self.chunks.run(span.slot, span.base, given)
        return self._picked(span, rows) if self._info.layers.head else rows

    def _picked(self, span: StageSpan, scores: Hidden) -> Picked:
        slot = self._held[span.slot].slot
        return pick(answering(span), slot, scores[span.first :, : self._info.vocabulary_size])

    def _forget(self, slot: int, start: int, stop: int) -> None:
        self.chunks.forget(slot, start, stop)

    def shutdown(self) -> None:
        super().shutdown()
        del self.chunks


def _info(spec: EngineSpec, chunks: Chunks, path: Path) -> StageInfo:
    notes, files = chunks.notes, files_at(path)
    weights = sum(part.stat().st_size for part in (files.prefill, files.decode, files.data))
    return StageInfo(
        engine="onnx",
        model=notes.model,
        device=chunks.provider.name,
        dtype=notes.precision,
        layers=notes.layers,
        model_layers=notes.model_layers,
        hidden_size=notes.hidden_size,
        vocabulary_digest=notes.vocabulary_digest,
        vocabulary_size=notes.vocabulary_size,
        context=spec.context or notes.context,
        max_slots=spec.max_slots,
        max_rows=spec.max_rows,
        exact=False,
        row_rule=RowRule(),
        weights_digest=notes.weights,
        numeric_class=class_stem(notes, chunks.provider, None),
        memory_bytes=weights + chunks.cache_bytes,
    )
