"""The keys, in one table: what they do, and what help says of them."""

from __future__ import annotations

from textual.binding import Binding

from outrider.tui.look import TITLES

BINDINGS: tuple[Binding, ...] = (
    *(
        Binding(str(n), f"page({n - 1})", title, id=f"page.{n}", tooltip=title)
        for n, title in enumerate(TITLES, 1)
    ),
    Binding("j,down", "move(1)", "Down", id="down", tooltip="To the next row"),
    Binding("k,up", "move(-1)", "Up", id="up", tooltip="To the row before"),
    Binding("pagedown", "move(10)", "Page down", id="pagedown", tooltip="Ten rows on"),
    Binding("pageup", "move(-10)", "Page up", id="pageup", tooltip="Ten rows back"),
    Binding("enter", "enter", "Open", id="enter", tooltip="A request in full"),
    Binding("escape", "leave", "Back", id="leave", tooltip="Back; no filter"),
    Binding("slash", "ask('/')", "Filter", key_display="/", id="filter", tooltip="Filter rows"),
    Binding(
        "colon", "ask(':')", "Command", key_display=":", id="command", tooltip="Write a command"
    ),
    Binding("f1,question_mark", "help", "Help", key_display="?", id="help", tooltip="All keys"),
    Binding("space", "pause", "Pause", id="pause", tooltip="Hold the screen still"),
    Binding("p", "policy", "Policy", id="policy", tooltip="Rules in force"),
    Binding("e", "pin('edge')", "Pin edge", id="pin.edge", tooltip="The small model alone"),
    Binding("c", "pin('cloud')", "Pin cloud", id="pin.cloud", tooltip="The cloud, no drafts"),
    Binding("a", "pin('auto')", "Auto", id="pin.auto", tooltip="Take a pin back"),
    Binding("t", "text", "Text", id="text", tooltip="Read a request's text"),
    Binding("r", "record", "Record", id="record", tooltip="Write events to a file"),
    Binding("y", "copy", "Copy plan", id="copy", tooltip="As an outrider plan"),
    Binding("q,ctrl+c", "quit", "Quit", id="quit", tooltip="Leave; the daemon stays"),
)
GROUPS = (
    ("Screens", tuple(f"page.{n}" for n in range(1, 7))),
    ("Rows", ("down", "up", "pagedown", "pageup", "enter", "leave", "text")),
    ("Look", ("filter", "command", "pause", "help")),
    ("Daemon", ("policy", "pin.edge", "pin.cloud", "pin.auto", "record", "copy", "quit")),
)
"""How help orders them, by id."""
SHOWN = {"question_mark": "?", "slash": "/", "colon": ":", "escape": "esc"}


def shown(binding: Binding) -> str:
    """Its keys as people name them."""
    return " ".join(SHOWN.get(key, key) for key in binding.key.split(","))


def by_id(wanted: str) -> Binding:
    return next(binding for binding in BINDINGS if binding.id == wanted)
