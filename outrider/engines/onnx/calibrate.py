"""How far a model's activations reach, seen on text: the scales of its INT8 graphs."""

from __future__ import annotations

import sysconfig
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from outrider.engine import LayerRange
from outrider.engines.onnx.static import load
from outrider.errors import ConfigError
from outrider.models import tokenizer
from outrider.models.npu_export import export_chunks
from outrider.models.npu_graph import Range
from outrider.models.source import ModelFiles
from outrider.models.stage_export import config_of

WINDOWS = 48
"""Windows of text that are run."""
WINDOW = 256
"""Tokens of each, from an empty cache."""
CHUNK = 64
STANDARD = ("argparse.py", "ast.py", "base64.py", "json/decoder.py", "logging/handlers.py")
"""Text that every Python has: prose and code of its standard library."""


def standard_text() -> list[str]:
    """What is calibrated on where no text is named."""
    folder = Path(sysconfig.get_path("stdlib"))
    return [(folder / name).read_text(encoding="utf-8") for name in STANDARD]


def calibrate(files: ModelFiles, texts: Sequence[str], windows: int = WINDOWS) -> dict[str, Range]:
    """Ranges of every point of the whole model, by channel, over windows spread over the texts.

    Raises ConfigError where they are shorter than one window, ModelUnsupported, ModelCorrupt.
    """
    config = config_of(files)
    window = min(WINDOW, config.context)
    ids = [token for text in texts for token in tokenizer.load(files).encode(text)]
    if len(ids) < window:
        raise ConfigError(
            f"{len(ids)} tokens of text are too few to calibrate by",
            effect="no file was written",
            todo=f"name a text of at least {window} tokens, better {windows * window}",
        )
    return measure(files, spread(ids, window, windows))


def spread(ids: Sequence[int], window: int, count: int) -> list[NDArray[np.int32]]:
    """At most `count` windows at even distances."""
    whole = np.array(ids[: len(ids) // window * window], np.int32).reshape(-1, window)
    chosen = np.unique(np.linspace(0, len(whole) - 1, min(count, len(whole))).round().astype(int))
    return list(whole[chosen])


def measure(files: ModelFiles, windows: Iterable[NDArray[np.int32]]) -> dict[str, Range]:
    """Runs the float graph, whose points are outputs, in ONNX Runtime."""
    config = config_of(files)
    whole = LayerRange(0, config.layers, embedding=True, head=True)
    seen = Seen()
    with tempfile.TemporaryDirectory(prefix="outrider-") as folder:
        path = Path(folder) / "float.onnx"
        capacity = min(WINDOW, config.context)
        export_chunks(files, whole, path, None, chunk=min(CHUNK, capacity), context=capacity)
        chunks = load(path)
        for window in windows:
            chunks.run(0, 0, window, seen)
    return seen.ranges


class Seen:
    """Gathers the ranges of taps, run by run."""

    def __init__(self) -> None:
        self.ranges: dict[str, Range] = {}

    def __call__(self, outputs: Mapping[str, NDArray[Any]], rows: int) -> None:
        computed = len(outputs["logits"])
        for name, values in outputs.items():
            if name.startswith("tap."):
                self._add(name.removeprefix("tap."), _real(values, computed, rows))

    def _add(self, point: str, values: NDArray[Any]) -> None:
        found = Range(values.min(0), values.max(0))
        known = self.ranges.get(point)
        self.ranges[point] = found if known is None else known.merged(found)


def _real(values: NDArray[Any], computed: int, rows: int) -> NDArray[Any]:
    """The rows that are not padding, [.., channels]; heads have theirs along the second axis."""
    if values.ndim == 2:
        return values[:rows]
    heads = values.reshape(-1, computed, values.shape[-1])
    return heads[:, :rows].reshape(-1, values.shape[-1])
