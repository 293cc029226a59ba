"""From a name to files, and their digests."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from outrider.errors import ModelCorrupt, ModelUnsupported, NotFound
from outrider.models.source import cache_dir, resolve


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("OUTRIDER_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def folder(tmp_path: Path, safetensors_data: Callable[..., bytes]) -> Path:
    path = tmp_path / "model"
    path.mkdir()
    (path / "config.json").write_text("{}")
    (path / "model.safetensors").write_bytes(safetensors_data())
    return path


def test_the_cache_folder_can_be_chosen(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cache_dir() == cache
    monkeypatch.delenv("OUTRIDER_CACHE")
    assert cache_dir().name == "outrider"


def test_bundled() -> None:
    files = resolve("bundled:target")
    assert files.kind == "safetensors" and files.tokenizer_json is not None
    assert files.name == "bundled:target"
    with pytest.raises(NotFound, match="bundled:nothing"):
        resolve("bundled:nothing")
    with pytest.raises(NotFound):
        resolve("bundled:../bundled/target")


def test_a_folder_and_its_file_are_one_model(folder: Path) -> None:
    assert resolve(str(folder)).digest == resolve(str(folder / "model.safetensors")).digest


def test_missing_things_are_named(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(NotFound, match=r"absent\.gguf"):
        resolve(str(tmp_path / "absent.gguf"))
    (folder / "config.json").unlink()
    for name in (folder, folder / "model.safetensors"):
        with pytest.raises(NotFound, match=r"config\.json"):
            resolve(str(name))


def test_unknown_kinds_are_refused(tmp_path: Path) -> None:
    (tmp_path / "model.bin").write_bytes(b"x")
    with pytest.raises(ModelUnsupported):
        resolve(str(tmp_path / "model.bin"))


def test_shards_come_from_the_index(folder: Path, safetensors_data: Callable[..., bytes]) -> None:
    (folder / "b.safetensors").write_bytes(safetensors_data())
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"x": "model.safetensors", "y": "b.safetensors"}}))
    names = [path.name for path in resolve(str(folder)).weights]
    assert names == ["b.safetensors", "model.safetensors"]
    for bad in ("../model.safetensors", "/etc/passwd", "x/y.safetensors", 5, "c.bin"):
        index.write_text(json.dumps({"weight_map": {"x": bad}}))
        with pytest.raises(ModelCorrupt):
            resolve(str(folder))
    index.write_text(json.dumps({"weight_map": {"x": "c.safetensors"}}))
    with pytest.raises(NotFound, match=r"c\.safetensors"):
        resolve(str(folder))
    for text in ("[]", "{", '{"weight_map": 5}', "[" * 100_000):
        index.write_text(text)
        with pytest.raises(ModelCorrupt):
            resolve(str(folder))


def test_split_gguf(tmp_path: Path) -> None:
    for number in (1, 2):
        (tmp_path / f"m-0000{number}-of-00002.gguf").write_bytes(b"x")
    files = resolve(str(tmp_path / "m-00002-of-00002.gguf"))
    assert files.path.name == "m-00001-of-00002.gguf" and len(files.weights) == 2
    assert resolve(str(tmp_path)).weights == files.weights
    (tmp_path / "m-00002-of-00002.gguf").unlink()
    with pytest.raises(NotFound, match="00002-of"):
        resolve(str(tmp_path / "m-00001-of-00002.gguf"))


def test_digests_follow_the_content(tmp_path: Path, folder: Path, cache: Path) -> None:
    lone = tmp_path / "m.gguf"
    lone.write_bytes(b"some bytes")
    assert resolve(str(lone)).digest == hashlib.sha256(b"some bytes").hexdigest()
    before = resolve(str(folder)).digest
    assert resolve(str(folder)).digest == before
    (folder / "config.json").write_text('{"rope_theta": 5}')
    assert resolve(str(folder)).digest != before
    assert list((cache / "digests").iterdir())


def test_a_damaged_digest_cache_is_not_believed(tmp_path: Path, cache: Path) -> None:
    lone = tmp_path / "m.gguf"
    lone.write_bytes(b"some bytes")
    expected = resolve(str(lone)).digest
    for note in (cache / "digests").iterdir():
        note.write_bytes(b"\xff garbage")
    assert resolve(str(lone)).digest == expected
