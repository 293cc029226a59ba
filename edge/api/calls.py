"""From what a model says back to calls of functions, as the text comes."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from outrider.edge.api.tools import MAX_DEPTH, deeper
from outrider.models.calls import CallForm
from outrider.protocol.stream import Token

SIGN = "\ufdd0"
"""Before a marker that is a special token; no character, so no text has it."""


@dataclass(frozen=True, slots=True)
class CallDelta:
    """A piece of a call; the first one has `id` and `name`."""

    index: int
    id: str = ""
    name: str = ""
    arguments: str = ""


Piece = str | CallDelta


@dataclass(slots=True)
class Call:
    """A call that is whole."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Listening:
    """What to listen for in an answer, and how to name what is found."""

    form: CallForm
    names: frozenset[str]
    special: Mapping[str, int]
    """Markers that are special tokens, and their ids."""
    streams: bool
    """Tell of a call as soon as its name is known; else once it is whole, so that a call that
    is cut short stays text."""

    def reader(self, answer: str) -> Reader:
        """For one answer; `answer` names it, and so its calls."""
        return Reader(self, answer)

    def identity(self, answer: str, index: int) -> str:
        found = hashlib.sha256(f"{answer} {index}".encode()).hexdigest()[: self.form.id_length]
        return found if self.form.id_length < 24 else f"call_{found}"

    def marker(self, word: str) -> str:
        return SIGN + word if word in self.special else word


