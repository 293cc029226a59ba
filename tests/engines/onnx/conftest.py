"""Small random models, written as Hugging Face writes them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("onnxruntime", reason="the onnx extra is not installed")


@pytest.fixture(autouse=True)
def _sound() -> Iterator[None]:
    """The contract suite's check of its own engine; the tests here build theirs."""
    yield


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple[Path, Any]]:
    """Save a random model of a family: folder and the model of `transformers`."""
    torch = pytest.importorskip("torch", reason="the reference needs torch")
    transformers = pytest.importorskip("transformers", reason="the reference needs transformers")

    def save(family: str, **changes: Any) -> tuple[Path, Any]:
        torch.manual_seed(7)
        sizes = {
            "vocab_size": 61,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "max_position_embeddings": 96,
            "bos_token_id": 0,
            "eos_token_id": 1,
            "pad_token_id": None,
            "initializer_range": 0.3,
        }
        config = getattr(transformers, f"{family}Config")(**(sizes | changes))
        model = getattr(transformers, f"{family}ForCausalLM")(config).eval()
        for name, weight in model.named_parameters():
            if "norm" in name or "bias" in name:
                torch.nn.init.normal_(weight, 1.0 if "norm" in name else 0.0, 0.2)
        folder = tmp_path_factory.mktemp(family)
        model.save_pretrained(folder)
        return folder, model

    return save
