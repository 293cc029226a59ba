"""A small authority of certificates: one cloud's, for itself and for the devices paired with it.

A certificate says who holds it by a URI, `outrider://device/FINGERPRINT` or
`outrider://verifier/FINGERPRINT`; the cloud's bears a DNS name made of its fingerprint too, by
which devices call it wherever it is. A device's certificate has no DNS name and is good for
clients alone, so that no device can pose as the cloud. Keys of TLS are P-256: gRPC takes no
Ed25519. Times are arguments. Sources: RFC 5280; SPIFFE X.509-SVID for the URI.
"""

from __future__ import annotations

import datetime
import re
from dataclasses import dataclass, field

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from outrider.errors import SealError
from outrider.privacy.identity import fingerprint
from outrider.privacy.keys import Keys, once

SERVER_DAYS = 7.0
"""A cloud renews its own certificate by itself, at any moment."""
DEVICE_DAYS = 30.0
"""A device must call within so long, or pair again."""
AUTHORITY_DAYS = 3650.0
EARLIER = datetime.timedelta(hours=25)
"""Certificates are good from so long before: a clock that is a day slow does not end a link."""
SPENT = 1 / 3
"""Of its days; then it is renewed."""
DAY_S = 86400.0
YEAR_S = 365 * DAY_S
_FINGERPRINT = re.compile(r"[a-z2-7]{4}(-[a-z2-7]{4}){3}")
_SUFFIX = ".verifier.outrider"


@dataclass(frozen=True, slots=True)
class Leaf:
    """A certificate with its key: PEM, the certificate first."""

    pem: bytes
    key: bytes = field(repr=False)

    @property
    def both(self) -> bytes:
        """One file, so that the two can not come apart."""
        return self.pem + self.key


@dataclass(frozen=True, slots=True)
class Authority:
    """Signs certificates; its key never leaves the cloud."""

    certificate: x509.Certificate
    private: ec.EllipticCurvePrivateKey = field(repr=False)

    @classmethod
    def make(cls, verifier: bytes, now: float) -> Authority:
        """`verifier`: the cloud's public identity; `now`: seconds since 1970."""
        private = _key()
        name = _name(f"outrider authority {fingerprint(verifier)}")
        builder = _builder(name, name, private.public_key(), now, AUTHORITY_DAYS)
        made = (
            builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(certificates=True), critical=True)
            .add_extension(
                x509.SubjectKeyIdentifier.from_public_key(private.public_key()), critical=False
            )
            .sign(private, SHA256())
        )
        return cls(made, private)

    @classmethod
    def from_pem(cls, pem: bytes) -> Authority:
        """Raises SealError for what is none."""
        try:
            certificate = x509.load_pem_x509_certificate(pem)
            private = serialization.load_pem_private_key(pem, None)
        except (ValueError, TypeError) as error:
            raise _no_authority(str(error)) from None
        if not isinstance(private, ec.EllipticCurvePrivateKey):
            raise _no_authority("its key is of another kind")
        if private.public_key() != certificate.public_key():
            raise _no_authority("certificate and key do not belong together")
        return cls(certificate, private)

    @property
    def pem(self) -> bytes:
        """What others trust."""
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    def secret_pem(self) -> bytes:
        return self.pem + _key_pem(self.private)

    def server(self, verifier: bytes, now: float, days: float = SERVER_DAYS) -> Leaf:
        """The cloud's own."""
        who = fingerprint(verifier)
        key = _key()
        names: list[x509.GeneralName] = [
            x509.DNSName(tls_name(verifier)),
            x509.UniformResourceIdentifier(f"outrider://verifier/{who}"),
        ]
        subject = f"outrider verifier {who}"
        purpose = ExtendedKeyUsageOID.SERVER_AUTH
        return Leaf(
            self._signed(subject, key.public_key(), names, purpose, now, days), _key_pem(key)
        )

    def device(self, device: bytes, request: bytes, now: float, days: float = DEVICE_DAYS) -> bytes:
        """PEM for the key of a signing request; who holds it is said here, and not there.

        Raises SealError for a request that proves nothing.
        """
        key = requested_key(request)
        who = fingerprint(device)
        names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(f"outrider://device/{who}")]
        purpose = ExtendedKeyUsageOID.CLIENT_AUTH
        return self._signed(f"outrider device {who}", key, names, purpose, now, days)

    def _signed(
        self,
        subject: str,
        key: ec.EllipticCurvePublicKey,
        names: list[x509.GeneralName],
        purpose: x509.ObjectIdentifier,
        now: float,
        days: float,
    ) -> bytes:
        authority = self.private.public_key()
        made = (
            _builder(_name(subject), self.certificate.subject, key, now, days)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(authority), critical=False
            )
            .sign(self.private, SHA256())
        )
        return made.public_bytes(serialization.Encoding.PEM)


