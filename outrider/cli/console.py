"""What goes to the terminal: data to standard output, everything else to standard error."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TextIO

import msgspec

from outrider.errors import InvalidRequest, OutriderError
from outrider.protocol.faults import to_parts

SCHEMA = 1
"""Of every JSON object that a verb prints; rises when a field changes meaning."""

STDIN = "\0stdin"
"""Stands for `-` among the words of a command line."""

_RED, _YELLOW, _BOLD, _DIM, _PLAIN = "\x1b[31m", "\x1b[33m", "\x1b[1m", "\x1b[2m", "\x1b[0m"


@dataclass(slots=True)
class Manner:
    """How a command line wants to be spoken to."""

    quiet: bool = False
    ask: bool = True
    debug: bool = False


manner = Manner()


def out(text: str, end: str = "\n") -> None:
    """Data, as it comes."""
    print(text, end=end, flush=True)


def note(text: str) -> None:
    """Progress and hints."""
    if not manner.quiet:
        _tell(text)


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def agreed(question: str) -> bool:
    """Ask a person. Raises InvalidRequest where nobody can be asked."""
    if not manner.ask or not sys.stdin.isatty():
        raise InvalidRequest(
            "nobody can be asked here", effect="nothing was done", todo="say it with --yes"
        )
    print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def asked(question: str, flag: str) -> str:
    """A line from a person. Raises InvalidRequest where nobody can be asked."""
    _check_person(flag)
    print(question, end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip()


def secret(question: str, flag: str) -> str:
    """The same, not shown while it is typed."""
    import getpass

    _check_person(flag)
    return getpass.getpass(question)


def _check_person(flag: str) -> None:
    if not manner.ask or not sys.stdin.isatty():
        raise InvalidRequest(
            "nobody can be asked here", effect="nothing was done", todo=f"say it with {flag}"
        )


def as_json(value: Any) -> None:
    """One object on one line, with `schema` first."""
    fields = msgspec.to_builtins(value)
    out(msgspec.json.encode({"schema": SCHEMA, **fields}).decode())


def colours(stream: TextIO) -> bool:
    """Only on a terminal, and unless NO_COLOR is set (no-color.org)."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def paint(text: str, style: str, stream: TextIO) -> str:
    return f"{style}{text}{_PLAIN}" if colours(stream) else text


def bold(text: str) -> str:
    return paint(text, _BOLD, sys.stdout)


def dim(text: str) -> str:
    return paint(text, _DIM, sys.stdout)


def warn(text: str) -> None:
    """Something is not as it should be, and the verb goes on."""
    _tell(f"{paint('warning:', _YELLOW, sys.stderr)} {text}")


def complain(error: OutriderError) -> None:
    """What, why, effect and what to do, one a line."""
    _tell(f"{paint('error:', _RED, sys.stderr)} {error}")


def error_object(error: OutriderError) -> None:
    """The same as one JSON object, for those that asked for JSON."""
    as_json({"error": to_parts(error)})


def table(rows: Sequence[Sequence[str]]) -> str:
    """Columns two blanks apart; the first row is the head."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(c.ljust(w) for c, w in zip(r, widths, strict=True)).rstrip() for r in rows]
    return "\n".join([bold(lines[0]), *lines[1:]])
