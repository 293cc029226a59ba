"""From a request body to `GenerateRequest`s: what is known, refused, ignored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

from outrider.edge.api.calls import Listening
from outrider.edge.api.fields import Fields, clean, refuse, unsupported
from outrider.edge.api.settings import ApiSettings
from outrider.edge.api.structure import FIELDS, structure
from outrider.edge.api.tools import Tools, function_name, tools, turn_calls
from outrider.edge.service import Fallback, GenerateRequest, Placement, Share
from outrider.privacy.redact import KINDS, Rules
from outrider.protocol.constraint import Constraint
from outrider.protocol.sampling import SamplingParams

MAX_TOKENS = 2**31 - 1
MAX_STOPS = 4
MAX_TOP_LOGPROBS = 20
MAX_BIASES = 1024
PLACEMENTS = ("auto", "edge", "cloud", "draft", "split")
OURS = ("placement", "fallback", "exact", "retract", "share", "small_allowed", "redact")
"""Fields of `outrider` in a request."""

_COMMON = frozenset(
    """model stream stream_options max_tokens max_completion_tokens temperature top_p top_k min_p
    presence_penalty frequency_penalty repetition_penalty logit_bias stop seed n logprobs
    top_logprobs prediction outrider""".split()
) | frozenset(FIELDS)
_TOOLS = frozenset({"tools", "tool_choice", "parallel_tool_calls"})

NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "suffix": ("",),
    "echo": (False,),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "modalities": (["text"],),
    "audio": (),
    "reasoning_effort": ("none",),
    "web_search_options": (),
    "best_of": (1,),
    "guided_whitespace_pattern": (),
    "ignore_eos": (False,),
    "min_tokens": (0,),
    "stop_token_ids": ([],),
    "bad_words": ([],),
    "use_beam_search": (False,),
    "length_penalty": (1, 1.0),
    "prompt_logprobs": (),
    "truncate_prompt_tokens": (),
    "chat_template": (),
    "chat_template_kwargs": ({},),
    "continue_final_message": (False,),
    "add_generation_prompt": (True,),
    "include_stop_str_in_output": (False,),
    "typical_p": (1, 1.0),
    "mirostat": (0,),
    "dry_multiplier": (0, 0.0),
    "xtc_probability": (0, 0.0),
    "verbosity": ("medium",),
}
"""Fields that would change the answer, each with the values that would not."""


ALIASES: tuple[Placement, ...] = ("auto", "edge", "cloud", "draft", "split")
"""Names for the default model that pin where it answers."""

Prompt = str | tuple[int, ...] | tuple[Mapping[str, Any], ...]


@dataclass(frozen=True, slots=True)
class Asked:
    """A request body, understood: one `GenerateRequest` a prompt."""

    requests: tuple[GenerateRequest, ...]
    streamed: bool
    usage_wanted: bool
    """Ask of `stream_options.include_usage`."""
    ignored: tuple[str, ...]
    """Fields that change nothing here; named in the response."""
    usage_live: bool = False
    """Count in every chunk, as `stream_options.continuous_usage_stats` asks."""
    tools: Tools | None = None
    constrained: tuple[Constraint, str] | None = None
    """What an answer must match, and the field that says so."""
    suffix: str = ""
    """Text that comes behind the answer."""
    whole_calls: bool = False
    """A call is told of once it is whole, in a stream too."""
    echoes: bool = False
    """The answer begins with its prompt."""
    prompts: tuple[Prompt, ...] = ()
    """As they were sent."""
    listening: Listening | None = None
    """For calls in the answer; known once the model is."""


def chat(body: Mapping[str, Any], settings: ApiSettings) -> Asked:
    """`/v1/chat/completions`."""
    fields = Fields(body)
    ignored = _sort_out(fields, _COMMON | _TOOLS | {"messages"})
    messages = _messages(fields.raw("messages"))
    wanted = fields.flag("logprobs")
    top = fields.whole("top_logprobs", 0, MAX_TOP_LOGPROBS)
    if top is not None and not wanted:
        raise refuse("top_logprobs", "absent unless logprobs is true")
    request = _request(fields, settings, messages, (top or 0) if wanted else None)
    return replace(_asked(fields, (request,), ignored), tools=tools(fields))


def completion(body: Mapping[str, Any], settings: ApiSettings) -> Asked:
    """`/v1/completions`: one text, several texts, token ids, or several lists of them."""
    fields = Fields(body)
    ignored = _sort_out(fields, (_COMMON | {"prompt", "suffix", "echo"}) - {"top_logprobs"})
    top = fields.whole("logprobs", 0, MAX_TOP_LOGPROBS)
    prompts = _prompts(fields.raw("prompt"), settings)
    requests = tuple(_request(fields, settings, prompt, top) for prompt in prompts)
    asked = replace(
        _asked(fields, requests, ignored),
        suffix=fields.text("suffix") or "",
        echoes=fields.flag("echo") or False,
    )
    if asked.suffix and not all(isinstance(prompt, str) for prompt in prompts):
        raise refuse("suffix", "absent beside token ids: it is put behind a prompt of text")
    if asked.echoes and top is not None:
        raise unsupported("echo", "leave echo or logprobs out: prompts have no logprobs here")
    return asked


def native(body: Mapping[str, Any], settings: ApiSettings) -> Asked:
    """`/outrider/v1/generate`: as chat with `messages`, as completion (one prompt) without."""
    asked = (chat if body.get("messages") is not None else completion)(body, settings)
    if len(asked.requests) != 1:
        raise refuse("prompt", "one prompt")
    if asked.echoes:
        raise unsupported("echo")
    return asked


def _sort_out(fields: Fields, known: frozenset[str]) -> tuple[str, ...]:
    """Refuse what would change the answer; name what is ignored."""
    ignored = []
    for name in fields.given():
        if name in known:
            continue
        if name not in NEUTRAL:
            ignored.append(name)
        elif not _is_neutral(name, fields.raw(name)):
            raise unsupported(name)
    return tuple(sorted(ignored))


def _is_neutral(name: str, value: Any) -> bool:
    """Equal and of the same type: 1 is not True."""
    return any(value == calm and type(value) is type(calm) for calm in NEUTRAL[name])


def _asked(
    fields: Fields, requests: tuple[GenerateRequest, ...], ignored: tuple[str, ...]
) -> Asked:
    streamed = fields.flag("stream") or False
    options = fields.inner("stream_options")
    usage_wanted = options.flag("include_usage") or False
    usage_live = options.flag("continuous_usage_stats") or False
    if fields.raw("stream_options") is not None and not streamed:
        raise refuse("stream_options", "absent unless stream is true")
    if usage_live and not usage_wanted:
        raise refuse("stream_options.continuous_usage_stats", "absent unless include_usage is true")
    return Asked(
        requests,
        streamed,
        usage_wanted,
        ignored,
        usage_live=usage_live,
        constrained=structure(fields),
        prompts=tuple(request.prompt for request in requests),
    )


def _request(
    fields: Fields,
    settings: ApiSettings,
    prompt: Prompt,
    top_logprobs: int | None,
) -> GenerateRequest:
    ours = fields.inner("outrider")
    _check_ours(ours)
    return GenerateRequest(
        prompt=prompt,
        model=fields.text("model") or "",
        prediction=_prediction(fields.raw("prediction")),
        sampling=_sampling(fields),
        n=fields.whole("n", 1, settings.max_choices) or 1,
        max_tokens=_max_tokens(fields),
        stop=_stops(fields.raw("stop")),
        seed=_seed(fields),
        top_logprobs=top_logprobs,
        placement=cast(Placement, ours.choice("placement", PLACEMENTS) or "auto"),
        fallback=cast(Fallback | None, ours.choice("fallback", ("wait", "local", "error"))),
        exact_required=ours.choice("exact", ("required", "preferred")) == "required",
        retract=ours.flag("retract") or False,
        share=cast(Share | None, ours.choice("share", ("tokens", "hidden", "nothing"))),
        small_allowed=ours.flag("small_allowed") or False,
        redact=_redact(ours.raw("redact")),
    )


def _redact(value: Any) -> Rules:
    """`all`, a list of kinds and of NAME=PATTERN, or nothing."""
    words = [value] if isinstance(value, str) else [] if value is None else value
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise refuse("outrider.redact", f"a list of {', '.join(KINDS)}, all, or NAME=PATTERN")
    return Rules.parse([clean(word, "outrider.redact") for word in words], "outrider.redact")


def _prediction(value: Any) -> str:
    """OpenAI's `prediction`: an object with `content`, a text or text parts."""
    if value is None:
        return ""
    if not isinstance(value, dict):
        raise refuse("prediction", "an object with type and content")
    if value.get("type", "content") != "content":
        raise refuse("prediction.type", "content")
    content = value.get("content")
    if isinstance(content, list):
        return _parts(content, "prediction.content", "")
    found = Fields(value, "prediction.").text("content")
    if found is None:
        raise refuse("prediction.content", "text, or a list of text parts")
    return found


