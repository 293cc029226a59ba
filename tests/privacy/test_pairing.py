"""Pairing: who knows the code gets in, and somebody in the middle is caught."""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass, field

import msgspec
import pytest
from cryptography import x509

from outrider.errors import AccessDenied, CloudUnreachable, PeerUntrusted, RemoteProtocolError
from outrider.options import Address
from outrider.privacy import pairing
from outrider.privacy.certificates import Authority, Wanted
from outrider.privacy.identity import Identity
from outrider.privacy.pairing import (
    ATTEMPTS,
    DIGITS,
    LIFE_S,
    Hello,
    Invitation,
    Inviter,
    Joiner,
    Paired,
    typed,
)
from outrider.privacy.pairing_port import Port, join
from tests.support import LOOPBACK, run

NOW = 1_800_000_000.0
DEVICE, CLOUD = Identity.generate(), Identity.generate()
AUTHORITY = Authority.make(CLOUD.public, NOW)
WANTED = Wanted.make()
CODE = "31415926"


def issue(hello: Hello) -> tuple[bytes, str]:
    return AUTHORITY.device(hello.identity, hello.request, NOW), "home"


def joiner(code: str = CODE, tls: bytes = b"tls") -> Joiner:
    return Joiner(DEVICE, "laptop", WANTED.request, code, tls)


def inviter(code: str = CODE, tls: bytes = b"tls") -> Inviter:
    return Inviter(CLOUD, AUTHORITY.pem, "127.0.0.1:11712", code, tls)


def talk(device: Joiner, cloud: Inviter) -> Paired:
    said: bytes | Paired = device.welcome(cloud.hello(device.hello()))
    while not isinstance(said, Paired):
        said = device.turn(cloud.turn(said, issue))
    return said


def test_who_knows_the_code_is_paired() -> None:
    device, cloud = joiner(), inviter()
    found = talk(device, cloud)
    assert cloud.paired is not None and cloud.paired.identity == DEVICE.public
    assert (found.identity, found.tenant, found.name) == (CLOUD.public, "home", "laptop")
    leaf = x509.load_pem_x509_certificate(WANTED.granted(found.certificate).pem)
    assert f"outrider device {DEVICE.fingerprint}" in leaf.subject.rfc4514_string()


@pytest.mark.parametrize("digit", range(DIGITS))
def test_a_wrong_digit_is_caught_wherever_it_stands(digit: int) -> None:
    wrong = CODE[:digit] + str((int(CODE[digit]) + 1) % 10) + CODE[digit + 1 :]
    cloud = inviter()
    with pytest.raises(PeerUntrusted, match="do not know the same code"):
        talk(joiner(wrong), cloud)
    assert cloud.paired is None
    with pytest.raises(RemoteProtocolError):
        cloud.turn(b"", issue)


def test_the_same_code_over_two_connections_is_somebody_in_the_middle() -> None:
    """A relay that ends TLS: everything it passes on is genuine, and the certificates differ."""
    with pytest.raises(PeerUntrusted):
        talk(joiner(tls=b"of the relay"), inviter(tls=b"of the cloud"))


@dataclass
class Relay:
    """In the middle, with keys of its own and a guess of each digit: it pairs with the cloud in
    the device's place as far as its guesses, and what it learns from the device, carry."""

    guess: str
    own: Identity = field(default_factory=Identity.generate)

    def attack(self) -> int:
        """How many digits the cloud took from it before somebody noticed."""
        device, cloud = joiner(tls=b"relay"), inviter(tls=b"cloud")
        towards_device = Inviter(self.own, AUTHORITY.pem, "", self.guess, b"relay")
        towards_cloud = Joiner(self.own, "laptop", WANTED.request, self.guess, b"cloud")
        to_cloud = towards_cloud.welcome(cloud.hello(towards_cloud.hello()))
        to_device = device.welcome(towards_device.hello(device.hello()))
        taken = 0
        try:
            while True:
                answer = towards_device.turn(to_device, issue)
                said = device.turn(answer)
                assert isinstance(said, bytes)
                to_device = said
                made = towards_cloud.turn(cloud.turn(to_cloud, issue))
                assert isinstance(made, bytes)
                to_cloud = made
                taken += 1
        except PeerUntrusted:
            assert cloud.paired is None
            return taken


@pytest.mark.parametrize("right", [0, 3, 7])
def test_a_relay_gets_no_further_than_it_guessed(right: int) -> None:
    guess = CODE[:right] + "".join(str((int(d) + 5) % 10) for d in CODE[right:])
    assert Relay(guess).attack() <= right + 1


def test_a_commitment_can_not_be_sent_back() -> None:
    """What the cloud committed to, reflected, does not pass for the device's knowledge."""
    cloud = inviter()
    device = joiner("0" * DIGITS)
    said = device.welcome(cloud.hello(device.hello()))
    theirs = pairing._read(cloud.turn(said, issue), pairing.Turn)
    reflected = msgspec.msgpack.encode(pairing.Turn(theirs.commit, theirs.commit))
    with pytest.raises(PeerUntrusted):
        cloud.turn(reflected, issue)


