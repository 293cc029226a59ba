"""Keys and values of all slots in one tensor: [layer, K/V, slot, kv_head, token, head_dim]."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from outrider.engine import Span
from outrider.engines.torch.batch import BLOCK, Batch, Group
from outrider.models.config import ModelConfig


class Cache:
    """Keys stand after RoPE in Hugging Face order. All of it is finite at all times."""

    def __init__(
        self,
        config: ModelConfig,
        slots: int,
        context: int,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self.context = context
        self.slots = slots
        self.capacity = capacity(context)
        shape = (config.layers, 2, slots, config.kv_heads, self.capacity, config.head_dim)
        self.pool = _zeros(shape, device, dtype)
        self._flat = self.pool.flatten(1, 4)
        self._head_dim = config.head_dim

    def begin(self, spans: Sequence[Span]) -> None:
        """A pass over these spans comes; caches that lie elsewhere prepare for it."""

    def append(self, layer: int, batch: Batch, rows: Tensor) -> None:
        """`rows`: keys, then values, of every real row, [rows, 2 * kv_heads, D]."""
        flat = rows.reshape(-1, self._head_dim)
        self._flat[layer].index_copy_(0, batch.append.view(-1), flat)

    def keys_and_values(self, layer: int, group: Group) -> tuple[Tensor, Tensor]:
        """Both [S * kv_heads, N, D]; a view where the slots are neighbours."""
        both = self.pool[layer, :, :, :, : group.keys]
        if group.places is not None:
            both = self._gathered(layer, group)
        elif isinstance(group.slots, slice):
            both = both[:, group.slots]
        else:
            both = both.index_select(1, group.slots)
        flat = both.flatten(1, 2)
        return flat[0], flat[1]

    def _gathered(self, layer: int, group: Group) -> Tensor:
        """Each chain's own tokens brought to their positions, [2, S, kv_heads, N, D]."""
        places = group.places
        assert places is not None
        slots = group.slots
        if isinstance(slots, slice):
            slots = torch.arange(slots.start, slots.stop, device=places.device)
        return self.pool[layer][:, slots.view(-1, 1), :, places].permute(2, 0, 3, 1, 4)

    @torch.inference_mode()
    def clear(self, slot: int, start: int, stop: int) -> None:
        self.pool[:, :, slot, :, start:stop] = 0

    @torch.inference_mode()
    def move(self, slot: int, sources: Sequence[int], start: int) -> None:
        """Bring the tokens at `sources` together from `start` on."""
        where = torch.tensor(sources, device=self.pool.device)
        kept = self.pool[:, :, slot, :, where]
        self.pool[:, :, slot, :, start : start + len(sources)] = kept

    @torch.inference_mode()
    def export(self, slot: int, start: int, stop: int) -> bytes:
        """Canonical layout [layer, 2, kv_head, token, head_dim]."""
        part = self.pool[:, :, slot, :, start:stop].contiguous().cpu()
        return part.view(torch.uint8).numpy().tobytes()

    @torch.inference_mode()
    def take(self, slot: int, start: int, data: bytes, shape: tuple[int, ...]) -> None:
        """Write a canonical array of this pool's dtype at `start`."""
        raw = torch.from_numpy(np.frombuffer(bytearray(data), dtype=np.uint8))
        part = raw.view(self.pool.dtype).view(shape).to(self.pool.device)
        self.pool[:, :, slot, :, start : start + shape[3]] = part


def capacity(context: int) -> int:
    """Tokens a slot has room for: whole blocks."""
    return -(-context // BLOCK) * BLOCK


def _zeros(shape: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
    """On a CPU the pages are claimed when they are first written, as slots fill."""
    if device.type != "cpu":
        return torch.zeros(shape, device=device, dtype=dtype)
    size = int(np.prod(shape)) * dtype.itemsize
    raw = np.zeros(size + 64, dtype=np.uint8)
    shift = -raw.ctypes.data % 64
    return torch.from_numpy(raw[shift : shift + size]).view(dtype).view(shape)
