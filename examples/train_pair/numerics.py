"""Which device to train on, and whether bfloat16 pays there."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager

import torch


def pick_device(name: str) -> torch.device:
    """`auto` is CUDA where there is one, else the CPU."""
    if name != "auto":
        return torch.device(name)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """`auto` times one matrix product of training's shape in both types and takes the faster."""
    if name != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16}[name]
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    slow = _product_seconds(torch.float32, device)
    return (
        torch.bfloat16 if _product_seconds(torch.bfloat16, device) < 0.8 * slow else torch.float32
    )


def _product_seconds(dtype: torch.dtype, device: torch.device) -> float:
    left = torch.randn(2048, 256, device=device).to(dtype)
    right = torch.randn(256, 704, device=device).to(dtype)
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        torch.mm(left, right)
        best = min(best, time.perf_counter() - start)
    return best


def autocast(device: torch.device, dtype: torch.dtype) -> AbstractContextManager[object]:
    """Mixed precision in `dtype`; a no-op for float32."""
    return torch.autocast(device.type, dtype=dtype, enabled=dtype is not torch.float32)
