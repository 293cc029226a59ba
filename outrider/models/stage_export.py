"""A range of a model's layers as an ONNX graph with the KV cache in and out.

| name                   | type    | shape                                                |
|------------------------|---------|------------------------------------------------------|
| `input_ids`            | int64   | [batch, rows]; with the embedding                    |
| `hidden`               | float32 | [batch, rows, width]; without it                     |
| `lengths`              | int32   | [batch], tokens in each sequence after this pass, less one |
| `total`                | int32   | [1], the largest of them, plus one                   |
| `cos`, `sin`           | float32 | [positions, head_dim / 2]                            |
| `past.N.key`, `.value` | float32 | [batch, kv_heads, capacity, head_dim]; N of the model |
| `wanted`               | int64   | [wanted], indices into the flattened rows; with the head |
| `present.N.key`, ...   | float32 | as `past`; bind it to the same memory                |
| `hidden_out`           | float32 | [batch, rows, width]; without the head               |
| `logits`               | float32 | [wanted, vocabulary]; with it                        |

A stage without layers has none of `lengths`, `total`, `cos`, `sin`, `past`, `present`.
The nodes are those of `onnx_export`, which tells how attention keeps its cache.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from onnx import TensorProto, helper

from outrider.engine import LayerRange
from outrider.errors import ModelUnsupported
from outrider.models import vocabulary
from outrider.models.config import ModelConfig, inverse_frequencies, load_config
from outrider.models.onnx_export import Stored, Writer, read_tensors
from outrider.models.onnx_file import Ports, write
from outrider.models.onnx_notes import Precision
from outrider.models.source import ModelFiles
from outrider.models.stage_notes import StageNotes, Target


def export_stage(
    files: ModelFiles, layers: LayerRange, path: Path, precision: Precision = "stored"
) -> StageNotes:
    """Write layers of a safetensors model to `path`; large weights go to `path` + `.data`.

    `layers` were checked against the model. Raises ModelCorrupt, ModelUnsupported.
    """
    config = config_of(files)
    writer = _written(config, read_tensors(files, config, layers), layers, precision)
    inputs, outputs = ports(config, layers)
    notes = notes_of(files, config, layers, "cpu", precision)
    write(path, writer.graph, inputs, outputs, notes)
    return notes


def config_of(files: ModelFiles) -> ModelConfig:
    """Raises ModelUnsupported for what can not be exported."""
    if files.kind != "safetensors" or files.config is None:
        raise ModelUnsupported(
            f"{files.name} is a {files.kind} file",
            effect="no file was written",
            todo="name the folder with config.json and safetensors",
        )
    config = load_config(files.config)
    if config.head_dim % 16:
        raise ModelUnsupported(
            f"heads of {config.head_dim} can not be exported to ONNX",
            why="GroupQueryAttention turns keys in steps of 16",
            effect="no file was written",
            todo="use the torch engine",
        )
    return config


def _written(
    config: ModelConfig, tensors: Mapping[str, Stored], layers: LayerRange, precision: Precision
) -> Writer:
    writer = Writer(config, tensors, precision)
    hidden = writer.embedding("input_ids") if layers.embedding else "hidden"
    # A later layer's norm adds what the layer before gave; nothing is added here, and the same
    # kernel runs, so that a chain of stages gives the whole model's bits.
    delta = None if layers.start == 0 else writer.graph.apply("Sub", hidden, hidden)
    for index in range(layers.start, layers.stop):
        hidden, delta = writer.layer(index, hidden, delta)
    if layers.head:
        writer.head(hidden, delta, "wanted", "logits")
    elif layers.start == layers.stop or delta is None:
        writer.graph.node("Identity", [hidden], ["hidden_out"])
    else:
        writer.graph.node("Add", [hidden, delta], ["hidden_out"])
    return writer


def notes_of(
    files: ModelFiles,
    config: ModelConfig,
    layers: LayerRange,
    target: Target,
    precision: str,
) -> StageNotes:
    """Raises ModelCorrupt, ModelUnsupported for a vocabulary that can not be read."""
    digest, size = vocabulary.ids_of(files, config.vocab_size)
    return StageNotes(
        target=target,
        model=files.name,
        weights=files.digest,
        precision=precision,
        start=layers.start,
        stop=layers.stop,
        embedding=layers.embedding,
        head=layers.head,
        model_layers=config.layers,
        vocab_size=config.vocab_size,
        vocabulary_size=size,
        vocabulary_digest=digest,
        hidden_size=config.hidden_size,
        heads=config.heads,
        kv_heads=config.kv_heads,
        head_dim=config.head_dim,
        context=config.context,
        frequencies=tuple(float(f) for f in inverse_frequencies(config)),
    )


Shape = list[str | int | None]


def ports(config: ModelConfig, layers: LayerRange) -> tuple[Ports, Ports]:
    value, real = helper.make_tensor_value_info, TensorProto.FLOAT
    stream: Shape = ["batch", "rows", config.hidden_size]
    inputs = [value("hidden", real, stream)]
    if layers.embedding:
        inputs = [value("input_ids", TensorProto.INT64, ["batch", "rows"])]
    outputs = [value("hidden_out", real, stream)]
    if layers.head:
        inputs.append(value("wanted", TensorProto.INT64, ["wanted"]))
        outputs = [value("logits", real, ["wanted", config.vocab_size])]
    if layers.start < layers.stop:
        inputs += _attention_ports(config)
    cache: Shape = ["batch", config.kv_heads, "capacity", config.head_dim]
    for name in cache_names(layers):
        inputs.append(value(f"past.{name}", real, cache))
        outputs.append(value(f"present.{name}", real, cache))
    return inputs, outputs


def cache_names(layers: LayerRange) -> list[str]:
    """`N.key` and `N.value` of each layer, in the order of the cache."""
    numbers = range(layers.start, layers.stop)
    return [f"{number}.{part}" for number in numbers for part in ("key", "value")]


def _attention_ports(config: ModelConfig) -> Ports:
    turns: Shape = ["positions", config.head_dim // 2]
    return [
        helper.make_tensor_value_info("lengths", TensorProto.INT32, ["batch"]),
        helper.make_tensor_value_info("total", TensorProto.INT32, [1]),
        helper.make_tensor_value_info("cos", TensorProto.FLOAT, turns),
        helper.make_tensor_value_info("sin", TensorProto.FLOAT, turns),
    ]
