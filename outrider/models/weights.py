"""A decoder's tensors: names and shapes checked against the config before any is read.

Names are Hugging Face's. Files are memory-mapped, so a tensor costs its pages
when it is used, and nothing before.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from outrider.engine import LayerRange
from outrider.errors import ModelCorrupt, ModelUnsupported
from outrider.models.check import check_safetensors
from outrider.models.check.safetensors import SafeTensor
from outrider.models.config import ModelConfig
from outrider.models.source import ModelFiles

if TYPE_CHECKING:
    from torch import Tensor

_DTYPES = ("F32", "F16", "BF16")

Shape = tuple[int, ...]


def expected(config: ModelConfig) -> dict[str, Shape]:
    """Every tensor the decoder needs, by name, with its shape."""
    wide = (config.vocab_size, config.hidden_size)
    shapes: dict[str, Shape] = {
        "model.embed_tokens.weight": wide,
        "model.norm.weight": (config.hidden_size,),
    }
    if not config.tied:
        shapes["lm_head.weight"] = wide
    for layer in range(config.layers):
        prefix = f"model.layers.{layer}."
        shapes |= {prefix + name: shape for name, shape in _layer(config)}
    return shapes


def _layer(config: ModelConfig) -> Iterator[tuple[str, Shape]]:
    yield from _norms(config)
    yield from _projections(config)


def _norms(config: ModelConfig) -> Iterator[tuple[str, Shape]]:
    yield "input_layernorm.weight", (config.hidden_size,)
    yield "post_attention_layernorm.weight", (config.hidden_size,)
    if config.qk_norm:
        yield "self_attn.q_norm.weight", (config.head_dim,)
        yield "self_attn.k_norm.weight", (config.head_dim,)


def _projections(config: ModelConfig) -> Iterator[tuple[str, Shape]]:
    hidden, wide = config.hidden_size, config.intermediate_size
    queries, keys = config.heads * config.head_dim, config.kv_heads * config.head_dim
    table = (
        ("self_attn.q_proj", queries, hidden, config.qkv_bias),
        ("self_attn.k_proj", keys, hidden, config.qkv_bias),
        ("self_attn.v_proj", keys, hidden, config.qkv_bias),
        ("self_attn.o_proj", hidden, queries, config.out_bias),
        ("mlp.gate_proj", wide, hidden, config.mlp_bias),
        ("mlp.up_proj", wide, hidden, config.mlp_bias),
        ("mlp.down_proj", hidden, wide, config.mlp_bias),
    )
    for name, out, into, bias in table:
        yield f"{name}.weight", (out, into)
        if bias:
            yield f"{name}.bias", (out,)


def shapes_of(config: ModelConfig, layers: LayerRange) -> dict[str, Shape]:
    """The tensors that a stage needs, by Hugging Face name."""
    wanted = {f"model.layers.{number}" for number in range(layers.start, layers.stop)}
    if layers.embedding or (layers.head and config.tied):
        wanted.add("model.embed_tokens")
    if layers.head:
        wanted |= {"model.norm", "lm_head"}
    shapes = expected(config)
    return {name: shapes[name] for name in shapes if _owner(name) in wanted}


def _owner(name: str) -> str:
    """`model.layers.3` of a layer's tensor, else the name without `.weight`."""
    found = re.match(r"model\.layers\.\d+", name)
    return found[0] if found else name.removesuffix(".weight")


class Weights:
    """Open safetensors files of one model, of which `wanted` is needed (None: all of it).

    Raises `ModelCorrupt`, `ModelUnsupported` on opening.
    """

    def __init__(
        self, files: ModelFiles, config: ModelConfig, wanted: LayerRange | None = None
    ) -> None:
        self.files = files
        self._where: dict[str, Path] = {}
        entries: dict[str, SafeTensor] = {}
        for path in files.weights:
            for entry in check_safetensors(path):
                entries[entry.name] = entry
                self._where[entry.name] = path
        self._open: dict[Path, Any] = {}
        shapes = expected(config) if wanted is None else shapes_of(config, wanted)
        for name, shape in shapes.items():
            _check(name, shape, entries.get(name))

    def tensor(self, name: str) -> Tensor:
        """The tensor as stored, on the CPU, backed by the file."""
        path = self._where[name]
        if path not in self._open:
            self._open[path] = _opened(path)
        found: Tensor = self._open[path].get_tensor(name)
        return found


def _opened(path: Path) -> Any:
    from safetensors import SafetensorError, safe_open

    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise ModelCorrupt(
            f"{path.name} can not be read",
            why=type(error).__name__,
            effect="the model was not loaded",
        ) from error


def _check(name: str, shape: Shape, entry: SafeTensor | None) -> None:
    if entry is None:
        raise ModelCorrupt(
            f"the model has no tensor {name}",
            why="its config.json asks for it",
            effect="the model was not loaded",
            todo="fetch all of the model's files again",
        )
    if entry.shape != shape:
        raise ModelCorrupt(
            f"tensor {name} has shape {list(entry.shape)}",
            why=f"config.json asks for {list(shape)}",
            effect="the model was not loaded",
        )
    if entry.dtype not in _DTYPES:
        raise ModelUnsupported(
            f"tensor {name} is stored as {entry.dtype}",
            effect="the model was not loaded",
            todo=f"use weights in one of {', '.join(_DTYPES)}",
        )
