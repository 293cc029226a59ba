"""Corrupt files are refused by our own check, whatever is wrong with them."""

from __future__ import annotations

import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from outrider.errors import ModelCorrupt, ModelError, ModelUnsupported, NotFound
from outrider.models.check import check_gguf, check_model, check_onnx, check_safetensors
from outrider.models.source import resolve

Write = Callable[[bytes, str], Path]
QUICK = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def patched(data: bytes, at: int, form: str, *values: int) -> bytes:
    part = struct.pack(form, *values)
    return data[:at] + part + data[at + len(part) :]


def test_sound_files_pass(
    written: Write, gguf_data: bytes, safetensors_data: Callable[..., bytes]
) -> None:
    header = check_gguf(written(gguf_data, "a.gguf"))
    assert [row.name for row in header.tensors] == ["one", "two"]
    assert header.text("general.architecture") == "llama"
    assert header.number("llama.block_count") == 2
    assert header.strings("tokenizer.ggml.tokens")[1] == "\u0120b".encode()
    rows = check_safetensors(written(safetensors_data(), "a.safetensors"))
    assert {row.name: row.shape for row in rows} == {"a": (2, 2), "b": (4,)}


def test_the_bundled_models_pass() -> None:
    for name in ("bundled:target", "bundled:draft"):
        check_model(resolve(name))


# --- GGUF --------------------------------------------------------------------------------------


def test_a_gguf_cut_anywhere_is_refused(written: Write, gguf_data: bytes) -> None:
    for length in range(len(gguf_data)):
        with pytest.raises(ModelCorrupt):
            check_gguf(written(gguf_data[:length], "a.gguf"))


@pytest.mark.parametrize(
    ("at", "form", "value"),
    [
        (0, "<I", 0),
        (8, "<Q", 2**63),
        (8, "<Q", 2**64 - 1),
        (8, "<Q", 3),
        (16, "<Q", 2**63),
        (16, "<Q", 2**16),
        (24, "<Q", 2**63),
        (24, "<Q", 2**40),
    ],
)
def test_gguf_header_fields(
    written: Write, gguf_data: bytes, at: int, form: str, value: int
) -> None:
    with pytest.raises(ModelCorrupt) as caught:
        check_gguf(written(patched(gguf_data, at, form, value), "a.gguf"))
    assert caught.value.why and caught.value.effect and caught.value.todo


@pytest.mark.parametrize("version", [0, 1, 4, 0x03000000])
def test_gguf_versions(written: Write, gguf_data: bytes, version: int) -> None:
    with pytest.raises(ModelUnsupported):
        check_gguf(written(patched(gguf_data, 4, "<I", version), "a.gguf"))


@pytest.mark.parametrize(
    ("skip", "form", "value", "error"),
    [
        (3, "<I", 5, ModelCorrupt),  # dimensions
        (3, "<I", 0, ModelCorrupt),
        (7, "<Q", 2**62, ModelCorrupt),  # the shape overflows
        (7, "<Q", 0, ModelCorrupt),
        (7, "<Q", 2**20, ModelCorrupt),  # more bytes than the file has
        (23, "<I", 77, ModelUnsupported),  # the type
        (23, "<I", 10, ModelCorrupt),  # Q2_K rows are multiples of 256
        (27, "<Q", 1, ModelCorrupt),  # not aligned
        (27, "<Q", 256, ModelCorrupt),  # onto the other one
        (27, "<Q", 2**40, ModelCorrupt),  # past the end of the file
        (27, "<Q", 2**64 - 32, ModelCorrupt),
    ],
)
def test_gguf_tensor_rows(
    written: Write, gguf_data: bytes, skip: int, form: str, value: int, error: type[ModelError]
) -> None:
    at = gguf_data.index(b"one") + skip
    with pytest.raises(error):
        check_gguf(written(patched(gguf_data, at, form, value), "a.gguf"))


def test_gguf_names_stand_once(written: Write, gguf_data: bytes) -> None:
    with pytest.raises(ModelCorrupt, match="corrupt"):
        check_gguf(written(gguf_data.replace(b"two", b"one"), "a.gguf"))
    twice = gguf_data.replace(b"tokenizer.ggml.model", b"general.architecture")
    with pytest.raises(ModelCorrupt):
        check_gguf(written(twice, "a.gguf"))


