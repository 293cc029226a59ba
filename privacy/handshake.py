"""The handshake of a sealed channel inside TLS, where TLS ends before the verifier. Sans I/O.

    device                                             verifier
      hello   version, random, X25519, ML-KEM-768 key    ─▶
           ◀─ accept  random, X25519, ML-KEM ciphertext, {identity, signature}
      finish  {identity, signature, binding, payload}    ─▶
      frames (`frames.py`)                              ◀─▶

Braces: sealed, so that a proxy does not see who speaks. In the manner of Noise (noiseprotocol.org,
XX) with the signed transcript of TLS 1.3 (RFC 8446, 4.4.3): both sides sign a hash of everything
said so far with pinned Ed25519 keys. The shared secret joins X25519 (RFC 7748) and ML-KEM-768
(FIPS 203), so that both must be broken to read what was recorded. The *binding* (model, numeric
class, tenant, session, fence) is part of the transcript from which the traffic secrets come.
"""

from __future__ import annotations

import hashlib
import hmac
import os
from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.mlkem import (
    MLKEM768PrivateKey,
    MLKEM768PublicKey,
)
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from outrider.errors import PeerUntrusted, RemoteProtocolError, SealBroken
from outrider.privacy.frames import (
    DOWN,
    FRAMES,
    NONCE,
    SECONDS,
    SECRET,
    UP,
    Receiver,
    Sender,
)
from outrider.privacy.identity import KEY, SIGNATURE, Identity, fingerprint, genuine

VERSION = 1
RANDOM = 32
KEM_KEY = 1184
KEM_TEXT = 1088
HELLO = 1 + RANDOM + KEY + KEM_KEY
ACCEPT = RANDOM + KEY + KEM_TEXT + KEY + SIGNATURE + 16
_NAME = b"outrider channel v1 X25519+ML-KEM-768 Ed25519 AES-256-GCM SHA-256"
_AS_VERIFIER, _AS_DEVICE = b"channel verifier", b"channel device"
MAX_FINISH = 1 << 24


class Binding(msgspec.Struct, frozen=True, array_like=True):
    """What the traffic keys are good for, and for nothing else."""

    model: str
    numeric_class: str
    tenant: str
    session: bytes
    fence: int


class _Finish(msgspec.Struct, frozen=True, array_like=True):
    identity: bytes
    signature: bytes
    binding: bytes
    payload: bytes


@dataclass(slots=True)
class _Transcript:
    """A running hash over everything said, each part with its length."""

    state: bytes = field(default_factory=lambda: hashlib.sha256(_NAME).digest())

    def mix(self, part: bytes) -> bytes:
        self.state = hashlib.sha256(self.state + len(part).to_bytes(4, "big") + part).digest()
        return self.state


@dataclass(frozen=True, slots=True)
class Secrets:
    """Of one handshake: 32 bytes each."""

    shared: bytes
    accept: bytes
    finish: bytes

    @classmethod
    def make(cls, agreed: bytes, encapsulated: bytes, transcript: bytes) -> Secrets:
        # Both in one extraction: secret as long as either is.
        made = _derive(encapsulated + agreed, transcript, b"handshake", 3 * SECRET)
        return cls(made[:SECRET], made[SECRET : 2 * SECRET], made[2 * SECRET :])

    def traffic(self, transcript: bytes) -> tuple[bytes, bytes]:
        """(up, down)"""
        made = _derive(self.shared, transcript, b"traffic", 2 * SECRET)
        return made[:SECRET], made[SECRET:]


def _derive(secret: bytes, salt: bytes, purpose: bytes, size: int) -> bytes:
    return HKDF(SHA256(), size, salt, b"outrider channel v1 " + purpose).derive(secret)


@dataclass(frozen=True, slots=True)
class Pace:
    """After how many frames or seconds a sender changes its key."""

    frames: int = FRAMES
    seconds: float = SECONDS

    def sender(self, secret: bytes, direction: bytes, now: float) -> Sender:
        return Sender(secret, direction, now, self.frames, self.seconds)


PACE = Pace()


@dataclass(frozen=True, slots=True)
class Channel:
    """What a handshake gives to each side."""

    sender: Sender
    receiver: Receiver
    peer: bytes
    """The other side's public key, proven."""


