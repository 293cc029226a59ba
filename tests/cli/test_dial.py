"""`link test` against a real cloud: what it finds, and why it can not get in."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from outrider.cli.dial import Tried, dial
from outrider.errors import AccessDenied, CloudUnreachable, ConfigError
from outrider.options import Address, CloudLink
from tests.certificates import identity
from tests.support import cloud, run


async def tried(address: Address, **fields: Any) -> Tried:
    link = CloudLink(address, "home", **fields)
    return await asyncio.to_thread(dial, link, 3.0)


def test_on_loopback_in_the_clear(tmp_path: Path) -> None:
    async def main() -> None:
        async with cloud(tmp_path) as c:
            found = await tried(c.address)
            assert (found.ip, found.certificate, found.calls) == ("127.0.0.1", None, 5)
            assert [model["name"] for model in found.models] == ["t"]
            assert 0 < found.rtt_least_ms <= found.rtt_ms and found.warnings == ()

    run(main())


def test_certificates_and_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    authority = identity(tmp_path, "authority")
    server = identity(tmp_path, "server", authority)
    stranger = identity(tmp_path, "stranger")
    expired = identity(tmp_path, "expired", authority, days=(-3, -1))
    keys = tmp_path / "keys"
    keys.write_text("home the-key-of-home-0123456789\n")
    monkeypatch.setenv("HOME_KEY", "the-key-of-home-0123456789")
    sealed: dict[str, Any] = {"tls_key": server.key, "tls_cert": server.cert, "api_keys": keys}

    async def main() -> None:
        async with cloud(tmp_path, **sealed) as c:
            known: dict[str, Any] = {"ca": authority.cert, "api_key_ref": "env:HOME_KEY"}
            found = await tried(c.address, **known)
            assert found.certificate is not None and "server" in found.certificate.subject
            assert 1 < found.certificate.days_left < 2
            assert found.warnings[0].startswith("the cloud's certificate ends on")
            with pytest.raises(AccessDenied) as denied:
                await tried(c.address, ca=authority.cert)
            assert "api_key_ref" in denied.value.todo or "key" in denied.value.todo
            with pytest.raises(CloudUnreachable, match="TCP ok, TLS refused") as caught:
                await tried(c.address, **(known | {"ca": stranger.cert}))
            assert "give the authority" in caught.value.todo
            with pytest.raises(ConfigError, match="can not be used"):
                await tried(c.address, **(known | {"ca": tmp_path / "none"}))
        sealed.update(tls_key=expired.key, tls_cert=expired.cert)
        async with cloud(tmp_path / "second", **sealed) as c:
            with pytest.raises(CloudUnreachable, match="TLS refused") as caught:
                await tried(c.address, **known)
            assert "expired" in caught.value.why and "clock" in caught.value.todo

    run(main())


def test_a_name_that_leads_nowhere() -> None:
    link = CloudLink(Address("localhost", 1), "home")
    object.__setattr__(link, "url", Address("no-such-host.invalid", 1))
    with pytest.raises(CloudUnreachable, match="DNS failed"):
        dial(link, 1.0)
