"""Stage messages: there and back, golden bytes, and bytes that mean nothing good."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from outrider.engine import LayerRange, Picked, RowRule, StageInfo, StageSpan
from outrider.errors import (
    EngineFull,
    HandshakeRefused,
    LocalProtocolError,
    OutriderError,
    RemoteProtocolError,
)
from outrider.protocol import stage_codec as codec
from outrider.protocol import wire_pb2 as pb
from outrider.protocol.sampling import Sampling, SamplingParams, TokenLogprobs
from outrider.protocol.stages import (
    Attach,
    Attached,
    Beat,
    Broken,
    CloseSlot,
    Detach,
    Failed,
    Forward,
    Hop,
    HostedModel,
    LoadedStage,
    NextStage,
    OpenSlot,
    Pass,
    Passed,
    RewindSlot,
    StageDown,
    StageHost,
    StageLoad,
    StageOp,
    StageUp,
)

SAMPLED = Sampling(
    SamplingParams(temperature=0.7, top_k=9, logit_bias=((3, -1.5),)), 2**127 + 5, 2, 11
)
PASS = Pass(
    7,
    (
        StageSpan(3, 40, 2, (11, 12), first=1, want="logprobs", top_n=5),
        StageSpan(0, 0, 1, (4294967295,)),
    ),
    b"\x01\x02\x03",
    (Hop(1234, 0, 99),),
)
PICKED = (
    Picked((5, 6), (TokenLogprobs(-0.5, ((5, -0.5), (9, -1.25))), TokenLogprobs(-2.0, ()))),
    Picked((7,), children=((7, 8, 9),)),
    Picked(()),
)
HOST = StageHost(
    "shelf", "phone", 1 << 33, 12, 0.25, ("torch", "onnx"),
    (HostedModel("t", "ab" * 32, 6),),
    (LoadedStage("ab" * 32, LayerRange(0, 3, True, False), 99, True),), 1, 5, True,
)  # fmt: skip
LOAD = StageLoad(
    bytes(range(16)), 1, bytes(range(32)), LayerRange(3, 6, False, True), "t", "ab" * 32,
    "torch", "cpu", "float32", "plain", 4, 64, 128, (("chunks", "2"),),
)  # fmt: skip
INFO = StageInfo(
    "torch", "t", "cpu", "float32", LayerRange(3, 6, False, True), 6, 96, "vv", 512, 128, 4, 64,
    True, RowRule(4, 4, True), "ww", "nn", 1 << 30,
)  # fmt: skip
OPS: tuple[StageOp, ...] = (OpenSlot(1, SAMPLED), OpenSlot(2), RewindSlot(2, 9), CloseSlot(1), PASS)
UPS: tuple[StageUp, ...] = (
    Attach(bytes(16), 0, "int8", NextStage("[::1]:5", bytes(32), b"PEM")),
    Attach(bytes(16), 3),
    Detach(),
    Beat(5, 6, True),
)
DOWNS: tuple[StageDown, ...] = (
    Attached(False, "too far"),
    Passed(7, PICKED, (Hop(1, 2, 3), Hop(4, 5, 6))),
    Forward(b"anything"),
    Beat(1, 2, False),
)

# --- there and back ----------------------------------------------------------------------------


@pytest.mark.parametrize("op", OPS, ids=lambda op: type(op).__name__)
def test_orders_round_trip(op: StageOp) -> None:
    assert codec.decode_op(codec.encode_op(op)) == op


@pytest.mark.parametrize("message", UPS, ids=lambda m: type(m).__name__)
def test_up_round_trip(message: StageUp) -> None:
    assert codec.decode_up(codec.encode_up(message)) == message


@pytest.mark.parametrize("message", DOWNS, ids=lambda m: type(m).__name__)
def test_down_round_trip(message: StageDown) -> None:
    assert codec.decode_down(codec.encode_down(message)) == message


def test_descriptions_and_loads_round_trip() -> None:
    assert codec.decode_host(codec.encode_host(HOST)) == HOST
    assert codec.decode_load(codec.encode_load(LOAD)) == LOAD
    assert codec.decode_loaded(codec.encode_loaded(INFO)) == INFO
    bare = StageLoad(bytes(16), 0, bytes(32), LayerRange(0, 6, True, True))
    assert codec.decode_load(codec.encode_load(bare)) == bare
    assert codec.decode_reached(codec.encode_reached(63)) == 63


def test_scores_come_back_bit_by_bit() -> None:
    scores = np.array([[1.5, -np.inf, 3e38], [0.1, -0.0, 1e-45]], np.float32)
    sent = Passed(1, (Picked((0, 1), scores=scores),))
    found = codec.decode_down(codec.encode_down(sent))
    assert isinstance(found, Passed) and found.picked[0].scores is not None
    assert np.array_equal(found.picked[0].scores.view(np.uint32), scores.view(np.uint32))


@pytest.mark.parametrize("kind", [Failed, Broken])
def test_errors_keep_their_class_and_text(kind: Any) -> None:
    error = EngineFull("no room", why="full", effect="none", todo="wait")
    message = kind(9, error) if kind is Failed else kind(error)
    found = codec.decode_down(codec.encode_down(message))
    assert isinstance(found, Failed | Broken)
    assert type(found.error) is EngineFull and str(found.error) == str(error)


def test_a_pass_of_a_few_rows_is_a_small_message() -> None:
    spans = (StageSpan(0, 1000, 5, (1, 2, 3, 4, 5)),)
    assert len(codec.encode_op(Pass(2**40, spans, b"", (Hop(10**6, 10, 10),) * 3))) <= 120


# --- golden bytes ------------------------------------------------------------------------------

GOLDEN: dict[str, str] = {
    "query": "0d01000000",
    "host": (
        "0d0100000012057368656c661a0570686f6e65210000000002000000290c000000000000003100000000"
        "0000d03f3a05746f7263683a046f6e6e78424a0a01741240616261626162616261626162616261626162"
        "616261626162616261626162616261626162616261626162616261626162616261626162616261626162"
        "616261621d060000004a5c0a406162616261626162616261626162616261626162616261626162616261"
        "6261626162616261626162616261626162616261626162616261626162616261626162120a1503000000"
        "1d01000000196300000000000000250100000055010000005d050000006501000000"
    ),
    "load": (
        "0d010000001210000102030405060708090a0b0c0d0e0f1d010000002220000102030405060708090a0b"
        "0c0d0e0f101112131415161718191a1b1c1d1e1f2a0f0d03000000150600000025010000003201743a40"
        "616261626162616261626162616261626162616261626162616261626162616261626162616261626162"
        "616261626162616261626162616261626162616261624205746f7263684a036370755207666c6f617433"
        "325d0100000065040000006d4000000075800000007a066368756e6b737a0132"
    ),
    "loaded": (
        "0d010000001205746f7263681a017422036370752a07666c6f61743332320f0d03000000150600000025"
        "010000003d0600000045600000004a02767655000200005d8000000065040000006d4000000075010000"
        "007d040000008501040000008d010100000092010277779a01026e6ea1010000004000000000"
    ),
    "op 0": (
        "0a530d01000000124c0a2e09666666666666e63f150900000019000000000000f03f29000000000000f0"
        "3f420c03000000000000000000f8bf1210050000000000000000000000000000801d02000000250b0000"
        "00"
    ),
    "op 1": "0a050d02000000",
    "op 2": "120a0d020000001509000000",
    "op 3": "1a050d01000000",
    "op 4": (
        "225809070000000000000012280300000028000000020000000100000001000500000000000000000001"
        "00000000000000000000001a0c0b0000000c000000ffffffff22030102032a10d2040000000000000000"
        "000063000000"
    ),
    "up 0": (
        "0a4e0d0100000012100000000000000000000000000000000025040000002a300a075b3a3a315d3a3512"
        "2000000000000000000000000000000000000000000000000000000000000000001a0350454d"
    ),
    "up 1": "0a210d010000001210000000000000000000000000000000001d030000002501000000",
    "up 2": "1200",
    "up 3": "1a170905000000000000001106000000000000001d01000000",
    "down 0": "0a091207746f6f20666172",
    "down 1": (
        "129b0109070000000000000012510a08050000000600000015030000001a40000000000000e0bf050000"
        "00000000000000e0bf09000000000000000000f4bf00000000000000c0ffffffff0000000000000000ff"
        "ffffff000000000000000012190a040700000025040000002a0c07000000080000000900000012001a20"
        "0100000000000000020000000300000004000000000000000500000006000000"
    ),
    "down 2": "2208616e797468696e67",
    "down 3": "3212090100000000000000110200000000000000",
    "reached": "0d02000000",
}


def bytes_of_all() -> dict[str, bytes]:
    found = {"query": codec.encode_query(), "host": codec.encode_host(HOST)}
    found |= {"load": codec.encode_load(LOAD), "loaded": codec.encode_loaded(INFO)}
    found |= {f"op {i}": codec.encode_op(op) for i, op in enumerate(OPS)}
    found |= {f"up {i}": codec.encode_up(message) for i, message in enumerate(UPS)}
    found |= {f"down {i}": codec.encode_down(message) for i, message in enumerate(DOWNS)}
    return found | {"reached": codec.encode_reached(2)}


@pytest.mark.parametrize("name", bytes_of_all())
def test_golden_bytes(name: str) -> None:
    """Written down once; a difference is another protocol version."""
    assert bytes_of_all()[name].hex() == GOLDEN[name]


# --- versions ----------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [0, 2, 2**32 - 1])
def test_another_version_is_refused_naming_both(version: int) -> None:
    attach = Attach(bytes(16), 0, version=version)
    cases: tuple[Callable[[], object], ...] = (
        lambda: codec.decode_query(codec.encode_query(version)),
        lambda: codec.decode_load(codec.encode_load(replace(LOAD, version=version))),
        lambda: codec.decode_up(codec.encode_up(attach)),
        lambda: codec.decode_host(codec.encode_host(replace(HOST, version=version))),
    )
    for case in cases:
        with pytest.raises(HandshakeRefused) as found:
            case()
        assert str(version) in found.value.why and "1" in found.value.why


# --- what is refused ---------------------------------------------------------------------------

LOADS: dict[str, dict[str, Any]] = {
    "pipeline": {"pipeline": bytes(15)},
    "ticket": {"ticket": bytes(33)},
    "index": {"index": 64},
    "layers": {"layers": pb.LayerSpan(start=3, stop=2)},
    "flag": {"layers": pb.LayerSpan(stop=2, head=2)},
    "name": {"model": "m" * 257},
    "slots": {"max_slots": 0},
    "rows": {"max_rows": 65536},
    "numerics": {"numerics": 2},
    "options": {"options": ["odd"]},
}


@pytest.mark.parametrize("name", LOADS)
def test_a_load_that_is_out_of_range(name: str) -> None:
    wire = pb.StageLoad.FromString(codec.encode_load(LOAD))
    for key, value in LOADS[name].items():
        wire.ClearField(key)
        wire.MergeFrom(pb.StageLoad(**{key: value}))
    with pytest.raises(RemoteProtocolError):
        codec.decode_load(wire.SerializeToString())


def span(*fields: int) -> bytes:
    return codec._SPAN.pack(*fields)


PASSES: dict[str, dict[str, Any]] = {
    "no span": {},
    "a cut span": {"spans": span(0, 0, 1, 0, 0, 0)[:-1], "tokens": bytes(4)},
    "no row": {"spans": span(0, 0, 0, 0, 0, 0)},
    "tokens left over": {"spans": span(0, 0, 1, 0, 0, 0), "tokens": bytes(8)},
    "tokens missing": {"spans": span(0, 0, 2, 0, 0, 0), "tokens": bytes(4)},
    "half a token": {"spans": span(0, 0, 1, 0, 0, 0), "tokens": bytes(6)},
    "a slot twice": {"spans": 2 * span(1, 0, 1, 0, 0, 0), "tokens": bytes(8)},
    "slot": {"spans": span(65536, 0, 1, 0, 0, 0), "tokens": bytes(4)},
    "base": {"spans": span(0, 2**32 - 1, 1, 0, 0, 0), "tokens": bytes(4)},
    "first": {"spans": span(0, 0, 1, 2, 0, 0), "tokens": bytes(4)},
    "want": {"spans": span(0, 0, 1, 0, 9, 0), "tokens": bytes(4)},
    "top": {"spans": span(0, 0, 1, 0, 1, 2000), "tokens": bytes(4)},
    "a cut hop": {"spans": span(0, 0, 1, 0, 0, 0), "tokens": bytes(4), "trail": bytes(15)},
    "a long trail": {"spans": span(0, 0, 1, 0, 0, 0), "tokens": bytes(4), "trail": bytes(1040)},
    "number": {"spans": span(0, 0, 1, 0, 0, 0), "tokens": bytes(4), "number": 0},
}


@pytest.mark.parametrize("name", PASSES)
def test_a_pass_that_is_out_of_range(name: str) -> None:
    wire = pb.StageOp(work=pb.Pass(**{"number": 1, **PASSES[name]}))
    with pytest.raises(RemoteProtocolError):
        codec.decode_op(wire.SerializeToString())


PICKS: dict[str, dict[str, Any]] = {
    "half an id": {"ids": bytes(6)},
    "logprobs": {"ids": bytes(4), "logprobs": 2, "logprob_rows": bytes(8)},
    "above 0": {"ids": bytes(4), "logprobs": 1, "logprob_rows": np.float64(0.5).tobytes()},
    "no number": {"ids": bytes(4), "logprobs": 1, "logprob_rows": np.float64("nan").tobytes()},
    "children": {"ids": bytes(4), "children": 3, "child_ids": bytes(4)},
    "scores": {"ids": bytes(4), "scores": 5, "score_rows": bytes(4)},
}


@pytest.mark.parametrize("name", PICKS)
def test_picks_that_are_out_of_range(name: str) -> None:
    passed = pb.Passed(number=1, picked=[pb.StagePicked(**PICKS[name])])
    with pytest.raises(RemoteProtocolError):
        codec.decode_down(pb.StageDown(passed=passed).SerializeToString())


DECODERS: tuple[Callable[[bytes], object], ...] = (
    codec.decode_op,
    codec.decode_up,
    codec.decode_down,
    codec.decode_load,
    codec.decode_loaded,
    codec.decode_host,
    codec.decode_query,
    codec.decode_reached,
)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_noise_gives_a_message_or_a_typed_error(data: st.DataObject) -> None:
    kinds = bytes_of_all()
    good = bytearray(kinds[data.draw(st.sampled_from(sorted(kinds)))])
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, len(good)))
        good[at : at + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=2))
    for decode in DECODERS:
        try:
            decode(bytes(good))
        except (RemoteProtocolError, HandshakeRefused):
            pass


@pytest.mark.parametrize("data", [b"", b"\xff\xff\xff", pb.StageOp().SerializeToString()])
def test_a_message_of_no_kind(data: bytes) -> None:
    for decode in (codec.decode_op, codec.decode_up, codec.decode_down):
        with pytest.raises(RemoteProtocolError):
            decode(data)


# --- what is not sent --------------------------------------------------------------------------

WRONG: tuple[StageOp, ...] = (
    OpenSlot(-1),
    RewindSlot(0, 2**32),
    Pass(1, (StageSpan(0, 0, 2, (1,)),)),
    Pass(1, (StageSpan(0, 0, 1, (-1,)),)),
    Pass(1, (StageSpan(0, 0, 1, (1,), np.zeros((1, 4), np.float32)),)),
    Pass(-1, (StageSpan(0, 0, 1, (1,)),)),
)


@pytest.mark.parametrize("op", WRONG)
def test_numbers_that_do_not_fit_are_our_own_bug(op: StageOp) -> None:
    with pytest.raises(LocalProtocolError):
        codec.encode_op(op)


def test_an_error_of_another_release_is_a_plain_one() -> None:
    wire = pb.StageDown(failed=pb.Failed(number=1, error=b"\xc1"))
    found = codec.decode_down(wire.SerializeToString())
    assert isinstance(found, Failed) and type(found.error) is OutriderError
