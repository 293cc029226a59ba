"""Anthropic's messages API over OpenAI's chat: the same answers in other words."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Mapping
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from outrider.edge.api import parse, sse
from outrider.edge.api.answering import Answering, body_of, framed
from outrider.edge.api.context import Context
from outrider.edge.api.errors import headers, kind, sentence
from outrider.edge.api.fields import Fields, refuse, unsupported
from outrider.edge.api.flow import HungUp
from outrider.edge.api.openai import begin
from outrider.edge.api.shapes import Chat
from outrider.errors import OutriderError

PING = b'event: ping\ndata: {"type":"ping"}\n\n'
REASONS: Mapping[str, str] = {
    "stop": "end_turn",
    "length": "max_tokens",
    "tool_calls": "tool_use",
}
SAME = ("model", "stream", "temperature", "top_p", "top_k", "outrider")
REFUSED = ("thinking", "container", "mcp_servers", "context_management", "output_config")


class Anthropic:
    """`/v1/messages`."""

    def __init__(self, context: Context) -> None:
        self._context = context

    def routes(self) -> list[Route]:
        return [Route("/v1/messages", self.messages, methods=["POST"])]

    async def messages(self, request: Request) -> ASGIApp:
        try:
            return await self._answer(request)
        except HungUp:
            raise
        except OutriderError as error:
            body = msgspec.json.encode(_error(error))
            return Response(body, error.http_status, headers(error), "application/json")

    async def _answer(self, request: Request) -> ASGIApp:
        body = _body(Fields(await body_of(request, self._context)))
        answering = await Answering.begin(self._context, body, parse.chat, Chat())
        if not answering.asked.streamed:
            found = _whole(await answering.whole(request))
            return Response(msgspec.json.encode(found), media_type="application/json")
        frames = framed(
            self._context,
            _frames(answering),
            lambda error: _event({"type": "error", **_error(error)}),
        )
        return await begin(request, frames, "text/event-stream; charset=utf-8")


def _error(error: OutriderError) -> dict[str, Any]:
    said = {"type": kind(error.http_status), "message": sentence(error)}
    return {"type": "error", "error": said}


# --- requests ----------------------------------------------------------------------------------


def _body(fields: Fields) -> dict[str, Any]:
    for name in REFUSED:
        if fields.raw(name):
            raise unsupported(name)
    if fields.raw("max_tokens") is None:
        raise refuse("max_tokens", "a whole number from 1 on")
    body = {name: fields.raw(name) for name in (*SAME, "max_tokens")}
    body["messages"] = _messages(fields)
    body["stop"] = fields.raw("stop_sequences")
    body["tools"] = _tools(fields.raw("tools"))
    body |= _choice(fields.inner("tool_choice"))
    if body["stream"]:
        body["stream_options"] = {"include_usage": True, "continuous_usage_stats": True}
    return body


def _messages(fields: Fields) -> list[dict[str, Any]]:
    system = fields.raw("system")
    found = [{"role": "system", "content": system}] if system else []
    messages = fields.raw("messages")
    if not isinstance(messages, list):
        raise refuse("messages", "a list with at least one message")
    for i, message in enumerate(messages):
        found += _turns(message, f"messages[{i}]")
    return found


def _turns(message: Any, at: str) -> list[dict[str, Any]]:
    """A turn of blocks: text, calls, and results, which are turns of their own in OpenAI's."""
    if not isinstance(message, dict):
        raise refuse(at, "an object with role and content")
    role, content = message.get("role"), message.get("content")
    if role not in ("user", "assistant"):
        raise refuse(f"{at}.role", "one of user, assistant")
    if not isinstance(content, list):
        return [{"role": role, "content": content}]
    texts: list[Any] = []
    calls: list[Any] = []
    results: list[dict[str, Any]] = []
    for i, block in enumerate(content):
        here = f"{at}.content[{i}]"
        block_kind = block.get("type") if isinstance(block, dict) else None
        if block_kind == "tool_use":
            function = {"name": block.get("name"), "arguments": block.get("input")}
            calls.append({"id": block.get("id"), "type": "function", "function": function})
        elif block_kind == "tool_result":
            results.append(_result(block))
        elif block_kind == "text":
            texts.append({"type": "text", "text": block.get("text")})
        else:
            raise unsupported(f"{here}.type", "send blocks of text, tool_use and tool_result")
    said: dict[str, Any] = {"role": role, "content": texts}
    if calls:
        said["tool_calls"] = calls
    return [*results, *([said] if texts or calls else [])]


def _result(block: Mapping[str, Any]) -> dict[str, Any]:
    content = block.get("content")
    return {
        "role": "tool",
        "tool_call_id": block.get("tool_use_id"),
        "content": "" if content is None else content,
    }


def _tools(value: Any) -> Any:
    if not isinstance(value, list):
        return value
    return [_tool(tool, f"tools[{i}]") for i, tool in enumerate(value)]


