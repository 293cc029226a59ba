"""Frames of a sealed channel, after its handshake. Sans I/O.

One direction has a secret of 32 bytes, from which its AES-256-GCM key and base nonce come. The
nonce of a frame is the base XOR its number since the last change of key (RFC 8446, 5.3); frames
are numbered in order and never restored: a new connection has new keys. After so many frames or
seconds the sender ratchets: the next secret is derived, the old one forgotten, and the phase
bit of its frames flips, by which the receiver does the same. What is authenticated beside the
text: kind, direction, phase.

A frame is `kind (1) | phase (1) | ciphertext | tag (16)`. Everything that does not open ends
the channel for good.
"""

from __future__ import annotations

from dataclasses import dataclass

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from outrider.errors import SealBroken

SECRET = 32
NONCE = 12
TAG = 16
HEAD = 2
OVERHEAD = HEAD + TAG
FRAMES = 1 << 16
"""Frames under one key. AES-GCM would bear 2^24.5 full ones (RFC 8446, 5.5)."""
SECONDS = 600.0
UP, DOWN = b"\x01", b"\x02"


@dataclass(slots=True)
class _Key:
    """What one phase of one direction is sealed with."""

    secret: bytes
    cipher: AESGCM
    base: int
    count: int = 0

    @classmethod
    def of(cls, secret: bytes) -> _Key:
        made = _expand(secret, b"key", 32 + NONCE)
        return cls(secret, AESGCM(made[:32]), int.from_bytes(made[32:], "big"))

    def next(self) -> _Key:
        return _Key.of(_expand(self.secret, b"ratchet", SECRET))

    def nonce(self) -> bytes:
        return (self.base ^ self.count).to_bytes(NONCE, "big")


def _expand(secret: bytes, purpose: bytes, size: int) -> bytes:
    return HKDFExpand(SHA256(), size, b"outrider channel v1 " + purpose).derive(secret)


class Sender:
    """Seals the frames of one direction, in the order in which they are sent."""

    def __init__(
        self,
        secret: bytes,
        direction: bytes,
        now: float,
        frames: int = FRAMES,
        seconds: float = SECONDS,
    ) -> None:
        self._key = _Key.of(secret)
        self._direction = direction
        self._phase = 0
        self._since = now
        self._frames, self._seconds = frames, seconds

    def seal(self, kind: int, data: bytes, now: float) -> bytes:
        """`now`: seconds, monotonic."""
        if self._key.count >= self._frames or now - self._since >= self._seconds:
            self._key, self._since = self._key.next(), now
            self._phase ^= 1
        head = bytes((kind, self._phase))
        sealed = self._key.cipher.encrypt(self._key.nonce(), data, head + self._direction)
        self._key.count += 1
        return head + sealed


class Receiver:
    """Opens the frames of one direction, in order; once one is wrong, none any more."""

    def __init__(self, secret: bytes, direction: bytes) -> None:
        self._key: _Key | None = _Key.of(secret)
        self._direction = direction
        self._phase = 0

    def open(self, frame: bytes) -> tuple[int, bytes]:
        """(kind, data). Raises SealBroken."""
        if self._key is None or len(frame) < OVERHEAD or frame[1] > 1:
            raise self._end("it is no frame of this channel")
        key = self._key if frame[1] == self._phase else self._key.next()
        try:
            data = key.cipher.decrypt(key.nonce(), frame[HEAD:], frame[:HEAD] + self._direction)
        except InvalidTag:
            raise self._end("it was changed, repeated, left out or put elsewhere") from None
        key.count += 1
        self._key, self._phase = key, frame[1]
        return frame[0], data

    def _end(self, why: str) -> SealBroken:
        self._key = None
        return SealBroken(
            "a frame of the sealed channel can not be opened",
            why=why,
            effect="the channel is closed; what was committed before stays",
            todo="the session goes on over a new connection with new keys",
        )
