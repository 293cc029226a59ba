"""Llama, Mistral, Qwen2 and Qwen3 decoders over a pass of rows.

Follows the Hugging Face implementations of these families operation by operation,
on rows [R, hidden] instead of padded batches. Rotary embeddings: Su et al. 2021,
with the halves of a head rotated against each other.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from outrider.engines.torch.attention import Attention, heads_first, rows_first
from outrider.engines.torch.batch import Batch
from outrider.engines.torch.cache import Cache
from outrider.engines.torch.linear import Linear
from outrider.models.config import ModelConfig, inverse_frequencies
from outrider.models.weights import Weights

MakeLinear = Callable[[Tensor, Tensor | None], Linear]


@dataclass(frozen=True, slots=True)
class Layer:
    window: int | None
    attention_norm: Tensor
    mlp_norm: Tensor
    query_norm: Tensor | None
    key_norm: Tensor | None
    qkv: Linear
    out: Linear
    gate_up: Linear
    down: Linear


class Decoder:
    """Weights on a device and the function from a `Batch` to scores."""

    def __init__(
        self,
        config: ModelConfig,
        weights: Weights,
        device: torch.device,
        dtype: torch.dtype,
        make: MakeLinear,
    ) -> None:
        self.config = config
        self.dtype = dtype
        self._load = _Loader(config, weights, device, dtype, make)
        self.embedding = self._load.tensor("model.embed_tokens.weight")
        self.norm = self._load.tensor("model.norm.weight")
        self.head = make(
            self.embedding if config.tied else self._load.tensor("lm_head.weight"), None
        )
        self.layers = [self._load.layer(i) for i in range(config.layers)]

    def prepare(self, context: int) -> None:
        """Make the rotary tables for `context` positions."""
        device = self.embedding.device
        turns = torch.tensor(inverse_frequencies(self.config), dtype=torch.float32)
        angles = torch.arange(context, dtype=torch.float32)[:, None] * turns
        cos, sin = angles.cos(), angles.sin()
        self.cos = torch.cat([cos, cos], -1).to(device, self.dtype).unsqueeze(1)
        self.sin = torch.cat([-sin, sin], -1).to(device, self.dtype).unsqueeze(1)

    def scores(self, batch: Batch, cache: Cache, attention: Attention) -> Tensor:
        """Appends the rows' keys and values; scores of the wanted rows, [wanted, vocab_size]."""
        hidden = self.embedding.index_select(0, batch.tokens)
        turn = self.cos.index_select(0, batch.positions), self.sin.index_select(0, batch.positions)
        for number, layer in enumerate(self.layers):
            normal = self._norm(hidden, layer.attention_norm)
            mixed = self._attend(number, layer, normal, turn, batch, cache, attention)
            hidden = hidden + layer.out(mixed)
            hidden = hidden + self._mlp(layer, self._norm(hidden, layer.mlp_norm))
        if batch.outputs is not None:
            hidden = hidden.index_select(0, batch.outputs)
        return self.head(self._norm(hidden, self.norm))[: batch.wanted]

    def _attend(
        self,
        number: int,
        layer: Layer,
        normal: Tensor,
        turn: tuple[Tensor, Tensor],
        batch: Batch,
        cache: Cache,
        attention: Attention,
    ) -> Tensor:
        config = self.config
        heads = layer.qkv(normal).view(len(normal), -1, config.head_dim)
        heads = self._turned(layer, heads, turn)
        cache.append(number, batch, heads[: batch.rows, config.heads :])
        queries = heads[:, : config.heads].reshape(len(normal), -1)
        found = []
        for group in batch.groups:
            keys, values = cache.keys_and_values(number, group)
            part = heads_first(
                queries.index_select(0, group.rows), group, config.kv_heads, config.head_dim
            )
            mixed = attention(part, keys, values, group.bias[layer.window], config.head_dim**-0.5)
            found.append(rows_first(mixed, group, config.kv_heads))
        joined = found[0] if len(found) == 1 else torch.cat(found)
        return joined if batch.gather is None else joined.index_select(0, batch.gather)

    def _turned(self, layer: Layer, heads: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
        """Queries and keys normed where the model does, and rotated; values untouched."""
        config = self.config
        count = config.heads + config.kv_heads
        if layer.query_norm is not None and layer.key_norm is not None:
            heads[:, : config.heads] = self._norm(heads[:, : config.heads], layer.query_norm)
            heads[:, config.heads : count] = self._norm(
                heads[:, config.heads : count], layer.key_norm
            )
        part = heads[:, :count]
        half = config.head_dim // 2
        other = torch.cat([part[..., half:], part[..., :half]], -1)
        part.mul_(turn[0]).addcmul_(other, turn[1])
        return heads

    def _mlp(self, layer: Layer, rows: Tensor) -> Tensor:
        gate, up = layer.gate_up(rows).chunk(2, -1)
        return layer.down(functional.silu(gate) * up)

    def _norm(self, rows: Tensor, weight: Tensor) -> Tensor:
        if self.dtype == torch.float32:
            return functional.rms_norm(rows, weight.shape, weight, self.config.norm_eps)
        wide = rows.float()
        scale = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.config.norm_eps)
        return weight * (wide * scale).to(self.dtype)


class _Loader:
    """Tensors by name onto the device, joined where one product serves several."""

    def __init__(
        self,
        config: ModelConfig,
        weights: Weights,
        device: torch.device,
        dtype: torch.dtype,
        make: MakeLinear,
    ) -> None:
        self.config = config
        self.weights = weights
        self.device = device
        self.dtype = dtype
        self.make = make

    def tensor(self, name: str) -> Tensor:
        return self.weights.tensor(name).to(self.device, self.dtype)

    def layer(self, number: int) -> Layer:
        config = self.config
        at = f"model.layers.{number}."
        attn, mlp = at + "self_attn.", at + "mlp."
        return Layer(
            window=config.windows[number],
            attention_norm=self.tensor(at + "input_layernorm.weight"),
            mlp_norm=self.tensor(at + "post_attention_layernorm.weight"),
            query_norm=self.tensor(attn + "q_norm.weight") if config.qk_norm else None,
            key_norm=self.tensor(attn + "k_norm.weight") if config.qk_norm else None,
            qkv=self.linear(attn, ("q_proj", "k_proj", "v_proj"), biased=config.qkv_bias),
            out=self.linear(attn, ("o_proj",), biased=config.out_bias),
            gate_up=self.linear(mlp, ("gate_proj", "up_proj"), biased=config.mlp_bias),
            down=self.linear(mlp, ("down_proj",), biased=config.mlp_bias),
        )

    def linear(self, prefix: str, names: tuple[str, ...], *, biased: bool) -> Linear:
        weight = self.joined([f"{prefix}{name}.weight" for name in names])
        bias = self.joined([f"{prefix}{name}.bias" for name in names]) if biased else None
        return self.make(weight, bias)

    def joined(self, names: list[str]) -> Tensor:
        parts = [self.tensor(name) for name in names]
        return parts[0] if len(parts) == 1 else torch.cat(parts)
