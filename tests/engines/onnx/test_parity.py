"""Scores are those of `transformers`, however the rows are grouped."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from outrider.engines.onnx.decoder import Call, Decoder
from outrider.engines.onnx.provider import CPU
from outrider.models.onnx_export import export
from outrider.models.source import resolve

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
LINEAR = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0}

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "llama tied": ("Llama", {"tie_word_embeddings": True}),
    "llama biased": ("Llama", {"attention_bias": True, "mlp_bias": True}),
    "llama llama3": ("Llama", {"rope_parameters": LLAMA3}),
    "llama linear": ("Llama", {"rope_parameters": LINEAR}),
    "mistral": ("Mistral", {"sliding_window": None}),
    "mistral window": ("Mistral", {"sliding_window": 9}),
    "qwen2": ("Qwen2", {}),
    "qwen3": ("Qwen3", {"head_dim": 32}),
}
TOKENS = [(i * 17 + 5) % 61 for i in range(40)]


@pytest.mark.parametrize("case", sorted(CASES))
def test_scores_are_the_reference_s(
    case: str, saved: Callable[..., tuple[Path, Any]], tmp_path: Path
) -> None:
    import torch

    family, changes = CASES[case]
    folder, model = saved(family, **changes)
    with torch.no_grad():
        wanted = model(torch.tensor([TOKENS])).logits[0].numpy()
    export(resolve(str(folder)), tmp_path / "model.onnx")
    decoder = Decoder(tmp_path / "model.onnx", CPU, threads=1, slots=2, context=64)
    assert np.abs(wanted).max() > 1
    np.testing.assert_allclose(in_pieces(decoder), wanted, atol=1e-4, rtol=0)


def in_pieces(decoder: Decoder) -> NDArray[np.float32]:
    """A prompt, single rows beside another slot, then a longer span."""
    parts = [decoder.run(Call(1, [TOKENS[:20]], [0], range(20))).copy()]
    for at in range(20, 30):
        call = Call(0, [[3], [TOKENS[at]]], [at - 20, at], [1])
        parts.append(decoder.run(call).copy())
    parts.append(decoder.run(Call(1, [TOKENS[30:]], [30], range(10))).copy())
    return np.concatenate(parts)
