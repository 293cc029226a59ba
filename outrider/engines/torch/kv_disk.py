"""Keys and values on disk: two layers of the pass at hand in memory, the rest in a scratch file.

A slot's tokens lie one after another, layer by layer, so that one read past the page cache
brings all that a layer needs; the next layer's are read while this one computes. Pages go out
when they are full, and the part of a page that still grows stays in memory. What lies in the
file is encrypted (AES-256 in counter mode, NIST SP 800-38A) under a key that only this process
holds and never writes; a page that is written anew, after a rewind, gets a counter of its own.
The file has no name once it is open, so nothing of it outlives the process.
"""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES256
from cryptography.hazmat.primitives.ciphers.modes import CTR
from torch import Tensor

from outrider.engine import Span
from outrider.engines.torch.batch import Batch
from outrider.engines.torch.blobs import PAGE, BlobFile, Buffer
from outrider.engines.torch.cache import Cache, capacity
from outrider.errors import ConfigError
from outrider.models.config import ModelConfig

STAGED = 2
"""Layers in memory at a time: the one that computes, and the next."""


@dataclass(frozen=True, slots=True)
class _Rows:
    """A slot's part of a pass: rows [base, stop)."""

    slot: int
    base: int
    stop: int


class Scratch:
    """Pages of layers and slots in an encrypted file without a name."""

    def __init__(self, folder: Path, layers: int, slots: int, pages: int, page_bytes: int) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._pages = pages
        self._slots = slots
        self.page_bytes = page_bytes
        descriptor, name = tempfile.mkstemp(dir=folder, prefix="kv-")
        try:
            os.ftruncate(descriptor, layers * slots * pages * page_bytes)
            self.file = BlobFile(Path(name))
        finally:
            os.close(descriptor)
            os.unlink(name)
        self._key = AES256(os.urandom(32))
        self._version = np.zeros((layers, slots, pages), dtype=np.uint32)
        self._out = Buffer(page_bytes)

    def write(self, layer: int, slot: int, page: int, data: memoryview) -> None:
        self._version[layer, slot, page] += 1
        self._crypt(layer, slot, page, data, self._out.view[: self.page_bytes])
        self.file.write(self._out, self._offset(layer, slot, page), self.page_bytes)

    def read(self, layer: int, slot: int, page: int, count: int, buffer: Buffer) -> None:
        """`count` pages from `page` on to the start of the buffer; zeros where none was written."""
        if not count:
            return
        self.file.read(buffer, self._offset(layer, slot, page), count * self.page_bytes)
        for start, stop in self._runs(layer, slot, page, page + count):
            part = buffer.view[(start - page) * self.page_bytes : (stop - page) * self.page_bytes]
            if self._version[layer, slot, start]:
                self._crypt(layer, slot, start, part, part)

    def _runs(self, layer: int, slot: int, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """Neighbouring pages of one version are one run of the counter."""
        versions = self._version[layer, slot, start:stop]
        cuts = [0, *(np.flatnonzero(np.diff(versions)) + 1).tolist(), stop - start]
        for a, b in zip(cuts, cuts[1:], strict=False):
            yield start + a, start + b

    def _crypt(
        self, layer: int, slot: int, page: int, source: memoryview, target: memoryview
    ) -> None:
        version = int(self._version[layer, slot, page])
        head = version.to_bytes(4, "big") + layer.to_bytes(2, "big") + slot.to_bytes(2, "big")
        block = page * self.page_bytes // 16
        stream = Cipher(self._key, CTR(head + block.to_bytes(8, "big"))).encryptor()
        stream.update_into(source, target)

    def _offset(self, layer: int, slot: int, page: int) -> int:
        return ((layer * self._slots + slot) * self._pages + page) * self.page_bytes

    def close(self) -> None:
        self.file.close()


class DiskCache(Cache):
    """`Cache` with the same index space, of which `STAGED` layers are in memory; CPU only."""

    def __init__(
        self, config: ModelConfig, slots: int, context: int, dtype: torch.dtype, folder: Path
    ) -> None:
        self._token_bytes = 2 * config.kv_heads * config.head_dim * dtype.itemsize
        self._page_tokens = page_tokens(self._token_bytes)
        self._check(context)
        super().__init__(_of_layers(config, STAGED), slots, context, torch.device("cpu"), dtype)
        self._layers = config.layers
        page_bytes = self._page_tokens * self._token_bytes
        pages = self.capacity // self._page_tokens
        self.scratch = Scratch(folder, config.layers, slots, pages, page_bytes)
        row = (2, config.kv_heads, config.head_dim)
        self._row = row
        self._tails = torch.zeros((config.layers, slots, self._page_tokens, *row), dtype=dtype)
        self._tail_page = np.zeros((config.layers, slots), dtype=np.int64)
        self._buffer = Buffer(self.capacity * self._token_bytes)
        self._rows: tuple[_Rows, ...] = ()
        self._coming: dict[int, Future[None]] = {}
        self._ahead = ThreadPoolExecutor(1, thread_name_prefix="kv-ahead")

    def _check(self, context: int) -> None:
        if capacity(context) % self._page_tokens:
            raise ConfigError(
                "KV of this model can not lie on disk",
                why=f"{self._token_bytes} bytes a token do not fill pages of {PAGE}",
                effect="the model was not loaded",
                todo="give it more memory, so that KV stays there",
            )

    # --- a pass ----------------------------------------------------------------------------

    def begin(self, spans: Sequence[Span]) -> None:
        """Which slots the next layers are asked about."""
        for future in self._coming.values():
            future.result()
        self._coming.clear()
        self._rows = tuple(_Rows(s.slot, s.base, s.base + len(s.tokens)) for s in spans)

    def append(self, layer: int, batch: Batch, rows: Tensor) -> None:
        self._bring(layer)
        super().append(layer % STAGED, batch, rows)
        for each in self._rows:
            self._persist(layer, each)

    def keys_and_values(self, layer: int, group: object) -> tuple[Tensor, Tensor]:
        return super().keys_and_values(layer % STAGED, group)  # type: ignore[arg-type]

    def _bring(self, layer: int) -> None:
        """This layer's tokens are in memory, and the next one's are on their way."""
        coming = self._coming.pop(layer, None) or self._ahead.submit(self._load, layer)
        coming.result()
        if layer + 1 < self._layers and not self._coming:
            self._coming[layer + 1] = self._ahead.submit(self._load, layer + 1)

    @torch.inference_mode()
    def _load(self, layer: int) -> None:
        for each in self._rows:
            self._stage(layer, each.slot, each.base)

    def _stage(self, layer: int, slot: int, length: int) -> None:
        """The first `length` tokens of a slot into the staged layer."""
        page, rest = divmod(length, self._page_tokens)
        whole = length - rest
        into = self.pool[layer % STAGED, :, slot]
        if whole:
            self.scratch.read(layer, slot, 0, page, self._buffer)
            into[:, :, :whole] = self._tokens(self._buffer, whole).permute(1, 2, 0, 3)
        if rest:
            tail = self._tail(layer, slot, page)[:rest]
            into[:, :, whole:length] = tail.permute(1, 2, 0, 3)

    def _tokens(self, buffer: Buffer, count: int) -> Tensor:
        return buffer.bytes[: count * self._token_bytes].view(self.pool.dtype).view(-1, *self._row)

    def _tail(self, layer: int, slot: int, page: int) -> Tensor:
        """The page that grows, [page_tokens, 2, kv_heads, head_dim]; after a rewind from disk."""
        tail = self._tails[layer, slot]
        if self._tail_page[layer, slot] != page:
            buffer = Buffer(self.scratch.page_bytes)
            self.scratch.read(layer, slot, page, 1, buffer)
            tail[:] = self._tokens(buffer, self._page_tokens)
            self._tail_page[layer, slot] = page
        return tail

    def _persist(self, layer: int, rows: _Rows) -> None:
        part = self.pool[layer % STAGED, :, rows.slot, :, rows.base : rows.stop]
        self._put(layer, rows.slot, rows.base, part.permute(2, 0, 1, 3))

    def _put(self, layer: int, slot: int, start: int, tokens: Tensor) -> None:
        """Tokens [n, 2, kv_heads, head_dim] from `start` on; what was there beyond is gone."""
        page, rest = divmod(start, self._page_tokens)
        if rest:
            tokens = torch.cat([self._tail(layer, slot, page)[:rest], tokens])
        tokens = tokens.contiguous()
        full = len(tokens) // self._page_tokens
        data = tokens.view(torch.uint8).numpy().reshape(-1).data
        size = self.scratch.page_bytes
        for number in range(full):
            self.scratch.write(
                layer, slot, page + number, data[number * size : (number + 1) * size]
            )
        left = tokens[full * self._page_tokens :]
        self._tails[layer, slot, : len(left)] = left
        self._tail_page[layer, slot] = page + full

    # --- slots -----------------------------------------------------------------------------

    @torch.inference_mode()
    def clear(self, slot: int, start: int, stop: int) -> None:
        """What a failed pass left must not be met again: neither staged, nor where a page grows."""
        self.begin(())
        self.pool[:, :, slot, :, start:stop] = 0
        page, rest = divmod(start, self._page_tokens)
        for layer in range(self._layers):
            if self._tail_page[layer, slot] == page:
                self._tails[layer, slot, rest:] = 0
            elif not rest:
                self._tails[layer, slot] = 0
                self._tail_page[layer, slot] = page

    @torch.inference_mode()
    def move(self, slot: int, sources: Sequence[int], start: int) -> None:
        self.begin(())
        for layer in range(self._layers):
            held = self._held(layer, slot, max(sources) + 1)
            self._put(layer, slot, start, held[:, :, list(sources)].permute(2, 0, 1, 3).clone())

    @torch.inference_mode()
    def export(self, slot: int, start: int, stop: int) -> bytes:
        self.begin(())
        parts = [self._held(n, slot, stop)[:, :, start:].clone() for n in range(self._layers)]
        return torch.stack(parts).contiguous().view(torch.uint8).numpy().tobytes()

    @torch.inference_mode()
    def take(self, slot: int, start: int, data: bytes, shape: tuple[int, ...]) -> None:
        self.begin(())
        raw = torch.from_numpy(np.frombuffer(bytearray(data), dtype=np.uint8))
        part = raw.view(self.pool.dtype).view(shape)
        for layer in range(self._layers):
            self._put(layer, slot, start, part[layer].permute(2, 0, 1, 3))

    def _held(self, layer: int, slot: int, length: int) -> Tensor:
        """[2, kv_heads, length, head_dim], staged."""
        self._stage(layer, slot, length)
        return self.pool[layer % STAGED, :, slot, :, :length]

    def close(self) -> None:
        self._ahead.shutdown()
        self.scratch.close()


def page_tokens(token_bytes: int) -> int:
    """Fewest tokens whose bytes fill whole pages."""
    return PAGE // math.gcd(PAGE, token_bytes)


def _of_layers(config: ModelConfig, layers: int) -> ModelConfig:

    return replace(config, layers=layers, windows=config.windows[:layers])
