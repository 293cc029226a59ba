"""Ollama's API over OpenAI's: the same requests and answers in other words, streamed as NDJSON.

What is left out of `options` has OpenAI's defaults (temperature 1), not Ollama's.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, Literal

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from outrider import __version__
from outrider.edge.api import parse, sse
from outrider.edge.api.answering import Answering, Parser, body_of, framed
from outrider.edge.api.context import Context
from outrider.edge.api.errors import headers, sentence
from outrider.edge.api.fields import Fields, refuse, unsupported
from outrider.edge.api.flow import HungUp
from outrider.edge.api.openai import begin
from outrider.edge.api.parse import Asked
from outrider.edge.api.settings import ApiSettings
from outrider.edge.api.shapes import Chat, Shape, Text
from outrider.edge.service import GenerateRequest, ModelCard
from outrider.errors import InvalidRequest, NotFound, OutriderError

NDJSON = "application/x-ndjson"
NS = 1_000_000
"""Nanoseconds of a millisecond."""

OPTIONS: Mapping[str, str] = {
    "num_predict": "max_tokens",
    "repeat_penalty": "repetition_penalty",
    **{
        same: same
        for same in (
            "temperature",
            "top_p",
            "top_k",
            "min_p",
            "seed",
            "stop",
            "presence_penalty",
            "frequency_penalty",
        )
    },
}
"""Ollama's name to OpenAI's."""
NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "mirostat": (0,),
    "tfs_z": (1, 1.0),
    "typical_p": (1, 1.0),
    "penalize_newline": (True,),
    "repeat_last_n": (-1,),
}
"""Options that would change the answer, with the values that would not."""
ABSENT: Mapping[str, tuple[int, ...]] = {"num_predict": (-1, -2), "seed": (-1,), "top_k": (0, -1)}
"""Values that mean: as if it were not there."""

Endpoint = Callable[[Request], Awaitable[ASGIApp]]


class Ollama:
    """Routes under `/api`."""

    def __init__(self, context: Context) -> None:
        self._context = context

    def routes(self) -> list[Route]:
        return [
            Route("/api/version", self.version),
            Route("/api/tags", self.tags),
            Route("/api/ps", self.ps),
            Route("/api/show", _named(self.show), methods=["POST"]),
            Route("/api/chat", _named(self.chat), methods=["POST"]),
            Route("/api/generate", _named(self.generate), methods=["POST"]),
        ]

    # --- what there is -------------------------------------------------------------------------

    async def version(self, request: Request) -> Response:
        return _json({"version": __version__})

    async def tags(self, request: Request) -> Response:
        return _json({"models": [_model(card) for card in self._context.service.models()]})

    async def ps(self, request: Request) -> Response:
        """All of them: what is served is loaded."""
        loaded = {"size_vram": 0, "expires_at": "9999-12-31T23:59:59Z"}
        cards = self._context.service.models()
        return _json(
            {"models": [{**_model(c), **loaded, "context_length": c.context} for c in cards]}
        )

    async def show(self, request: Request) -> ASGIApp:
        fields = Fields(await body_of(request, self._context))
        wanted = fields.text("model") or fields.text("name") or ""
        card = self._card(wanted)
        served = await self._context.service.served(GenerateRequest("", card.id))
        return _json(
            {
                "modelfile": "",
                "parameters": "",
                "license": "",
                "template": served.chat_template,
                "details": _details(),
                "model_info": {
                    "general.architecture": "outrider",
                    "general.basename": card.id,
                    "outrider.context_length": card.context,
                    "outrider.vocab_size": len(served.vocabulary),
                    "outrider.numeric_class": card.numeric_class,
                },
                "capabilities": ["completion", "tools"],
                "modified_at": _date(card.created),
            }
        )

    def _card(self, wanted: str) -> ModelCard:
        for card in self._context.service.models():
            if wanted in ("", card.id, f"{card.id}:latest"):
                return card
        raise NotFound("there is no such model", param="model", todo="GET /api/tags lists them")

    # --- answers -------------------------------------------------------------------------------

    async def chat(self, request: Request) -> ASGIApp:
        fields = Fields(await body_of(request, self._context))
        if not fields.raw("messages"):
            return self._loaded(fields, "message")
        body = {**self._common(fields), **_chat(fields)}
        return await self._answer(request, body, "message")

    async def generate(self, request: Request) -> ASGIApp:
        fields = Fields(await body_of(request, self._context))
        if not fields.text("prompt"):
            return self._loaded(fields, "response")
        body = {**self._common(fields), **_generate(fields)}
        return await self._answer(request, body, "response")

    def _loaded(self, fields: Fields, what: Literal["message", "response"]) -> Response:
        """No prompt asks to load a model, or with `keep_alive` 0 to unload it; both are the
        daemon's own affair."""
        reason = "unload" if fields.raw("keep_alive") == 0 else "load"
        card = self._card(fields.text("model") or "")
        head = {"model": card.id, "created_at": _date(int(self._context.now()))}
        return _json({**head, **_said(what, ""), "done": True, "done_reason": reason})

    def _common(self, fields: Fields) -> dict[str, Any]:
        if fields.raw("think") not in (None, False):
            raise unsupported("think")
        streamed = fields.flag("stream")
        body: dict[str, Any] = {"stream": streamed is not False, **_options(fields)}
        body["outrider"] = fields.raw("outrider")
        model = fields.text("model") or ""
        names = {card.id for card in self._context.service.models()}
        latest = model.removesuffix(":latest")
        body["model"] = latest if model not in names and latest in names else model
        form = fields.raw("format")
        if form == "json":
            body["response_format"] = {"type": "json_object"}
        elif isinstance(form, dict):
            body["response_format"] = {"type": "json_schema", "json_schema": {"schema": form}}
        elif form not in (None, ""):
            raise refuse("format", "json, or a JSON schema")
        return body

    async def _answer(
        self,
        request: Request,
        body: Mapping[str, Any],
        what: Literal["message", "response"],
    ) -> ASGIApp:
        plain = "prompt" in body
        shape: Shape = Text() if plain else Chat()
        parser: Parser = parse.completion if plain else parse.chat
        answering = await Answering.begin(self._context, body, _whole_calls(parser), shape)
        lines = _Lines(_date(int(self._context.now())), what)
        if not answering.asked.streamed:
            return _json(lines.whole(await answering.whole(request)))
        frames = framed(
            self._context,
            _frames(answering, lines),
            lambda error: sse.line({"error": sentence(error)}),
        )
        return await begin(request, frames, NDJSON)


