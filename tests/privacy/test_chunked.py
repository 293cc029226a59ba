"""Sealed objects against Wycheproof, against every change, and at random places."""

from __future__ import annotations

import hashlib
import random
import zlib
from itertools import count

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from outrider.errors import SealBroken
from outrider.privacy import chunked
from tests.privacy import wycheproof

KEY = bytes(range(32))
CONTEXT = b"what it is for"
VECTORS = [test for _, test in wycheproof.cases("c2sp_chunked_encryption_aes_256_gcm")]


def reader(key: bytes, context: bytes, sealed: bytes | bytearray) -> chunked.Reader:
    return chunked.Reader(key, context, lambda a, b: bytes(sealed[a:b]), len(sealed))


@pytest.mark.parametrize("test", VECTORS, ids=lambda t: f"{t['tcId']}-{t['comment'][:40]}")
def test_vectors_are_opened_and_sealed_as_they_stand(test: dict[str, object]) -> None:
    key, context = bytes.fromhex(str(test["key"])), bytes.fromhex(str(test["ctx"]))
    sealed = zlib.decompress(bytes.fromhex(str(test["ct"])))
    if test["result"] == "invalid":
        with pytest.raises((SealBroken, ValueError)):
            chunked.open_all(key, context, sealed)
        with pytest.raises((SealBroken, ValueError)):
            at_random = reader(key, context, sealed)
            at_random.read(0, at_random.size)
        return
    opened = chunked.open_all(key, context, sealed)
    assert len(opened) == test["msgLength"]
    assert hashlib.sha512(opened).hexdigest() == test["msgSha512"]
    again = chunked.seal(key, context, opened, lambda n: sealed[:n])
    assert again == sealed
    assert reader(key, context, sealed).read(0, len(opened)) == opened


def test_all_vectors_are_there() -> None:
    assert len(VECTORS) == 35
    assert {test["result"] for test in VECTORS} == {"valid", "invalid"}


@pytest.mark.parametrize("size", [0, 1, 16383, 16384, 16385, 40000])
def test_every_flipped_byte_is_refused(size: int) -> None:
    message = random.Random(size).randbytes(size)
    sealed = chunked.seal(KEY, CONTEXT, message)
    # Every byte of the head and of the tags, and some of each chunk.
    places = {*range(chunked.HEAD), *range(len(sealed) - 17, len(sealed))}
    places |= set(range(chunked.HEAD, len(sealed), 997))
    for place in sorted(places):
        bad = bytearray(sealed)
        bad[place] ^= 1 << (place % 8)
        with pytest.raises(SealBroken):
            chunked.open_all(KEY, CONTEXT, bad)


@pytest.mark.parametrize("size", [0, 5, 16384, 33000])
def test_every_cut_and_every_tail_is_refused(size: int) -> None:
    sealed = bytes(chunked.seal(KEY, CONTEXT, bytes(size)))
    steps = {*range(0, 140), *range(0, len(sealed), 1009), len(sealed) - chunked.STEP}
    for stop in sorted(step for step in steps if 0 <= step < len(sealed)):
        with pytest.raises(SealBroken):
            chunked.open_all(KEY, CONTEXT, sealed[:stop])
    for tail in (b"\0", bytes(16), bytes(chunked.STEP)):
        with pytest.raises(SealBroken):
            chunked.open_all(KEY, CONTEXT, sealed + tail)


def test_chunks_can_not_change_places_nor_objects() -> None:
    first, second = (chunked.seal(KEY, CONTEXT, bytes(40000)) for _ in range(2))
    step, head = chunked.STEP, chunked.HEAD
    swapped = bytearray(first)
    swapped[head : head + step], swapped[head + step : head + 2 * step] = (
        first[head + step : head + 2 * step],
        first[head : head + step],
    )
    spliced = first[: head + step] + second[head + step :]
    for bad in (swapped, spliced):
        with pytest.raises(SealBroken):
            chunked.open_all(KEY, CONTEXT, bad)


def test_another_key_or_context_is_found_at_once() -> None:
    sealed = chunked.seal(KEY, CONTEXT, bytes(100000))
    read: list[int] = []

    def watched(start: int, stop: int) -> bytes:
        read.append(start)
        return bytes(sealed[start:stop])

    for key, context in ((bytes(32), CONTEXT), (KEY, b"something else"), (KEY, b"")):
        read.clear()
        with pytest.raises(SealBroken, match="can not be opened"):
            chunked.Reader(key, context, watched, len(sealed))
        assert read == [0]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 70000), st.integers(0, 80000), st.integers(0, 80000), st.integers(0, 9))
def test_any_range_is_what_the_message_has_there(size: int, a: int, b: int, seed: int) -> None:
    message = random.Random(seed).randbytes(size)
    sealed = chunked.seal(KEY, CONTEXT, message)
    start, stop = min(a, b), max(a, b)
    assert reader(KEY, CONTEXT, sealed).read(start, stop) == message[start:stop]


def test_only_the_chunks_asked_for_are_read() -> None:
    message = random.Random(1).randbytes(10 * chunked.CHUNK)
    sealed = chunked.seal(KEY, CONTEXT, message)
    touched: list[int] = []

    def watched(start: int, stop: int) -> bytes:
        touched.append(start)
        return bytes(sealed[start:stop])

    opened = chunked.Reader(KEY, CONTEXT, watched, len(sealed))
    touched.clear()
    inside = 3 * chunked.CHUNK + 5
    assert opened.read(inside, inside + 9) == message[inside : inside + 9]
    assert touched == [chunked.HEAD + 3 * chunked.STEP]


def test_nothing_unproven_is_left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """The library leaves plaintext in the buffer when the tag is wrong; we must not."""
    wiped: list[bytearray] = []
    plain = chunked.wipe

    def watched(buffer: bytearray) -> None:
        plain(buffer)
        wiped.append(buffer)

    monkeypatch.setattr(chunked, "wipe", watched)
    sealed = chunked.seal(KEY, CONTEXT, b"secret" * 5000)
    sealed[chunked.HEAD + chunked.STEP - 1] ^= 1
    with pytest.raises(SealBroken):
        chunked.open_all(KEY, CONTEXT, sealed)
    with pytest.raises(SealBroken):
        reader(KEY, CONTEXT, sealed).read(0, 100)
    assert len(wiped) >= 2
    assert all(not any(buffer) for buffer in wiped)


def test_chunks_are_given_in_order_and_none_after_a_bad_one() -> None:
    sealed = chunked.seal(KEY, CONTEXT, bytes(3 * chunked.CHUNK))
    sealed[chunked.HEAD + 2 * chunked.STEP - 1] ^= 1
    given_out = count()
    with pytest.raises(SealBroken):
        for _ in reader(KEY, CONTEXT, sealed).chunks():
            next(given_out)
    assert next(given_out) == 1


def test_salts_make_every_object_another_one() -> None:
    assert chunked.seal(KEY, CONTEXT, b"same") != chunked.seal(KEY, CONTEXT, b"same")


@pytest.mark.parametrize("size", [0, 16, 31, 33, 64])
def test_only_keys_of_32_bytes(size: int) -> None:
    with pytest.raises(ValueError, match="32"):
        chunked.seal(bytes(size), CONTEXT, b"x")
