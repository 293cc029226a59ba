"""Exactness in any company, moved slots, refused files."""

from __future__ import annotations

import ctypes
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from outrider.engine import EngineSpec, Numerics, RowRule, Span
from outrider.engines.llama import build, library
from outrider.engines.llama import engine as engine_module
from outrider.engines.llama.engine import LlamaEngine
from outrider.engines.llama.probe import holds
from outrider.errors import (
    ConfigError,
    EngineFailed,
    EngineFull,
    LocalProtocolError,
    ModelCorrupt,
    ModelUnsupported,
    NotFound,
)
from outrider.models import gguf
from outrider.models.source import resolve

TOKENS = tuple(int(token) for token in np.random.default_rng(7).integers(1, 4096, 60))


def made(
    quant: str = "f16", numerics: Numerics = "exact", model: str = "bundled:draft"
) -> LlamaEngine:
    options = () if model.endswith(".gguf") else (("quant", quant),)
    return build(
        EngineSpec(
            model,
            "llama",
            device="cpu",
            numerics=numerics,
            context=320,
            max_slots=5,
            max_rows=96,
            threads=1,
            options=options,
        )
    )


def quantised(folder: Path, name: str) -> Path:
    """The draft in a type that llama.cpp's own tool makes."""
    source = gguf.cached(resolve("bundled:draft"), "f32").path
    params = library.lib.llama_model_quantize_default_params()
    params.ftype = getattr(library.lib, f"LLAMA_FTYPE_MOSTLY_{name}")
    params.nthread = 1
    library.start()
    path = folder / f"{name}.gguf"
    code = library.lib.llama_model_quantize(
        str(source).encode(), str(path).encode(), ctypes.byref(params)
    )
    assert code == 0
    return path


@pytest.fixture(scope="module", params=["f16", "q8_0", "f32", "Q4_K_M", "Q4_0"])
def engine(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LlamaEngine]:
    if request.param.startswith("Q"):
        path = quantised(tmp_path_factory.mktemp("quantised"), request.param)
        built = made(model=str(path))
    else:
        built = made(request.param)
    yield built
    assert built.statistics().slots_open == 0
    assert built.statistics().recheck_mismatches == 0
    built.check_integrity()
    built.shutdown()


def scores(engine: LlamaEngine, spans: list[Span], place: int) -> NDArray[np.float32]:
    spans[place] = replace(spans[place], want="scores")
    found = engine.extend(spans)[place].scores
    assert found is not None
    return found


def alone(engine: LlamaEngine) -> NDArray[np.float32]:
    slot = engine.open()
    rows = [scores(engine, [Span(slot, i, (token,))], 0) for i, token in enumerate(TOKENS)]
    engine.close(slot)
    return np.concatenate(rows)


def in_company(engine: LlamaEngine, seed: int) -> NDArray[np.float32]:
    """The same tokens in random pieces, with random others in random slots around them."""
    random = np.random.default_rng(seed)
    slots = [engine.open() for _ in range(5)]
    watched = slots[int(random.integers(5))]
    parts: list[NDArray[np.float32]] = []
    at = 0
    while at < len(TOKENS):
        size = int(random.choice([1, 1, 1, 2, 3, 5, 9, 17]))
        tokens = TOKENS[at : at + size]
        others = [slot for slot in slots if slot != watched and random.random() < 0.6]
        spans = [_other(engine, slot, random) for slot in others]
        place = int(random.integers(len(spans) + 1))
        spans.insert(place, Span(watched, at, tokens))
        parts.append(scores(engine, spans, place))
        at += len(tokens)
    for slot in slots:
        engine.close(slot)
    return np.concatenate(parts)


def _other(engine: LlamaEngine, slot: int, random: np.random.Generator) -> Span:
    """Goes on, or back, by 1 to 12 rows, and wants some of them."""
    base = int(random.integers(min(engine.length(slot), 200) + 1))
    count = int(random.integers(1, 13))
    tokens = tuple(int(token) for token in random.integers(0, 4096, count))
    return Span(slot, base, tokens, int(random.integers(count)))


