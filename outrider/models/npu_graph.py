"""A decoder stage as a graph of fixed sizes whose products are INT8, for NPUs.

NPUs compile a graph for given shapes and are fast at INT8 alone. So a prompt goes through
in chunks of fixed length, and what INT8 can not hold stays in float beside it: the few
input channels with the largest values are taken out of each product and multiplied apart
(llm.npu, ASPLOS 2025, arXiv 2407.05858). Every node is standard ONNX; products are
DequantizeLinear x DequantizeLinear -> MatMul, which QNN, OpenVINO and the CPU provider
take for INT8 products.

R rows a chunk, room for C tokens:

| name                   | type    | shape                                                |
|------------------------|---------|------------------------------------------------------|
| `input_ids`            | int32   | [R]; with the embedding                              |
| `hidden`               | float32 | [R, width]; without it                               |
| `cos`, `sin`           | float32 | [R, head_dim / 2], of the rows' positions            |
| `mask`                 | float32 | [R, C + R], 0 or `HIDDEN`                            |
| `mask_windowed`        | float32 | the same for layers that have a window               |
| `past.N.key`, `.value` | uint8   | [kv_heads, C, head_dim]                              |
| `present.N.key`, ...   | uint8   | [kv_heads, R, head_dim], the rows' own, for the past |
| `hidden_out`           | float32 | [R, width]; without the head                         |
| `logits`               | float32 | [R, vocabulary]; with it                             |

Activations have one scale and zero point each (uint8), fixed by calibration; weights one
scale an output column (int8, symmetric). Without ranges the same graph is written in
float, with every point that needs a range as an output `tap.POINT`, to calibrate by.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper

from outrider.engine import LayerRange
from outrider.models.config import ModelConfig
from outrider.models.onnx_export import Graph, Stored
from outrider.models.onnx_file import Ports

OUTLIERS = 0.05
"""Share of each product's input channels that stay in float."""
AGAIN = "again"
"""How the weight's name begins where an input's second piece meets it."""
HIDDEN = -30000.0
"""In a mask: what must not be seen. It fits float16, and its exponential is 0."""

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Range:
    """Least and largest value of each channel that calibration saw, [channels]."""

    low: Floats
    high: Floats

    def merged(self, other: Range) -> Range:
        return Range(np.minimum(self.low, other.low), np.maximum(self.high, other.high))

    @property
    def extent(self) -> Floats:
        return np.maximum(np.abs(self.low), np.abs(self.high))


Ranges = Mapping[str, Range]
"""By point: `3.qkv`, `3.out`, `3.gate_up`, `3.down`, `3.query`, `3.key`, `3.value`, `head`."""


@dataclass(frozen=True, slots=True)
class Scheme:
    """How products are quantised."""

    ranges: Ranges
    outliers: float = OUTLIERS
    twice: tuple[str, ...] = ("down",)
    """Products whose input comes in two INT8 pieces, the second holding the first's rounding
    error: gated activations reach from hundredths to hundreds."""


@dataclass(frozen=True, slots=True)
class Sizes:
    rows: int
    """R, of a chunk."""
    capacity: int
    """C, tokens before the chunk that fit."""

    @property
    def keys(self) -> int:
        return self.capacity + self.rows


