"""Paired devices under way: certificates change on both sides, devices are revoked, keys too."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from outrider.cli.dial import dial
from outrider.cloud.guests import Guests, devices
from outrider.cloud.tenants import Tenants
from outrider.edge import renewal
from outrider.edge.renewal import now
from outrider.errors import (
    AccessDenied,
    CloudUnreachable,
    ConfigError,
    LinkLost,
    NotFound,
    OutriderError,
    PeerUntrusted,
    SealError,
)
from outrider.options import Address, CloudLink, CloudOptions, EdgeOptions
from outrider.privacy import certificates, keys
from outrider.privacy.certificates import DAY_S, Authority, Life, Wanted, device_of
from outrider.privacy.devices import Device, Devices
from outrider.privacy.identity import Identity
from outrider.privacy.renewal import Renewal
from outrider.protocol.stream import Token
from tests.support import (
    Answered,
    CloudUnderTest,
    EdgeUnderTest,
    answering,
    ask,
    cloud,
    edge,
    expected,
    run,
    until,
)

REQUEST = ask(max_tokens=120)


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("OUTRIDER_STATE", str(tmp_path / "state"))
    monkeypatch.setenv("OUTRIDER_KEYS", "file")
    return tmp_path / "state"


def paired(
    folder: Path, address: Address, *, at: float | None = None, days: float = 30
) -> CloudLink:
    """What a pairing leaves on both sides, as `outrider link` writes it."""
    folder.mkdir(parents=True, exist_ok=True)
    secrets = keys.here()
    device, verifier = keys.identity(secrets, "device"), keys.identity(secrets, "verifier")
    authority = certificates.authority(secrets, verifier.public, now())
    devices().add(Device("laptop", device.public.hex(), "home", now()))
    wanted = Wanted.make()
    pem = authority.device(device.public, wanted.request, at or now(), days)
    (folder / "ca.pem").write_bytes(authority.pem)
    (folder / "device.pem").write_bytes(wanted.granted(pem).both)
    cert = folder / "device.pem"
    return CloudLink(address, "home", folder / "ca.pem", cert, cert, paired=verifier.public.hex())


@asynccontextmanager
async def pair(
    tmp_path: Path, **fields: Any
) -> AsyncIterator[tuple[CloudUnderTest, EdgeUnderTest, CloudLink]]:
    async with cloud(tmp_path, paired=True) as c:
        link = paired(tmp_path / "link", c.address, **fields)
        async with edge(links=(link,), fallback="error") as e:
            yield c, e, link


async def started(stream: AsyncIterator[Any], found: Answered, tokens: int) -> None:
    async for event in stream:
        found.events.append(event)
        if isinstance(event, Token) and event.position == tokens:
            return


def guests(c: CloudUnderTest) -> Guests:
    found = c.running.cloud.guests
    assert found is not None
    return found


# --- certificates ------------------------------------------------------------------------------


def test_a_running_answer_outlives_new_certificates_on_both_sides(tmp_path: Path) -> None:
    async def main() -> None:
        async with pair(tmp_path, at=now() - 25 * DAY_S) as (c, e, link):
            assert link.cert is not None
            found, before = Answered(), Life.of(link.cert.read_bytes()).serial
            async with answering(e, REQUEST) as stream:
                await started(stream, found, 10)
                [old] = [peer.channel for peer in e.daemon.link.peers]
                shown = Life.of(guests(c).leaf.pem).serial
                guests(c).life = replace(guests(c).life, since=now() - 6 * DAY_S)
                assert await renewal.renew(e.daemon.link, link, e.daemon.options, now())
                assert Life.of(link.cert.read_bytes()).serial != before
                [new] = [peer.channel for peer in e.daemon.link.peers]
                assert new is not old
                await started(stream, found, 20)
                # A second answer goes over a new connection, beside the first one.
                second = await e.answer(replace(REQUEST, seed=8))
                assert second.ids() == expected(replace(REQUEST, seed=8))
                assert Life.of(guests(c).leaf.pem).serial != shown
                await started(stream, found, 10**6)
            found.check()
            assert found.ids() == expected(REQUEST) and found.done().exact
            assert len(c.opened()) == 2, "nobody had to open a session again"
            assert not await renewal.renew(e.daemon.link, link, e.daemon.options, now())

    run(main())


def test_what_is_on_a_channel_that_is_cut_off_loses_nothing_either(tmp_path: Path) -> None:
    """The old connection ends at once, as after a drain that took too long."""

    async def main() -> None:
        async with pair(tmp_path, at=now() - 25 * DAY_S) as (c, e, link):
            found = Answered()
            async with answering(e, REQUEST) as stream:
                await started(stream, found, 10)
                [peer] = e.daemon.link.peers
                old = peer.channel
                assert await renewal.renew(e.daemon.link, link, e.daemon.options, now())
                await old.close()
                await started(stream, found, 10**6)
            found.check()
            assert found.ids() == expected(REQUEST)
            assert len(c.opened()) >= 2

    run(main())


@pytest.mark.parametrize("days", [-1.0, 1.0])
def test_a_clock_that_is_a_day_off_is_borne(tmp_path: Path, days: float) -> None:
    async def main() -> None:
        async with pair(tmp_path, at=now() + days * DAY_S) as (c, e, _):
            guests(c).clock = lambda: now() + days * DAY_S
            guests(c).renew()
            assert (await e.answer(REQUEST)).ids() == expected(REQUEST)

    run(main())


@pytest.mark.parametrize("days", [-40.0, 3.0])
def test_a_certificate_that_is_over_or_not_yet_good_is_a_typed_error(
    tmp_path: Path, days: float
) -> None:
    async def main() -> None:
        async with pair(tmp_path, at=now() + days * DAY_S) as (c, e, _):
            with pytest.raises(CloudUnreachable):
                await e.answer(REQUEST)
            assert not c.opened()

    run(main())


def test_a_dial_checks_the_pin(tmp_path: Path) -> None:
    async def main() -> None:
        async with pair(tmp_path) as (_, _, link):
            found = await asyncio.to_thread(dial, link, 3.0)
            assert found.certificate is not None and "verifier" in found.certificate.subject
            other = replace(link, paired=Identity.generate().public.hex())
            with pytest.raises(CloudUnreachable, match="TLS refused"):
                await asyncio.to_thread(dial, other, 3.0)
            async with edge(links=(other,), fallback="error") as e:
                with pytest.raises(CloudUnreachable):
                    await e.answer(REQUEST)

    run(main())


def test_a_device_can_not_pose_as_the_cloud(tmp_path: Path) -> None:
    """Its certificate is of the same authority, and good for callers alone."""

    async def main() -> None:
        link = paired(tmp_path / "link", Address("127.0.0.1", 9))
        async with cloud(tmp_path, tls_cert=link.cert, tls_key=link.cert) as c:
            async with edge(links=(replace(link, url=c.address),), fallback="error") as e:
                with pytest.raises(CloudUnreachable):
                    await e.answer(REQUEST)
            assert not c.opened()

    run(main())


# --- revocation --------------------------------------------------------------------------------


def test_a_revoked_device_is_refused_and_what_it_runs_ends(tmp_path: Path) -> None:
    async def main() -> None:
        async with pair(tmp_path) as (c, e, link):
            found = Answered()
            # gRPC forgets the reason when the edge was writing in that very moment.
            with pytest.raises((AccessDenied, LinkLost)):
                async with answering(e, replace(REQUEST, max_tokens=3000)) as stream:
                    await started(stream, found, 10)
                    devices().revoke("laptop", now())
                    await started(stream, found, 10**6)
            found.check()
            whole = expected(REQUEST)
            assert len(found.ids()) > 10 and found.ids()[: len(whole)] == whole[: len(found.ids())]
            assert not c.verifier.sessions
            await until(lambda: bool(e.daemon.link.usable()), "the cloud may be tried again")
            with pytest.raises(OutriderError) as refused:
                await e.answer(REQUEST)
            assert "not paired with the cloud any more" in refused.value.what
            with pytest.raises(AccessDenied):
                await renewal.renew(e.daemon.link, link, e.daemon.options, now() + 20 * DAY_S)

    run(main())


def test_a_list_of_devices_that_is_broken_lets_nobody_in(tmp_path: Path) -> None:
    async def main() -> None:
        async with pair(tmp_path) as (c, e, _):
            sound = devices().path.read_bytes()
            for broken in (b"{", b'{"format": 2}', b'{"format":1,"devices":[{"name":3}]}'):
                devices().path.write_bytes(broken)
                with pytest.raises(SealError, match="can not be used"):
                    devices().now()
                with pytest.raises(OutriderError, match="not paired"):
                    await e.answer(REQUEST)
            devices().path.write_bytes(sound)
            await e.daemon.link.find_one("")
            assert (await e.answer(REQUEST)).ids() == expected(REQUEST)

    run(main())


def test_devices_by_name_and_fingerprint(tmp_path: Path) -> None:
    found = Devices(tmp_path / "devices.json")
    one, two = Identity.generate(), Identity.generate()
    found.add(Device("a", one.public.hex(), "home", 1.0))
    found.add(Device("b", two.public.hex(), "home", 2.0))
    assert found.known(one.public) and found.find(two.fingerprint).name == "b"
    assert [d.name for d in found.revoke(one.fingerprint, 3.0)] == ["a"]
    assert not found.known(one.public) and found.known(two.public)
    for who in ("a", "nobody"):
        with pytest.raises(NotFound, match="is paired here"):
            found.revoke(who, 4.0)
    found.add(Device("a", one.public.hex(), "home", 5.0))
    assert Devices(found.path).known(one.public), "paired again"
    found.path.chmod(0o644)
    with pytest.raises(SealError, match="can not be used"):
        Devices(found.path).now()


# --- requests that prove nothing ---------------------------------------------------------------


def test_only_the_device_itself_renews() -> None:
    device, thief = Identity.generate(), Identity.generate()
    authority = Authority.make(Identity.generate().public, now())
    wanted = Wanted.make()
    assert Renewal.proven(Renewal.asked(device, wanted.request), device.public) == wanted.request
    with pytest.raises(PeerUntrusted):
        Renewal.proven(Renewal.asked(thief, wanted.request), device.public)
    for junk in (b"", b"\xc1", wanted.request[:-1] + b"\x00"):
        with pytest.raises(OutriderError):
            Renewal.proven(junk, device.public)
        with pytest.raises(SealError):
            authority.device(device.public, junk, now())
    with pytest.raises(SealError, match="can not be used"):
        Wanted.make().granted(authority.device(device.public, wanted.request, now()))
    pem = authority.device(device.public, wanted.request, now())
    found = x509.load_pem_x509_certificate(pem)
    names = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    uris = [uri.encode() for uri in names.get_values_for_type(x509.UniformResourceIdentifier)]
    assert device_of(uris) == device.fingerprint
    assert device_of([*uris, *uris]) is None and device_of([b"outrider://device/x"]) is None


def test_an_authority_that_is_broken_is_named() -> None:
    secrets = keys.here()
    made = certificates.authority(secrets, Identity.generate().public, now())
    assert certificates.authority(secrets, b"", now()).pem == made.pem
    other = Authority.make(Identity.generate().public, now())
    key = other.secret_pem()[len(other.pem) :]
    for broken in (b"", made.pem, made.pem + key):
        with pytest.raises(SealError, match="authority of certificates"):
            Authority.from_pem(broken)


def test_paired_is_enough_beyond_loopback_and_excludes_other_certificates() -> None:
    CloudOptions(listen=Address("0.0.0.0", 0), paired=True)
    with pytest.raises(ConfigError, match="exclude"):
        CloudOptions(paired=True, tls_cert=Path("c"), tls_key=Path("k"))
    with pytest.raises(ConfigError, match="no public key"):
        CloudLink(Address("127.0.0.1", 1), "home", paired="xyz")
    assert EdgeOptions().links == () and Tenants().who("") == "local"
