"""Screens of the recorded session, drawn the same everywhere: for snapshots and documents.

`OUTRIDER_SCREENS=write pytest tests/tui/test_screens.py` draws docs/screens anew.
"""

from __future__ import annotations

import asyncio
import html
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC
from functools import lru_cache
from pathlib import Path
from typing import Any

from textual.pilot import Pilot

from outrider.protocol import events, recording
from outrider.tui import picture
from outrider.tui.app import Top
from outrider.tui.feed import ReplayFeed
from outrider.tui.options import TopOptions
from outrider.tui.state import State
from outrider.tui.widgets.rows import Rows

Drawn = tuple[str, str]
"""SVG, and the same as text."""

SESSION = Path(__file__).with_name("session.events.gz")
"""`outrider demo --top --once --record`: two people ask, things happen to the device."""
FOLDER = Path(__file__).parents[2] / "docs" / "screens"
SIZES = ((80, 24), (140, 40))


@dataclass(frozen=True, slots=True)
class Shot:
    name: str
    share: float
    """Of the session's time that has passed."""
    keys: tuple[str, ...]


SHOTS = (
    Shot("overview", 0.974, ("1",)),
    Shot("split", 0.30, ("2",)),
    Shot("requests", 0.974, ("3", "j", "j")),
    Shot("waterfall", 0.36, ("3", "j", "j", "j", "enter")),
    Shot("decisions", 0.60, ("4",)),
    Shot("links", 0.974, ("5",)),
    Shot("logs", 0.66, ("6",)),
    Shot("outage", 0.665, ("1",)),
    Shot("help", 0.974, ("question_mark",)),
)
_found: list[events.Event] = []


def session() -> list[events.Event]:
    """In the order of their clocks; read once."""
    if not _found:
        _found.extend(sorted(recording.read(SESSION), key=lambda event: event.at))
    return _found


def until(share: float) -> list[events.Event]:
    found = session()
    cut = found[0].at + share * (found[-1].at - found[0].at)
    return [event for event in found if event.at <= cut]


def top(**changes: object) -> Top:
    """A screen without a clock of its own."""
    known: dict[str, object] = {"every_s": None, "zone": UTC}
    options = TopOptions(**(known | changes))  # type: ignore[arg-type]
    return Top(ReplayFeed([], lambda: 0.0), options, clock=lambda: 0.0, wall=lambda: 0.0)


@lru_cache
def drawn(
    size: tuple[int, int],
    shots: tuple[Shot, ...] = SHOTS,
    *,
    ascii: bool = False,
    theme: str = "dark",
) -> dict[str, Drawn]:
    """Shots at one size, by name: one screen after the other on one application."""

    async def work() -> dict[str, Drawn]:
        app = top(ascii=ascii, theme=theme)
        found: dict[str, Drawn] = {}
        async with app.run_test(size=size) as pilot:
            for shot in shots:
                found[shot.name] = await _shoot(app, pilot, shot)
        return found

    return asyncio.run(work())


async def _shoot(app: Top, pilot: Pilot[int], shot: Shot) -> Drawn:
    """As if it were the first."""
    app.state = State()
    app.apply(until(shot.share))
    for rows in app.query(Rows):
        rows.key = ""
    app.draw()
    await pilot.press(*shot.keys)
    app.draw()
    await pilot.pause()
    found = picture.svg(app), picture.text(app)
    app.simulate_key("escape")
    await pilot.pause()
    return found


def draw(shot: Shot, size: tuple[int, int], **changes: Any) -> Drawn:
    """(SVG, text); all are drawn at once, for the next test to take."""
    return drawn(size, **changes)[shot.name]


def alone(shot: Shot, size: tuple[int, int], **changes: Any) -> Drawn:
    """The same, of this one only."""
    return drawn(size, (shot,), **changes)[shot.name]


STYLE = re.compile(r"\.terminal-\d+-(r\d+) \{ fill: (#[0-9a-f]{6})([^}]*)\}")
TEXT = re.compile(r'<text class="terminal-\d+-(r\d+)" x="[\d.]+" y="([\d.]+)"[^>]*>([^<]*)</text>')


def pieces(svg: str) -> Sequence[tuple[str, str, str]]:
    """(Colour, place, text) of all that is written in a picture: what a person sees of it."""
    styles = {name: colour + more.strip() for name, colour, more in STYLE.findall(svg)}
    return [
        (styles.get(name, name), place, html.unescape(text))
        for name, place, text in TEXT.findall(svg)
    ]
