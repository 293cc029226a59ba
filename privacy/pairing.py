"""How a device and a cloud come to trust each other by a short code. Sans I/O.

    device                                                cloud
      hello    identity, name, request for a certificate   ─▶   shows a code of eight digits
           ◀─  welcome  identity, authority, address
      turn     commitment to digit 1                       ─▶
           ◀─  turn     commitment to digit 1
      turn     nonce of digit 1, commitment to digit 2     ─▶   ... and so on, digit by digit
           ◀─  turn     nonce of digit 1, commitment to digit 2
      proof    nonce of digit 8, signature                 ─▶
           ◀─  grant    nonce of digit 8, signature, certificate, tenant

A person reads the code on one side and types it on the other; nothing else is compared. Each
digit is proven by both sides, the device first: a commitment to a fresh nonce, the digit and
everything that was said before (keys, names, and the certificate of the TLS connection as each
side sees it), then the nonce. Somebody in the middle has keys of his own, so that he must commit
to every digit before he can learn it, and is caught with the first that he guessed wrong: he gets
through once in 10^7. What he learned is worth nothing, since a code is good for one attempt.

Why so: a string that both sides only *show* must be confirmed by people on both sides, else the
one that nobody looks at believes whoever says that it was confirmed. A PAKE such as SPAKE2 (RFC
9382) would do with one typed code, too, but no library here has one: `cryptography` does not,
and the pure Python package computes in a time that depends on secrets. Commitments need nothing
but a hash. Source: Bluetooth Core 5.4, vol. 3, part H, 2.3.5.6.3 (passkey entry), with digits
for bits and TLS for the exchange of keys.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

import msgspec

from outrider.errors import AccessDenied, PeerUntrusted, RemoteProtocolError
from outrider.privacy.certificates import requested_key
from outrider.privacy.identity import KEY, Identity, genuine

VERSION = 1
DIGITS = 8
LIFE_S = 120.0
ATTEMPTS = 3
NONCE = 32
MOST = 16384
"""Bytes of a message."""
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,40}")
"""Of a device."""
_NAME = b"outrider pairing v1 SHA-256 Ed25519"
_DEVICE, _CLOUD = b"pairing device", b"pairing cloud"

T = TypeVar("T", bound=msgspec.Struct)


class Hello(msgspec.Struct, frozen=True, array_like=True):
    version: int
    identity: bytes
    name: str
    """What people call the device."""
    request: bytes
    """For its certificate (DER, PKCS #10)."""
    random: bytes


class Welcome(msgspec.Struct, frozen=True, array_like=True):
    identity: bytes
    authority: bytes
    """PEM."""
    address: str
    """Where the cloud serves; empty: where it was paired, at the usual port."""
    random: bytes


class Turn(msgspec.Struct, frozen=True, array_like=True):
    reveal: bytes
    """The nonce of the digit before; empty in the first turn."""
    commit: bytes


class Proof(msgspec.Struct, frozen=True, array_like=True):
    reveal: bytes
    signature: bytes


class Grant(msgspec.Struct, frozen=True, array_like=True):
    reveal: bytes
    signature: bytes
    certificate: bytes
    """PEM."""
    tenant: str


@dataclass(frozen=True, slots=True)
class Paired:
    """What one side knows of the other when all is proven."""

    identity: bytes
    name: str
    """Of the device."""
    authority: bytes
    address: str
    certificate: bytes
    tenant: str


# --- the code ----------------------------------------------------------------------------------


@dataclass(slots=True)
class Invitation:
    """Codes that are shown: each for one attempt, for two minutes; a wrong one makes the next.

    `now`: seconds, monotonic.
    """

    now: float
    code: str = field(default_factory=lambda: new_code(), repr=False)
    left: int = ATTEMPTS

    def use(self, now: float) -> str:
        """The code, which nobody can use after. Raises AccessDenied."""
        if self.left <= 0:
            raise over("it was tried too often")
        if now - self.now > LIFE_S:
            raise over(f"its code was good for {LIFE_S:.0f} s")
        if not self.code:
            raise over("another device uses its code right now")
        code, self.code = self.code, ""
        self.left -= 1
        return code

    def renew(self, now: float) -> str | None:
        """The next code to show; None when there were enough."""
        if self.left <= 0:
            return None
        self.code, self.now = new_code(), now
        return self.code


def new_code() -> str:
    return f"{secrets.randbelow(10**DIGITS):0{DIGITS}}"


def shown(code: str) -> str:
    """As people read it best."""
    return f"{code[:4]} {code[4:]}"


def typed(text: str) -> str:
    """What a person meant. Raises AccessDenied for what can be no code."""
    code = "".join(letter for letter in text if letter not in " -\t\n")
    if len(code) != DIGITS or not (code.isascii() and code.isdigit()):
        raise AccessDenied(
            f"that is no code: it has {DIGITS} digits",
            effect="nothing was sent",
            todo="type what `outrider link invite` shows",
        )
    return code


def over(why: str) -> AccessDenied:
    return AccessDenied(
        "the invitation is over",
        why=why,
        effect="nothing was paired",
        todo="outrider link invite, on the cloud's machine, shows a new code",
    )


# --- both sides --------------------------------------------------------------------------------


@dataclass(slots=True)
class _Rounds:
    """Proving the digits to each other. `mine` and `theirs` are roles, which differ, so that
    nothing can be sent back to who said it."""

    base: bytes
    code: str
    mine: bytes
    theirs: bytes
    nonces: list[bytes] = field(default_factory=list)
    commits: list[bytes] = field(default_factory=list)
    """Of the other side."""

    def commit(self) -> bytes:
        """To the next digit."""
        self.nonces.append(os.urandom(NONCE))
        return self._bound(len(self.nonces) - 1, self.nonces[-1], self.mine)

    def take(self, commit: bytes) -> None:
        if len(commit) != NONCE or len(self.commits) == DIGITS:
            raise _no_message("turn")
        self.commits.append(commit)

    def check(self, reveal: bytes) -> None:
        """Of the last digit taken. Raises PeerUntrusted when the other side did not know it."""
        if len(reveal) != NONCE or not self.commits:
            raise _no_message("turn")
        expected = self._bound(len(self.commits) - 1, reveal, self.theirs)
        if not hmac.compare_digest(self.commits[-1], expected):
            raise wrong_code()

    def _bound(self, digit: int, nonce: bytes, role: bytes) -> bytes:
        said = self.base + role + bytes((digit,)) + self.code[digit].encode()
        return hmac.digest(nonce, said, "sha256")


class Joiner:
    """The device. `hello`, `welcome`, then `turn` until it gives a `Paired`."""

    def __init__(
        self, identity: Identity, name: str, request: bytes, code: str, tls: bytes
    ) -> None:
        """`request`: DER; `tls`: the certificate that the other side showed (DER)."""
        self._identity = identity
        self._hello = Hello(VERSION, identity.public, name, request, os.urandom(NONCE))
        self._code, self._tls = code, tls
        self._welcome: Welcome | None = None
        self._rounds: _Rounds | None = None

    def hello(self) -> bytes:
        return msgspec.msgpack.encode(self._hello)

    def welcome(self, data: bytes) -> bytes:
        """The first turn. Raises RemoteProtocolError."""
        welcome = self._welcome = _read(data, Welcome)
        if len(welcome.identity) != KEY:
            raise _no_message("welcome")
        base = _base(self.hello(), data, self._tls)
        rounds = self._rounds = _Rounds(base, self._code, _DEVICE, _CLOUD)
        return msgspec.msgpack.encode(Turn(b"", rounds.commit()))

    def turn(self, data: bytes) -> bytes | Paired:
        """The next message, or the end. Raises PeerUntrusted, RemoteProtocolError."""
        rounds, welcome = self._rounds, self._welcome
        if rounds is None or welcome is None:
            raise _no_message("turn")
        if len(rounds.commits) == DIGITS:
            return self._granted(rounds, welcome, _read(data, Grant))
        turn = _read(data, Turn)
        if rounds.commits:
            rounds.check(turn.reveal)
        rounds.take(turn.commit)
        reveal = rounds.nonces[-1]
        if len(rounds.commits) < DIGITS:
            return msgspec.msgpack.encode(Turn(reveal, rounds.commit()))
        return msgspec.msgpack.encode(Proof(reveal, self._identity.sign(_DEVICE, rounds.base)))

    def _granted(self, rounds: _Rounds, welcome: Welcome, grant: Grant) -> Paired:
        rounds.check(grant.reveal)
        given = _given(rounds.base, grant.certificate, grant.tenant)
        if not genuine(welcome.identity, _CLOUD, given, grant.signature):
            raise wrong_code()
        return Paired(
            welcome.identity,
            self._hello.name,
            welcome.authority,
            welcome.address,
            grant.certificate,
            grant.tenant,
        )


Issue = Callable[[Hello], tuple[bytes, str]]
"""The certificate (PEM) and the tenant of a device that has proven the code."""


class Inviter:
    """The cloud. `hello`, then `turn` until `paired` is set; what it gives is sent back."""

    def __init__(
        self, identity: Identity, authority: bytes, address: str, code: str, tls: bytes
    ) -> None:
        """`tls`: the certificate that this side shows (DER)."""
        self._identity, self._code, self._tls = identity, code, tls
        self._welcome = Welcome(identity.public, authority, address, os.urandom(NONCE))
        self._hello: Hello | None = None
        self._rounds: _Rounds | None = None
        self.paired: Paired | None = None

    def hello(self, data: bytes) -> bytes:
        """Raises RemoteProtocolError, and SealError for a request that proves nothing."""
        hello = self._hello = _read(data, Hello)
        if hello.version != VERSION or len(hello.identity) != KEY:
            raise _no_message("hello")
        if not NAME.fullmatch(hello.name):
            raise _no_message("hello")
        requested_key(hello.request)
        said = msgspec.msgpack.encode(self._welcome)
        self._rounds = _Rounds(_base(data, said, self._tls), self._code, _CLOUD, _DEVICE)
        return said

    def turn(self, data: bytes, issue: Issue) -> bytes:
        """Raises PeerUntrusted, RemoteProtocolError; then this object is of no more use."""
        hello, rounds = self._hello, self._rounds
        if hello is None or rounds is None or self.paired is not None:
            raise _no_message("turn")
        try:
            if len(rounds.commits) == DIGITS:
                return self._proven(rounds, hello, _read(data, Proof), issue)
            turn = _read(data, Turn)
            before = rounds.nonces[-1] if rounds.nonces else b""
            if before:
                rounds.check(turn.reveal)
            rounds.take(turn.commit)
            return msgspec.msgpack.encode(Turn(before, rounds.commit()))
        except BaseException:
            self._rounds = None
            raise

    def _proven(self, rounds: _Rounds, hello: Hello, proof: Proof, issue: Issue) -> bytes:
        rounds.check(proof.reveal)
        if not genuine(hello.identity, _DEVICE, rounds.base, proof.signature):
            raise wrong_code()
        certificate, tenant = issue(hello)
        given = _given(rounds.base, certificate, tenant)
        self.paired = Paired(
            hello.identity,
            hello.name,
            self._welcome.authority,
            self._welcome.address,
            certificate,
            tenant,
        )
        signature = self._identity.sign(_CLOUD, given)
        return msgspec.msgpack.encode(Grant(rounds.nonces[-1], signature, certificate, tenant))


def _base(hello: bytes, welcome: bytes, tls: bytes) -> bytes:
    """A hash of all that the code is to prove."""
    made = hashlib.sha256(_NAME)
    for part in (hello, welcome, tls):
        made.update(len(part).to_bytes(4, "big") + part)
    return made.digest()


def _given(base: bytes, certificate: bytes, tenant: str) -> bytes:
    return base + hashlib.sha256(certificate).digest() + tenant.encode()


def _read(data: bytes, kind: type[T]) -> T:
    if len(data) > MOST:
        raise _no_message(kind.__name__.lower())
    try:
        return msgspec.msgpack.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise _no_message(kind.__name__.lower()) from None


def _no_message(which: str) -> RemoteProtocolError:
    return RemoteProtocolError(
        f"the {which} of the pairing is not as version {VERSION} has it",
        effect="nothing was paired",
        todo="run the same release of outrider on both sides",
    )


def wrong_code() -> PeerUntrusted:
    return PeerUntrusted(
        "the two sides do not know the same code",
        why="it was mistyped, or somebody stands between them",
        effect="nothing was paired, and this code is worth nothing any more",
        todo="try again with the code that `outrider link invite` shows now",
    )
