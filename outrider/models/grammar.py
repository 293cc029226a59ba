"""From a constraint and a vocabulary to a matcher that says which ids may come next.

llguidance does the work (an Earley parser over derivatives of regular expressions, and a trie
of the vocabulary); it is imported here alone, and once it is asked for. It is given the ids'
bytes and nothing else, so a GGUF and a tokenizer.json of one model have the same masks: which
of the ways to write the same bytes is taken is left to the model (`no_forcing`).
"""

from __future__ import annotations

import importlib.util
import json
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from importlib import metadata
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from outrider.errors import InvalidRequest
from outrider.protocol.constraint import PARAM, Constraint, refused
from outrider.protocol.vocabulary import Vocabulary

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

Mask = NDArray[np.bool_]
"""Shape [vocabulary_size]; True where an id may be chosen."""

RULES = 1
"""Of this adapter; changes with anything here that changes a mask."""
WHITE_SPACE = r"[\x20\x0A\x0D\x09]{1,40}"
"""In JSON, in one place: a model that likes blanks does not write them to the end of its
tokens. `x-guidance` of a schema may say otherwise."""
MAX_DEPTH = 64
"""Brackets in brackets of a schema."""
KEPT = 64
"""Compiled constraints of a vocabulary."""
VOCABULARIES = 4
"""Whose tries are kept."""
LIMITS: dict[str, Any] = {
    "initial_lexer_fuel": 1_000_000,
    "step_lexer_fuel": 100_000,
    "step_max_items": 10_000,
    "max_items_in_row": 500,
    "max_lexer_states": 50_000,
    "max_grammar_size": 200_000,
    "verbose_errors": False,
}
"""llguidance's own. A compilation takes tens of milliseconds at most, a mask a few, and states
that are kept about 100 MiB."""
_NO_FORCING = '%llguidance {"no_forcing": true}\n'


def masks() -> str:
    """Name and version of what computes masks, as Describe says it; empty where it is missing."""
    if importlib.util.find_spec("llguidance") is None:
        return ""
    return f"llguidance {metadata.version('llguidance')}, rules {RULES}"


class Grammars:
    """The compiled constraints of one vocabulary. May be used from several threads."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        """Takes about half a second for 128 000 ids. The vocabulary needs an end id."""
        self._size = len(vocabulary)
        self._tokenizer = _tokenizer(vocabulary) if vocabulary.end else None
        self.ends = frozenset(vocabulary.end)
        self._compiled: OrderedDict[Constraint, Grammar] = OrderedDict()
        self._lock = threading.Lock()

    def compile(self, constraint: Constraint) -> Grammar:
        """Raises InvalidRequest with llguidance's message."""
        if self._tokenizer is None:
            raise refused("a constraint can not be kept", "this model has no end token")
        with self._lock:
            found = self._compiled.pop(constraint, None)
            if found is None:
                found = Grammar(_matcher(self._tokenizer, constraint), self.ends, self._size)
            self._compiled[constraint] = found
            while len(self._compiled) > KEPT:
                self._compiled.popitem(last=False)
        return found


class Grammar:
    """One constraint, compiled for one vocabulary."""

    def __init__(self, matcher: LLMatcher, ends: frozenset[int], size: int) -> None:
        self._matcher = matcher
        self._lock = threading.Lock()
        self.ends = ends
        self.size = size
        self.only_ends: Mask = np.zeros(size, dtype=np.bool_)
        self.only_ends[sorted(ends)] = True
        self.only_ends.flags.writeable = False

    def matcher(self) -> LLMatcher:
        """A new one, at the beginning of a text."""
        with self._lock:
            return self._matcher.deep_copy()

    def unpacked(self, bits: bytes) -> Mask:
        packed = np.frombuffer(bits, dtype=np.uint8)
        return np.unpackbits(packed, count=self.size, bitorder="little").view(np.bool_)


class Guide:
    """A matcher that follows one answer: forwards along hints, and back. For one thread."""

    def __init__(self, grammar: Grammar) -> None:
        self._grammar = grammar
        self._matcher = grammar.matcher()
        self._held: list[int] = []
        """Tokens that the matcher stands behind."""

    def masks(self, answer: Sequence[int], paths: Sequence[Sequence[int]]) -> list[Mask]:
        """What may follow the answer and each of the paths behind it.

        Raises InvalidRequest where the constraint takes more than its share of time to follow.
        """
        fits = self._follow(0, answer)
        found = []
        for path in paths:
            on = fits and self._follow(len(answer), path)
            found.append(self._mask() if on else self._grammar.only_ends)
        return found

    def _follow(self, start: int, tokens: Sequence[int]) -> bool:
        """Stand behind `tokens`, the first of which is the answer's at `start`; False if no
        text of the constraint begins so."""
        same = _common(self._held[start:], tokens)
        back = len(self._held) - start - same
        if back and not self._matcher.rollback(back):
            self._fail()
        del self._held[start + same :]
        rest = list(tokens[same:])
        # An end id is behind every text: the matcher would take it for the end of a part.
        ahead = next((i for i, t in enumerate(rest) if t in self._grammar.ends), len(rest))
        taken = self._matcher.try_consume_tokens(rest[:ahead]) if ahead else 0
        self._held += rest[:taken]
        if self._matcher.is_error():
            self._fail()
        return taken == len(rest)

    def _mask(self) -> Mask:
        if self._matcher.is_stopped():
            return self._grammar.only_ends
        bits = self._matcher.compute_bitmask()
        if not self._matcher.is_error():
            return self._grammar.unpacked(bits)
        if "NoExtension" not in self._matcher.get_error():
            self._fail()
        # A text goes on from here, but no id of this vocabulary spells its next bytes.
        self._renew()
        return self._grammar.only_ends

    def _renew(self) -> None:
        self._matcher = self._grammar.matcher()
        self._held.clear()

    def _fail(self) -> None:
        # The message may quote the answer; which part of it gave up is what it tells here.
        part = "lexer" if "lexer" in self._matcher.get_error().lower() else "parser"
        self._renew()
        raise InvalidRequest(
            "the constraint is too complex to follow",
            param=PARAM,
            why=f"its {part} reached a limit of llguidance",
            effect="the answer ends here",
            todo="simplify its patterns, or narrow what may repeat",
        )


