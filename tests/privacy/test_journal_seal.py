"""Sealed journals: what a thief reads, and what somebody who changes files gets away with."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from outrider.edge import seals
from outrider.edge.journal import (
    Committed,
    DiskJournal,
    Fenced,
    Opened,
    Plain,
    PlainSeals,
    Record,
    read,
)
from outrider.errors import JournalError, SealBroken, SealError
from outrider.options import EdgeOptions
from outrider.privacy import keys, vault
from outrider.privacy.journal_seal import FLOOR, JournalSeals
from outrider.privacy.keys import MemoryKeys
from outrider.privacy.vault import Vault
from outrider.protocol import events
from outrider.protocol.sampling import SamplingParams
from outrider.protocol.stream import Token
from tests.support import Answered, answering, ask, cloud, edge, expected, run, until

PROMPT = tuple(b"the canary sang at noon")
START = 25


def opened(request: str) -> Opened:
    return Opened(
        1, request, b"s" * 16, "t", "class", PROMPT, SamplingParams(0.8), b"\7" * 16, 1, 50, ()
    )


def records(request: str) -> tuple[Record, ...]:
    return (
        opened(request),
        Fenced(1, "class"),
        Committed(1, 0, 0, (5, 6)),
        Committed(1, 0, 2, (7, 8)),
        Committed(1, 0, 4, (9, 10)),
    )


@pytest.fixture
def secrets() -> MemoryKeys:
    return MemoryKeys()


@pytest.fixture
def owned(tmp_path: Path, secrets: MemoryKeys) -> Vault:
    return vault.make(tmp_path / "vault", secrets)


@pytest.fixture
def sealed(tmp_path: Path, owned: Vault, secrets: MemoryKeys) -> JournalSeals:
    return JournalSeals.open(tmp_path / "register", owned, secrets)


def written(path: Path, sealed: JournalSeals, request: str = "r1") -> DiskJournal:
    made = DiskJournal(path, sealed.new(path))
    for record in records(request):
        made.write(record)
    return made


def taken(path: Path, sealed: JournalSeals) -> tuple[Record, ...]:
    return tuple(read(path, sealed.of(path)))


def frames(data: bytes) -> list[bytes]:
    """The records of a file with their frames."""
    at, found = START - 8, []
    while at < len(data):
        size = int.from_bytes(data[at : at + 4], "little")
        found.append(data[at : at + 8 + size])
        at += 8 + size
    return found


def joined(data: bytes, parts: Sequence[bytes]) -> bytes:
    return data[: START - 8] + b"".join(parts)


# --- what it is for ----------------------------------------------------------------------------


def test_it_is_read_after_a_restart_and_by_nobody_else(
    tmp_path: Path, sealed: JournalSeals, owned: Vault, secrets: MemoryKeys
) -> None:
    path = tmp_path / "r1.journal"
    written(path, sealed).close(outcome="kept")
    assert bytes(PROMPT) not in path.read_bytes()
    plain = tmp_path / "plain.journal"
    DiskJournal(plain, Plain()).write(opened("plain"))
    assert bytes(PROMPT) in plain.read_bytes(), "the control: in the clear it is found"
    again = JournalSeals.open(tmp_path / "register", vault.unlock(owned.path, secrets), secrets)
    assert taken(path, again) == records("r1")
    assert tuple(read(path, Plain())) == ()


def test_torn_at_every_byte_it_gives_what_stands_before(
    tmp_path: Path, sealed: JournalSeals
) -> None:
    path = tmp_path / "r1.journal"
    written(path, sealed).close(outcome="kept")
    whole, every = path.read_bytes(), records("r1")
    ends = [START - 8]
    for part in frames(whole):
        ends.append(ends[-1] + len(part))
    for cut in range(START - 8, len(whole) + 1):
        path.write_bytes(whole[:cut])
        complete = sum(end <= cut for end in ends) - 1
        assert taken(path, sealed) == every[:complete]


def test_a_changed_bit_anywhere_ends_it_there(tmp_path: Path, sealed: JournalSeals) -> None:
    """A bit of the frame looks torn, one of a record with its checksum mended is refused."""
    import zlib

    path = tmp_path / "r1.journal"
    written(path, sealed).close(outcome="kept")
    whole = path.read_bytes()
    parts = frames(whole)
    for number, part in enumerate(parts):
        for at in range(8, len(part)):
            body = bytearray(part[8:])
            body[at - 8] ^= 0x10
            head = part[:4] + zlib.crc32(bytes(body)).to_bytes(4, "little")
            path.write_bytes(joined(whole, [*parts[:number], head + body, *parts[number + 1 :]]))
            with pytest.raises(SealBroken):
                taken(path, sealed)
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert taken(path, sealed) == records("r1")[:-1]


def test_reordered_doubled_and_left_out_records_are_refused(
    tmp_path: Path, sealed: JournalSeals
) -> None:
    path = tmp_path / "r1.journal"
    written(path, sealed).close(outcome="kept")
    whole = path.read_bytes()
    a, b, c, d, e = frames(whole)
    for order in ([a, b, d, c, e], [a, b, c, c, d], [a, c, d, e], [b, a, c], [a, b, c, d, e, a]):
        path.write_bytes(joined(whole, order))
        with pytest.raises(SealBroken):
            taken(path, sealed)


def test_records_and_files_of_another_journal_are_refused(
    tmp_path: Path, sealed: JournalSeals
) -> None:
    one, two = tmp_path / "r1.journal", tmp_path / "r2.journal"
    written(one, sealed).close(outcome="kept")
    written(two, sealed, "r2").close(outcome="kept")
    first, second = one.read_bytes(), two.read_bytes()
    mixed = [*frames(first)[:3], *frames(second)[3:]]
    one.write_bytes(joined(first, mixed))
    with pytest.raises(SealBroken):
        taken(one, sealed)
    one.write_bytes(second)
    with pytest.raises(SealBroken):
        taken(one, sealed)


def test_a_copy_of_a_finished_journal_is_refused(
    tmp_path: Path, sealed: JournalSeals, owned: Vault, secrets: MemoryKeys
) -> None:
    path = tmp_path / "r1.journal"
    made = written(path, sealed)
    copy, register = path.read_bytes(), (tmp_path / "register").read_bytes()
    made.close(outcome="done")
    assert not path.exists()
    path.write_bytes(copy)
    with pytest.raises(SealBroken, match="can not be opened") as caught:
        taken(path, sealed)
    assert "done long ago" in caught.value.why
    again = JournalSeals.open(tmp_path / "register", owned, secrets)
    with pytest.raises(SealBroken):
        taken(path, again)
    (tmp_path / "register").write_bytes(register)
    with pytest.raises(SealBroken, match="older than it was at the last start"):
        JournalSeals.open(tmp_path / "register", owned, secrets)
    (tmp_path / "register").unlink()
    with pytest.raises(SealBroken, match="older than it was at the last start"):
        JournalSeals.open(tmp_path / "register", owned, secrets)


def test_what_is_of_an_older_epoch_is_refused(
    tmp_path: Path, sealed: JournalSeals, owned: Vault, secrets: MemoryKeys
) -> None:
    path = tmp_path / "r1.journal"
    written(path, sealed).close(outcome="kept")
    owned.rise()
    with pytest.raises(SealBroken, match="epoch 2"):
        JournalSeals.open(tmp_path / "register", owned, secrets)
    sealed.erase()
    anew = JournalSeals.open(tmp_path / "register", owned, secrets)
    with pytest.raises(SealBroken, match="another vault or epoch"):
        taken(path, anew)


def test_a_plain_journal_does_not_pass_for_a_sealed_one(
    tmp_path: Path, sealed: JournalSeals
) -> None:
    path = tmp_path / "r1.journal"
    DiskJournal(path, Plain()).write(opened("r1"))
    with pytest.raises(SealBroken) as caught:
        taken(path, sealed)
    assert caught.value.why == "it is not sealed"


def test_a_full_disk_stops_a_journal_before_it_begins(
    tmp_path: Path, sealed: JournalSeals, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(JournalError, match="can not be kept") as caught:
        sealed.new(tmp_path / "r1.journal")
    assert "No space" in caught.value.why
    monkeypatch.undo()
    path = tmp_path / "r1.journal"
    written(path, sealed).close(outcome="kept")
    assert taken(path, sealed) == records("r1")


# --- in the daemon -----------------------------------------------------------------------------


def disk(tmp_path: Path) -> EdgeOptions:
    return EdgeOptions(journal="disk", journal_dir=tmp_path / "journals")


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("OUTRIDER_STATE", str(tmp_path / "state"))
    monkeypatch.setenv("OUTRIDER_KEYS", "file")
    return tmp_path / "state"


@pytest.mark.usefixtures("state")
def test_a_vault_is_used_where_there_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert isinstance(seals.seals(disk(tmp_path)), PlainSeals)
    vault.make(vault.place(), keys.here(), "a long passphrase", vault.Cost(1, 1, 64))
    assert isinstance(seals.seals(EdgeOptions()), PlainSeals), "nothing is kept on disk"
    with pytest.raises(SealError, match="needs its passphrase"):
        seals.seals(disk(tmp_path))
    monkeypatch.setenv("OUTRIDER_VAULT_PASSPHRASE", "a wrong passphrase")
    with pytest.raises(SealBroken):
        seals.seals(disk(tmp_path))
    monkeypatch.setenv("OUTRIDER_VAULT_PASSPHRASE", "a long passphrase")
    assert isinstance(seals.seals(disk(tmp_path)), JournalSeals)
    vault.place().unlink()
    with pytest.raises(SealError, match="is gone"):
        seals.seals(disk(tmp_path))


@pytest.mark.usefixtures("state")
def test_a_daemon_takes_up_a_sealed_request_and_no_finished_one(tmp_path: Path) -> None:
    """What a crash leaves is gone on with, and the text is the same. The journal alone, put back
    after its answer was done, is refused by name, and stays."""
    vault.make(vault.place(), keys.here())
    options, request = disk(tmp_path), ask("the canary sang at noon", max_tokens=60)
    folder = tmp_path / "journals"
    kept: dict[str, Any] = {"journal": "disk", "journal_dir": folder}

    async def main() -> None:
        async with cloud(tmp_path) as c:
            async with edge(c.address, **kept) as e:
                e.daemon.seals = seals.seals(options)
                async with answering(e, request) as stream:
                    async for event in stream:
                        if isinstance(event, Token) and event.position == 20:
                            break
                    crashed = {path: path.read_bytes() for path in folder.iterdir()}
            [journal] = [path for path in crashed if path.suffix == ".journal"]
            assert not journal.exists()
            assert all(b"canary sang" not in data for data in crashed.values())

            journal.write_bytes(crashed[journal])
            async with edge(c.address, **kept) as e:
                e.daemon.seals = seals.seals(options)
                await e.daemon.restore()
                [said] = [trouble.what for trouble in e.kinds(events.Trouble)]
                assert said.startswith(journal.name) and "done long ago" in said
                assert not e.daemon.running and journal.exists()

            for name in (vault.FLOOR, FLOOR):
                assert keys.here().get(name) is not None
            keys.here().remove(FLOOR)  # As it was when the crash happened.
            for path, data in crashed.items():
                path.write_bytes(data)
            async with edge(c.address, **kept) as e:
                e.daemon.seals = seals.seals(options)
                await e.daemon.restore()
                [state] = e.daemon.requests()
                found = Answered([x async for x in e.daemon.attach(state.id, (0,))])
                assert found.ids() == expected(request)
                await until(lambda: not list(folder.glob("*.journal*")))
                registered = e.daemon.seals
                assert isinstance(registered, JournalSeals) and not registered._register.live

    run(main())