def _check_ours(ours: Fields) -> None:
    for name in ours.given():
        if name not in OURS:
            raise refuse(ours.named(name), f"one of {', '.join(OURS)}")


def _sampling(fields: Fields) -> SamplingParams:
    numbers = {
        name: value
        for name in (
            "temperature",
            "top_p",
            "min_p",
            "presence_penalty",
            "frequency_penalty",
            "repetition_penalty",
        )
        if (value := fields.number(name)) is not None
    }
    top_k = fields.whole("top_k", 1, MAX_TOKENS)
    return SamplingParams(top_k=top_k, logit_bias=_biases(fields), **numbers)


def _max_tokens(fields: Fields) -> int | None:
    """The newer name wins where both are given."""
    newer = fields.whole("max_completion_tokens", 1, MAX_TOKENS)
    older = fields.whole("max_tokens", 1, MAX_TOKENS)
    return newer or older


def _seed(fields: Fields) -> int | None:
    """A number, or the decimal text of one: responses return 128 bits, too many for JSON."""
    value = fields.raw("seed")
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 40:
        value = int(value)
    return Fields({"seed": value}).whole("seed", 0, 2**128 - 1)


def _stops(value: Any) -> tuple[str, ...]:
    found = [value] if isinstance(value, str) else value
    if found is None:
        return ()
    if not isinstance(found, list) or len(found) > MAX_STOPS:
        raise refuse("stop", f"text, or a list of at most {MAX_STOPS} texts")
    if not all(isinstance(stop, str) and stop for stop in found):
        raise refuse("stop", "text that is not empty")
    return tuple(clean(stop, "stop") for stop in found)


