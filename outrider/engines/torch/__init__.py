"""The torch engine: own decoder for Llama, Mistral, Qwen2 and Qwen3 on CPU, CUDA and MPS."""

from __future__ import annotations

from outrider.engines.torch.build import build

__all__ = ["build"]
