"""Graphs from headers: sizes that add up to the files', and figures that publishers state."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from outrider.errors import ModelCorrupt, ModelUnsupported, NotFound
from outrider.models import graph
from outrider.models.source import resolve
from outrider.partitioner.graph import ModelGraph

PARAMETERS = {
    "llama-3.2-1b": 1.236e9,
    "llama-3.1-8b": 8.030e9,
    "llama-3.1-70b": 70.554e9,
    "qwen2.5-0.5b": 0.494e9,
    "qwen2.5-7b": 7.616e9,
    "qwen3-0.6b": 0.596e9,
    "mistral-7b": 7.248e9,
}
"""As the model cards count them."""


def outline(found: ModelGraph) -> list[tuple[str, float, float, int]]:
    return [(u.name, u.flops, u.attention_flops, u.kv_bytes) for u in found.units]


def test_bytes_of_a_graph_are_those_of_the_file() -> None:
    found = graph.read("bundled:target")
    (weights,) = resolve("bundled:target").weights
    header = int.from_bytes(weights.read_bytes()[:8], "little") + 8
    assert found.weight_bytes == weights.stat().st_size - header
    assert (found.dtype, found.decoders, found.vocabulary) == ("float16", 6, 4096)
    assert found.edges == tuple((i, i + 1) for i in range(7))


def test_products_and_keys_follow_from_the_shapes() -> None:
    """hidden 256, intermediate 704, 4 heads and 2 key-value heads of 64, vocabulary 4096."""
    layer, head = (graph.read("bundled:target").units[i] for i in (1, -1))
    assert layer.flops == 2 * (256 * 256 * 2 + 256 * 128 * 2 + 3 * 256 * 704)
    assert layer.attention_flops == 4 * 4 * 64
    assert layer.kv_bytes == 2 * 2 * 64 * 2
    assert (layer.output, head.output) == (256, 0)
    assert head.flops == 2 * 4096 * 256


def test_a_tied_head_is_streamed_whole_and_held_once() -> None:
    found = graph.read("bundled:target")
    embedding, head = found.units[0], found.units[-1]
    assert found.tied
    assert embedding.streamed_bytes == 256 * 2
    assert head.streamed_bytes >= embedding.weight_bytes == 4096 * 256 * 2
    assert sum(u.weight_bytes for u in found.units) - found.weight_bytes == embedding.weight_bytes


@pytest.mark.parametrize("name", sorted(PARAMETERS))
def test_known_shapes_have_the_parameters_of_their_model_cards(name: str) -> None:
    found = graph.read(f"shape:{name}")
    assert found.weight_bytes / 2 == pytest.approx(PARAMETERS[name], rel=2e-3)


def test_all_known_shapes_can_be_drawn() -> None:
    assert len(graph.known()) >= 15
    for name in graph.known():
        assert graph.read(f"shape:{name}").units[-1].kind == "head"


def test_a_config_alone_is_enough(tmp_path: Path) -> None:
    fields = json.loads((resolve("bundled:target").folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(fields))
    for place in (tmp_path, tmp_path / "config.json"):
        found = graph.read(str(place))
        assert outline(found) == outline(graph.read("bundled:target"))
        assert found.weight_bytes == graph.read("bundled:target").weight_bytes


def test_quantised_configs_of_no_known_size_are_refused(tmp_path: Path) -> None:
    fields = json.loads((resolve("bundled:target").folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(fields | {"torch_dtype": "float8"}))
    with pytest.raises(ModelUnsupported, match="float8"):
        graph.read(str(tmp_path))


@pytest.mark.parametrize("quant", ["f16", "q8_0"])
def test_gguf_gives_the_same_graph(quant: str, tmp_path: Path) -> None:
    gguf = pytest.importorskip("outrider.models.gguf", reason="the llama extra is not installed")
    path = tmp_path / "small.gguf"
    gguf.write(resolve("bundled:draft"), quant, path)
    found = graph.read(str(path))
    assert outline(found) == outline(graph.read("bundled:draft"))
    assert found.tied
    assert found.dtype == {"f16": "float16", "q8_0": "q8_0"}[quant]
    ratio = found.weight_bytes / graph.read("bundled:draft").weight_bytes
    assert ratio == pytest.approx(1.0 if quant == "f16" else 34 / 64, rel=1e-2)


@pytest.mark.parametrize("precision", ["stored", "int8"])
def test_onnx_gives_the_same_graph(precision: str, tmp_path: Path) -> None:
    exporter = pytest.importorskip("outrider.models.onnx_export", reason="no onnx extra")
    path = tmp_path / "small.onnx"
    exporter.export(resolve("bundled:draft"), path, precision=precision)
    found = graph.read(str(path))
    assert outline(found) == outline(graph.read("bundled:draft"))
    assert found.dtype == {"stored": "float16", "int8": "int8"}[precision]
    assert found.tied == (precision == "stored")
    assert found.weight_bytes == pytest.approx(path.stat().st_size, rel=0.05)


def test_a_stage_is_no_whole_model(tmp_path: Path) -> None:
    exporter = pytest.importorskip("outrider.models.onnx_export", reason="no onnx extra")
    path = tmp_path / "part.onnx"
    exporter.export(resolve("bundled:draft"), path, layers=range(0, 1))
    with pytest.raises(ModelUnsupported, match="layers 0 to 1 of 2"):
        graph.read(str(path))


def test_missing_tensors_and_unknown_names_are_named(tmp_path: Path) -> None:
    folder = resolve("bundled:draft").folder
    fields = json.loads((folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(fields | {"num_hidden_layers": 3}))
    (tmp_path / "model.safetensors").symlink_to(folder / "model.safetensors")
    with pytest.raises(ModelCorrupt, match=r"layers\.2"):
        graph.read(str(tmp_path))
    with pytest.raises(NotFound, match="llama-9") as caught:
        graph.read("shape:llama-9")
    assert "shape" in caught.value.what and "qwen3-8b" in caught.value.todo


def test_windows_bound_what_a_row_sees(tmp_path: Path) -> None:
    fields = json.loads((resolve("bundled:target").folder / "config.json").read_text())
    fields |= {"model_type": "mistral", "sliding_window": 128}
    (tmp_path / "config.json").write_text(json.dumps(fields))
    layer = graph.read(str(tmp_path)).units[1]
    assert (layer.seen(64), layer.seen(4096)) == (64, 128)
