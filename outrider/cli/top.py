"""`outrider top`: the daemon live on the terminal, from its events."""

from __future__ import annotations

import re
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from outrider.cli import console
from outrider.cli.servers import missing
from outrider.cli.where import HERE, Daemon, Where
from outrider.errors import InvalidRequest

if TYPE_CHECKING:
    from outrider.tui.caller import Caller
    from outrider.tui.feed import Feed
    from outrider.tui.options import TopOptions


@dataclass(frozen=True)
class LookFlags:
    """How it looks."""

    theme: Literal["dark", "light", "ansi"] = "dark"
    """ansi takes the terminal's own colours."""
    ascii: bool = False
    """No signs beyond ASCII."""
    screen: Literal["overview", "split", "requests", "decisions", "links", "logs"] = "overview"
    """The first screen."""
    size: str = ""
    """With --once: columns and rows, as 80x24; by default the terminal's, or 80x24."""
    svg: Path | None = None
    """With --once: write the screen as an SVG file instead."""


LOOK = LookFlags()


def top(
    *,
    readonly: bool = False,
    once: bool = False,
    record: Path | None = None,
    replay: Path | None = None,
    speed: float = 1.0,
    look: Annotated[LookFlags, Parameter(name="*")] = LOOK,
    where: Where = HERE,
) -> int:
    """Watch the daemon live: where answers run and why, drafts and commits in flight, links.

    Keys: 1 to 6 change screens, ? shows all others, q leaves. The daemon goes on.

    Args:
        readonly: Pin nothing from here.
        once: Print one screen and leave.
        record: Write every event to this file; a name that ends with .gz is packed.
        replay: Show a record instead of a daemon.
        speed: Of a replay; 2 is twice as fast.
    """
    try:
        from outrider.tui import start
        from outrider.tui.options import TopOptions

        options = TopOptions(
            readonly=readonly,
            ascii=look.ascii,
            theme=look.theme,
            page=look.screen,
            record=record,
            speed=speed,
        )
        size = parse_size(look.size)
        feed, caller = _source(replay, options, where)
        if not once and look.svg is None:
            return start.run(feed, options, caller)
        form = "svg" if look.svg else "colours" if console.colours(sys.stdout) else "text"
        drawn = start.once(feed, options, caller, size=size, form=form)
    except ModuleNotFoundError as error:
        raise missing("tui,edge", error) from None
    if look.svg is not None:
        look.svg.write_text(drawn)
    else:
        console.out(drawn)
    return 0


def _source(replay: Path | None, options: TopOptions, where: Daemon) -> tuple[Feed, Caller | None]:
    from outrider.tui import start

    if replay is not None:
        return start.replay(replay, options), None
    with where.client() as client:
        address = client.status().events_address
    return start.live(address, where.host, where.api_key)


def parse_size(text: str) -> tuple[int, int]:
    """Columns and rows; this terminal's when nothing is said. Raises InvalidRequest."""
    if not text:
        found = shutil.get_terminal_size((80, 24))
        return found.columns, found.lines
    match = re.fullmatch(r"(\d{2,3})x(\d{2,3})", text)
    if match is None:
        raise InvalidRequest(f"{text!r} is no size", todo="write COLUMNSxROWS, as 80x24")
    return int(match[1]), int(match[2])
