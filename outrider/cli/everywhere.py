"""Flags that every verb takes, and what was typed of the others."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from outrider.cli import console
from outrider.errors import InvalidRequest

EPILOGUE = """\
With every verb:
  --config FILE  another config.toml (OUTRIDER_CONFIG)
  --quiet, -q  no progress, no hints; warnings and errors stay
  --no-color  no colours (NO_COLOR)
  --no-input  never ask; what would ask, fails
  --debug  show the trace of a failure (OUTRIDER_DEBUG)
"""
SWITCHES = {"--no-color": "NO_COLOR", "--debug": "OUTRIDER_DEBUG"}
CONFIG = "OUTRIDER_CONFIG"

_given: ContextVar[frozenset[str] | None] = ContextVar("given", default=None)


def note_given(app: object, commands: tuple[str, ...], arguments: Any) -> None:
    """For the parser's `config`: remember which flags were typed, whatever their values."""
    names = [argument.name for argument in arguments if argument.tokens]
    _given.set(frozenset(name.lstrip("-").replace("-", "_") for name in names))


def given() -> frozenset[str] | None:
    """Parameters that were typed; None where no command line was parsed."""
    return _given.get()


@contextmanager
def taken(words: Sequence[str]) -> Iterator[list[str]]:
    """What is left of a command line; for as long as the context lasts the flags count.

    Raises InvalidRequest for `--config` without a file.
    """
    left, found = _split(words)
    before = {name: os.environ.get(name) for name in found}
    typed, quiet, ask = _given.set(None), console.manner.quiet, console.manner.ask
    console.manner.quiet = any(word in ("--quiet", "-q") for word in _flags(words))
    console.manner.ask = "--no-input" not in _flags(words)
    os.environ.update(found)
    # A bug is shown when all of this is over.
    console.manner.debug = "OUTRIDER_DEBUG" in found
    try:
        yield left
    finally:
        console.manner.quiet, console.manner.ask = quiet, ask
        _given.reset(typed)
        for name, value in before.items():
            _restore(name, value)


def _restore(name: str, value: str | None) -> None:
    if value is None:
        os.environ.pop(name, None)
    else:
        os.environ[name] = value


def _flags(words: Sequence[str]) -> Sequence[str]:
    """What stands before a lone `--`."""
    return words[: words.index("--")] if "--" in words else words


def _split(words: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """The verb's words, and the variables that the flags stand for."""
    left: list[str] = []
    found: dict[str, str] = {}
    own = len(_flags(words))
    rest = iter(enumerate(words))
    for number, word in rest:
        if number >= own:
            left.append(word)
        elif word in SWITCHES:
            found[SWITCHES[word]] = "1"
        elif word == "--config":
            found[CONFIG] = next(rest, (0, ""))[1]
            _check(found[CONFIG])
        elif word.startswith("--config="):
            found[CONFIG] = word.partition("=")[2]
            _check(found[CONFIG])
        elif word not in ("--quiet", "-q", "--no-input"):
            left.append(word)
    return left, found


def _check(path: str) -> None:
    if not path or not os.path.isfile(os.path.expanduser(path)):
        raise InvalidRequest(
            f"--config {path}: there is no such file" if path else "--config needs a file",
            effect="nothing was done",
            todo="outrider config path tells the usual one, outrider config init writes it",
        )