@dataclass(slots=True)
class ChunkWriter:
    """Nodes of one stage; `scheme` None: in float, with taps."""

    config: ModelConfig
    tensors: Mapping[str, Stored]
    sizes: Sizes
    scheme: Scheme | None
    graph: Graph = field(default_factory=Graph)
    taps: dict[str, int] = field(default_factory=dict)
    """Channels of each point."""
    caches: list[str] = field(default_factory=list)

    def stage(self, layers: LayerRange) -> None:
        hidden = self._embedded() if layers.embedding else "hidden"
        for index in range(layers.start, layers.stop):
            hidden = self._layer(index, hidden)
        if not layers.head:
            self.graph.node("Identity", [hidden], ["hidden_out"])
            return
        normal = self._norm(hidden, "model.norm.weight")
        name = "model.embed_tokens.weight" if self.config.tied else "lm_head.weight"
        self.graph.node("Identity", [self._product("head", normal, [name], [])], ["logits"])

    def _embedded(self) -> str:
        stored = self.tensors["model.embed_tokens.weight"]
        half = stored.float32().astype(np.float16)
        small = stored.kind == "float16" or self.scheme is not None
        if small and bool(np.isfinite(half).all()):
            table = self.graph.constant(half, TensorProto.FLOAT16, "table")
            rows = self.graph.apply("Gather", table, "input_ids")
            return self.graph.apply("Cast", rows, to=TensorProto.FLOAT)
        table = self.graph.constant(stored.float32(), TensorProto.FLOAT, "table")
        return self.graph.apply("Gather", table, "input_ids")

    def _layer(self, index: int, hidden: str) -> str:
        name = f"model.layers.{index}."
        normal = self._norm(hidden, name + "input_layernorm.weight")
        hidden = self.graph.apply(
            "Add", hidden, self._attention(index, normal, name + "self_attn.")
        )
        normal = self._norm(hidden, name + "post_attention_layernorm.weight")
        return self.graph.apply("Add", hidden, self._feed_forward(index, normal, name + "mlp."))

    # --- attention -----------------------------------------------------------------------------

    def _attention(self, index: int, normal: str, name: str) -> str:
        query, key, value = self._heads(index, normal, name)
        scores = self._multiplied(f"{index}.query", query, *self._cached(index, "key", key))
        wide = self.graph.apply("Mul", scores, self._float(self.config.head_dim**-0.5))
        weights = self._softmax(index, wide)
        mixed = self._weighted(weights, *self._cached(index, "value", value))
        return self._product(f"{index}.out", self._rows(mixed), [f"{name}o_proj"], ["bias"])

    def _heads(self, index: int, normal: str, name: str) -> tuple[str, str, str]:
        """Queries [kv_heads, group * R, D], keys and values [kv_heads, R, D]."""
        config, rows = self.config, self.sizes.rows
        names = [f"{name}{part}_proj" for part in "qkv"]
        packed = self._product(f"{index}.qkv", normal, names, ["bias"])
        counts = [config.heads, config.kv_heads, config.kv_heads]
        parts = [self.graph.name("x") for _ in counts]
        sizes = self.graph.shape(*(count * config.head_dim for count in counts))
        self.graph.node("Split", [packed, sizes], parts, axis=-1)
        query, key, value = (
            self._reshaped(part, rows, count, config.head_dim)
            for part, count in zip(parts, counts, strict=True)
        )
        query, key = self._turned(query, f"{name}q_norm"), self._turned(key, f"{name}k_norm")
        grouped = self._reshaped(query, rows, config.kv_heads, config.group, config.head_dim)
        grouped = self.graph.apply("Transpose", grouped, perm=[1, 2, 0, 3])
        query = self._reshaped(grouped, config.kv_heads, config.group * rows, config.head_dim)
        key, value = (self.graph.apply("Transpose", x, perm=[1, 0, 2]) for x in (key, value))
        return query, key, value

    def _turned(self, heads: str, norm: str) -> str:
        """RoPE on [R, heads, D]; normed before where the model does."""
        if f"{norm}.weight" in self.tensors:
            heads = self._norm(heads, f"{norm}.weight")
        half = self.config.head_dim // 2
        first, second = self.graph.name("x"), self.graph.name("x")
        self.graph.node("Split", [heads, self.graph.shape(half, half)], [first, second], axis=-1)
        cos, sin = (self._reshaped(name, self.sizes.rows, 1, half) for name in ("cos", "sin"))
        apply = self.graph.apply
        left = apply("Sub", apply("Mul", first, cos), apply("Mul", second, sin))
        right = apply("Add", apply("Mul", second, cos), apply("Mul", first, sin))
        return apply("Concat", left, right, axis=-1)

    def _cached(self, index: int, part: str, rows: str) -> tuple[str, str]:
        """The rows behind the past, [kv_heads, C + R, D] as stored, and their point."""
        name, point = f"{index}.{part}", f"{index}.{part}"
        self.caches.append(name)
        present = f"present.{name}"
        if self.scheme is None:
            self._tap(point, rows)
            self.graph.node("Identity", [rows], [present])
        else:
            self.graph.node("QuantizeLinear", [rows, *self._step(point)], [present])
        return self.graph.apply("Concat", f"past.{name}", present, axis=1), point

    def _multiplied(self, point: str, query: str, keys: str, keys_point: str) -> str:
        turned = self.graph.apply("Transpose", keys, perm=[0, 2, 1])
        if self.scheme is None:
            self._tap(point, query)
            return self.graph.apply("MatMul", query, turned)
        left = self._through(query, *self._step(point))
        right = self.graph.apply("DequantizeLinear", turned, *self._step(keys_point))
        return self.graph.apply("MatMul", left, right)

    def _softmax(self, index: int, scores: str) -> str:
        config, sizes = self.config, self.sizes
        mask = "mask" if config.windows[index] is None else "mask_windowed"
        wide = self._reshaped(scores, config.kv_heads, config.group, sizes.rows, sizes.keys)
        weights = self.graph.apply("Softmax", self.graph.apply("Add", wide, mask), axis=-1)
        return self._reshaped(weights, config.kv_heads, config.group * sizes.rows, sizes.keys)

    def _weighted(self, weights: str, values: str, point: str) -> str:
        if self.scheme is None:
            return self.graph.apply("MatMul", weights, values)
        # Weights lie in 0 to 1 whatever the text.
        left = self._through(weights, self._float(1 / 255), self._zero(0))
        right = self.graph.apply("DequantizeLinear", values, *self._step(point))
        return self.graph.apply("MatMul", left, right)

    def _rows(self, mixed: str) -> str:
        """[kv_heads, group * R, D] to [R, heads * D]."""
        config, rows = self.config, self.sizes.rows
        heads = self._reshaped(mixed, config.kv_heads, config.group, rows, config.head_dim)
        turned = self.graph.apply("Transpose", heads, perm=[2, 0, 1, 3])
        return self._reshaped(turned, rows, config.heads * config.head_dim)

    # --- the rest of a layer -------------------------------------------------------------------

    def _feed_forward(self, index: int, normal: str, name: str) -> str:
        names = [f"{name}gate_proj", f"{name}up_proj"]
        both = self._product(f"{index}.gate_up", normal, names, ["bias"])
        gate, up = self.graph.name("x"), self.graph.name("x")
        wide = self.config.intermediate_size
        self.graph.node("Split", [both, self.graph.shape(wide, wide)], [gate, up], axis=-1)
        gated = self.graph.apply("Mul", gate, self.graph.apply("Sigmoid", gate))
        product = self.graph.apply("Mul", gated, up)
        return self._product(f"{index}.down", product, [f"{name}down_proj"], ["bias"])

    def _norm(self, rows: str, weight: str) -> str:
        """RMSNorm in nodes that every provider knows."""
        apply = self.graph.apply
        squares = apply("ReduceMean", apply("Mul", rows, rows), self.graph.shape(-1), keepdims=1)
        root = apply("Sqrt", apply("Add", squares, self._float(self.config.norm_eps)))
        scale = self.graph.constant(self.tensors[weight].float32(), TensorProto.FLOAT, "norm")
        return apply("Mul", apply("Div", rows, root), scale)

    # --- products ------------------------------------------------------------------------------

    def _product(self, point: str, rows: str, names: Sequence[str], biases: Sequence[str]) -> str:
        """rows @ W.T + b; several matrices are stacked into one product."""
        weights = [name if name.endswith(".weight") else f"{name}.weight" for name in names]
        matrix = np.concatenate([self.tensors[name].float32() for name in weights]).T
        if self.scheme is None:
            self._tap(point, rows)
            weight = self.graph.constant(np.ascontiguousarray(matrix), TensorProto.FLOAT, "matrix")
            result = self.graph.apply("MatMul", rows, weight)
        else:
            result = self._quantised(self.scheme, point, rows, matrix)
        held = [self.tensors[f"{name}.{b}"] for b in biases for name in names if self._has(name, b)]
        if not held:
            return result
        bias = np.concatenate([part.float32() for part in held])
        return self.graph.apply("Add", result, self.graph.constant(bias, TensorProto.FLOAT, "bias"))

    def _has(self, name: str, part: str) -> bool:
        return f"{name}.{part}" in self.tensors

    def _quantised(self, scheme: Scheme, point: str, rows: str, matrix: Floats) -> str:
        outliers = outliers_of(scheme, point)
        main = matrix.copy()
        main[outliers] = 0
        first = self._through(rows, *self._step(point, outliers))
        result = self.graph.apply("MatMul", first, self._weight(main, "weight"))
        if point.rpartition(".")[2] in scheme.twice:
            rest = self.graph.apply("Sub", rows, first)
            fine = self._float(step_of(scheme, point, outliers)[0] / 254)
            second = self._through(rest, fine, self._zero(128))
            # The same bytes under a name of their own: in the file they stand once.
            again = self.graph.apply("MatMul", second, self._weight(main, AGAIN))
            result = self.graph.apply("Add", result, again)
        if not len(outliers):
            return result
        apart = self.graph.apply("Gather", rows, self._indices(outliers), axis=-1)
        beside = self.graph.constant(
            np.ascontiguousarray(matrix[outliers]), TensorProto.FLOAT, "outliers"
        )
        return self.graph.apply("Add", result, self.graph.apply("MatMul", apart, beside))

    def _weight(self, matrix: Floats, hint: str) -> str:
        """[K, N] as int8 with a scale a column."""
        scales = np.abs(matrix).max(0) / 127
        scales = np.where(scales == 0, 1, scales).astype(np.float32)
        levels = np.rint(matrix / scales).clip(-127, 127).astype(np.int8)
        packed = self.graph.constant(levels, TensorProto.INT8, hint)
        steps = self.graph.constant(scales, TensorProto.FLOAT, "scales")
        zeros = self.graph.constant(np.zeros(len(scales), np.int8), TensorProto.INT8, "zeros")
        return self.graph.apply("DequantizeLinear", packed, steps, zeros, axis=1)

    def _through(self, rows: str, scale: str, zero: str) -> str:
        """Into uint8 and back."""
        packed = self.graph.apply("QuantizeLinear", rows, scale, zero)
        return self.graph.apply("DequantizeLinear", packed, scale, zero)

    def _step(self, point: str, outliers: NDArray[np.int64] | None = None) -> tuple[str, str]:
        assert self.scheme is not None
        scale, zero = step_of(self.scheme, point, outliers)
        return self._float(scale), self._zero(zero)

    def _tap(self, point: str, rows: str) -> None:
        """The values at a point, as an output."""
        self.graph.node("Identity", [rows], [f"tap.{point}"])
        self.taps[point] = 0

    # --- constants -----------------------------------------------------------------------------

    def _float(self, value: float) -> str:
        return self.graph.constant(np.array(value, np.float32), TensorProto.FLOAT, "f")

    def _zero(self, value: int) -> str:
        return self.graph.constant(np.array(value, np.uint8), TensorProto.UINT8, "z")

    def _indices(self, values: NDArray[np.int64]) -> str:
        return self.graph.constant(values, TensorProto.INT64, "channels")

    def _reshaped(self, rows: str, *sizes: int) -> str:
        return self.graph.apply("Reshape", rows, self.graph.shape(*sizes))


