"""The torch engine beyond the contract: exactness, trees, watch, KV, refusals."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from outrider.engine import EngineSpec, KvSegment, Span, Want
from outrider.engines import registry
from outrider.engines.torch import engine as adapter
from outrider.engines.torch import settle as settling
from outrider.engines.torch.attention import joined
from outrider.engines.torch.batch import Padding
from outrider.engines.torch.engine import TorchEngine
from outrider.engines.torch.linear import PlainLinear
from outrider.errors import (
    ConfigError,
    ContextExceeded,
    EngineFailed,
    LocalProtocolError,
    ModelCorrupt,
    ModelUnsupported,
)
from outrider.models.source import BUNDLED
from outrider.protocol.sampling import GREEDY, Sampling, SamplingParams

SPEC = EngineSpec(
    model="bundled:draft", engine="torch", device="cpu", context=200, max_slots=5, threads=1
)
TEXT = tuple((i * 577 + 31) % 4096 for i in range(190))


def build(spec: EngineSpec = SPEC) -> TorchEngine:
    found = registry.build(spec)
    assert isinstance(found, TorchEngine)
    return found


@pytest.fixture(scope="module")
def shared() -> Iterator[TorchEngine]:
    found = build()
    yield found
    found.shutdown()


@pytest.fixture
def engine(shared: TorchEngine) -> Iterator[TorchEngine]:
    """The shared engine; it must come back empty and sound."""
    yield shared
    shared.check_integrity()
    assert shared.statistics().slots_open == 0


def scores(engine: TorchEngine, *spans: Span) -> list[NDArray[np.float32]]:
    picked = engine.extend([replace(span, want="scores") for span in spans])
    return [p.scores for p in picked if p.scores is not None]


def close(engine: TorchEngine, *slots: int) -> None:
    for slot in slots:
        engine.close(slot)


# --- exactness ---------------------------------------------------------------------------------


def test_random_groupings_give_the_same_bits(engine: TorchEngine) -> None:
    assert engine.info.exact
    whole = engine.open()
    expected = scores(engine, Span(whole, 0, TEXT))[0]
    engine.close(whole)
    random = np.random.default_rng(3)
    slots = [engine.open() for _ in range(4)]
    at = dict.fromkeys(slots, 0)
    while min(at.values()) < len(TEXT):
        spans = []
        for slot in random.permutation(slots).tolist():
            count = min(int(random.integers(0, 40)) // int(random.integers(1, 8)), 190 - at[slot])
            if count:
                spans.append(Span(slot, at[slot], TEXT[at[slot] : at[slot] + count]))
        if not spans:
            continue
        for span, found in zip(spans, scores(engine, *spans), strict=True):
            stop = span.base + len(span.tokens)
            assert (found == expected[span.base : stop]).all()
            at[span.slot] = stop
    close(engine, *slots)


def test_joined_attention_is_caught_by_the_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: attention whose order of summing goes by the number of keys."""
    monkeypatch.setattr(settling, "blocked", joined)
    monkeypatch.setattr(settling, "PADDINGS", (Padding(1, 1, 1),))
    found = build()
    assert not found.info.exact
    found.shutdown()


def test_unpadded_library_products_are_caught_where_they_differ() -> None:
    rows = torch.randn(8, 704)
    linear = PlainLinear(torch.randn(256, 704), None)
    if torch.equal(linear(rows)[:1], linear(rows[:1])):
        pytest.skip("this machine's library gives equal bits for one row and for eight")
    settled = build()
    decoder = settled._runner.decoder
    original = decoder.layers[0]
    decoder.layers[0] = replace(original, qkv=PlainLinear(torch.randn(512, 256), None))
    assert not settling.linears_agree(decoder, Padding(1, 1, 1))
    settled.shutdown()


def test_rechecks_find_what_stopped_being_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapter, "RECHECK_EVERY", 2)
    engine = build()
    slot = engine.open()
    engine.extend([Span(slot, 0, TEXT[:8])])
    engine.extend([Span(slot, 8, TEXT[8:9])])
    assert engine.info.exact and engine.statistics().recheck_mismatches == 0
    layer = engine._runner.decoder.layers[0]
    inner = layer.out
    engine._runner.decoder.layers[0] = replace(layer, out=lambda rows: inner(rows) + len(rows))
    engine.extend([Span(slot, 9, TEXT[9:10])])
    engine.extend([Span(slot, 10, TEXT[10:11])])
    assert not engine.info.exact and engine.statistics().recheck_mismatches == 1
    engine.shutdown()


def test_numeric_class_tells_ways_apart(engine: TorchEngine) -> None:
    twin, plain = build(), build(replace(SPEC, numerics="plain"))
    assert twin.info.numeric_class == engine.info.numeric_class
    assert plain.info.numeric_class != engine.info.numeric_class
    twin.shutdown()
    plain.shutdown()


