"""The screen of `outrider top`: looks at its feed twice a second, and shows the present page."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import ClassVar

from textual.app import App, ComposeResult
from textual.binding import Binding
from textual.css.query import NoMatches
from textual.widgets import ContentSwitcher

import outrider
from outrider.errors import OutriderError
from outrider.protocol import events
from outrider.tui import commands, plan_command, style, themes, words
from outrider.tui.caller import Caller
from outrider.tui.feed import Feed, ReplayFeed, StreamFeed
from outrider.tui.glyphs import ASCII, UNICODE
from outrider.tui.ground import Ground
from outrider.tui.keys import BINDINGS
from outrider.tui.look import PAGES, Look
from outrider.tui.messages import Entered, PageWanted, TextCame, TextFailed, Typed
from outrider.tui.options import TopOptions
from outrider.tui.palette import Commands
from outrider.tui.recorder import Recorder
from outrider.tui.state import State
from outrider.tui.widgets import help as help_page
from outrider.tui.widgets import policy as policy_page
from outrider.tui.widgets.banner import Banner
from outrider.tui.widgets.box import Box
from outrider.tui.widgets.confirm import Confirm
from outrider.tui.widgets.decisions import Decisions
from outrider.tui.widgets.footer import Footer
from outrider.tui.widgets.links import Links
from outrider.tui.widgets.logs import Logs
from outrider.tui.widgets.overview import Overview
from outrider.tui.widgets.page import Page
from outrider.tui.widgets.prompt import Prompt
from outrider.tui.widgets.requests import Requests
from outrider.tui.widgets.split import Split
from outrider.tui.widgets.story import Story
from outrider.tui.widgets.tabs import Tabs
from outrider.tui.widgets.tokens import Tokens

WAITING = 20_000
"""Events that are kept while the screen is held still."""
TEXT_PIECES = 8000
"""Of a request's text that is shown, the latest."""
OFF = "this screen is read only: nothing is pinned from here"


def unix_seconds() -> float:
    return time.clock_gettime(time.CLOCK_REALTIME)


class Pages(ContentSwitcher):
    BLANK = True


