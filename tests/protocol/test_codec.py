"""The codec: round trips, fixed sizes, and bytes that mean nothing good."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from outrider.errors import HandshakeRefused, LocalProtocolError, RemoteProtocolError
from outrider.protocol import codec
from outrider.protocol import wire_pb2 as pb
from outrider.protocol.messages import (
    SLOT_CLASSES,
    VERSION,
    ChoiceOpen,
    Close,
    Commit,
    Finished,
    Heartbeat,
    Hint,
    Open,
    Opened,
    Reason,
)
from outrider.protocol.sampling import SamplingParams, TokenLogprobs
from tests.protocol import strategies

SLOTS = st.sampled_from(SLOT_CLASSES)
TOPS = st.sampled_from([None, 0, 1, 5, 20])
SMALL = Open(
    session=bytes(16),
    fence=1,
    prompt=(1, 2, 3),
    choices=(ChoiceOpen(0),),
    sampling=SamplingParams(),
    seed=7,
    max_tokens=16,
)


# --- there and back ----------------------------------------------------------------------------


@settings(max_examples=100)
@given(st.data(), SLOTS)
def test_up_round_trip(data: st.DataObject, slots: int) -> None:
    message = data.draw(strategies.up(slots))
    assert codec.decode_up(codec.encode_up(message, slots), slots) == message


@settings(max_examples=100)
@given(st.data(), SLOTS, TOPS)
def test_down_round_trip(data: st.DataObject, slots: int, top: int | None) -> None:
    message = data.draw(strategies.down(slots, top))
    assert codec.decode_down(codec.encode_down(message, slots, top), slots, top) == message


@settings(max_examples=30)
@given(strategies.NAMES)
def test_describe_round_trip(model: str) -> None:
    for wanted in (True, False):
        data = codec.encode_describe(VERSION, model, with_tokenizer=wanted)
        assert codec.decode_describe(data) == (VERSION, model, wanted)


@settings(max_examples=30)
@given(st.lists(strategies.MODELS, max_size=3))
def test_description_round_trip(models: list[Any]) -> None:
    data = codec.encode_description(VERSION, models)
    assert codec.decode_description(data) == (VERSION, tuple(models))


# --- sizes -------------------------------------------------------------------------------------


@settings(max_examples=50)
@given(st.data(), SLOTS, TOPS)
def test_hints_and_commits_of_a_class_have_one_size(
    data: st.DataObject, slots: int, top: int | None
) -> None:
    hint, commit = Hint(1, 0, 0, 0, ()), Commit(1, 0, 0, (1,))
    other = data.draw(strategies.hints(slots))
    assert len(codec.encode_up(other, slots)) == len(codec.encode_up(hint, slots))
    assert len(codec.pack_hint(other, slots)) == 14 + 4 * slots
    drawn = data.draw(strategies.commits(slots, top))
    more, checked = replace(drawn, check=b""), replace(drawn, check=bytes(32))
    assert len(codec.encode_down(more, slots, top)) == len(codec.encode_down(commit, slots, top))
    each = 4 if top is None else 4 + 4 + 8 * top
    assert len(codec.pack_commit(more, slots, top)) == 19 + each * slots
    assert len(codec.pack_commit(checked, slots, top)) == 19 + each * slots + 33


def open_size(message: Open) -> int:
    return pb.Up.FromString(codec.encode_up(message, 8)).open.ByteSize()


@settings(max_examples=50)
@given(strategies.OPENS)
def test_an_open_fills_a_power_of_two(message: Open) -> None:
    size = open_size(message)
    assert size >= 1024 and size.bit_count() == 1


def test_no_size_of_content_misses_the_power_of_two() -> None:
    """Where the padding's own length grows by a byte, one size can not be reached."""
    short = [replace(SMALL, stop=(b"s" * length,)) for length in range(500, 1000)]
    long = [
        replace(SMALL, prompt=(1,) * count, stop=(b"s" * rest,))
        for count in range(4020, 4080)
        for rest in (1, 2, 3, 4)
    ]
    for message in (*short, *long):
        size = open_size(message)
        assert size >= 1024 and size.bit_count() == 1


def test_opens_of_other_content_have_one_size() -> None:
    other = replace(
        SMALL,
        prompt=tuple(range(2**31, 2**31 + 90)),
        sampling=SamplingParams(0.7, 3, 0.9, 0.1, 1.2, 0.5, 0.5, ((1, 2.0),)),
        seed=2**128 - 1,
        stop=(b"stop", b"\xff\xfe"),
        model="another",
    )
    assert len(codec.encode_up(other, 8)) == len(codec.encode_up(SMALL, 8))
    longer = replace(SMALL, prompt=tuple(range(400)))
    assert len(codec.encode_up(longer, 8)) > len(codec.encode_up(SMALL, 8))