def test_scores_are_bit_equal_in_any_company(engine: LlamaEngine) -> None:
    assert engine.info.exact
    assert engine.info.row_rule.uniform
    expected = alone(engine)
    for seed in range(4):
        assert in_company(engine, seed).tobytes() == expected.tobytes()
    assert engine.statistics().padded_rows > 0


def test_a_long_prefill_is_the_same_in_one_pass_and_in_many(engine: LlamaEngine) -> None:
    tokens = (TOKENS * 6)[:310]
    found = []
    for sizes in ((96,), (50, 1, 7), (95, 2)):
        slot, at, turn, last = engine.open(), 0, 0, np.empty(0, np.float32)
        while at < len(tokens):
            part = tokens[at : at + sizes[turn % len(sizes)]]
            last = scores(engine, [Span(slot, at, part, len(part) - 1)], 0)
            at, turn = at + len(part), turn + 1
        engine.close(slot)
        found.append(last.tobytes())
    assert found[0] == found[1] == found[2]


def test_the_last_cells_of_a_context_can_be_used(engine: LlamaEngine) -> None:
    """Padding needs room beyond the context, in the slot itself and in its neighbours."""
    slots = [engine.open() for _ in range(3)]
    for slot in slots:
        for at in range(0, 320, 80):
            engine.extend([Span(slot, at, (TOKENS * 2)[:80], 79)])
    spans = [Span(slots[0], 319, (5,)), Span(slots[2], 310, (1,) * 10, 9)]
    assert len(engine.extend(spans)) == 2
    assert [engine.length(slot) for slot in slots] == [320, 320, 320]
    engine.check_integrity()
    for slot in slots:
        engine.close(slot)


def test_without_the_rule_the_probe_sees_differences() -> None:
    """The control: lone rows are not computed like others, and the probe must see that."""
    loose = made("f16", "plain")
    assert not loose.info.exact
    expected = alone(loose)
    assert any(in_company(loose, seed).tobytes() != expected.tobytes() for seed in range(6))
    loose._runner.rule = RowRule()
    assert not holds(loose._runner, 5, 320)[0]
    loose._runner.rule = RowRule(2, 1, uniform=True)
    assert holds(loose._runner, 5, 320)[0]
    loose.shutdown()


def test_plain_and_exact_are_different_classes() -> None:
    exact, plain = made(), made(numerics="plain")
    assert exact.info.numeric_class != plain.info.numeric_class
    assert exact.info.vocabulary_digest == plain.info.vocabulary_digest
    again = made()
    assert again.info.numeric_class == exact.info.numeric_class
    for engine in (exact, plain, again):
        engine.shutdown()


def test_a_recheck_finds_what_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_module, "RECHECK_EVERY", 3)
    engine = made()
    slot = engine.open()
    engine.extend([Span(slot, 0, TOKENS[:8], 7)])
    for at in range(8, 20):
        engine.extend([Span(slot, at, TOKENS[at : at + 1])])
    assert engine.info.exact and engine.statistics().recheck_mismatches == 0
    engine._runner.rule = RowRule()
    for at in range(20, 26):
        engine.extend([Span(slot, at, TOKENS[at : at + 1])])
    assert not engine.info.exact and engine.statistics().recheck_mismatches == 1
    engine.check_integrity()
    engine.shutdown()


# --- slots that move ---------------------------------------------------------------------------


def test_a_moved_slot_goes_on_bit_equal(engine: LlamaEngine) -> None:
    first = engine.open()
    engine.extend([Span(first, 0, TOKENS[:30], 29)])
    segment = engine.export_kv(first, 0, 30)
    expected = scores(engine, [Span(first, 30, TOKENS[30:33])], 0)
    second = engine.open()
    engine.import_kv(second, segment)
    assert engine.length(second) == 30
    engine.check_integrity()
    found = scores(engine, [Span(second, 30, TOKENS[30:33])], 0)
    assert found.tobytes() == expected.tobytes()
    assert scores(engine, [Span(second, 29, TOKENS[29:30])], 0).size
    engine.close(first)
    engine.close(second)


