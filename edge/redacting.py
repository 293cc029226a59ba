"""A service whose prompts are redacted on the way in, and whose answers are restored.

It stands between the HTTP faces and the daemon, so that journal, drafter, wire and cloud know the
redacted prompt alone. The answer is the target's to that prompt, and says so (`Started.redacted`).
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, cast

import msgspec

from outrider.edge.service import EdgeService, GenerateRequest, ModelCard, RequestState, Status
from outrider.errors import InvalidRequest
from outrider.privacy.redact import Restorer, Rules, Vault
from outrider.protocol.stream import Done, Provisional, Retract, Started, StreamEvent, Token

if TYPE_CHECKING:
    from outrider.models.served import Served

KEPT = 128
"""Vaults of requests that can still be attached to, in memory."""
_PLAIN = frozenset({"role", "id", "type", "tool_call_id"})
"""Fields of a message that are no text of anybody."""


class Redacting:
    """An `EdgeService` around another. `rules` are what the daemon always takes out."""

    def __init__(self, inner: EdgeService, rules: Callable[[], Rules]) -> None:
        self._inner = inner
        self._rules = rules
        self._vaults: OrderedDict[str, Vault] = OrderedDict()

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[StreamEvent, None]:
        """See `EdgeService`. Raises InvalidRequest where something can not be looked through."""
        rules = self._rules() | request.redact
        if not rules:
            async with aclosing(_closable(self._inner.generate(request))) as events:
                async for event in events:
                    yield event
            return
        vault = Vault(rules)
        redacted = await asyncio.to_thread(redact, request, vault)
        async with aclosing(_closable(self._inner.generate(redacted))) as events:
            async for event in _restored(events, vault):
                if isinstance(event, Started):
                    self._keep(event.request, vault)
                yield event

    async def attach(
        self, request_id: str, positions: Sequence[int]
    ) -> AsyncGenerator[StreamEvent, None]:
        """See `EdgeService`. Restored from the beginning on, so that a placeholder that was cut
        in two comes out whole."""
        vault = self._vaults.get(request_id)
        if vault is None:
            async with aclosing(_closable(self._inner.attach(request_id, positions))) as events:
                async for event in events:
                    yield event
            return
        start = dict(enumerate(positions))
        whole = self._inner.attach(request_id, [0] * len(positions))
        async with aclosing(_closable(whole)) as events:
            async for event in _restored(events, vault):
                if not isinstance(event, Token) or event.position >= start.get(event.choice, 0):
                    yield event

    def _keep(self, request: str, vault: Vault) -> None:
        self._vaults[request] = vault
        while len(self._vaults) > KEPT:
            self._vaults.popitem(last=False)

    # The rest is the inner one's.

    def cancel(self, request_id: str) -> None:
        self._inner.cancel(request_id)

    async def served(self, request: GenerateRequest) -> Served:
        return await self._inner.served(request)

    def render(self, request: GenerateRequest) -> tuple[int, ...]:
        return self._inner.render(request)

    def detokenize(self, model: str, ids: Sequence[int]) -> bytes:
        return self._inner.detokenize(model, ids)

    def models(self) -> tuple[ModelCard, ...]:
        return self._inner.models()

    def requests(self) -> tuple[RequestState, ...]:
        return self._inner.requests()

    def status(self) -> Status:
        return self._inner.status()


def _closable(events: AsyncIterator[StreamEvent]) -> AsyncGenerator[StreamEvent, None]:
    return cast(AsyncGenerator[StreamEvent, None], events)


# --- the way in --------------------------------------------------------------------------------


def redact(request: GenerateRequest, vault: Vault) -> GenerateRequest:
    """Prompt, messages, tools, prediction and stop strings without what the vault took out.

    Raises InvalidRequest for token ids, and for a constraint that holds what is to be taken out.
    """
    prompt = request.prompt
    if not isinstance(prompt, str) and prompt and isinstance(prompt[0], int):
        raise InvalidRequest(
            "token ids can not be redacted",
            param="prompt",
            why="what they spell is looked for in text",
            effect="the request was not started, and nothing was sent",
            todo="send the prompt as text or as messages",
        )
    given = (prompt, request.prediction, list(request.stop), list(request.tools))
    texts = list(_texts(given))
    constraint = request.constraint.text if request.constraint is not None else ""
    *found, kept = vault.redact([*texts, constraint])
    if kept != constraint:
        raise InvalidRequest(
            "the answer's form holds what is to be redacted",
            param="response_format",
            why="a form with placeholders in it would be another form",
            effect="the request was not started, and nothing was sent",
            todo="leave the value out of the schema or the tool",
        )
    new_prompt, prediction, stop, tools = _replaced(given, iter(found))
    return replace(
        request,
        prompt=new_prompt,
        prediction=prediction,
        stop=tuple(stop),
        tools=tuple(tools),
        redact=Rules(),
    )


def _texts(value: Any) -> Iterator[str]:
    """Every text in it, in order; names of fields are none."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for name, part in value.items():
            if name not in _PLAIN:
                yield from _texts(part)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _texts(part)


def _replaced(value: Any, texts: Iterator[str]) -> Any:
    """The same with other texts, taken in the order of `_texts`."""
    if isinstance(value, str):
        return next(texts)
    if isinstance(value, Mapping):
        return {
            name: part if name in _PLAIN else _replaced(part, texts) for name, part in value.items()
        }
    if isinstance(value, list | tuple):
        return type(value)(_replaced(part, texts) for part in value)
    return value


# --- the way back ------------------------------------------------------------------------------


@dataclass(slots=True)
class _Choice:
    """One answer: what is final, and what is shown ahead of it."""

    final: Restorer
    waiting: list[Token] = field(default_factory=list)
    """Tokens whose text may be the beginning of a placeholder, or came behind such."""
    shown: Restorer | None = None
    ahead: int = 0
    """Provisional tokens that are shown and neither final nor taken back."""

    def token(self, event: Token) -> Iterator[StreamEvent]:
        text = self.final.feed(event.text)
        self.ahead = max(0, self.ahead - 1)
        if not self.ahead:
            self.shown = None
        self.waiting.append(msgspec.structs.replace(event, text=text))
        if not self.final.held:
            yield from self.release()

    def release(self) -> Iterator[StreamEvent]:
        yield from self.waiting
        self.waiting = []

    def end(self) -> Iterator[StreamEvent]:
        """The last token says what was held back."""
        rest = self.final.end()
        if rest and self.waiting:
            last = self.waiting[-1]
            self.waiting[-1] = msgspec.structs.replace(last, text=last.text + rest)
        yield from self.release()

    def provisional(self, event: Provisional) -> Provisional:
        if self.shown is None:
            self.shown = self.final.copy()
        self.ahead += 1
        return msgspec.structs.replace(event, text=self.shown.feed(event.text))

    def retract(self) -> None:
        self.shown, self.ahead = None, 0


async def _restored(
    events: AsyncIterator[StreamEvent], vault: Vault
) -> AsyncGenerator[StreamEvent, None]:
    choices: dict[int, _Choice] = {}
    async for event in events:
        choice = choices.setdefault(event.choice, _Choice(vault.restorer()))
        match event:
            case Started():
                yield msgspec.structs.replace(event, redacted=vault.counts())
            case Token():
                for each in choice.token(event):
                    yield each
            case Provisional():
                yield choice.provisional(event)
            case Retract():
                choice.retract()
                yield event
            case Done():
                for each in choice.end():
                    yield each
                yield event
            case _:
                yield event
