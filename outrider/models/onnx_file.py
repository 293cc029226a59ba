"""A graph and its weights as an ONNX file; large weights in a second file beside it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Self

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


class DataFile:
    """Weights beside one or several graphs; equal ones stand once, each at a page."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._stream = path.open("wb")
        self._places: dict[bytes, tuple[int, int]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()

    def place(self, data: Array) -> tuple[int, int]:
        """Offset and length."""
        raw = data.tobytes()
        key = hashlib.sha256(raw).digest()
        if key not in self._places:
            self._stream.seek(-self._stream.tell() % PAGE, 1)
            self._places[key] = (self._stream.tell(), len(raw))
            self._stream.write(raw)
        return self._places[key]


def write(
    path: Path,
    graph: Graph,
    inputs: Ports,
    outputs: Ports,
    notes: StageNotes,
    data: DataFile | None = None,
) -> None:
    """The bytes are a function of the arguments alone. Weights stand in `data`; without it in the
    file, or where they are too large for one in `path` + `.data`."""
    model = helper.make_model(
        helper.make_graph(graph.nodes, "stage", inputs, outputs),
        producer_name="outrider",
        ir_version=IR_VERSION,
        opset_imports=_opsets(graph),
    )
    helper.set_model_props(model, {STAGE: notes.text()})
    if data is not None:
        _place(model, graph.weights, data)
    elif sum(array.nbytes for _, array, _ in graph.weights) < EXTERNAL_FROM:
        _place(model, graph.weights, None)
    else:
        with DataFile(path.with_name(path.name + ".data")) as beside:
            _place(model, graph.weights, beside)
    path.write_bytes(model.SerializeToString(deterministic=True))


def _opsets(graph: Graph) -> list[onnx.OperatorSetIdProto]:
    domains = sorted({node.domain for node in graph.nodes} | {""})
    versions = {"": OPSET, MICROSOFT: 1}
    return [helper.make_opsetid(domain, versions[domain]) for domain in domains]


def _place(model: onnx.ModelProto, weights: Sequence[Weight], data: DataFile | None) -> None:
    for name, array, kind in weights:
        tensor = model.graph.initializer.add(name=name, data_type=kind, dims=array.shape)
        if data is None or array.nbytes < PAGE:
            tensor.raw_data = array.tobytes()
            continue
        offset, length = data.place(array)
        tensor.data_location = onnx.TensorProto.EXTERNAL
        fields = {"location": data.path.name, "offset": offset, "length": length}
        for key, value in fields.items():
            tensor.external_data.add(key=key, value=str(value))
