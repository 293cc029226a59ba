"""From keyword arguments to the JSON that `/outrider/v1/generate` takes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any, Literal, TypedDict

from outrider.errors import InvalidRequest
from outrider.protocol.status import Fallback, Placement
from outrider.sdk.limits import Timeouts

Prompt = str | Sequence[int]
"""Text, or token ids of the target."""
Messages = str | Sequence[Mapping[str, Any]]
"""A user's message, or messages with `role` and `content`."""

Trace = Literal["tokens", "events"]
Share = Literal["tokens", "hidden", "nothing"]


class Options(TypedDict, total=False):
    """What every question takes; what is left out is the daemon's choice."""

    model: str
    """A name from `models()`; the default target when left out."""
    max_tokens: int
    """Tokens of an answer; up to the context when left out."""
    temperature: float
    """0 is greedy; 1 when left out."""
    top_p: float
    top_k: int
    min_p: float
    presence_penalty: float
    frequency_penalty: float
    repetition_penalty: float
    logit_bias: Mapping[int, float]
    """Token id to an added score."""
    stop: str | Sequence[str]
    """Up to four texts that end the answer; none of them is in it."""
    seed: int | str
    """0 to 2^128 - 1; as text it is what `Answer.seed` holds."""
    n: int
    """Answers to the one prompt."""
    top_logprobs: int
    """0 asks for the chosen token's logprob, k for those of the k best too."""
    placement: Placement
    fallback: Fallback
    """While the cloud is away: `wait`, go on with the `local` model, or `error`."""
    exact: Literal["required", "preferred"]
    """`required`: an error rather than a token that is not the target's."""
    retract: bool
    """Take `Provisional` tokens, which `Retract` may take back."""
    response_format: Mapping[str, Any]
    """OpenAI's: `{"type": "json_object"}`, or a `json_schema` that the answer must match."""
    prediction: str
    """Text that the answer probably repeats: drafts are taken from it where it fits."""
    share: Share
    """What may leave the device: `tokens`, `hidden` states, `nothing`."""
    small_allowed: bool
    """The small model's own answer will do, so that `auto` may choose `edge`."""
    trace: Trace
    """`tokens`, or `events`: `Draft`, `Commit`, `Decision`, `Energy` and `Fallback` too."""


_OURS = ("placement", "fallback", "exact", "retract", "share", "small_allowed", "trace")


def of_prompt(prompt: Prompt, options: Options) -> dict[str, Any]:
    """The body of a completion."""
    body = _body(options)
    body["prompt"] = prompt if isinstance(prompt, str) else _ids(prompt)
    if "top_logprobs" in options:
        body["logprobs"] = body.pop("top_logprobs")
    return body


def _check_name(name: str) -> None:
    """A misspelt option must not be an option that is silently not there."""
    known = Options.__annotations__
    if name not in known:
        close = get_close_matches(name, known, 1)
        raise InvalidRequest(
            f"there is no option {name!r}",
            param=name,
            effect="nothing was asked",
            todo=close[0] if close else f"one of {', '.join(known)}",
        )


def _ids(prompt: object) -> list[object]:
    """Bytes are a sequence of numbers too, but never token ids."""
    if isinstance(prompt, Iterable) and not isinstance(prompt, bytes | bytearray | memoryview):
        return list(prompt)
    raise InvalidRequest(
        f"a prompt can not be {type(prompt).__name__}",
        param="prompt",
        why="it must be text, or token ids",
        effect="nothing was asked",
    )


def of_messages(messages: Messages, options: Options) -> dict[str, Any]:
    """The body of a chat turn."""
    body = _body(options)
    text = isinstance(messages, str)
    body["messages"] = [{"role": "user", "content": messages}] if text else list(messages)
    if "top_logprobs" in options:
        body["logprobs"] = True
    return body


def _body(options: Options) -> dict[str, Any]:
    given: dict[str, Any] = dict(options)
    for name in given:
        _check_name(name)
    ours = {name: given.pop(name) for name in _OURS if name in given}
    if "logit_bias" in given:
        given["logit_bias"] = {str(token): bias for token, bias in given["logit_bias"].items()}
    if "prediction" in given:
        given["prediction"] = {"type": "content", "content": given["prediction"]}
    if isinstance(given.get("stop"), tuple):
        given["stop"] = list(given["stop"])
    return {**given, "outrider": ours} if ours else given


def watched(body: Mapping[str, Any], timeouts: Timeouts) -> dict[str, Any]:
    """The body with how its reader waits: pings for the limits, and time to come back."""
    ours = dict(body.get("outrider", {}))
    if timeouts.resume_s:
        ours["linger_s"] = timeouts.resume_s
    if (ping_s := timeouts.ping_s()) is not None:
        ours["ping_s"] = ping_s
    return {**body, "outrider": ours}
