"""`/tokenize` and `/detokenize`, in vLLM's shapes (llama.cpp's `content` is understood too)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from outrider.edge.api import parse
from outrider.edge.api.answering import body_of
from outrider.edge.api.context import Context
from outrider.edge.api.fields import Fields, refuse, unsupported
from outrider.edge.api.fit import unaliased
from outrider.edge.api.shapes import spelling
from outrider.edge.service import GenerateRequest
from outrider.models.served import Served

MAX_IDS = 1 << 20


class Words:
    """Text to ids and back, by the tokenizer of the model that would answer."""

    def __init__(self, context: Context) -> None:
        self._context = context

    def routes(self) -> list[Route]:
        return [
            Route("/tokenize", self.tokenize, methods=["POST"]),
            Route("/detokenize", self.detokenize, methods=["POST"]),
        ]

    async def tokenize(self, request: Request) -> Response:
        """`prompt` or `messages` to ids."""
        body = await body_of(request, self._context)
        fields = Fields(body)
        asked = self._asked(fields, body)
        served = await self._context.service.served(asked)
        ids = self._ids(fields, asked, served)
        found: dict[str, Any] = {
            "count": len(ids),
            "max_model_len": self._context_of(asked.model),
            "tokens": list(ids),
            "token_strs": None,
        }
        if fields.flag("return_token_strs"):
            found["token_strs"] = [spelling(served.vocabulary.tokens[i]) for i in ids]
        return _json(found)

    def _asked(self, fields: Fields, body: Mapping[str, Any]) -> GenerateRequest:
        model = fields.text("model") or ""
        if fields.raw("messages") is not None:
            _refuse_unlike(fields, "add_generation_prompt", likes=True)
            _refuse_unlike(fields, "continue_final_message", likes=False)
            known = ("model", "messages", "tools")
            asked = parse.chat({name: body.get(name) for name in known}, self._context.settings)
            tools = tuple(f.raw for f in asked.tools.functions) if asked.tools is not None else ()
            request = GenerateRequest(asked.requests[0].prompt, model, tools=tools)
        else:
            name = "content" if fields.raw("prompt") is None else "prompt"
            request = GenerateRequest(_text(fields, name), model)
        return unaliased(request, self._context.service)

    def _ids(self, fields: Fields, asked: GenerateRequest, served: Served) -> tuple[int, ...]:
        if not isinstance(asked.prompt, str):
            return self._context.service.render(asked)
        adds = fields.flag("add_special_tokens")
        adds = fields.flag("add_special") if adds is None else adds
        return served.tokenizer.encode(asked.prompt, "keep" if adds is False else "add")

    async def detokenize(self, request: Request) -> Response:
        """`tokens` to their text; special ones give none."""
        fields = Fields(await body_of(request, self._context))
        ids = _tokens(fields.raw("tokens"))
        model = fields.text("model") or ""
        asked = unaliased(GenerateRequest(ids, model), self._context.service)
        served = await self._context.service.served(asked)
        if ids and max(ids) >= len(served.vocabulary):
            raise refuse("tokens", f"ids from 0 to {len(served.vocabulary) - 1}")
        text = served.tokenizer.decode(ids)
        return _json({"prompt": text, "content": text})

    def _context_of(self, model: str) -> int:
        cards = self._context.service.models()
        return next((card.context for card in cards if model in ("", card.id)), 0)


def _text(fields: Fields, name: str) -> str:
    found = fields.text(name)
    if found is None:
        raise refuse(fields.named("prompt"), "text; or send messages")
    return found


def _refuse_unlike(fields: Fields, name: str, *, likes: bool) -> None:
    if fields.flag(name) not in (None, likes):
        raise unsupported(name)


def _tokens(value: Any) -> tuple[int, ...]:
    good = isinstance(value, list) and len(value) <= MAX_IDS
    if not good or not all(type(item) is int and item >= 0 for item in value):
        raise refuse("tokens", f"a list of at most {MAX_IDS} token ids")
    return tuple(value)


def _json(value: Any) -> Response:
    return Response(msgspec.json.encode(value), media_type="application/json")
