"""Which adapter builds which engine; nothing is imported before it is asked for."""

from __future__ import annotations

import importlib.util
from importlib import import_module

from outrider.engine import Engine, EngineSpec
from outrider.errors import ConfigError, EngineMissing

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
    if name not in _MODULES:
        raise ConfigError(f"no engine {name!r}", todo=f"one of {', '.join(_MODULES)}")
    module, library, extra = _MODULES[name]
    if importlib.util.find_spec(library) is None:
        raise EngineMissing(name, extra)
    engine: Engine = import_module(module).build(spec)
    return engine


def choose(spec: EngineSpec) -> str:
    """`auto` goes by the file: .gguf to llama.cpp, .onnx to onnxruntime, folders to torch,
    else to onnxruntime where torch is missing."""
    if spec.engine != "auto":
        return spec.engine
    if spec.model.endswith(".gguf"):
        return "llama"
    if spec.model.endswith(".onnx"):
        return "onnx"
    return "torch" if importlib.util.find_spec("torch") else "onnx"
