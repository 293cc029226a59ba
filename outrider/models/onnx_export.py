"""Config and weights to an ONNX decoder graph; numpy and `onnx`, nothing heavier.

The graph takes rows of several sequences and their KV cache and gives scores:

| name                  | type    | shape                                        |
|-----------------------|---------|----------------------------------------------|
| `input_ids`           | int64   | [batch, rows]; `hidden` f32 [.., width] in a later stage |
| `lengths`             | int32   | [batch], tokens in each sequence after this pass, less one |
| `total`               | int32   | [1], the largest of them, plus one           |
| `wanted`              | int64   | [wanted], indices into the flattened rows    |
| `cos`, `sin`          | float32 | [positions, head_dim / 2]                    |
| `past.N.key`, `.value`| float32 | [batch, kv_heads, capacity, head_dim]        |
| `present.N.key`, ...  | float32 | the same; bind it to the same memory         |
| `logits`              | float32 | [wanted, vocabulary]; `hidden_out` before the last stage |

Attention is `com.microsoft.GroupQueryAttention` with a shared past and present
buffer: it turns keys by RoPE, writes them in place and attends, so a pass never
copies the cache. With more than one sequence and a past it takes one row each.

Weights stand in the file in the type they were trained in and are cast to
float32 in the graph, once, when a runtime folds constants; `int8` and `int4`
weights (`MatMulNBits`, symmetric) trade scores for size: int4 in blocks of 32, int8,
whose precision does not ask for more scales, in blocks of up to 256.
The bytes are a function of config, weights, range and precision alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, BinaryIO, Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from outrider.engine import LayerRange
from outrider.errors import ModelUnsupported
from outrider.models.check import check_safetensors
from outrider.models.config import ModelConfig, inverse_frequencies, load_config
from outrider.models.onnx_notes import Notes, Precision
from outrider.models.source import ModelFiles
from outrider.models.weights import Weights, expected, shapes_of

OPSET = 21
IR_VERSION = 10
MICROSOFT = "com.microsoft"
BLOCKS: Mapping[int, tuple[int, ...]] = MappingProxyType({4: (32,), 8: (256, 128, 64, 32)})
"""By bits, the sizes of block to choose from; the first that divides a row is taken. Each block
has a scale, and in the library a sum, to read beside it in every pass."""
EXTERNAL_FROM = 1 << 30
"""Bytes of weights from which they stand in a second file; protobuf ends at 2 GiB."""

PAGE = 4096

Kind = Literal["float32", "float16", "bfloat16"]
Array = NDArray[Any]
Weight = tuple[str, Array, int]
"""Name, data, ONNX element type."""


@dataclass(frozen=True, slots=True)
class Stored:
    """A weight as the checkpoint holds it; bfloat16 bits come as uint16."""

    data: Array
    kind: Kind

    @property
    def shape(self) -> tuple[int, ...]:
        return self.data.shape

    def float32(self) -> NDArray[np.float32]:
        if self.kind == "bfloat16":
            return (self.data.astype(np.uint32) << np.uint32(16)).view(np.float32)
        return self.data.astype(np.float32)


_TYPES: Mapping[Kind, int] = {
    "float32": TensorProto.FLOAT,
    "float16": TensorProto.FLOAT16,
    "bfloat16": TensorProto.BFLOAT16,
}


@dataclass(frozen=True, slots=True)
class Stage:
    """A contiguous range of layers, and whether embedding and head belong to it."""

    first: int
    stop: int
    embeds: bool
    heads: bool


@dataclass(slots=True)
class Graph:
    """Nodes and weights under construction; names are counted, so bytes repeat."""

    nodes: list[onnx.NodeProto] = field(default_factory=list)
    weights: list[Weight] = field(default_factory=list)
    _count: int = 0

    def name(self, hint: str) -> str:
        self._count += 1
        return f"{hint}.{self._count}"

    def node(self, kind: str, inputs: Sequence[str], outputs: Sequence[str], **more: Any) -> None:
        domain = more.pop("domain", "")
        self.nodes.append(
            helper.make_node(kind, inputs, outputs, self.name(kind), domain=domain, **more)
        )

    def apply(self, kind: str, *inputs: str, **more: Any) -> str:
        """A node with one output, by name."""
        output = self.name("x")
        self.node(kind, inputs, [output], **more)
        return output

    def constant(self, data: Array, kind: int, hint: str = "c") -> str:
        name = self.name(hint)
        self.weights.append((name, data, kind))
        return name

    def shape(self, *sizes: int) -> str:
        return self.constant(np.array(sizes, dtype=np.int64), TensorProto.INT64, "shape")

    def weight(self, stored: Stored, hint: str) -> str:
        """The weight as float32."""
        name = self.constant(stored.data, _TYPES[stored.kind], hint)
        if stored.kind == "float32":
            return name
        return self.apply("Cast", name, to=TensorProto.FLOAT)


@dataclass(slots=True)
class Writer:
    """Turns one stage of a decoder into nodes, layer by layer."""

    config: ModelConfig
    tensors: Mapping[str, Stored]
    precision: Precision = "stored"
    graph: Graph = field(default_factory=Graph)
    _embedding: str = ""

    def embedding(self, ids: str) -> str:
        """Token ids [batch, rows] to [batch, rows, width]."""
        stored = self.tensors["model.embed_tokens.weight"]
        rows = self.graph.apply("Gather", self._table(), ids)
        if stored.kind == "float32":
            return rows
        return self.graph.apply("Cast", rows, to=TensorProto.FLOAT)

    def _table(self) -> str:
        """The embedding as stored; a tied head shares it."""
        if not self._embedding:
            stored = self.tensors["model.embed_tokens.weight"]
            self._embedding = self.graph.constant(stored.data, _TYPES[stored.kind], "embedding")
        return self._embedding

    def head(self, hidden: str, delta: str | None, wanted: str, scores: str) -> None:
        """The rows asked for, from the last layer's sum to scores over the vocabulary."""
        normal = self._norm(hidden, delta, "model.norm.weight")[0]
        flat = self.graph.apply("Reshape", normal, self.graph.shape(-1, self.config.hidden_size))
        rows = self.graph.apply("Gather", flat, wanted)
        name = "model.embed_tokens.weight" if self.config.tied else "lm_head.weight"
        self.graph.node("Identity", [self._linear(rows, [name], [None])], [scores])

    def layer(self, index: int, hidden: str, delta: str | None) -> tuple[str, str]:
        """One decoder layer. The stream is `hidden + delta`; the sum is left to the next norm."""
        name = f"model.layers.{index}."
        normal, hidden = self._norm(hidden, delta, name + "input_layernorm.weight")
        mixed = self._attention(normal, index, name + "self_attn.")
        normal, hidden = self._norm(hidden, mixed, name + "post_attention_layernorm.weight")
        return hidden, self._feed_forward(normal, name + "mlp.")

    def _norm(self, hidden: str, delta: str | None, weight: str) -> tuple[str, str]:
        """Root-mean-square norm of the stream, and the stream summed."""
        scale = self.graph.weight(self.tensors[weight], "norm")
        epsilon = self.config.norm_eps
        if delta is None:
            normal = self.graph.apply(
                "SimplifiedLayerNormalization",
                hidden,
                scale,
                axis=-1,
                epsilon=epsilon,
                stash_type=1,
            )
            return normal, hidden
        normal, total = self.graph.name("x"), self.graph.name("x")
        self.graph.node(
            "SkipSimplifiedLayerNormalization",
            [hidden, delta, scale],
            [normal, "", "", total],
            domain=MICROSOFT,
            epsilon=epsilon,
        )
        return normal, total

    def _attention(self, normal: str, index: int, name: str) -> str:
        parts = [name + f"{part}_proj" for part in "qkv"]
        packed = self._linear(normal, [f"{p}.weight" for p in parts], [f"{p}.bias" for p in parts])
        query, key, value = packed, "", ""
        if name + "q_norm.weight" in self.tensors:
            query, key, value = self._normed_heads(packed, name)
        mixed = self.graph.name("x")
        past = [f"past.{index}.key", f"past.{index}.value"]
        present = [f"present.{index}.key", f"present.{index}.value"]
        self.graph.node(
            "GroupQueryAttention",
            [query, key, value, *past, "lengths", "total", "cos", "sin"],
            [mixed, *present],
            domain=MICROSOFT,
            do_rotary=1,
            rotary_interleaved=0,
            num_heads=self.config.heads,
            kv_num_heads=self.config.kv_heads,
            scale=self.config.head_dim**-0.5,
            local_window_size=self.config.windows[index] or -1,
        )
        return self._linear(mixed, [name + "o_proj.weight"], [name + "o_proj.bias"])

    def _normed_heads(self, packed: str, name: str) -> tuple[str, str, str]:
        """Queries and keys normed per head (Qwen3), values as they are."""
        config = self.config
        sizes = [config.heads * config.head_dim] + 2 * [config.kv_heads * config.head_dim]
        outputs = [self.graph.name("x") for _ in sizes]
        self.graph.node("Split", [packed, self.graph.shape(*sizes)], outputs, axis=-1)
        query = self._head_norm(outputs[0], name + "q_norm.weight", sizes[0])
        return query, self._head_norm(outputs[1], name + "k_norm.weight", sizes[1]), outputs[2]

    def _head_norm(self, rows: str, weight: str, size: int) -> str:
        heads = self.graph.apply(
            "Reshape", rows, self.graph.shape(0, 0, size // self.config.head_dim, -1)
        )
        normal = self._norm(heads, None, weight)[0]
        return self.graph.apply("Reshape", normal, self.graph.shape(0, 0, size))

    def _feed_forward(self, normal: str, name: str) -> str:
        """down(silu(gate(x)) * up(x)); QuickGelu with alpha 1 is SiLU in one node."""
        parts = [
            self._linear(normal, [f"{name}{part}_proj.weight"], [f"{name}{part}_proj.bias"])
            for part in ("gate", "up")
        ]
        gate = self.graph.apply("QuickGelu", parts[0], domain=MICROSOFT, alpha=1.0)
        product = self.graph.apply("Mul", gate, parts[1])
        return self._linear(product, [name + "down_proj.weight"], [name + "down_proj.bias"])

    def _linear(self, rows: str, names: Sequence[str], biases: Sequence[str | None]) -> str:
        """rows @ W.T + b; several matrices are stacked into one multiplication."""
        result = self._matmul(rows, names)
        held = [self.tensors[b] for b in biases if b is not None and b in self.tensors]
        if not held:
            return result
        return self.graph.apply("Add", result, self.graph.weight(_stacked(held), "bias"))

    def _matmul(self, rows: str, names: Sequence[str]) -> str:
        stored = _stacked([self.tensors[name] for name in names])
        if self.precision != "stored":
            bits = 8 if self.precision == "int8" else 4
            block = block_of(stored.shape[1], bits)
            if block is not None:
                return self._quantised(rows, stored, bits, block)
        if list(names) == ["model.embed_tokens.weight"]:
            # The tied table stands once in the file; constant folding turns it at load.
            turned = self.graph.apply("Transpose", self._table(), perm=[1, 0])
            if stored.kind != "float32":
                turned = self.graph.apply("Cast", turned, to=TensorProto.FLOAT)
            return self.graph.apply("MatMul", rows, turned)
        matrix = Stored(np.ascontiguousarray(stored.data.T), stored.kind)
        return self.graph.apply("MatMul", rows, self.graph.weight(matrix, "matrix"))

    def _quantised(self, rows: str, stored: Stored, bits: int, block: int) -> str:
        packed, scales = quantise(stored.float32(), bits, block)
        return self.graph.apply(
            "MatMulNBits",
            rows,
            self.graph.constant(packed, TensorProto.UINT8, "packed"),
            self.graph.constant(scales, TensorProto.FLOAT, "scales"),
            domain=MICROSOFT,
            K=stored.shape[1],
            N=stored.shape[0],
            bits=bits,
            block_size=block,
            accuracy_level=4,
        )


def _stacked(parts: Sequence[Stored]) -> Stored:
    if len(parts) == 1:
        return parts[0]
    if len({part.kind for part in parts}) > 1:
        return Stored(np.concatenate([part.float32() for part in parts]), "float32")
    return Stored(np.concatenate([part.data for part in parts]), parts[0].kind)


def block_of(width: int, bits: int) -> int | None:
    """The block for rows of `width`; None where no block divides them."""
    return next((size for size in BLOCKS[bits] if width % size == 0), None)


def quantise(
    matrix: NDArray[np.float32], bits: int, block: int
) -> tuple[Array, NDArray[np.float32]]:
    """Rows [N, K] to symmetric blocks: bytes [N, K / block, block * bits / 8], scales
    [N * K / block].

    Values are unsigned around 2^(bits - 1), the zero point that MatMulNBits assumes.
    """
    blocks = matrix.reshape(matrix.shape[0], -1, block)
    middle = 1 << (bits - 1)
    extreme = np.take_along_axis(blocks, np.abs(blocks).argmax(-1)[..., None], -1)
    # The value of largest magnitude lands on the lowest level, the one without a mirror image.
    scales = (extreme / -middle).astype(np.float32)
    divisor = np.where(scales == 0, np.float32(1), scales)
    levels = np.clip(np.rint(blocks / divisor) + middle, 0, 2 * middle - 1).astype(np.uint8)
    if bits == 4:
        levels = levels[..., ::2] | (levels[..., 1::2] << 4)
    return np.ascontiguousarray(levels), scales.reshape(-1)


# --- the model ---------------------------------------------------------------------------------


def export(
    files: ModelFiles, path: Path, *, precision: Precision = "stored", layers: range | None = None
) -> None:
    """Write a safetensors model as ONNX to `path`; large weights go to `path` + `.data`.

    `layers`: a contiguous range of them; the first brings the embedding, the last
    the head. Raises ModelCorrupt and ModelUnsupported.
    """
    assert files.config is not None
    config = _checked(load_config(files.config))
    tensors = read_tensors(files, config)
    stage = stage_of(config, range(config.layers) if layers is None else layers)
    writer = _written(config, tensors, stage, precision)
    inputs, outputs = _ports(config, stage)
    model = helper.make_model(
        helper.make_graph(writer.graph.nodes, "decoder", inputs, outputs),
        producer_name="outrider",
        ir_version=IR_VERSION,
        opset_imports=[helper.make_opsetid("", OPSET), helper.make_opsetid(MICROSOFT, 1)],
    )
    notes = _notes(files, config, stage, precision)
    helper.set_model_props(model, {"outrider": notes.text()})
    _save(model, writer.graph.weights, path)


def _checked(config: ModelConfig) -> ModelConfig:
    if config.head_dim % 16:
        raise ModelUnsupported(
            f"heads of {config.head_dim} can not be exported to ONNX",
            why="GroupQueryAttention turns keys in steps of 16",
            effect="no file was written",
            todo="use the torch engine",
        )
    return config


def stage_of(config: ModelConfig, layers: range) -> Stage:
    """The stage of a layer range. Raises ModelUnsupported for one that is not contiguous."""
    if layers.step != 1 or not 0 <= layers.start < layers.stop <= config.layers:
        raise ModelUnsupported(f"layers {layers} are no range of a model of {config.layers}")
    return Stage(layers.start, layers.stop, layers.start == 0, layers.stop == config.layers)


def _written(
    config: ModelConfig, tensors: Mapping[str, Stored], stage: Stage, precision: Precision
) -> Writer:
    writer = Writer(config, tensors, precision)
    hidden = writer.embedding("input_ids") if stage.embeds else "hidden"
    delta: str | None = None
    for index in range(stage.first, stage.stop):
        hidden, delta = writer.layer(index, hidden, delta)
    if stage.heads:
        writer.head(hidden, delta, "wanted", "logits")
    else:
        writer.graph.node("Add", [hidden, delta or ""], ["hidden_out"])
    return writer


def _notes(files: ModelFiles, config: ModelConfig, stage: Stage, precision: Precision) -> Notes:
    return Notes(
        weights=files.digest,
        precision=precision,
        first=stage.first,
        stop=stage.stop,
        layers=config.layers,
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        kv_heads=config.kv_heads,
        head_dim=config.head_dim,
        context=config.context,
        frequencies=tuple(float(np.float32(f)) for f in inverse_frequencies(config)),
    )


Ports = list[onnx.ValueInfoProto]


def _ports(config: ModelConfig, stage: Stage) -> tuple[Ports, Ports]:
    value, real = helper.make_tensor_value_info, TensorProto.FLOAT
    stream: list[str | int | None] = ["batch", "rows", config.hidden_size]
    turns: list[str | int | None] = ["positions", config.head_dim // 2]
    ids = value("input_ids", TensorProto.INT64, ["batch", "rows"])
    inputs = [
        ids if stage.embeds else value("hidden", real, stream),
        value("lengths", TensorProto.INT32, ["batch"]),
        value("total", TensorProto.INT32, [1]),
        value("cos", real, turns),
        value("sin", real, turns),
    ]
    outputs = [value("hidden_out", real, stream)]
    if stage.heads:
        inputs.append(value("wanted", TensorProto.INT64, ["wanted"]))
        outputs = [value("logits", real, ["wanted", config.vocab_size])]
    cache: list[str | int | None] = ["batch", config.kv_heads, "capacity", config.head_dim]
    for index in range(stage.first, stage.stop):
        for part in ("key", "value"):
            inputs.append(value(f"past.{index}.{part}", real, cache))
            outputs.append(value(f"present.{index}.{part}", real, cache))
    return inputs, outputs


def _save(model: onnx.ModelProto, weights: Sequence[Weight], path: Path) -> None:
    if sum(data.nbytes for _, data, _ in weights) < EXTERNAL_FROM:
        for weight in weights:
            _tensor(model, weight).raw_data = weight[1].tobytes()
    else:
        with path.with_name(path.name + ".data").open("wb") as stream:
            for weight in weights:
                _place(_tensor(model, weight), stream, weight[1])
    path.write_bytes(model.SerializeToString(deterministic=True))


def _tensor(model: onnx.ModelProto, weight: Weight) -> onnx.TensorProto:
    name, data, kind = weight
    return model.graph.initializer.add(name=name, data_type=kind, dims=data.shape)


def _place(tensor: onnx.TensorProto, stream: BinaryIO, data: Array) -> None:
    """The tensor's bytes at the next page of the external file."""
    if data.nbytes < PAGE:
        tensor.raw_data = data.tobytes()
        return
    stream.seek(-stream.tell() % PAGE, 1)
    place = {"location": Path(stream.name).name, "offset": stream.tell(), "length": data.nbytes}
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in place.items():
        tensor.external_data.add(key=key, value=str(value))
    data.tofile(stream)


# --- weights -----------------------------------------------------------------------------------

_KINDS: Mapping[str, tuple[Kind, str]] = MappingProxyType(
    {"F32": ("float32", "<f4"), "F16": ("float16", "<f2"), "BF16": ("bfloat16", "<u2")}
)


def read_tensors(
    files: ModelFiles, config: ModelConfig, layers: LayerRange | None = None
) -> dict[str, Stored]:
    """Tensors that the config asks for, or those of `layers`, mapped from the files, by Hugging
    Face name."""
    Weights(files, config, layers)
    wanted = expected(config) if layers is None else shapes_of(config, layers)
    found: dict[str, Stored] = {}
    for path in files.weights:
        raw = np.memmap(path, dtype=np.uint8, mode="r")
        for entry in check_safetensors(path):
            if entry.name in wanted:
                kind, dtype = _KINDS[entry.dtype]
                data = raw[entry.start : entry.stop].view(dtype).reshape(entry.shape)
                found[entry.name] = Stored(data, kind)
    return found