def test_gguf_arrays_are_not_nested(written: Write, gguf_data: bytes) -> None:
    at = gguf_data.index(b"token_type") + 10 + 4
    for kind in (9, 13, 2**31):
        with pytest.raises(ModelCorrupt):
            check_gguf(written(patched(gguf_data, at, "<I", kind), "a.gguf"))
    with pytest.raises(ModelCorrupt):
        check_gguf(written(patched(gguf_data, at + 4, "<Q", 2**61), "a.gguf"))


def test_huge_claims_cost_no_memory(written: Write, gguf_data: bytes) -> None:
    at = gguf_data.index(b"tokenizer.ggml.tokens") + 21 + 8
    path = written(patched(gguf_data, at, "<Q", 2**22), "a.gguf")
    tracemalloc.start()
    with pytest.raises(ModelCorrupt):
        check_gguf(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2 << 20


@QUICK
@given(data=st.data())
def test_gguf_fuzz(written: Write, gguf_data: bytes, data: st.DataObject) -> None:
    _fuzz(written, gguf_data, data, "a.gguf")


# --- safetensors -------------------------------------------------------------------------------


def test_a_safetensors_cut_anywhere_is_refused(
    written: Write, safetensors_data: Callable[..., bytes]
) -> None:
    whole = safetensors_data()
    for length in range(len(whole)):
        with pytest.raises(ModelCorrupt):
            check_safetensors(written(whole[:length], "a.safetensors"))


def _one(**changed: object) -> dict[str, object]:
    entry: dict[str, object] = {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}
    return {"a": entry | changed}


@pytest.mark.parametrize(
    "header",
    [
        _one(shape=[2, 4]),
        _one(shape=[-2, -3]),
        _one(shape=[2**62, 4]),
        _one(shape=[2, 3.0]),
        _one(shape=[True, 6]),
        _one(shape="23"),
        _one(shape=[1] * 15 + [2, 3]),
        _one(data_offsets=[8, 32]),
        _one(data_offsets=[24, 0]),
        _one(data_offsets=[0]),
        _one(more=1),
        {"a": 5},
        {"a": None, "__metadata__": {"x": "y"}},
        _one() | {"__metadata__": {"x": 1}},
        _one() | {"b": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}},
        [],
        b"{}",
        b'{"a":' * 5000,
        b"[" * 100_000,
        b'{"a":{"dtype":"F32","shape":[6],"data_offsets":[0,24]},"a":{}}',
        b"{\xff}",
    ],
)
def test_safetensors_headers(
    written: Write, safetensors_data: Callable[..., bytes], header: object
) -> None:
    with pytest.raises(ModelCorrupt):
        check_safetensors(written(safetensors_data(header or b"[]"), "a.safetensors"))


def test_safetensors_types_and_lengths(
    written: Write, safetensors_data: Callable[..., bytes]
) -> None:
    with pytest.raises(ModelUnsupported):
        check_safetensors(written(safetensors_data(_one(dtype="F31")), "a.safetensors"))
    for length in (2**63, 2**64 - 1, 2**25):
        data = patched(safetensors_data(), 0, "<Q", length)
        with pytest.raises(ModelCorrupt):
            check_safetensors(written(data, "a.safetensors"))
    with pytest.raises(ModelCorrupt):
        check_safetensors(written(safetensors_data() + b"more", "a.safetensors"))


@QUICK
@given(data=st.data())
def test_safetensors_fuzz(
    written: Write, safetensors_data: Callable[..., bytes], data: st.DataObject
) -> None:
    _fuzz(written, safetensors_data(), data, "a.safetensors")


# --- ONNX --------------------------------------------------------------------------------------


def _field(number: int, payload: bytes | int) -> bytes:
    if isinstance(payload, int):
        return _varint(number << 3) + _varint(payload)
    return _varint(number << 3 | 2) + _varint(len(payload)) + payload


def _varint(value: int) -> bytes:
    out = b""
    while value > 0x7F:
        out += bytes([value & 0x7F | 0x80])
        value >>= 7
    return out + bytes([value])


def _external(**entries: str) -> bytes:
    pairs = b"".join(
        _field(13, _field(1, key.encode()) + _field(2, value.encode()))
        for key, value in entries.items()
    )
    return _field(1, _varint(4)) + _field(2, 1) + _field(8, b"w") + pairs + _field(14, 1)


def _model(tensor: bytes) -> bytes:
    node = _field(4, b"Identity")
    return _field(1, 8) + _field(7, _field(1, node) + _field(5, tensor))


