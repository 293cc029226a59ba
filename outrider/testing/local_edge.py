"""An `EdgeService` on one engine in this process: no daemon, no cloud, real tokens.

For tests of clients and of the HTTP face. It is not the daemon: answers come from
the one engine it is given, nothing is drafted, nothing survives.
"""

from __future__ import annotations

import asyncio
import codecs
import itertools
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

import outrider
from outrider.edge.service import GenerateRequest
from outrider.engine import Engine, EngineSpec, Picked, Span
from outrider.engines.fake import FakeEngine, vocabulary
from outrider.errors import ContextExceeded, InvalidRequest, NotFound
from outrider.models import served
from outrider.models.served import Served
from outrider.protocol.sampling import Sampling
from outrider.protocol.status import ModelCard, RequestState, Status
from outrider.protocol.stream import (
    Done,
    FinishReason,
    Logprob,
    Speculation,
    Started,
    StreamEvent,
    Token,
)
from outrider.protocol.vocabulary import Vocabulary

EPOCH = datetime.fromtimestamp(0, UTC)
"""What templates take for now."""
Pace = Callable[[], Awaitable[None]]


async def at_once() -> None:
    """No pause between passes, but others get their turn."""
    await asyncio.sleep(0)


class Pieces:
    """Token bytes in, safe text out: whole characters, and nothing that may be a stop string."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = stops
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""
        self.stopped = False

    def add(self, raw: bytes) -> str:
        """What may be shown now."""
        self._held += self._decoder.decode(raw)
        cuts = [at for stop in self._stops if (at := self._held.find(stop)) >= 0]
        if cuts:
            self.stopped = True
            return self._held[: min(cuts)]
        keep = max((self._overlap(stop) for stop in self._stops), default=0)
        shown, self._held = (
            self._held[: len(self._held) - keep],
            self._held[len(self._held) - keep :],
        )
        return shown

    def _overlap(self, stop: str) -> int:
        """How many characters at the end may begin the stop string."""
        lengths = range(min(len(stop) - 1, len(self._held)), 0, -1)
        return next((n for n in lengths if self._held.endswith(stop[:n])), 0)

    def rest(self) -> str:
        """What is left when no stop string came."""
        return self._held + self._decoder.decode(b"", final=True)


@dataclass(slots=True)
class _Choice:
    """One answer being made."""

    number: int
    slot: int
    pending: tuple[int, ...]
    """Tokens the engine has not seen."""
    pieces: Pieces
    ids: list[int] = field(default_factory=list)
    reason: FinishReason | None = None


@dataclass(slots=True)
class _Record:
    """What a request has said, for `attach`."""

    model: str
    n: int
    events: list[StreamEvent] = field(default_factory=list)
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    done: bool = False
    cancelled: bool = False


class LocalEdge:
    """`pace` is awaited before every pass; a test's pace can hold an answer where it wants."""

    def __init__(
        self,
        engine: Engine | None = None,
        words: Vocabulary | None = None,
        *,
        model: str = "local/fake",
        pace: Pace = at_once,
    ) -> None:
        self.engine = engine or _fake()
        self.words = words or vocabulary()
        self.pace = pace
        self.face = served.fake(model)
        """What the model's prompts and answers look like; a test may give it a template."""
        self._model = model
        self._numbers = itertools.count(1)
        self._records: dict[str, _Record] = {}

    # --- the service ---------------------------------------------------------------------------

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[StreamEvent, None]:
        self._check_model(request.model)
        prompt = self.render(request)
        limit = self._limit(request, len(prompt))
        name = f"local-{next(self._numbers)}"
        record = self._records[name] = _Record(self._model, request.n)
        choices: list[_Choice] = []
        try:
            async for event in self._ride(request, prompt, limit, name, choices):
                record.events.append(event)
                record.changed.set()
                yield event
        finally:
            record.done = True
            record.changed.set()
            for choice in choices:
                self.engine.close(choice.slot)

    async def attach(
        self, request_id: str, positions: Sequence[int]
    ) -> AsyncGenerator[StreamEvent, None]:
        record = self._records[request_id]
        for number in itertools.count():
            while number >= len(record.events) and not record.done:
                record.changed.clear()
                await record.changed.wait()
            if number >= len(record.events):
                return
            event = record.events[number]
            if not isinstance(event, Token) or event.position >= positions[event.choice]:
                yield event

    def cancel(self, request_id: str) -> None:
        self._records[request_id].cancelled = True

    async def served(self, request: GenerateRequest) -> Served:
        self._check_model(request.model)
        return self.face

    def render(self, request: GenerateRequest) -> tuple[int, ...]:
        if isinstance(request.prompt, str):
            return tuple(request.prompt.encode())
        ids = tuple(part for part in request.prompt if isinstance(part, int))
        if ids and max(ids) >= len(self.words):
            raise InvalidRequest("a token id is not in the vocabulary", param="prompt")
        turns = [part for part in request.prompt if isinstance(part, Mapping)]
        if ids or not (self.face.chat_template or request.tools):
            return ids or tuple(_turns(turns).encode())
        text = self.face.template.render(turns, now=EPOCH, tools=request.tools or None)
        return self.face.tokenizer.encode(text, "keep")

    def detokenize(self, model: str, ids: Sequence[int]) -> bytes:
        return b"".join(self.words.tokens[i] for i in ids)

    def models(self) -> tuple[ModelCard, ...]:
        info = self.engine.info
        digest, numbers = info.vocabulary_digest, info.numeric_class
        return (ModelCard(self._model, 0, "target", info.context, digest, numbers),)

    def requests(self) -> tuple[RequestState, ...]:
        return tuple(_state(name, record) for name, record in self._records.items())

    def status(self) -> Status:
        running = sum(not record.done for record in self._records.values())
        return Status(
            schema=1,
            version=outrider.__version__,
            pid=0,
            listen="",
            uptime_s=0.0,
            placement="edge",
            draft=None,
            clouds=(),
            requests_running=running,
            requests_queued=0,
            requests_total=len(self._records),
            tokens_total=sum(sum(_committed(record)) for record in self._records.values()),
            hint_yield=None,
            acceptance_rate=None,
            loop_lag_p99_ms=0.0,
            events_address=None,
        )

    # --- making an answer ----------------------------------------------------------------------

    def _check_model(self, wanted: str) -> None:
        if wanted not in ("", self._model):
            raise NotFound(f"there is no model {wanted!r}", param="model")

    def _limit(self, request: GenerateRequest, length: int) -> int:
        room = self.engine.info.context - length
        if room < (request.max_tokens or 1):
            raise ContextExceeded(
                f"{length} prompt tokens leave room for {max(room, 0)}",
                param="messages" if isinstance(request.prompt[0], Mapping) else "prompt",
                effect="the request was not started",
                todo="shorten the prompt or max_tokens",
            )
        return request.max_tokens or room

    async def _ride(
        self,
        request: GenerateRequest,
        prompt: tuple[int, ...],
        limit: int,
        name: str,
        choices: list[_Choice],
    ) -> AsyncIterator[StreamEvent]:
        seed = secrets.randbits(128) if request.seed is None else request.seed
        for number in range(request.n):
            constraint = request.constraint
            sampling = Sampling(request.sampling, seed, number, len(prompt), constraint)
            slot = self.engine.open(sampling)
            choices.append(_Choice(number, slot, self._read(slot, prompt), Pieces(request.stop)))
        for choice in choices:
            yield self._started(choice, name, seed, len(prompt))
        while running := [choice for choice in choices if choice.reason is None]:
            await self.pace()
            if self._records[name].cancelled:
                for choice in running:
                    choice.reason = "cancelled"
                    yield _done(choice, len(prompt))
                return
            picked = self.engine.extend([self._span(one, request) for one in running])
            for choice, picks in zip(running, picked, strict=True):
                yield self._token(choice, picks, limit)
                if choice.reason is not None:
                    yield _done(choice, len(prompt))

    def _read(self, slot: int, prompt: tuple[int, ...]) -> tuple[int, ...]:
        """Feed all but the last part, in passes that the engine can hold; the last part."""
        most = max(1, self.engine.info.max_rows // 16)
        last = (len(prompt) - 1) // most * most
        for base in range(0, last, most):
            part = prompt[base : base + most]
            self.engine.extend([Span(slot, base, part, first=len(part) - 1)])
        return prompt[last:]

    def _started(self, choice: _Choice, name: str, seed: int, length: int) -> Started:
        return Started(
            choice=choice.number,
            request=name,
            model=self._model,
            placement="edge",
            seed=str(seed),
            exact=self.engine.info.exact,
            numeric_class=self.engine.info.numeric_class,
            prompt_tokens=length,
        )

    def _span(self, choice: _Choice, request: GenerateRequest) -> Span:
        span = Span(
            choice.slot,
            self.engine.length(choice.slot),
            choice.pending,
            first=len(choice.pending) - 1,
        )
        if request.top_logprobs is None:
            return span
        return replace(span, want="logprobs", top_n=request.top_logprobs)

    def _token(self, choice: _Choice, picks: Picked, limit: int) -> Token:
        chosen = picks.ids[0]
        choice.pending = (chosen,)
        choice.ids.append(chosen)
        text = choice.pieces.add(self.words.text([chosen]))
        if choice.pieces.stopped:
            choice.reason = "stop"
        elif chosen in self.words.end or len(choice.ids) >= limit:
            choice.reason = "stop" if chosen in self.words.end else "length"
            text += choice.pieces.rest()
        found = picks.logprobs[0] if picks.logprobs else None
        return Token(
            choice=choice.number,
            position=len(choice.ids) - 1,
            id=chosen,
            text=text,
            source="edge",
            t_ms=0.0,
            logprob=found.chosen if found else None,
            top_logprobs=tuple(
                Logprob(i, self.words.tokens[i], value) for i, value in (found.top if found else ())
            ),
        )


def _fake() -> FakeEngine:
    engine = FakeEngine(EngineSpec(model="fake", engine="fake", max_slots=64))
    engine.spell(vocabulary)
    return engine


def _turns(messages: Sequence[Mapping[str, Any]]) -> str:
    """A plain template: this engine has no other."""
    lines = [f"{message['role']}: {message['content']}\n" for message in messages]
    return "".join(lines) + "assistant: "


def _done(choice: _Choice, length: int) -> Done:
    return Done(
        choice=choice.number,
        finish_reason=choice.reason or "stop",
        completion_tokens=len(choice.ids),
        prompt_tokens=length,
        speculation=Speculation(passes=len(choice.ids)),
        exact=True,
        mixed_from=None,
        class_changed_at=(),
        queue_ms=0.0,
        prefill_ms=0.0,
        total_ms=0.0,
        ttft_ms=0.0,
        rtt_ms=None,
        bytes_up=0,
        bytes_down=0,
    )


def _committed(record: _Record) -> tuple[int, ...]:
    tokens = [event for event in record.events if isinstance(event, Token)]
    return tuple(sum(token.choice == n for token in tokens) for n in range(record.n))


def _state(name: str, record: _Record) -> RequestState:
    return RequestState(
        name, record.model, "edge", "done" if record.done else "running", _committed(record)
    )
