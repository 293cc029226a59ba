"""The sealed channel: both sides agree, and whoever stands between can only break it."""

from __future__ import annotations

import random
from collections.abc import Callable

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from outrider.errors import PeerUntrusted, RemoteProtocolError, SealBroken, SealError
from outrider.privacy import frames, handshake
from outrider.privacy.frames import DOWN, UP, Receiver, Sender
from outrider.privacy.handshake import Binding, Channel, Initiator, Responder
from outrider.privacy.identity import Identity, fingerprint, genuine

BINDING = Binding("outrider-target", "7bbe", "home", b"s" * 16, 3)
DEVICE, VERIFIER, OTHER = Identity.generate(), Identity.generate(), Identity.generate()


def shake(
    *,
    device: Identity = DEVICE,
    pinned: bytes = VERIFIER.public,
    known: Callable[[bytes], bool] = lambda key: key == DEVICE.public,
    between: Callable[[int, bytes], bytes] = lambda number, message: message,
) -> tuple[Channel, Channel, Binding, bytes]:
    """(device's channel, verifier's, what the verifier was told)"""
    one, two = Initiator(device, pinned), Responder(VERIFIER, known)
    accept = two.accept(between(0, one.hello()))
    finish, ours = one.finish(between(1, accept), BINDING, b"the open message", 0.0)
    binding, payload, theirs = two.finished(between(2, finish), 0.0)
    return ours, theirs, binding, payload


def test_both_sides_can_speak_and_know_each_other() -> None:
    ours, theirs, binding, payload = shake()
    assert (binding, payload) == (BINDING, b"the open message")
    assert (ours.peer, theirs.peer) == (VERIFIER.public, DEVICE.public)
    for turn in range(100):
        text = bytes([turn]) * turn
        assert theirs.receiver.open(ours.sender.seal(1, text, 0.0)) == (1, text)
        assert ours.receiver.open(theirs.sender.seal(2, text, 0.0)) == (2, text)


def test_a_verifier_that_was_not_pinned_is_told_nothing() -> None:
    with pytest.raises(PeerUntrusted, match="not who it must be") as caught:
        shake(pinned=OTHER.public)
    assert fingerprint(OTHER.public) in caught.value.why


def test_a_device_that_was_not_paired_gets_no_session() -> None:
    with pytest.raises(PeerUntrusted):
        shake(device=OTHER)