# --- trees -------------------------------------------------------------------------------------

PARENTS = (None, None, 1, 1, 3, 2, 4)
"""Two roots; row 1 goes on as 2 and 3, 3 as 4, 2 as 5, 4 as 6."""


@pytest.mark.parametrize("base", [1, 60, 62, 126])
def test_a_branch_scores_as_a_chain_does(engine: TorchEngine, base: int) -> None:
    tree, chain = engine.open(), engine.open()
    for slot in (tree, chain):
        engine.extend([Span(slot, 0, TEXT[:base])])
    rows = TEXT[100:107]
    found = scores(engine, Span(tree, base, rows, parents=PARENTS))[0]
    for path in ([0], [1, 2, 5], [1, 3, 4, 6]):
        expected = scores(engine, Span(chain, base, tuple(rows[i] for i in path)))[0]
        assert (found[path] == expected).all()
    engine.keep(tree, base, [1, 3, 4])
    assert engine.length(tree) == base + 3
    kept = scores(engine, Span(tree, base + 3, (9, 8)))[0]
    engine.extend([Span(chain, base, tuple(rows[i] for i in (1, 3, 4)))])
    assert (kept == scores(engine, Span(chain, base + 3, (9, 8)))[0]).all()
    close(engine, tree, chain)


def test_a_chain_may_be_named_a_tree(engine: TorchEngine) -> None:
    slot, twin = engine.open(), engine.open()
    one = scores(engine, Span(slot, 0, TEXT[:4], parents=(None, 0, 1, 2)))[0]
    assert (one == scores(engine, Span(twin, 0, TEXT[:4]))[0]).all()
    engine.keep(slot, 0, [0, 1])
    assert engine.length(slot) == 2
    close(engine, slot, twin)


def test_penalties_follow_a_branch(engine: TorchEngine) -> None:
    params = SamplingParams(temperature=0.0, frequency_penalty=60.0)
    slot = engine.open(Sampling(params, seed=0, prompt_length=3))
    engine.extend([Span(slot, 0, TEXT[:3])])
    first = engine.extend([Span(slot, 3, TEXT[3:4])])[0].ids[0]
    rows = (TEXT[3], first, TEXT[5])
    picked = engine.extend([Span(slot, 3, rows, parents=(None, 0, None))])[0]
    assert picked.ids[0] == first != picked.ids[1]
    engine.close(slot)


@pytest.mark.parametrize("path", [[1, 0], [0, 0], [9], [-1]])
def test_a_path_that_leads_nowhere_is_refused(engine: TorchEngine, path: list[int]) -> None:
    slot = engine.open()
    engine.extend([Span(slot, 0, TEXT[:5])])
    with pytest.raises(LocalProtocolError):
        engine.keep(slot, 2, path)
    assert engine.length(slot) == 5
    engine.close(slot)


# --- picks -------------------------------------------------------------------------------------


def test_greedy_takes_the_lowest_of_equal_ids() -> None:
    assert adapter._greedy(np.array([[0, 2, 2], [5, 1, 5]], dtype=np.float32)) == (1, 0)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_scores_that_are_not_finite_fail_and_leave_nothing(bad: float) -> None:
    engine = build()
    slot, clean = engine.open(Sampling(GREEDY, seed=0)), engine.open()
    engine.extend([Span(slot, 0, TEXT[:4]), Span(clean, 0, TEXT[:4])])
    row = engine._runner.decoder.embedding[TEXT[4]].clone()
    with torch.inference_mode():
        engine._runner.decoder.embedding[TEXT[4]] = bad
    with pytest.raises(EngineFailed):
        engine.extend([Span(slot, 4, TEXT[4:6]), Span(clean, 4, TEXT[5:6])])
    with torch.inference_mode():
        engine._runner.decoder.embedding[TEXT[4]] = row
    assert engine.length(slot) == engine.length(clean) == 4
    assert bool(engine._cache.pool.isfinite().all())
    assert scores(engine, Span(slot, 4, TEXT[4:8]))[0].shape == (4, 4096)
    engine.shutdown()


# --- KV ----------------------------------------------------------------------------------------


def test_kv_goes_on_with_the_same_bits(engine: TorchEngine) -> None:
    slot, other = engine.open(), engine.open()
    engine.extend([Span(slot, 0, TEXT[:100])])
    for start, stop in ((0, 70), (70, 100)):
        engine.import_kv(other, engine.export_kv(slot, start, stop))
    assert engine.length(other) == 100
    one, two = scores(engine, Span(slot, 100, TEXT[100:104]), Span(other, 100, TEXT[100:104]))
    assert (one == two).all()
    close(engine, slot, other)


