"""The parts of `bench kv` that decide what its figures mean."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs outrider[torch]")
pytest.importorskip("tokenizers", reason="needs outrider[edge]")

from bench import kv  # noqa: E402
from outrider.engine import KvSegment  # noqa: E402
from outrider.protocol.kv import level  # noqa: E402


def passage(seed: int) -> kv.Passage:
    shape = (6, 2, 2, 192, 64)
    random = np.random.default_rng(seed)
    sizes = np.arange(1, 7).reshape(6, 1, 1, 1, 1)
    values = (random.standard_normal(shape) * sizes).astype(np.float32)
    segment = KvSegment("canonical", "float32", 0, 192, tuple(range(192)), values.tobytes(), shape)
    scores = torch.from_numpy(random.standard_normal((4, 9))).log_softmax(-1).float().numpy()
    return kv.Passage(segment, (1, 2, 3, 4), (2, 3, 4, 5), scores)


def test_the_same_scores_lose_nothing_and_others_do() -> None:
    given = passage(0)
    assert kv.compared(given, given.log_probs) == (0.0, 0.0)
    worse = given.log_probs.copy()
    worse[range(4), [2, 3, 4, 5]] -= 1.0
    worse = torch.from_numpy(worse).log_softmax(-1).numpy()
    lost, divergence = kv.compared(given, worse)
    assert 0 < lost < 1 and divergence > 0


def test_wrong_scales_spoil_what_the_codec_keeps() -> None:
    given = passage(1).segment
    before = np.frombuffer(given.data, np.float32)
    right, wrong = (
        np.frombuffer(way(given).data, np.float32)
        for way in (kv.through(level("int8")), kv.with_wrong_scales)
    )
    assert np.abs(right - before).max() < 0.2 < 1.0 < np.abs(wrong - before).mean()


def test_values_in_a_models_shape_are_never_the_same_twice() -> None:
    passages = [passage(seed) for seed in range(4)]
    shape = kv.Shape("small", 2, 64, 64, 2, 2, 128)
    found = kv.laid_out(passages, shape, 64, "float32")
    values = np.frombuffer(found.data, np.float32)
    assert found.shape == (2, 2, 2, 64, 128) and len(np.unique(values)) > 0.99 * len(values)
    with pytest.raises(ValueError, match="strips"):
        kv.laid_out(passages, kv.SHAPES[1], 192, "float32")


def test_the_best_needs_its_whole_interval_within_the_bar() -> None:
    cells: list[dict[str, object]] = [
        {"bytes_over_fp16": 0.5, "high": 1.0005},
        {"bytes_over_fp16": 0.2, "high": 1.02},
    ]
    assert kv.best(cells, 1.001) == 0.5
    assert kv.best(cells, 1.05) == 0.2


def test_flops_of_real_models_are_two_a_weight_and_attention() -> None:
    small, large = kv.SHAPES
    assert small.flops(1) == pytest.approx(2 * 0.973e9, rel=0.01)
    assert large.flops(1) == pytest.approx(2 * 6.98e9, rel=0.01)
    assert large.prefill(1e12).seconds(0, 512) == pytest.approx(large.flops(512) / 1e12)