def _tool(tool: Any, at: str) -> Any:
    if not isinstance(tool, dict):
        raise refuse(at, "an object with name and input_schema")
    if tool.get("type", "custom") != "custom":
        raise unsupported(f"{at}.type", "send tools of your own")
    function = {name: tool[name] for name in ("name", "description", "strict") if name in tool}
    return {"type": "function", "function": {**function, "parameters": tool.get("input_schema")}}


def _choice(choice: Fields) -> dict[str, Any]:
    wanted = choice.choice("type", ("auto", "any", "none", "tool"))
    found: dict[str, Any] = {}
    if choice.flag("disable_parallel_tool_use"):
        found["parallel_tool_calls"] = False
    if wanted == "tool":
        function = {"name": choice.text("name")}
        return {**found, "tool_choice": {"type": "function", "function": function}}
    if wanted is not None:
        found["tool_choice"] = "required" if wanted == "any" else wanted
    return found


# --- answers -----------------------------------------------------------------------------------


def _whole(answer: Mapping[str, Any]) -> dict[str, Any]:
    (choice,) = answer["choices"]
    message = choice["message"]
    blocks = [{"type": "text", "text": message["content"]}] if message["content"] else []
    for call in message.get("tool_calls", ()):
        blocks.append(_use(call["id"], call["function"]["name"]))
        blocks[-1]["input"] = json.loads(call["function"]["arguments"])
    return {
        **_head(answer),
        "content": blocks,
        "stop_reason": REASONS[choice["finish_reason"]],
        "stop_sequence": None,
        "usage": _usage(answer["usage"]),
        "outrider": answer["outrider"],
    }


def _head(answer: Mapping[str, Any]) -> dict[str, Any]:
    name = answer["id"].removeprefix("chatcmpl-")
    return {"id": f"msg_{name}", "type": "message", "role": "assistant", "model": answer["model"]}


def _use(identity: str, name: str) -> dict[str, Any]:
    return {"type": "tool_use", "id": identity, "name": name, "input": {}}


def _usage(usage: Mapping[str, Any]) -> dict[str, int]:
    return {"input_tokens": usage["prompt_tokens"], "output_tokens": usage["completion_tokens"]}


def _event(value: Mapping[str, Any]) -> bytes:
    return b"event: " + str(value["type"]).encode() + b"\n" + sse.data(value)


async def _frames(answering: Answering) -> AsyncGenerator[bytes, None]:
    blocks = _Blocks()
    async for chunks in answering.chunks():
        made = b"".join(_event(event) for chunk in chunks for event in blocks.of(chunk))
        if made or not chunks:
            yield made or PING


class _Blocks:
    """Content blocks, one after the other, from OpenAI's chunks."""

    def __init__(self) -> None:
        self._begun = False
        self._index = -1
        self._open = ""
        """Of the block under way: `text`, or a call's index."""
        self._reason = "end_turn"

    def of(self, chunk: Mapping[str, Any]) -> list[dict[str, Any]]:
        """The events of a chunk."""
        if not chunk["choices"]:
            return self._end(chunk)
        found = [] if self._begun else self._start(chunk)
        (choice,) = chunk["choices"]
        if choice["finish_reason"] is not None:
            self._reason = REASONS[choice["finish_reason"]]
        delta = choice["delta"]
        if delta.get("content"):
            found += self._block("text", {"type": "text", "text": ""})
            found.append(self._delta({"type": "text_delta", "text": delta["content"]}))
        for call in delta.get("tool_calls", ()):
            function = call["function"]
            if "id" in call:
                found += self._block(str(call["index"]), _use(call["id"], function["name"]))
            if function["arguments"]:
                piece = {"type": "input_json_delta", "partial_json": function["arguments"]}
                found.append(self._delta(piece))
        return found

    def _start(self, chunk: Mapping[str, Any]) -> list[dict[str, Any]]:
        self._begun = True
        empty: dict[str, Any] = {"content": [], "stop_reason": None, "stop_sequence": None}
        usage = _usage(chunk["usage"])
        return [{"type": "message_start", "message": {**_head(chunk), **empty, "usage": usage}}]

    def _block(self, name: str, block: dict[str, Any]) -> list[dict[str, Any]]:
        if self._open == name:
            return []
        closed = self._close()
        self._open = name
        self._index += 1
        start = {"type": "content_block_start", "index": self._index, "content_block": block}
        return [*closed, start]

    def _close(self) -> list[dict[str, Any]]:
        return [{"type": "content_block_stop", "index": self._index}] if self._open else []

    def _delta(self, delta: dict[str, Any]) -> dict[str, Any]:
        return {"type": "content_block_delta", "index": self._index, "delta": delta}

    def _end(self, chunk: Mapping[str, Any]) -> list[dict[str, Any]]:
        stopped = {"stop_reason": self._reason, "stop_sequence": None}
        usage = _usage(chunk["usage"])
        last = {"type": "message_delta", "delta": stopped, "usage": usage}
        return [*self._close(), {**last, "outrider": chunk["outrider"]}, {"type": "message_stop"}]
