"""The code of hidden states: what is kept, what it costs in bytes, and bytes that mean nothing."""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from outrider.errors import EngineFailed, LocalProtocolError, RemoteProtocolError
from outrider.protocol.activations import CODECS, ActivationCodec, decode, encode

Floats = NDArray[np.float32]
LOSSY: tuple[ActivationCodec, ...] = ("bf16", "fp16", "int8", "int4")
WIDTHS = (1, 31, 32, 33, 256, 896, 1000)


def hidden(rows: int, width: int, *, seed: int = 0, outliers: int = 0) -> Floats:
    """Normal values, and in each row a few that are about a hundred times as large."""
    random = np.random.default_rng(seed)
    values = random.standard_normal((rows, width)).astype(np.float32)
    for row in values:
        row[random.choice(width, outliers, replace=False)] = random.uniform(50, 200, outliers)
    return values


def back(values: Floats, codec: ActivationCodec) -> Floats:
    return decode(encode(values, codec), codec, *values.shape)


# --- what is kept ------------------------------------------------------------------------------


@pytest.mark.parametrize("width", WIDTHS)
def test_fp32_keeps_every_bit(width: int) -> None:
    values = hidden(5, width)
    values[0, 0] = np.float32(-0.0)
    found = back(values, "fp32")
    assert np.array_equal(found.view(np.uint32), values.view(np.uint32))
    found[0, 0] = 1.0  # An engine may write into what it is given.


@dataclass(frozen=True)
class Bound:
    """Largest error of a value: a share of itself, or of its row's largest ordinary one."""

    of_value: float
    of_row: float


