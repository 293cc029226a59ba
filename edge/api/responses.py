"""OpenAI's responses API, without state, over its chat: the same answers in other words."""

from __future__ import annotations

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
from outrider.edge.api.errors import envelope
from outrider.edge.api.fields import Fields, refuse, unsupported
from outrider.edge.api.openai import begin
from outrider.edge.api.shapes import Chat
from outrider.errors import InvalidRequest

SAME = (
    "model",
    "stream",
    "temperature",
    "top_p",
    "parallel_tool_calls",
    "reasoning_effort",
    "prediction",
    "outrider",
)
REFUSED: Mapping[str, tuple[Any, ...]] = {
    "previous_response_id": (),
    "conversation": (),
    "prompt": (),
    "background": (False,),
    "max_tool_calls": (),
    "top_logprobs": (0,),
    "include": ([],),
    "truncation": ("disabled",),
}
"""Fields that would change the answer, with the values that would not."""


class Responses:
    """`/v1/responses`."""

    def __init__(self, context: Context) -> None:
        self._context = context

    def routes(self) -> list[Route]:
        return [Route("/v1/responses", self.create, methods=["POST"])]

    async def create(self, request: Request) -> ASGIApp:
        fields = Fields(await body_of(request, self._context))
        answering = await _begun(self._context, fields)
        said = _Said(int(self._context.now()))
        if not answering.asked.streamed:
            found = said.whole(await answering.whole(request))
            return Response(msgspec.json.encode(found), media_type="application/json")
        frames = framed(
            self._context,
            _frames(answering, said),
            lambda error: _event({"type": "error", **envelope(error)["error"]}),
        )
        return await begin(request, frames, "text/event-stream; charset=utf-8")


async def _begun(context: Context, fields: Fields) -> Answering:
    """Errors of the chat underneath name the field of this API."""
    try:
        return await Answering.begin(context, _body(fields), parse.chat, Chat())
    except InvalidRequest as error:
        named = {"messages": "input", "max_tokens": "max_output_tokens"}
        for chat, ours in (*named.items(), ("response_format", "text.format")):
            if error.param.startswith(chat):
                param = error.param.replace(chat, ours, 1)
                error.what = error.what.replace(error.param, param)
                error.param = param
        raise


# --- requests ----------------------------------------------------------------------------------


def _body(fields: Fields) -> dict[str, Any]:
    for name, neutral in REFUSED.items():
        if fields.raw(name) is not None and fields.raw(name) not in neutral:
            raise unsupported(name)
    body = {name: fields.raw(name) for name in SAME}
    body["max_tokens"] = fields.raw("max_output_tokens")
    body["messages"] = _messages(fields)
    body["tools"] = _tools(fields.raw("tools"))
    choice = fields.raw("tool_choice")
    if isinstance(choice, dict) and "function" not in choice:
        choice = {"type": choice.get("type"), "function": {"name": choice.get("name")}}
    body["tool_choice"] = choice
    form = fields.inner("text").raw("format")
    if isinstance(form, dict) and form.get("type") == "json_schema":
        form = {"type": "json_schema", "json_schema": {**form, "type": None}}
    body["response_format"] = form
    if body["stream"]:
        body["stream_options"] = {"include_usage": True}
    return body


def _messages(fields: Fields) -> list[Any]:
    instructions = fields.text("instructions")
    found: list[Any] = [{"role": "system", "content": instructions}] if instructions else []
    given = fields.raw("input")
    if isinstance(given, str) and given:
        return [*found, {"role": "user", "content": given}]
    if not isinstance(given, list) or not given:
        raise refuse("input", "text, or a list of items")
    for i, item in enumerate(given):
        _add(found, item, f"input[{i}]")
    return found


