"""Sealed objects: C2SP chunked encryption with AES-256-GCM and SHA-512 ("Cobblestone-256").

An object is `salt (24) | commitment (32) | chunks`, each chunk 16 KiB of plaintext and its tag,
the last one shorter, so that its size says where the object ends. Each object has a key of its
own, from the input key, a random salt and the *context*: what the object is for. Opening it
under another context fails at the commitment. Source: c2sp.org/chunked-encryption.

`decrypt_into` of the library leaves plaintext behind that did not prove to be genuine, so that
everything here is opened into scratch, wiped when a tag is wrong, and handed out only after.
"""

from __future__ import annotations

import hmac
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA512
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from outrider.errors import SealBroken

KEY = 32
SALT = 24
COMMITMENT = 32
NONCE = 12
TAG = 16
CHUNK = 16 * 1024
STEP = CHUNK + TAG
HEAD = SALT + COMMITMENT
MAX_CHUNKS = 1 << 38
_INFO = b"c2sp.org/chunked-encryption@v1+AEAD_AES_256_GCM\x00"

Entropy = Callable[[int], bytes]
"""So many random bytes; `os.urandom` everywhere but in tests of vectors."""
ReadAt = Callable[[int, int], bytes]
"""The sealed bytes of [start, stop), from a file, a mapping or memory."""


@dataclass(frozen=True, slots=True)
class ObjectKey:
    """What one object is sealed with; never used for a second one."""

    cipher: AESGCM
    base: int
    """The base nonce as a number, big-endian."""
    commitment: bytes

    @classmethod
    def derive(cls, key: bytes, salt: bytes, context: bytes) -> ObjectKey:
        """From an input key of 32 uniformly random bytes. Raises ValueError for other sizes."""
        if len(key) != KEY or len(salt) != SALT:
            raise ValueError(f"an input key has {KEY} bytes and a salt {SALT}")
        size = KEY + NONCE + COMMITMENT
        made = HKDFExpand(SHA512(), size, _INFO + salt + context).derive(key)
        base = int.from_bytes(made[KEY : KEY + NONCE], "big")
        return cls(AESGCM(made[:KEY]), base, made[KEY + NONCE :])

    def nonce(self, chunk: int) -> bytes:
        return (self.base ^ chunk).to_bytes(NONCE, "big")