BOUNDS = {
    "bf16": Bound(2**-8, 0.0),
    "fp16": Bound(2**-11, 2**-24),
    "int8": Bound(0.0, 0.51 / 127),
    "int4": Bound(0.0, 0.51 / 7 * 1.01),
}


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("codec", LOSSY)
def test_the_error_is_bounded_by_ordinary_values(codec: ActivationCodec, width: int) -> None:
    outliers = min(width // 128, 2)
    values = hidden(9, width, seed=width, outliers=outliers)
    bound = BOUNDS[codec]
    ordinary = np.sort(np.abs(values), axis=1)[:, width - 1 - outliers][:, None]
    allowed = bound.of_value * np.abs(values) + bound.of_row * ordinary + 1e-30
    assert (np.abs(back(values, codec) - values) <= allowed).all()


@pytest.mark.parametrize("codec", ["int8", "int4"])
def test_outliers_come_back_whole(codec: ActivationCodec) -> None:
    values = hidden(16, 512, outliers=4)
    large = np.abs(values) > 30
    assert large.sum() > 40
    assert np.array_equal(back(values, codec)[large], values[large])


def test_outliers_are_bounded_in_number() -> None:
    values = np.full((2, 256), 1e-3, np.float32)
    values[:, ::4] = 50.0 + np.arange(64)
    assert len(encode(values, "int8")) == len(encode(hidden(2, 256, outliers=2), "int8"))
    assert np.abs(back(values, "int8") - values).max() <= 113 / 127


@pytest.mark.parametrize("codec", CODECS)
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_a_row_is_coded_by_itself(codec: ActivationCodec, data: st.DataObject) -> None:
    """What a lossy run says must not depend on how its rows were grouped."""
    rows, width = data.draw(st.integers(2, 6)), data.draw(st.integers(1, 300))
    values = hidden(rows, width, seed=data.draw(st.integers(0, 999)), outliers=min(width, 3))
    values[0] *= np.float32(data.draw(st.sampled_from([0.0, 1e-38, 1e4, 1e30])))
    cut = data.draw(st.integers(1, rows - 1))
    whole = back(values, codec)
    parts = np.concatenate([back(values[:cut], codec), back(values[cut:], codec)])
    assert np.array_equal(whole.view(np.uint32), parts.view(np.uint32))


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("scale", [0.0, 1e-45, 1e-38, 65000.0, 70000.0, 1e30, 3.4028235e38])
def test_any_finite_row_stays_finite_and_near(codec: ActivationCodec, scale: float) -> None:
    values = np.linspace(-1, 1, 64, dtype=np.float32)[None] * np.float32(scale)
    found = back(values, codec)
    share = {"fp32": 0.0, "bf16": 2**-8, "fp16": 2**-10, "int8": 1 / 127, "int4": 1 / 7}[codec]
    assert (np.abs(found.astype(np.float64) - values) <= share * scale * 1.02 + 1e-37).all()


@pytest.mark.parametrize("codec", CODECS)
def test_no_rows_at_all(codec: ActivationCodec) -> None:
    assert back(np.zeros((0, 64), np.float32), codec).shape == (0, 64)


# --- what it costs -----------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [1, 2, 64])
@pytest.mark.parametrize("width", [256, 384, 896, 2048, 4096])
def test_bytes_of_the_small_codes(width: int, rows: int) -> None:
    """Headers and the most outliers that there can be included."""
    values = hidden(rows, width, outliers=width // 128)
    size = {codec: len(encode(values, codec)) for codec in CODECS}
    assert size["int8"] <= 0.3 * size["fp32"]
    assert size["int8"] <= 0.55 * size["bf16"]
    assert size["int4"] <= 0.55 * size["int8"] * 1.1
    assert size["bf16"] - 6 == 2 * rows * width


# --- what is refused ---------------------------------------------------------------------------


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_not_sent(codec: ActivationCodec, wrong: float) -> None:
    values = hidden(2, 64)
    values[1, 7] = wrong
    with pytest.raises(EngineFailed):
        encode(values, codec)


@pytest.mark.parametrize("shape", [(4,), (2, 0), (1, 70_000), (70_000, 1)])
def test_shapes_that_do_not_fit(shape: tuple[int, ...]) -> None:
    with pytest.raises(LocalProtocolError):
        encode(np.zeros(shape, np.float32), "bf16")


@pytest.mark.parametrize("codec", CODECS)
def test_every_other_size_is_refused(codec: ActivationCodec) -> None:
    data = encode(hidden(3, 160, outliers=1), codec)
    for end in {*range(20), *range(20, len(data), 41), len(data) - 1}:
        with pytest.raises(RemoteProtocolError):
            decode(data[:end], codec, 3, 160)
    with pytest.raises(RemoteProtocolError):
        decode(data + b"\0", codec, 3, 160)


@pytest.mark.parametrize("codec", CODECS)
@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_noise_is_refused_or_finite(codec: ActivationCodec, data: st.DataObject) -> None:
    good = bytearray(encode(hidden(2, 96, outliers=1), codec))
    for _ in range(data.draw(st.integers(1, 8))):
        good[data.draw(st.integers(0, len(good) - 1))] = data.draw(st.integers(0, 255))
    try:
        found = decode(bytes(good), codec, 2, 96)
    except RemoteProtocolError:
        return
    assert found.shape == (2, 96) and np.isfinite(found).all()


@pytest.mark.parametrize("codec", CODECS)
def test_another_shape_or_code_than_agreed(codec: ActivationCodec) -> None:
    data = encode(hidden(2, 64), codec)
    other = CODECS[(CODECS.index(codec) + 1) % len(CODECS)]
    wrong: tuple[tuple[ActivationCodec, int, int], ...] = (
        (other, 2, 64),
        (codec, 1, 64),
        (codec, 2, 32),
        (codec, 64, 2),
    )
    for asked, rows, width in wrong:
        with pytest.raises(RemoteProtocolError):
            decode(data, asked, rows, width)


@pytest.mark.parametrize(
    "values", [(np.nan, 0.0), (np.inf, 0.0), (0.0, -np.inf)], ids=["nan", "inf", "-inf"]
)
def test_values_that_are_not_finite_are_refused(values: tuple[float, float]) -> None:
    data = struct.pack("<BBHH2f", 1, 0, 1, 2, *values)
    with pytest.raises(RemoteProtocolError, match="can not be read"):
        decode(data, "fp32", 1, 2)


# --- golden bytes ------------------------------------------------------------------------------

ROW = np.array([[0.0, 1.0, -2.5, 0.1, 100.0, -0.3, 65536.0, 3e-5]], np.float32)
GOLDEN: dict[ActivationCodec, str] = {
    "fp32": "010001000800000000000000803f000020c0cdcccc3d0000c8429a9999be0000804782a8fb37",
    "bf16": "0101010008000000803f20c0cd3dc8429abe8047fc37",
    "fp16": "010201000800020000003400b96626404ecdac00747e00",
    "int8": "0103010008002693493f0001fd007f00000001060000008047",
    "int4": "010401000800654188888f8888888888888888888888888801060000008047",
}


@pytest.mark.parametrize("codec", CODECS)
def test_golden_bytes(codec: ActivationCodec) -> None:
    """Written down once; a difference is another format, with a number of its own."""
    assert encode(ROW, codec).hex() == GOLDEN[codec]
