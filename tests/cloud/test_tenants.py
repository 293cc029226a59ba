"""Keys of tenants: hashed at rest, proven once, taken away while the cloud runs."""

from __future__ import annotations

import stat
from dataclasses import replace
from pathlib import Path

import pytest

from outrider.cloud import tenants
from outrider.cloud.tenants import Tenants
from outrider.errors import AccessDenied, ConfigError, LinkLost, NotFound, OutriderError, Overloaded
from outrider.protocol.stream import Token
from tests.support import Answered, answering, ask, cloud, edge, expected, run, until


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is tested is not what a hash costs."""
    monkeypatch.setattr(tenants, "N", 1 << 4)


def test_a_key_is_nowhere_but_with_who_asked_for_it(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "tenants"
    alice, bob = tenants.add(path, "alice"), tenants.add(path, "bob")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    for key in (alice, bob):
        assert key not in path.read_text() and key.rpartition("-")[2] not in path.read_text()
    found = Tenants.read(path)
    assert found.names == {"alice", "bob"} and not found.digests
    assert found.who(f"Bearer {alice}") == "alice" and found.who(f"Bearer {bob}") == "bob"
    swapped = "-".join((*bob.split("-")[:2], alice.split("-", 2)[2]))
    for wrong in ("", alice[:-1], alice + "x", swapped, "or-aaaaaaaa-" + "x" * 43):
        with pytest.raises(AccessDenied):
            found.who(f"Bearer {wrong}")


def test_a_key_is_stretched_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key = tenants.add(tmp_path / "t", "alice")
    found = Tenants.read(tmp_path / "t")
    assert found.who(key) == "alice"
    monkeypatch.setattr(tenants, "_stretch", lambda *a: pytest.fail("again"))
    assert found.who(key) == "alice" and found.who(f"Bearer {key}") == "alice"
    with pytest.raises(AccessDenied):
        found.who("a key that names no line costs nothing")


def test_unknown_keys_do_not_hold_up_the_loop(tmp_path: Path) -> None:
    key = tenants.add(tmp_path / "t", "alice")
    found = Tenants.read(tmp_path / "t")

    async def main() -> None:
        assert await found.admit(f"Bearer {key}") == "alice"
        with pytest.raises(AccessDenied):
            await found.admit(f"Bearer {key[:-1]}{'b' if key[-1] == 'a' else 'a'}")
        found._waiting.extend([None] * tenants.WAITING)
        assert await found.admit(key) == "alice", "who is known does not wait"
        with pytest.raises(Overloaded, match="being checked"):
            await found.admit(f"Bearer {key[:-1]}{'b' if key[-1] == 'a' else 'a'}")

    run(main())


def test_the_old_form_is_read_beside_the_new(tmp_path: Path) -> None:
    path = tmp_path / "t"
    path.write_text("# who may\nold key-in-the-clear\n")
    key = tenants.add(path, "new")
    found = Tenants.read(path)
    assert found.who("key-in-the-clear") == "old" and found.who(key) == "new"
    assert path.read_text().startswith("# who may\n") and len(found.digests) == 1


@pytest.mark.parametrize(
    "line",
    [
        "a b c",
        "a b scrypt:16:00:00",
        "a b scrypt:17:" + "0" * 32 + ":" + "0" * 64,
        "a b scrypt:9999999:" + "0" * 32 + ":" + "0" * 64,
        "a b c d",
    ],
)
def test_a_malformed_line_is_refused(tmp_path: Path, line: str) -> None:
    (tmp_path / "t").write_text(f"good key\n{line}\n")
    with pytest.raises(ConfigError, match="malformed"):
        Tenants.read(tmp_path / "t")


def test_names(tmp_path: Path) -> None:
    for wrong in ("", "a b", "#a", "a\nb"):
        with pytest.raises(ConfigError, match="can not name"):
            tenants.add(tmp_path / "t", wrong)
    with pytest.raises(NotFound, match="no tenant"):
        tenants.revoke(tmp_path / "t", "nobody")
    tenants.add(tmp_path / "t", "alice")
    tenants.add(tmp_path / "t", "alice")
    assert tenants.revoke(tmp_path / "t", "alice") == 2
    assert Tenants.again(tmp_path / "t").asked_for, "an empty file lets nobody in"
    with pytest.raises(AccessDenied):
        Tenants.again(tmp_path / "t").who("")


def test_a_revoked_key_ends_what_it_runs(tmp_path: Path) -> None:
    keys = tmp_path / "t"
    key = tenants.add(keys, "alice")
    tenants.add(keys, "bob")

    async def main() -> None:
        request = ask(max_tokens=3000)
        async with cloud(tmp_path, api_keys=keys) as c:
            async with edge(c.address, cloud_api_key=key, fallback="error") as e:
                short = replace(request, max_tokens=8)
                assert (await e.answer(short)).ids() == expected(short)
                found = Answered()
                # gRPC forgets the reason when the edge was writing in that very moment.
                with pytest.raises((AccessDenied, LinkLost)):
                    async with answering(e, request) as stream:
                        async for event in stream:
                            found.events.append(event)
                            if isinstance(event, Token) and event.position == 10:
                                tenants.revoke(keys, "alice")
                found.check()
                assert not c.verifier.sessions
                await until(lambda: bool(e.daemon.link.usable()), "it may be tried again")
                with pytest.raises(OutriderError, match="key"):
                    await e.answer(short)

    run(main())
