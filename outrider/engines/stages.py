"""Ranges of layers, written and read, and the stage that runs one.

As text a range is `A:B`, decoder layers A up to B without B. A range that begins with
the first layer brings the embedding, one that ends with the last brings the head; either
end may be left away. `-embedding` and `-head` behind it leave one out, `0:0` is the
embedding alone and `N:N`, for a model of N layers, the head alone, so that a device may
keep both ends of a model whose layers lie elsewhere.
"""

from __future__ import annotations

import importlib.util
import re
from importlib import import_module

from outrider.engine import EngineSpec, LayerRange, Stage
from outrider.engines import registry
from outrider.errors import ConfigError, EngineMissing
from outrider.models.stage_notes import StageNotes

_TEXT = re.compile(r"(\d*):(\d*)((?:-embedding|-head)*)")
_MODULES = {
    "torch": ("outrider.engines.torch.stage", "torch"),
    "onnx": ("outrider.engines.onnx.stage", "onnxruntime"),
}
"""Engine name to (module with `build(spec, layers)`, library it needs; also the extra's name)."""


def build_stage(spec: EngineSpec, layers: LayerRange) -> Stage:
    """Load the layers and make the stage. Raises ConfigError, EngineMissing, ModelError,
    EngineFull (no memory)."""
    name = registry.choose(spec)
    if name not in _MODULES:
        raise ConfigError(
            f"engine {name!r} runs whole models only",
            effect="no stage was built",
            todo=f"one of {', '.join(_MODULES)}",
        )
    module, library = _MODULES[name]
    if importlib.util.find_spec(library) is None:
        raise EngineMissing(name, name)
    stage: Stage = import_module(module).build(spec, layers)
    return stage


def check_range(layers: LayerRange, model_layers: int) -> None:
    """Raises ConfigError for a range that a model of so many layers can not have."""
    text = f"{layers.start}:{layers.stop}"
    if not 0 <= layers.start <= layers.stop <= model_layers:
        raise _refused(text, f"the model has layers 0:{model_layers}")
    if layers.embedding and layers.start > 0:
        raise _refused(text, "the embedding goes before layer 0 alone")
    if layers.head and layers.stop < model_layers:
        raise _refused(text, f"the head goes behind layer {model_layers - 1} alone")
    if layers.start == layers.stop and not (layers.embedding or layers.head):
        raise _refused(text, "it holds no layer, no embedding and no head")


def _refused(text: str, why: str) -> ConfigError:
    return ConfigError(
        f"layers {text} can not be a stage",
        why=why,
        effect="no stage was built",
        todo="write A:B, decoder layers A up to B, like 0:12; see docs/stages.md",
    )


def check_layers(name: str, notes: StageNotes, wanted: LayerRange) -> None:
    """Raises ConfigError where an exported file does not hold the layers that are wanted."""
    if notes.layers != wanted:
        raise ConfigError(
            f"{name} holds layers {show(notes.layers, notes.model_layers)}",
            why=f"layers {show(wanted, notes.model_layers)} were asked for",
            effect="no stage was built",
            todo="export those layers, or ask for the file's own",
        )


def parse(text: str, model_layers: int) -> LayerRange:
    """The range that `text` means in a model of so many layers. Raises ConfigError."""
    found = _TEXT.fullmatch(text.strip())
    if found is None:
        raise _refused(text, "it is not of the form A:B")
    start = int(found[1] or 0)
    stop = int(found[2]) if found[2] else model_layers
    layers = LayerRange(
        start,
        stop,
        embedding=start == 0 and "-embedding" not in found[3],
        head=stop == model_layers and "-head" not in found[3],
    )
    check_range(layers, model_layers)
    return layers


def show(layers: LayerRange, model_layers: int) -> str:
    """The text that `parse` reads as this range."""
    left_out = [
        word
        for word, there, usual in (
            ("-embedding", layers.embedding, layers.start == 0),
            ("-head", layers.head, layers.stop == model_layers),
        )
        if usual and not there
    ]
    return f"{layers.start}:{layers.stop}{''.join(left_out)}"
