"""Execution providers: what a recorded profile says, what this library says, what is absent."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("onnxruntime", reason="the onnx extra is not installed")

import onnxruntime as ort

from outrider.errors import ModelCorrupt
from outrider.models.onnx_export import export
from outrider.models.source import resolve
from outrider.partitioner.profile import providers
from outrider.partitioner.profile.providers import SHEETS, judge, parse_profile

CPU = SHEETS[-1]
QNN = SHEETS[0]


def event(index: int, op: str, provider: str, name: str = "kernel_time", dur: int = 5) -> object:
    """As onnxruntime writes them (Chrome trace format)."""
    return {
        "cat": "Node",
        "pid": 1,
        "tid": 1,
        "dur": dur,
        "ts": 10,
        "ph": "X",
        "name": f"node_{index}_{name}",
        "args": {"op_name": op, "provider": provider, "node_index": str(index)},
    }


RECORDED = [
    {"cat": "Session", "name": "session_initialization", "dur": 9, "ts": 1, "ph": "X", "args": {}},
    event(0, "Gather", "CPUExecutionProvider"),
    event(1, "MatMul", "QNNExecutionProvider", "fence_before"),
    event(1, "MatMul", "QNNExecutionProvider"),
    event(1, "MatMul", "QNNExecutionProvider"),
    event(2, "Softmax", "QNNExecutionProvider"),
    event(3, "Gather", "CPUExecutionProvider"),
]
"""A run on a phone's NPU that left two operators to the CPU; node 1 ran twice, in a loop."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "draft.onnx"
    export(resolve("bundled:draft"), path, precision="int8")
    return path


def test_a_recorded_profile_gives_the_share() -> None:
    nodes = parse_profile(json.dumps(RECORDED))
    assert len(nodes) == 4
    found = judge(QNN, nodes)
    assert (found.state, found.share, found.left) == ("partial", 0.5, {"Gather": 2})
    assert "Gather x2" in found.detail
    assert judge(CPU, [("CPUExecutionProvider", "MatMul")]).state == "full"
    assert judge(QNN, [("CPUExecutionProvider", "MatMul")]).state == "failed"


@pytest.mark.parametrize(
    "text", ["", "{", '[{"cat": "Node", "name": "a_kernel_time"}]', "3", "[1]"]
)
def test_what_is_no_profile_is_refused(text: str) -> None:
    with pytest.raises(ModelCorrupt):
        parse_profile(text)


def test_the_cpu_takes_every_node_and_both_ways_of_looking_agree(model: Path) -> None:
    told = providers.placement(model, CPU)
    ran = judge(CPU, providers.profiled_run(str(model), CPU))
    assert (told.state, told.share) == ("full", 1.0) == (ran.state, ran.share)
    assert told.nodes > 10 and ran.nodes > 10


def test_providers_that_are_not_built_in_are_said_to_be_absent(model: Path) -> None:
    built = ort.get_available_providers()
    found = {p.provider: p for p in providers.placements(model)}
    for sheet in SHEETS:
        if sheet.library_name not in built:
            assert found[sheet.name].state == "absent" and found[sheet.name].share == 0.0


def test_a_provider_that_is_listed_and_does_not_run_has_failed(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if QNN.library_name in ort.get_available_providers():
        pytest.skip("this machine has the provider")
    built = [*ort.get_available_providers(), QNN.library_name]
    monkeypatch.setattr(ort, "get_available_providers", lambda: built)
    found = providers.placement(model, QNN)
    assert (found.state, found.share) == ("failed", 0.0) and found.detail


def test_a_library_without_the_report_is_asked_by_a_run(model: Path) -> None:
    class Old:
        _model_path = str(model)

    assert judge(CPU, providers.assigned(Old(), CPU)).state == "full"


def test_every_provider_of_the_issue_has_a_table_of_options() -> None:
    wanted = {"qnn", "openvino", "coreml", "vitisai", "tensorrt", "cuda", "dml", "cpu"}
    assert {sheet.name for sheet in SHEETS} == wanted
    for sheet in SHEETS[:-1]:
        assert sheet.options and all(o.why and isinstance(o.value, str) for o in sheet.options)
        assert len(sheet.settings()) == len(sheet.options)
