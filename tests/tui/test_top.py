"""Every key, over the recorded session, with a daemon that only notes what it is asked."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("textual", reason="the screens need the extra tui")

from textual.pilot import Pilot

from outrider.errors import InvalidRequest
from outrider.protocol import events, recording
from outrider.tui import commands, picture, plan_command
from outrider.tui.app import Top
from outrider.tui.caller import Caller
from outrider.tui.commands import Command
from outrider.tui.feed import ReplayFeed
from outrider.tui.ground import Ground, Row
from outrider.tui.keys import BINDINGS, GROUPS
from outrider.tui.look import PAGES
from outrider.tui.options import TopOptions
from outrider.tui.widgets.box import Box
from outrider.tui.widgets.confirm import Confirm
from outrider.tui.widgets.panel import Panel
from outrider.tui.widgets.request_table import RequestTable
from outrider.tui.widgets.speed import Speed
from outrider.tui.widgets.tokens import Tokens
from tests.tui.screens import session, until


class Noting(Caller):
    """Asks nobody."""

    def __init__(self) -> None:
        super().__init__("127.0.0.1:1")
        self.pinned: list[str] = []
        self.refuses = False

    async def pin(self, placement: str) -> None:
        if self.refuses:
            raise InvalidRequest("there is no model on this device that could answer")
        self.pinned.append(placement)

    async def text(self, request: str, choice: int = 0) -> AsyncIterator[tuple[str, str]]:
        yield "def read", "cloud"
        yield "_all", "accepted"


class Lines:
    """A feed that a test fills."""

    over = False

    def __init__(self) -> None:
        self.coming: list[events.Event] = []
        self.closed = False

    def take(self) -> Sequence[events.Event]:
        found, self.coming = self.coming, []
        return found

    def close(self) -> None:
        self.closed = True


Act = Callable[[Top, "Pilot[int]"], Awaitable[None]]


def on(act: Act, *, share: float = 0.974, caller: Caller | None = None, **changes: Any) -> Top:
    """Run a screen over the session so far, and do something on it."""
    feed = Lines()
    app = Top(feed, TopOptions(every_s=None, **changes), caller, lambda: 0.0, lambda: 0.0)

    async def work() -> None:
        async with app.run_test(size=(100, 30)) as pilot:
            feed.coming = until(share)
            app.tick()
            await pilot.pause()
            await act(app, pilot)

    asyncio.run(asyncio.wait_for(work(), 60.0))
    assert feed.closed
    return app


def current(app: Top) -> str:
    return app.page.id or ""


def test_numbers_change_the_screen() -> None:
    async def act(app: Top, pilot: Pilot[int]) -> None:
        for number, page in enumerate(PAGES, 1):
            await pilot.press(str(number))
            assert current(app) == page
            assert f"[{number} " in picture.text(app)

    on(act)


def test_rows_are_walked_and_opened() -> None:
    async def act(app: Top, pilot: Pilot[int]) -> None:
        await pilot.press("3")
        table = app.query_one(RequestTable)
        first = table.chosen
        await pilot.press("j", "down")
        third = table.chosen
        await pilot.press("k", "up")
        assert table.chosen == first != third
        await pilot.press("pagedown")
        assert table.chosen not in (first, third)
        await pilot.press("pageup", "j", "j", "enter")
        await pilot.pause()
        assert f"waterfall of {third[:8]}" in picture.text(app)
        assert app.query_one(Tokens).request == third
        await pilot.press("escape")
        await pilot.pause()
        assert "waterfall of" not in picture.text(app) and table.chosen == third

    on(act)


def test_the_cursor_stays_on_its_row_while_others_come() -> None:
    async def act(app: Top, pilot: Pilot[int]) -> None:
        await pilot.press("3", "j")
        table = app.query_one(RequestTable)
        kept = table.chosen
        app.state.apply(
            events.RequestStarted(request="new", placement="draft", prompt_tokens=1, choices=1)
        )
        app.draw()
        assert table.chosen == kept
        await pilot.press("k", "k")
        assert table.chosen == "new"

    on(act)


def test_slash_filters_as_it_is_written_and_escape_takes_it_back() -> None:
    async def act(app: Top, pilot: Pilot[int]) -> None:
        await pilot.press("6", "slash", *"decis")
        await pilot.pause()
        assert app.look.filter == "decis"
        await pilot.press("enter")
        await pilot.pause()
        shown = picture.text(app)
        assert "filter: decis" in shown and "hint_sent" not in shown
        await pilot.press("escape")
        assert app.look.filter == ""
        await pilot.press("slash", "x", "escape")
        await pilot.pause()
        assert app.look.filter == "" and current(app) == "logs"

    on(act)


def test_colon_takes_commands() -> None:
    async def act(app: Top, pilot: Pilot[int]) -> None:
        await pilot.press("colon", *"links", "enter")
        assert current(app) == "links"
        app.obey("theme light")
        assert app.theme == "outrider-light"
        await pilot.press("colon", *"fly", "enter")
        assert current(app) == "links"

    on(act)


def test_help_lists_all_keys() -> None:
    async def act(app: Top, pilot: Pilot[int]) -> None:
        for key in ("f1", "question_mark"):
            await pilot.press(key)
            await pilot.pause()
            shown = picture.text(app)
            assert all(word in shown for word in ("Overview", "Filter rows", "ctrl+c", "verified"))
            await pilot.press("escape")
            await pilot.pause()
            assert not isinstance(app.screen, Box)

    on(act)


def test_every_binding_stands_in_help() -> None:
    grouped = [name for _, names in GROUPS for name in names]
    assert sorted(grouped) == sorted(binding.id or "" for binding in BINDINGS)


def test_space_holds_the_screen_and_loses_nothing() -> None:
    async def act(app: Top, pilot: Pilot[int]) -> None:
        await pilot.press("space")
        before = app.state.heard
        assert isinstance(app.feed, Lines)
        app.feed.coming = [events.Remark(said="meanwhile", t_ms=app.state.t_ms)]
        app.tick()
        assert app.state.heard == before and "paused +1" in picture.text(app)
        await pilot.press("space")
        assert app.state.heard == before + 1 and app.state.story() == "meanwhile"

    on(act)


def test_policy_shows_what_is_in_force() -> None:
    async def act(app: Top, pilot: Pilot[int]) -> None:
        await pilot.press("p")
        await pilot.pause()
        shown = picture.text(app)
        assert "battery floor" in shown and "20 %" in shown
        await pilot.press("p")
        await pilot.pause()
        assert not isinstance(app.screen, Box)

    on(act)


def test_pins_are_confirmed() -> None:
    caller = Noting()

    async def act(app: Top, pilot: Pilot[int]) -> None:
        for key, placement in (("e", "edge"), ("c", "cloud"), ("a", "auto")):
            caller.pinned.clear()
            await pilot.press(key)
            await pilot.pause()
            assert isinstance(app.screen, Confirm)
            await pilot.press("n")
            await pilot.pause()
            assert caller.pinned == []
            await pilot.press(key, "y")
            await app.workers.wait_for_complete()
            assert caller.pinned == [placement]

    on(act, caller=caller)


def test_a_refused_pin_is_told() -> None:
    caller = Noting()
    caller.refuses = True

    async def act(app: Top, pilot: Pilot[int]) -> None:
        await pilot.press("e", "enter")
        await app.workers.wait_for_complete()
        await pilot.pause()
        assert any("no model on this device" in note.message for note in app._notifications)

    on(act, caller=caller)


@pytest.mark.parametrize("caller", [Noting(), None], ids=["readonly", "replay"])
def test_nothing_is_pinned_when_it_must_not(caller: Noting | None) -> None:
    async def act(app: Top, pilot: Pilot[int]) -> None:
        await pilot.press("e", "c", "a")
        await pilot.pause()
        assert not isinstance(app.screen, Confirm)
        assert caller is None or not caller.pinned

    on(act, caller=caller, readonly=True)


def test_text_comes_when_it_is_asked_for() -> None:
    async def act(app: Top, pilot: Pilot[int]) -> None:
        await pilot.press("3", "j", "enter", "t")
        await app.workers.wait_for_complete()
        await pilot.pause()
        assert "def read_all" in picture.text(app)

    on(act, caller=Noting())


def test_r_records_what_comes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    async def act(app: Top, pilot: Pilot[int]) -> None:
        await pilot.press("r")
        assert isinstance(app.feed, Lines)
        app.feed.coming = list(session()[:5])
        app.tick()
        assert "rec 5" in picture.text(app)
        await pilot.press("r")

    on(act)
    (place,) = tmp_path.glob("outrider-*.events")
    assert list(recording.read(place)) == session()[:5]
    assert place.stat().st_mode & 0o077 == 0


def test_y_copies_a_plan() -> None:
    async def act(app: Top, pilot: Pilot[int]) -> None:
        await pilot.press("y")
        await pilot.pause()
        assert app.clipboard == plan_command.command(app.state)
        assert app.clipboard.startswith("outrider plan bundled:target --what-if rtt=")

    on(act)


def test_the_palette_finds_commands() -> None:
    async def act(app: Top, pilot: Pilot[int]) -> None:
        await pilot.press("ctrl+p")
        await pilot.press(*"decisions")
        await app.workers.wait_for_complete()
        await pilot.pause(0.3)
        await pilot.press("enter")
        await pilot.pause()
        assert current(app) == "decisions"

    on(act)


@pytest.mark.parametrize("key", ["q", "ctrl+c"])
def test_leaving(key: str) -> None:
    async def act(app: Top, pilot: Pilot[int]) -> None:
        await pilot.press(key)

    assert not on(act).is_running


def test_tabs_and_rows_can_be_clicked() -> None:
    async def act(app: Top, pilot: Pilot[int]) -> None:
        await pilot.click("Tabs", offset=(45, 0))
        await pilot.pause()
        assert current(app) == "decisions"
        await pilot.press("3")
        await pilot.pause()
        table = app.query_one(RequestTable)
        first = table.chosen
        await pilot.click("RequestTable", offset=(10, 4))
        assert table.chosen != first

    on(act)


def test_what_a_look_writes_stands_at_its_place() -> None:
    """The short way to the terminal writes what Textual's own would."""

    async def act(app: Top, pilot: Pilot[int]) -> None:
        ground, written = app.screen, []
        assert isinstance(ground, Ground)
        found = ground._rows

        def noted(changed: dict[Panel, list[int]]) -> list[Row] | None:
            written.append(found(changed))
            return written[-1]

        coming = session()[len(until(0.36)) :]
        for page, more in (("1", coming[:60]), ("3", coming[60:120])):
            await pilot.press(page)
            await pilot.pause()
            written.clear()
            ground._rows = noted  # type: ignore[method-assign]
            app.apply(more)
            app.draw()
            ground._rows = found  # type: ignore[method-assign]
            (rows,) = written
            assert rows, "nothing changed, or the long way was taken"
            shown = [line.ljust(100) for line in picture.text(app).splitlines()]
            for x, y, strip in rows:
                assert shown[y][x : x + strip.cell_length] == strip.text

    on(act, share=0.36)