def _add(messages: list[Any], item: Any, at: str) -> None:
    """An item as a turn; calls in a row belong to one turn of the assistant."""
    if not isinstance(item, dict):
        raise refuse(at, "an object")
    match item.get("type", "message"):
        case "message":
            messages.append(
                {"role": item.get("role"), "content": _content(item.get("content"), at)}
            )
        case "function_call":
            function = {"name": item.get("name"), "arguments": item.get("arguments")}
            call = {"id": item.get("call_id"), "type": "function", "function": function}
            if not (messages and messages[-1].get("tool_calls")):
                messages.append({"role": "assistant", "content": "", "tool_calls": []})
            messages[-1]["tool_calls"].append(call)
        case "function_call_output":
            output = item.get("output")
            turn = {"role": "tool", "tool_call_id": item.get("call_id")}
            messages.append({**turn, "content": _content(output, at)})
        case "reasoning":
            pass
        case _:
            raise unsupported(f"{at}.type", "send messages, calls of functions and their results")


def _content(content: Any, at: str) -> Any:
    if not isinstance(content, list):
        return content
    parts = []
    for i, part in enumerate(content):
        if isinstance(part, dict) and part.get("type") in ("input_text", "output_text", "text"):
            parts.append({"type": "text", "text": part.get("text")})
        else:
            raise unsupported(f"{at}.content[{i}].type", "send text parts only")
    return parts


def _tools(value: Any) -> Any:
    if not isinstance(value, list):
        return value
    found = []
    for i, tool in enumerate(value):
        if not isinstance(tool, dict) or tool.get("type") != "function":
            raise unsupported(f"tools[{i}].type", "send tools of type function")
        inner = {k: v for k, v in tool.items() if k not in ("type", "function")}
        found.append({"type": "function", "function": tool.get("function", inner)})
    return found


# --- answers -----------------------------------------------------------------------------------


def _event(value: Mapping[str, Any]) -> bytes:
    return b"event: " + str(value["type"]).encode() + b"\n" + sse.data(value)


async def _frames(answering: Answering, said: _Said) -> AsyncGenerator[bytes, None]:
    async for chunks in answering.chunks():
        made = b"".join(_event(event) for chunk in chunks for event in said.of(chunk))
        if made or not chunks:
            yield made or sse.PING


