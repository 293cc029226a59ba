"""Traces: the same seed, the same trace; tails, bursts and days; files and their errors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from outrider.errors import ConfigError
from outrider.partitioner.sim import trace as traces
from outrider.partitioner.sim.trace import Ask, Rider, Trace


def test_a_seed_is_a_trace() -> None:
    one, same = (traces.generate("bursty", devices=9, hours=0.5, seed=3) for _ in range(2))
    other = traces.generate("bursty", devices=9, hours=0.5, seed=4)
    assert one == same
    assert one.asks != other.asks


def test_lengths_have_heavy_tails() -> None:
    found = traces.generate("steady", devices=200, hours=2.0, seed=1)
    tokens = [ask.tokens for ask in found.asks]
    assert np.quantile(tokens, 0.95) > 4.5 * np.median(tokens)
    assert min(tokens) >= 8 and max(tokens) <= 1024


def counts(name: traces.Name) -> np.ndarray:
    found = traces.generate(name, devices=300, hours=4.0, seed=2)
    at = [ask.at_s / found.seconds for ask in found.asks]
    return np.histogram(at, bins=240, range=(0, 1))[0].astype(float)


def test_bursts_are_wider_than_chance() -> None:
    steady, bursty = counts("steady"), counts("bursty")
    assert steady.var() / steady.mean() < 1.5
    assert bursty.var() / bursty.mean() > 3.0
    assert 0.7 < bursty.sum() / steady.sum() < 1.4


def test_a_day_has_a_noon() -> None:
    found = counts("diurnal")
    assert found[100:140].mean() > 4 * np.concatenate([found[:20], found[-20:]]).mean()


def test_a_battery_day_takes_devices_off_the_mains_and_back() -> None:
    found = traces.generate("battery", devices=40, hours=10.0, seed=5)
    with_battery = sum(rider.battery is not None for rider in found.devices)
    off = [change for change in found.changes if change.supply == "battery"]
    on = [change for change in found.changes if change.supply == "ac"]
    assert len(off) == len(on) == with_battery > 0
    assert any(change.cut_s for change in found.changes)
    assert list(found.changes) == sorted(found.changes, key=lambda change: change.at_s)


def test_a_file_gives_the_trace_back(tmp_path: Path) -> None:
    found = traces.generate("battery", devices=5, hours=0.5, seed=6)
    traces.save(found, tmp_path / "a.jsonl")
    assert traces.load(tmp_path / "a.jsonl") == found


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ('{"ask": {"at_s": 1, "device": 0}}', "line 3"),
        ('{"nobody": {}}', "line 3"),
        ("no json", "line 3"),
        ('{"ask": {"at_s": 1, "device": 7, "prompt": 1, "tokens": 1}}', "device 7"),
        ('{"ask": {"at_s": 1, "device": 0, "prompt": 0, "tokens": 1}}', "no prompt"),
    ],
)
def test_what_a_file_may_not_hold(line: str, told: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    traces.save(Trace("t", 0, 1.0, (Rider(),), ()), path)
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(ConfigError, match=told):
        traces.load(path)


def test_a_newer_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "new.jsonl"
    path.write_text('{"trace": {"schema": 99, "name": "t", "seed": 0, "seconds": 1}}\n')
    with pytest.raises(ConfigError, match="line 1"):
        traces.load(path)


def test_impossible_wishes() -> None:
    with pytest.raises(ConfigError, match="no trace"):
        traces.generate("weekly", devices=1, hours=1, seed=0)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="devices"):
        traces.generate("steady", devices=0, hours=1, seed=0)
    with pytest.raises(ConfigError, match="can not be read"):
        traces.load(Path("nowhere.jsonl"))


def test_an_ask_of_nobody_is_refused() -> None:
    with pytest.raises(ConfigError):
        traces.check(Trace("t", 0, 1.0, (Rider(),), (Ask(0.0, 1, 1, 1),)))
