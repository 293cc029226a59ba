"""Unplug the charger, or heat the device, in the middle of an answer: one text, and the reason."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from outrider.edge.power import PowerWatch
from outrider.partitioner.power.machine import Machine
from outrider.protocol import events
from outrider.protocol.stream import Token
from tests.partitioner.power import trees
from tests.support import Answered, EdgeUnderTest, ask, cloud, edge, expected, run


def missing(name: str) -> ModuleType:
    raise ModuleNotFoundError(name)


def silent(words: object) -> str:
    raise OSError(2, "no such tool")


def empty_battery(root: Path) -> None:
    trees.plant(root, trees.mains(online=0))
    (root / trees.SUPPLY / "BAT0/energy_now").write_text("8000000\n")


def heat(root: Path) -> None:
    (root / "sys/class/thermal/thermal_zone1/temp").write_text("94500\n")


CHANGES = {
    "unplugged": (empty_battery, "battery 17 % < floor 20 %"),
    "hot": (heat, "x86_pkg_temp 94 °C, throttles at 95 °C"),
}


async def ride(e: EdgeUnderTest, watch: PowerWatch, root: Path, change: str) -> Answered:
    """An answer in the middle of which the machine changes."""
    await watch.look()
    found, changed = Answered(), False
    async for event in e.daemon.generate(ask(max_tokens=120)):
        found.events.append(event)
        if isinstance(event, Token) and event.position >= 40 and not changed:
            CHANGES[change][0](root)
            await watch.look()
            changed = True
    assert changed
    return found


def slow_down(monkeypatch: pytest.MonkeyPatch, engine: Any) -> None:
    """A target that is slow against the drafter, so that drafting pays."""
    extend = engine.extend

    async def slow(spans: Any) -> Any:
        await asyncio.sleep(0.02)
        return await extend(spans)

    monkeypatch.setattr(engine, "extend", slow)


@pytest.mark.parametrize("change", sorted(CHANGES))
def test_the_text_stays_and_the_decision_says_why(
    tmp_path: Path, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "machine"
    tree = trees.plant(root, trees.THINKPAD, trees.mains(online=1))
    machine = Machine(tree, silent, "linux", 1000, missing)

    async def main() -> None:
        async with cloud(tmp_path) as c, edge(c.address) as e:
            slow_down(monkeypatch, c.verifier.engine)
            publish = e.daemon.fanout.publish
            watch = PowerWatch(
                e.daemon.options, e.daemon.energy, publish, time.monotonic, machine=machine
            )
            e.daemon.power = watch
            found = await ride(e, watch, root, change)
            found.check()
            assert found.ids() == expected(ask(max_tokens=120))
            decisions = e.kinds(events.Decision)
            reason = CHANGES[change][1]
            bounds = [d for d in decisions if d.binding == "power"]
            assert [(d.old, d.new, d.reason) for d in bounds] == [("free", "off", reason)]
            moves = [d for d in decisions if d.what == "placement"]
            # It is told again, with what it brought.
            assert {(d.old, d.new, d.reason) for d in moves} == {("draft", "cloud", reason)}
            later = e.published[e.published.index(moves[0]) :]
            assert not [event for event in later if isinstance(event, events.HintSent)]

    run(main())
