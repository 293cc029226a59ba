"""A stage for NPUs on disk: two graphs of fixed sizes that share one file of weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import onnx

from outrider.engine import LayerRange
from outrider.errors import ConfigError, ModelUnsupported
from outrider.models.config import ModelConfig
from outrider.models.npu_graph import AGAIN, ChunkWriter, Scheme, Sizes, chunk_ports
from outrider.models.onnx_export import Stored, read_tensors
from outrider.models.onnx_file import DataFile, write
from outrider.models.source import ModelFiles
from outrider.models.stage_export import config_of, notes_of
from outrider.models.stage_notes import StageNotes

CHUNK = 32
CAPACITY = 256
"""Tokens of context where none are asked for: each is paid for in every chunk."""


@dataclass(frozen=True, slots=True)
class ChunkFiles:
    """`prefill` takes a chunk of rows, `decode` one; `data` holds the weights of both."""

    prefill: Path
    decode: Path
    data: Path


def files_at(path: Path) -> ChunkFiles:
    """The files of the export whose first is `path`."""
    return ChunkFiles(
        path,
        path.with_name(f"{path.stem}.decode{path.suffix}"),
        path.with_name(path.name + ".data"),
    )


def export_chunks(
    files: ModelFiles,
    layers: LayerRange,
    path: Path,
    scheme: Scheme | None,
    *,
    chunk: int = CHUNK,
    context: int = CAPACITY,
) -> StageNotes:
    """Write both graphs; `scheme` None writes them in float, with taps to calibrate by.

    Raises ConfigError for sizes that can not be, ModelUnsupported for layers with windows of
    several sizes, ModelCorrupt.
    """
    config = config_of(files)
    check_sizes(config, layers, chunk, context)
    tensors = read_tensors(files, config)
    notes = replace(
        notes_of(files, config, layers, "npu", "float" if scheme is None else "int8"),
        context=context,
        chunk=chunk,
        window=max((w for w in _windows(config, layers) if w), default=0),
    )
    places = files_at(path)
    with DataFile(places.data) as data:
        for place, rows in ((places.prefill, chunk), (places.decode, 1)):
            _write(place, data, config, tensors, replace(notes, chunk=rows), scheme)
    return notes


def _write(
    path: Path,
    data: DataFile,
    config: ModelConfig,
    tensors: Mapping[str, Stored],
    notes: StageNotes,
    scheme: Scheme | None,
) -> None:
    sizes = Sizes(notes.chunk, notes.context)
    writer = ChunkWriter(config, tensors, sizes, scheme)
    writer.stage(notes.layers)
    inputs, outputs = chunk_ports(config, notes.layers, sizes, writer)
    write(path, writer.graph, inputs, outputs, notes, data)


def _windows(config: ModelConfig, layers: LayerRange) -> set[int | None]:
    return set(config.windows[layers.start : layers.stop])


def check_sizes(config: ModelConfig, layers: LayerRange, chunk: int, context: int) -> None:
    """Raises ConfigError, ModelUnsupported for what no fixed graph can be made of."""
    if not 1 <= context <= config.context or not 2 <= chunk <= context:
        raise ConfigError(
            f"a chunk of {chunk} rows with a context of {context} can not be",
            why=f"a chunk has 2 rows or more, and the model was made for {config.context} tokens",
            effect="no file was written",
            todo="2 <= chunk <= context <= the model's context",
        )
    if len(_windows(config, layers) - {None}) > 1:
        raise ModelUnsupported(
            "layers with windows of several sizes can not be of one fixed graph",
            effect="no file was written",
            todo="export ranges of layers that have one size of window",
        )


# --- what is in it -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Flops:
    """Of one chunk. A product counts 2 operations a multiplication, any other node one for each
    element that it makes. The second INT8 piece of an input is no work of the model's: it counts
    apart."""

    int8: int
    float_products: int
    float_rest: int
    int8_again: int

    @property
    def int8_share(self) -> float:
        return self.int8 / max(1, self.int8 + self.float_products + self.float_rest)


_FREE = frozenset(
    "Identity Reshape Transpose Concat Split Gather Cast QuantizeLinear DequantizeLinear".split()
)
"""They move or re-encode numbers."""


def flops_of(path: Path) -> Flops:
    """Counted in the file itself, by its shapes."""
    model = onnx.shape_inference.infer_shapes(onnx.load(path, load_external_data=False))
    graph = model.graph
    sizes = {v.name: _size(v) for v in (*graph.value_info, *graph.input, *graph.output)}
    sizes |= {t.name: list(t.dims) for t in graph.initializer}
    makers = {name: node for node in graph.node for name in node.output}
    counts = {"int8": 0, "float_products": 0, "float_rest": 0, "int8_again": 0}
    for node in graph.node:
        made = _count(sizes[node.output[0]])
        if node.op_type == "MatMul":
            counts[_kind(node, makers)] += 2 * made * sizes[node.input[0]][-1]
        elif node.op_type not in _FREE:
            counts["float_rest"] += made
    return Flops(**counts)


def _kind(node: onnx.NodeProto, makers: Mapping[str, onnx.NodeProto]) -> str:
    """Of a MatMul, by what makes its inputs."""
    found = [makers.get(name) for name in node.input]
    if not all(maker is not None and maker.op_type == "DequantizeLinear" for maker in found):
        return "float_products"
    weight = found[1]
    again = weight is not None and weight.input[0].startswith(f"{AGAIN}.")
    return "int8_again" if again else "int8"


def _size(value: onnx.ValueInfoProto) -> list[int]:
    return [d.dim_value for d in value.type.tensor_type.shape.dim]


def _count(sizes: list[int]) -> int:
    found = 1
    for size in sizes:
        found *= size
    return found
