"""The primitives under ours, as this machine's library has them, against Wycheproof."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256, SHA512, HashAlgorithm
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from tests.privacy import wycheproof

Test = dict[str, Any]


def raw(test: Test, *names: str) -> list[bytes]:
    return [bytes.fromhex(test[name]) for name in names]


def sealed_by(name: str, cipher: Any, nonce: int) -> Iterator[tuple[Test, Any]]:
    """Those with nonces of the size that we use; other sizes never reach the library."""
    for group, test in wycheproof.cases(name):
        if group["ivSize"] == nonce * 8 and group["tagSize"] == 128:
            yield test, cipher(bytes.fromhex(test["key"]))


@pytest.mark.parametrize(
    ("name", "cipher", "least"),
    [("aes_gcm", AESGCM, 150), ("chacha20_poly1305", ChaCha20Poly1305, 250)],
)
def test_aead(name: str, cipher: Any, least: int) -> None:
    tried = 0
    for test, key in sealed_by(name, cipher, 12):
        nonce, aad, message, text, tag = raw(test, "iv", "aad", "msg", "ct", "tag")
        tried += 1
        if test["result"] == "invalid":
            with pytest.raises(InvalidTag):
                key.decrypt(nonce, text + tag, aad)
            continue
        assert key.encrypt(nonce, message, aad) == text + tag, test["tcId"]
        assert key.decrypt(nonce, text + tag, aad) == message
    assert tried >= least


def test_x25519() -> None:
    tried = 0
    for _, test in wycheproof.cases("x25519"):
        private, public, shared = raw(test, "private", "public", "shared")
        own, theirs = (
            X25519PrivateKey.from_private_bytes(private),
            X25519PublicKey.from_public_bytes(public),
        )
        tried += 1
        if not any(shared):
            # A point that gives everybody the same secret.
            with pytest.raises(ValueError, match="shared key"):
                own.exchange(theirs)
            continue
        assert own.exchange(theirs) == shared, test["tcId"]
    assert tried > 500


@pytest.mark.parametrize(("name", "hashed"), [("hkdf_sha256", SHA256()), ("hkdf_sha512", SHA512())])
def test_hkdf(name: str, hashed: HashAlgorithm) -> None:
    tried = 0
    for _, test in wycheproof.cases(name):
        ikm, salt, info, okm = raw(test, "ikm", "salt", "info", "okm")
        tried += 1
        if test["result"] == "invalid":
            with pytest.raises(ValueError, match="large"):
                HKDF(hashed, test["size"], salt, info)
            continue
        assert HKDF(hashed, test["size"], salt, info).derive(ikm) == okm, test["tcId"]
    assert tried > 70


def test_ed25519() -> None:
    tried = 0
    for group, test in wycheproof.cases("ed25519"):
        key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(group["publicKey"]["pk"]))
        message, signature = raw(test, "msg", "sig")
        tried += 1
        try:
            key.verify(signature, message)
            good = True
        except InvalidSignature:
            good = False
        assert good == (test["result"] == "valid"), test["tcId"]
    assert tried > 100


def test_ml_kem_768() -> None:
    tried = 0
    for _, test in wycheproof.cases("mlkem_768"):
        seed, text, shared = raw(test, "seed", "c", "K")
        tried += 1
        try:
            found = MLKEM768PrivateKey.from_seed_bytes(seed).decapsulate(text)
        except ValueError:
            assert test["result"] == "invalid", test["tcId"]
            continue
        assert (found == shared) == (test["result"] == "valid"), test["tcId"]
    assert tried > 30