async def _frames(answering: Answering, lines: _Lines) -> AsyncGenerator[bytes, None]:
    async for chunks in answering.chunks():
        made = b"".join(sse.line(line) for chunk in chunks for line in lines.of(chunk))
        if made or not chunks:
            yield made or sse.BLANK


def _named(endpoint: Endpoint) -> Endpoint:
    """Errors as Ollama writes them: one sentence."""

    async def answered(request: Request) -> ASGIApp:
        try:
            return await endpoint(request)
        except HungUp:
            raise
        except InvalidRequest as error:
            return _refusal(error, _theirs(error))
        except OutriderError as error:
            return _refusal(error, sentence(error))

    return answered


def _theirs(error: InvalidRequest) -> str:
    """With the field as Ollama names it."""
    found = sentence(error)
    for name, ours in OPTIONS.items():
        if error.param == ours:
            return found.replace(ours, f"options.{name}")
    return found


def _refusal(error: OutriderError, text: str) -> Response:
    body = msgspec.json.encode({"error": text})
    return Response(body, error.http_status, headers(error), "application/json")


def _whole_calls(parser: Parser) -> Parser:
    """Ollama has no pieces of calls."""

    def parsed(body: Mapping[str, Any], settings: ApiSettings) -> Asked:
        return replace(parser(body, settings), whole_calls=True)

    return parsed


# --- requests ----------------------------------------------------------------------------------


def _options(fields: Fields) -> dict[str, Any]:
    options = fields.inner("options")
    found: dict[str, Any] = {}
    for name in options.given():
        value = options.raw(name)
        if name in OPTIONS:
            if value not in ABSENT.get(name, ()):
                found[OPTIONS[name]] = value
        elif name in NEUTRAL and value not in NEUTRAL[name]:
            raise unsupported(options.named(name))
    return found


def _chat(fields: Fields) -> dict[str, Any]:
    messages = fields.raw("messages")
    if not isinstance(messages, list):
        raise refuse("messages", "a list of messages")
    found = [_message(item, f"messages[{i}]") for i, item in enumerate(messages)]
    return {"messages": found, "tools": fields.raw("tools")}


