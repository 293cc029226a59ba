"""From a request body to `GenerateRequest`s: what is known, refused, ignored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from outrider.edge.api.fields import Fields, clean, refuse, unsupported
from outrider.edge.api.settings import ApiSettings
from outrider.edge.service import Fallback, GenerateRequest, Placement
from outrider.protocol.sampling import SamplingParams

MAX_TOKENS = 2**31 - 1
MAX_STOPS = 4
MAX_TOP_LOGPROBS = 20
MAX_BIASES = 1024

_COMMON = frozenset(
    """model stream stream_options max_tokens max_completion_tokens temperature top_p top_k min_p
    presence_penalty frequency_penalty repetition_penalty logit_bias stop seed n logprobs
    top_logprobs outrider""".split()
)

NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "audio": (),
    "reasoning_effort": ("none",),
    "web_search_options": (),
    "suffix": ("",),
    "echo": (False,),
    "best_of": (1,),
    "ignore_eos": (False,),
    "min_tokens": (0,),
    "stop_token_ids": ([],),
    "bad_words": ([],),
    "use_beam_search": (False,),
    "length_penalty": (1, 1.0),
    "prompt_logprobs": (),
    "truncate_prompt_tokens": (),
    "guided_json": (),
    "guided_regex": (),
    "guided_choice": (),
    "guided_grammar": (),
    "structured_outputs": (),
    "grammar": ("",),
    "json_schema": (),
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


@dataclass(frozen=True, slots=True)
class Asked:
    """A request body, understood: one `GenerateRequest` a prompt."""

    requests: tuple[GenerateRequest, ...]
    streamed: bool
    usage_wanted: bool
    """Ask of `stream_options.include_usage`."""
    ignored: tuple[str, ...]
    """Fields that change nothing here; named in the response."""


def chat(body: Mapping[str, Any], settings: ApiSettings) -> Asked:
    """`/v1/chat/completions`."""
    fields = Fields(body)
    ignored = _sort_out(fields, _COMMON | {"messages"})
    messages = _messages(fields.raw("messages"))
    wanted = fields.flag("logprobs")
    top = fields.whole("top_logprobs", 0, MAX_TOP_LOGPROBS)
    if top is not None and not wanted:
        raise refuse("top_logprobs", "absent unless logprobs is true")
    request = _request(fields, settings, messages, (top or 0) if wanted else None)
    return _asked(fields, (request,), ignored)


def completion(body: Mapping[str, Any], settings: ApiSettings) -> Asked:
    """`/v1/completions`: one text, several texts, token ids, or several lists of them."""
    fields = Fields(body)
    ignored = _sort_out(fields, (_COMMON | {"prompt"}) - {"top_logprobs"})
    top = fields.whole("logprobs", 0, MAX_TOP_LOGPROBS)
    prompts = _prompts(fields.raw("prompt"), settings)
    requests = tuple(_request(fields, settings, prompt, top) for prompt in prompts)
    return _asked(fields, requests, ignored)


def native(body: Mapping[str, Any], settings: ApiSettings) -> Asked:
    """`/outrider/v1/generate`: as chat with `messages`, as completion (one prompt) without."""
    asked = (chat if body.get("messages") is not None else completion)(body, settings)
    if len(asked.requests) != 1:
        raise refuse("prompt", "one prompt")
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
    usage_wanted = fields.inner("stream_options").flag("include_usage") or False
    if fields.raw("stream_options") is not None and not streamed:
        raise refuse("stream_options", "absent unless stream is true")
    return Asked(requests, streamed, usage_wanted, ignored)


def _request(
    fields: Fields,
    settings: ApiSettings,
    prompt: str | tuple[int, ...] | tuple[Mapping[str, Any], ...],
    top_logprobs: int | None,
) -> GenerateRequest:
    ours = fields.inner("outrider")
    _check_ours(ours)
    return GenerateRequest(
        prompt=prompt,
        model=fields.text("model") or "",
        sampling=_sampling(fields),
        n=fields.whole("n", 1, settings.max_choices) or 1,
        max_tokens=_max_tokens(fields),
        stop=_stops(fields.raw("stop")),
        seed=_seed(fields),
        top_logprobs=top_logprobs,
        placement=cast(
            Placement, ours.choice("placement", ("auto", "edge", "cloud", "draft")) or "auto"
        ),
        fallback=cast(Fallback | None, ours.choice("fallback", ("wait", "local", "error"))),
        exact_required=ours.choice("exact", ("required", "preferred")) == "required",
        retract=ours.flag("retract") or False,
    )


def _check_ours(ours: Fields) -> None:
    for name in ours.given():
        if name not in ("placement", "fallback", "exact", "retract"):
            raise refuse(ours.named(name), "one of placement, fallback, exact, retract")


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
    return tuple(_message(item, f"messages[{i}]") for i, item in enumerate(value))


_ROLES = ("system", "developer", "user", "assistant")


def _message(value: Any, at: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise refuse(at, "an object with role and content")
    fields = Fields(value, f"{at}.")
    if value.get("role") in ("tool", "function"):
        raise unsupported(f"{at}.role")
    if value.get("role") not in _ROLES:
        raise refuse(f"{at}.role", f"one of {', '.join(_ROLES)}")
    for name in ("tool_calls", "function_call", "audio", "refusal"):
        if value.get(name):
            raise unsupported(f"{at}.{name}")
    content = value.get("content")
    if isinstance(content, list):
        return {"role": value["role"], "content": _parts(content, f"{at}.content")}
    text = fields.text("content")
    if text is None:
        raise refuse(f"{at}.content", "text, or a list of text parts")
    return {"role": value["role"], "content": text}


def _parts(parts: Sequence[Any], at: str) -> str:
    """Text parts, joined as the templates of text models expect them."""
    texts = []
    for i, part in enumerate(parts):
        here = f"{at}[{i}]"
        if not isinstance(part, dict):
            raise refuse(here, "an object with a type")
        if part.get("type") != "text":
            raise unsupported(f"{here}.type", "send text parts only")
        text = Fields(part, f"{here}.").text("text")
        if text is None:
            raise refuse(f"{here}.text", "text")
        texts.append(text)
    return "\n".join(texts)
