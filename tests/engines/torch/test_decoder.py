"""Our decoder against transformers on small random models of every family."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from outrider.engine import Engine, EngineSpec, Numerics, Span
from outrider.engines import registry
from tests.engines.torch.models import CASES, write

pytest.importorskip("transformers")

TOKENS = tuple((i * 37 + 11) % 300 for i in range(150))

DEVICES = [
    "cpu",
    pytest.param(
        "cuda:0",
        marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    ),
]


def engine_of(folder: Path, numerics: Numerics = "exact", device: str = "cpu") -> Engine:
    return registry.build(
        EngineSpec(
            model=str(folder),
            engine="torch",
            device=device,
            dtype="float32",
            numerics=numerics,
            context=256,
            max_slots=3,
            threads=1,
        )
    )


def scores_of(engine: Engine, chunks: tuple[int, ...]) -> NDArray[np.float32]:
    slot, at, parts = engine.open(), 0, []
    for size in chunks:
        picked = engine.extend([Span(slot, at, TOKENS[at : at + size], want="scores")])[0]
        assert picked.scores is not None
        parts.append(picked.scores)
        at += size
    engine.close(slot)
    return np.concatenate(parts)


def reference(model: Any) -> NDArray[np.float32]:
    with torch.inference_mode():
        found: NDArray[np.float32] = model(torch.tensor([TOKENS])).logits[0].numpy()
    return found


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("case", sorted(CASES))
def test_scores_are_those_of_transformers(case: str, device: str, tmp_path: Path) -> None:
    expected = reference(write(tmp_path, case))
    engine = engine_of(tmp_path, device=device)
    found = scores_of(engine, (150,))
    assert np.abs(found - expected).max() <= 1e-4
    assert np.abs(scores_of(engine, (70, 1, 2, 60, 1, 16)) - expected).max() <= 1e-4
    if engine.info.exact:
        assert (found == scores_of(engine, (3, 1, 60, 1, 1, 20, 64))).all()
    engine.shutdown()


@pytest.mark.parametrize("case", sorted(CASES))
def test_every_family_is_exact_on_a_cpu(case: str, tmp_path: Path) -> None:
    write(tmp_path, case)
    engine = engine_of(tmp_path)
    assert engine.info.exact and engine.info.trees
    engine.shutdown()


def test_plain_numerics_agree_too(tmp_path: Path) -> None:
    expected = reference(write(tmp_path, "qwen3"))
    engine = engine_of(tmp_path, "plain")
    assert not engine.info.exact
    assert np.abs(scores_of(engine, (100, 1, 49)) - expected).max() <= 1e-4
    engine.shutdown()


def test_shards_are_read_by_their_index(tmp_path: Path) -> None:
    expected = reference(write(tmp_path, "llama", shard_size="100KB"))
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    engine = engine_of(tmp_path)
    assert np.abs(scores_of(engine, (150,)) - expected).max() <= 1e-4
    engine.shutdown()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_close(dtype: str, tmp_path: Path) -> None:
    expected = reference(write(tmp_path, "llama"))
    spec = EngineSpec(
        model=str(tmp_path), engine="torch", device="cpu", dtype=dtype, context=256, threads=1
    )
    engine = registry.build(spec)
    assert engine.info.dtype == dtype
    found = scores_of(engine, (150,))
    engine.shutdown()
    # Two digits of a bfloat16's mantissa are lost on the way through the layers.
    assert np.abs(found - expected).max() <= 0.05 * np.abs(expected).max()
