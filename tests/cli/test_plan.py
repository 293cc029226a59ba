"""`outrider plan` as it is typed: pages, JSON, what-ifs, and errors that say what would do."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from bench.plan_cases import device, link
from outrider.cli import app as entry
from outrider.partitioner import written
from outrider.partitioner.plan import Plan
from outrider.partitioner.profile import store

Say = Callable[..., tuple[int, str, str]]
MODEL = "shape:llama-3.1-8b"
PAIR = "macbook-air-m2-16gb,l4-24gb"
GIB = 1 << 30


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Say:
    """(exit code, standard output, standard error) of `outrider plan` with an empty state."""
    monkeypatch.setenv("OUTRIDER_STATE", str(tmp_path / "state"))

    def run(*words: str) -> tuple[int, str, str]:
        code = entry.run(("plan", *words))
        found = capsys.readouterr()
        return code, found.out, found.err

    return run


def fleet(path: Path, **fields: Any) -> str:
    """A file of a laptop and a desktop next to it."""
    devices = (device("laptop", 5e10, 12 * GIB), device("desktop", 4e11, 10 * GIB))
    given = written.Fleet(1, devices, (link("laptop", "desktop", 0.002),), "laptop")
    place = path / "devices.json"
    text = msgspec.to_builtins(given)
    text.update(fields)
    place.write_text(json.dumps(text))
    return str(place)


def test_a_page_shows_strip_stages_and_reasons(say: Say) -> None:
    code, out, err = say(MODEL, "--devices", PAIR)
    assert (code, err) == (0, "")
    assert "one device" in out and "AAAAAAAA" in out
    assert "Do not split: l4-24gb alone is best" in out
    assert "runner-up   macbook-air-m2-16gb 0-0, l4-24gb 1-33" in out
    assert "left out    macbook-air-m2-16gb: " in out
    assert "assumed     macbook-air-m2-16gb to l4-24gb 40 ms" in out


def test_a_file_of_devices_is_planned_as_it_stands(say: Say, tmp_path: Path) -> None:
    code, out, _ = say(MODEL, "--devices", fleet(tmp_path), "--precision", "any", "--json")
    assert code == 0
    plan = msgspec.convert(json.loads(out)["plan"], Plan)
    assert plan.verdict == "split"
    assert {stage.device for stage in plan.stages} == {"laptop", "desktop"}
    assert plan.binding == "memory of desktop"


def test_what_if_tells_what_changes(say: Say, tmp_path: Path) -> None:
    words = (MODEL, "--devices", fleet(tmp_path), "--precision", "any")
    code, out, _ = say(*words, "--what-if", "desktop.memory=20G")
    assert code == 0
    assert "The verdict was split and is one device." in out
    assert "move from laptop to desktop" in out
    assert "Binding was memory of desktop and is none." in out


def test_what_if_slows_links_and_caps_power(say: Say, tmp_path: Path) -> None:
    words = (MODEL, "--devices", fleet(tmp_path), "--precision", "any", "--json")
    _, out, _ = say(*words, "--what-if", "rtt=80ms,bw=20M,power=10W,tokens=2")
    found = json.loads(out)
    before, after = found["plan"], found["what_if"]["plan"]
    assert after["estimate"]["hop_s"] - before["estimate"]["hop_s"] == pytest.approx(
        0.078 + (2 * (4096 * 2 + 4)) / 2.5e6 - (4096 * 2 + 4) / 1e7, rel=1e-3
    )
    laptop = [stage for stage in after["stages"] if stage["device"] == "laptop"]
    assert not laptop or laptop[0]["decode_s"] > 0
    assert found["what_if"]["changes"]


def test_the_ends_stay_at_home(say: Say) -> None:
    _, out, _ = say(MODEL, "--devices", PAIR, "--stay", "ends", "--json")
    stages = json.loads(out)["plan"]["stages"]
    assert stages[0]["device"] == stages[-1]["device"] == "macbook-air-m2-16gb"


def test_lossy_precisions_are_asked_for(say: Say) -> None:
    _, out, _ = say(MODEL, "--devices", PAIR, "--json")
    assert {stage["dtype"] for stage in json.loads(out)["plan"]["stages"]} == {"bfloat16"}
    _, out, _ = say(MODEL, "--devices", PAIR, "--precision", "q4_k", "--json")
    assert {stage["dtype"] for stage in json.loads(out)["plan"]["stages"]} == {"q4_k"}
    losses = ("--precision", "any", "--loss", "q8_0=0.1,q4_k=1", "--max-loss", "3.4")
    _, out, _ = say(MODEL, "--devices", PAIR, *losses, "--json")
    plan = json.loads(out)["plan"]
    assert {stage["dtype"] for stage in plan["stages"]} == {"q8_0"}


@pytest.mark.parametrize("solver", ["dp", "genetic", "brute", "phases", "milp"])
def test_every_solver_answers(say: Say, solver: str) -> None:
    if solver == "milp":
        pytest.importorskip("highspy", reason="the extra plan is not installed")
    code, out, _ = say("bundled:target", "--devices", PAIR, "--solver", solver)
    assert code == 0 and f"solver {solver}" in out


def test_this_machine_alone_needs_its_profile(say: Say) -> None:
    code, _, err = say(MODEL)
    assert code == 3 and "outrider profile" in err
    store.save_device_profile(device("local", 1e11, 40 * GIB))
    code, out, _ = say(MODEL, "--precision", "any")
    assert code == 0 and "Do not split: local is the only device" in out


ERRORS = {
    "unknown device": (("--devices", "rtx-4090"), 3, "rtx-4090-24gb"),
    "no file": (("--devices", "none.json"), 3, "catalogue"),
    "memory": (("--devices", "iphone-15-pro-8gb"), 2, "GiB on iphone-15-pro-8gb"),
    "contradiction": (("--devices", PAIR, "--exclude", "l4-24gb", "--include", "l4-24gb"), 2, "l4"),
    "what-if key": (("--devices", PAIR, "--what-if", "heat=4"), 2, "rtt"),
    "what-if amount": (("--devices", PAIR, "--what-if", "rtt=soon"), 2, "ms"),
    "what-if device": (("--devices", PAIR, "--what-if", "moon.rtt=3ms"), 3, "l4-24gb"),
    "zero bandwidth": (("--devices", PAIR, "--what-if", "bw=0M"), 2, "no bandwidth"),
    "stay": (("--devices", PAIR, "--stay", "middle"), 2, "ends"),
    "tpot": (("--devices", PAIR, "--max-tpot", "1ms"), 2, "max_tpot_s 0.068"),
    "home": (("--devices", PAIR, "--home", "moon"), 2, "moon"),
    "loss": (("--devices", PAIR, "--loss", "q8_0"), 2, "--loss"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors_name_what_can_be_met(say: Say, name: str) -> None:
    words, code, text = ERRORS[name]
    found, out, err = say(MODEL, *words)
    assert (found, out) == (code, "")
    assert text in err and "effect: " in err


def test_a_nan_in_a_file_is_named(say: Say, tmp_path: Path) -> None:
    text = msgspec.to_builtins(device("laptop", 1e10, GIB))
    text["rates"][0]["bytes_per_s"] = float("nan")
    code, _, err = say(MODEL, "--devices", fleet(tmp_path, devices=[text], links=[]))
    assert code == 2 and "bytes_per_s" in err and "nan" in err


def test_a_file_of_another_schema_is_refused(say: Say, tmp_path: Path) -> None:
    code, _, err = say(MODEL, "--devices", fleet(tmp_path, schema=7))
    assert code == 2 and "schema is 7" in err


def test_errors_are_json_where_json_was_asked_for(say: Say) -> None:
    code, out, _ = say(MODEL, "--devices", "iphone-15-pro-8gb", "--json")
    assert code == 2 and json.loads(out)["error"]["code"] == "unplannable"
