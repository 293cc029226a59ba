"""The exported file: its bytes, where it is kept, what is refused before it is loaded."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from outrider.engines.onnx import files
from outrider.errors import ConfigError, ModelCorrupt, ModelUnsupported, NotFound
from outrider.models import onnx_export
from outrider.models.onnx_export import block_of, export, quantise
from outrider.models.source import BUNDLED, resolve

Save = Callable[..., tuple[Path, Any]]
DRAFT = BUNDLED / "draft"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("OUTRIDER_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def copied(folder: Path) -> Path:
    """The bundled draft without its ONNX file."""
    return Path(shutil.copytree(DRAFT, folder, ignore=shutil.ignore_patterns("*.onnx")))


def test_the_bundled_file_is_what_the_exporter_writes(tmp_path: Path) -> None:
    """After another training: export(resolve("bundled:draft"), <the file>)."""
    export(resolve("bundled:draft"), tmp_path / "model.onnx")
    assert (tmp_path / "model.onnx").read_bytes() == (DRAFT / "model.onnx").read_bytes()


def test_the_bundled_file_is_used_where_it_fits(cache: Path) -> None:
    assert files.find("bundled:draft", "float32").path == DRAFT / "model.onnx"
    made = files.find("bundled:draft", "int8").path
    assert made.is_relative_to(cache)
    assert made.stat().st_size < (DRAFT / "model.onnx").stat().st_size


def test_an_export_is_made_once_and_made_again_when_it_was_changed(tmp_path: Path) -> None:
    folder = copied(tmp_path / "model")
    first = files.find(str(folder), "float32").path
    made = (first.stat().st_mtime_ns, hashlib.sha256(first.read_bytes()).digest())
    assert files.find(str(folder), "float32").path == first
    assert first.stat().st_mtime_ns == made[0]
    with first.open("r+b") as stream:
        stream.seek(-9, os.SEEK_END)
        stream.write(b"x")
    again = files.find(str(folder), "float32").path
    assert hashlib.sha256(again.read_bytes()).digest() == made[1]


def test_other_weights_have_another_export(tmp_path: Path) -> None:
    folder = copied(tmp_path / "model")
    first = files.find(str(folder), "float32").path
    with (folder / "model.safetensors").open("r+b") as stream:
        stream.seek(-2, os.SEEK_END)
        stream.write(b"\x01\x02")
    assert files.find(str(folder), "float32").path != first


def test_a_file_beside_other_weights_is_not_taken_for_theirs(tmp_path: Path, cache: Path) -> None:
    folder = copied(tmp_path / "model")
    shutil.copy(DRAFT / "model.onnx", folder)
    assert files.find(str(folder), "float32").path == folder / "model.onnx"
    with (folder / "model.safetensors").open("r+b") as stream:
        stream.seek(-2, os.SEEK_END)
        stream.write(b"\x01\x02")
    assert files.find(str(folder), "float32").path.is_relative_to(cache)


def test_a_cache_that_can_not_be_written_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("OUTRIDER_CACHE", str(tmp_path / "file"))
    with pytest.raises(ConfigError, match="OUTRIDER_CACHE"):
        files.find("bundled:draft", "int8")


def test_broken_and_foreign_files_are_refused(tmp_path: Path) -> None:
    whole = (DRAFT / "model.onnx").read_bytes()
    shutil.copy(DRAFT / "tokenizer.json", tmp_path)
    path = tmp_path / "broken.onnx"
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelCorrupt):
        files.find(str(path), "float32")
    with pytest.raises(NotFound):
        files.find(str(tmp_path / "absent.onnx"), "float32")
    model = onnx.load(DRAFT / "model.onnx")
    del model.metadata_props[:]
    onnx.save(model, path)
    from outrider.engine import EngineSpec
    from outrider.engines.onnx import build

    with pytest.raises(ModelUnsupported, match="not exported by outrider"):
        build(EngineSpec(model=str(path), engine="onnx", device="cpu", threads=1))


def test_stages_compose_to_the_whole(saved: Save, tmp_path: Path) -> None:
    """Hidden states out of the first layers, into the others, give the whole's scores."""
    source = resolve(str(saved("Qwen2")[0]))
    ranges = {"whole": range(3), "first": range(1), "middle": range(1, 2), "last": range(2, 3)}
    for name, layers in ranges.items():
        export(source, tmp_path / f"{name}.onnx", layers=layers)
    wanted = ran(tmp_path / "whole.onnx", None)
    hidden = None
    for name in ("first", "middle", "last"):
        hidden = ran(tmp_path / f"{name}.onnx", hidden)
    assert hidden is not None
    np.testing.assert_allclose(hidden, wanted, atol=1e-5)
    for wrong in (range(2, 5), range(0, 3, 2), range(1, 1)):
        with pytest.raises(ModelUnsupported):
            export(source, tmp_path / "wrong.onnx", layers=wrong)


