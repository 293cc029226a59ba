"""OpenAI's two shapes of an answer, whole and in chunks; no state."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from outrider.edge.api.calls import Call, CallDelta
from outrider.protocol.stream import Logprob, Token

Spell = Callable[[int], bytes]
"""The bytes of a token id."""


class Shape(Protocol):
    """How one endpoint writes its answers."""

    prefix: str
    whole: str
    """`object` of a whole answer."""
    part: str
    """`object` of a chunk."""

    def opening(self, index: int) -> dict[str, Any] | None:
        """The choice of the first chunk, if the endpoint has one."""
        ...

    def called(self, index: int, delta: CallDelta, logprobs: Any) -> dict[str, Any]:
        """The choice of a chunk with a piece of a call."""
        ...

    def piece(self, index: int, text: str, logprobs: Any) -> dict[str, Any]:
        """The choice of a chunk with text."""
        ...

    def closing(self, index: int, reason: str) -> dict[str, Any]:
        """The choice of the last chunk."""
        ...

    def choice(
        self, index: int, text: str, calls: Sequence[Call], logprobs: Any, reason: str
    ) -> dict[str, Any]:
        """The choice of a whole answer."""
        ...

    def logprobs(self, tokens: Sequence[Token], spell: Spell, offset: int) -> dict[str, Any]:
        """`offset`: characters of the answer before these tokens."""
        ...


class Chat:
    """`/v1/chat/completions`."""

    prefix = "chatcmpl-"
    whole = "chat.completion"
    part = "chat.completion.chunk"

    def opening(self, index: int) -> dict[str, Any] | None:
        return self._delta(index, {"role": "assistant", "content": ""}, None, None)

    def piece(self, index: int, text: str, logprobs: Any) -> dict[str, Any]:
        return self._delta(index, {"content": text}, logprobs, None)

    def called(self, index: int, delta: CallDelta, logprobs: Any) -> dict[str, Any]:
        function: dict[str, Any] = {"arguments": delta.arguments}
        call: dict[str, Any] = {"index": delta.index, "function": function}
        if delta.name:
            function["name"] = delta.name
            call |= {"id": delta.id, "type": "function"}
        return self._delta(index, {"tool_calls": [call]}, logprobs, None)

    def closing(self, index: int, reason: str) -> dict[str, Any]:
        return self._delta(index, {}, None, reason)

    def _delta(
        self, index: int, delta: dict[str, Any], logprobs: Any, reason: str | None
    ) -> dict[str, Any]:
        return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}

    def choice(
        self, index: int, text: str, calls: Sequence[Call], logprobs: Any, reason: str
    ) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None}
        if calls:
            message |= {"content": text or None, "tool_calls": [_call(call) for call in calls]}
        return {"index": index, "message": message, "logprobs": logprobs, "finish_reason": reason}

    def logprobs(self, tokens: Sequence[Token], spell: Spell, offset: int) -> dict[str, Any]:
        return {"content": [self._entry(token, spell) for token in tokens], "refusal": None}

    def _entry(self, token: Token, spell: Spell) -> dict[str, Any]:
        top = [_spelt(best.bytes, best.logprob) for best in token.top_logprobs]
        return {**_spelt(spell(token.id), token.logprob), "top_logprobs": top}


class Text:
    """`/v1/completions`."""

    prefix = "cmpl-"
    whole = "text_completion"
    part = "text_completion"

    def opening(self, index: int) -> dict[str, Any] | None:
        return None

    def piece(self, index: int, text: str, logprobs: Any) -> dict[str, Any]:
        return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": None}

    def called(self, index: int, delta: CallDelta, logprobs: Any) -> dict[str, Any]:
        """Completions take no tools."""
        return self.piece(index, delta.arguments, logprobs)

    def closing(self, index: int, reason: str) -> dict[str, Any]:
        return {"index": index, "text": "", "logprobs": None, "finish_reason": reason}

    def choice(
        self, index: int, text: str, calls: Sequence[Call], logprobs: Any, reason: str
    ) -> dict[str, Any]:
        return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": reason}

    def logprobs(self, tokens: Sequence[Token], spell: Spell, offset: int) -> dict[str, Any]:
        offsets = []
        for token in tokens:
            offsets.append(offset)
            offset += len(token.text)
        return {
            "tokens": [spelling(spell(token.id)) for token in tokens],
            "token_logprobs": [token.logprob for token in tokens],
            "top_logprobs": [_best(token.top_logprobs) for token in tokens],
            "text_offset": offsets,
        }


def _call(call: Call) -> dict[str, Any]:
    function = {"name": call.name, "arguments": call.arguments}
    return {"id": call.id, "type": "function", "function": function}


def spelling(raw: bytes) -> str:
    """A token as text; as OpenAI does, `bytes:\\xe2\\x82` where it is no whole character."""
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)


def _spelt(raw: bytes, logprob: float | None) -> dict[str, Any]:
    return {"token": spelling(raw), "logprob": logprob, "bytes": list(raw)}


def _best(top: Sequence[Logprob]) -> dict[str, float]:
    return {spelling(best.bytes): best.logprob for best in top}
