"""Pairing, tenants and the vault as they are typed."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from outrider import paths
from outrider.cli import app as entry
from outrider.cli import console
from outrider.cli.purge import KNOWN
from outrider.config.layers import Layers
from outrider.edge import journal, seals
from outrider.options import Address, EdgeOptions
from outrider.privacy import keys, vault
from outrider.privacy.pairing import DIGITS
from tests.privacy.test_journal_seal import records
from tests.support import ask, cloud, edge, expected, run

Say = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    for name in ("STATE", "RUNTIME", "CONFIG", "CACHE", "MODELS"):
        monkeypatch.delenv(f"OUTRIDER_{name}", raising=False)
    monkeypatch.setenv("OUTRIDER_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("OUTRIDER_KEYS", "file")
    yield tmp_path / "home"


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str]) -> Say:
    def run(*words: str) -> tuple[int, str, str]:
        code = entry.run(words)
        found = capsys.readouterr()
        return code, found.out, found.err

    return run


class Inviting:
    """`outrider link invite` in a thread; what it prints comes here and not to the screen."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, cloud: Address) -> None:
        self.said: list[dict[str, Any]] = []
        self.news = threading.Condition()
        real = console.as_json

        def heard(value: Any) -> None:
            if threading.current_thread() is not self.thread:
                real(value)
                return
            with self.news:
                self.said.append(value)
                self.news.notify_all()

        monkeypatch.setattr(console, "as_json", heard)
        words = ("link", "invite", "--listen", "127.0.0.1:0", "--cloud", str(cloud), "--json")
        self.thread = threading.Thread(target=lambda: entry.run(words), daemon=True)
        self.thread.start()

    def heard(self, number: int) -> dict[str, Any]:
        with self.news:
            assert self.news.wait_for(lambda: len(self.said) > number, 30.0)
            return self.said[number]


