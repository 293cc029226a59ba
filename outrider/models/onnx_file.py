"""A graph and its weights as an ONNX file; large weights in a second file beside it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import onnx
from onnx import helper

from outrider.models.onnx_export import (
    EXTERNAL_FROM,
    IR_VERSION,
    MICROSOFT,
    OPSET,
    PAGE,
    Array,
    Graph,
    Weight,
)
from outrider.models.onnx_notes import STAGE
from outrider.models.stage_notes import StageNotes

Ports = list[onnx.ValueInfoProto]


def write(path: Path, graph: Graph, inputs: Ports, outputs: Ports, notes: StageNotes) -> None:
    """The bytes are a function of the arguments alone. Large weights go to `path` + `.data`."""
    model = helper.make_model(
        helper.make_graph(graph.nodes, "stage", inputs, outputs),
        producer_name="outrider",
        ir_version=IR_VERSION,
        opset_imports=[helper.make_opsetid("", OPSET), helper.make_opsetid(MICROSOFT, 1)],
    )
    helper.set_model_props(model, {STAGE: notes.text()})
    if sum(data.nbytes for _, data, _ in graph.weights) < EXTERNAL_FROM:
        _place_inside(model, graph.weights)
    else:
        _place_beside(model, graph.weights, path.with_name(path.name + ".data"))
    path.write_bytes(model.SerializeToString(deterministic=True))


def _place_inside(model: onnx.ModelProto, weights: Sequence[Weight]) -> None:
    for name, data, kind in weights:
        tensor = model.graph.initializer.add(name=name, data_type=kind, dims=data.shape)
        tensor.raw_data = data.tobytes()


def _place_beside(model: onnx.ModelProto, weights: Sequence[Weight], path: Path) -> None:
    with path.open("wb") as stream:
        for name, data, kind in weights:
            tensor = model.graph.initializer.add(name=name, data_type=kind, dims=data.shape)
            if data.nbytes < PAGE:
                tensor.raw_data = data.tobytes()
            else:
                _place(tensor, stream, data)


def _place(tensor: onnx.TensorProto, stream: BinaryIO, data: Array) -> None:
    """The tensor's bytes at the next page."""
    stream.seek(-stream.tell() % PAGE, 1)
    place = {"location": Path(stream.name).name, "offset": stream.tell(), "length": data.nbytes}
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in place.items():
        tensor.external_data.add(key=key, value=str(value))
    data.tofile(stream)
