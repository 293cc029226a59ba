"""What an exported file says about itself beside the graph."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from outrider.errors import ModelCorrupt, ModelUnsupported

Precision = Literal["stored", "int8", "int4"]
"""`stored`: weights in the type they were trained in, computed in float32."""
STAGE = "outrider.stage"
"""Where a stage's notes stand (`outrider.models.stage_notes`), which are others."""
FORMAT = 1
"""Version of the graph's layout, told in `outrider.models.onnx_export`."""


@dataclass(frozen=True, slots=True)
class Notes:
    """Sizes in elements; `first` and `stop` are the layers that the file holds."""

    weights: str
    """Digest of the model that it was exported from."""
    precision: Precision
    first: int
    stop: int
    layers: int
    vocab_size: int
    hidden_size: int
    kv_heads: int
    head_dim: int
    context: int
    frequencies: tuple[float, ...]
    """RoPE, radians a position, head_dim / 2 of them."""

    def text(self) -> str:
        """For the file's metadata; `parse` reads it."""
        return json.dumps({"format": FORMAT, **asdict(self)}, sort_keys=True)

    @property
    def whole(self) -> bool:
        """From token ids to scores, not a stage of a model."""
        return self.first == 0 and self.stop == self.layers

    def turns(self, positions: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Cosines and sines of RoPE, each [positions, head_dim / 2]; angles in float32."""
        at = np.arange(positions, dtype=np.float32)[:, None]
        angles = at * np.array(self.frequencies, dtype=np.float32)
        return np.cos(angles), np.sin(angles)


def parse(metadata: Mapping[str, str]) -> Notes:
    """From a file's metadata. Raises ModelUnsupported for a file that is not ours."""
    text = metadata.get("outrider")
    if text is None and STAGE in metadata:
        raise ModelUnsupported(
            "the ONNX file holds layers of a model, not the whole of it",
            effect="no model was loaded",
            todo="name the whole model, or run the file as a stage",
        )
    if text is None:
        raise ModelUnsupported(
            "the ONNX file was not exported by outrider",
            why="graphs of other exporters name their inputs and caches in other ways",
            effect="no model was loaded",
            todo="name the folder with config.json and safetensors; it is exported at first use",
        )
    try:
        fields = json.loads(text)
        found = fields.pop("format")
        notes = Notes(**{**fields, "frequencies": tuple(fields["frequencies"])})
    except (ValueError, TypeError, KeyError, AttributeError):
        raise ModelCorrupt(
            "the ONNX file's metadata can not be read",
            effect="no model was loaded",
            todo="export it again",
        ) from None
    if found != FORMAT:
        raise ModelUnsupported(
            f"the ONNX file has format {found}, this version runs {FORMAT}",
            effect="no model was loaded",
            todo="export it again",
        )
    return notes