def test_from_an_invitation_to_an_answer(
    say: Say, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async def main() -> None:
        async with cloud(tmp_path, paired=True) as c:
            invited = Inviting(monkeypatch, c.address)
            first = invited.heard(0)
            add = ("link", "add", "home", first["address"], "--pair", "--device", "lap", "--code")
            code, _, err = say(*add, "12")
            assert code == 6 and "8 digits" in err
            wrong = f"{(int(first['code']) + 1) % 10**DIGITS:08}"
            code, _, err = await _threaded(say, *add, wrong)
            assert code == 6 and "do not know the same code" in err
            assert not paths.config_file().exists()
            code, out, err = await _threaded(say, *add, invited.heard(1)["code"])
            assert code == 0 and str(c.address) in out and "paired with" in err
            assert invited.heard(2)["device"] == "lap"
            code, out, _ = say("identity", "devices", "--json")
            [device] = json.loads(out)["devices"]
            assert (device["name"], device["revoked_at"]) == ("lap", None)
            code, out, _ = say("link", "ls")
            assert "paired" in out
            code, out, _ = await _threaded(say, "link", "test", "home", "--json")
            assert code == 0 and json.loads(out)["warnings"] == []

            options = Layers.load().settle(EdgeOptions, "edge", {}, ())
            assert [link.name for link in options.links] == ["home"] and not options.clouds
            async with edge(links=options.links, fallback="error") as e:
                assert (await e.answer(ask())).ids() == expected(ask())
            code, _, err = say(*add, invited.heard(1)["code"])
            assert code == 2 and "already" in err
            assert say("identity", "revoke", "lap")[0] == 0
            code, _, err = await _threaded(say, "link", "test", "home")
            assert code == 6 and "not paired" in err
            assert say("link", "rm", "home")[0] == 0
            assert not (paths.state_dir() / "links" / "home").exists()

    run(main())


async def _threaded(say: Say, *words: str) -> tuple[int, str, str]:
    import asyncio

    return await asyncio.to_thread(say, *words)


def test_a_link_by_its_name_is_the_only_cloud_that_is_tried(say: Say) -> None:
    say("link", "add", "one", "127.0.0.1:1")
    say("link", "add", "two", "127.0.0.1:2")

    def clouds(*said: str) -> tuple[list[str], list[str]]:
        flags = {"clouds": tuple(Address.parse(text, 9) for text in said)}
        given = {"cloud"} if said else set()
        made = Layers.load().settle(EdgeOptions, "edge", flags, given)
        return [link.name for link in made.links], [str(each) for each in made.clouds]

    assert clouds() == (["one", "two"], [])
    assert clouds("two") == (["two"], [])
    assert clouds("two", "127.0.0.1:3") == (["two"], ["127.0.0.1:3"])
    assert clouds("127.0.0.1:3") == (["one", "two"], ["127.0.0.1:3"])


# --- tenants and the vault ---------------------------------------------------------------------


def test_tenants(say: Say) -> None:
    code, key, err = say("tenants", "add", "alice")
    assert code == 0 and key.startswith("or-") and "nowhere else" in err
    assert json.loads(say("tenants", "ls", "--json")[1])["tenants"] == [
        {"name": "alice", "kept": "hashed"}
    ]
    assert say("tenants", "revoke", "alice")[0] == 0
    assert say("tenants", "revoke", "alice")[0] == 3
    assert "no tenants" in say("tenants", "ls")[1]


def left_behind() -> Path:
    path = paths.state_dir() / "journals" / "r1.journal"
    made = journal.DiskJournal(path, journal.Plain())
    for record in records("r1"):
        made.write(record)
    made.close(outcome="kept")
    return path


def test_a_vault_seals_what_lay_there_and_its_end_takes_all_along(say: Say) -> None:
    path = left_behind()
    code, out, _ = say("vault", "init", "--json")
    assert code == 0 and json.loads(out)["journals_sealed"] == 1
    options = EdgeOptions(journal="disk", journal_dir=path.parent)
    kept = path.read_bytes()
    assert tuple(journal.read(path, seals.seals(options).of(path))) == records("r1")
    assert b"canary" not in kept
    assert say("vault", "init")[0] == 6
    assert say("vault", "rotate")[0] == 2, "nobody can be asked"
    assert json.loads(say("vault", "rotate", "--yes", "--json")[1]) == {"schema": 1, "epoch": 2}
    assert not path.exists() and seals.seals(options) is not None
    assert say("vault", "erase", "--yes")[0] == 0
    assert json.loads(say("vault", "status", "--json")[1])["vault"] is False
    assert isinstance(seals.seals(options), journal.PlainSeals)


def test_a_vault_of_a_passphrase(say: Say, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OUTRIDER_VAULT_PASSPHRASE", "short")
    assert say("vault", "init", "--passphrase")[0] == 6
    monkeypatch.setenv("OUTRIDER_VAULT_PASSPHRASE", "several good words")
    assert say("vault", "init", "--passphrase")[0] == 0
    found = json.loads(say("vault", "status", "--json")[1])
    assert found["kept_in"] == "passphrase" and found["try_s"] > 0.01
    monkeypatch.setenv("OUTRIDER_VAULT_PASSPHRASE", "several wrong words")
    code, _, err = say("vault", "rotate", "--yes")
    assert code == 6 and "wrong" in err


def test_a_purge_leaves_no_secret(say: Say, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secrets = keys.here()
    vault.make(vault.place(), secrets)
    keys.identity(secrets, "device")
    say("tenants", "add", "alice")
    assert say("down", "--purge", "--yes")[0] == 0
    assert not home.exists()
    monkeypatch.setenv("OUTRIDER_STATE", str(home / "elsewhere"))
    keys.identity(keys.here(), "device")
    vault.make(vault.place(), keys.here())
    (home / "elsewhere" / "mine").write_text("not ours")
    assert say("down", "--purge", "--yes")[0] == 0
    assert [p.name for p in (home / "elsewhere").iterdir()] == ["mine"]
    assert {"keys", "vault", "links", "cloud"} <= set(KNOWN["state"])
