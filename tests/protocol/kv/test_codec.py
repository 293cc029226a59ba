"""The KV codec ladder: what comes back, how small it is, and what a stranger's bytes can do."""

from __future__ import annotations

import builtins
import struct
import tracemalloc
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from outrider.engine import KvSegment
from outrider.errors import (
    ConfigError,
    EngineFailed,
    InvalidRequest,
    LocalProtocolError,
    RemoteProtocolError,
)
from outrider.protocol.kv import LADDER, Level, Reader, decode, encode, level
from outrider.protocol.kv.floats import DTYPES, Dtype, narrow_into, stored_as, widen
from outrider.protocol.kv.groups import quantized, restored
from outrider.protocol.kv.header import HEAD_BYTES, parsed, written
from outrider.protocol.kv.planes import Cursor, bits_of, packed, unpacked

pytest.importorskip("zstandard", reason="the lossless stage needs outrider[edge]")

SHAPE = (3, 2, 2, 150, 24)
NAMES = [rung.name for rung in LADDER]
GROUPS = [rung for rung in LADDER if rung.coding == "groups"]


def segment(
    dtype: Dtype = "float32",
    shape: tuple[int, ...] = SHAPE,
    start: int = 0,
    seed: int = 0,
    scale: float = 3.0,
) -> KvSegment:
    """Normal values, with channels that differ in size."""
    random = np.random.default_rng(seed)
    wide = random.standard_normal(shape) * random.uniform(0.2, 2.0, shape[-1]) * scale
    values = np.empty(shape, stored_as(dtype))
    narrow_into(values, wide.astype(np.float32), dtype)
    stop = start + shape[3]
    return KvSegment("canonical", dtype, start, stop, tuple(range(stop)), values.tobytes(), shape)


def floats(found: KvSegment) -> Any:
    """The segment's values in float64."""
    names: tuple[str, ...] = DTYPES
    dtype = DTYPES[names.index(found.dtype)]
    raw = np.frombuffer(found.data, stored_as(dtype)).reshape(found.shape)
    return widen(raw, dtype).astype(np.float64)


def reader(data: bytes, limit: int = 1 << 30) -> Reader:
    return Reader(lambda start, stop: data[start:stop], len(data), limit)


# --- what comes back ---------------------------------------------------------------------------