class _Said:
    """Output items from OpenAI's chunks, or from the whole answer."""

    def __init__(self, created: int) -> None:
        self._created = created
        self._number = 0
        self._id = ""
        self._model = ""
        self._items: list[dict[str, Any]] = []
        self._open = False
        """The last item is under way."""
        self._reason = "stop"

    def whole(self, answer: Mapping[str, Any]) -> dict[str, Any]:
        (choice,) = answer["choices"]
        self._name(answer)
        self._reason = choice["finish_reason"]
        message = choice["message"]
        if message["content"]:
            self._items.append(_message(self._item_id("msg"), message["content"], "completed"))
        for call in message.get("tool_calls", ()):
            function = call["function"]
            item = _call(self._item_id("fc"), call["id"], function["name"])
            self._items.append({**item, "arguments": function["arguments"], "status": "completed"})
        return self._response(self._status(), answer)

    def _name(self, answer: Mapping[str, Any]) -> None:
        self._id = answer["id"].removeprefix("chatcmpl-")
        self._model = answer["model"]

    def _item_id(self, kind: str) -> str:
        return f"{kind}_{self._id}_{len(self._items)}"

    def _status(self) -> str:
        return "incomplete" if self._reason == "length" else "completed"

    def _response(self, status: str, about: Mapping[str, Any] | None = None) -> dict[str, Any]:
        cut = {"reason": "max_output_tokens"} if status == "incomplete" else None
        found: dict[str, Any] = {
            "id": f"resp_{self._id}",
            "object": "response",
            "created_at": self._created,
            "status": status,
            "model": self._model,
            "output": list(self._items),
            "error": None,
            "incomplete_details": cut,
            "instructions": None,
            "metadata": {},
            "parallel_tool_calls": True,
            "temperature": None,
            "tool_choice": "auto",
            "tools": [],
            "top_p": None,
            "store": False,
            "usage": None,
        }
        if about is not None:
            found |= {"usage": _usage(about["usage"]), "outrider": about["outrider"]}
        return found

    # --- events --------------------------------------------------------------------------------

    def of(self, chunk: Mapping[str, Any]) -> list[dict[str, Any]]:
        """The events of a chunk, numbered."""
        events = self._events(chunk)
        for event in events:
            event["sequence_number"] = self._number
            self._number += 1
        return events

    def _events(self, chunk: Mapping[str, Any]) -> list[dict[str, Any]]:
        if not chunk["choices"]:
            return self._end(chunk)
        found: list[dict[str, Any]] = []
        if not self._id:
            self._name(chunk)
            for kind in ("response.created", "response.in_progress"):
                found.append({"type": kind, "response": self._response("in_progress")})
        (choice,) = chunk["choices"]
        self._reason = choice["finish_reason"] or self._reason
        delta = choice["delta"]
        if delta.get("content"):
            found += self._text(delta["content"])
        for call in delta.get("tool_calls", ()):
            found += self._call(call)
        return found

    def _text(self, text: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        if not self._open or self._items[-1]["type"] != "message":
            found = self._close()
            item = _message(self._item_id("msg"), "", "in_progress")
            found.append(self._added({**item, "content": []}))
            self._items[-1] = item
            found.append(self._at("response.content_part.added", part=item["content"][0]))
        self._items[-1]["content"][0]["text"] += text
        return [*found, self._at("response.output_text.delta", delta=text, logprobs=[])]

    def _call(self, call: Mapping[str, Any]) -> list[dict[str, Any]]:
        function = call["function"]
        found: list[dict[str, Any]] = []
        if "id" in call:
            found = self._close()
            found.append(self._added(_call(self._item_id("fc"), call["id"], function["name"])))
        if function["arguments"]:
            self._items[-1]["arguments"] += function["arguments"]
            kind = "response.function_call_arguments.delta"
            found.append(self._at(kind, delta=function["arguments"]))
        return found

    def _added(self, item: dict[str, Any]) -> dict[str, Any]:
        self._items.append(item)
        self._open = True
        at = len(self._items) - 1
        return {"type": "response.output_item.added", "output_index": at, "item": dict(item)}

    def _at(self, kind: str, **more: Any) -> dict[str, Any]:
        item = self._items[-1]
        part = {"content_index": 0} if item["type"] == "message" else {}
        at = len(self._items) - 1
        return {"type": kind, "item_id": item["id"], "output_index": at, **part, **more}

    def _close(self) -> list[dict[str, Any]]:
        """The end of the item under way."""
        if not self._open:
            return []
        item = self._items[-1]
        item["status"] = "completed"
        self._open = False
        if item["type"] == "message":
            (part,) = item["content"]
            found = [
                self._at("response.output_text.done", text=part["text"], logprobs=[]),
                self._at("response.content_part.done", part=dict(part)),
            ]
        else:
            kind = "response.function_call_arguments.done"
            found = [self._at(kind, arguments=item["arguments"], name=item["name"])]
        at = len(self._items) - 1
        return [*found, {"type": "response.output_item.done", "output_index": at, "item": item}]

    def _end(self, chunk: Mapping[str, Any]) -> list[dict[str, Any]]:
        closed = self._close()
        status = self._status()
        return [*closed, {"type": f"response.{status}", "response": self._response(status, chunk)}]


def _message(identity: str, text: str, status: str) -> dict[str, Any]:
    part = {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
    head = {"type": "message", "id": identity, "role": "assistant"}
    return {**head, "status": status, "content": [part]}


def _call(identity: str, call: str, name: str) -> dict[str, Any]:
    head = {"type": "function_call", "id": identity, "call_id": call, "name": name}
    return {**head, "arguments": "", "status": "in_progress"}


def _usage(usage: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "input_tokens": usage["prompt_tokens"],
        "input_tokens_details": {"cached_tokens": 0},
        "output_tokens": usage["completion_tokens"],
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": usage["total_tokens"],
    }
