"""What can be written after `:`: words to an action and its argument. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches

from outrider.tui.look import PAGES

PINS = ("auto", "edge", "cloud", "draft")
THEMES = ("dark", "light", "ansi")
PLAIN = ("pause", "policy", "record", "copy", "help", "quit")
WORDS = (
    *PAGES,
    *(f"pin {name}" for name in PINS),
    *(f"theme {name}" for name in THEMES),
    *PLAIN,
    "filter ",
)
"""For completion."""


@dataclass(frozen=True, slots=True)
class Command:
    """`action` is `page`, `pin`, `theme`, `filter`, or one of `PLAIN`."""

    action: str
    argument: str = ""


def parse(text: str) -> Command | str:
    """The command, or what is wrong with it."""
    word, _, rest = text.strip().partition(" ")
    rest = rest.strip()
    if word == "filter":
        return Command("filter", rest)
    if word in ("pin", "theme"):
        allowed = PINS if word == "pin" else THEMES
        if rest in allowed:
            return Command(word, rest)
        return f"{word} takes one of {', '.join(allowed)}"
    if rest:
        return f"{word!r} takes nothing after it" if word in (*PAGES, *PLAIN) else _unknown(word)
    if word.isdigit() and 1 <= int(word) <= len(PAGES):
        return Command("page", PAGES[int(word) - 1])
    if word in PAGES:
        return Command("page", word)
    if word in ("q", "exit"):
        return Command("quit")
    return Command(word) if word in PLAIN else _unknown(word)


def _unknown(word: str) -> str:
    known = ("filter", "pin", "theme", *PAGES, *PLAIN)
    close = get_close_matches(word, known, 1)
    hint = f"did you mean {close[0]}?" if close else f"one of {', '.join(known)}"
    return f"there is no command {word!r}: {hint}"
