"""Small models with random weights, as their publishers' own library writes them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from outrider.models import gguf
from outrider.models.source import BUNDLED, resolve

SHAPE: dict[str, Any] = {
    "vocab_size": 4096,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": None,
    "eos_token_id": 0,
}


def write_all(root: Path) -> None:
    """`llama` (one file), `qwen3` (shards and an index), `qwen2`, and `gguf` (two of them)."""
    import torch
    from transformers import (
        LlamaConfig,
        LlamaForCausalLM,
        Qwen2Config,
        Qwen2ForCausalLM,
        Qwen3Config,
        Qwen3ForCausalLM,
    )

    torch.manual_seed(7)
    made: list[tuple[str, Any]] = [
        ("llama", LlamaForCausalLM(LlamaConfig(**SHAPE))),
        ("qwen2", Qwen2ForCausalLM(Qwen2Config(**SHAPE))),
        ("qwen3", Qwen3ForCausalLM(Qwen3Config(**SHAPE, head_dim=8))),
    ]
    for name, model in made:
        shards = {"max_shard_size": "300KB"} if name == "qwen3" else {}
        model.to(torch.bfloat16).save_pretrained(root / name, **shards)
        shutil.copy(BUNDLED / "target" / "tokenizer.json", root / name)
        (root / name / "LICENSE").write_text("as is")
        (root / name / "pytorch_model.bin").write_bytes(b"never read")
        (root / name / "run.py").write_text("never run")
    (root / "gguf").mkdir()
    for quant in ("f16", "q8_0"):
        path = root / "gguf" / f"tiny-llama-{quant.upper()}.gguf"
        gguf.write(resolve(str(root / "llama")), quant, path)
    (root / "gguf" / "mmproj-tiny.gguf").write_bytes(b"a projector of images")