def test_exported_kv_is_canonical(engine: TorchEngine) -> None:
    """[layer, 2, kv_head, token, head_dim]: a prefix is a slice along the fourth axis."""
    slot = engine.open()
    engine.extend([Span(slot, 0, TEXT[:9])])
    long, short = engine.export_kv(slot, 0, 9), engine.export_kv(slot, 2, 5)
    assert long.shape == (2, 2, 2, 9, 64) and long.dtype == "float32"
    whole = np.frombuffer(long.data, np.float32).reshape(long.shape)
    part = np.frombuffer(short.data, np.float32).reshape(short.shape)
    assert (whole[:, :, :, 2:5] == part).all()
    engine.close(slot)


def test_foreign_kv_is_refused(engine: TorchEngine) -> None:
    slot, other = engine.open(), engine.open()
    engine.extend([Span(slot, 0, TEXT[:6])])
    good = engine.export_kv(slot, 0, 6)
    for bad in (
        replace(good, dtype="bfloat16"),
        replace(good, layout="opaque:llama"),
        replace(good, data=good.data[:-4]),
        replace(good, start=2),
        replace(good, shape=(1, 2, 2, 6, 64)),
        replace(good, tokens=good.tokens[:-1]),
    ):
        _refuses(engine, other, bad)
    with pytest.raises(LocalProtocolError):
        engine.export_kv(slot, 3, 7)
    close(engine, slot, other)


def _refuses(engine: TorchEngine, slot: int, segment: KvSegment) -> None:
    with pytest.raises(LocalProtocolError):
        engine.import_kv(slot, segment)
    assert engine.length(slot) == 0


# --- building ----------------------------------------------------------------------------------


def copied(folder: Path, **changes: object) -> Path:
    """The bundled draft with changes to its config.json."""
    shutil.copytree(BUNDLED / "draft", folder, dirs_exist_ok=True)
    fields = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(fields | changes))
    return folder


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"model_type": "mamba"}, ModelUnsupported),
        ({"hidden_act": "gelu"}, ModelUnsupported),
        ({"quantization_config": {"bits": 4}}, ModelUnsupported),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, ModelUnsupported),
        ({"num_hidden_layers": 3}, ModelCorrupt),
        ({"intermediate_size": 700}, ModelCorrupt),
        ({"hidden_size": "large"}, ModelCorrupt),
        ({"num_key_value_heads": 3}, ModelCorrupt),
        ({"rms_norm_eps": 0}, ModelCorrupt),
        ({"tie_word_embeddings": False}, ModelCorrupt),
    ],
)
def test_bad_configs_are_typed_errors(
    changes: dict[str, object], error: type[Exception], tmp_path: Path
) -> None:
    with pytest.raises(error):
        build(replace(SPEC, model=str(copied(tmp_path / "m", **changes))))


def test_truncated_weights_are_corrupt(tmp_path: Path) -> None:
    folder = copied(tmp_path / "m")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4000])
    with pytest.raises(ModelCorrupt):
        build(replace(SPEC, model=str(folder)))


def test_config_that_is_not_json_is_corrupt(tmp_path: Path) -> None:
    folder = copied(tmp_path / "m")
    (folder / "config.json").write_text("{")
    with pytest.raises(ModelCorrupt):
        build(replace(SPEC, model=str(folder)))


@pytest.mark.parametrize(
    "changes",
    [
        {"options": (("speed", "11"),)},
        {"device": "cuda:99"},
        {"device": "abacus"},
        {"dtype": "int3"},
        {"context": 5000},
    ],
)
def test_settings_that_can_not_work(changes: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        build(replace(SPEC, **changes))  # type: ignore[arg-type]


def test_one_short_slot_is_enough() -> None:
    engine = build(replace(SPEC, max_slots=1, context=16))
    assert engine.info.exact
    slot = engine.open()
    engine.extend([Span(slot, 0, TEXT[:16])])
    with pytest.raises(ContextExceeded):
        engine.extend([Span(slot, 16, TEXT[:1])])
    engine.shutdown()


# --- picks on a device -------------------------------------------------------------------------


@pytest.mark.parametrize("want", ["ids", "children", "logprobs", "scores"])
def test_picks_on_a_device_are_those_on_the_host(
    want: Want, engine: TorchEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = SamplingParams(temperature=0.9, top_p=0.9, repetition_penalty=1.2)
    slots = [engine.open(Sampling(params, seed=7)), engine.open(Sampling(GREEDY, seed=0))]
    spans = [Span(slot, 0, TEXT[:6], 2, want=want, top_n=3) for slot in slots]
    expected = engine.extend(spans)
    monkeypatch.setattr(engine, "_pick", adapter.pick_on_device)
    for mine, theirs in zip(engine.extend(spans), expected, strict=True):
        assert mine.ids == theirs.ids
        assert mine.children == theirs.children
        assert (mine.scores is None) == (theirs.scores is None)
        for ours, other in zip(mine.logprobs or (), theirs.logprobs or (), strict=True):
            assert ours.chosen == pytest.approx(other.chosen)
    close(engine, *slots)
