"""`outrider top` as a user runs it: once over a record, and against daemons that are not there."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

pytest.importorskip("textual", reason="the screens need the extra tui")

from outrider.cli.app import run
from outrider.cli.top import parse_size
from outrider.errors import InvalidRequest

SESSION = Path(__file__).parents[1] / "tui" / "session.events.gz"


def test_once_prints_a_screen_of_a_record(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["top", "--replay", str(SESSION), "--once", "--screen", "links", "--size", "90x26"]
    assert run([*words, "--ascii"]) == 0
    shown = capsys.readouterr().out
    assert "[5 Links]" in shown and "connected" in shown
    assert shown.isascii() and max(map(len, shown.splitlines())) <= 90


def test_svg_writes_a_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = tmp_path / "top.svg"
    assert run(["top", "--replay", str(SESSION), "--svg", str(place), "--size", "80x24"]) == 0
    assert place.read_text().startswith("<svg") and capsys.readouterr().out == ""


def test_a_record_that_is_none_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / "notes.txt"
    place.write_text("hello\n")
    assert run(["top", "--replay", str(place), "--once"]) == 2
    assert "is no record of events" in capsys.readouterr().err
    assert run(["top", "--replay", str(tmp_path / "none"), "--once"]) == 3


def test_a_packed_record_that_was_cut_off_is_read_up_to_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / "cut.gz"
    place.write_bytes(SESSION.read_bytes()[:20_000])
    assert run(["top", "--replay", str(place), "--once", "--size", "80x24"]) == 0
    assert "outrider-target" in capsys.readouterr().out


def test_a_record_is_not_written_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = tmp_path / "kept.events"
    shutil.copy(SESSION, place)
    before = place.read_bytes()
    assert run(["top", "--replay", str(SESSION), "--once", "--record", str(place)]) == 2
    assert "it is there already" in capsys.readouterr().err
    assert place.read_bytes() == before


def test_without_a_daemon_it_says_so(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OUTRIDER_HOST", raising=False)
    assert run(["top", "--once", "--host", "127.0.0.1:9"]) == 4
    assert "error:" in capsys.readouterr().err


def test_sizes() -> None:
    assert parse_size("140x40") == (140, 40)
    for text in ("80", "80x", "x24", "9x9", "1000x20"):
        with pytest.raises(InvalidRequest):
            parse_size(text)