def test_bad_segments_change_nothing(engine: LlamaEngine) -> None:
    slot, other = engine.open(), engine.open()
    engine.extend([Span(slot, 0, TOKENS[:9], 8)])
    segment = engine.export_kv(slot, 0, 9)
    for bad in (
        replace(segment, layout="canonical"),
        replace(segment, data=b"x" * len(segment.data)),
        replace(segment, data=segment.data[:20]),
        replace(segment, stop=8),
        replace(segment, start=1),
        replace(segment, tokens=segment.tokens * 60, stop=540),
    ):
        with pytest.raises(LocalProtocolError):
            engine.import_kv(other, bad)
        assert engine.length(other) == 0
    with pytest.raises(EngineFailed):
        engine.import_kv(other, replace(segment, tokens=segment.tokens[:8], stop=8))
    for start, stop in ((1, 9), (0, 8), (0, 10)):
        with pytest.raises(LocalProtocolError):
            engine.export_kv(slot, start, stop)
    with pytest.raises(LocalProtocolError):
        engine.import_kv(slot, segment)
    engine.check_integrity()
    engine.close(slot)
    engine.close(other)


def test_a_failed_pass_changes_no_slot(
    engine: LlamaEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    slot, other = engine.open(), engine.open()
    engine.extend([Span(slot, 0, TOKENS[:9], 8), Span(other, 0, TOKENS[:40], 39)])
    expected = scores(engine, [Span(slot, 9, TOKENS[9:10])], 0)
    calls = []

    def fails(context: object, batch: object) -> int:
        calls.append(batch)
        return -3 if len(calls) == 2 else real(context, batch)

    real = library.lib.llama_decode
    monkeypatch.setattr(library.lib, "llama_decode", fails)
    with pytest.raises(EngineFailed):
        engine.extend([Span(slot, 9, TOKENS[9:10]), Span(other, 40, TOKENS[:50])])
    monkeypatch.undo()
    assert (engine.length(slot), engine.length(other)) == (9, 40)
    engine.check_integrity()
    assert scores(engine, [Span(slot, 9, TOKENS[9:10])], 0).tobytes() == expected.tobytes()
    engine.close(slot)
    engine.close(other)


# --- what is refused ---------------------------------------------------------------------------


def test_corrupt_files_never_reach_llama(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sound = gguf.cached(resolve("bundled:draft"), "q8_0").path.read_bytes()

    def reached(*_: object) -> int:
        raise AssertionError("the native loader saw the file")

    monkeypatch.setattr(library.lib, "llama_model_load_from_file", reached)
    path = tmp_path / "bad.gguf"
    for data in (
        sound[: len(sound) // 2],
        sound[:100],
        b"",
        b"GGUF" + bytes(100),
        sound[:8] + b"\xff" * 8 + sound[16:],
    ):
        path.write_bytes(data)
        with pytest.raises((ModelCorrupt, ModelUnsupported)):
            made(model=str(path))
    path.write_bytes(sound)
    with pytest.raises(AssertionError):
        made(model=str(path))


def test_a_lone_gguf_loads(tmp_path: Path) -> None:
    made_file = gguf.cached(resolve("bundled:draft"), "f16").path
    shutil.copy(made_file, tmp_path / "model.gguf")
    folder, lone = made("f16"), made(model=str(tmp_path / "model.gguf"))
    assert lone.info.numeric_class == folder.info.numeric_class
    assert lone.info.vocabulary_digest == folder.info.vocabulary_digest
    assert alone(lone).tobytes() == alone(folder).tobytes()
    folder.shutdown()
    lone.shutdown()


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"options": (("quant", "q1"),)}, ConfigError),
        ({"options": (("kv", "q8_0"),)}, ConfigError),
        ({"options": (("speed", "high"),)}, ConfigError),
        ({"device": "tpu"}, ConfigError),
        ({"context": 4096}, ConfigError),
        ({"max_slots": 10_000_000}, EngineFull),
        ({"max_slots": 257, "context": 32}, ConfigError),
        ({"model": "absent.gguf"}, NotFound),
    ],
)
def test_settings_that_can_not_work(change: dict[str, object], error: type[Exception]) -> None:
    spec = EngineSpec("bundled:draft", "llama", device="cpu", threads=1)
    with pytest.raises(error):
        build(replace(spec, **change))  # type: ignore[arg-type]
