"""A decoder whose weights lie partly on disk: the same function, one layer at hand at a time.

Streamed layers are views of a staging buffer that a thread fills ahead of use, past the page
cache (`blobs`); which ones are streamed is the searched policy of `partitioner.offload`. Only
plain products are used: packing a weight would copy it anew in every pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from outrider.engine import EngineSpec
from outrider.engines.torch.blobs import (
    BlobFile,
    Buffer,
    Index,
    Stream,
    TensorPlace,
    Unit,
    UnitPlace,
    read_index,
    write_blob,
)
from outrider.engines.torch.decoder import Decoder, Layer, Layers, Loader
from outrider.engines.torch.linear import Linear, PlainLinear
from outrider.errors import ConfigError
from outrider.models.check import check_safetensors
from outrider.models.config import ModelConfig
from outrider.models.source import ModelFiles, cache_dir
from outrider.models.weights import Weights
from outrider.partitioner import offload
from outrider.partitioner.graph import ModelGraph, chain
from outrider.partitioner.graph import Unit as GraphUnit
from outrider.partitioner.offload import OffloadPolicy, OffloadWork, Tiers

Clock = Callable[[], float]
_SUFFIXES = {"k": 1 << 10, "m": 1 << 20, "g": 1 << 30}


def parse_size(text: str) -> int:
    """`64M`, `2G`, `1.5G` or bytes. Raises ConfigError."""
    digits, scale = text.strip().lower().removesuffix("b").removesuffix("i"), 1
    if digits and digits[-1] in _SUFFIXES:
        digits, scale = digits[:-1], _SUFFIXES[digits[-1]]
    try:
        size = int(float(digits) * scale)
    except (ValueError, OverflowError):
        size = 0
    if size <= 0:
        raise ConfigError(f"{text!r} is no size of memory", todo="write bytes, or 512M, or 2G")
    return size


# --- the file ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Raw:
    """A product that is only its weights: what `Loader` makes while a file is written."""

    weight: Tensor
    bias: Tensor | None

    def __call__(self, rows: Tensor) -> Tensor:
        return PlainLinear(self.weight, self.bias)(rows)


def blob_of(files: ModelFiles, config: ModelConfig, kept: torch.dtype) -> tuple[Path, Index]:
    """The model's weights as one aligned file, made once and kept in the cache."""
    name = f"{files.digest[:24]}-{str(kept).removeprefix('torch.')}.blob"
    path = cache_dir() / "blobs" / name
    index = read_index(path, files.digest, kept)
    if index is None:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        index = write_blob(path, files.digest, kept, _units(files, config, kept))
    return path, index


_STORED = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def kept_dtype(files: ModelFiles, compute: torch.dtype) -> torch.dtype:
    """The narrowest that loses no bit: that of the files, where it is narrower than `compute`."""
    found = {entry.dtype for path in files.weights for entry in check_safetensors(path)}
    stored = _STORED.get(found.pop()) if len(found) == 1 else None
    narrower = stored is not None and stored.itemsize < compute.itemsize
    return stored if narrower and stored is not None else compute


def _units(files: ModelFiles, config: ModelConfig, dtype: torch.dtype) -> Iterator[Unit]:
    """Embedding, layers, head; a table that both ends share lies with the head."""
    load = Loader(config, Weights(files, config), torch.device("cpu"), dtype, _Raw)
    table = load.tensor("model.embed_tokens.weight")
    norm = load.tensor("model.norm.weight")
    yield [] if config.tied else [("table", table)]
    for number in range(config.layers):
        yield list(_named(load.layer(number)))
    yield [("norm", norm), ("head", table if config.tied else load.tensor("lm_head.weight"))]


_PRODUCTS = ("qkv", "out", "gate_up", "down")
_NORMS = ("attention_norm", "mlp_norm", "query_norm", "key_norm")


def _named(layer: Layer) -> Iterator[tuple[str, Tensor]]:
    for name in _NORMS:
        if (norm := getattr(layer, name)) is not None:
            yield name, norm
    for name in _PRODUCTS:
        raw = cast(_Raw, getattr(layer, name))
        yield name, raw.weight
        if raw.bias is not None:
            yield f"{name}_bias", raw.bias


def _layer(window: int | None, found: dict[str, Tensor]) -> Layer:
    products = {name: PlainLinear(found[name], found.get(f"{name}_bias")) for name in _PRODUCTS}
    return Layer(
        window=window,
        attention_norm=found["attention_norm"],
        mlp_norm=found["mlp_norm"],
        query_norm=found.get("query_norm"),
        key_norm=found.get("key_norm"),
        **products,
    )


# --- where units lie ---------------------------------------------------------------------------