@pytest.mark.parametrize("number", [0, 1, 2])
def test_every_changed_byte_of_the_handshake_breaks_it(number: int) -> None:
    said: dict[int, bytes] = {}
    shake(between=lambda n, message: said.setdefault(n, message))
    size = len(said[number])
    places = range(0, size, max(1, size // 60))
    for place in places:

        def flip(n: int, message: bytes, at: int = place) -> bytes:
            if n != number:
                return message
            return message[:at] + bytes([message[at] ^ 4]) + message[at + 1 :]

        with pytest.raises((SealError, RemoteProtocolError)):
            shake(between=flip)


@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_recorded_message_can_not_be_played_again(number: int) -> None:
    kept: dict[int, bytes] = {}
    shake(between=lambda n, message: kept.setdefault(n, message))
    with pytest.raises((SealError, RemoteProtocolError)):
        shake(between=lambda n, message: kept[n] if n == number else message)


def test_a_handshake_cut_or_grown_is_refused() -> None:
    for number in (0, 1, 2):
        for change in (lambda m: m[:-1], lambda m: m + b"\0", lambda m: b""):
            with pytest.raises((SealError, RemoteProtocolError)):
                shake(
                    between=lambda n, m, number=number, change=change: (
                        change(m)  # type: ignore[misc]
                        if n == number
                        else m
                    )
                )


def test_a_finish_is_taken_once() -> None:
    one, two = Initiator(DEVICE, VERIFIER.public), Responder(VERIFIER, lambda key: True)
    finish, _ = one.finish(two.accept(one.hello()), BINDING, b"", 0.0)
    two.finished(finish, 0.0)
    with pytest.raises(RemoteProtocolError):
        two.finished(finish, 0.0)


def test_a_point_of_low_order_is_refused() -> None:
    hello = bytearray(Initiator(DEVICE, VERIFIER.public).hello())
    hello[33:65] = bytes(32)
    with pytest.raises(RemoteProtocolError):
        Responder(VERIFIER, lambda key: True).accept(bytes(hello))


def test_a_signature_for_one_thing_does_not_serve_for_another() -> None:
    signature = DEVICE.sign(b"channel device", b"data")
    assert genuine(DEVICE.public, b"channel device", b"data", signature)
    assert not genuine(DEVICE.public, b"channel verifier", b"data", signature)
    assert not genuine(DEVICE.public, b"channel devic", b"edata", signature)
    assert not genuine(OTHER.public, b"channel device", b"data", signature)


def test_what_the_keys_are_bound_to_changes_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Same ephemeral keys and randomness, another fence: other traffic keys."""
    one = Initiator(DEVICE, VERIFIER.public)
    two = Responder(VERIFIER, lambda key: True)
    accept = two.accept(one.hello())
    state = one._said.state
    seen = []
    for fence in (3, 4):
        one._said.state = state
        _, channel = one.finish(accept, replace_fence(fence), b"", 0.0)
        seen.append(channel.sender.seal(1, b"same", 0.0))
    assert seen[0] != seen[1]


def replace_fence(fence: int) -> Binding:
    return msgspec.structs.replace(BINDING, fence=fence)


def test_nothing_of_the_text_nor_of_who_speaks_is_seen_between() -> None:
    seen: list[bytes] = []

    def watch(number: int, message: bytes) -> bytes:
        seen.append(message)
        return message

    ours, _, _, _ = shake(between=watch)
    seen.append(ours.sender.seal(1, b"a secret prompt", 0.0))
    everything = b"".join(seen)
    for secret in (b"secret prompt", b"outrider-target", b"open message", DEVICE.public):
        assert secret not in everything
    assert VERIFIER.public not in everything


# --- frames ------------------------------------------------------------------------------------


def pair(count: int = frames.FRAMES, seconds: float = frames.SECONDS) -> tuple[Sender, Receiver]:
    secret = bytes(range(32))
    return Sender(secret, UP, 0.0, count, seconds), Receiver(secret, UP)


def test_every_flipped_bit_of_a_frame_is_refused() -> None:
    size = len(pair()[0].seal(7, b"abcd", 0.0))
    for bit in range(size * 8):
        sender, receiver = pair()
        frame = bytearray(sender.seal(7, b"abcd", 0.0))
        frame[bit // 8] ^= 1 << (bit % 8)
        with pytest.raises(SealBroken):
            receiver.open(bytes(frame))


@pytest.mark.parametrize("order", [[0, 0], [1], [0, 2], [1, 0], [0, 1, 1], [0, 1, 0], [0, 1, 2, 4]])
def test_frames_repeated_left_out_or_out_of_order_are_refused(order: list[int]) -> None:
    sender, receiver = pair()
    made = [sender.seal(1, bytes([n]), 0.0) for n in range(5)]
    with pytest.raises(SealBroken):
        for number in order:
            receiver.open(made[number])


def test_a_broken_channel_stays_broken() -> None:
    sender, receiver = pair()
    good = sender.seal(1, b"x", 0.0)
    with pytest.raises(SealBroken):
        receiver.open(bytes(len(good)))
    with pytest.raises(SealBroken):
        receiver.open(good)


def test_a_frame_of_the_other_direction_is_refused() -> None:
    secret = bytes(32)
    with pytest.raises(SealBroken):
        Receiver(secret, DOWN).open(Sender(secret, UP, 0.0).seal(1, b"x", 0.0))


def test_cut_frames_are_refused() -> None:
    frame = pair()[0].seal(1, b"abc", 0.0)
    for stop in range(len(frame)):
        with pytest.raises(SealBroken):
            pair()[1].open(frame[:stop])


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 7), st.lists(st.floats(0, 30), max_size=60))
def test_keys_change_by_count_and_by_time_and_both_sides_follow(
    count: int, pauses: list[float]
) -> None:
    sender, receiver = pair(count, 20.0)
    now, phases = 0.0, []
    for number, pause in enumerate(pauses):
        now += pause
        frame = sender.seal(1, bytes([number]), now)
        phases.append(frame[1])
        assert receiver.open(frame) == (1, bytes([number]))
    runs = [len(list(run)) for run in _runs(phases)]
    assert all(run <= count for run in runs)


def _runs(values: list[int]) -> list[list[int]]:
    found: list[list[int]] = []
    for value in values:
        if found and found[-1][0] == value:
            found[-1].append(value)
        else:
            found.append([value])
    return found


def test_an_old_key_can_not_be_had_from_the_next() -> None:
    """Forward: what is left in memory after a ratchet opens nothing said before."""
    sender, receiver = pair(1)
    first = sender.seal(1, b"past", 0.0)
    receiver.open(first)
    receiver.open(sender.seal(1, b"now", 0.0))
    assert receiver._key is not None
    left = Receiver(receiver._key.secret, UP)
    with pytest.raises(SealBroken):
        left.open(first)


def test_no_nonce_is_used_twice_under_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """Over a million frames, with changes of key, reconnects, and both directions."""
    seen: set[tuple[bytes, bytes]] = set()
    made = 0

    class Spy:
        def __init__(self, key: bytes) -> None:
            self.key = key

        def encrypt(self, nonce: bytes, data: bytes, aad: bytes) -> bytes:
            seen.add((self.key, nonce))
            return data + bytes(16)

    monkeypatch.setattr(frames, "AESGCM", Spy)
    rng = random.Random(5)
    for _ in range(10):
        # A reconnect: new secrets.
        up = Sender(rng.randbytes(32), UP, 0.0, 1000, 50.0)
        down = Sender(rng.randbytes(32), DOWN, 0.0, 1000, 50.0)
        for number in range(50_000):
            up.seal(1, b"", number / 500)
            down.seal(2, b"", number / 500)
            made += 2
    assert made == 10**6
    assert len(seen) == made


def test_identities_survive_their_text_form_and_hide_their_key() -> None:
    again = Identity.from_pem(DEVICE.pem())
    assert again.public == DEVICE.public
    assert DEVICE.fingerprint in repr(DEVICE)
    assert "PRIVATE" not in repr(DEVICE)
    for bad in (b"", b"nonsense", VERIFIER.pem()[:60]):
        with pytest.raises(SealError):
            Identity.from_pem(bad)


def test_sizes_are_those_that_are_told() -> None:
    one, two = Initiator(DEVICE, VERIFIER.public), Responder(VERIFIER, lambda key: True)
    hello = one.hello()
    accept = two.accept(hello)
    assert (len(hello), len(accept)) == (handshake.HELLO, handshake.ACCEPT)
    assert len(pair()[0].seal(1, bytes(40), 0.0)) == 40 + frames.OVERHEAD