def _common(held: Sequence[int], wanted: Sequence[int]) -> int:
    """Length of the common beginning."""
    most = min(len(held), len(wanted))
    if list(held[:most]) == list(wanted[:most]):
        return most
    return next(i for i in range(most) if held[i] != wanted[i])


# --- vocabularies ------------------------------------------------------------------------------

_known: OrderedDict[tuple[str, tuple[int, ...]], Grammars] = OrderedDict()
_lock = threading.Lock()


def grammars(digest: str, load: Callable[[], Vocabulary]) -> Grammars:
    """Those of a vocabulary, made once in a process. Takes half a second for 128 000 ids.

    End ids are no part of the digest: models with the same ids may end on others.
    """
    vocabulary = load()
    with _lock:
        key = digest, vocabulary.end
        found = _known.pop(key, None) or Grammars(vocabulary)
        _known[key] = found
        while len(_known) > VOCABULARIES:
            _known.popitem(last=False)
    return found


class _Wrapped:
    """A vocabulary in the form that `LLTokenizer` asks for."""

    is_tokenizer_wrapper = True

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.tokens = vocabulary.tokens
        # An end id that is spelled as text must not end an answer in the middle of a string.
        self.special_token_ids = sorted(vocabulary.special | set(vocabulary.end))
        self.eos_token_id = vocabulary.end[0]
        self.bos_token_id = vocabulary.bos

    def __call__(self, text: str) -> list[int]:
        # Never asked: nothing is forced, so nothing is tokenised.
        raise AssertionError("llguidance asked for a tokenisation")


def _tokenizer(vocabulary: Vocabulary) -> LLTokenizer:
    from llguidance import LLTokenizer

    wrapped: Any = _Wrapped(vocabulary)
    return LLTokenizer(wrapped, eos_token=list(vocabulary.end))


# --- constraints -------------------------------------------------------------------------------


def _matcher(tokenizer: LLTokenizer, constraint: Constraint) -> LLMatcher:
    from llguidance import LLMatcher
    from llguidance._lib import LLParserLimits

    limits = LLParserLimits(**LIMITS)
    grammar = _NO_FORCING + _lark(constraint)
    found = LLMatcher(tokenizer, grammar, log_level=0, limits=limits)
    if found.is_error():
        raise refused(f"the {_name(constraint)} can not be kept", _reason(found.get_error()))
    return found


def _name(constraint: Constraint) -> str:
    names = {"json_schema": "JSON schema", "regex": "regular expression", "lark": "grammar"}
    return names.get(constraint.kind, "constraint")


def _reason(message: str) -> str:
    """llguidance's words, without the place in a source that is half ours, and its print."""
    text = message.partition("\n   1 | ")[0].partition("\n<non-verbose/>")[0].strip()
    place, found, rest = text.partition("): ")
    return (rest if found and place.startswith("at ") else text).replace("\n", "; ")


def _lark(constraint: Constraint) -> str:
    from llguidance import regex_to_lark

    match constraint.kind:
        case "json_object":
            return _json({"type": "object"})
        case "json_schema":
            return _json(_schema(constraint.text))
        case "regex":
            return f"start: /{regex_to_lark(constraint.text)}/"
        case "lark":
            return constraint.text


def _json(schema: object) -> str:
    if isinstance(schema, dict):
        given = schema.get("x-guidance")
        options = given if isinstance(given, dict) else {}
        if not {"whitespace_pattern", "whitespace_flexible"} & set(options):
            options = {**options, "whitespace_pattern": WHITE_SPACE}
        schema = {**schema, "x-guidance": options}
    return f"start: %json {json.dumps(schema)}"


def _schema(text: str) -> object:
    try:
        found: object = json.loads(text)
    except (ValueError, RecursionError) as error:
        why = str(error) if isinstance(error, ValueError) else "it is nested too deeply"
        raise refused("the JSON schema is not JSON", why) from None
    if _depth(found) > MAX_DEPTH:
        raise refused("the JSON schema is nested too deeply", f"at most {MAX_DEPTH} levels")
    return found


def _depth(found: object) -> int:
    """Brackets around the innermost value, counted up to one more than are taken."""
    level, depth = [found], 0
    while level and depth <= MAX_DEPTH:
        inner = [each for each in level if isinstance(each, dict | list)]
        depth += bool(inner)
        level = [v for each in inner for v in (each.values() if isinstance(each, dict) else each)]
    return depth
