"""Llama, Mistral, Qwen2 and Qwen3 decoders over a pass of rows.

Follows the Hugging Face implementations of these families operation by operation,
on rows [R, hidden] instead of padded batches. Rotary embeddings: Su et al. 2021,
with the halves of a head rotated against each other.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from outrider.engines.torch.attention import Attention
from outrider.engines.torch.batch import Batch
from outrider.engines.torch.cache import Cache
from outrider.engines.torch.linear import Kind, Linear, MakeLinear, maker
from outrider.models.config import ModelConfig, inverse_frequencies
from outrider.models.weights import Weights


class Tensors(Protocol):
    """`Weights`, or what stands in for them."""

    def tensor(self, name: str) -> Tensor: ...


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


class Layers:
    """Decoder layers on a device, and the way of hidden rows through them."""

    def __init__(self, config: ModelConfig, load: Loader, context: int) -> None:
        self.config = config
        self.dtype = load.dtype
        self._eps = torch.tensor(config.norm_eps, device=load.device)
        self.layers = [load.layer(i) for i in range(config.layers)]
        self.cos, self.sin = (t.to(load.device, load.dtype) for t in _rotary(config, context))

    def through(
        self,
        hidden: Tensor,
        batch: Batch,
        cache: Cache,
        attention: Attention,
        layers: Sequence[int],
    ) -> Tensor:
        """Appends the rows' keys and values; hidden rows [R, hidden] behind the last layer.

        `layers`: all of them, or those few that a probe runs.
        """
        turn = self.cos.index_select(0, batch.positions), self.sin.index_select(0, batch.positions)
        for number in layers:
            layer = self.layers[number]
            normal = self._norm(hidden, layer.attention_norm)
            mixed = self._attend(number, layer, normal, turn, batch, cache, attention)
            hidden = hidden + layer.out(mixed)
            hidden = hidden + self._mlp(layer, self._norm(hidden, layer.mlp_norm))
        return hidden

    def products(self) -> Iterator[tuple[Linear, int]]:
        """The four products of a layer, each with its input width; there must be a layer."""
        config, first = self.config, self.layers[0]
        yield first.qkv, config.hidden_size
        yield first.out, config.heads * config.head_dim
        yield first.gate_up, config.hidden_size
        yield first.down, config.intermediate_size

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
        flat = heads.view(-1, config.head_dim)
        found = []
        for group in batch.groups:
            queries = flat.index_select(0, group.queries).view(*group.shape, config.head_dim)
            keys, values = cache.keys_and_values(number, group)
            bias = group.bias[layer.window]
            mixed = attention(queries, keys, values, bias, config.head_dim**-0.5)
            found.append(mixed.view(-1, config.head_dim))
        joined = found[0] if len(found) == 1 else torch.cat(found)
        return joined.index_select(0, batch.gather).view(len(normal), -1)

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

    def headed(self, hidden: Tensor, batch: Batch, norm: Tensor, head: Linear) -> Tensor:
        """Scores of the wanted rows, [wanted, vocab_size]."""
        if batch.outputs is not None:
            hidden = hidden.index_select(0, batch.outputs)
        return head(self._norm(hidden, norm))[: batch.wanted]

    def _mlp(self, layer: Layer, rows: Tensor) -> Tensor:
        gate, up = layer.gate_up(rows).chunk(2, -1)
        return layer.down(functional.silu(gate).mul_(up))

    def _norm(self, rows: Tensor, weight: Tensor) -> Tensor:
        """RMSNorm (Zhang, Sennrich 2019) in float32."""
        wide = rows.float()
        squares = wide.square().sum(-1, keepdim=True)
        scale = torch.add(self._eps, squares, alpha=1.0 / weight.shape[0]).rsqrt_()
        return (wide * scale).to(self.dtype).mul_(weight)


class Decoder(Layers):
    """Weights on a device and the function from a `Batch` to scores."""

    def __init__(
        self,
        config: ModelConfig,
        weights: Weights,
        device: torch.device,
        dtype: torch.dtype,
        kind: Kind,
        context: int,
    ) -> None:
        load = Loader(config, weights, device, dtype, maker(kind))
        self.kind = kind
        self.embedding = load.tensor("model.embed_tokens.weight")
        self.norm = load.tensor("model.norm.weight")
        head = self.embedding if config.tied else load.tensor("lm_head.weight")
        self.head = load.make(head, None)
        super().__init__(config, load, context)

    def shapes(self) -> Iterator[tuple[Linear, int]]:
        """One product of each shape, with its input width."""
        yield from self.products()
        yield self.head, self.config.hidden_size

    def scores(
        self, batch: Batch, cache: Cache, attention: Attention, layers: Sequence[int]
    ) -> Tensor:
        """Scores of the wanted rows, [wanted, vocab_size]; else as `through`."""
        hidden = self.embedding.index_select(0, batch.tokens)
        hidden = self.through(hidden, batch, cache, attention, layers)
        return self.headed(hidden, batch, self.norm, self.head)


def _rotary(config: ModelConfig, context: int) -> tuple[Tensor, Tensor]:
    """Cosines, and sines with the sign that the other half takes: [context, 1, head_dim]."""
    turns = torch.tensor(inverse_frequencies(config), dtype=torch.float32)
    angles = torch.arange(context, dtype=torch.float32)[:, None] * turns
    cos, sin = angles.cos(), angles.sin()
    return torch.cat([cos, cos], -1).unsqueeze(1), torch.cat([-sin, sin], -1).unsqueeze(1)


class Loader:
    """Tensors by name onto the device, joined where one product serves several.

    `first`: what layer 0 of `config` is called in the files, for a range of a model's layers.
    """

    def __init__(
        self,
        config: ModelConfig,
        weights: Tensors,
        device: torch.device,
        dtype: torch.dtype,
        make: MakeLinear,
        first: int = 0,
    ) -> None:
        self.config = config
        self.first = first
        self.weights = weights
        self.device = device
        self.dtype = dtype
        self.make = make

    def tensor(self, name: str) -> Tensor:
        return self.weights.tensor(name).to(self.device, self.dtype)

    def layer(self, number: int) -> Layer:
        config = self.config
        at = f"model.layers.{self.first + number}."
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