class Store:
    """Units by number: resident ones once, the others through the stream.

    What lies in a narrower dtype than `dtype` is widened when it is used, into one buffer.
    """

    def __init__(
        self, path: Path, index: Index, policy: OffloadPolicy, graph: ModelGraph,
        device: torch.device, dtype: torch.dtype,
    ) -> None:  # fmt: skip
        self.index = index
        self.device = device
        self.dtype = dtype
        self.kept: torch.dtype = getattr(torch, index.dtype)
        self.file = BlobFile(path)
        self._wide = Buffer(wide_bytes(index, dtype))
        self._held = {n: self._uploaded(self._read(n)) for n in policy.resident}
        self._pinned = {n: self._read(n) for n in policy.pinned}
        order = offload.streamed_units(graph, policy)
        self.file.bytes_read = 0
        self.stream = Stream(self.file, index, order, policy.staging)

    def tensors(self, number: int) -> dict[str, Tensor]:
        """Of a unit, on the device in `dtype`; until the next is asked for."""
        if (found := self._held.get(number)) is None:
            found = self._uploaded(self._fetched(number))
        return self._widened(number, found)

    def held(self, number: int) -> bool:
        """Whether it lies in memory."""
        return number in self._held

    def table(self, number: int, name: str) -> Tensor:
        """A tensor of a unit in memory, as it is kept."""
        return self._held[number][name]

    def _fetched(self, number: int) -> dict[str, Tensor]:
        if (found := self._pinned.get(number)) is not None:
            return found
        return self.stream.take(number).tensors(self.index.units[number], self.kept)

    def _read(self, number: int) -> dict[str, Tensor]:
        place = self.index.units[number]
        buffer = Buffer(place.size)
        self.file.read(buffer, place.offset, place.size)
        return buffer.tensors(place, self.kept)

    def _uploaded(self, found: dict[str, Tensor]) -> dict[str, Tensor]:
        if self.device.type == "cpu":
            return found
        return {name: tensor.to(self.device) for name, tensor in found.items()}

    def _widened(self, number: int, found: dict[str, Tensor]) -> dict[str, Tensor]:
        if self.kept == self.dtype:
            return found
        if self.device.type != "cpu":
            return {name: tensor.to(self.dtype) for name, tensor in found.items()}
        wide = self._wide.tensors(_scaled(self.index.units[number], self._factor), self.dtype)
        for name, tensor in found.items():
            wide[name].copy_(tensor)
        return wide

    @property
    def _factor(self) -> int:
        return self.dtype.itemsize // self.kept.itemsize

    def close(self) -> None:
        self.stream.close()
        self.file.close()


def wide_bytes(index: Index, dtype: torch.dtype) -> int:
    """Of the buffer that one unit at a time is widened into; 0 where nothing is."""
    kept: torch.dtype = getattr(torch, index.dtype)
    factor = dtype.itemsize // kept.itemsize
    return max(place.size for place in index.units) * factor if factor > 1 else 0


def _scaled(place: UnitPlace, factor: int) -> UnitPlace:
    """The same tensors in a dtype that is `factor` times as wide."""
    tensors = tuple(TensorPlace(t.name, t.shape, t.offset * factor) for t in place.tensors)
    return UnitPlace(0, place.size * factor, tensors)


class TieredLayers:
    """A list of layers of which only some are there: asking for one lets go of the last."""

    def __init__(self, store: Store, config: ModelConfig) -> None:
        self._store = store
        self._config = config

    def __len__(self) -> int:
        return self._config.layers

    def __getitem__(self, number: int) -> Layer:
        return _layer(self._config.windows[number], self._store.tensors(number + 1))


