"""Keys and certificates: beyond loopback nobody unknown gets in, and no text goes in the clear."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from outrider.cloud.tenants import ANYBODY, Tenants
from outrider.errors import AccessDenied, CloudUnreachable, ConfigError
from outrider.options import Address, CloudOptions
from tests.certificates import Identity, identity
from tests.cloud.client import Client, Refused, connect, opening
from tests.support import ask, cloud, edge, expected, run


@dataclass(frozen=True)
class Pki:
    authority: Identity
    server: Identity
    device: Identity
    stranger: Identity
    """An authority that nobody here trusts."""
    expired: Identity
    keys: Path


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pki]:
    folder = tmp_path_factory.mktemp("pki")
    authority = identity(folder, "authority")
    keys = folder / "keys"
    keys.write_text("# who may\nalice key-of-alice\nbob key-of-bob\n")
    yield Pki(
        authority,
        identity(folder, "server", authority),
        identity(folder, "device", authority),
        identity(folder, "stranger"),
        identity(folder, "expired", authority, days=(-3, -1)),
        keys,
    )


def secure(address: object, pki: Pki, *, device: Identity | None = None, key: str = "") -> Client:
    credentials = grpc.ssl_channel_credentials(
        pki.authority.cert.read_bytes(),
        device.key.read_bytes() if device else None,
        device.cert.read_bytes() if device else None,
    )
    return Client(grpc.aio.secure_channel(str(address), credentials), key)


# --- keys --------------------------------------------------------------------------------------


def test_keys_tell_tenants_apart_and_strangers_out(tmp_path: Path, pki: Pki) -> None:
    async def main() -> None:
        async with cloud(tmp_path, api_keys=pki.keys) as c:
            for wrong in ("", "key-of-nobody", "key-of-alice-and-more"):
                client = connect(c.address, key=wrong)
                found = await client.refusal(opening())
                assert isinstance(found.error, AccessDenied)
                assert found.code is grpc.StatusCode.UNAUTHENTICATED
                with pytest.raises(Refused):
                    await client.describe()
                await client.channel.close()
            assert not c.opened()
            alice, bob = (connect(c.address, key=f"key-of-{name}") for name in ("alice", "bob"))
            first, second = await alice.open(opening()), await bob.open(opening())
            assert {tenant for tenant, _ in c.verifier.sessions} == {"alice", "bob"}
            for stream in (first, second):
                await stream.to_the_end()
            for client in (alice, bob):
                await client.channel.close()

    run(main())


def test_an_edge_shows_its_key_and_one_without_fails_by_name(tmp_path: Path, pki: Pki) -> None:
    async def main() -> None:
        async with cloud(tmp_path, api_keys=pki.keys) as c:
            async with edge(c.address, cloud_api_key="key-of-alice") as e:
                assert (await e.answer(ask(max_tokens=8))).ids() == expected(ask(max_tokens=8))
            async with edge(c.address, fallback="error") as e:
                with pytest.raises(CloudUnreachable, match="does not know this key"):
                    await e.answer(ask(max_tokens=8))

    run(main())


def test_a_key_file_that_says_nothing_is_refused(tmp_path: Path) -> None:
    for text in ("", "# nobody\n", "alice\n", "alice key and more\n"):
        (tmp_path / "keys").write_text(text)
        with pytest.raises(ConfigError):
            Tenants.read(tmp_path / "keys")
    with pytest.raises(ConfigError):
        Tenants.read(tmp_path / "nowhere")


def test_without_keys_everybody_is_the_local_tenant() -> None:
    assert Tenants().who("") == Tenants().who("Bearer anything") == ANYBODY


# --- TLS ---------------------------------------------------------------------------------------


def test_tls_serves_who_trusts_the_authority_and_nobody_in_the_clear(
    tmp_path: Path, pki: Pki
) -> None:
    async def main() -> None:
        sealed: dict[str, Any] = {"tls_cert": pki.server.cert, "tls_key": pki.server.key}
        async with cloud(tmp_path, **sealed, api_keys=pki.keys) as c:
            client = secure(c.address, pki, key="key-of-bob")
            stream = await client.open(opening())
            await stream.to_the_end()
            await client.channel.close()
            clear = connect(c.address, key="key-of-bob")
            with pytest.raises(Refused) as found:
                await clear.describe()
            assert found.value.code is grpc.StatusCode.UNAVAILABLE
            await clear.channel.close()
            trusted: dict[str, Any] = {
                "cloud_ca": pki.authority.cert,
                "cloud_api_key": "key-of-alice",
            }
            async with edge(c.address, **trusted) as e:
                assert (await e.answer(ask(max_tokens=8))).ids() == expected(ask(max_tokens=8))

    run(main())


@pytest.mark.parametrize("who", ["stranger", "expired"])
def test_an_edge_trusts_no_cloud_that_its_authority_did_not_sign(
    tmp_path: Path, pki: Pki, who: str
) -> None:
    async def main() -> None:
        posing: Identity = getattr(pki, who)
        async with cloud(tmp_path, tls_cert=posing.cert, tls_key=posing.key) as c:
            async with edge(c.address, cloud_ca=pki.authority.cert, fallback="error") as e:
                with pytest.raises(CloudUnreachable):
                    await e.answer(ask(max_tokens=8))
            assert not c.opened()

    run(main())


def test_with_a_client_authority_a_device_must_show_its_certificate(
    tmp_path: Path, pki: Pki
) -> None:
    async def main() -> None:
        mutual: dict[str, Any] = {
            "tls_cert": pki.server.cert,
            "tls_key": pki.server.key,
            "client_ca": pki.authority.cert,
        }
        async with cloud(tmp_path, **mutual) as c:
            for nobody in (None, pki.stranger, pki.expired):
                client = secure(c.address, pki, device=nobody)
                with pytest.raises(Refused) as found:
                    await client.describe()
                assert found.value.code is grpc.StatusCode.UNAVAILABLE
                await client.channel.close()
            known: dict[str, Any] = {
                "cloud_ca": pki.authority.cert,
                "cloud_cert": pki.device.cert,
                "cloud_key": pki.device.key,
            }
            async with edge(c.address, **known) as e:
                assert (await e.answer(ask(max_tokens=8))).ids() == expected(ask(max_tokens=8))

    run(main())


# --- what is refused before anything is bound --------------------------------------------------


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"tls_cert": Path("c"), "tls_key": Path("k")},
        {"api_keys": Path("a")},
    ],
    ids=["nothing", "no keys", "no TLS"],
)
@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.7", "example.org"])
def test_a_bind_beyond_loopback_needs_tls_and_keys(host: str, given: dict[str, Path]) -> None:
    with pytest.raises(ConfigError, match="not a loopback"):
        CloudOptions(listen=Address(host, 0), **given)  # type: ignore[arg-type]


def test_with_both_it_may(pki: Pki) -> None:
    CloudOptions(
        listen=Address("0.0.0.0", 0),
        tls_cert=pki.server.cert,
        tls_key=pki.server.key,
        api_keys=pki.keys,
    )


def test_half_of_a_pair_is_refused(pki: Pki) -> None:
    with pytest.raises(ConfigError, match="go together"):
        CloudOptions(tls_cert=pki.server.cert)
    with pytest.raises(ConfigError, match="--client-ca needs"):
        CloudOptions(client_ca=pki.authority.cert)


def test_a_certificate_that_can_not_be_read_is_a_clear_error(tmp_path: Path, pki: Pki) -> None:
    async def main() -> None:
        missing: dict[str, Any] = {"tls_cert": tmp_path / "none.pem", "tls_key": pki.server.key}
        with pytest.raises(ConfigError, match="--tls-cert can not be read"):
            async with cloud(tmp_path, **missing):
                raise AssertionError("it started")

    run(main())
