"""Profiles on disk: what was written is what is read, and nonsense is refused by name."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path

import pytest

from outrider.errors import InvalidProfile, NotFound
from outrider.partitioner.device import DeviceProfile, LinkProfile, Rate
from outrider.partitioner.profile import store
from outrider.partitioner.profile.check import check_device, check_link, check_rate

RATE = Rate("torch", "float32", 1e10, 1e9, rows=((1, 1.0), (8, 1.5)), error=0.1, probe_s=(0.1,))
DEVICE = DeviceProfile("here", "laptop", 1 << 30, (RATE,), accelerators=("torch cuda:0",))
LINK = LinkProfile("here", "there", rtt_s=0.02, up_bytes_per_s=1e6, down_bytes_per_s=2e6)


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("OUTRIDER_STATE", str(tmp_path))
    return tmp_path


def test_a_profile_comes_back_as_it_was(state: Path) -> None:
    assert store.find_device_profile() is None
    assert store.save_device_profile(DEVICE) == state / "device.json"
    assert store.load_device_profile() == DEVICE == store.find_device_profile()
    assert (state / "device.json").stat().st_mode & 0o077 == 0


def test_a_link_replaces_the_one_between_the_same_ends(state: Path) -> None:
    store.save_link_profile(LINK)
    store.save_link_profile(replace(LINK, b="elsewhere"))
    store.save_link_profile(replace(LINK, rtt_s=0.5))
    found = store.load_link_profiles()
    assert {(link.b, link.rtt_s) for link in found} == {("elsewhere", 0.02), ("there", 0.5)}


def test_without_a_profile_it_says_how_to_get_one() -> None:
    with pytest.raises(NotFound) as caught:
        store.load_device_profile()
    assert "outrider profile" in caught.value.todo
    assert store.load_link_profiles() == ()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda d: d["device"]["rates"][0].update(bytes_per_s=math.nan), "bytes_per_s"),
        (lambda d: d["device"]["rates"][0].update(flops_per_s=math.inf), "flops_per_s"),
        (lambda d: d["device"]["rates"][0].update(layer_s=-1.0), "layer_s"),
        (lambda d: d["device"]["rates"][0].update(rows=[[8, 1.0], [1, 1.0]]), "rows"),
        (lambda d: d["device"]["rates"][0].update(rows=[[8, math.nan]]), r"rows\[8\]"),
        (lambda d: d["device"].update(memory_bytes=0), "memory_bytes"),
        (lambda d: d["device"].update(slowdown=0.0), "slowdown"),
        (lambda d: d["device"].update(idle_w=math.nan), "idle_w"),
        (lambda d: d["device"].update(kind="toaster"), "kind|toaster"),
        (lambda d: d["device"].pop("memory_bytes"), "memory_bytes"),
        (lambda d: d.update(schema=99), "99"),
    ],
)
def test_nonsense_is_refused_by_name(state: Path, change, named: str) -> None:  # type: ignore[no-untyped-def]
    store.save_device_profile(DEVICE)
    fields = json.loads((state / "device.json").read_text())
    change(fields)
    (state / "device.json").write_text(json.dumps(fields))
    with pytest.raises(InvalidProfile) as caught:
        store.load_device_profile()
    assert re.search(named, str(caught.value))


@pytest.mark.parametrize("text", ["", "[]", "{", '"x"', "null", "[" * 100_000])
def test_what_is_no_profile_is_refused(state: Path, text: str) -> None:
    (state / "device.json").write_text(text)
    with pytest.raises(InvalidProfile, match=r"device\.json"):
        store.load_device_profile()


def test_nothing_is_written_of_a_profile_that_makes_no_sense(state: Path) -> None:
    with pytest.raises(InvalidProfile, match="bytes_per_s"):
        store.save_device_profile(replace(DEVICE, rates=(replace(RATE, bytes_per_s=0.0),)))
    assert not list(state.iterdir())


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"up_bytes_per_s": 0.0}, "up_bytes_per_s"),
        ({"rtt_s": math.nan}, "rtt_s"),
        ({"loss": 1.0}, "loss"),
        ({"b": "here"}, "joins two"),
    ],
)
def test_links_are_checked(change: dict[str, object], named: str) -> None:
    with pytest.raises(InvalidProfile) as caught:
        check_link(replace(LINK, **change))  # type: ignore[arg-type]
    assert named in str(caught.value)
    assert check_link(replace(LINK, rtt_s=0.0)).rtt_s == 0.0


def test_a_slowed_device_is_the_same_but_slower() -> None:
    assert store.slowed(DEVICE, 2.0).slowdown == 2.0
    assert check_rate(RATE) is RATE and check_device(DEVICE) is DEVICE