def _biases(fields: Fields) -> tuple[tuple[int, float], ...]:
    biases = fields.inner("logit_bias")
    names = biases.given()
    if len(names) > MAX_BIASES:
        raise refuse("logit_bias", f"at most {MAX_BIASES} entries")
    return tuple((_bias_id(name), biases.number(name) or 0.0) for name in names)


def _bias_id(name: str) -> int:
    if not (name.isascii() and name.isdigit() and len(name) < 10):
        raise refuse("logit_bias", "an object from token ids (decimal) to numbers")
    return int(name)


# --- prompts -----------------------------------------------------------------------------------


def _prompts(value: Any, settings: ApiSettings) -> list[str | tuple[int, ...]]:
    if isinstance(value, list) and value and isinstance(value[0], str | list):
        if len(value) > settings.max_prompts:
            raise refuse("prompt", f"at most {settings.max_prompts} prompts")
        return [_prompt(item) for item in value]
    return [_prompt(value)]


def _prompt(value: Any) -> str | tuple[int, ...]:
    if isinstance(value, str) and value:
        return clean(value, "prompt")
    if isinstance(value, list) and value and all(type(item) is int for item in value):
        if min(value) < 0 or max(value) > MAX_TOKENS:
            raise refuse("prompt", "token ids of the model's vocabulary")
        return tuple(value)
    raise refuse("prompt", "text or token ids, and not empty")


def _messages(value: Any) -> tuple[Mapping[str, Any], ...]:
    if not isinstance(value, list) or not value:
        raise refuse("messages", "a list with at least one message")
    return _named(tuple(_message(item, f"messages[{i}]") for i, item in enumerate(value)))


def _named(messages: tuple[Mapping[str, Any], ...]) -> tuple[Mapping[str, Any], ...]:
    """Results with the names of the functions that were called, which some templates show."""
    names = {
        call["id"]: call["function"]["name"]
        for message in messages
        for call in message.get("tool_calls", ())
        if "id" in call
    }
    return tuple(
        {**message, "name": names[message["tool_call_id"]]}
        if message["role"] == "tool"
        and "name" not in message
        and message.get("tool_call_id") in names
        else message
        for message in messages
    )


_ROLES = ("system", "developer", "user", "assistant", "tool")


def _message(value: Any, at: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise refuse(at, "an object with role and content")
    fields = Fields(value, f"{at}.")
    role = value.get("role")
    if role == "function":
        raise unsupported(f"{at}.role", "send results with role tool")
    if role not in _ROLES:
        raise refuse(f"{at}.role", f"one of {', '.join(_ROLES)}")
    for refused in ("function_call", "audio", "refusal"):
        if value.get(refused):
            raise unsupported(f"{at}.{refused}")
    found: dict[str, Any] = {"role": role}
    if value.get("tool_calls"):
        if role != "assistant":
            raise refuse(f"{at}.tool_calls", "absent unless the role is assistant")
        found["tool_calls"] = turn_calls(value["tool_calls"], f"{at}.tool_calls")
    found["content"] = _content(fields, f"{at}.content", "tool_calls" in found)
    if role == "tool":
        found |= _result_of(fields, at)
    return found


def _content(fields: Fields, at: str, optional: object) -> str:
    content = fields.raw("content")
    if isinstance(content, list):
        return _parts(content, at)
    text = fields.text("content")
    if text is None and not optional:
        raise refuse(at, "text, or a list of text parts")
    return text or ""


def _result_of(fields: Fields, at: str) -> dict[str, Any]:
    """Which call a tool's message answers."""
    found: dict[str, Any] = {}
    identity = fields.text("tool_call_id")
    if identity is not None:
        found["tool_call_id"] = identity
    if fields.raw("name") is not None:
        found["name"] = function_name(fields.raw("name"), f"{at}.name")
    return found


def _parts(parts: Sequence[Any], at: str, between: str = "\n") -> str:
    """Text parts, joined as the templates of text models expect them."""
    texts = []
    for i, part in enumerate(parts):
        here = f"{at}[{i}]"
        if not isinstance(part, dict):
            raise refuse(here, "an object with a type")
        if part.get("type") != "text":
            raise unsupported(f"{here}.type", "send text parts only: no model here sees or hears")
        text = Fields(part, f"{here}.").text("text")
        if text is None:
            raise refuse(f"{here}.text", "text")
        texts.append(text)
    return between.join(texts)
