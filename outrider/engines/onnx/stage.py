"""The ONNX stage: a range of layers with hidden states in or out, exported at first use."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from outrider.engine import EngineSpec, LayerRange, Picked, RowRule, StageInfo, StageSpan
from outrider.engines.onnx import class_stem, probe, static, threads_for
from outrider.engines.onnx.decoder import Call
from outrider.engines.onnx.files import PRECISIONS, kept
from outrider.engines.onnx.provider import choose
from outrider.engines.onnx.session import Floats, Given, StageSession, opened
from outrider.engines.slots import pick
from outrider.engines.stage import BaseStage, Result, answering
from outrider.engines.stages import check_layers, check_range, show
from outrider.errors import ConfigError, ModelUnsupported
from outrider.models.check import check_onnx
from outrider.models.config import load_config
from outrider.models.npu_export import files_at
from outrider.models.source import ModelFiles, resolve
from outrider.models.stage_export import export_stage
from outrider.models.stage_notes import STAGE_FORMAT, StageNotes

GAP = 3
"""Slots without a row that a run spans rather than ending: an idle row costs less than a run."""
RECHECK_EVERY = 1000
"""Passes between two re-checks of an exact stage."""


def build(spec: EngineSpec, layers: LayerRange) -> BaseStage:
    """`spec.model`: a folder, exported to the cache folder at first use, or a file that
    `outrider export` wrote, for either target. dtype: float32, int8, int4 (of a folder)."""
    if spec.options:
        raise ConfigError(f"the onnx engine has no option {spec.options[0][0]!r}")
    files = resolve(spec.model)
    if files.kind == "onnx" and files_at(files.path).decode.is_file():
        return static.build(spec, layers, files.path)
    path = files.path if files.kind == "onnx" else _exported(files, layers, spec)
    check_onnx(path)
    provider = choose(spec.device)
    session, notes = opened(path, provider, spec.threads or threads_for(path))
    _check_notes(path, notes, layers)
    context = _context(spec, notes)
    running = StageSession(session, notes, provider, slots=spec.max_slots, context=context)
    rule = _rule(running, spec) if spec.numerics == "exact" else None
    return OnnxStage(_info(spec, running, rule, path), running)


def _exported(files: ModelFiles, layers: LayerRange, spec: EngineSpec) -> Path:
    if files.kind != "safetensors" or files.config is None:
        raise ModelUnsupported(
            f"no stage can be made of the {files.kind} file {files.name}",
            effect="no stage was built",
            todo="name the folder with config.json and safetensors",
        )
    model_layers = load_config(files.config).layers
    check_range(layers, model_layers)
    dtype = spec.dtype
    if dtype == "auto":
        dtype = "float32" if spec.numerics == "exact" else "int8"
    if dtype not in PRECISIONS:
        raise ConfigError(f"onnx has no dtype {dtype!r}", todo=f"one of {', '.join(PRECISIONS)}")
    name = f"{dtype}-stage{STAGE_FORMAT}-{show(layers, model_layers).replace(':', '-')}"

    def write(path: Path) -> None:
        export_stage(files, layers, path, PRECISIONS[dtype])

    return kept(files, name, write)


def _check_notes(path: Path, notes: StageNotes, layers: LayerRange) -> None:
    if notes.target != "cpu":
        raise ModelUnsupported(
            f"{path.name} has fixed sizes, and its graph for one row is not beside it",
            effect="no stage was built",
            todo=f"put {files_at(path).decode.name} there, or export with --target cpu",
        )
    check_layers(path.name, notes, layers)


def _context(spec: EngineSpec, notes: StageNotes) -> int:
    if spec.context is not None and not 1 <= spec.context <= notes.context:
        raise ConfigError(
            f"a context of {spec.context} tokens is not possible",
            why=f"the model was made for {notes.context}",
            effect="no stage was built",
            todo=f"ask for at most {notes.context}",
        )
    return spec.context or notes.context


class OnnxStage(BaseStage):
    """A pass is a few runs: slots with one row share one, a longer span has its own.

    GroupQueryAttention takes several rows on top of a past for one sequence only. Rows of
    slots that lie in a run's range without being asked write one key beyond their end, where
    nothing reads it.
    """

    def __init__(self, info: StageInfo, session: StageSession) -> None:
        super().__init__(info)
        self._session = session
        self._passes = 0

    def _pass(self, spans: Sequence[StageSpan]) -> list[Result]:
        self._passes += 1
        found = dict(self._results(spans))
        if self._info.exact and self._passes % RECHECK_EVERY == 0:
            self._recheck(spans[0])
        return [found[span.slot] for span in spans]

    def _results(self, spans: Sequence[StageSpan]) -> Iterator[tuple[int, Result]]:
        ordered = sorted(spans, key=lambda span: span.slot)
        single = [span for span in ordered if self._computed(span) == 1]
        for group in _neighbours(single):
            yield from self._run_rows(group)
        for span in ordered:
            if self._computed(span) > 1:
                yield span.slot, self._run_span(span)

    def _computed(self, span: StageSpan) -> int:
        return self._info.row_rule.padded(span.rows)

    def _run_rows(self, group: Sequence[StageSpan]) -> Iterator[tuple[int, Result]]:
        """One row each for neighbouring slots, in one run."""
        first, last = group[0].slot, group[-1].slot
        asked = {span.slot: span for span in group}
        past = [self._past(slot) for slot in range(first, last + 1)]
        given = self._given([asked.get(slot) for slot in range(first, last + 1)], 1)
        rows = self._session.run(first, given, past, [span.slot - first for span in group])
        for number, span in enumerate(group):
            if self._info.layers.head:
                yield span.slot, self._picked(span, rows[number : number + 1])
            else:
                yield span.slot, rows[span.slot - first].copy()

    def _past(self, slot: int) -> int:
        held = self._held.get(slot)
        return held.length if held else 0

    def _run_span(self, span: StageSpan) -> Result:
        rows = self._rows(span, self._computed(span))
        return self._picked(span, rows) if self._info.layers.head else rows.copy()

    def _rows(self, span: StageSpan, computed: int) -> Floats:
        """What comes out for the span, padded to `computed` rows, without the padding."""
        given = self._given([span], computed)
        # Where nothing is asked for behind the head, the graph still gives a row.
        wanted = range(min(span.first, span.rows - 1), span.rows)
        rows = self._session.run(span.slot, given, [span.base], wanted)
        return rows if self._info.layers.head else rows[0, : span.rows]

    def _given(self, spans: Sequence[StageSpan | None], rows: int) -> Given:
        """Tokens or hidden rows, zeros where none are asked for."""
        if self._info.layers.embedding:
            ids = np.zeros((len(spans), rows), np.int64)
            for at, span in enumerate(spans):
                if span is not None:
                    ids[at, : span.rows] = span.tokens
            return ids
        hidden = np.zeros((len(spans), rows, self._info.hidden_size), np.float32)
        for at, span in enumerate(spans):
            if span is not None:
                hidden[at, : span.rows] = span.hidden
        return hidden

    def _picked(self, span: StageSpan, scores: Floats) -> Picked:
        slot = self._held[span.slot].slot
        wanted = scores[: span.rows - span.first, : self._info.vocabulary_size]
        return pick(answering(span), slot, wanted)

    def _recheck(self, span: StageSpan) -> None:
        """Compute the span again with more rows behind it; `exact` ends with a difference."""
        usual = self._computed(span)
        other = self._info.row_rule.padded(usual + 1)
        if span.base + other > self._session.capacity:
            return
        rows = self._rows(span, usual).copy()
        if not np.array_equal(rows, self._rows(span, other)):
            self._info = replace(self._info, exact=False)

    def _forget(self, slot: int, start: int, stop: int) -> None:
        self._session.forget(slot, start, stop)

    def shutdown(self) -> None:
        super().shutdown()
        del self._session


def _neighbours(spans: Sequence[StageSpan]) -> Iterator[list[StageSpan]]:
    """Runs of spans, in order of their slots, with at most GAP idle slots in between."""
    group: list[StageSpan] = []
    for span in spans:
        if group and span.slot - group[-1].slot > GAP + 1:
            yield group
            group = []
        group.append(span)
    if group:
        yield group


# --- the probe ---------------------------------------------------------------------------------


class _Probed:
    """A stage as the probe of whole models runs it: each token has a hidden row of its own
    where none is looked up, and hidden rows that come out are compared like scores."""

    def __init__(self, session: StageSession) -> None:
        self._session = session
        self.capacity = session.capacity
        self.notes = session.notes

    def run(self, call: Call) -> Floats:
        ids = np.array(call.ids, np.int64)
        given: Given = ids if self.notes.embedding else self._stand_ins(ids)
        found = self._session.run(call.slot, given, call.past, call.wanted)
        if self.notes.head:
            return found
        return found.reshape(-1, self.notes.hidden_size)[list(call.wanted)]

    def _stand_ins(self, ids: np.ndarray[tuple[int, ...], np.dtype[np.int64]]) -> Floats:
        width = np.arange(1, self.notes.hidden_size + 1) * 0.013
        return np.sin((ids[..., None] + 1) * width).astype(np.float32)


def _rule(session: StageSession, spec: EngineSpec) -> RowRule | None:
    return probe.rule_of(_Probed(session), spec.max_slots)


# --- description -------------------------------------------------------------------------------


def _info(spec: EngineSpec, session: StageSession, rule: RowRule | None, path: Path) -> StageInfo:
    notes = session.notes
    weights = sum(part.stat().st_size for part in path.parent.glob(path.name + "*"))
    return StageInfo(
        engine="onnx",
        model=notes.model,
        device=session.provider.name,
        dtype="float32" if notes.precision == "stored" else notes.precision,
        layers=notes.layers,
        model_layers=notes.model_layers,
        hidden_size=notes.hidden_size,
        vocabulary_digest=notes.vocabulary_digest,
        vocabulary_size=notes.vocabulary_size,
        context=session.context,
        max_slots=spec.max_slots,
        max_rows=spec.max_rows,
        exact=rule is not None,
        row_rule=rule or RowRule(),
        weights_digest=notes.weights,
        numeric_class=class_stem(notes, session.provider, rule),
        memory_bytes=weights + session.cache_bytes,
    )