def test_ends_and_heartbeats_tell_nothing_by_their_size_but_what_is_in_fixed_fields() -> None:
    sizes = {len(codec.encode_up(Heartbeat(sent, sent + 1), 8)) for sent in (1, 2**40, 2**60)}
    assert len(sizes) == 1
    done = [Finished(1, 0, Reason.STOP, n, 1, 1, 1, 1) for n in (1, 2**31)]
    assert len({len(codec.encode_down(each, 8, None)) for each in done}) == 1


# --- what comes in -----------------------------------------------------------------------------


def only_refuses(data: bytes, slots: int, top: int | None) -> None:
    """Every decoder answers with a message or a typed refusal, whatever the bytes are."""
    for decode in (
        lambda: codec.decode_up(data, slots),
        lambda: codec.decode_down(data, slots, top),
        lambda: codec.decode_describe(data),
        lambda: codec.decode_description(data),
        lambda: codec.unpack_hint(data, slots),
        lambda: codec.unpack_commit(data, slots, top),
    ):
        try:
            decode()
        except (RemoteProtocolError, HandshakeRefused) as error:
            assert error.what


@settings(max_examples=100)
@given(st.binary(max_size=300), SLOTS, TOPS)
def test_garbage_is_refused_and_nothing_else_happens(
    data: bytes, slots: int, top: int | None
) -> None:
    only_refuses(data, slots, top)


@settings(max_examples=100)
@given(st.data(), SLOTS, TOPS)
def test_bent_messages_are_refused_or_read(
    data: st.DataObject, slots: int, top: int | None
) -> None:
    """Truncated, or with some bytes changed: near to sound messages lie the deepest paths."""
    good = data.draw(
        strategies.up(slots).map(lambda m: codec.encode_up(m, slots))
        | strategies.down(slots, top).map(lambda m: codec.encode_down(m, slots, top))
        | st.lists(strategies.MODELS, max_size=2).map(lambda m: codec.encode_description(1, m))
    )
    bent = bytearray(good[: data.draw(st.integers(0, len(good)))])
    for _ in range(data.draw(st.integers(0, 4)) if bent else 0):
        bent[data.draw(st.integers(0, len(bent) - 1))] = data.draw(st.integers(0, 255))
    only_refuses(bytes(bent), slots, top)


@settings(max_examples=60)
@given(st.data(), SLOTS, TOPS)
def test_fixed_layouts_of_any_content_are_refused_or_consistent(
    data: st.DataObject, slots: int, top: int | None
) -> None:
    raw = data.draw(st.binary(min_size=codec.hint_size(slots), max_size=codec.hint_size(slots)))
    try:
        hint = codec.unpack_hint(raw, slots)
    except RemoteProtocolError:
        return
    assert len(hint.tokens) <= slots and hint.base >= hint.seen


@pytest.mark.parametrize(
    "change",
    [
        {"version": 0},
        {"model": "m" * 257},
        {"tokenizer": 2},
    ],
    ids=str,
)
def test_a_describe_out_of_range_is_refused(change: dict[str, Any]) -> None:
    wire = pb.DescribeRequest(version=VERSION)
    for name, value in change.items():
        setattr(wire, name, value)
    with pytest.raises((RemoteProtocolError, HandshakeRefused)):
        codec.decode_describe(wire.SerializeToString())


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", "n" * 257),
        ("numeric_class", "n" * 257),
        ("bos", "n" * 257),
        ("context", 0),
        ("vocabulary_size", 0),
        ("exact", 2),
        ("end_ids", bytes(5)),
        ("end_ids", bytes(4 * 257)),
        ("chat_template", "t" * (codec.MAX_TEMPLATE + 1)),
    ],
)
def test_a_description_out_of_range_is_refused(field: str, value: Any) -> None:
    model = pb.ModelDescription(vocabulary_size=1, context=1)
    sound = pb.Description(version=VERSION, models=[model]).SerializeToString()
    assert len(codec.decode_description(sound)[1]) == 1
    setattr(model, field, value)
    with pytest.raises(RemoteProtocolError):
        codec.decode_description(
            pb.Description(version=VERSION, models=[model]).SerializeToString()
        )


def test_too_many_models_are_refused() -> None:
    model = pb.ModelDescription(vocabulary_size=1, context=1)
    wire = pb.Description(version=VERSION, models=[model] * (codec.MAX_MODELS + 1))
    with pytest.raises(RemoteProtocolError):
        codec.decode_description(wire.SerializeToString())


def test_refusals_hold_no_content() -> None:
    wire = pb.Up.FromString(codec.encode_up(replace(SMALL, model="secret" * 20), 8))
    wire.open.model = "secret" * 60
    with pytest.raises(RemoteProtocolError) as caught:
        codec.decode_up(wire.SerializeToString(), 8)
    assert "secret" not in str(caught.value)


