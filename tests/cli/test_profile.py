"""`outrider profile` as it is typed: pages, JSON, files and errors."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("numpy", reason="the edge extra is not installed")

from outrider.cli import app as entry
from outrider.cli.profile import seconds
from outrider.errors import ConfigError
from outrider.partitioner.device import DeviceProfile, Rate
from outrider.partitioner.profile import device, store

RATE = Rate("torch", "float32", 5e10, 1e10, bytes_per_weight=4.0, error=0.08, probe_s=(0.1, 0.2))
DEVICE = DeviceProfile("here", "laptop", 8 << 30, (RATE,))


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("OUTRIDER_STATE", str(tmp_path))
    return tmp_path


def said(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = entry.run(["profile", *words])
    out, err = capsys.readouterr()
    return code, out, err


def test_a_measured_profile_is_shown_saved_and_read_again(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, state: Path
) -> None:
    plans: list[device.Plan] = []

    def measured(wanted: device.Wanted, plan: device.Plan, note: Any) -> device.Found:
        plans.append(plan)
        return device.Found(replace(DEVICE, name=wanted.name), (), {"llama q8_0": "it is broken"})

    monkeypatch.setattr(device, "profile", measured)
    code, out, err = said(capsys, "bundled:target", "--quick", "--name", "mine")
    assert code == 0 and plans == [device.QUICK]
    assert "torch   float32    50.0     10.0" in out and "8.0%" in out
    assert "llama q8_0: not measured, it is broken" in out
    assert "6 layers, 11.0 MB in float16" in out
    assert str(state / "device.json") in err
    code, out, _ = said(capsys, "shape:llama-3.1-8b", "--saved", "--json")
    found = json.loads(out)
    assert (code, found["device"]["name"], found["saved"]) == (0, "mine", None)
    assert found["model"]["rates"][0]["memory_bytes"] > 30e9
    code, out, _ = said(capsys, "shape:llama-3.1-8b", "--saved")
    assert "too much" in out


def test_the_slowdown_is_kept_in_the_profile(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    store.save_device_profile(DEVICE)
    monkeypatch.setattr(device, "probed", lambda known, wanted: 2.5)
    code, out, _ = said(capsys, "--slowdown")
    assert code == 0 and "slowdown 2.50" in out
    assert store.load_device_profile().slowdown == 2.5


def test_hardware_is_recommended(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--recommend", "shape:llama-3.1-8b", "--ttft", "500ms", "--tpot", "0.05s")
    code, out, _ = said(capsys, *words)
    assert code == 0 and out.startswith("llama-3.1-8b: take ") and "estimated" in out
    offers = json.loads(said(capsys, *words, "--json")[1])["offers"]
    assert not offers[0]["lacks"] and offers[0]["tpot_s"] <= 0.05


def test_ones_own_profile_takes_part(capsys: pytest.CaptureFixture[str]) -> None:
    store.save_device_profile(DEVICE)
    _, out, _ = said(capsys, "--recommend", "bundled:target", "--json")
    offers = json.loads(out)["offers"]
    assert ("here", "measured") in {(offer["device"], offer["source"]) for offer in offers}


def test_providers_and_their_options_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("onnxruntime", reason="the onnx extra is not installed")
    code, out, _ = said(capsys, "--providers")
    assert code == 0 and "htp_performance_mode" in out and "MLComputeUnits" in out
    found = json.loads(said(capsys, "--providers", "--json")[1])
    assert {sheet["name"] for sheet in found["providers"]} >= {"qnn", "openvino", "cpu"}


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (("--saved",), 3, "there is no profile"),
        (("--engine", "nonsense"), 2, "no engine 'nonsense'"),
        (("--recommend", "shape:nothing"), 3, "no shape 'nothing'"),
        (("--recommend", "bundled:target", "--ttft", "soon"), 2, "--ttft 'soon'"),
        (("--recommend", "shape:llama-3.1-405b"), 2, "no device of the catalogue"),
        (("--link", "192.0.2.1:1"), 2, "needs TLS"),
        (("--link", "nonsense:port"), 2, "no address"),
        (("--threads", "0"), 2, "--threads"),
    ],
)
def test_what_can_not_work_is_said(
    capsys: pytest.CaptureFixture[str], words: tuple[str, ...], code: int, text: str
) -> None:
    found, out, err = said(capsys, *words)
    assert (found, out) == (code, "") and text in err


@pytest.mark.parametrize(
    ("text", "wanted"), [("500ms", 0.5), ("2s", 2.0), ("250", 0.25), ("", None)]
)
def test_durations(text: str, wanted: float | None) -> None:
    assert seconds(text, "--x") == wanted
    with pytest.raises(ConfigError):
        seconds(f"{text}!", "--x")
