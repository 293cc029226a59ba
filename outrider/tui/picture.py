"""Screens without a terminal: as text for `--once`, and as SVG for documents."""

from __future__ import annotations

import html
import io
import re

from rich.console import Console

from outrider.tui.app import Top

FONTS = re.compile(r"\s*@font-face \{.*?\n\s*\}\n", re.DOTALL)
"""Rules that would fetch fonts from a server of others."""
FAMILY = re.compile(r"font-family: [^;]*;")
WRITTEN = re.compile(
    r'(<text [^>]*?x=")([\d.]+)("[^>]*?textLength=")([\d.]+)("[^>]*>)([^<]*)</text>'
)
OWN = "font-family: 'DejaVu Sans Mono', Menlo, Consolas, monospace;"


def text(app: Top, form: str = "text") -> str:
    """The screen as lines; with form `colours` in the escape codes of terminals."""
    width, height = app.size
    console = Console(
        width=width, height=height, file=io.StringIO(), force_terminal=True, record=True,
        color_system="truecolor", legacy_windows=False, safe_box=False,
    )  # fmt: skip
    # Textual itself draws screenshots so; it has no call for text.
    console.print(app.screen._compositor.render_update(full=True))
    lines = console.export_text(styles=form == "colours").splitlines()
    return "\n".join(line.rstrip() for line in lines[:height])


def svg(app: Top) -> str:
    """The screen as an SVG that stands by itself."""
    drawn = app.export_screenshot(title="outrider top")
    return WRITTEN.sub(_tight, FAMILY.sub(OWN, FONTS.sub("\n", drawn)))


def _tight(found: re.Match[str]) -> str:
    """A text without the blanks before and after it, which some programs leave out by
    themselves, so that what follows would slip."""
    head, x, middle, length, tail, text = found.groups()
    words = html.unescape(text)
    kept = words.strip("\xa0 ")
    if not kept:
        return ""
    cell = float(length) / len(words)
    left = float(x) + cell * (len(words) - len(words.lstrip("\xa0 ")))
    shown = html.escape(kept, quote=False).replace(" ", "&#160;").replace("\xa0", "&#160;")
    return f"{head}{left:.6g}{middle}{cell * len(kept):.6g}{tail}{shown}</text>"
