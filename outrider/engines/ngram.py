"""A drafter without a model: what followed the same words before will follow again.

For each row the longest suffix of the sequence that stood somewhere earlier is
looked up, in the slot's own tokens (prompt and answer) and in sequences that have
ended; what came next there most often, then most recently, is proposed. After
SuffixDecoding (arXiv 2411.04975) and prompt lookup decoding, with a hash of short
runs in place of a suffix tree.

Rule of exactness: a pick is a pure function of the slot's prefix and of the past,
and the past changes only when a slot closes.

Under a constraint only what it allows is proposed, and an id that it leaves no choice
about is, whether it stood somewhere or not.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

from outrider.engine import EngineInfo, EngineSpec, Picked, RowRule, Span
from outrider.engines.base import BaseEngine
from outrider.engines.slots import masks_of
from outrider.errors import ConfigError, LocalProtocolError
from outrider.models import vocabulary as vocabularies
from outrider.models.source import resolve
from outrider.protocol.sampling import Mask

ANCHORS = (5, 2)
"""Run lengths that are hashed, tried in this order; a match is grown backwards from one."""
LONGEST = 64
"""Tokens after which matches count as equally long."""
PLACES = 32
"""Most recent places of a run that are looked at."""
PAST = 1 << 16
"""Tokens of ended sequences that are kept; about 250 bytes each."""
SIZE = 4096
FILLER = 0
_BORDER = -1


@dataclass(frozen=True, slots=True)
class Match:
    """Continuations found behind the longest suffix, best first."""

    length: int
    ids: tuple[int, ...]


NOTHING = Match(0, ())


def _allowed(match: Match, mask: Mask | None) -> Match:
    """What of a match a constraint allows, or the one id that it leaves."""
    if mask is None:
        return match
    forced = mask.nonzero()[0]
    if len(forced) == 1:
        return Match(match.length, (int(forced[0]),))
    return Match(match.length, tuple(token for token in match.ids if mask[token]))


class Index:
    """A sequence and the places of its runs; grows on the right, shrinks on both sides."""

    def __init__(self) -> None:
        self._tokens: list[int] = []
        self._offset = 0
        self._places: dict[int, list[int]] = {}

    def __len__(self) -> int:
        return len(self._tokens)

    def append(self, token: int) -> None:
        """Note the runs that end before `token` as followed by it, then take it in."""
        if token != _BORDER:
            for run in self._runs(self._tokens):
                self._places.setdefault(run, []).append(self._offset + len(self._tokens))
        self._tokens.append(token)

    def cut(self, length: int) -> None:
        """Forget tokens from `length` on."""
        while len(self._tokens) > length:
            token = self._tokens.pop()
            if token != _BORDER:
                for run in self._runs(self._tokens):
                    self._forget(run, self._offset + len(self._tokens))

    def drop(self, count: int) -> None:
        """Forget the first `count` tokens, the last of which is a border."""
        for at in range(1, count):
            if self._tokens[at] != _BORDER:
                for run in self._runs(self._tokens[max(0, at - max(ANCHORS)) : at]):
                    self._forget(run, self._offset + at)
        del self._tokens[:count]
        self._offset += count

    def find(self, suffix: Sequence[int]) -> Match:
        """The longest match of a suffix. A place at the very end has no continuation."""
        for run in self._runs(suffix):
            places = [
                at - self._offset for at in islice(reversed(self._places.get(run, ())), PLACES)
            ]
            lengths = [self._grown(at, suffix) for at in places]
            longest = max(lengths, default=0)
            if longest >= min(ANCHORS):
                best = [at for at, length in zip(places, lengths, strict=True) if length == longest]
                return Match(longest, _ranked([self._tokens[at] for at in best]))
        return NOTHING

    def _runs(self, tokens: Sequence[int]) -> list[int]:
        """Keys of the runs at the end of `tokens`, longest first."""
        return [
            _key(tokens[-size:])
            for size in ANCHORS
            if len(tokens) >= size and _BORDER not in tokens[-size:]
        ]

    def _forget(self, run: int, place: int) -> None:
        places = self._places.get(run)
        if places is None:
            return
        if places[-1] == place:
            places.pop()
        elif places[0] == place:
            del places[0]
        if not places:
            del self._places[run]

    def _grown(self, at: int, suffix: Sequence[int]) -> int:
        """How many tokens before `at` equal the end of `suffix`."""
        length = 0
        most = min(at, len(suffix), LONGEST)
        while length < most and self._tokens[at - 1 - length] == suffix[-1 - length]:
            length += 1
        return length


def _key(run: Sequence[int]) -> int:
    """Runs that share a key by accident differ when they are grown."""
    return hash(tuple(run))


def _ranked(tokens: Sequence[int]) -> tuple[int, ...]:
    """Distinct ids, the most frequent first, then the most recent; `tokens`: recent first."""
    counts: dict[int, int] = {}
    for token in tokens:
        counts[token] = counts.get(token, 0) + 1
    return tuple(sorted(counts, key=lambda token: -counts[token]))


class NgramEngine(BaseEngine):
    """`past`: how many tokens of ended sequences are remembered; 0 remembers none."""

    def __init__(self, info: EngineInfo, *, past: int = PAST) -> None:
        super().__init__(info)
        self._limit = past
        self._past = Index()
        self._ended: deque[int] = deque()
        self._own: dict[int, Index] = {}

    def extend(self, spans: Sequence[Span]) -> list[Picked]:
        if any(span.want in ("logprobs", "scores") for span in spans):
            raise LocalProtocolError("an n-gram drafter has no probabilities")
        return super().extend(spans)

    def _opened(self, number: int) -> None:
        self._own[number] = Index()

    def _cut(self, number: int, length: int) -> None:
        self._own[number].cut(length)

    def _closed(self, number: int) -> None:
        """The ended sequence joins the past; the oldest ones leave it."""
        tokens = self._slots[number].tokens[-self._limit + 1 :] if self._limit > 1 else []
        del self._own[number]
        if not tokens:
            return
        for token in (*tokens, _BORDER):
            self._past.append(token)
        self._ended.append(len(tokens) + 1)
        while len(self._past) > self._limit:
            self._past.drop(self._ended.popleft())

    def _pass(self, spans: Sequence[Span]) -> list[Picked]:
        return [self._drafted(span) for span in spans]

    def _drafted(self, span: Span) -> Picked:
        index = self._own[span.slot]
        before = self._slots[span.slot].tokens[-LONGEST:]
        masks = masks_of(span, self._slots[span.slot])
        found = []
        for row, token in enumerate(span.tokens):
            index.append(token)
            before.append(token)
            if row >= span.first:
                match = self._match(index, before[-LONGEST:])
                found.append(_allowed(match, masks[row - span.first]))
        ids = tuple(match.ids[0] if match.ids else FILLER for match in found)
        children = None
        if span.want == "children":
            children = tuple(match.ids[: span.top_n] or (FILLER,) for match in found)
        return Picked(ids, children=children, proposes=tuple(bool(match.ids) for match in found))

    def _match(self, own: Index, suffix: Sequence[int]) -> Match:
        here, there = own.find(suffix), self._past.find(suffix)
        return there if there.length > here.length else here

    def check_integrity(self) -> None:
        super().check_integrity()
        assert set(self._own) == {slot.number for slot in self._slots}
        assert all(len(self._own[slot.number]) == len(slot.tokens) for slot in self._slots)
        assert len(self._past) == sum(self._ended) <= self._limit


def build(spec: EngineSpec) -> NgramEngine:
    """`model` may name a model whose vocabulary is taken, without its weights; else options
    `size` and `digest` tell it. Option `past`: tokens remembered of ended sequences."""
    options = dict(spec.options)
    past = _number(options, "past", PAST)
    size, digest = _vocabulary(spec, options)
    if options:
        raise ConfigError(f"the ngram engine has no option {sorted(options)[0]!r}")
    return NgramEngine(_info(spec, size, digest), past=past)


def _number(options: dict[str, str], name: str, default: int) -> int:
    text = options.pop(name, str(default))
    if not text.isascii() or not text.isdecimal():
        raise ConfigError(f"option {name} can not be {text!r}", why="it must be a whole number")
    return int(text)


def _vocabulary(spec: EngineSpec, options: dict[str, str]) -> tuple[int, str]:
    if spec.model == "ngram" or "size" in options:
        size = _number(options, "size", SIZE)
        return size, options.pop("digest", _digest({"ngram vocabulary": size}))
    vocabulary = vocabularies.load(resolve(spec.model))
    return len(vocabulary), vocabulary.digest


def _digest(parts: Mapping[str, object]) -> str:
    return hashlib.sha256(repr(sorted(parts.items())).encode()).hexdigest()


def _info(spec: EngineSpec, size: int, digest: str) -> EngineInfo:
    return EngineInfo(
        engine="ngram",
        model=spec.model,
        device="cpu",
        dtype="none",
        vocabulary_digest=digest,
        vocabulary_size=size,
        context=spec.context or 1 << 17,
        max_slots=spec.max_slots,
        max_rows=spec.max_rows,
        exact=True,
        row_rule=RowRule(),
        numeric_class=_digest({"ngram": 1, "anchors": ANCHORS, "vocabulary": digest}),
    )
