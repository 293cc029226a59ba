"""Who a device or a verifier is: an Ed25519 key, known to others by its fingerprint.

A signature says what it is for, so that one that was made for a handshake can not be shown as
one for a pairing. Source: RFC 8032.
"""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from outrider.errors import SealError

KEY = 32
SIGNATURE = 64
_PREFIX = b"outrider signature v1\x00"


@dataclass(frozen=True, slots=True)
class Identity:
    """The own key pair. Its text form is PEM (PKCS #8); it is kept by `privacy/keys.py`."""

    private: Ed25519PrivateKey

    @classmethod
    def generate(cls) -> Identity:
        return cls(Ed25519PrivateKey.generate())

    @classmethod
    def from_pem(cls, pem: bytes) -> Identity:
        """Raises SealError for what is no Ed25519 key."""
        try:
            found = serialization.load_pem_private_key(pem, password=None)
        except (ValueError, TypeError) as error:
            raise _no_key(str(error)) from None
        if not isinstance(found, Ed25519PrivateKey):
            raise _no_key(f"it is a {type(found).__name__}")
        return cls(found)

    def pem(self) -> bytes:
        return self.private.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )

    @property
    def public(self) -> bytes:
        """32 bytes."""
        return self.private.public_key().public_bytes_raw()

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.public)

    def sign(self, purpose: bytes, data: bytes) -> bytes:
        """64 bytes."""
        return self.private.sign(_stated(purpose, data))

    def __repr__(self) -> str:
        return f"Identity({self.fingerprint})"


def genuine(public: bytes, purpose: bytes, data: bytes, signature: bytes) -> bool:
    """Whether the holder of `public` signed `data` for this purpose."""
    try:
        key = Ed25519PublicKey.from_public_bytes(public)
        key.verify(signature, _stated(purpose, data))
    except (InvalidSignature, ValueError):
        return False
    return True


def fingerprint(public: bytes) -> str:
    """What people compare: 80 bits of SHA-256 in four groups, base 32 without look-alikes."""
    text = base64.b32encode(hashlib.sha256(public).digest()[:10]).decode().lower()
    return "-".join(text[at : at + 4] for at in range(0, 16, 4))


def _stated(purpose: bytes, data: bytes) -> bytes:
    return _PREFIX + len(purpose).to_bytes(1, "big") + purpose + data


def _no_key(why: str) -> SealError:
    return SealError(
        "the key file holds no Ed25519 key",
        why=why,
        effect="nobody can be told who this is",
        todo="restore the file, or make a new identity and pair again",
    )