WORST = {
    "raw": 0.0,
    "fp16": 1e-6,
    "int8": 1e-4,
    "int6": 1e-3,
    "int4": 1e-2,
    "int3": 0.11,
    "int2": 0.2,
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_what_comes_back_is_near(name: str, dtype: Dtype) -> None:
    given_ = segment(dtype)
    found = decode(encode(given_, level(name)), given_.tokens)
    assert replace(found, data=b"") == replace(given_, data=b"")
    before, after = floats(given_), floats(found)
    error = ((before - after) ** 2).sum() / (before**2).sum()
    rounding = {"float16": 1e-6, "bfloat16": 1e-5, "float32": 0.0}[dtype]
    exact = name.startswith("raw")
    assert found.data == given_.data if exact else error <= WORST[name.split("+")[0]] + rounding


@pytest.mark.parametrize("name", NAMES)
def test_lossless_stage_changes_size_alone(name: str) -> None:
    given_ = segment()
    rung = level(name)
    plain = level(name.removesuffix("+zstd"))
    assert decode(encode(given_, rung), given_.tokens) == decode(
        encode(given_, plain), given_.tokens
    )


@pytest.mark.parametrize("rung", GROUPS, ids=lambda rung: rung.name)
def test_no_value_is_farther_off_than_half_a_step(rung: Level) -> None:
    values = segment(seed=3)
    array = floats(values).astype(np.float32)
    for steps, axis in ((rung.key_steps, 3), (rung.value_steps, 4)):
        found = quantized(array, axis, steps, rung.steps)
        assert found is not None
        off = np.abs(restored(found, steps) - array)
        assert (off <= found.step.astype(np.float32) * 0.5001).all()
        assert int(found.symbols.max()) < steps


def test_rungs_are_in_order_of_faith() -> None:
    given_ = segment(shape=(3, 2, 2, 512, 64))
    plain = [rung for rung in LADDER if not rung.zstd]
    sizes = [len(encode(given_, replace(rung, first=0, recent=0))) for rung in plain]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[2] < 0.27 * sizes[0] and sizes[-1] < 0.1 * sizes[0]


def test_encoding_is_deterministic() -> None:
    for rung in LADDER:
        assert encode(segment(), rung) == encode(segment(), rung)


def test_first_and_recent_tokens_are_kept() -> None:
    given_ = segment("float16")
    found = floats(decode(encode(given_, level("int2")), given_.tokens))
    before = floats(given_)
    assert (found[:, :, :, :4] == before[:, :, :, :4]).all()
    assert (found[:, :, :, -32:] == before[:, :, :, -32:]).all()
    assert not (found[:, :, :, 4:-32] == before[:, :, :, 4:-32]).all()


@pytest.mark.parametrize(
    ("start", "length", "first", "last"),
    [
        (0, None, 4, 32),
        (0, 1000, 4, 0),
        (2, 160, 2, 24),
        (500, 650, 0, 32),
        (500, 660, 0, 22),
    ],
)
def test_kept_tokens_are_those_of_the_whole_context(
    start: int, length: int | None, first: int, last: int
) -> None:
    head = reader(encode(segment(start=start), level("int2"), length)).header
    assert (head.first, head.last) == (first, last)


def test_all_tokens_may_be_kept() -> None:
    given_ = segment("bfloat16", shape=(1, 2, 1, 20, 8))
    assert np.allclose(floats(decode(encode(given_, level("int2")), given_.tokens)), floats(given_))


@pytest.mark.parametrize(
    "shape", [(1, 2, 1, 1, 1), (1, 2, 1, 65, 7), (2, 2, 3, 64, 80), (5, 2, 1, 33, 128)]
)
@pytest.mark.parametrize("name", ["int8", "int3", "int2+zstd", "fp16+zstd"])
def test_odd_shapes(shape: tuple[int, ...], name: str) -> None:
    given_ = segment(shape=shape)
    found = decode(encode(given_, replace(level(name), first=0, recent=0)), given_.tokens)
    assert found.shape == shape
    assert np.abs(floats(found) - floats(given_)).max() < np.abs(floats(given_)).max()


def test_zeros_come_back() -> None:
    given_ = replace(segment(), data=bytes(len(segment().data)))
    for rung in LADDER:
        assert not floats(decode(encode(given_, rung), given_.tokens)).any()


@pytest.mark.parametrize("name", ["fp16", "int4"])
def test_values_beyond_float16_make_it_a_raw_object(name: str) -> None:
    given_ = segment(scale=1e6)
    data = encode(given_, level(name))
    assert reader(data).header.coding == "raw"
    assert decode(data, given_.tokens) == given_


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["raw", "fp16", "int8", "int4"])
def test_values_that_are_not_finite_are_refused(bad: float, dtype: Dtype, name: str) -> None:
    given_ = segment(dtype)
    raw = np.frombuffer(given_.data, stored_as(dtype)).copy()
    wrong = np.array([bad], np.float32)
    raw[1234] = (wrong.view(np.uint32) >> 16)[0] if dtype == "bfloat16" else wrong[0]
    with pytest.raises(EngineFailed):
        encode(replace(given_, data=raw.tobytes()), level(name))


@pytest.mark.parametrize("change", [
    {"layout": "opaque:llama"}, {"dtype": "int8"}, {"stop": 149}, {"data": b"1234"},
    {"shape": (3, 1, 4, 150, 24)}, {"shape": (3, 2, 2, 150)}, {"start": 150, "stop": 150},
])  # fmt: skip
def test_segments_that_are_not_canonical_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(LocalProtocolError):
        encode(replace(segment(), **change), level("int8"))


def test_an_unknown_level_names_those_there_are() -> None:
    with pytest.raises(InvalidRequest, match="int4"):
        level("int5")


def test_every_half_widens_and_narrows_exactly() -> None:
    halves = np.arange(65536, dtype=np.uint16).view(np.float16)
    halves = halves[np.isfinite(halves)]
    wide = widen(halves, "float16")
    assert (wide.view(np.uint32) == halves.astype(np.float32).view(np.uint32)).all()
    out = np.empty_like(halves)
    narrow_into(out, wide, "float16")
    assert (out.view(np.uint16) == halves.view(np.uint16)).all()


