"""A permuted model says the same, holds permuted KV, and gives it back bit for bit."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from outrider.engine import Engine, EngineSpec, KvSegment, LayerRange, Span, StageSpan
from outrider.engines import registry
from outrider.engines.stages import build_stage
from outrider.errors import LocalProtocolError, ModelCorrupt, ModelUnsupported
from outrider.models.config import load_config, parse_config
from outrider.models.source import resolve
from outrider.privacy.shield import KEY, Shield, shield_of

SECRET = bytes(range(KEY))
PROMPT = tuple(range(40, 72))

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("torch") is None, reason="the host's engine needs torch"
)


def spec(model: str) -> EngineSpec:
    return EngineSpec(
        model, "torch", dtype="float32", numerics="plain", context=96, max_slots=2, threads=1
    )


def build(model: str) -> Engine:
    return registry.build(spec(model))


@pytest.fixture(scope="module")
def shield() -> Shield:
    return shield_of(resolve("bundled:draft"), SECRET)


@pytest.fixture(scope="module")
def folder(shield: Shield, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("shielded")
    shield.write(resolve("bundled:draft"), place)
    return place


@pytest.fixture(scope="module")
def plain() -> Iterator[Engine]:
    engine = build("bundled:draft")
    yield engine
    engine.shutdown()


@pytest.fixture(scope="module")
def host(folder: Path) -> Iterator[Engine]:
    engine = build(str(folder))
    yield engine
    engine.shutdown()


def prefilled(engine: Engine) -> tuple[int, KvSegment, np.ndarray]:
    slot = engine.open()
    scores = engine.extend([Span(slot, 0, PROMPT, 0, want="scores")])[0].scores
    assert scores is not None
    return slot, engine.export_kv(slot, 0, len(PROMPT)), scores


def goes_on(engine: Engine, slot: int, count: int = 16) -> list[int]:
    """Greedy tokens after what the slot holds; its last token is run anew."""
    end, token, said = engine.length(slot) - 1, PROMPT[-1], list[int]()
    for at in range(count):
        token = engine.extend([Span(slot, end + at, (token,))])[0].ids[0]
        said.append(token)
    engine.close(slot)
    return said


def as_floats(segment: KvSegment) -> np.ndarray:
    return np.frombuffer(segment.data, np.float32).reshape(segment.shape)


def test_the_host_says_the_same_and_sees_other_kv(
    plain: Engine, host: Engine, shield: Shield
) -> None:
    (ours, kept, scores), (theirs, seen, permuted) = prefilled(plain), prefilled(host)
    assert np.abs(scores - permuted).max() < 1e-3
    assert (scores.argmax(-1) == permuted.argmax(-1)).all()
    np.testing.assert_allclose(as_floats(shield.permute(kept)), as_floats(seen), atol=1e-4)
    same = np.isclose(as_floats(kept), as_floats(seen), atol=1e-4).mean()
    assert same < 0.1
    assert goes_on(plain, ours) == goes_on(host, theirs)


def test_kv_goes_both_ways_and_the_text_stays(plain: Engine, host: Engine, shield: Shield) -> None:
    ours, kept, _ = prefilled(plain)
    theirs, seen, _ = prefilled(host)
    expected = goes_on(plain, ours)
    assert goes_on(host, theirs) == expected
    for engine, segment in ((plain, shield.restore(seen)), (host, shield.permute(kept))):
        slot = engine.open()
        engine.import_kv(slot, segment)
        assert goes_on(engine, slot) == expected


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_restore_is_exact_to_the_bit(shield: Shield, dtype: str) -> None:
    config = load_config_of("bundled:draft")
    shape = (1, 2, config.kv_heads, 3, config.head_dim)
    size = int(np.prod(shape)) * (4 if dtype == "float32" else 2)
    noise = np.random.default_rng(1).bytes(size)
    segment = KvSegment("canonical", dtype, 0, 3, (1, 2, 3), noise, shape)
    hidden = shield.permute(segment, first=1)
    assert hidden.data != noise
    assert shield.restore(hidden, first=1) == segment
    assert shield.restore(hidden, first=0) != segment


def load_config_of(model: str):  # type: ignore[no-untyped-def]
    files = resolve(model)
    assert files.config is not None
    return load_config(files.config)


def test_hidden_states_travel_permuted(folder: Path, shield: Shield) -> None:
    """The device keeps the embedding; the host runs the layers on what it was sent."""
    layers = LayerRange(0, 2, embedding=False, head=False)
    front = build_stage(spec("bundled:draft"), LayerRange(0, 0, embedding=True, head=False))
    ours, theirs = (
        build_stage(spec("bundled:draft"), layers),
        build_stage(spec(str(folder)), layers),
    )
    for stage in (front, ours, theirs):
        stage.open(0)
    rows = front.run([StageSpan(0, 0, len(PROMPT), tokens=PROMPT)])[0]
    assert isinstance(rows, np.ndarray)
    plain = ours.run([StageSpan(0, 0, len(PROMPT), hidden=rows)])[0]
    sent = shield.hide(rows)
    assert (shield.show(sent) == rows).all()
    assert (sent != rows).mean() > 0.9
    back = theirs.run([StageSpan(0, 0, len(PROMPT), hidden=sent)])[0]
    assert isinstance(plain, np.ndarray)
    assert isinstance(back, np.ndarray)
    np.testing.assert_allclose(shield.show(back), plain, atol=2e-3)
    for stage in (front, ours, theirs):
        stage.shutdown()


def test_another_key_gives_other_orders(shield: Shield) -> None:
    other = shield_of(resolve("bundled:draft"), bytes(KEY - 1) + b"\1")
    assert (other.hidden != shield.hidden).any()
    assert (shield.hidden == shield_of(resolve("bundled:draft"), SECRET).hidden).all()
    with pytest.raises(ValueError, match="32 bytes"):
        shield_of(resolve("bundled:draft"), b"short")
    with pytest.raises(ValueError, match="zeros"):
        shield_of(resolve("bundled:draft"), bytes(KEY))


def test_what_a_shield_can_not_turn_is_refused(shield: Shield) -> None:
    segment = KvSegment("opaque:llama", "float16", 0, 1, (1,), b"")
    with pytest.raises(LocalProtocolError, match="canonical"):
        shield.permute(segment)
    torn = KvSegment("canonical", "float16", 0, 1, (1,), b"12", (2, 2, 2, 1, 64))
    with pytest.raises(LocalProtocolError, match="shape"):
        shield.restore(torn)
    foreign = replace(torn, data=bytes(2 * 2 * 3 * 64 * 2), shape=(2, 2, 3, 1, 64))
    with pytest.raises(LocalProtocolError, match="another shape"):
        shield.restore(foreign)
    with pytest.raises(LocalProtocolError, match="adapter"):
        shield.weight("model.layers.0.self_attn.adapter.weight", np.zeros((2, 2)))


def test_an_order_that_is_none_is_refused(folder: Path) -> None:
    import json

    fields = json.loads((folder / "config.json").read_text())
    for order in ([0, 0, 1], "no", list(range(31)) + [True]):
        with pytest.raises(ModelCorrupt, match="outrider_rope_order"):
            parse_config({**fields, "outrider_rope_order": order})


def test_llama_cpp_does_not_get_a_permuted_model(folder: Path) -> None:
    gguf = pytest.importorskip("outrider.models.gguf", reason="gguf is not installed")
    with pytest.raises(ModelUnsupported, match="permuted"):
        gguf.cached(resolve(str(folder)), "f16")
