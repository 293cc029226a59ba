"""Weights in one aligned file: what is read, when, and that nothing is read twice."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torch", reason="needs the extra `torch`")

import torch

from outrider.engines.torch.blobs import (
    PAGE,
    BlobFile,
    Index,
    Stream,
    checked_index,
    read_index,
    write_blob,
)
from outrider.errors import EngineFailed, ModelCorrupt

F32 = torch.float32


def unit(number: int) -> list[tuple[str, torch.Tensor]]:
    return [("a", torch.full((3, 5), float(number))), ("b", torch.arange(1500) + number)]


@pytest.fixture
def blob(tmp_path: Path) -> tuple[BlobFile, Index]:
    path = tmp_path / "model.blob"
    index = write_blob(path, "digest", F32, (unit(i) for i in range(5)))
    return BlobFile(path), index


def values(stream: Stream, index: Index, number: int) -> tuple[float, float]:
    found = stream.take(number).tensors(index.units[number], F32)
    return float(found["a"][2, 4]), float(found["b"][1499])


@pytest.mark.parametrize("staging", [1, 2, 3, 5])
def test_units_come_whole_in_any_order(blob: tuple[BlobFile, Index], staging: int) -> None:
    file, index = blob
    stream = Stream(file, index, (1, 2, 3, 4), staging)
    for number in (1, 2, 3, 4, 1, 2, 4, 1, 3, 2, 1, 4):
        assert values(stream, index, number) == (number, 1499.0 + number)
    stream.close()
    file.close()


@pytest.mark.parametrize("staging", [1, 2, 3])
def test_in_turn_nothing_is_read_twice(blob: tuple[BlobFile, Index], staging: int) -> None:
    file, index = blob
    order = (0, 1, 2, 3, 4)
    stream = Stream(file, index, order, staging)
    for _ in range(10):
        for number in order:
            values(stream, index, number)
    stream.close()
    once = sum(place.size for place in index.units)
    ahead = (staging - 1) * index.units[0].size
    assert 10 * once <= file.bytes_read <= 10 * once + ahead + index.units[0].size
    file.close()


def test_what_fits_the_buffers_is_read_once(blob: tuple[BlobFile, Index]) -> None:
    file, index = blob
    stream = Stream(file, index, (3, 4), 2)
    for number in (3, 4, 3, 4, 3, 4):
        assert values(stream, index, number)[0] == number
    stream.close()
    assert file.bytes_read == index.units[3].size + index.units[4].size
    file.close()


def test_units_are_aligned_and_the_index_tells_the_file(blob: tuple[BlobFile, Index]) -> None:
    file, index = blob
    assert all(place.offset % PAGE == 0 and place.size % PAGE == 0 for place in index.units)
    assert read_index(file.path, "digest", F32) == index
    assert read_index(file.path, "another", F32) is None
    assert read_index(file.path, "digest", torch.bfloat16) is None
    file.close()


@pytest.mark.parametrize("staging", [1, 2])
def test_a_file_cut_short_is_an_error_and_the_stream_goes_on(
    blob: tuple[BlobFile, Index], staging: int
) -> None:
    file, index = blob
    whole = file.path.read_bytes()
    with file.path.open("r+b") as handle:
        handle.truncate(index.units[4].offset)
    with pytest.raises(ModelCorrupt):
        checked_index(file.path, "digest", F32)
    stream = Stream(file, index, (3, 4), 1 if staging == 1 else 2)
    assert values(stream, index, 3)[0] == 3
    with pytest.raises(EngineFailed, match="can not be used"):
        values(stream, index, 4)
    file.path.write_bytes(whole)
    assert values(stream, index, 3)[0] == 3
    assert values(stream, index, 4)[0] == 4
    stream.close()
    file.close()
