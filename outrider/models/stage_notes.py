"""What an exported stage says about itself, so that it runs without its model's other files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from outrider.engine import LayerRange
from outrider.errors import ModelCorrupt, ModelUnsupported
from outrider.models.onnx_notes import STAGE

STAGE_FORMAT = 1
"""Version of the graphs' layouts, told in `stage_export` and `npu_export`."""

Target = Literal["cpu", "npu"]
"""`cpu`: rows and caches of any size; `npu`: fixed sizes, INT8 products."""


@dataclass(frozen=True, slots=True)
class StageNotes:
    """Sizes in elements."""

    target: Target
    model: str
    """For people."""
    weights: str
    """Digest of the whole model, so that stages of different models are never joined."""
    precision: str
    start: int
    stop: int
    embedding: bool
    head: bool
    model_layers: int
    """Decoder layers of the whole model."""
    vocab_size: int
    """Columns of the head."""
    vocabulary_size: int
    """Ids that can be chosen."""
    vocabulary_digest: str
    hidden_size: int
    heads: int
    kv_heads: int
    head_dim: int
    context: int
    """Tokens the model was made for; of a fixed graph, its cache's room."""
    frequencies: tuple[float, ...]
    """RoPE, radians a position, head_dim / 2 of them."""
    chunk: int = 0
    """Rows of a fixed graph; 0 where they are free."""
    window: int = 0
    """Of a fixed graph: tokens that layers with a window see; 0 where none has one."""

    @property
    def layers(self) -> LayerRange:
        return LayerRange(self.start, self.stop, self.embedding, self.head)

    def text(self) -> str:
        """For the file's metadata under `STAGE`; `parse_stage` reads it."""
        return json.dumps({"format": STAGE_FORMAT, **asdict(self)}, sort_keys=True)

    def turns(self, positions: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Cosines and sines of RoPE, each [positions, head_dim / 2]; angles in float32."""
        at = np.arange(positions, dtype=np.float32)[:, None]
        angles = at * np.array(self.frequencies, dtype=np.float32)
        return np.cos(angles), np.sin(angles)


def parse_stage(metadata: Mapping[str, str]) -> StageNotes:
    """From a file's metadata. Raises ModelUnsupported for a file that is no stage of ours."""
    text = metadata.get(STAGE)
    if text is None:
        raise ModelUnsupported(
            "the ONNX file is not a stage that outrider exported",
            effect="no stage was built",
            todo="outrider export MODEL --layers A:B -o FILE",
        )
    try:
        fields = json.loads(text)
        found = fields.pop("format")
        notes = StageNotes(**{**fields, "frequencies": tuple(fields["frequencies"])})
    except (ValueError, TypeError, KeyError, AttributeError):
        raise ModelCorrupt(
            "the stage's metadata can not be read",
            effect="no stage was built",
            todo="export it again",
        ) from None
    if found != STAGE_FORMAT:
        raise ModelUnsupported(
            f"the stage has format {found}, this version runs {STAGE_FORMAT}",
            effect="no stage was built",
            todo="export it again",
        )
    return notes
