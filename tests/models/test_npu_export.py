"""INT8 graphs of fixed sizes: standard nodes, counted work, steps that hold what was seen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from outrider.engine import LayerRange
from outrider.errors import ConfigError, ModelUnsupported
from outrider.models.npu_graph import HIDDEN, Range, Scheme, outliers_of, step_of
from outrider.models.source import resolve

onnx = pytest.importorskip("onnx", reason="the onnx extra is not installed")

MIDDLE = LayerRange(2, 4, embedding=False, head=False)
WHOLE = LayerRange(0, 6, embedding=True, head=True)


def flat(channels: int, reach: float = 4.0) -> Range:
    return Range(np.full(channels, -reach, np.float32), np.full(channels, reach, np.float32))


def ranges() -> dict[str, Range]:
    sizes = {"qkv": 256, "out": 256, "gate_up": 256, "down": 704}
    heads = {"query": 64, "key": 64, "value": 64}
    found = {f"{i}.{p}": flat(n) for i in range(6) for p, n in (sizes | heads).items()}
    return found | {"head": flat(256)}


def written(path: Path, layers: LayerRange = MIDDLE, **more: int) -> Any:
    from outrider.models.npu_export import export_chunks

    export_chunks(resolve("bundled:target"), layers, path, Scheme(ranges()), **more)
    return onnx.load(path)


def test_every_size_is_fixed_and_every_node_standard(tmp_path: Path) -> None:
    model = written(tmp_path / "s.onnx", WHOLE)
    onnx.checker.check_model(str(tmp_path / "s.onnx"), full_check=True)
    assert {node.domain for node in model.graph.node} == {""}
    for port in (*model.graph.input, *model.graph.output):
        sizes = [d for d in port.type.tensor_type.shape.dim]
        assert sizes and all(d.dim_value > 0 for d in sizes)
    names = [port.name for port in model.graph.input]
    assert names[:4] == ["input_ids", "cos", "sin", "mask"] and "past.5.value" in names


def test_both_graphs_share_their_weights(tmp_path: Path) -> None:
    from outrider.models.npu_export import files_at

    written(tmp_path / "s.onnx")
    places = files_at(tmp_path / "s.onnx")
    assert places.decode.name == "s.decode.onnx" and places.data.name == "s.onnx.data"
    layer = 256 * 512 + 256 * 256 + 3 * 256 * 704
    assert 2 * layer < places.data.stat().st_size < 2 * 1.4 * layer
    assert places.prefill.stat().st_size + places.decode.stat().st_size < 200_000


def test_work_is_counted_by_hand(tmp_path: Path) -> None:
    """Two layers, 32 rows, room for 256: products of 13 (5 %) and 36 outlier channels apart."""
    from outrider.models.npu_export import flops_of

    written(tmp_path / "s.onnx")
    found = flops_of(tmp_path / "s.onnx")
    linear = 256 * 512 + 256 * 256 + 256 * 1408 + 704 * 256
    attention = 2 * 4 * 64 * (256 + 32)
    assert found.int8 == 2 * 2 * 32 * (linear + attention)
    assert found.int8_again == 2 * 2 * 32 * 704 * 256
    apart = 13 * (512 + 256 + 1408) + 36 * 256
    assert found.float_products == 2 * 2 * 32 * apart
    assert found.int8_share > 0.9


def test_a_float_graph_counts_as_float(tmp_path: Path) -> None:
    from outrider.models.npu_export import export_chunks, flops_of

    export_chunks(resolve("bundled:target"), MIDDLE, tmp_path / "s.onnx", None)
    found = flops_of(tmp_path / "s.onnx")
    assert found.int8 == 0 and found.int8_share == 0 and found.float_products > 0


def test_outliers_are_those_that_reach_furthest() -> None:
    high = np.array([1, 2, 50, 3, 1, 40, 2, 1], np.float32)
    scheme = Scheme({"p": Range((-high / 2).astype(np.float32), high)}, outliers=0.25)
    assert outliers_of(scheme, "p").tolist() == [2, 5]
    scale, zero = step_of(scheme, "p", outliers_of(scheme, "p"))
    assert scale == pytest.approx(4.5 / 255) and zero == round(1.5 / (4.5 / 255))
    wide, _ = step_of(scheme, "p")
    assert wide == pytest.approx(75 / 255)


def test_a_range_always_holds_zero() -> None:
    above = Range(np.ones(4, np.float32), np.full(4, 2, np.float32))
    scheme = Scheme({"p": above}, outliers=0)
    scale, zero = step_of(scheme, "p")
    assert zero == 0 and scale == pytest.approx(2 / 255)
    nothing = Scheme({"p": Range(np.zeros(4, np.float32), np.zeros(4, np.float32))})
    assert step_of(nothing, "p") == (1.0, 0)


@pytest.mark.parametrize(("chunk", "context"), [(1, 64), (65, 64), (32, 0), (32, 2000)])
def test_sizes_that_can_not_be(chunk: int, context: int, tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        written(tmp_path / "s.onnx", chunk=chunk, context=context)
    assert not list(tmp_path.iterdir())


def test_gguf_files_are_refused(tmp_path: Path) -> None:
    from outrider.models.npu_export import export_chunks
    from outrider.models.source import ModelFiles

    place = tmp_path / "m.gguf"
    files = ModelFiles("gguf", "m", place, tmp_path, (place,), None, None)
    with pytest.raises(ModelUnsupported):
        export_chunks(files, WHOLE, tmp_path / "s.onnx", None)


def test_masks_hide_what_is_not_there() -> None:
    pytest.importorskip("onnxruntime")
    from outrider.engines.onnx.static import mask

    found = mask(3, 4, 2, 0) == 0
    assert found.tolist() == [
        [True, True, False, False, True, False, False],
        [True, True, False, False, True, True, False],
        [True, True, False, False, True, True, True],
    ]
    windowed = mask(3, 4, 2, 2) == 0
    assert windowed.tolist() == [
        [False, True, False, False, True, False, False],
        [False, False, False, False, True, True, False],
        [False, False, False, False, False, True, True],
    ]
    assert mask(3, 4, 2, 0).min() == HIDDEN > np.finfo(np.float16).min
