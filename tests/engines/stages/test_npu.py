"""Fixed INT8 graphs run: in float they are the model, in INT8 near it, for any length of prompt."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from outrider.engine import EngineSpec, LayerRange, Picked, Span, StageSpan
from outrider.engines import registry
from outrider.engines.stages import build_stage, parse
from outrider.errors import ConfigError, ContextExceeded, ModelUnsupported
from outrider.models.npu_graph import Range, Scheme
from outrider.models.source import resolve

pytest.importorskip("onnxruntime", reason="the onnx extra is not installed")

from outrider.engines.onnx import static
from outrider.engines.onnx.calibrate import calibrate, measure, spread, standard_text
from outrider.models import tokenizer
from outrider.models.npu_export import export_chunks, files_at

WHOLE = LayerRange(0, 6, embedding=True, head=True)
SPEC = EngineSpec(
    model="bundled:target", engine="onnx", device="cpu", context=128, max_slots=2, threads=1
)


@pytest.fixture(scope="module")
def ranges() -> dict[str, Range]:
    return calibrate(resolve("bundled:target"), standard_text(), 12)


@pytest.fixture(scope="module")
def text() -> list[int]:
    """Code that is not calibrated on."""
    words = tokenizer.load(resolve("bundled:target"))
    return list(words.encode(Path(spread.__code__.co_filename).read_text()))[:128]


@pytest.fixture(scope="module")
def exported(ranges: dict[str, Range], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("npu") / "target.onnx"
    export_chunks(resolve("bundled:target"), WHOLE, path, Scheme(ranges), chunk=16, context=128)
    return path


def chosen_by_float(text: list[int]) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    engine = registry.build(replace(SPEC, dtype="float32"))
    slot = engine.open()
    found = engine.extend([Span(slot, 0, tuple(text))])[0].ids
    engine.shutdown()
    return np.array(found)


FAMILIES = ("llama", "llama-tied", "llama-biased", "mistral-window", "qwen2-window", "qwen3")


@pytest.mark.parametrize("family", FAMILIES)
def test_in_float_it_is_the_model(family: str, tmp_path: Path) -> None:
    """Every family through chunks, single rows and padding, against the torch engine."""
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from tests.engines.torch.models import write

    write(tmp_path / "model", family)
    files = resolve(str(tmp_path / "model"))
    whole = LayerRange(0, 3, embedding=True, head=True)
    export_chunks(files, whole, tmp_path / "s.onnx", None, chunk=16, context=96)
    chunks = static.load(tmp_path / "s.onnx")
    ids = np.array([(i * 37 + 11) % 320 for i in range(90)], np.int32)
    parts = [(0, 39), (39, 42), (42, 43), (43, 90)]
    found = np.concatenate([chunks.run(0, a, ids[a:b]) for a, b in parts])
    engine = registry.build(replace(SPEC, engine="torch", model=str(tmp_path / "model")))
    slot = engine.open()
    wanted = engine.extend([Span(slot, 0, tuple(ids.tolist()), want="scores")])[0].scores
    assert wanted is not None
    np.testing.assert_allclose(found, wanted, atol=2e-4 * max(1, np.abs(wanted).max()), rtol=0)


def test_int8_chooses_as_float_does(exported: Path, text: list[int]) -> None:
    found = static.load(exported).run(0, 0, np.array(text, np.int32)).argmax(-1)
    agreement = float((found == chosen_by_float(text)).mean())
    assert agreement >= 0.94


def test_wrong_scales_are_seen(ranges: dict[str, Range], text: list[int], tmp_path: Path) -> None:
    """The control."""
    quarter = np.float32(0.25)
    small = {name: Range(r.low * quarter, r.high * quarter) for name, r in ranges.items()}
    files = resolve("bundled:target")
    export_chunks(files, WHOLE, tmp_path / "s.onnx", Scheme(small), chunk=16, context=128)
    found = static.load(tmp_path / "s.onnx").run(0, 0, np.array(text, np.int32)).argmax(-1)
    assert float((found == chosen_by_float(text)).mean()) < 0.85


def test_no_graph_is_built_for_a_length(exported: Path, text: list[int]) -> None:
    chunks = static.load(exported, slots=2)
    ids = np.array(text, np.int32)
    for length in (1, 3, 15, 16, 17, 40, 100):
        chunks.run(0, 0, ids[:length])
    assert chunks.counters.graphs_built == 2
    assert set(chunks.counters.runs) == {1, 16}


def test_slots_do_not_meet(exported: Path, text: list[int]) -> None:
    chunks = static.load(exported, slots=2)
    ids = np.array(text, np.int32)
    alone = chunks.run(0, 0, ids[:40])
    chunks.run(1, 0, ids[50:80])
    chunks.run(0, 0, ids[:20])
    chunks.run(1, 30, ids[80:90])
    again = chunks.run(0, 20, ids[20:40])
    assert again.argmax(-1).tolist() == alone[20:].argmax(-1).tolist()


def test_it_is_a_stage(exported: Path, text: list[int]) -> None:
    stage = build_stage(replace(SPEC, model=str(exported)), WHOLE)
    assert not stage.info.exact and stage.info.dtype == "int8" and stage.info.context == 128
    assert stage.info.weights_digest == resolve("bundled:target").digest
    stage.open(1)
    rows = tuple(text[:50])
    whole = stage.run([StageSpan(1, 0, 50, rows, first=40, want="scores")])[0]
    assert isinstance(whole, Picked) and whole.scores is not None
    assert whole.scores.shape == (10, 4096)
    stage.rewind(1, 48)
    again = stage.run([StageSpan(1, 48, 2, rows[48:])])[0]
    assert isinstance(again, Picked) and again.ids == whole.ids[8:]
    with pytest.raises(ContextExceeded):
        stage.run([StageSpan(1, 50, 79, tuple(text[:79]))])
    stage.shutdown()


def test_a_chain_of_fixed_stages(ranges: dict[str, Range], text: list[int], tmp_path: Path) -> None:
    """Layers apart, as on two devices: near the whole."""
    hidden, found, rows = None, None, tuple(text[:60])
    for cut in ("0:2", "2:6"):
        layers, path = parse(cut, 6), tmp_path / f"{cut.replace(':', '-')}.onnx"
        export_chunks(
            resolve("bundled:target"), layers, path, Scheme(ranges), chunk=16, context=128
        )
        stage = build_stage(replace(SPEC, model=str(path)), layers)
        stage.open(0)
        found = stage.run([StageSpan(0, 0, 60, rows, hidden)])[0]
        hidden = found if isinstance(found, np.ndarray) else None
    assert isinstance(found, Picked)
    assert float((np.array(found.ids) == chosen_by_float(list(rows))).mean()) >= 0.9


def test_what_is_not_whole_is_refused(exported: Path, tmp_path: Path) -> None:
    spec = replace(SPEC, model=str(exported))
    with pytest.raises(ConfigError, match="0:6"):
        build_stage(spec, parse("0:3", 6))
    with pytest.raises(ConfigError, match="context"):
        build_stage(replace(spec, context=256), WHOLE)
    places = files_at(exported)
    for place in (places.prefill, places.data):
        (tmp_path / place.name).write_bytes(place.read_bytes())
    with pytest.raises(ModelUnsupported, match="not beside"):
        build_stage(replace(SPEC, model=str(tmp_path / exported.name)), WHOLE)


def test_padding_is_no_part_of_what_was_seen() -> None:
    """A short window runs padded; its ranges are those of its own rows."""
    files = resolve("bundled:draft")
    ids = np.arange(100, 180, dtype=np.int32)
    whole, short = measure(files, [ids]), measure(files, [ids[:64], ids[:70]])
    assert set(whole) == set(short)
    for point, found in short.items():
        assert (found.high <= whole[point].high + 1e-3).all(), point
        assert (found.low >= whole[point].low - 1e-3).all(), point


def test_too_little_text_is_refused() -> None:
    with pytest.raises(ConfigError, match="too few"):
        calibrate(resolve("bundled:draft"), ["short"])


@pytest.fixture(scope="module", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OUTRIDER_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield
