"""Engines that this machine can build; each contract test runs on every one of them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from outrider.engine import Engine, EngineSpec
from outrider.engines import registry

SPECS: dict[str, EngineSpec] = {
    "fake": EngineSpec(model="fake", engine="fake", context=256, max_slots=4),
    "torch": EngineSpec(
        model="bundled:draft", engine="torch", device="cpu", context=256, max_slots=4, threads=1
    ),
    "onnx": EngineSpec(
        model="bundled:draft", engine="onnx", device="cpu", context=256, max_slots=4, threads=1
    ),
    "llama": EngineSpec(
        model="bundled:draft", engine="llama", device="cpu", context=256, max_slots=4, threads=1
    ),
    "onnx int8": EngineSpec(
        model="bundled:draft",
        engine="onnx",
        device="cpu",
        numerics="plain",
        context=256,
        max_slots=4,
        threads=1,
    ),
    "llama plain": EngineSpec(
        model="bundled:draft",
        engine="llama",
        device="cpu",
        numerics="plain",
        context=256,
        max_slots=4,
        threads=1,
    ),
    "ngram": EngineSpec(model="ngram", engine="ngram", context=256, max_slots=4),
}


@pytest.fixture(scope="module", params=sorted(SPECS))
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    spec = SPECS[request.param]
    if spec.engine not in registry.installed():
        pytest.skip(f"engine {spec.engine} is not installed")
    built = registry.build(spec)
    yield built
    built.shutdown()


@pytest.fixture(autouse=True)
def _sound(engine: Engine) -> Iterator[None]:
    yield
    assert engine.statistics().slots_open == 0
    engine.check_integrity()
