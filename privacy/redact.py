"""Prompt redaction: what must not leave the device is replaced before it does, and comes back.

Found are emails, API keys (known prefixes, and long words of high entropy), payment cards (Luhn),
IBANs (ISO 13616, remainder 1 of 97), phone numbers, and patterns of one's own. Each value becomes
a placeholder such as `[EMAIL_1]`: the same value the same one, numbered in order of appearance,
never one that stands in the text already. In the answer exactly those placeholders are turned
back; one that a model made up stays as it is.

It is a filter, not a proof: a name or a secret that looks like neither passes. What was built in
takes time linear in the text; patterns of one's own run in a process with limits (`bound_search`).
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from outrider.errors import InvalidRequest
from outrider.privacy.bound_search import search

KINDS: Final = ("email", "key", "card", "iban", "phone")
"""What is known without a pattern; `all` names them together."""
MOST_PATTERNS, MOST_PATTERN_CHARACTERS = 16, 512
_NAME = re.compile(r"[a-z][a-z0-9_]{0,23}")

Span = tuple[int, int]
Finder = Callable[[str], Iterable[Span]]


# --- what is looked for ------------------------------------------------------------------------

# Bounded repeats keep every search linear in the text.
_EMAIL = re.compile(
    r"(?<![\w.%+-])[\w.%+-]{1,64}@[A-Za-z0-9-]{1,63}(?:\.[A-Za-z0-9-]{1,63}){1,8}(?![\w@-])"
)
_PREFIXED = re.compile(
    r"(?<![A-Za-z0-9])(?:"
    r"sk-[A-Za-z0-9_-]{16,256}|(?:sk|pk|rk)_(?:live|test)_[A-Za-z0-9]{10,128}"
    r"|gh[pousr]_[A-Za-z0-9]{20,255}|github_pat_[A-Za-z0-9_]{20,255}|glpat-[A-Za-z0-9_-]{16,64}"
    r"|(?:AKIA|ASIA)[A-Z0-9]{16}|AIza[A-Za-z0-9_-]{35}|ya29\.[A-Za-z0-9_-]{16,512}"
    r"|xox[abeoprs]-[A-Za-z0-9-]{10,128}|hf_[A-Za-z0-9]{20,64}|npm_[A-Za-z0-9]{36}"
    r"|pypi-[A-Za-z0-9_-]{16,256}|SG\.[A-Za-z0-9_-]{16,64}\.[A-Za-z0-9_-]{16,64}"
    r"|eyJ[A-Za-z0-9_-]{8,1024}\.[A-Za-z0-9_-]{8,4096}\.[A-Za-z0-9_-]{8,1024}"
    r")"
)
_WORD = re.compile(r"(?<![A-Za-z0-9+/_=.-])[A-Za-z0-9+/_-]{24,256}={0,2}(?![A-Za-z0-9+/_=-])")
_CARD = re.compile(r"(?<![\d.])\d(?:[ -]?\d){12,18}(?![\d])")
_IBAN = re.compile(r"(?<![A-Za-z0-9])[A-Z]{2}\d{2}(?: ?[A-Z0-9]){11,30}(?![A-Za-z0-9])")
_PHONE = re.compile(
    r"(?<![\w.+])(?:\+|00)\d{1,3}(?:[ ./-]{0,2}\(?\d{1,5}\)?){2,6}(?!\w)"
    r"|(?<![\w.+])\(?\d{3}\)?[ .-]\d{3}[ .-]\d{4}(?!\w)"
    r"|(?<![\w.+])0\d{1,4}[ /-]\d{3,4}(?:[ /-]?\d{2,4}){1,3}(?!\w)"
)
_ENTROPY_BITS = 3.9
"""A character, over the word itself: random words of 24 characters and more lie above it, names
in code mostly below."""
_PHONE_DIGITS = range(8, 16)
"""E.164 allows 15."""


def _emails(text: str) -> Iterable[Span]:
    return (found.span() for found in _EMAIL.finditer(text))


def _keys(text: str) -> Iterable[Span]:
    yield from (found.span() for found in _PREFIXED.finditer(text))
    yield from (found.span() for found in _WORD.finditer(text) if _is_random(found[0]))


def _is_random(word: str) -> bool:
    """Letters of both kinds and digits, in no pattern: a key, not a name."""
    mixed = all(any(map(test, word)) for test in (str.isdigit, str.islower, str.isupper))
    return mixed and entropy(word) >= _ENTROPY_BITS


def entropy(word: str) -> float:
    """Shannon's, in bits a character, of the word's own letters."""
    size = len(word)
    return -sum(n / size * math.log2(n / size) for n in Counter(word).values())


def _cards(text: str) -> Iterable[Span]:
    return (found.span() for found in _CARD.finditer(text) if luhn(found[0]))


def luhn(text: str) -> bool:
    """Whether the digits in `text` end in their check digit (ISO/IEC 7812)."""
    digits = [int(character) for character in reversed(text) if character.isdigit()]
    doubled = [sum(divmod(2 * digit, 10)) for digit in digits[1::2]]
    return len(set(digits)) > 1 and (sum(digits[::2]) + sum(doubled)) % 10 == 0


def _ibans(text: str) -> Iterable[Span]:
    for found in _IBAN.finditer(text):
        # A word behind it may look like more of it: the longest part that holds is meant.
        for stop in range(found.end(), found.start() + 14, -1):
            if text[stop - 1] != " " and iban(text[found.start() : stop]):
                yield found.start(), stop
                break


def iban(text: str) -> bool:
    """Whether the check digits hold (ISO 13616): remainder 1 of 97."""
    bare = text.replace(" ", "")
    if not 15 <= len(bare) <= 34 or not bare.isascii() or not bare.isalnum():
        return False
    return int("".join(str(int(c, 36)) for c in bare[4:] + bare[:4])) % 97 == 1


def _phones(text: str) -> Iterable[Span]:
    for found in _PHONE.finditer(text):
        if sum(character.isdigit() for character in found[0]) in _PHONE_DIGITS:
            yield found.span()


_FINDERS: Mapping[str, Finder] = {
    "email": _emails,
    "key": _keys,
    "card": _cards,
    "iban": _ibans,
    "phone": _phones,
}
"""In the order in which they win where two find the same place."""


# --- rules -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Rules:
    """What is taken out: kinds, and named patterns."""

    kinds: tuple[str, ...] = ()
    patterns: tuple[tuple[str, str], ...] = ()
    """(name, regular expression)."""

    def __bool__(self) -> bool:
        return bool(self.kinds or self.patterns)

    def __or__(self, other: Rules) -> Rules:
        """What either takes out."""
        kinds = tuple(kind for kind in KINDS if kind in self.kinds + other.kinds)
        return Rules(kinds, tuple(dict.fromkeys(self.patterns + other.patterns)))

    @classmethod
    def parse(cls, words: Sequence[str], param: str = "redact") -> Rules:
        """Each word is a kind, `all`, several of them with commas, or `NAME=PATTERN`.

        Raises InvalidRequest, also for a pattern that Python's `re` does not take.
        """
        kinds: set[str] = set()
        patterns: list[tuple[str, str]] = []
        for word in words:
            if "=" in word:
                patterns.append(_pattern(word, param))
                continue
            for kind in filter(None, map(str.strip, word.split(","))):
                if kind not in (*KINDS, "all"):
                    raise _refused(param, f"one of {', '.join(KINDS)}, all, or NAME=PATTERN")
                kinds |= set(KINDS) if kind == "all" else {kind}
        if len(patterns) > MOST_PATTERNS:
            raise _refused(param, f"at most {MOST_PATTERNS} patterns")
        return cls(tuple(kind for kind in KINDS if kind in kinds), tuple(patterns))


def _pattern(word: str, param: str) -> tuple[str, str]:
    name, _, pattern = word.partition("=")
    if not _NAME.fullmatch(name) or name in (*KINDS, "all"):
        raise _refused(param, "a name of small letters, digits and _ before the =, and a new one")
    if not pattern or len(pattern) > MOST_PATTERN_CHARACTERS:
        raise _refused(param, f"a pattern of 1 to {MOST_PATTERN_CHARACTERS} characters")
    try:
        compiled = re.compile(pattern)
    except (re.error, RecursionError, OverflowError):
        raise _refused(param, f"a regular expression of Python's re behind {name}=") from None
    if compiled.fullmatch("") is not None:
        raise _refused(param, f"a pattern that does not match nothing behind {name}=")
    return name, pattern


def _refused(param: str, wanted: str) -> InvalidRequest:
    return InvalidRequest(
        f"{param} can not be taken",
        param=param,
        why=f"it must be {wanted}",
        effect="nothing was sent",
    )


# --- out and back ------------------------------------------------------------------------------


@dataclass(slots=True)
class Vault:
    """The values of one request, by placeholder; it stays on the device, and in memory."""

    rules: Rules
    values: dict[str, str] = field(default_factory=dict)
    """Placeholder to what it stands for."""
    _names: dict[str, str] = field(default_factory=dict)
    _taken: set[str] = field(default_factory=set)
    """Placeholders that stand in the texts themselves."""
    _numbers: Counter[str] = field(default_factory=Counter)

    def redact(self, texts: Sequence[str]) -> list[str]:
        """All texts of a request together. Raises InvalidRequest where a pattern takes too
        long: nothing may leave then."""
        for text in texts:
            self._taken |= set(_LIKE_OURS.findall(text))
        own = search(self.rules.patterns, texts) if self.rules.patterns else [[] for _ in texts]
        return [self._one(text, found) for text, found in zip(texts, own, strict=True)]

    def counts(self) -> dict[str, int]:
        """How many values of each kind were taken out."""
        kinds = Counter(name[1:].rpartition("_")[0].lower() for name in self.values)
        return dict(sorted(kinds.items()))

    def restorer(self) -> Restorer:
        return Restorer(self.values)

    def restore(self, text: str) -> str:
        """A whole text."""
        stream = self.restorer()
        return stream.feed(text) + stream.end()

    def _one(self, text: str, own: Sequence[tuple[str, int, int]]) -> str:
        found = list(own)
        for kind in self.rules.kinds:
            found += [(kind, start, stop) for start, stop in _FINDERS[kind](text)]
        pieces, at = [], 0
        # Of what overlaps, the earlier and then the longer one is taken.
        for kind, start, stop in sorted(found, key=lambda each: (each[1], -each[2])):
            if start >= at:
                pieces += [text[at:start], self._name(kind, text[start:stop])]
                at = stop
            elif stop > at:
                pieces.append(self._name(kind, text[at:stop]))
                at = stop
        return "".join([*pieces, text[at:]])

    def _name(self, kind: str, value: str) -> str:
        if value not in self._names:
            name = self._next(kind)
            while name in self._taken:
                name = self._next(kind)
            self._names[value] = name
            self.values[name] = value
        return self._names[value]

    def _next(self, kind: str) -> str:
        self._numbers[kind] += 1
        return f"[{kind.upper()}_{self._numbers[kind]}]"


_LIKE_OURS = re.compile(r"\[[A-Z][A-Z0-9_]{0,23}_\d{1,6}\]")


class Restorer:
    """Turns placeholders back in a text that comes in pieces, cut anywhere.

    What could be the beginning of a placeholder is held back until it is one or is not; what a
    placeholder stood for is not looked at again.
    """

    def __init__(self, values: Mapping[str, str]) -> None:
        self._values = values
        self._held = ""

    @property
    def held(self) -> bool:
        return bool(self._held)

    def feed(self, piece: str) -> str:
        """What is certain now."""
        text, done = self._held + piece, []
        while text:
            start = text.find("[")
            if start < 0:
                done.append(text)
                text = ""
                break
            done.append(text[:start])
            text = text[start:]
            name = next((name for name in self._values if text.startswith(name)), None)
            if name is not None:
                done.append(self._values[name])
                text = text[len(name) :]
            elif any(name.startswith(text) for name in self._values):
                break
            else:
                done.append("[")
                text = text[1:]
        self._held = text
        return "".join(done)

    def end(self) -> str:
        """The rest, as it is."""
        rest, self._held = self._held, ""
        return rest

    def copy(self) -> Restorer:
        """A twin that can run ahead on text that may be taken back."""
        twin = Restorer(self._values)
        twin._held = self._held
        return twin