# --- what goes out -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "message",
    [
        Hint(1, 0, 0, 0, tuple(range(9))),
        Hint(1, 0, 0, 0, (-1,)),
        Hint(1, 0, 0, 0, (2**32,)),
        Hint(1, 256, 0, 0, ()),
        Hint(2**32, 0, 0, 0, ()),
        replace(SMALL, seed=2**128),
        replace(SMALL, prompt=(-1,)),
        replace(SMALL, max_tokens=2**32),
        replace(SMALL, choices=(ChoiceOpen(-1),)),
        Heartbeat(-1),
    ],
    ids=str,
)
def test_up_that_does_not_fit_is_our_own_bug(message: Any) -> None:
    with pytest.raises(LocalProtocolError):
        codec.encode_up(message, 8)


@pytest.mark.parametrize(
    ("message", "top"),
    [
        (Commit(1, 0, 0, ()), None),
        (Commit(1, 0, 0, tuple(range(9))), None),
        (Commit(1, 0, 0, (1,), hint_rows=256), None),
        (Commit(1, 0, 0, (1, 2), logprobs=(TokenLogprobs(-1.0, ()),)), 0),
        (Commit(1, 0, 0, (1,), logprobs=(TokenLogprobs(-1e300, ()),)), 0),
        (Finished(1, 0, Reason.STOP, -1), None),
        (Heartbeat(2**64), None),
    ],
    ids=str,
)
def test_down_that_does_not_fit_is_our_own_bug(message: Any, top: int | None) -> None:
    with pytest.raises(LocalProtocolError):
        codec.encode_down(message, 8, top)


def test_measured_numbers_that_are_too_large_are_capped() -> None:
    commit = Commit(1, 0, 0, (1,), wish=1000, rows=10**6, step_us=10**12)
    got = codec.unpack_commit(codec.pack_commit(commit, 8, None), 8, None)
    assert (got.wish, got.rows, got.step_us) == (255, 65535, 2**32 - 1)


def test_a_small_vocabulary_leaves_places_for_logprobs_empty() -> None:
    found = (TokenLogprobs(-0.5, ((0, -0.5), (1, -1.0))),)
    commit = Commit(1, 0, 0, (0,), logprobs=found)
    assert codec.unpack_commit(codec.pack_commit(commit, 8, 5), 8, 5).logprobs == found


# --- versions ----------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [0, VERSION + 1, 2**32 - 1])
def test_another_version_is_refused_by_both_names(version: int) -> None:
    wire = pb.Up.FromString(codec.encode_up(SMALL, 8))
    wire.open.version = version
    with pytest.raises(HandshakeRefused) as caught:
        codec.decode_up(wire.SerializeToString(), 8)
    assert f"edge has {version}, cloud has {VERSION}" in str(caught.value)


def test_a_newer_version_is_refused_before_its_fields_are_read() -> None:
    wire = pb.Up(open=pb.Open(version=VERSION + 1, slots=9)).SerializeToString()
    with pytest.raises(HandshakeRefused):
        codec.decode_up(wire, 8)


@pytest.mark.parametrize("version", [0, VERSION + 1])
def test_an_edge_refuses_the_answers_of_another_version(version: int) -> None:
    opened = Opened(
        1,
        "m",
        "a",
        "b",
        "c",
        exact=True,
        context=9,
        ahead=9,
        heartbeat_ms=9,
        resumed=False,
        version=version,
    )
    for decode in (
        lambda: codec.decode_down(codec.encode_down(opened, 8, None), 8, None),
        lambda: codec.decode_description(codec.encode_description(version, ())),
    ):
        with pytest.raises(HandshakeRefused) as caught:
            decode()
        assert f"edge has {VERSION}, cloud has {version}" in str(caught.value)


def test_a_cloud_refuses_to_describe_itself_to_a_newer_edge() -> None:
    with pytest.raises(HandshakeRefused, match="protocol version"):
        codec.decode_describe(codec.encode_describe(VERSION + 1, "", with_tokenizer=False))


def test_the_version_before_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the next release will see this one."""
    data = codec.encode_up(SMALL, 8)
    monkeypatch.setattr(codec, "VERSION", VERSION + 1)
    assert codec.decode_up(data, 8) == SMALL
    monkeypatch.setattr(codec, "OLDEST_VERSION", VERSION + 1)
    with pytest.raises(HandshakeRefused):
        codec.decode_up(data, 8)


def test_unknown_fields_are_passed_over() -> None:
    """A minor addition of a later release does not break this one."""
    extra = bytes.fromhex("fa0103abcdef")
    wire = pb.Up.FromString(codec.encode_up(SMALL, 8))
    grown = pb.Open.FromString(wire.open.SerializeToString() + extra)
    assert codec.decode_up(pb.Up(open=grown).SerializeToString(), 8) == SMALL


def test_what_never_travels_has_no_field() -> None:
    """No text, and no draft probabilities: ids and numbers alone."""
    names = {f.name for kind in (Open, Hint, Close, Heartbeat) for f in fields(kind)}
    assert not names & {"text", "messages", "probabilities", "scores", "user"}
