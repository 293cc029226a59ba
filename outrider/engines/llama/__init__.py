"""The llama.cpp engine: GGUF files on either side."""

from __future__ import annotations

from outrider.engines.llama.build import build

__all__ = ["build"]
