"""`outrider power` without a daemon."""

from __future__ import annotations

import json

import pytest

from outrider.cli import app


def test_it_reads_the_machine_itself(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: object
) -> None:
    monkeypatch.setenv("OUTRIDER_RUNTIME", str(tmp_path))
    monkeypatch.setenv("OUTRIDER_HOST", "")
    assert app.run(["power", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["schema"] == 1
    assert found["policy"] == "auto"
    assert isinstance(found["absent"], list)


def test_a_daemon_that_was_named_must_be_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert app.run(["power", "--host", "127.0.0.1:9"]) == 4
    assert "no daemon answers" in capsys.readouterr().err
