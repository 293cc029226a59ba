"""What docs/stages.md tells a phone's app to do, with nothing but ONNX Runtime and arrays."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from outrider.engine import EngineSpec, StageSpan
from outrider.engines.stages import build_stage, parse
from outrider.models.npu_graph import Scheme
from outrider.models.source import resolve

pytest.importorskip("onnxruntime", reason="the onnx extra is not installed")

import onnxruntime as ort

from outrider.engines.onnx.calibrate import calibrate, standard_text
from outrider.models.npu_export import export_chunks
from outrider.models.stage_export import export_stage

ROOM = 64


class Phone:
    """A file and the arrays that go in; `base` tokens were run."""

    def __init__(self, path: Path) -> None:
        self.session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        self.notes = json.loads(self.session.get_modelmeta().custom_metadata_map["outrider.stage"])
        self.outputs = [port.name for port in self.session.get_outputs()]
        self.feed: dict[str, Any] = {}
        self.base = 0

    def turns(self, positions: int) -> tuple[Any, Any]:
        at = np.arange(positions, dtype=np.float32)[:, None]
        angles = at * np.array(self.notes["frequencies"], np.float32)
        return np.cos(angles), np.sin(angles)

    def layers(self) -> range:
        return range(self.notes["start"], self.notes["stop"])


def test_a_file_for_a_cpu(tmp_path: Path) -> None:
    export_stage(resolve("bundled:target"), parse("0:3", 6), tmp_path / "s.onnx")
    phone = Phone(tmp_path / "s.onnx")
    phone.feed["cos"], phone.feed["sin"] = phone.turns(ROOM)
    for layer in phone.layers():
        for part in ("key", "value"):
            shape = (1, phone.notes["kv_heads"], ROOM, phone.notes["head_dim"])
            phone.feed[f"past.{layer}.{part}"] = np.zeros(shape, np.float32)
    parts = [cpu_step(phone, range(100 + a, 100 + b)) for a, b in ((0, 10), (10, 13), (13, 14))]
    np.testing.assert_allclose(np.concatenate(parts), wanted("0:3", 14), atol=1e-3)


def cpu_step(phone: Phone, ids: range) -> Any:
    stop = phone.base + len(ids)
    phone.feed["input_ids"] = np.array([list(ids)], np.int64)
    phone.feed["lengths"] = np.array([stop - 1], np.int32)
    phone.feed["total"] = np.array([stop], np.int32)
    found: dict[str, Any] = dict(
        zip(phone.outputs, phone.session.run(None, phone.feed), strict=True)
    )
    for name in [name for name in found if name.startswith("present.")]:
        phone.feed[name.replace("present", "past")] = found[name]
    phone.base = stop
    return found["hidden_out"][0]


def test_a_file_for_an_npu(tmp_path: Path) -> None:
    files = resolve("bundled:target")
    ranges = calibrate(files, standard_text(), 4)
    place = tmp_path / "s.onnx"
    layers = parse("0:3", 6)
    export_chunks(files, layers, place, Scheme(ranges), chunk=8, context=ROOM)
    phone = Phone(place)
    for port in phone.session.get_inputs():
        if port.name.startswith("past."):
            phone.feed[port.name] = np.zeros(port.shape, np.uint8)
    parts = [npu_step(phone, range(100 + a, 100 + b)) for a, b in ((0, 8), (8, 14))]
    found, float_rows = np.concatenate(parts), wanted("0:3", 14)
    alike = (found * float_rows).sum() / np.linalg.norm(found) / np.linalg.norm(float_rows)
    assert alike > 0.98
    assert phone.notes["chunk"] == 8 and phone.notes["context"] == ROOM


def npu_step(phone: Phone, ids: range) -> Any:
    """One chunk; rows beyond the ids are padding."""
    rows, room, base = phone.notes["chunk"], phone.notes["context"], phone.base
    padded = np.zeros(rows, np.int32)
    padded[: len(ids)] = ids
    positions = np.minimum(base + np.arange(rows), room - 1)
    cos, sin = phone.turns(room)
    mask = np.full((rows, room + rows), -30000, np.float32)
    mask[:, :base] = 0
    for row in range(rows):
        mask[row, room : room + row + 1] = 0
    feed = {"input_ids": padded, "cos": cos[positions], "sin": sin[positions], "mask": mask}
    outputs = phone.session.run(None, {**phone.feed, **feed})
    found: dict[str, Any] = dict(zip(phone.outputs, outputs, strict=True))
    for name in [name for name in found if name.startswith("present.")]:
        past = phone.feed[name.replace("present", "past")]
        past[:, base : base + len(ids)] = found[name][:, : len(ids)]
    phone.base += len(ids)
    return found["hidden_out"][: len(ids)]


def wanted(layers: str, count: int) -> Any:
    spec = EngineSpec(model="bundled:target", engine="torch", device="cpu", context=64, threads=1)
    stage = build_stage(spec, parse(layers, 6))
    stage.open(0)
    return stage.run([StageSpan(0, 0, count, tuple(range(100, 100 + count)))])[0]
