"""The journal on disk: what stands in it after a crash, wherever the crash was."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import msgspec
import pytest

from outrider.edge import journal
from outrider.edge.daemon import Left
from outrider.edge.journal import (
    Committed,
    DiskJournal,
    Fenced,
    Fork,
    MemoryJournal,
    Opened,
    Plain,
    Provisional,
    Record,
    read,
)
from outrider.errors import JournalError
from outrider.protocol.sampling import SamplingParams

OPENED = Opened(
    1, "r1", b"s" * 16, "t", "class", (1, 2, 3), SamplingParams(0.8), b"\7" * 16, 2, 50, (b"x",)
)
PARTS = msgspec.msgpack.decode(msgspec.msgpack.encode(OPENED))
RECORDS: tuple[Record, ...] = (
    OPENED,
    Fenced(1, "class"),
    Committed(1, 0, 0, (5, 6)),
    Committed(1, 1, 0, (9,)),
    Provisional(0, 2),
    Fenced(2, "class"),
    Committed(2, 0, 2, (7,)),
)


def written(folder: Path, *records: Record) -> Path:
    made = DiskJournal(folder / "r1.journal", Plain())
    for record in records:
        made.write(record)
    made.close(outcome="kept")
    return made.path


def test_what_was_written_is_read(tmp_path: Path) -> None:
    assert tuple(read(written(tmp_path, *RECORDS), Plain())) == RECORDS


def test_it_is_the_users_alone(tmp_path: Path) -> None:
    os.umask(0o000)
    path = written(tmp_path / "deep" / "journals", OPENED)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_done_removes_it_and_kept_leaves_it(tmp_path: Path) -> None:
    made = DiskJournal(tmp_path / "a.journal", Plain())
    made.write(OPENED)
    made.close(outcome="done")
    assert list(tmp_path.iterdir()) == []
    assert written(tmp_path, OPENED).exists()


def test_a_tail_torn_at_any_byte_loses_only_the_torn_record(tmp_path: Path) -> None:
    path = written(tmp_path, *RECORDS)
    whole = path.read_bytes()
    counts = []
    for size in range(len(b"outrider journal\n"), len(whole) + 1):
        path.write_bytes(whole[:size])
        found = tuple(read(path, Plain()))
        assert found == RECORDS[: len(found)]
        counts.append(len(found))
    assert counts[0] == 0 and counts[-1] == len(RECORDS)
    assert counts == sorted(counts)


def test_a_changed_byte_ends_what_counts_and_never_lies(tmp_path: Path) -> None:
    path = written(tmp_path, *RECORDS)
    whole = path.read_bytes()
    for at in range(len(b"outrider journal\n"), len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x40]) + whole[at + 1 :])
        found = tuple(read(path, Plain()))
        assert found == RECORDS[: len(found)] and len(found) < len(RECORDS)


@pytest.mark.parametrize("data", [b"", b"outrider", b"something else\n" + b"\0" * 40])
def test_a_file_that_is_no_journal_is_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "a.journal"
    path.write_bytes(data)
    with pytest.raises(JournalError, match="no journal"):
        list(read(path, Plain()))


def framed(body: bytes) -> bytes:
    import zlib

    head = len(body).to_bytes(4, "little") + zlib.crc32(body).to_bytes(4, "little")
    return b"outrider journal\n" + head + body


@pytest.mark.parametrize(
    "record",
    [
        ["open", journal.FORMAT + 1, "fields", {"of": "another shape"}],
        ["open", journal.FORMAT + 1, *PARTS[2:]],
    ],
    ids=["another shape", "the same shape"],
)
def test_a_newer_format_is_refused_clearly_and_kept(tmp_path: Path, record: list[object]) -> None:
    path = tmp_path / "a.journal"
    path.write_bytes(framed(msgspec.msgpack.encode(record)))
    with pytest.raises(JournalError, match="newer") as found:
        list(read(path, Plain()))
    assert str(journal.FORMAT + 1) in found.value.why and path.exists()


def test_a_record_without_the_later_fields_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.journal"
    path.write_bytes(framed(msgspec.msgpack.encode(PARTS[:12])))
    found = next(iter(read(path, Plain())))
    assert isinstance(found, Opened)
    assert found.exact_required is False and found.top_logprobs is None


def test_a_length_that_claims_the_world_is_torn(tmp_path: Path) -> None:
    path = tmp_path / "a.journal"
    path.write_bytes(b"outrider journal\n" + b"\xff\xff\xff\xff\0\0\0\0" + b"x" * 100)
    assert list(read(path, Plain())) == []


def test_a_full_disk_is_a_journal_error_and_what_was_kept_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = DiskJournal(tmp_path / "a.journal", Plain())
    made.write(RECORDS[0])
    real = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: real(fd, data[: len(data) // 2]))
    with pytest.raises(JournalError, match="can not be kept") as found:
        made.write(RECORDS[2])
    assert "No space left" in found.value.why
    monkeypatch.undo()
    assert tuple(read(made.path, Plain())) == RECORDS[:1]
    made.close(outcome="done")


def test_a_disk_that_is_full_from_the_start_leaves_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(JournalError):
        DiskJournal(tmp_path / "a.journal", Plain())
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_can_not_be_written_is_a_journal_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(JournalError):
        DiskJournal(tmp_path / "file" / "a.journal", Plain())


def test_a_seal_that_does_not_open_ends_what_counts(tmp_path: Path) -> None:
    class Shut(Plain):
        def open(self, number: int, data: bytes) -> bytes:
            if number == 2:
                raise JournalError("changed")
            return data

    assert tuple(read(written(tmp_path, *RECORDS), Shut())) == RECORDS[:2]


def test_the_records_tell_where_to_go_on() -> None:
    left = Left.read(RECORDS)
    assert left is not None
    assert left.committed == ((5, 6, 7), (9,))
    assert (left.fence, left.numeric_class, left.forked) == (2, "class", False)
    forked = Left.read((*RECORDS, Fork(0, 3, "d")))
    assert forked is not None and forked.forked


@pytest.mark.parametrize(
    "records",
    [(), RECORDS[1:], (OPENED, Committed(1, 7, 0, (1,))), (OPENED, Committed(1, 0, 3, (1,)))],
    ids=["nothing", "no open", "a choice that is not there", "a gap"],
)
def test_records_that_make_no_sense_are_not_taken_up(records: tuple[Record, ...]) -> None:
    assert Left.read(records) is None


def test_in_memory_it_is_gone_when_closed() -> None:
    made = MemoryJournal()
    made.write(OPENED)
    made.close(outcome="kept")
    assert made.records == []