def ran(path: Path, hidden: Any) -> Any:
    """Twelve rows from an empty cache through one file: scores, or hidden states."""
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    cos, sin = onnx_notes_of(session).turns(16)
    feeds = {
        "input_ids": np.arange(12, dtype=np.int64)[None] * 5,
        "hidden": hidden,
        "lengths": np.array([11], dtype=np.int32),
        "total": np.array([12], dtype=np.int32),
        "wanted": np.arange(12, dtype=np.int64),
        "cos": cos,
        "sin": sin,
    }
    cache = np.zeros((1, 2, 16, 16), dtype=np.float32)
    names = [port.name for port in session.get_inputs()]
    return session.run(None, {name: feeds.get(name, cache) for name in names})[0]


def onnx_notes_of(session: Any) -> Any:
    from outrider.models.onnx_notes import parse

    return parse(session.get_modelmeta().custom_metadata_map)


def test_large_weights_lie_in_a_second_file(
    saved: Save, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = resolve(str(saved("Llama", hidden_size=64)[0]))
    export(source, tmp_path / "one.onnx")
    monkeypatch.setattr(onnx_export, "EXTERNAL_FROM", 1)
    export(source, tmp_path / "two.onnx")
    assert (tmp_path / "two.onnx").stat().st_size < (tmp_path / "one.onnx").stat().st_size
    assert resolve(str(tmp_path / "two.onnx")).weights[1:] == (tmp_path / "two.onnx.data",)
    np.testing.assert_array_equal(
        ran(tmp_path / "one.onnx", None), ran(tmp_path / "two.onnx", None)
    )


@pytest.mark.parametrize(
    ("bits", "block", "bound"), [(8, 32, 0.005), (8, 256, 0.005), (4, 32, 0.08)]
)
def test_quantised_blocks_stay_near_the_matrix(bits: int, block: int, bound: float) -> None:
    matrix = np.random.default_rng(1).normal(size=(6, 3 * block)).astype(np.float32)
    matrix[2, :block] = 0
    packed, scales = quantise(matrix, bits, block)
    levels = packed if bits == 8 else np.stack([packed & 15, packed >> 4], -1)
    levels = levels.reshape(6, 3, block).astype(np.float32) - (1 << (bits - 1))
    found = (levels * scales.reshape(6, 3, 1)).reshape(6, -1)
    assert np.abs(found - matrix).max() <= bound * np.abs(matrix).max()


@pytest.mark.parametrize(
    ("width", "bits", "block"),
    [(256, 8, 256), (896, 8, 128), (704, 8, 64), (96, 8, 32), (48, 8, None), (256, 4, 32)],
)
def test_a_row_is_cut_into_as_few_blocks_as_its_precision_bears(
    width: int, bits: int, block: int | None
) -> None:
    assert block_of(width, bits) == block


def test_heads_that_the_operator_can_not_turn_are_refused(saved: Save, tmp_path: Path) -> None:
    source = resolve(str(saved("Llama", head_dim=8)[0]))
    with pytest.raises(ModelUnsupported, match="torch engine"):
        export(source, tmp_path / "model.onnx")
    assert not (tmp_path / "model.onnx").exists()