INLINE = _field(1, 2) + _field(1, 2) + _field(2, 1) + _field(8, b"w") + _field(9, bytes(16))


def test_a_sound_onnx_passes(written: Write) -> None:
    assert check_onnx(written(_model(INLINE), "a.onnx")) == ()
    beside = written(bytes(48), "w.bin")
    for entries in ({}, {"offset": "32"}, {"offset": "16", "length": "16"}):
        tensor = _external(location="w.bin", **entries)
        assert check_onnx(written(_model(tensor), "a.onnx")) == (beside.resolve(),)


def test_onnx_accepts_what_the_library_writes(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx", reason="the onnx library writes the file")
    import numpy as np

    helper = onnx.helper
    weight = onnx.numpy_helper.from_array(np.ones((64, 64), np.float32), "w")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", 1, [1, 64])],
        [helper.make_tensor_value_info("y", 1, [1, 64])],
        [weight],
    )
    model = helper.make_model(graph)
    onnx.save(model, tmp_path / "in.onnx")
    assert check_onnx(tmp_path / "in.onnx") == ()
    onnx.save(model, tmp_path / "out.onnx", save_as_external_data=True, location="out.data")
    assert [path.name for path in check_onnx(tmp_path / "out.onnx")] == ["out.data"]
    assert [p.name for p in resolve(str(tmp_path / "out.onnx")).weights] == ["out.onnx", "out.data"]


@pytest.mark.parametrize(
    "entries",
    [
        {"location": "../w.bin"},
        {"location": "x/../../w.bin"},
        {"location": "/etc/passwd"},
        {"location": "C:\\w.bin"},
        {"location": "link"},
        {"location": "absent"},
        {"location": ""},
        {"location": "w.bin", "offset": "33"},
        {"location": "w.bin", "offset": "-1"},
        {"location": "w.bin", "offset": "9" * 30},
        {"location": "w.bin", "length": "8"},
        {"location": "w.bin", "length": "1e1"},
    ],
)
def test_onnx_external_data_stays_inside(
    written: Write, tmp_path: Path, entries: dict[str, str]
) -> None:
    written(bytes(48), "w.bin")
    (tmp_path / "link").symlink_to("/etc/hosts")
    with pytest.raises(ModelCorrupt):
        check_onnx(written(_model(_external(**entries)), "a.onnx"))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x08",
        _field(1, 8),
        _model(INLINE.replace(bytes(16), bytes(15)).replace(b"\x10\x00", b"\x0f\x00", 1)),
        _model(_field(1, 2**40) + _field(1, 2**40) + INLINE),
        _model(INLINE) + _field(7, b""),
        _varint(7 << 3) + b"\x01",
        b"\x3b\x3c",
        _model(_external(location="a") + _field(13, _field(1, b"location"))),
        _field(7, b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"),
        b"\xff" * 40,
    ],
)
def test_onnx_bytes(written: Write, data: bytes) -> None:
    with pytest.raises(ModelCorrupt):
        check_onnx(written(data, "a.onnx"))


def test_deep_onnx_is_refused(written: Write) -> None:
    graph = b""
    for _ in range(40):
        graph = _field(1, _field(5, _field(6, graph)))
    with pytest.raises(ModelCorrupt):
        check_onnx(written(_field(7, graph), "a.onnx"))


@QUICK
@given(data=st.data())
def test_onnx_fuzz(written: Write, data: st.DataObject) -> None:
    written(bytes(48), "w.bin")
    whole = data.draw(st.sampled_from([_model(INLINE), _model(_external(location="w.bin"))]))
    _fuzz(written, whole, data, "a.onnx")


# --- all ---------------------------------------------------------------------------------------


def _fuzz(written: Write, whole: bytes, data: st.DataObject, name: str) -> None:
    """Any bytes changed, cut out or put in: refused with a typed error, or sound."""
    mutated = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(mutated)))
        put = data.draw(st.binary(max_size=9))
        mutated[at : at + data.draw(st.integers(0, 9))] = put
    check = {"gguf": check_gguf, "onnx": check_onnx, "safetensors": check_safetensors}
    path = written(bytes(mutated), name)
    try:
        check[path.suffix[1:]](path)
    except (ModelCorrupt, ModelUnsupported):
        return


def test_absent_files_are_not_found(tmp_path: Path) -> None:
    for check in (check_gguf, check_onnx, check_safetensors):
        with pytest.raises(NotFound):
            check(tmp_path / "absent")
