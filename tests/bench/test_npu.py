"""Bench npu counts what it says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="the torch extra is not installed")
pytest.importorskip("onnxruntime", reason="the onnx extra is not installed")

from bench import npu
from outrider.models.npu_graph import Range
from outrider.models.source import resolve


def test_agreement_and_accuracy_are_shares_of_positions() -> None:
    ids = np.array([5, 6, 7, 8], np.int32)
    text = npu.Text([ids, ids], [np.array([6, 7, 1, 1]), np.array([6, 7, 8, 1])])
    mine = [np.array([6, 2, 8, 1]), np.array([6, 7, 8, 1])]
    assert text.agreement(mine) == [0.5, 1.0]
    assert text.accuracy(mine) == pytest.approx((2 / 3 + 1) / 2)


def test_the_contrasts_are_what_they_are_called() -> None:
    ranges = {"head": Range(np.full(4, -8, np.float32), np.full(4, 8, np.float32))}
    found = npu.schemes(ranges)
    standard, alone = found["standard"], found["INT8 alone"]
    assert standard is not None and alone is not None
    assert standard.outliers > 0 and standard.twice and next(iter(found)) == "standard"
    assert alone.outliers == 0 and not alone.twice
    small = found["scales too small"]
    assert small is not None and small.ranges["head"].high.tolist() == [2.0] * 4
    assert found["float"] is None


def test_a_float_graph_agrees_wholly_and_builds_nothing(tmp_path: Path) -> None:
    files = resolve(npu.MODEL)
    text = npu.held_out(files, 1)
    found = npu.measured(files, "float", None, text, tmp_path)
    assert found.mean == 1.0 and found.flop_share == 0.0
    assert npu.rebuilds(found.chunks, text.windows[0])[0] == 0
    times = npu.timed({"one": found.chunks}, text.windows[0], 1)
    assert set(times) == {"one"} and times["one"] > 0