@pytest.mark.parametrize("junk", [b"", b"\xc1", b"\x93\x01\x02\x03", b"\x00" * 20000])
def test_what_is_no_message_is_refused(junk: bytes) -> None:
    device, cloud = joiner(), inviter()
    with pytest.raises(RemoteProtocolError):
        inviter().hello(junk)
    said = device.welcome(cloud.hello(device.hello()))
    with pytest.raises(RemoteProtocolError):
        device.turn(junk)
    with pytest.raises(RemoteProtocolError):
        cloud.turn(junk, issue)
    with pytest.raises(RemoteProtocolError):
        cloud.turn(said, issue)
    with pytest.raises(RemoteProtocolError):
        joiner().welcome(junk)


# --- codes -------------------------------------------------------------------------------------


def test_a_code_is_good_for_one_attempt_and_two_minutes() -> None:
    invitation = Invitation(0.0)
    first = invitation.use(LIFE_S)
    with pytest.raises(AccessDenied, match="over"):
        invitation.use(1.0)
    second = invitation.renew(10.0)
    assert second is not None and second != first
    with pytest.raises(AccessDenied, match="over"):
        invitation.use(10.0 + LIFE_S + 0.1)
    assert invitation.use(11.0) == second


def test_after_three_there_are_no_more() -> None:
    invitation = Invitation(0.0)
    for attempt in range(ATTEMPTS):
        invitation.use(0.0)
        assert (invitation.renew(0.0) is None) == (attempt == ATTEMPTS - 1)
    with pytest.raises(AccessDenied, match="over"):
        invitation.use(0.0)
    assert "code=" not in repr(invitation)


def test_what_people_type() -> None:
    assert typed(" 3141-5926\n") == typed("3141 5926") == CODE
    for wrong in ("", "123", "314159265", "3141592x", "٣١٤١٥٩٢٦"):
        with pytest.raises(AccessDenied, match="no code"):
            typed(wrong)


# --- over the wire -----------------------------------------------------------------------------


def real() -> float:
    return time.clock_gettime(time.CLOCK_REALTIME)


def test_over_grpc_with_a_mistyped_code_first() -> None:
    async def main() -> None:
        codes: list[str | None] = []
        async with AsyncExitStack() as stack:
            port = Port(
                CLOUD, AUTHORITY.pem, "127.0.0.1:1", issue, clock := Clock(), codes.append, real()
            )
            place = Address.parse(await port.serve(LOOPBACK, stack), 0)
            assert codes[0] is not None
            wrong = f"{(int(codes[0]) + 1) % 10**DIGITS:08}"
            with pytest.raises(PeerUntrusted):
                await join(place, DEVICE, "laptop", wrong, WANTED)
            with pytest.raises(PeerUntrusted):
                await join(place, DEVICE, "laptop", codes[0], WANTED)
            assert len(codes) == 3 and codes[2] is not None
            clock.now += LIFE_S + 1
            with pytest.raises(AccessDenied, match="over"):
                await join(place, DEVICE, "laptop", codes[2], WANTED)
            clock.now -= 2.0
            found = await join(place, DEVICE, "laptop", codes[2], WANTED)
            assert found.identity == CLOUD.public
            assert (await port.done).identity == DEVICE.public

    run(main())


@dataclass
class Clock:
    now: float = 0.0

    def __call__(self) -> float:
        return self.now


def test_three_wrong_codes_end_it() -> None:
    async def main() -> None:
        codes: list[str | None] = []
        async with AsyncExitStack() as stack:
            port = Port(CLOUD, AUTHORITY.pem, "", issue, Clock(), codes.append, real())
            place = Address.parse(await port.serve(LOOPBACK, stack), 0)
            for _ in range(ATTEMPTS):
                with pytest.raises(PeerUntrusted):
                    await join(place, DEVICE, "laptop", other(codes[-1]), WANTED)
            assert codes[-1] is None
            with pytest.raises(PeerUntrusted):
                await port.done

    run(main())


def other(code: str | None) -> str:
    assert code is not None
    return f"{int(code) ^ 1:08}" if int(code) ^ 1 < 10**DIGITS else "0" * DIGITS


def test_nobody_there() -> None:
    async def main() -> None:
        with pytest.raises(CloudUnreachable):
            await join(Address("127.0.0.1", 9), DEVICE, "laptop", CODE, WANTED)
        server = await asyncio.start_server(lambda r, w: w.close(), "127.0.0.1", 0)
        place = Address("127.0.0.1", server.sockets[0].getsockname()[1])
        with pytest.raises(CloudUnreachable):
            await join(place, DEVICE, "laptop", CODE, WANTED)
        server.close()

    run(main())