class TieredHead:
    """The last product, from wherever its weight lies."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._unit = len(store.index.units) - 1

    def __call__(self, rows: Tensor) -> Tensor:
        return PlainLinear(self._store.tensors(self._unit)["head"], None)(rows)


class TableRows:
    """An embedding that lies on disk: a pass reads the few rows that it needs."""

    def __init__(self, store: Store, unit: int, name: str) -> None:
        place = store.index.units[unit]
        table = next(tensor for tensor in place.tensors if tensor.name == name)
        self.device = store.device
        self.dtype = store.dtype
        self._store = store
        self._start = place.offset + table.offset
        self._width = table.shape[1] * store.kept.itemsize
        self._page = Buffer(-(-self._width // _PAGE) * _PAGE + _PAGE)

    def index_select(self, dim: int, ids: Tensor) -> Tensor:
        """Like the table's own, along the first dimension."""
        assert dim == 0
        wanted = ids.cpu().tolist()
        rows = {token: self._row(token) for token in set(wanted)}
        return torch.stack([rows[token] for token in wanted]).to(self.device)

    def _row(self, token: int) -> Tensor:
        start = self._start + token * self._width
        page = start // _PAGE * _PAGE
        size = -(-(start + self._width - page) // _PAGE) * _PAGE
        self._store.file.read(self._page, page, size)
        part = self._page.bytes[start - page : start - page + self._width]
        return part.clone().view(self._store.kept).to(self.dtype)


class HeldRows:
    """An embedding in memory, in the dtype in which it is kept."""

    def __init__(self, store: Store, unit: int, name: str) -> None:
        self.device = store.device
        self.dtype = store.dtype
        self._table = store.table(unit, name)

    def index_select(self, dim: int, ids: Tensor) -> Tensor:
        """Like the table's own."""
        return self._table.index_select(dim, ids).to(self.dtype)


_PAGE = 4096


class TieredDecoder(Decoder):
    """`Decoder` over a `Store`."""

    def __init__(self, config: ModelConfig, store: Store, context: int) -> None:
        self.kind = "plain"
        self.store = store
        last = len(store.index.units) - 1
        table = (last, "head") if config.tied else (0, "table")
        self.embedding = _embedding(store, *table)
        self.norm = _small(store, last, "norm")
        self.head = cast(Linear, TieredHead(store))
        Layers.__init__(self, config, cast(Loader, _Nothing(store)), context)
        self.layers = cast("list[Layer]", TieredLayers(store, config))


@dataclass(frozen=True, slots=True)
class _Nothing:
    """Stands for a loader where layers are fetched when they are used."""

    store: Store

    @property
    def device(self) -> torch.device:
        return self.store.device

    @property
    def dtype(self) -> torch.dtype:
        return self.store.dtype

    def layer(self, number: int) -> None:
        return None


def _embedding(store: Store, unit: int, name: str) -> Tensor:
    if not store.held(unit):
        return cast(Tensor, TableRows(store, unit, name))
    return cast(Tensor, HeldRows(store, unit, name))


def _small(store: Store, unit: int, name: str) -> Tensor:
    """A tensor of its own, kept."""
    place = store.index.units[unit]
    at = next(tensor for tensor in place.tensors if tensor.name == name)
    size = at.shape[0] * store.kept.itemsize
    page = (place.offset + at.offset) // _PAGE * _PAGE
    buffer = Buffer(-(-(place.offset + at.offset + size - page) // _PAGE) * _PAGE)
    store.file.read(buffer, page, buffer.size)
    start = place.offset + at.offset - page
    found = buffer.bytes[start : start + size].clone().view(store.kept)
    return found.to(store.device, store.dtype)


# --- policy ------------------------------------------------------------------------------------


def graph_of(index: Index, config: ModelConfig, dtype: torch.dtype, name: str) -> ModelGraph:
    """What the search needs to know: bytes of weights as they lie in the file, and of KV."""
    kv = 2 * config.kv_heads * config.head_dim * dtype.itemsize
    last = len(index.units) - 1
    units = tuple(_graph_unit(i, last, place, kv) for i, place in enumerate(index.units))
    return ModelGraph(
        name, units, chain(len(units)), index.dtype, config.context, config.vocab_size
    )


def _graph_unit(number: int, last: int, place: UnitPlace, kv: int) -> GraphUnit:
    kind = "embedding" if number == 0 else "head" if number == last else "decoder"
    kept = kv if kind == "decoder" else 0
    flops = place.size / 2.0
    return GraphUnit(f"unit.{number}", kind, flops, 0.0, place.size, kept, 0)  # type: ignore[arg-type]


def measure(path: Path, index: Index, dtype: torch.dtype, clock: Clock) -> tuple[float, float]:
    """(bytes read a second, seconds of one row's products with all weights at hand)."""
    place = max(index.units, key=lambda unit: unit.size)
    buffer, file = Buffer(place.size), BlobFile(path)
    began = clock()
    file.read(buffer, place.offset, place.size)
    speed = place.size / max(clock() - began, 1e-6)
    file.close()
    kept: torch.dtype = getattr(torch, index.dtype)
    table = max(buffer.tensors(place, kept).values(), key=Tensor.numel).to(dtype)
    rows = torch.ones(_TRIAL_ROWS, table.shape[-1], dtype=dtype)
    times = [_timed(table, rows, clock) for _ in range(3)]
    total = sum(unit.size for unit in index.units)
    share = table.numel() * kept.itemsize / total
    return speed, min(times) / _TRIAL_ROWS / share


_TRIAL_ROWS = 8


def _timed(table: Tensor, rows: Tensor, clock: Clock) -> float:
    began = clock()
    torch.nn.functional.linear(rows, table)
    return clock() - began


@dataclass(frozen=True, slots=True)
class Budget:
    """What the options of a spec say."""

    ram_bytes: int
    accelerator_bytes: int
    policy: str
    """`searched` or `layerwise`."""


def budget_of(spec: EngineSpec) -> Budget | None:
    """None where the spec gives no `memory`."""
    given = dict(spec.options)
    if "memory" not in given:
        return None
    policy = given.get("offload", "searched")
    if policy not in ("searched", "layerwise"):
        raise ConfigError(f"no offload policy {policy!r}", todo="searched or layerwise")
    card = parse_size(given["accelerator"]) if "accelerator" in given else 0
    return Budget(parse_size(given["memory"]), card, policy)


def choose(
    graph: ModelGraph, tiers: Tiers, policy: str, work: OffloadWork, row_s: float
) -> OffloadPolicy:
    """Raises Unplannable when the budget holds nothing that runs."""
    if policy == "layerwise":
        return offload.layerwise(graph, tiers, work)
    return offload.search(graph, tiers, work, row_s)[0]