class Top(App[int]):
    """`caller` is None where there is no daemon to ask: in a replay."""

    TITLE = "outrider top"
    BINDINGS: ClassVar[list[Binding]] = list(BINDINGS)  # type: ignore[assignment]
    COMMANDS = {Commands}
    AUTO_FOCUS = None
    HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (110, "-wide")]
    VERTICAL_BREAKPOINTS = [(0, "-short"), (34, "-tall")]
    CSS = style.CSS

    def __init__(
        self,
        feed: Feed,
        options: TopOptions | None = None,
        caller: Caller | None = None,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = unix_seconds,
    ) -> None:
        self.options = options or TopOptions()
        super().__init__(ansi_color=self.options.theme == "ansi")
        self.feed, self.caller = feed, caller
        self.state = State()
        self.look = Look(
            glyphs=ASCII if self.options.ascii else UNICODE,
            zone=self.options.zone,
            readonly=self.options.readonly or caller is None,
        )
        self.paused = False
        self.recorder: Recorder | None = None
        self._clock, self._wall = clock, wall
        self._heard_at = clock()
        self._waiting: deque[events.Event] = deque(maxlen=WAITING)
        self._old_filter = ""
        if self.options.record is not None:
            self._record(self.options.record)

    def get_default_screen(self) -> Ground:
        return Ground(id="_default")

    # --- life ------------------------------------------------------------------------------

    def compose(self) -> ComposeResult:
        yield Banner()
        yield Tabs()
        with Pages(initial=self.options.page, id="pages"):
            yield Overview(id="overview")
            yield Split(id="split")
            yield Requests(id="requests")
            yield Decisions(id="decisions")
            yield Links(id="links")
            yield Logs(id="logs")
        yield Story()
        yield Footer()
        yield Prompt()

    def get_theme_variable_defaults(self) -> dict[str, str]:
        return themes.DEFAULTS

    def on_mount(self) -> None:
        for theme in themes.THEMES.values():
            self.register_theme(theme)
        self.theme = themes.THEMES[self.options.theme].name
        self.screen.set_class(self.options.ascii, "ascii")
        self.set_focus(None)
        self.tick()
        if isinstance(self.feed, StreamFeed):
            self.run_worker(self.feed.run(), group="feed")
        if self.options.every_s is not None:
            self.set_interval(self.options.every_s, self.tick)

    def on_unmount(self) -> None:
        self._stop_recording()
        self.feed.close()

    def on_resize(self) -> None:
        self.call_after_refresh(self.draw)

    # --- what comes ------------------------------------------------------------------------

    def tick(self) -> None:
        """Take what came, and show it."""
        found = self.feed.take()
        if found:
            self._heard_at = self._clock()
            if self.recorder is not None:
                self.recorder.write(found)
        if self.paused:
            self._waiting.extend(found)
        else:
            self.apply(found)
        self.draw()

    def apply(self, found: Iterable[events.Event]) -> None:
        for event in found:
            self.state.apply(event)

    @property
    def page(self) -> Page:
        return self.query_one(f"#{self._switcher.current}", Page)

    @property
    def _switcher(self) -> ContentSwitcher:
        return self.screen_stack[0].query_one("#pages", ContentSwitcher)

    def draw(self) -> None:
        """Bring what is visible up to date; what did not change is not painted."""
        if len(self.screen_stack) > 1:
            # A box lies over it; the page goes on when it is closed.
            return
        try:
            page = self.page
        except NoMatches:
            return
        self.query_one(Tabs).page = self._switcher.current or PAGES[0]
        banner, footer = self.query_one(Banner), self.query_one(Footer)
        replayed = isinstance(self.feed, ReplayFeed)
        banner.silent_s = 0.0 if replayed else self._clock() - self._heard_at
        banner.note, footer.extra = self._note(), page.KEYS
        ground = self.screen
        assert isinstance(ground, Ground)
        ground.begin()
        try:
            for panel in (banner, self.query_one(Tabs), self.query_one(Story), footer):
                panel.show(self.state, self.look)
            page.show(self.state, self.look)
        finally:
            ground.end()

    def _note(self) -> str:
        g, notes = self.look.glyphs, []
        if self.paused:
            more = f" +{len(self._waiting)}" if self._waiting else ""
            notes.append(f"{g.pause} paused{more}")
        if self.recorder is not None:
            notes.append(f"{g.record} rec {words.count(self.recorder.written)}")
        if isinstance(self.feed, ReplayFeed):
            notes.append(f"{g.play} replay{'ed' if self.feed.over else ''}")
        return "  ".join(notes)

    # --- keys ------------------------------------------------------------------------------

    def action_page(self, number: int) -> None:
        """One of the six screens, from 0."""
        self._switcher.current = PAGES[number]
        self.call_after_refresh(self.draw)
        self.draw()

    def on_page_wanted(self, message: PageWanted) -> None:
        self.action_page(PAGES.index(message.page))

    def action_move(self, by: int) -> None:
        if (table := self.page.table) is not None:
            table.move(by)

    def action_enter(self) -> None:
        self.page.enter()

    def action_leave(self) -> None:
        if not self.page.leave() and self.look.filter:
            self._filter("")

    def action_ask(self, kind: str) -> None:
        self._old_filter = self.look.filter
        self.query_one(Footer).display = False
        self.query_one(Prompt).ask(kind, self.look.filter if kind == "/" else "")

    def action_pause(self) -> None:
        self.paused = not self.paused
        if isinstance(self.feed, ReplayFeed):
            self.feed.take()
            self.feed.held = self.paused
        if not self.paused:
            self.apply(self._waiting)
            self._waiting.clear()
        self.draw()

    def action_help(self) -> None:
        self._box("keys", help_page.content(self.look.glyphs))

    def action_policy(self) -> None:
        self._box("policy", policy_page.content(self.state))

    def _box(self, title: str, content: list) -> None:  # type: ignore[type-arg]
        self.push_screen(Box(title, content, self._box_classes), lambda _: self.draw())

    @property
    def _box_classes(self) -> str:
        return "ascii" if self.options.ascii else ""

    def action_copy(self) -> None:
        command = plan_command.command(self.state)
        self.copy_to_clipboard(command)
        self.notify(command, title="copied", markup=False)

    # --- the daemon ------------------------------------------------------------------------

    def action_pin(self, placement: str) -> None:
        if self.look.readonly or self.caller is None:
            self.notify(OFF, severity="warning")
            return
        effect = "answers that run move at their next commit; a takes it back"
        question = f"run answers at `{placement}` from now on?"
        if placement == "auto":
            question, effect = "take the pin back?", "the policy decides again"

        def answered(said: str | None) -> None:
            if said == "yes":
                self.run_worker(self._pin(placement), exclusive=True)
            self.draw()

        self.push_screen(Confirm(question, effect, self._box_classes), answered)

    async def _pin(self, placement: str) -> None:
        assert self.caller is not None
        try:
            await self.caller.pin(placement)
        except OutriderError as error:
            self.notify(error.what, title="not pinned", severity="error", markup=False)
        else:
            self.notify(f"placement {placement}", title="pinned", markup=False)

    def action_text(self) -> None:
        """Read the chosen request's text over HTTP; events carry none."""
        page = self.page
        if not isinstance(page, Requests) or not page.request:
            return
        if self.caller is None:
            self.notify("a record holds no text", severity="warning")
            return
        self.run_worker(self._read(self.caller, page.request), exclusive=True, group="text")

    async def _read(self, caller: Caller, request: str) -> None:
        parts: deque[tuple[str, str]] = deque(maxlen=TEXT_PIECES)
        shown = self._clock()
        try:
            async for part in caller.text(request):
                parts.append(part)
                if self._clock() - shown >= 0.5:
                    shown = self._clock()
                    self.post_message(TextCame(request, tuple(parts)))
        except (OutriderError, asyncio.IncompleteReadError) as error:
            self.post_message(TextFailed(request, str(error).splitlines()[0]))
            return
        self.post_message(TextCame(request, tuple(parts)))

    def on_text_came(self, message: TextCame) -> None:
        tokens = self.query_one(Tokens)
        if tokens.request == message.request:
            tokens.text, tokens.note = message.parts, ""
            self.draw()

    def on_text_failed(self, message: TextFailed) -> None:
        tokens = self.query_one(Tokens)
        if tokens.request == message.request:
            tokens.note = message.why
            self.draw()

    # --- records ---------------------------------------------------------------------------

    def action_record(self) -> None:
        """Begin a record in this folder, or end the one that runs."""
        if self.recorder is not None:
            self.notify(f"{self.recorder.written} events in {self.recorder.path}", markup=False)
            self._stop_recording()
        else:
            name = time.strftime("outrider-%Y%m%d-%H%M%S.events", time.localtime(self._wall()))
            try:
                self._record(Path(name))
            except OutriderError as error:
                self.notify(error.what, severity="error", markup=False)
        self.draw()

    def _record(self, path: Path) -> None:
        self.recorder = Recorder(path, outrider.__version__, self._wall())

    def _stop_recording(self) -> None:
        if self.recorder is not None:
            self.recorder.close()
            self.recorder = None

    # --- the line at the bottom ------------------------------------------------------------

    def _filter(self, text: str) -> None:
        look = self.look
        self.look = Look(look.glyphs, look.zone, look.readonly, text)
        self.draw()

    def on_typed(self, message: Typed) -> None:
        if message.kind == "/":
            self._filter(message.text)

    def on_entered(self, message: Entered) -> None:
        self.query_one(Footer).display = True
        if message.kind == "/":
            self._filter(self._old_filter if message.text is None else message.text)
        elif message.text:
            self.obey(message.text)
        self.draw()

    def obey(self, text: str) -> None:
        """A command as it is written after `:`."""
        found = commands.parse(text)
        if isinstance(found, str):
            self.notify(found, severity="warning", markup=False)
            return
        match found.action:
            case "page":
                self.action_page(PAGES.index(found.argument))
            case "pin":
                self.action_pin(found.argument)
            case "theme":
                self.theme = themes.THEMES[found.argument].name
            case "filter":
                self._filter(found.argument)
            case "quit":
                self.exit(0)
            case name:
                getattr(self, f"action_{name}")()
