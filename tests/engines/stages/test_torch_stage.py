"""A chain of torch stages is the torch engine, bit for bit, wherever it is cut."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from outrider.engine import EngineSpec, LayerRange, Picked, Span, Stage, StageSpan
from outrider.engines import registry
from outrider.engines.numeric import digest_of, joined_class, probe_tokens
from outrider.engines.stages import build_stage, parse, show
from outrider.errors import (
    ConfigError,
    ContextExceeded,
    EngineFailed,
    EngineFull,
    InvalidRequest,
    LocalProtocolError,
)
from outrider.protocol.sampling import Sampling, SamplingParams
from tests.engines.stages.chain import Row

pytest.importorskip("torch", reason="the torch extra is not installed")

SPEC = EngineSpec(
    model="bundled:target", engine="torch", device="cpu", context=200, max_slots=4, threads=1
)
LAYERS = 6
CUTS = {
    "two": ("0:3", "3:6"),
    "four": ("0:1", "1:2", "2:4", "4:6"),
    "ends alone": ("0:0", "0:4-embedding", "4:6-head", "6:6"),
    "one": ("0:6",),
}
FAMILIES = ("llama", "llama-tied", "mistral-window", "qwen2-window", "qwen3", "odd")
"""Random models of three layers, of `tests.engines.torch.models`."""


# --- the same bits -----------------------------------------------------------------------------


def ragged(vocabulary: int) -> Iterator[list[Span]]:
    """Passes over three slots: prefills in pieces, single rows, rewinds, gaps."""
    text = probe_tokens(vocabulary, 150)
    yield [Span(2, 0, text[:70]), Span(0, 0, text[5:8])]
    yield [Span(0, 3, text[8:9]), Span(1, 0, text[20:60], first=30), Span(2, 70, text[70:75])]
    yield [Span(2, 72, text[100:103])]
    yield [Span(1, 39, text[9:14]), Span(2, 75, text[110:111])]
    yield [Span(0, 1, text[40:105], first=64), Span(2, 76, text[111:120], first=2)]
    yield [Span(slot, at, text[at : at + 1]) for slot, at in ((0, 66), (1, 44), (2, 85))]


def agrees(spec: EngineSpec, layers: int, cuts: tuple[str, ...]) -> None:
    engine, row = registry.build(spec), Row(spec, layers, cuts)
    assert engine.info.exact and all(stage.info.exact for stage in row.stages)
    for slot in range(3):
        assert engine.open() == slot
        row.open(slot)
    for spans in ragged(engine.info.vocabulary_size):
        asked = [replace(span, want="scores") for span in spans]
        for mine, theirs in zip(row.extend(asked), engine.extend(asked), strict=True):
            assert mine.ids == theirs.ids
            assert mine.scores is not None and theirs.scores is not None
            assert mine.scores.tobytes() == theirs.scores.tobytes()
    assert class_of(row) == engine.info.numeric_class
    row.shutdown()


def class_of(row: Row) -> str:
    """As the engine of a chain makes it: the probe through all stages."""
    info = row.stages[0].info
    row.open(info.max_slots - 1)
    span = Span(info.max_slots - 1, 0, probe_tokens(info.vocabulary_size), want="scores")
    scores = row.extend([span])[0].scores
    assert scores is not None
    return joined_class([stage.info.numeric_class for stage in row.stages], digest_of(scores))


@pytest.mark.parametrize("cuts", sorted(CUTS))
def test_a_chain_is_the_engine(cuts: str) -> None:
    agrees(SPEC, LAYERS, CUTS[cuts])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "cuts", [("0:1", "1:3"), ("0:0", "0:1-embedding", "1:2", "2:3-head", "3:3")]
)
def test_a_chain_is_the_engine_in_every_family(
    family: str, cuts: tuple[str, ...], tmp_path: Path
) -> None:
    pytest.importorskip("transformers")
    from tests.engines.torch.models import write

    write(tmp_path / "model", family)
    agrees(replace(SPEC, model=str(tmp_path / "model")), 3, cuts)


def test_bfloat16_goes_over_float32_without_loss() -> None:
    agrees(replace(SPEC, dtype="bfloat16", model="bundled:draft"), 2, ("0:1", "1:2"))


def test_a_chain_samples_as_the_engine_does() -> None:
    params = SamplingParams(temperature=0.9, top_p=0.9, frequency_penalty=0.6)
    sampling = Sampling(params, seed=11, prompt_length=4)
    engine, row = registry.build(SPEC), Row(SPEC, LAYERS, CUTS["two"])
    slot = engine.open(sampling)
    row.open(slot, sampling)
    mine, theirs = [5, 6, 7, 8], [5, 6, 7, 8]
    for base in (0, *range(4, 16)):
        for text, run in ((mine, row.extend), (theirs, engine.extend)):
            rows = tuple(text[base:])
            text += run([Span(slot, base, rows, len(rows) - 1)])[0].ids
    assert mine == theirs
    for want in ("logprobs", "children"):
        asked = [Span(slot, 8, tuple(mine[8:12]), want=want, top_n=3)]
        assert row.extend(asked) == engine.extend(asked)
    row.shutdown()


def test_a_class_tells_ways_apart() -> None:
    """The control: plain numerics, and stages of another model, are in other classes."""
    exact = build_stage(SPEC, parse("0:1", LAYERS)).info
    plain = build_stage(replace(SPEC, numerics="plain"), parse("0:1", LAYERS)).info
    other = build_stage(replace(SPEC, model="bundled:draft"), parse("0:1", 2)).info
    assert len({exact.numeric_class, plain.numeric_class, other.numeric_class}) == 3
    assert not plain.exact
    assert other.weights_digest != exact.weights_digest == plain.weights_digest
    one = joined_class([exact.numeric_class] * 3, "d")
    assert one == joined_class([exact.numeric_class], "d")
    assert one != joined_class([exact.numeric_class, "int8", exact.numeric_class], "d")


# --- one stage ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def middle() -> Iterator[Stage]:
    found = build_stage(SPEC, parse("1:3", LAYERS))
    yield found
    found.shutdown()


@pytest.fixture
def stage(middle: Stage) -> Iterator[Stage]:
    """A stage in the middle, slot 1 open with ten rows."""
    middle.open(1)
    middle.run([StageSpan(1, 0, 10, hidden=rows(10))])
    yield middle
    middle.close(1)


def rows(count: int, seed: int = 3) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    found = np.random.default_rng(seed).standard_normal((count, 256)).astype(np.float32)
    return found


def hidden_of(found: object) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    assert isinstance(found, np.ndarray)
    return found


def test_a_stage_loads_its_layers_alone(middle: Stage) -> None:
    whole = build_stage(SPEC, parse(":", LAYERS))
    assert middle.info.layers == LayerRange(1, 3, embedding=False, head=False)
    assert middle.info.model_layers == LAYERS
    layer = 4 * (256 * 2 + 256 * 512 + 256 * 256 + 3 * 256 * 704)
    slots, tokens = SPEC.max_slots + 1, 256
    kv = 2 * 2 * slots * 2 * tokens * 64 * 4
    assert middle.info.memory_bytes == 2 * layer + kv
    assert whole.info.memory_bytes > 3 * middle.info.memory_bytes
    loaded = middle._runner.part  # type: ignore[attr-defined]
    assert loaded.embedding is None and loaded.head is None and len(loaded.layers) == 2
    whole.shutdown()


def test_a_stage_goes_on_after_a_rewind(stage: Stage) -> None:
    first = hidden_of(stage.run([StageSpan(1, 10, 4, hidden=rows(4, 5))])[0])
    stage.run([StageSpan(1, 12, 3, hidden=rows(3, 6))])
    stage.rewind(1, 10)
    again = hidden_of(stage.run([StageSpan(1, 10, 4, hidden=rows(4, 5))])[0])
    assert again.shape == (4, 256) and again.tobytes() == first.tobytes()


def test_rows_that_came_over_a_wire_may_be_read_only(stage: Stage) -> None:
    wire = np.frombuffer(rows(2).tobytes(), np.float32).reshape(2, 256)
    assert hidden_of(stage.run([StageSpan(1, 10, 2, hidden=wire)])[0]).shape == (2, 256)


HALF: Any = np.zeros((2, 256), np.float16)
BAD_SPANS = {
    "another width": (
        StageSpan(1, 10, 2, hidden=np.zeros((2, 64), np.float32)),
        LocalProtocolError,
    ),
    "another count": (StageSpan(1, 10, 3, hidden=rows(2)), LocalProtocolError),
    "another dtype": (
        StageSpan(1, 10, 2, hidden=HALF),
        LocalProtocolError,
    ),
    "no hidden": (StageSpan(1, 10, 2, tokens=(1, 2)), LocalProtocolError),
    "no rows": (StageSpan(1, 10, 0, hidden=rows(0)), LocalProtocolError),
    "a hole": (StageSpan(1, 11, 2, hidden=rows(2)), LocalProtocolError),
    "no slot": (StageSpan(3, 0, 2, hidden=rows(2)), LocalProtocolError),
    "NaN": (StageSpan(1, 4, 2, hidden=np.full((2, 256), np.nan, np.float32)), EngineFailed),
    "infinite": (StageSpan(1, 4, 2, hidden=np.full((2, 256), np.inf, np.float32)), EngineFailed),
    "too long": (StageSpan(1, 10, 191, hidden=rows(191)), ContextExceeded),
}


@pytest.mark.parametrize("case", sorted(BAD_SPANS))
def test_what_can_not_run_is_refused_and_changes_nothing(case: str, stage: Stage) -> None:
    before = hidden_of(stage.run([StageSpan(1, 9, 1, hidden=rows(1))])[0])
    span, error = BAD_SPANS[case]
    with pytest.raises(error):
        stage.run([StageSpan(1, 10, 1, hidden=rows(1)), span] if span.slot != 1 else [span])
    stage.rewind(1, 10)
    after = hidden_of(stage.run([StageSpan(1, 9, 1, hidden=rows(1))])[0])
    assert before.tobytes() == after.tobytes()


def test_a_slot_twice_in_a_pass_is_refused(stage: Stage) -> None:
    span = StageSpan(1, 10, 1, hidden=rows(1))
    with pytest.raises(LocalProtocolError):
        stage.run([span, span])


def test_slots_are_the_caller_s(stage: Stage) -> None:
    with pytest.raises(LocalProtocolError):
        stage.open(1)
    with pytest.raises(EngineFull):
        stage.open(4)
    with pytest.raises(LocalProtocolError):
        stage.rewind(1, 11)
    stage.open(3)
    stage.close(3)
    with pytest.raises(LocalProtocolError):
        stage.close(3)


def test_what_overflows_inside_leaves_nothing_behind() -> None:
    """Finite rows that overflow in float16: typed, and the slot's keys stay finite."""
    stage = build_stage(replace(SPEC, dtype="float16", numerics="plain"), parse("0:2", LAYERS))
    stage.open(0)
    stage.run([StageSpan(0, 0, 3, (1, 2, 3))])
    part = stage._runner.part  # type: ignore[attr-defined]
    layer = part.layers[1]
    part.layers[1] = replace(layer, down=lambda rows: layer.down(rows) + float("inf"))
    with pytest.raises(EngineFailed):
        stage.run([StageSpan(0, 3, 2, (4, 5))])
    part.layers[1] = layer
    assert bool(stage._runner.cache.pool.isfinite().all())  # type: ignore[attr-defined]
    assert hidden_of(stage.run([StageSpan(0, 3, 1, (4,))])[0]).shape == (1, 256)