def test_under_a_note_the_long_way_is_taken() -> None:
    async def act(app: Top, pilot: Pilot[int]) -> None:
        ground = app.screen
        assert isinstance(ground, Ground)
        speed = app.query_one(Speed)
        assert ground._rows({speed: [0]})
        app.notify("over it")
        await pilot.pause()
        assert ground._rows({speed: [0]}) is None

    on(act)


def test_a_silent_or_ended_daemon_is_named() -> None:
    now = [0.0]
    feed = Lines()
    app = Top(feed, TopOptions(every_s=None), None, lambda: now[0])

    async def work() -> None:
        async with app.run_test(size=(100, 30)):
            feed.coming = until(0.9)
            app.tick()
            now[0] = 12.0
            app.tick()
            assert "no word for 12 s" in picture.text(app)
            feed.coming = [events.Down(role="edge", reason="stopped", source="edge-1")]
            app.tick()
            assert "the daemon ended: stopped" in picture.text(app)

    asyncio.run(work())


# --- what is pure ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("split", Command("page", "split")),
        ("4", Command("page", "decisions")),
        ("pin draft", Command("pin", "draft")),
        ("filter  a b ", Command("filter", "a b")),
        ("q", Command("quit")),
        ("record", Command("record")),
    ],
)
def test_commands(text: str, found: Command) -> None:
    assert commands.parse(text) == found


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("pin moon", "pin takes one of"),
        ("decision", "did you mean decisions?"),
        ("xyzzy", "one of filter"),
        ("quit now", "takes nothing after it"),
        ("", "there is no command"),
    ],
)
def test_bad_commands_say_what_is_wrong(text: str, said: str) -> None:
    found = commands.parse(text)
    assert isinstance(found, str) and said in found


def test_a_replay_keeps_its_pace_and_can_be_held() -> None:
    now = [0.0]
    feed = ReplayFeed(session(), lambda: now[0], speed=2.0)
    begin = session()[0].at
    now[0] = 5.0
    first = feed.take()
    assert first and all(event.at <= begin + 10.0 for event in first)
    feed.held = True
    now[0] = 500.0
    assert feed.take() == [] and not feed.over
    feed.held = False
    now[0] = 505.0
    again = feed.take()
    assert again and all(begin + 10.0 < event.at <= begin + 20.0 for event in again)
    assert [*first, *again, *feed.rest()] == session() and feed.over