class Reader:
    """Feed tokens, get text and pieces of calls. What is no whole call of a known function
    stays text; nothing raises."""

    def __init__(self, listening: Listening, answer: str) -> None:
        self._listening = listening
        self._answer = answer
        self._marks = {number: SIGN + word for word, number in listening.special.items()}
        self._opener = listening.marker(listening.form.opener)
        self._also = listening.marker(listening.form.also)
        self._text = ""
        """Not understood yet."""
        self._raw = ""
        """Of the call under way, from its opener on."""
        self._item: _Item | None = None
        self._place = "text" if self._opener else "start"
        self._pieces: list[Piece] = []
        self._index = 0
        """Of the call under way."""
        self.calls: list[Call] = []

    def say(self, tokens: Iterable[Token]) -> list[Piece]:
        """What is certain after these tokens."""
        for token in tokens:
            self._text += token.text + self._marks.get(token.id, "")
        while self._step():
            pass  # Each step takes something off the text, or changes the place.
        return self._taken()

    def end(self) -> list[Piece]:
        """What was held back: a call that is not whole is text."""
        rest = self._text
        self._text = ""
        if self._place == "open" or (self._item is not None and not self._item.begun):
            rest = self._raw + rest
        if rest.strip() or not self.calls:
            self._utter(rest)
        return self._taken()

    # --- steps: each takes something off the text, or waits for more ---------------------------

    def _step(self) -> bool:
        if not self._text:
            return False
        match self._place:
            case "start":
                return self._start()
            case "text":
                return self._search()
            case "open":
                return self._open()
            case "item":
                return self._read()
            case "after":
                return self._after()
        self._utter(self._text)
        self._text = ""
        return False

    def _start(self) -> bool:
        """An answer of bare calls begins with one."""
        text = self._text.lstrip()
        if not text or (self._also and self._also != text and self._also.startswith(text)):
            return False
        if self._also and text.startswith(self._also):
            return self._begin(len(self._text) - len(text) + len(self._also), "open")
        if text.startswith("{"):
            return self._begin(len(self._text) - len(text), "open")
        self._place = "plain"
        return True

    def _begin(self, taken: int, place: str) -> bool:
        self._raw, self._text = self._text[:taken], self._text[taken:]
        self._place = place
        return True

    def _search(self) -> bool:
        """Text up to an opener; white space before one is not said."""
        at = self._text.find(self._opener)
        if at >= 0:
            self._utter(self._text[:at].rstrip())
            self._text = self._text[at:]
            return self._begin(len(self._opener), "open")
        keep = _held(self._text, self._opener)
        said, self._text = (
            self._text[: len(self._text) - keep],
            self._text[len(self._text) - keep :],
        )
        self._utter(said)
        return False

    def _open(self) -> bool:
        """Behind an opener: white space, and a bracket where calls come in a list."""
        if not self._skip():
            return False
        form = self._listening.form
        if form.style == "list":
            if not self._text.startswith("["):
                return self._fail()
            self._shift(1)
        self._item = self._new_item()
        self._place = "item"
        return True

    def _new_item(self) -> _Item:
        form = self._listening.form
        separator = self._listening.marker(form.separator)
        return _Item(form, separator, self._listening.names)

    def _read(self) -> bool:
        """Into the call, as far as the text goes."""
        assert self._item is not None
        if not self._item.text and not self._skip():
            return False
        taken = self._item.take(self._text)
        self._shift(taken)
        if self._item.bad:
            return self._fail()
        if self._listening.streams:
            self._tell(self._item)
        if not self._item.whole:
            return taken > 0
        return self._finish(self._item)

    def _tell(self, item: _Item) -> None:
        """Name and arguments as far as they are known."""
        if item.name is None:
            return
        if not item.begun:
            item.begun = True
            identity = self._listening.identity(self._answer, self._index)
            self._pieces.append(CallDelta(self._index, identity, item.name))
        fresh = item.fresh()
        if fresh:
            self._pieces.append(CallDelta(self._index, arguments=fresh))

    def _finish(self, item: _Item) -> bool:
        found = item.call()
        if found is None:
            return self._fail()
        item.name, arguments = found
        if not item.begun:
            item.replace(arguments)
        self._tell(item)
        identity = self._listening.identity(self._answer, self._index)
        self.calls.append(Call(identity, item.name, arguments))
        self._index += 1
        self._item, self._raw = None, ""
        self._place = "after"
        return True

    def _after(self) -> bool:
        """Behind a call: its closer, or what divides it from the next one."""
        form = self._listening.form
        if not self._skip():
            return False
        if form.style == "list":
            return self._after_listed()
        if form.closer:
            return self._close(self._listening.marker(form.closer))
        if not form.opener and self._text[0] in ";{":
            self._shift(int(self._text[0] == ";"))
            self._item, self._place = self._new_item(), "item"
            return True
        self._place = "text" if form.opener else "plain"
        self._raw = ""
        return True

    def _close(self, closer: str) -> bool:
        if self._text.startswith(closer):
            self._shift(len(closer))
        elif closer.startswith(self._text):
            return False
        self._place, self._raw = "text", ""
        return True

    def _after_listed(self) -> bool:
        mark = self._text[0]
        self._shift(int(mark in ",]"))
        if mark == ",":
            self._item, self._place = self._new_item(), "item"
        else:
            self._place, self._raw = "text", ""
        return True

    # --- helpers -------------------------------------------------------------------------------

    def _skip(self) -> bool:
        """White space off the text; whether something is left."""
        self._shift(len(self._text) - len(self._text.lstrip()))
        return bool(self._text)

    def _shift(self, count: int) -> None:
        self._raw, self._text = self._raw + self._text[:count], self._text[count:]

    def _fail(self) -> bool:
        """It was no call: what looked like one is text, unless it was told of already."""
        if self._item is not None and self._item.begun:
            self._index += 1
        else:
            self._utter(self._raw)
        self._item, self._raw = None, ""
        self._place = "text" if self._opener else "plain"
        return True

    def _utter(self, text: str) -> None:
        text = text.replace(SIGN, "")
        if text:
            self._pieces.append(text)

    def _taken(self) -> list[Piece]:
        pieces, self._pieces = self._pieces, []
        return pieces


def _held(text: str, opener: str) -> int:
    """Characters at the end that may belong to an opener, or to white space before one."""
    length = len(opener) - 1
    cut = next((n for n in range(min(length, len(text)), 0, -1) if opener.startswith(text[-n:])), 0)
    before = text[: len(text) - cut]
    return cut + len(before) - len(before.rstrip())


