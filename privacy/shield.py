"""Permuted KV and hidden states: obfuscation, not encryption.

A host that computes with permuted weights sees hidden states, keys and values whose dimensions
stand in a secret order; only the device knows it, and turns what comes back around, bit for bit.
After KV-Shield (arXiv 2409.04040). What is permuted: the hidden width; per layer the key-value
heads with their query heads, the dimensions of values, the neurons; and the rotary pairs, alike
everywhere, since the angles are.

It keeps nothing from a host that knows the model, which is nearly every host: sorting undoes it
(`privacy/leak`, and arXiv 2505.18332 for published schemes). Measured: `outrider privacy`.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from outrider.engine import KvSegment
from outrider.errors import LocalProtocolError
from outrider.models.config import ModelConfig, load_config
from outrider.models.source import ModelFiles

if TYPE_CHECKING:
    from torch import Tensor

KEY = 32
ORDER = "outrider_rope_order"
"""The key of config.json that says in which order the rotary pairs stand."""
_ITEM = {"float32": "<u4", "float16": "<u2", "bfloat16": "<u2"}
_LABEL = b"outrider permuted kv v1\x00"

Order = NDArray[np.intp]
"""`out[i] = given[order[i]]`."""
Array = NDArray[np.generic]


@dataclass(frozen=True, slots=True)
class LayerOrders:
    """Of one decoder layer."""

    heads: Order
    """Key-value heads; each takes its query heads along."""
    values: tuple[Order, ...]
    """Dimensions of the values of each head, by its number before."""
    neurons: Order


_Turn = Callable[[Array, LayerOrders], Array]
_Inner = Sequence[Order]


@dataclass(frozen=True, slots=True)
class Shield:
    """The secret orders for one model; they never leave the device."""

    hidden: Order
    pairs: Order
    """Rotary pairs: dimension i and i + head_dim / 2 go together."""
    layers: tuple[LayerOrders, ...]
    group: int
    """Query heads a key-value head."""

    @classmethod
    def derive(cls, key: bytes, config: ModelConfig) -> Shield:
        """From 32 random bytes: the same key gives the same orders. Raises ValueError."""
        if len(key) != KEY:
            raise ValueError(f"a shield's key has {KEY} bytes")
        if key == bytes(KEY):
            raise ValueError("a key of zeros is no secret")

        def order(name: str, size: int) -> Order:
            stream = hashlib.shake_256(_LABEL + key + name.encode()).digest(8 * size)
            return np.argsort(np.frombuffer(stream, "<u8"), kind="stable")

        layers = tuple(
            LayerOrders(
                order(f"{layer} heads", config.kv_heads),
                tuple(
                    order(f"{layer} values {head}", config.head_dim)
                    for head in range(config.kv_heads)
                ),
                order(f"{layer} neurons", config.intermediate_size),
            )
            for layer in range(config.layers)
        )
        hidden = order("hidden", config.hidden_size)
        return cls(hidden, order("pairs", config.head_dim // 2), layers, config.group)

    @property
    def keys(self) -> Order:
        """Dimensions of keys and queries: pairs, as both halves of a head."""
        return np.concatenate([self.pairs, self.pairs + len(self.pairs)])

    # --- what crosses the wire -------------------------------------------------------------

    def hide(self, hidden: NDArray[np.float32]) -> NDArray[np.float32]:
        """Hidden rows [rows, hidden_size], for the host."""
        return np.ascontiguousarray(hidden[:, self.hidden])

    def show(self, hidden: NDArray[np.float32]) -> NDArray[np.float32]:
        """The host's hidden rows in their own order."""
        return np.ascontiguousarray(hidden[:, np.argsort(self.hidden)])

    def permute(self, segment: KvSegment, first: int = 0) -> KvSegment:
        """Canonical KV of layers [first, ...) as the host holds it. Raises LocalProtocolError."""
        return self._turned(segment, first, self._layer)

    def restore(self, segment: KvSegment, first: int = 0) -> KvSegment:
        """The host's KV as the plain model holds it, bit for bit. Raises LocalProtocolError."""
        return self._turned(segment, first, self._layer_back)

    def _turned(self, segment: KvSegment, first: int, turn: _Turn) -> KvSegment:
        given = _array(segment)
        layers, _, heads, _, size = given.shape
        fits = (heads, size) == (len(self.layers[0].heads), 2 * len(self.pairs))
        if not fits or not 0 <= first <= len(self.layers) - layers:
            raise LocalProtocolError("the KV segment has another shape than the shield's model")
        found = np.stack([turn(part, self.layers[first + i]) for i, part in enumerate(given)])
        return replace(segment, data=found.tobytes())

    def _layer(self, part: Array, orders: LayerOrders) -> Array:
        """[2, kv_head, token, head_dim] of one layer."""
        keys = part[0][orders.heads][..., self.keys]
        values = [part[1, head][:, orders.values[head]] for head in orders.heads]
        return np.stack([keys, np.stack(values)])

    def _layer_back(self, part: Array, orders: LayerOrders) -> Array:
        found = np.empty_like(part)
        found[0, orders.heads] = part[0][..., np.argsort(self.keys)]
        for place, head in enumerate(orders.heads):
            found[1, head] = part[1, place][:, np.argsort(orders.values[head])]
        return found

    # --- what the host computes with -------------------------------------------------------

    def weight(self, name: str, given: Array) -> Array:
        """A tensor of the model, by its Hugging Face name, for the host.

        Raises LocalProtocolError for one that no decoder of a known family has.
        """
        if not name.startswith("model.layers."):
            if name not in ("model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"):
                raise _unknown(name)
            return given[..., self.hidden]
        _, _, number, *part, kind = name.split(".")
        found = self._part(".".join(part), given, self.layers[int(number)], kind)
        if found is None:
            raise _unknown(name)
        return found

    def _part(self, part: str, given: Array, orders: LayerOrders, kind: str) -> Array | None:
        inner = {
            "self_attn.q_proj": self._queries(orders),
            "self_attn.k_proj": self._heads(orders, [self.keys] * len(orders.heads), 1),
            "self_attn.v_proj": self._heads(orders, orders.values, 1),
            "mlp.gate_proj": orders.neurons,
            "mlp.up_proj": orders.neurons,
        }
        outer = {
            "self_attn.o_proj": self._heads(orders, orders.values, self.group),
            "mlp.down_proj": orders.neurons,
        }
        rows: Array
        if part in inner:
            rows = given[inner[part]]
            return rows[:, self.hidden] if kind == "weight" else rows
        if part in outer:
            rows = given[self.hidden]
            return rows[:, outer[part]] if kind == "weight" else rows
        if part in ("self_attn.q_norm", "self_attn.k_norm"):
            rows = given[self.keys]
            return rows
        if not part.endswith("layernorm"):
            return None
        rows = given[self.hidden]
        return rows

    def _queries(self, orders: LayerOrders) -> Order:
        return self._heads(orders, [self.keys] * len(orders.heads), self.group)

    def _heads(self, orders: LayerOrders, inner: _Inner, each: int) -> Order:
        """Rows of a projection with `each` heads a key-value head, `inner` within a head."""
        size = 2 * len(self.pairs)
        return np.concatenate(
            [(head * each + i) * size + inner[head] for head in orders.heads for i in range(each)]
        )

    def _tensor(self, name: str, given: Tensor) -> Tensor:
        """As words, so that every dtype keeps its bits."""
        import torch

        words = {2: torch.int16, 4: torch.int32}[given.element_size()]
        turned = np.ascontiguousarray(self.weight(name, given.view(words).numpy()))
        return torch.from_numpy(turned).view(given.dtype)

    def write(self, files: ModelFiles, folder: Path) -> None:
        """The model as the host gets it, a folder that the torch engine loads.

        Its numeric class is another one: sums run in another order. Needs torch. Raises
        LocalProtocolError, OSError.
        """
        from safetensors.torch import load_file, save_file

        assert files.config is not None
        folder.mkdir(parents=True, exist_ok=True)
        for path in files.weights:
            turned = {name: self._tensor(name, t) for name, t in load_file(path).items()}
            save_file(turned, folder / path.name, metadata={"format": "pt"})
        fields = json.loads(files.config.read_text("utf-8"))
        fields[ORDER] = [int(place) for place in self.pairs]
        (folder / "config.json").write_text(json.dumps(fields), "utf-8")
        for path in files.folder.iterdir():
            if path.suffix in (".json", ".jinja") and path.name != "config.json":
                shutil.copyfile(path, folder / path.name)


def shield_of(files: ModelFiles, key: bytes) -> Shield:
    """The shield of a model on this machine."""
    assert files.config is not None
    return Shield.derive(key, load_config(files.config))


def _unknown(name: str) -> LocalProtocolError:
    return LocalProtocolError(f"a shield does not know the tensor {name}")


def _array(segment: KvSegment) -> Array:
    """[layer, 2, kv_head, token, head_dim] as words that are moved, never computed with."""
    kind = _ITEM.get(segment.dtype)
    if segment.layout != "canonical" or kind is None or len(segment.shape) != 5:
        raise LocalProtocolError("a shield takes canonical KV in float32, float16 or bfloat16")
    if len(segment.data) != np.prod(segment.shape) * np.dtype(kind).itemsize:
        raise LocalProtocolError("the KV segment's data is not of its shape")
    return np.frombuffer(segment.data, kind).reshape(segment.shape)