def test_the_head_may_be_asked_for_nothing() -> None:
    """A prefill's body goes through the last stage without a product over the vocabulary."""
    row = Row(SPEC, LAYERS, ("0:6",))
    row.open(0)
    row.open(1)
    text = probe_tokens(4096, 20)
    assert row.extend([Span(0, 0, text[:12], first=12)]) == [Picked(())]
    body, last = row.extend([Span(0, 12, text[12:19], first=7), Span(1, 0, text, first=19)])
    assert body.ids == () and len(last.ids) == 1
    assert row.extend([Span(0, 19, text[19:])])[0].ids == last.ids


def test_tokens_outside_the_vocabulary_are_refused() -> None:
    stage = build_stage(SPEC, parse("0:0", LAYERS))
    stage.open(0)
    for tokens, error in (((4096,), InvalidRequest), ((1, 2), LocalProtocolError)):
        with pytest.raises(error):
            stage.run([StageSpan(0, 0, 1, tokens)])


def test_rechecks_find_what_stopped_being_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    from outrider.engines.torch import stage as adapter

    monkeypatch.setattr(adapter, "RECHECK_EVERY", 2)
    for cut in ("0:1", "1:2-head", "5:6"):
        stage = build_stage(SPEC, parse(cut, LAYERS))
        stage.open(0)
        for at in range(4):
            stage.run([StageSpan(0, at, 1, (at,), rows(1))])
        assert stage.info.exact
        part = stage._runner.part  # type: ignore[attr-defined]
        layer = part.layers[0]
        part.layers[0] = replace(layer, out=lambda x, out=layer.out: out(x) + len(x))
        for at in range(4, 6):
            stage.run([StageSpan(0, at, 1, (at,), rows(1))])
        assert not stage.info.exact