# --- steps -------------------------------------------------------------------------------------


def outliers_of(scheme: Scheme, point: str) -> NDArray[np.int64]:
    """The channels of a product's input that stay in float: those that reach furthest."""
    extent = scheme.ranges[point].extent
    count = math.ceil(scheme.outliers * len(extent))
    return np.sort(np.argsort(-extent, kind="stable")[:count])


def step_of(
    scheme: Scheme, point: str, outliers: NDArray[np.int64] | None = None
) -> tuple[float, int]:
    """Scale and zero point of a point's uint8 values, without its outlier channels."""
    found = scheme.ranges[point]
    kept = np.ones(len(found.low), bool)
    if outliers is not None:
        kept[outliers] = False
    low = min(0.0, float(found.low[kept].min(initial=0)))
    high = max(0.0, float(found.high[kept].max(initial=0)))
    scale = (high - low) / 255 or 1.0
    return float(np.float32(scale)), round(-low / scale)


# --- ports -------------------------------------------------------------------------------------


def chunk_ports(
    config: ModelConfig, layers: LayerRange, sizes: Sizes, writer: ChunkWriter
) -> tuple[Ports, Ports]:
    value, real = helper.make_tensor_value_info, TensorProto.FLOAT
    rows, width, half = sizes.rows, config.hidden_size, config.head_dim // 2
    inputs = [value("hidden", real, [rows, width])]
    if layers.embedding:
        inputs = [value("input_ids", TensorProto.INT32, [rows])]
    outputs = [value("hidden_out", real, [rows, width])]
    if layers.head:
        outputs = [value("logits", real, [rows, config.vocab_size])]
    if writer.caches:
        inputs += [value(name, real, [rows, half]) for name in ("cos", "sin")]
        inputs += [value(name, real, [rows, sizes.keys]) for name in mask_names(config, layers)]
    kind = real if writer.scheme is None else TensorProto.UINT8
    for name in writer.caches:
        inputs.append(
            value(f"past.{name}", kind, [config.kv_heads, sizes.capacity, config.head_dim])
        )
        outputs.append(value(f"present.{name}", kind, [config.kv_heads, rows, config.head_dim]))
    outputs += [value(f"tap.{point}", real, None) for point in writer.taps]
    return inputs, outputs


def mask_names(config: ModelConfig, layers: LayerRange) -> list[str]:
    windows = set(config.windows[layers.start : layers.stop])
    return sorted({"mask" if window is None else "mask_windowed" for window in windows})
