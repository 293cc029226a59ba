"""Small model files, written byte by byte."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path

import pytest


def _text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def gguf_bytes() -> bytes:
    """Version 3: one text, one number, one array of each sort, two tensors."""
    keys = [
        _text("general.architecture") + struct.pack("<I", 8) + _text("llama"),
        _text("llama.block_count") + struct.pack("<II", 4, 2),
        _text("tokenizer.ggml.model") + struct.pack("<I", 8) + _text("gpt2"),
        _text("tokenizer.ggml.tokens")
        + struct.pack("<IIQ", 9, 8, 3)
        + b"".join(_text(token) for token in ("a", "\u0120b", "<|end|>")),
        _text("tokenizer.ggml.token_type") + struct.pack("<IIQ3i", 9, 5, 3, 1, 1, 3),
    ]
    table = [
        _text("one") + struct.pack("<IQQIQ", 2, 32, 2, 0, 0),
        _text("two") + struct.pack("<IQIQ", 1, 64, 8, 256),
    ]
    head = b"GGUF" + struct.pack("<IQQ", 3, len(table), len(keys)) + b"".join(keys + table)
    return head + bytes(-len(head) % 32) + bytes(256 + 68)


def safetensors_bytes(header: object = None, body: bytes = bytes(24)) -> bytes:
    given = header or {
        "__metadata__": {"format": "pt"},
        "a": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]},
        "b": {"dtype": "F16", "shape": [4], "data_offsets": [16, 24]},
    }
    text = given if isinstance(given, bytes) else json.dumps(given).encode()
    return struct.pack("<Q", len(text)) + text + body


@pytest.fixture
def gguf_data() -> bytes:
    return gguf_bytes()


@pytest.fixture
def safetensors_data() -> Callable[..., bytes]:
    return safetensors_bytes


@pytest.fixture
def written(tmp_path: Path) -> Callable[[bytes, str], Path]:
    """Writes bytes under a name and gives the path."""

    def write(data: bytes, name: str) -> Path:
        path = tmp_path / name
        path.write_bytes(data)
        return path

    return write
