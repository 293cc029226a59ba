"""Which execution provider really runs here, found by running an operator on it.

`get_available_providers()` is what the library was compiled with, not what the
machine can do: a CUDA build lists CUDA on a machine without a driver. So each
candidate multiplies two small matrices with the fallback to the CPU switched
off, and the first that gives the right product is taken.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import onnxruntime as ort

from outrider.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Provider:
    """An execution provider; the KV cache stays in the CPU's memory with each of them."""

    name: str
    """The device name that people use: cpu, cuda, coreml, openvino, qnn."""
    library_name: str
    index: int = 0
    """Which device, where the provider has several (CUDA)."""

    @property
    def chain(self) -> list[Any]:
        """For a session: this provider, then the CPU for operators that it lacks."""
        if self.library_name == CPU.library_name:
            return [CPU.library_name]
        options = {"device_id": str(self.index)} if self.name == "cuda" else {}
        return [(self.library_name, options), CPU.library_name]


CPU = Provider("cpu", "CPUExecutionProvider")
CANDIDATES = (
    Provider("cuda", "CUDAExecutionProvider"),
    Provider("coreml", "CoreMLExecutionProvider"),
    Provider("openvino", "OpenVINOExecutionProvider"),
    Provider("qnn", "QNNExecutionProvider"),
    CPU,
)
"""In the order of trial."""


def choose(device: str) -> Provider:
    """The provider for a device name; `auto` takes the first that runs.

    Raises ConfigError for an unknown name, and for one that does not run here.
    """
    if device == "auto":
        return next((found for found in CANDIDATES if runs(found)), CPU)
    name, _, index = device.partition(":")
    for candidate in CANDIDATES:
        if candidate.name == name and (not index or index.isdecimal()):
            return _checked(Provider(name, candidate.library_name, int(index or 0)))
    known = ", ".join(candidate.name for candidate in CANDIDATES)
    raise ConfigError(f"onnxruntime has no device {device!r}", todo=f"one of auto, {known}")


def _checked(provider: Provider) -> Provider:
    if not runs(provider):
        raise ConfigError(
            f"device {provider.name!r} does not run here",
            why=f"a trial multiplication on {provider.library_name} failed",
            effect="no model was loaded",
            todo="install its driver and the onnxruntime build for it, or use --device cpu",
        )
    return provider


@lru_cache(maxsize=16)
def runs(provider: Provider) -> bool:
    """Whether a matrix product, without fallback, comes out right."""
    if provider.library_name not in ort.get_available_providers():
        return False
    try:
        found = _product(provider)
    except Exception:  # noqa: BLE001  Each provider fails in its own way; all mean no.
        return False
    return bool(np.allclose(found, _LEFT @ _RIGHT, rtol=1e-2))


_LEFT = np.arange(64, dtype=np.float32).reshape(8, 8) / 64
_RIGHT = np.eye(8, dtype=np.float32) + 0.5


def _product(provider: Provider) -> Any:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    if provider is not CPU and provider.library_name != CPU.library_name:
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    session = ort.InferenceSession(_trial_model(), options, providers=provider.chain[:1])
    if session.get_providers()[0] != provider.library_name:
        return np.full((8, 8), np.nan)
    return session.run(None, {"left": _LEFT, "right": _RIGHT})[0]


def _trial_model() -> bytes:
    from onnx import TensorProto, helper

    ports = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [8, 8])
        for name in ("left", "right", "product")
    ]
    node = helper.make_node("MatMul", ["left", "right"], ["product"])
    graph = helper.make_graph([node], "trial", ports[:2], ports[2:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    data: bytes = model.SerializeToString()
    return data
