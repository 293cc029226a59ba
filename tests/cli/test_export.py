"""`outrider export`: what is written, what is said, what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from outrider.cli.app import run

pytest.importorskip("onnx", reason="the onnx extra is not installed")
pytest.importorskip("onnxruntime", reason="the onnx extra is not installed")


def test_a_range_for_a_cpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = tmp_path / "s.onnx"
    assert run(["export", "bundled:target", "--layers", "2:4", "-o", str(place)]) == 0
    said = capsys.readouterr().out
    assert "layers 2:4 of 6" in said and str(place) in said
    assert "hidden_out" in said and "past.2.key" in said and "2 more" in said
    assert place.stat().st_size > 1_000_000


def test_a_range_for_an_npu_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = tmp_path / "text.txt"
    text.write_text(Path(json.__file__).read_text() * 2)
    arguments = ["--target", "npu", "--chunk", "8", "--context", "64", "--calibrate", str(text)]
    place = str(tmp_path / "s.onnx")
    assert run(["export", "bundled:draft", *arguments, "-o", place, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["schema"] == 1 and found["target"] == "npu" and found["chunk"] == 8
    assert [Path(f["file"]).name for f in found["files"]] == [
        "s.onnx",
        "s.decode.onnx",
        "s.onnx.data",
    ]
    assert 0.8 < found["int8_flop_share"] < 1
    assert {"name": "input_ids", "type": "int32", "shape": [8]} in found["inputs"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["--layers", "5:9"],
        ["--layers", "x"],
        ["--chunk", "8"],
        ["--calibrate", "text.txt"],
        ["--target", "npu", "--dtype", "int8"],
        ["--target", "npu", "--chunk", "1"],
        ["--target", "npu", "--outliers", "2"],
        ["--target", "npu", "--calibrate", "/nowhere.txt"],
        ["-o", "stage.bin"],
        ["-o", "/nowhere/stage.onnx"],
    ],
)
def test_what_can_not_be_is_refused(
    arguments: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["export", "bundled:target", *arguments]) == 2
    assert "error:" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
