"""`outrider sim` as a user meets it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

pytest.importorskip("simpy", reason="needs outrider[plan]")

from outrider.cli.app import run

SMALL = ["sim", "--devices", "4", "--hours", "0.02", "--per-hour", "60"]


def test_policies_side_by_side(capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*SMALL, "--trace", "bursty", "--policy", "cloud", "--policy", "draft"]) == 0
    out = capsys.readouterr().out
    assert "cloud" in out and "draft" in out
    for line in ("SLO kept", "joules a token", "passes a token", "placements"):
        assert line in out


def test_one_json_object(capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*SMALL, "--mode", "fleet", "--policy", "auto", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["schema"] == 1
    (row,) = found["policies"]
    assert row["mode"] == "fleet" and 0.0 <= row["slo_attainment"] <= 1.0


def test_a_trace_is_kept_and_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "kept.jsonl"
    wanted = ["--policy", "cloud", "--json"]
    assert run([*SMALL, "--save", str(path), *wanted]) == 0
    first = json.loads(capsys.readouterr().out)
    assert run(["sim", "--trace", str(path), *wanted]) == 0
    assert json.loads(capsys.readouterr().out)["policies"] == first["policies"]


def test_a_plot_is_drawn_only_where_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "out.svg"
    asked = [*SMALL, "--policy", "cloud", "--plot", str(path)]
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert run(SMALL) == 0
    assert run(asked) == 3
    assert 'pip install "outrider[bench]"' in capsys.readouterr().err
    monkeypatch.undo()
    pytest.importorskip("matplotlib", reason="needs outrider[bench]")
    assert run(asked) == 0
    assert path.read_text().lstrip().startswith("<?xml")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--trace", "nowhere.jsonl"], "can not be read"),
        (["--policy", "best"], "no policy"),
        (["--tpot-ms", "x"], "tpot-ms"),
        (["--cloud-gpus", "0"], "without a cloud"),
        (["--target", "shape:none"], "no shape"),
    ],
)
def test_bad_input(words: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*SMALL, *words]) in (2, 3)
    assert told in capsys.readouterr().err


def test_the_oracle(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["sim", "--oracle", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["oracle"]
    assert {row["policy"] for row in rows} == {"runtime", "one by one"}
    assert all(row["mean"] >= 1.0 for row in rows)


def test_no_devices_make_no_trace(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["sim", "--devices", "0"]) == 2
    assert "make no trace" in capsys.readouterr().err