_HEAD = re.compile(
    r'\{\s*"name"\s*:\s*"((?:[^"\\]|\\.)*)"\s*,\s*"(?:arguments|parameters)"\s*:\s*(?=\{)'
)
_LONGEST_HEAD = 4096


@dataclass(slots=True)
class _Item:
    """One call, character by character: an object, or a name and an object."""

    form: CallForm
    separator: str
    names: frozenset[str]
    text: str = ""
    name: str | None = None
    begun: bool = False
    """It was told of."""
    whole: bool = False
    bad: bool = False
    _depth: int = 0
    _quoted: bool = False
    _escaped: bool = False
    _arguments: int = 0
    """Where the arguments begin, once the name is known."""
    _told: int = 0
    _stop: int | None = None
    """Where the arguments end."""
    _headless: bool = False
    """It begins with no name that is known: only the whole will tell."""
    _length: int = 0
    """Characters, those of the piece at hand included."""

    def take(self, text: str) -> int:
        """How many characters belong to it."""
        if self.form.style == "named" and self.name is None:
            return self._take_name(text)
        count = 0
        for count, character in enumerate(text, start=1):
            self._length += 1
            self._note(character)
            if self.whole or self.bad:
                break
            if character == "{" and self.name is None and not self._headless:
                self._look_at_head(self.text + text[:count])
        self.text += text[:count]
        return count

    def _take_name(self, text: str) -> int:
        """The name, up to the separator."""
        found = self.text + text
        at = found.find(self.separator)
        if at < 0:
            self.bad = len(found) > _LONGEST_HEAD
            self.text = found
            return len(text)
        name = found[:at].strip()
        self.bad = name not in self.names
        taken = at + len(self.separator) - len(self.text)
        self.name = name
        self.text = ""
        return taken

    def _note(self, character: str) -> None:
        if self._escaped:
            self._escaped = False
        elif self._quoted:
            self._escaped = character == "\\"
            self._quoted = character != '"'
        elif character == '"':
            self._quoted = True
        elif character in "{[":
            self._depth += 1
        elif character in "}]":
            self._depth -= 1
            self._closed()
        if self._depth == 0 and not self.whole and not character.isspace():
            self.bad = True

    def _closed(self) -> None:
        outer = 0 if self.form.style == "named" else 1
        if self.name is not None and self._stop is None and self._depth == outer:
            self._stop = self._length
        self.whole = self._depth == 0

    def _look_at_head(self, text: str) -> None:
        """Whether name and beginning of the arguments are known by now."""
        found = _HEAD.match(text)
        if found is None:
            self._headless = len(text) > _LONGEST_HEAD
            return
        if found[1] in self.names:
            self.name = found[1]
            self._arguments = self._told = len(text) - 1
        self._headless = True

    def fresh(self) -> str:
        """Arguments that were not told of."""
        end = len(self.text) if self._stop is None else self._stop
        told, self._told = self._told, max(self._told, end)
        return self.text[told:end]

    def replace(self, arguments: str) -> None:
        """Tell these arguments, of a call that was understood only as a whole."""
        self.text, self._told, self._stop = arguments, 0, len(arguments)

    def call(self) -> tuple[str, str] | None:
        """(name, arguments as JSON) of a whole one; None when it is no call."""
        try:
            found = json.loads(self.text)
        except (ValueError, RecursionError):
            return None
        if not isinstance(found, dict) or deeper(found, MAX_DEPTH):
            return None
        if self.form.style == "named":
            assert self.name is not None
            return self.name, self.text
        return self._of_object(found)

    def _of_object(self, found: dict[str, Any]) -> tuple[str, str] | None:
        name = found.get("name")
        arguments = found.get("arguments", found.get("parameters"))
        if not isinstance(name, str) or name not in self.names or not isinstance(arguments, dict):
            return None
        if self.name is not None and self._stop is not None:
            return name, self.text[self._arguments : self._stop]
        return name, json.dumps(arguments, ensure_ascii=False)