class Initiator:
    """The device's side: `hello`, then `finish`, once each."""

    def __init__(self, identity: Identity, pinned: bytes, pace: Pace = PACE) -> None:
        """`pinned`: the verifier's public key, from the pairing."""
        self._identity, self._pinned, self._pace = identity, pinned, pace
        self._dh, self._kem = X25519PrivateKey.generate(), MLKEM768PrivateKey.generate()
        self._said = _Transcript()

    def hello(self) -> bytes:
        said = (
            bytes((VERSION,))
            + os.urandom(RANDOM)
            + self._dh.public_key().public_bytes_raw()
            + self._kem.public_key().public_bytes_raw()
        )
        self._said.mix(said)
        return said

    def finish(
        self, accept: bytes, binding: Binding, payload: bytes, now: float
    ) -> tuple[bytes, Channel]:
        """The last message, with the session's first one sealed in it, and the channel.

        Raises PeerUntrusted when another one answered than the pinned one, SealBroken when it
        can not be opened, RemoteProtocolError for what is no answer.
        """
        if len(accept) != ACCEPT:
            raise _no_message("accept")
        clear, sealed = accept[: -(KEY + SIGNATURE + 16)], accept[-(KEY + SIGNATURE + 16) :]
        theirs, text = clear[RANDOM : RANDOM + KEY], clear[RANDOM + KEY :]
        begun = self._said.mix(clear)
        agreed = _agree(self._dh, theirs)
        secrets = Secrets.make(agreed, self._kem.decapsulate(text), begun)
        proof = _unseal(secrets.accept, sealed, begun)
        self._check(proof, begun)
        return self._last(secrets, self._said.mix(sealed), binding, payload, now)

    def _check(self, proof: bytes, begun: bytes) -> None:
        who, signature = proof[:KEY], proof[KEY:]
        if not genuine(who, _AS_VERIFIER, begun, signature):
            raise _untrusted("its signature is wrong")
        if not hmac.compare_digest(who, self._pinned):
            raise _untrusted(
                f"it is {fingerprint(who)}, paired with was {fingerprint(self._pinned)}"
            )

    def _last(
        self, secrets: Secrets, said: bytes, binding: Binding, payload: bytes, now: float
    ) -> tuple[bytes, Channel]:
        bound = msgspec.msgpack.encode(binding)
        signature = self._identity.sign(_AS_DEVICE, said + bound)
        whole = _Finish(self._identity.public, signature, bound, payload)
        sealed = _seal(secrets.finish, msgspec.msgpack.encode(whole), said)
        up, down = secrets.traffic(self._said.mix(sealed))
        return sealed, Channel(self._pace.sender(up, UP, now), Receiver(down, DOWN), self._pinned)


class Responder:
    """The verifier's side: `accept`, then `finished`, once each."""

    def __init__(
        self, identity: Identity, known: Callable[[bytes], bool], pace: Pace = PACE
    ) -> None:
        """`known`: whether a device of this public key was paired, and not revoked."""
        self._identity, self._known, self._pace = identity, known, pace
        self._said = _Transcript()
        self._secrets: Secrets | None = None

    def accept(self, hello: bytes) -> bytes:
        """Raises RemoteProtocolError for what is no hello of a version spoken here."""
        if len(hello) != HELLO or hello[0] != VERSION:
            raise _no_message("hello")
        theirs, kem = hello[1 + RANDOM : 1 + RANDOM + KEY], hello[1 + RANDOM + KEY :]
        self._said.mix(hello)
        own = X25519PrivateKey.generate()
        encapsulated, text = _encapsulate(kem)
        clear = os.urandom(RANDOM) + own.public_key().public_bytes_raw() + text
        begun = self._said.mix(clear)
        secrets = self._secrets = Secrets.make(_agree(own, theirs), encapsulated, begun)
        proof = self._identity.public + self._identity.sign(_AS_VERIFIER, begun)
        sealed = _seal(secrets.accept, proof, begun)
        self._said.mix(sealed)
        return clear + sealed

    def finished(self, finish: bytes, now: float) -> tuple[Binding, bytes, Channel]:
        """(binding, the session's first message, the channel).

        Raises PeerUntrusted for a device that is not known here, SealBroken, RemoteProtocolError.
        """
        if self._secrets is None or len(finish) > MAX_FINISH:
            raise _no_message("finish")
        secrets, self._secrets = self._secrets, None
        said = self._said.state
        try:
            whole = msgspec.msgpack.decode(_unseal(secrets.finish, finish, said), type=_Finish)
            binding = msgspec.msgpack.decode(whole.binding, type=Binding)
        except msgspec.DecodeError:
            raise _no_message("finish") from None
        if not genuine(whole.identity, _AS_DEVICE, said + whole.binding, whole.signature):
            raise _untrusted("its signature is wrong")
        if not self._known(whole.identity):
            raise _untrusted(f"{fingerprint(whole.identity)} was not paired, or was revoked")
        up, down = secrets.traffic(self._said.mix(finish))
        channel = Channel(self._pace.sender(down, DOWN, now), Receiver(up, UP), whole.identity)
        return binding, whole.payload, channel


def _agree(own: X25519PrivateKey, theirs: bytes) -> bytes:
    """Raises RemoteProtocolError for a point that makes every secret the same."""
    try:
        return own.exchange(X25519PublicKey.from_public_bytes(theirs))
    except ValueError:
        raise _no_message("key") from None


def _encapsulate(key: bytes) -> tuple[bytes, bytes]:
    """(secret, ciphertext)"""
    try:
        return MLKEM768PublicKey.from_public_bytes(key).encapsulate()
    except ValueError:
        raise _no_message("key") from None


def _seal(secret: bytes, data: bytes, transcript: bytes) -> bytes:
    # The secret is used for this one message, so that its nonce may be a constant.
    return AESGCM(secret).encrypt(bytes(NONCE), data, transcript)


def _unseal(secret: bytes, sealed: bytes, transcript: bytes) -> bytes:
    try:
        return AESGCM(secret).decrypt(bytes(NONCE), sealed, transcript)
    except InvalidTag:
        raise SealBroken(
            "the handshake of the sealed channel can not be opened",
            why="it was changed on the way",
            effect="no session was opened",
        ) from None


def _untrusted(why: str) -> PeerUntrusted:
    return PeerUntrusted(
        "the other side of the sealed channel is not who it must be",
        why=why,
        effect="no session was opened, and nothing was sent to it",
        todo="if its key was changed on purpose, pair again with `outrider link add`",
    )


def _no_message(which: str) -> RemoteProtocolError:
    return RemoteProtocolError(
        f"the sealed channel's {which} is not as version {VERSION} has it",
        effect="no session was opened",
    )
