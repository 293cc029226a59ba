"""Where the model runs and in which dtype."""

from __future__ import annotations

import torch

from outrider.errors import ConfigError, EngineMissing

_DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


def choose_device(name: str) -> torch.device:
    """`auto`, `cpu`, `cuda`, `cuda:N` or `mps`. Raises ConfigError, EngineMissing."""
    if name == "auto":
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise _unknown(name) from None
    if device.type not in ("cpu", "cuda", "mps"):
        raise _unknown(name)
    _check_present(device, name)
    return torch.device("cuda:0") if name == "cuda" else device


def _unknown(name: str) -> ConfigError:
    return ConfigError(f"no device {name!r}", todo="one of auto, cpu, cuda:N, mps")


def _check_present(device: torch.device, name: str) -> None:
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise EngineMissing("torch on mps", "torch")
    if device.type != "cuda":
        return
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if (device.index or 0) >= count:
        raise ConfigError(
            f"device {name!r} is not there",
            why=f"torch sees {count} CUDA devices",
            effect="no model was loaded",
            todo="use --device cpu, or a torch with CUDA on a machine with a GPU",
        )


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """`auto` on a CPU is bfloat16 only where the instruction set computes in it."""
    if name != "auto":
        if name not in _DTYPES:
            raise ConfigError(f"no dtype {name!r}", todo=f"one of auto, {', '.join(_DTYPES)}")
        return _DTYPES[name]
    if device.type == "cuda":
        return torch.bfloat16
    if device.type == "mps":
        return torch.float16
    has = torch.cpu.get_capabilities()
    return torch.bfloat16 if has.get("avx512_bf16") or has.get("amx_bf16") else torch.float32


def hardware(device: torch.device) -> str:
    """What the kernels are chosen by: a GPU's name, or instruction set and thread count."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "mps":
        return "mps"
    name = torch.cpu.get_capabilities().get("cpu_name", "")
    return f"{name} {torch.backends.cpu.get_cpu_capability()} {torch.get_num_threads()} threads"
