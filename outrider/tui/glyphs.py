"""The signs that screens are drawn with: Unicode, or ASCII alone. No sign stands for two things,
so that nothing is told by colour alone."""

from __future__ import annotations

from dataclasses import dataclass

SOURCES = ("accepted", "bonus", "corrected", "cloud", "edge", "provisional")
"""Who made a token; each is also the name of a colour of the theme."""


@dataclass(frozen=True, slots=True)
class Glyphs:
    """One set; strings of several signs run from low to high."""

    sources: tuple[str, ...]
    """In the order of `SOURCES`."""
    braille: bool
    bars: str
    block: str
    """A filled cell of a strip or a bar."""
    shades: tuple[str, ...]
    """Cells of devices in turn."""
    empty: str
    good: str
    bad: str
    waiting: str
    arrow: str
    up: str
    down: str
    cursor: str
    pause: str
    record: str
    play: str
    logo: str
    ellipsis: str
    rule: str
    bullet: str
    times: str
    degree: str
    left: str
    """The left end of what lasts in a timeline; the next is its middle, then its right end."""
    middle: str
    right: str

    def source(self, name: str) -> str:
        return self.sources[SOURCES.index(name)]


UNICODE = Glyphs(
    sources=("■", "◆", "▲", "□", "○", "·"),
    braille=True,
    bars=" ▁▂▃▄▅▆▇█",
    block="█",
    shades=("█", "▓", "▒", "░"),
    empty="·",
    good="●",
    bad="✗",
    waiting="◌",
    arrow="→",
    up="▲",
    down="▼",
    cursor="▸",
    pause="⏸",
    record="⏺",
    play="▶",
    logo="◆",
    ellipsis="…",
    rule="─",
    bullet="•",
    times="×",
    degree="°C",
    left="▐",
    middle="█",
    right="▌",
)
ASCII = Glyphs(
    sources=("a", "b", "x", "c", "e", "."),
    braille=False,
    bars=" .:-=+*#@",
    block="#",
    shades=("#", "%", "+", "-"),
    empty=".",
    good="*",
    bad="!",
    waiting="?",
    arrow="->",
    up="^",
    down="v",
    cursor=">",
    pause="||",
    record="(R)",
    play=">>",
    logo="*",
    ellipsis="~",
    rule="-",
    bullet="-",
    times="x",
    degree="C",
    left="[",
    middle="=",
    right="]",
)
