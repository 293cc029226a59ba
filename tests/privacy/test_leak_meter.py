"""The meter's readings on a small case, and its verb."""

from __future__ import annotations

import importlib.util
import json

import pytest

from outrider.cli.app import run
from outrider.privacy.leak.meter import Reading, measure


@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="the attacks need torch")
def test_readings() -> None:
    found = measure("bundled:draft", depths=(1,), texts=("my PIN is 4711",), most=2)
    by_name = {(one.mode, one.attack): one for one in found}
    assert by_name["tokens", "read them"].recovered == 1
    assert by_name["hidden@1", "candidates"].recovered == 1
    assert by_name["kv", "candidates"].recovered == 1
    assert by_name["kv permuted", "candidates, sorted"].recovered == 1
    assert by_name["kv sealed", "candidates, sorted"].recovered == 0
    assert [one.mode for one in found if one.protects] == ["kv sealed"]


def test_the_verb_prints_what_came_back(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    reading = Reading("kv", "keys and values", "candidates", 0.75, 4, 1 / 4096, protects=False)
    monkeypatch.setattr("outrider.privacy.leak.meter.measure", lambda *_, **__: (reading,))
    assert run(["privacy", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["readings"][0]["recovered"] == 0.75
    assert run(["privacy"]) == 0
    page = capsys.readouterr().out
    assert "75%" in page
    assert "--redact" in page