# --- ranges ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "layers"),
    [
        ("0:3", LayerRange(0, 3, embedding=True, head=False)),
        (":3", LayerRange(0, 3, embedding=True, head=False)),
        ("3:", LayerRange(3, 6, embedding=False, head=True)),
        (":", LayerRange(0, 6, embedding=True, head=True)),
        ("0:6-head", LayerRange(0, 6, embedding=True, head=False)),
        ("0:6-embedding-head", LayerRange(0, 6, embedding=False, head=False)),
        ("0:0", LayerRange(0, 0, embedding=True, head=False)),
        ("6:6", LayerRange(6, 6, embedding=False, head=True)),
    ],
)
def test_ranges_are_read_and_shown(text: str, layers: LayerRange) -> None:
    assert parse(text, LAYERS) == layers
    assert parse(show(layers, LAYERS), LAYERS) == layers


@pytest.mark.parametrize("text", ["", "3", "a:b", "0:7", "4:2", "3:3", "0:0-embedding", "1:-2"])
def test_ranges_that_can_not_be(text: str) -> None:
    with pytest.raises(ConfigError):
        parse(text, LAYERS)


@pytest.mark.parametrize(
    "layers",
    [
        LayerRange(1, 3, embedding=True, head=False),
        LayerRange(1, 3, embedding=False, head=True),
        LayerRange(-1, 3, embedding=False, head=False),
        LayerRange(0, 7, embedding=True, head=True),
    ],
)
def test_stages_that_can_not_be(layers: LayerRange) -> None:
    with pytest.raises(ConfigError):
        build_stage(SPEC, layers)


def test_engines_without_stages_are_named() -> None:
    with pytest.raises(ConfigError, match="whole models"):
        build_stage(EngineSpec(model="ngram", engine="ngram"), parse("0:1", 1))
