"""ONNX stages: near the torch stages, and as a chain the ONNX engine bit for bit."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from outrider.engine import EngineSpec, LayerRange, Picked, Span, Stage, StageSpan
from outrider.engines import registry
from outrider.engines.numeric import probe_tokens
from outrider.engines.stages import build_stage, parse
from outrider.errors import ConfigError, EngineFailed, LocalProtocolError, ModelUnsupported
from outrider.models.source import BUNDLED, resolve
from outrider.models.stage_export import export_stage
from outrider.protocol.sampling import Sampling, SamplingParams
from tests.engines.stages.chain import Row
from tests.engines.stages.test_torch_stage import class_of, ragged

pytest.importorskip("onnxruntime", reason="the onnx extra is not installed")

SPEC = EngineSpec(
    model="bundled:target", engine="onnx", device="cpu", context=200, max_slots=4, threads=1
)
LAYERS = 6


@pytest.fixture(scope="module", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Exports of this module's own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OUTRIDER_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.mark.parametrize(
    "cuts",
    [
        ("0:3", "3:6"),
        ("0:1", "1:2", "2:4", "4:6"),
        ("0:0", "0:4-embedding", "4:6-head", "6:6"),
    ],
)
def test_a_chain_is_the_engine(cuts: tuple[str, ...]) -> None:
    engine, row = registry.build(SPEC), Row(SPEC, LAYERS, cuts)
    for slot in range(3):
        assert engine.open() == slot
        row.open(slot)
    for spans in ragged(4096):
        asked = [replace(span, want="scores") for span in spans]
        for mine, theirs in zip(row.extend(asked), engine.extend(asked), strict=True):
            assert mine.scores is not None and theirs.scores is not None
            np.testing.assert_allclose(mine.scores, theirs.scores, atol=1e-4, rtol=0)
            if engine.info.exact:
                assert mine.ids == theirs.ids
                assert mine.scores.tobytes() == theirs.scores.tobytes()
    if engine.info.exact:
        assert class_of(row) == engine.info.numeric_class
    row.shutdown()


def test_greedy_text_is_the_whole_model_s() -> None:
    engine, row = registry.build(SPEC), Row(SPEC, LAYERS, ("0:2", "2:6"))
    slot = engine.open()
    row.open(slot)
    prompt = list(probe_tokens(4096, 9))
    texts = [list(prompt), list(prompt)]
    for base in (0, *range(9, 60)):
        for text, run in zip(texts, (row.extend, engine.extend), strict=True):
            rows = tuple(text[base:])
            text += run([Span(slot, base, rows, len(rows) - 1)])[0].ids
    assert texts[0] == texts[1]
    row.shutdown()


@pytest.mark.parametrize(
    "family", ["llama", "llama-tied", "llama-biased", "mistral-window", "qwen2", "qwen3"]
)
def test_every_stage_is_near_the_torch_stage(family: str, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from tests.engines.torch.models import write

    write(tmp_path / "model", family)
    spec = replace(SPEC, model=str(tmp_path / "model"))
    cuts = ("0:1", "1:2", "2:3-head", "3:3")
    mine, theirs = (Row(replace(spec, engine=name), 3, cuts) for name in ("onnx", "torch"))
    for spans in ragged_stages(mine, theirs):
        rows = spans
        for one, other in zip(mine.stages, theirs.stages, strict=True):
            found, wanted = one.run(rows), other.run(rows)
            for a, b in zip(found, wanted, strict=True):
                near(a, b)
            parts = zip(rows, wanted, strict=True)
            rows = [replace(row, hidden=as_hidden(part)) for row, part in parts]
    assert all(a.info.weights_digest == b.info.weights_digest for a, b in pairs(mine, theirs))
    assert all(a.info.vocabulary_digest == b.info.vocabulary_digest for a, b in pairs(mine, theirs))


def pairs(mine: Row, theirs: Row) -> Iterator[tuple[Stage, Stage]]:
    return zip(mine.stages, theirs.stages, strict=True)


def ragged_stages(*rows: Row) -> Iterator[list[StageSpan]]:
    for slot in range(3):
        for row in rows:
            row.open(slot)
    for spans in ragged(320):
        yield [
            StageSpan(s.slot, s.base, len(s.tokens), s.tokens, None, s.first, "scores")
            for s in spans
        ]


def as_hidden(found: object) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]] | None:
    return found if isinstance(found, np.ndarray) else None


def near(found: object, wanted: object) -> None:
    if isinstance(found, Picked) and isinstance(wanted, Picked):
        found, wanted = found.scores, wanted.scores
    assert isinstance(found, np.ndarray) and isinstance(wanted, np.ndarray)
    scale = max(1.0, float(np.abs(wanted).max()))
    np.testing.assert_allclose(found, wanted, atol=1e-4 * scale, rtol=0)


def test_small_weights_run_too() -> None:
    """int8 weights: near float32's choices, in a class of their own, and smaller."""
    exact = Row(SPEC, LAYERS, ("0:6",))
    small = Row(replace(SPEC, dtype="int8", numerics="plain"), LAYERS, ("0:3", "3:6"))
    text = probe_tokens(4096, 60)
    for row in (exact, small):
        row.open(0)
    a, b = (row.extend([Span(0, 0, text)])[0].ids for row in (exact, small))
    assert sum(x == y for x, y in zip(a, b, strict=True)) >= 50
    infos = [row.stages[0].info for row in (exact, small)]
    assert infos[0].numeric_class != infos[1].numeric_class and infos[1].dtype == "int8"


