"""One request's answers as they grow: from events to chunks, or to the whole answer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from outrider.edge.api import report
from outrider.edge.api.calls import Piece, Reader
from outrider.edge.api.errors import internal
from outrider.edge.api.parse import Asked
from outrider.edge.api.shapes import Shape, Spell
from outrider.protocol.faults import of_done
from outrider.protocol.stream import (
    Done,
    Forked,
    Provisional,
    Retract,
    Started,
    StreamEvent,
    Token,
    Waiting,
)

Chunk = dict[str, Any]


@dataclass(slots=True)
class Choice:
    """One answer."""

    index: int
    source: int
    started: Started
    fresh: list[Token] = field(default_factory=list)
    """Tokens that no chunk has carried yet; of a whole answer, all."""
    waiting: list[Token] = field(default_factory=list)
    """Of those that were read, the ones whose logprobs no chunk has carried yet."""
    length: int = 0
    """Characters that chunks have carried."""
    tokens: int = 0
    reader: Reader | None = None
    """Finds calls in the answer, where there may be some."""
    forked: Forked | None = None
    done: Done | None = None

    def read(self) -> list[Piece]:
        """What the fresh tokens say: text, or pieces of calls."""
        if self.reader is None:
            text = "".join(token.text for token in self.fresh)
            return [text] if text else []
        pieces = self.reader.say(self.fresh)
        return pieces + self.reader.end() if self.done is not None else pieces

    def reason(self) -> str:
        assert self.done is not None
        if self.reader is not None and self.reader.calls and self.done.finish_reason == "stop":
            return "tool_calls"
        return self.done.finish_reason

    def ended(self) -> report.Ended:
        assert self.done is not None
        return report.Ended(self.index, self.source, self.started, self.done, self.forked)


class Transcript:
    """`spell` gives a token's bytes (for logprobs); `created` is Unix time in seconds.

    Token text is handed on as it comes: that it never breaks a character or shows part
    of a stop string is the service's promise.
    """

    def __init__(self, asked: Asked, shape: Shape, spell: Spell, created: int) -> None:
        self._asked = asked
        self._shape = shape
        self._spell = spell
        self._created = created
        self._choices: dict[int, Choice] = {}
        self._n = asked.requests[0].n
        self._expected = self._n * len(asked.requests)
        self._logprobs = asked.requests[0].top_logprobs is not None
        self._retracts = asked.requests[0].retract
        self._failed: Done | None = None

    @property
    def ended(self) -> list[report.Ended]:
        """Finished choices by index."""
        found = sorted(self._choices.items())
        return [choice.ended() for _, choice in found if choice.done is not None]

    def take(self, source: int, event: StreamEvent) -> Choice | None:
        """Add an event to its choice; None for one that has not started."""
        index = source * self._n + event.choice
        if isinstance(event, Started):
            self._choices[index] = self._new(index, source, event)
        choice = self._choices.get(index)
        if choice is None:
            return None
        if isinstance(event, Token):
            choice.fresh.append(event)
            choice.tokens += 1
        elif isinstance(event, Forked):
            choice.forked = event
        elif isinstance(event, Done):
            if event.finish_reason in ("error", "cancelled"):
                self._failed = event
            else:
                choice.done = event
        return choice

    def _new(self, index: int, source: int, started: Started) -> Choice:
        listening = self._asked.listening
        answer = f"{started.request} {index}"
        reader = listening.reader(answer) if listening is not None else None
        return Choice(index, source, started, reader=reader)

    def check(self) -> None:
        """At the end: raise when an answer failed, or has no end (a bug, not a short answer)."""
        if self._failed is not None:
            raise of_done(self._failed)
        if len(self.ended) < self._expected:
            raise internal()

    # --- the whole answer ----------------------------------------------------------------------

    def answer(self) -> dict[str, Any]:
        """When every choice is done."""
        choices = [self._whole(choice) for _, choice in sorted(self._choices.items())]
        return {
            **self._head(self._shape.whole, self._choices[0]),
            "choices": choices,
            "usage": report.usage(self.ended),
            **self._about(),
        }

    def _whole(self, choice: Choice) -> dict[str, Any]:
        assert choice.done is not None
        echo = self._echo(choice)
        choice.length = len(echo)
        logprobs = self._logprobs_of(choice, choice.fresh)
        text = echo + "".join(piece for piece in choice.read() if isinstance(piece, str))
        calls = choice.reader.calls if choice.reader is not None else ()
        return self._shape.choice(choice.index, text, calls, logprobs, choice.reason())

    def _echo(self, choice: Choice) -> str:
        """The prompt before its answer, where that is asked for."""
        if not self._asked.echoes:
            return ""
        prompt = self._asked.prompts[choice.source]
        if isinstance(prompt, str):
            return prompt
        spelt = [self._spell(token) for token in prompt if isinstance(token, int)]
        return b"".join(spelt).decode("utf-8", "replace")

    def _logprobs_of(self, choice: Choice, tokens: Sequence[Token]) -> dict[str, Any] | None:
        if not self._logprobs:
            return None
        return self._shape.logprobs(tokens, self._spell, choice.length)

    # --- chunks --------------------------------------------------------------------------------

    def chunks(self, batch: Iterable[tuple[int, StreamEvent]]) -> list[Chunk]:
        """What a batch of events makes; tokens of a choice in a row share one chunk."""
        made: list[Chunk] = []
        last: Choice | None = None
        for source, event in batch:
            same = last is not None and last is self._choices.get(source * self._n + event.choice)
            if last is not None and not (same and isinstance(event, Token)):
                made += self._flush(last)
            choice = self.take(source, event)
            if choice is not None:
                made += self._chunks_of(choice, event)
            last = choice
        return made + (self._flush(last) if last is not None else [])

    def _flush(self, choice: Choice) -> list[Chunk]:
        """The fresh tokens; those without text wait for one with (half a character)."""
        pieces = choice.read()
        if self._logprobs:
            choice.waiting += choice.fresh
        choice.fresh.clear()
        if not pieces and choice.done is not None and choice.waiting:
            pieces = [""]
        return [self._said(choice, piece) for piece in pieces]

    def _said(self, choice: Choice, piece: Piece) -> Chunk:
        """A chunk; the first one after a while carries the logprobs of all tokens in it."""
        tokens, choice.waiting = choice.waiting, []
        logprobs = self._logprobs_of(choice, tokens) if tokens else None
        if not isinstance(piece, str):
            return self._part(choice, self._shape.called(choice.index, piece, logprobs))
        choice.length += len(piece)
        return self._part(choice, self._shape.piece(choice.index, piece, logprobs))

    def _chunks_of(self, choice: Choice, event: StreamEvent) -> list[Chunk]:
        """What an event makes by itself; tokens wait for `_flush`."""
        if isinstance(event, Started):
            opening = self._shape.opening(choice.index)
            made = [self._part(choice, opening)] if opening else []
            echo = self._echo(choice)
            return [*made, self._said(choice, echo)] if echo else made
        if isinstance(event, Done):
            return self._flush(choice) + (self._closing(choice) if choice.done else [])
        if isinstance(event, Forked):
            return [self._note(choice, _forked(choice, event))]
        if self._retracts and isinstance(event, Provisional | Retract | Waiting):
            return [self._note(choice, _retractable(event))]
        return []

    def _closing(self, choice: Choice) -> list[Chunk]:
        """The finish reason; after the last choice the report, with the usage if asked for."""
        closing = self._part(choice, self._shape.closing(choice.index, choice.reason()))
        if len(self.ended) < self._expected:
            return [closing]
        if not self._asked.usage_wanted:
            return [{**closing, **self._about()}]
        head = self._head(self._shape.part, choice)
        counts = report.usage(self.ended)
        return [closing, {**head, "choices": [], "usage": counts, **self._about()}]

    def _note(self, choice: Choice, about: dict[str, Any]) -> Chunk:
        """A chunk without text, for the `outrider` field alone."""
        piece = self._shape.piece(choice.index, "", None)
        return {**self._part(choice, piece), "outrider": about}

    def _part(self, choice: Choice, body: dict[str, Any]) -> Chunk:
        usage: Chunk = {"usage": None} if self._asked.usage_wanted else {}
        if self._asked.usage_live:
            usage = {"usage": self._so_far()}
        return {**self._head(self._shape.part, choice), "choices": [body], **usage}

    def _so_far(self) -> Chunk:
        """vLLM's `continuous_usage_stats`: what was counted until now."""
        spoken = sum(choice.tokens for choice in self._choices.values())
        prompts = {choice.source: choice.started.prompt_tokens for choice in self._choices.values()}
        read = sum(prompts.values())
        return {
            "prompt_tokens": read,
            "completion_tokens": spoken,
            "total_tokens": read + spoken,
        }

    def _head(self, kind: str, choice: Choice) -> dict[str, Any]:
        first = self._choices[min(self._choices)].started
        return {
            "id": self._shape.prefix + first.request,
            "object": kind,
            "created": self._created,
            "model": report.served(choice.started, choice.done, choice.forked),
            "system_fingerprint": f"fp_{choice.started.numeric_class[:16]}",
        }

    def _about(self) -> dict[str, Any]:
        return {
            "metrics": report.metrics(self.ended),
            "timings": report.timings(self.ended),
            "outrider": report.provenance(self.ended, self._asked.ignored),
        }


def _forked(choice: Choice, event: Forked) -> dict[str, Any]:
    return {
        "type": "forked",
        "mixed": True,
        "mixed_from": event.position,
        "model_served": report.served(choice.started, None, event),
        "reason": event.reason,
    }


def _retractable(event: Provisional | Retract | Waiting) -> dict[str, Any]:
    if isinstance(event, Provisional):
        return {
            "type": "provisional",
            "position": event.position,
            "id": event.id,
            "text": event.text,
        }
    if isinstance(event, Retract):
        return {"type": "retract", "position": event.position}
    return {"type": "waiting", "reason": event.reason}
