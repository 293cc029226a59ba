"""Which adapter builds which engine; nothing is imported before it is asked for."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from importlib import import_module

from outrider.engine import Engine, EngineSpec
from outrider.errors import ConfigError, EngineMissing, ModelError, NotFound

_MODULES = {
    "torch": ("outrider.engines.torch", "torch", "torch"),
    "llama": ("outrider.engines.llama", "llama_cpp", "llama"),
    "onnx": ("outrider.engines.onnx", "onnxruntime", "onnx"),
    "ngram": ("outrider.engines.ngram", "numpy", "edge"),
    "split": ("outrider.stages.engine", "grpc", "cloud"),
    "fake": ("outrider.engines.fake", "numpy", "edge"),
}
"""Engine name to (adapter module with `build(spec)`, library it needs, extra that brings it)."""


def installed() -> tuple[str, ...]:
    """Engines whose library can be found, without importing it."""
    return tuple(
        name for name, (_, library, _) in _MODULES.items() if importlib.util.find_spec(library)
    )


def build(spec: EngineSpec) -> Engine:
    """Load the model and make the engine. Raises EngineMissing, ModelError, ConfigError."""
    name = choose(spec)
    spec = _placed(spec, name)
    if name not in _MODULES:
        raise ConfigError(f"no engine {name!r}", todo=f"one of {', '.join(_MODULES)}")
    module, library, extra = _MODULES[name]
    if importlib.util.find_spec(library) is None:
        raise EngineMissing(name, extra)
    engine: Engine = import_module(module).build(spec)
    if name != "split":
        _spell(name, engine, spec)
    return engine


def _spell(name: str, engine: Engine, spec: EngineSpec) -> None:
    """Models that bring a tokenizer can be kept to a constraint. Of a split one the last stage
    picks, on another machine: it knows of none."""
    from outrider.engines.base import BaseEngine
    from outrider.engines.fake import vocabulary as letters
    from outrider.models import vocabulary
    from outrider.models.source import resolve

    assert isinstance(engine, BaseEngine)
    if name == "fake":
        engine.spell(letters)
    elif name != "ngram" or not (spec.model == "ngram" or "size" in dict(spec.options)):
        try:
            files = resolve(spec.model)
        except (ModelError, NotFound):
            # Found by the adapter's own rules, so without a tokenizer that is known here.
            return
        if files.kind == "gguf" or files.tokenizer_json is not None:
            engine.spell(lambda: vocabulary.load(files))


def _placed(spec: EngineSpec, engine: str) -> EngineSpec:
    """A name of `outrider ls` as the path behind it; that it is loaded now is noted."""
    if engine in ("ngram", "fake"):
        return spec
    from outrider.models.shelf import Shelf

    path = _located(spec.model)
    if path == spec.model:
        return spec
    Shelf().touch(spec.model)
    return replace(spec, model=path)


def _located(model: str) -> str:
    # Reading models needs numpy, which the command line alone does not have.
    from outrider.models.source import locate

    return locate(model)


def choose(spec: EngineSpec) -> str:
    """`auto` goes by the file: .gguf to llama.cpp, .onnx to onnxruntime, folders to torch,
    else to onnxruntime where torch is missing."""
    if spec.engine != "auto":
        return spec.engine
    path = _located(spec.model)
    if path.endswith(".gguf"):
        return "llama"
    if path.endswith(".onnx"):
        return "onnx"
    return "torch" if importlib.util.find_spec("torch") else "onnx"
