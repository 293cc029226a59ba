"""Small decoders with random weights, written so that any engine loads them as it loads real ones.

Times of dense products do not depend on the numbers, so random ones do. The vocabulary is the
bundled one, so that GGUF and ONNX forms can be made.
"""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from outrider.models.config import parse_config
from outrider.models.source import BUNDLED
from outrider.models.weights import Shape, expected

SPREAD = 0.03
"""Weights are uniform in plus and minus this: about a trained model's spread."""


@dataclass(frozen=True, slots=True)
class Form:
    """Sizes in elements. The vocabulary is at least the bundled tokenizer's 4096."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int = 64
    vocabulary: int = 4096
    context: int = 2048

    @property
    def name(self) -> str:
        return f"{self.hidden}x{self.intermediate}x{self.layers}h{self.heads}.{self.kv_heads}"

    def fields(self) -> dict[str, object]:
        """As config.json."""
        return {
            "model_type": "llama",
            "hidden_size": self.hidden,
            "intermediate_size": self.intermediate,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "vocab_size": self.vocabulary,
            "max_position_embeddings": self.context,
            "rms_norm_eps": 1e-5,
            "tie_word_embeddings": True,
            "bos_token_id": 0,
            "eos_token_id": 0,
            "torch_dtype": "float32",
        }


def write(form: Form, folder: Path, seed: int = 1) -> Path:
    """The model in `folder/NAME`; the same form and seed give the same bytes."""
    from safetensors.numpy import save_file

    place = folder / form.name
    place.mkdir(parents=True, exist_ok=True)
    (place / "config.json").write_text(json.dumps(form.fields()), encoding="utf-8")
    shutil.copyfile(BUNDLED / "draft" / "tokenizer.json", place / "tokenizer.json")
    random = np.random.default_rng(seed)
    shapes = expected(parse_config(form.fields()))
    tensors = {name: _tensor(shape, random) for name, shape in shapes.items()}
    save_file(tensors, place / "model.safetensors", metadata={"format": "pt"})
    return place


def _tensor(shape: Shape, random: np.random.Generator) -> NDArray[np.float32]:
    if len(shape) == 1:
        return np.ones(shape, np.float32)
    numbers = random.random(math.prod(shape), np.float32)
    return ((numbers - np.float32(0.5)) * np.float32(2 * SPREAD)).reshape(shape)


def from_fields(fields: dict[str, int]) -> Form:
    """From `asdict`'s form, as a job of the measuring process carries it."""
    return Form(**fields)


def to_fields(form: Form) -> dict[str, int]:
    return asdict(form)