def authority(keys: Keys, verifier: bytes, now: float) -> Authority:
    """This cloud's, made at first need. Raises SealError."""
    made = once(keys, "authority", lambda: Authority.make(verifier, now).secret_pem())
    return Authority.from_pem(made)


# --- a device's request ------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Wanted:
    """A new key, and the request for its certificate (DER, PKCS #10)."""

    key: bytes = field(repr=False)
    request: bytes

    @classmethod
    def make(cls) -> Wanted:
        key = _key()
        made = x509.CertificateSigningRequestBuilder().subject_name(_name("outrider device"))
        request = made.sign(key, SHA256()).public_bytes(serialization.Encoding.DER)
        return cls(_key_pem(key), request)

    def granted(self, pem: bytes) -> Leaf:
        """Raises SealError for a certificate of another key."""
        try:
            found = x509.load_pem_x509_certificate(pem).public_key()
        except ValueError:
            raise _no_certificate("it is no certificate") from None
        own = serialization.load_pem_private_key(self.key, None)
        if not isinstance(own, ec.EllipticCurvePrivateKey) or found != own.public_key():
            raise _no_certificate("it is for another key")
        return Leaf(pem, self.key)


def requested_key(request: bytes) -> ec.EllipticCurvePublicKey:
    """The key that signed a request. Raises SealError."""
    try:
        found = x509.load_der_x509_csr(request)
        key = found.public_key()
        if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name != "secp256r1":
            raise _no_certificate("the request is for a key of another kind")
        key.verify(found.signature, found.tbs_certrequest_bytes, ec.ECDSA(SHA256()))
    except (ValueError, InvalidSignature):
        raise _no_certificate("the request is not signed by its own key") from None
    return key


# --- reading -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Life:
    """Of a certificate, in seconds since 1970."""

    since: float
    until: float
    serial: int

    @classmethod
    def of(cls, pem: bytes) -> Life:
        """Raises SealError for what is no certificate."""
        try:
            found = x509.load_pem_x509_certificate(pem)
        except ValueError:
            raise _no_certificate("the file holds none") from None
        began = found.not_valid_before_utc + EARLIER
        return cls(began.timestamp(), found.not_valid_after_utc.timestamp(), found.serial_number)

    def due(self, now: float) -> bool:
        """Whether it should be renewed."""
        return now >= self.since + (self.until - self.since) * SPENT

    def over(self, now: float) -> bool:
        return now >= self.until


def device_of(names: list[bytes]) -> str | None:
    """The fingerprint in the subject alternative names of a device's certificate."""
    return _of(names, "outrider://device/")


def _of(names: list[bytes], prefix: str) -> str | None:
    found = [name.decode("ascii", "replace") for name in names]
    said = [name.removeprefix(prefix) for name in found if name.startswith(prefix)]
    return said[0] if len(said) == 1 and _FINGERPRINT.fullmatch(said[0]) else None


def tls_name(verifier: bytes) -> str:
    """The name by which a cloud is called in TLS, whatever its address is."""
    return fingerprint(verifier) + _SUFFIX


def ephemeral(name: str, now: float) -> Leaf:
    """Signed by itself: what a pairing runs over. The code proves it, and no clock need agree."""
    key = _key()
    made = (
        _builder(_name(name), _name(name), key.public_key(), now - YEAR_S, 2 * YEAR_S / DAY_S)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .sign(key, SHA256())
    )
    return Leaf(made.public_bytes(serialization.Encoding.PEM), _key_pem(key))


def der(pem: bytes) -> bytes:
    return x509.load_pem_x509_certificate(pem).public_bytes(serialization.Encoding.DER)


# --- parts -------------------------------------------------------------------------------------


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePublicKey,
    now: float,
    days: float,
) -> x509.CertificateBuilder:
    begin = datetime.datetime.fromtimestamp(now, datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin - EARLIER)
        .not_valid_after(begin + datetime.timedelta(days=days))
    )


def _usage(*, certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not certificates,
        key_cert_sign=certificates,
        crl_sign=certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def _no_authority(why: str) -> SealError:
    return SealError(
        "the cloud's authority of certificates can not be used",
        why=why,
        effect="no certificate was issued",
        todo="restore its file; with a new one all devices pair again",
    )


def _no_certificate(why: str) -> SealError:
    return SealError(
        "the certificate can not be used",
        why=why,
        effect="it was not taken",
        todo="pair again: outrider link add NAME URL --pair",
    )