@given(st.integers(0, 2**32 - 1), st.floats(-4, 4.7))
@settings(max_examples=50, deadline=None)
def test_narrowing_rounds_as_numpy_does(seed: int, power: float) -> None:
    values = np.random.default_rng(seed).standard_normal(256).astype(np.float32)
    values = values[np.abs(values) > 1e-2] * np.float32(10.0**power)
    half, upper = np.empty(len(values), np.float16), np.empty(len(values), np.uint16)
    narrow_into(half, values, "float16")
    narrow_into(upper, values, "bfloat16")
    expected = np.clip(values, -65504, 65504).astype(np.float16)
    normal = np.abs(values) >= 2.0**-14
    assert (half == expected)[normal].all()
    bits = values.view(np.uint32).astype(np.uint64)
    assert (upper == (bits + 0x7FFF + (bits >> 16 & 1)) >> 16).all()


@given(st.integers(2, 256), st.integers(0, 400), st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_symbols_pack_into_their_bits(steps: int, count: int, seed: int) -> None:
    symbols = np.random.default_rng(seed).integers(0, steps, count).astype(np.uint8)
    data = packed(symbols, bits_of(steps))
    assert len(data) <= (count * bits_of(steps) + 7) // 8 + 3
    source = Cursor(data)
    assert (unpacked(source, count, bits_of(steps)) == symbols).all()
    source.end()


# --- parts of an object ------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["raw", "int4", "int2+zstd"])
@given(data=st.data())
@settings(max_examples=15, deadline=None)
def test_any_range_is_the_same_as_in_the_whole(name: str, data: st.DataObject) -> None:
    given_ = segment(shape=(2, 2, 1, 150, 8), start=30)
    coded = encode(given_, level(name))
    start = data.draw(st.integers(30, 179))
    stop = data.draw(st.integers(start + 1, 180))
    part = reader(coded).segment(start, stop, given_.tokens)
    whole = decode(coded, given_.tokens)
    assert (floats(part) == floats(whole)[:, :, :, start - 30 : stop - 30]).all()
    assert (part.start, part.stop, part.tokens) == (start, stop, given_.tokens[:stop])


def test_a_range_reads_its_sections_alone() -> None:
    coded = encode(segment(shape=(2, 2, 2, 640, 32)), level("int8"))
    asked: list[tuple[int, int]] = []

    def read_at(start: int, stop: int) -> bytes:
        asked.append((start, stop))
        return coded[start:stop]

    Reader(read_at, len(coded)).read(70, 100)
    assert sum(stop - start for start, stop in asked) < 0.12 * len(coded)


def test_range_outside_is_refused() -> None:
    found = reader(encode(segment(start=30), level("int4")))
    for start, stop in ((29, 40), (100, 181), (50, 50), (60, 50)):
        with pytest.raises(RemoteProtocolError):
            found.read(start, stop)


def test_too_few_ids_are_refused() -> None:
    with pytest.raises(RemoteProtocolError):
        decode(encode(segment(), level("int4")), range(149))


# --- a stranger's bytes ------------------------------------------------------------------------

SMALL = segment(shape=(2, 2, 1, 70, 8))
OBJECTS = {rung.name: encode(SMALL, rung) for rung in LADDER}


def outcome(data: bytes, limit: int = 1 << 22) -> KvSegment | None:
    """What it decodes to, or None for the one error that there may be."""
    try:
        return decode(data, range(1 << 12), limit)
    except RemoteProtocolError:
        return None


@pytest.mark.parametrize("name", NAMES)
def test_every_cut_is_refused(name: str) -> None:
    data = OBJECTS[name]
    assert all(outcome(data[:size]) is None for size in range(0, len(data), 7))
    assert outcome(data + b"\0") is None


@pytest.mark.parametrize("name", NAMES)
@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_changed_bytes_are_an_error_or_finite_values(name: str, data: st.DataObject) -> None:
    broken = bytearray(OBJECTS[name])
    for _ in range(data.draw(st.integers(1, 4))):
        head = data.draw(st.booleans())
        at = data.draw(st.integers(0, (HEAD_BYTES + 24 if head else len(broken)) - 1))
        broken[at] = data.draw(st.integers(0, 255))
    found = outcome(bytes(broken))
    assert found is None or bool(np.isfinite(floats(found)).all())


@given(st.binary(max_size=300))
@settings(max_examples=200, deadline=None)
def test_noise_behind_a_good_head_is_refused(noise: bytes) -> None:
    for name in ("int4", "int2+zstd"):
        assert outcome(OBJECTS[name][:HEAD_BYTES] + noise) is None
    assert outcome(noise) is None


@pytest.mark.parametrize("field", [
    {"layers": 0xFFFF}, {"layers": 0xFFFF, "kv_heads": 0xFFFF}, {"head_dim": 0xFFF8},
    {"block": 0xFFFF, "stop": 1 << 21}, {"layers": 0}, {"block": 0}, {"group": 3}, {"group": 0},
    {"key_steps": 1}, {"value_steps": 257}, {"stop": 0}, {"start": 70}, {"first": 40, "last": 31},
    {"stop": (1 << 21) + 1}, {"block": 1, "stop": 1 << 20}, {"steps": "symmetric"},
    {"coding": "fp16"}, {"key_steps": 5},
])  # fmt: skip
@pytest.mark.parametrize("name", ["int4", "int4+zstd"])
def test_a_head_that_promises_too_much_allocates_nothing(name: str, field: dict[str, Any]) -> None:
    data = OBJECTS[name]
    head = parsed(data[:HEAD_BYTES])
    lie = written(replace(head, **field), []) + data[HEAD_BYTES:]
    tracemalloc.start()
    try:
        assert outcome(lie) is None
        assert tracemalloc.get_traced_memory()[1] < 1 << 22
    finally:
        tracemalloc.stop()


def test_a_frame_that_grows_is_refused() -> None:
    import zstandard

    head = parsed(OBJECTS["raw+zstd"][:HEAD_BYTES])
    bomb = zstandard.ZstdCompressor().compress(bytes(1 << 26))
    section = struct.pack("<I", len(bomb)) + bomb
    lie = written(replace(head, layers=4096, block=70), [len(section)]) + section
    tracemalloc.start()
    try:
        assert outcome(lie) is None
        assert tracemalloc.get_traced_memory()[1] < 1 << 22
    finally:
        tracemalloc.stop()


def test_the_limit_is_the_callers() -> None:
    assert outcome(OBJECTS["int4"], limit=len(SMALL.data) // 2) is None
    assert outcome(OBJECTS["int4"], limit=len(SMALL.data) * 8) is not None


def test_a_newer_format_is_named() -> None:
    newer = bytearray(OBJECTS["int8"])
    newer[4] = 2
    with pytest.raises(RemoteProtocolError, match="format 2, and 1 is read here"):
        decode(newer, SMALL.tokens)


def test_symbols_beyond_the_last_step_are_refused() -> None:
    data = bytearray(OBJECTS["int8"])
    data[-1] = 255
    assert outcome(bytes(data)) is None


def test_objects_of_format_1_stay_as_they_are() -> None:
    """Objects on disk are read by later releases."""
    values = (np.arange(2 * 4 * 4, dtype=np.float32) - 16).reshape(1, 2, 1, 4, 4)
    given_ = KvSegment(
        "canonical", "float32", 3, 7, tuple(range(7)), values.tobytes(), values.shape
    )
    assert encode(given_, level("int8")).hex() == GOLDEN
    assert np.abs(floats(decode(bytes.fromhex(GOLDEN), given_.tokens)) - values).max() < 0.07


GOLDEN = (
    "4f524b5601000202000001000100040040000400ff00ff0003000000070000000000000000000000"
    "300000002030a02f202fa02e03010101222325284144494f60666d752026202ba02da02f7fa9d3fc"
    "c7d9ebfddae5f1fce4ecf5fd"
)


def test_without_zstandard_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def missing(name: str, *rest: Any) -> Any:
        if name == "zstandard":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", missing)
    assert decode(encode(SMALL, level("int4")), SMALL.tokens).stop == SMALL.stop
    for attempt in (
        lambda: encode(SMALL, level("int4+zstd")),
        lambda: decode(OBJECTS["int4+zstd"], SMALL.tokens),
    ):
        with pytest.raises(ConfigError, match=r'pip install "outrider\[edge\]"'):
            attempt()
