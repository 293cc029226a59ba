"""The last line: the keys that matter here."""

from __future__ import annotations

from collections.abc import Sequence

from outrider.tui.look import Line, Part
from outrider.tui.widgets.panel import Panel

EVERYWHERE = (("?", "help"), ("/", "filter"), (":", "cmd"), ("space", "pause"))
ACTIVE = (("p", "policy"), ("e/c/a", "pin"))
LAST = (("r", "record"), ("y", "copy"), ("q", "quit"))


class Footer(Panel):
    DEFAULT_CSS = """
    Footer { border: none; height: 1; padding: 0 1; background: $panel; }
    """
    extra: tuple[tuple[str, str], ...] = ()
    """Of the present screen."""

    def draw(self, width: int, height: int) -> Sequence[Line]:
        policy = ACTIVE[:1] if self.look.readonly else ACTIVE
        parts: list[Part] = [("read only  ", "$warn")] if self.look.readonly else []
        room = width - sum(len(text) for text, _ in parts)
        for key, name in (*self.extra, *EVERYWHERE, *policy, *LAST):
            room -= len(key) + len(name) + 3
            if room < 0:
                break
            parts += [(key, "$cloud bold"), (f" {name}", "$faint"), ("  ", "")]
        return [parts]
