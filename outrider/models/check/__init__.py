"""Bounds checks of model files, made before any native loader sees them.

Native parsers have been fooled by offsets past the end of the file, by counts
that wrap, by external data outside the folder. Everything here is plain Python
over a memory map: it reads headers only and raises ModelCorrupt or
ModelUnsupported, nothing else.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from outrider.models.check.gguf import check_gguf
from outrider.models.check.onnx import check_onnx
from outrider.models.check.safetensors import check_safetensors

if TYPE_CHECKING:
    from outrider.models.source import ModelFiles

__all__ = ["check_gguf", "check_model", "check_onnx", "check_safetensors"]


def check_model(files: ModelFiles) -> None:
    """Check every weight file of a model. Raises ModelCorrupt, ModelUnsupported."""
    if files.kind == "onnx":
        check_onnx(files.path)
        return
    for path in files.weights:
        if files.kind == "gguf":
            check_gguf(path)
        else:
            check_safetensors(path)