def sealed_size(size: int) -> int:
    """Bytes of an object that holds `size` bytes."""
    return HEAD + size + (size // CHUNK + 1) * TAG


def opened_size(size: int) -> int:
    """Bytes that a sealed object of `size` bytes holds. Raises SealBroken where none has it."""
    whole, last = divmod(size - HEAD, STEP)
    if size < HEAD + TAG or last < TAG or whole >= MAX_CHUNKS:
        raise _broken("no object has this size: it was cut")
    return whole * CHUNK + last - TAG


def seal(
    key: bytes,
    context: bytes,
    message: bytes | bytearray | memoryview,
    entropy: Entropy = os.urandom,
) -> bytearray:
    """The whole object. `message` may be any contiguous buffer of bytes."""
    out = bytearray(sealed_size(memoryview(message).nbytes))
    seal_into(key, context, message, memoryview(out), entropy)
    return out


def seal_into(
    key: bytes,
    context: bytes,
    message: bytes | bytearray | memoryview,
    out: memoryview,
    entropy: Entropy = os.urandom,
) -> None:
    """Seal into `out`, of `sealed_size` bytes; nothing is allocated for the chunks."""
    source = memoryview(message).cast("B")
    if len(out) != sealed_size(len(source)):
        raise ValueError("the room does not have the sealed object's size")
    salt = entropy(SALT)
    own = ObjectKey.derive(key, salt, context)
    out[:HEAD] = salt + own.commitment
    encrypt, base = own.cipher.encrypt_into, own.base
    at, to = 0, HEAD
    # A slice that reaches past the end is the short last chunk.
    for chunk in range(len(source) // CHUNK + 1):
        nonce = (base ^ chunk).to_bytes(NONCE, "big")
        encrypt(nonce, source[at : at + CHUNK], None, out[to : to + STEP])
        at, to = at + CHUNK, to + STEP


def open_all(key: bytes, context: bytes, sealed: bytes | bytearray | memoryview) -> bytearray:
    """What an object holds, all of it proven. Raises SealBroken."""
    out = bytearray(opened_size(memoryview(sealed).nbytes))
    open_into(key, context, sealed, memoryview(out))
    return out


def open_into(
    key: bytes, context: bytes, sealed: bytes | bytearray | memoryview, out: memoryview
) -> None:
    """Open into `out`, of `opened_size` bytes; it holds zeros again when anything is wrong.

    Nobody else may read `out` meanwhile: what stands there is proven only at the end. Raises
    SealBroken.
    """
    source = memoryview(sealed).cast("B")
    if len(out) != opened_size(len(source)):
        raise ValueError("the room does not have the opened object's size")
    own = ObjectKey.derive(key, bytes(source[:SALT]), context)
    if not hmac.compare_digest(source[SALT:HEAD], own.commitment):
        raise _foreign()
    decrypt, base = own.cipher.decrypt_into, own.base
    at, to, chunk = HEAD, 0, 0
    try:
        for chunk in range(len(out) // CHUNK + 1):
            nonce = (base ^ chunk).to_bytes(NONCE, "big")
            decrypt(nonce, source[at : at + STEP], None, out[to : to + CHUNK])
            at, to = at + STEP, to + CHUNK
    except InvalidTag:
        out[:] = bytes(len(out))
        raise _changed(chunk) from None


class Reader:
    """Random access to an object: only the chunks that are asked for are read and opened.

    Making one checks key, context and commitment, and that the object ends where its last chunk
    says. Raises SealBroken.
    """

    def __init__(self, key: bytes, context: bytes, read_at: ReadAt, size: int) -> None:
        self.size = opened_size(size)
        self._read_at = read_at
        head = read_at(0, HEAD)
        self._key = ObjectKey.derive(key, head[:SALT], context)
        if not hmac.compare_digest(head[SALT:], self._key.commitment):
            raise _foreign()
        self._last = self.size // CHUNK
        wipe(self._chunk(self._last))

    def read(self, start: int, stop: int) -> bytearray:
        """The bytes of [start, stop), cut at the object's end. Raises SealBroken."""
        start, stop = max(0, start), min(stop, self.size)
        out = bytearray(max(0, stop - start))
        try:
            self._fill(out, start, stop)
        except SealBroken:
            wipe(out)
            raise
        return out

    def _fill(self, out: bytearray, start: int, stop: int) -> None:
        for chunk in range(start // CHUNK, -(-stop // CHUNK) if stop > start else 0):
            opened = self._chunk(chunk)
            first = chunk * CHUNK
            low, high = max(start, first), min(stop, first + len(opened))
            out[low - start : high - start] = opened[low - first : high - first]
            wipe(opened)

    def chunks(self) -> Iterator[bytearray]:
        """In order, each proven before it is given; the caller wipes what it must not keep."""
        for chunk in range(self._last + 1):
            yield self._chunk(chunk)

    def _chunk(self, chunk: int) -> bytearray:
        size = self._bytes(chunk)
        opened = bytearray(size)
        try:
            sealed = self._read_at(self._at(chunk), self._at(chunk) + size + TAG)
            self._open(chunk, sealed, memoryview(opened))
        except SealBroken:
            wipe(opened)
            raise
        return opened

    def _open(self, chunk: int, sealed: bytes | memoryview, into: memoryview) -> None:
        if len(sealed) != len(into) + TAG:
            raise _broken(f"chunk {chunk} is cut")
        try:
            self._key.cipher.decrypt_into(self._key.nonce(chunk), sealed, None, into)
        except InvalidTag:
            raise _changed(chunk) from None

    def _bytes(self, chunk: int) -> int:
        return CHUNK if chunk < self._last else self.size % CHUNK

    @staticmethod
    def _at(chunk: int) -> int:
        return HEAD + chunk * STEP


def wipe(buffer: bytearray) -> None:
    """Zeros over what must not stay. Best effort: copies that libraries made are beyond reach."""
    buffer[:] = bytes(len(buffer))


def _foreign() -> SealBroken:
    return _broken("it was sealed under another key, or as another object")


def _changed(chunk: int) -> SealBroken:
    return _broken(f"chunk {chunk} was changed")


def _broken(why: str) -> SealBroken:
    return SealBroken("a sealed object can not be opened", why=why, effect="nothing of it was used")