def _message(value: Any, at: str) -> Any:
    if not isinstance(value, dict):
        raise refuse(at, "an object with role and content")
    if value.get("images"):
        raise unsupported(f"{at}.images", "send text only")
    found = {name: value[name] for name in ("role", "content", "tool_calls") if name in value}
    if value.get("tool_name") is not None:
        found["name"] = value["tool_name"]
    return found


def _generate(fields: Fields) -> dict[str, Any]:
    """Wrapped in the template, unless it is raw or has a hole."""
    for name in ("images", "context", "template"):
        if fields.raw(name):
            raise unsupported(name)
    prompt, suffix = fields.text("prompt") or "", fields.text("suffix") or ""
    if fields.flag("raw") or suffix:
        return {"prompt": prompt, "suffix": suffix}
    system = fields.text("system")
    turns = [{"role": "system", "content": system}] if system else []
    return {"messages": [*turns, {"role": "user", "content": prompt}]}


# --- answers -----------------------------------------------------------------------------------


class _Lines:
    """OpenAI's chunks, or the whole answer, in Ollama's words."""

    def __init__(self, created: str, what: Literal["message", "response"]) -> None:
        self._created = created
        self._what: Literal["message", "response"] = what
        self._name = ""

    def _head(self, chunk: Mapping[str, Any]) -> dict[str, Any]:
        """Who speaks, whatever name was asked for."""
        return {"model": chunk["model"], "created_at": self._created}

    def of(self, chunk: Mapping[str, Any]) -> list[dict[str, Any]]:
        """The lines of a chunk."""
        (choice,) = chunk["choices"]
        if choice["finish_reason"] is not None:
            return [self._end("", (), choice["finish_reason"], chunk)]
        delta = choice.get("delta", choice)
        text = delta.get("content") or delta.get("text") or ""
        calls = [call for part in delta.get("tool_calls", ()) for call in self._call(part)]
        if not text and not calls:
            return []
        return [{**self._head(chunk), **_said(self._what, text, calls), "done": False}]

    def _call(self, part: Mapping[str, Any]) -> list[dict[str, Any]]:
        """A call's name comes first, its arguments whole behind it."""
        function = part["function"]
        if "name" in function:
            self._name = function["name"]
            return []
        return [_call(self._name, function["arguments"])]

    def whole(self, answer: Mapping[str, Any]) -> dict[str, Any]:
        (choice,) = answer["choices"]
        message = choice.get("message", choice)
        text = message.get("content") or message.get("text") or ""
        functions = [call["function"] for call in message.get("tool_calls", ())]
        calls = [_call(function["name"], function["arguments"]) for function in functions]
        return self._end(text, calls, choice["finish_reason"], answer)

    def _end(self, text: str, calls: Any, reason: str, about: Mapping[str, Any]) -> dict[str, Any]:
        times = about["timings"]
        return {
            **self._head(about),
            **_said(self._what, text, calls),
            "done": True,
            "done_reason": "length" if reason == "length" else "stop",
            "total_duration": int((times["prompt_ms"] + times["predicted_ms"]) * NS),
            "load_duration": 0,
            "prompt_eval_count": times["prompt_n"],
            "prompt_eval_duration": int(times["prompt_ms"] * NS),
            "eval_count": times["predicted_n"],
            "eval_duration": int(times["predicted_ms"] * NS),
            "outrider": about["outrider"],
        }


def _said(what: Literal["message", "response"], text: str, calls: Any = ()) -> dict[str, Any]:
    if what == "response":
        return {"response": text}
    message: dict[str, Any] = {"role": "assistant", "content": text}
    return {"message": {**message, "tool_calls": list(calls)} if calls else message}


def _call(name: str, arguments: str) -> dict[str, Any]:
    return {"function": {"name": name, "arguments": json.loads(arguments)}}


def _model(card: ModelCard) -> dict[str, Any]:
    return {
        "name": card.id,
        "model": card.id,
        "modified_at": _date(card.created),
        "size": 0,
        "digest": card.numeric_class,
        "details": _details(),
    }


def _details() -> dict[str, Any]:
    return {
        "parent_model": "",
        "format": "outrider",
        "family": "",
        "families": [],
        "parameter_size": "",
        "quantization_level": "",
    }


def _date(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _json(value: Any) -> Response:
    return Response(msgspec.json.encode(value), media_type="application/json")
