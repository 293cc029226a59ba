"""The script of `outrider demo --top`: what each act turns, on files that the daemon reads."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, cast

import pytest

from outrider.demo.machine import Laptop
from outrider.demo.weather import ACTS, FLOOR, Scene, perform
from outrider.errors import LinkLost
from outrider.partitioner.power.machine import ROOT, here
from outrider.partitioner.power.state import PowerState
from outrider.testing.link import Link


class Stage:
    """Notes what is done to cloud and link; answers fail at once."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.links: list[Link] = []
        self.proxy = self

    async def set(self, link: Link) -> None:
        self.links.append(link)

    async def kill_cloud(self) -> None:
        self.done.append("kill")

    async def restart_cloud(self) -> None:
        self.done.append("restart")

    def stream(self, prompt: str, **options: Any) -> Stage:
        self.done.append("ask")
        return self

    async def __aenter__(self) -> Stage:
        raise LinkLost("nobody answers here")

    async def __aexit__(self, *error: object) -> None: ...


def scene(root: Path, told: list[str]) -> tuple[Scene, Stage]:
    stage = Stage()
    found = Scene(cast(Any, stage), cast(Any, stage), Laptop(root), told.append, 40.0, 24, pace=0.0)
    found.laptop.plant()
    return found, stage


def test_all_acts_are_played_and_told(tmp_path: Path) -> None:
    told: list[str] = []
    played, stage = scene(tmp_path, told)
    asyncio.run(perform(played, times=1))
    assert played.played == [act.name for act in ACTS]
    assert told == [act.said for act in ACTS]
    assert [word for word in stage.done if word != "ask"] == ["kill", "restart"]
    assert stage.links[1].rtt_ms == 4 * stage.links[0].rtt_ms and stage.links[1].loss > 0
    assert stage.links[2] == stage.links[0]
    assert played.failed == played.asked > 0


def read(monkeypatch: pytest.MonkeyPatch, root: Path) -> PowerState:
    """As the daemon reads this machine."""
    monkeypatch.setenv(ROOT, str(root))
    return here().meter().poll(0.0).state


def test_the_daemon_reads_the_played_laptop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    played, _ = scene(tmp_path, [])
    state = read(monkeypatch, tmp_path)
    assert (state.supply, state.charging) == ("ac", True)
    assert state.limit_c == 95.0
    asyncio.run(played.drain())
    state = read(monkeypatch, tmp_path)
    assert state.supply == "battery" and state.charging is False
    assert state.battery is not None and state.battery < FLOOR
    assert state.watts == pytest.approx(9.5)