def test_an_exported_file_runs_by_itself(tmp_path: Path) -> None:
    """Nothing of the model lies beside it, as on a phone."""
    layers = parse("2:4", LAYERS)
    notes = export_stage(resolve("bundled:target"), layers, tmp_path / "s.onnx")
    stage = build_stage(replace(SPEC, engine="auto", model=str(tmp_path / "s.onnx")), layers)
    assert stage.info.layers == layers == notes.layers
    assert stage.info.model_layers == LAYERS
    assert stage.info.weights_digest == resolve("bundled:target").digest
    with pytest.raises(ConfigError, match="2:4"):
        build_stage(replace(SPEC, model=str(tmp_path / "s.onnx")), parse("2:5", LAYERS))
    shutil.copy(BUNDLED / "target" / "tokenizer.json", tmp_path)
    with pytest.raises(ModelUnsupported, match="not the whole"):
        registry.build(replace(SPEC, model=str(tmp_path / "s.onnx")))


def test_a_whole_model_s_file_is_no_stage() -> None:
    from outrider.engines.onnx.files import find

    path = str(find("bundled:target", "float32").path)
    with pytest.raises(ModelUnsupported, match="not a stage"):
        build_stage(replace(SPEC, model=path), LayerRange(0, 6, embedding=True, head=True))


def test_exports_repeat_to_the_byte(tmp_path: Path) -> None:
    for name in ("a.onnx", "b.onnx"):
        export_stage(resolve("bundled:target"), parse("1:2", LAYERS), tmp_path / name)
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


@pytest.fixture(scope="module")
def middle() -> Iterator[Stage]:
    found = build_stage(SPEC, parse("1:3", LAYERS))
    yield found
    found.shutdown()


def rows(count: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    return np.random.default_rng(3).standard_normal((count, 256)).astype(np.float32)


def test_what_can_not_run_changes_nothing(middle: Stage) -> None:
    middle.open(0)
    first = middle.run([StageSpan(0, 0, 6, hidden=rows(6))])[0]
    bad = np.full((2, 256), np.nan, np.float32)
    for hidden, error in ((bad, EngineFailed), (rows(2)[:, :64], LocalProtocolError)):
        with pytest.raises(error):
            middle.run([StageSpan(0, 2, 2, hidden=hidden)])
    middle.rewind(0, 6)
    again = middle.run([StageSpan(0, 0, 6, hidden=rows(6))])[0]
    assert isinstance(first, np.ndarray) and isinstance(again, np.ndarray)
    assert first.tobytes() == again.tobytes()
    middle.close(0)


def test_results_are_not_overwritten_by_later_passes(middle: Stage) -> None:
    middle.open(0)
    first = middle.run([StageSpan(0, 0, 2, hidden=rows(2))])[0]
    assert isinstance(first, np.ndarray)
    kept = first.copy()
    middle.run([StageSpan(0, 2, 2, hidden=rows(2) + 1)])
    assert kept.tobytes() == first.tobytes()
    middle.close(0)


def test_the_head_samples() -> None:
    sampling = Sampling(SamplingParams(temperature=0.9, presence_penalty=0.5), seed=3)
    engine, row = registry.build(SPEC), Row(SPEC, LAYERS, ("0:5", "5:6"))
    slot = engine.open(sampling)
    row.open(slot, sampling)
    text = probe_tokens(4096, 12)
    asked = [Span(slot, 0, text, first=4, want="logprobs", top_n=2)]
    mine, theirs = row.extend(asked)[0], engine.extend(asked)[0]
    if engine.info.exact:
        assert mine == theirs
    assert row.extend([Span(slot, 12, text, first=12)]) == [Picked(())]


def test_rechecks_find_what_stopped_being_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    from outrider.engines.onnx import stage as adapter

    monkeypatch.setattr(adapter, "RECHECK_EVERY", 2)
    stage = build_stage(SPEC, parse("1:2", LAYERS))
    if not stage.info.exact:
        pytest.skip("no rule made rows bit-equal on this machine")
    stage.open(0)
    for at in range(4):
        stage.run([StageSpan(0, at, 1, hidden=rows(1))])
    assert stage.info.exact
    session = stage._session  # type: ignore[attr-defined]
    inner = session.run
    monkeypatch.setattr(
        session, "run", lambda slot, given, *more: inner(slot, given, *more) + given.shape[1]
    )
    for at in range(4, 6):
        stage.run([StageSpan(0, at, 1, hidden=rows(1))])
    assert not stage.info.exact
