"""How model families write calls of functions, found from their chat templates.

Four forms are known: `<tool_call>` around JSON (Hermes, Qwen), JSON alone with `parameters`
(Llama 3), `[TOOL_CALLS]` before a list or before `name[ARGS]` (Mistral), and, for every other
model, JSON alone after instructions that we write ourselves (Gemma and its like, whose
templates know nothing of tools).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

Style = Literal["object", "list", "named"]
"""`object`: {"name": ..., key: {...}}; `list`: several of those in brackets; `named`: the name,
a separator, and the arguments."""


@dataclass(frozen=True, slots=True)
class CallForm:
    """How one family writes a call."""

    name: str
    style: Style
    key: str = "arguments"
    """The name of the arguments inside the object."""
    opener: str = ""
    """What comes before a call; empty: the answer is nothing but calls."""
    closer: str = ""
    gap: str = ""
    """Between opener, call and closer, and between calls."""
    separator: str = ""
    """Between name and arguments, for style `named`."""
    also: str = ""
    """A special token that may come before an answer of calls."""
    id_length: int = 24
    """Characters of a call's id; some templates refuse any other."""


HERMES = CallForm("hermes", "object", opener="<tool_call>", closer="</tool_call>", gap="\n")
LLAMA = CallForm("llama", "object", key="parameters", also="<|python_tag|>")
MISTRAL = CallForm("mistral", "list", opener="[TOOL_CALLS]", id_length=9)
MISTRAL_NAMED = CallForm(
    "mistral-named", "named", opener="[TOOL_CALLS]", separator="[ARGS]", id_length=9
)
PLAIN = CallForm("plain", "object", key="parameters")

_TOOLS = re.compile(r"\btools\b")


def form_of(template: str) -> CallForm:
    """The form that a chat template shows to its model; the plain one where it shows none."""
    if not knows_tools(template):
        return PLAIN
    if "[TOOL_CALLS]" in template:
        return MISTRAL_NAMED if "[ARGS]" in template else MISTRAL
    if "<tool_call>" in template:
        return HERMES
    if "<|python_tag|>" in template or "<|start_header_id|>" in template:
        return LLAMA
    return PLAIN


def knows_tools(template: str) -> bool:
    """Whether the template tells its model of tools by itself."""
    return _TOOLS.search(template) is not None


# --- for templates that know no tools ----------------------------------------------------------

_INSTRUCTIONS = """You have access to these functions:
{functions}

To call one of them, answer with nothing but
{{"name": "the function's name", "parameters": {{...}}}}
and you will be told its result. To answer without a call, just answer."""


def spelled(
    messages: Sequence[Mapping[str, object]], tools: Sequence[Mapping[str, object]] | None
) -> list[dict[str, object]]:
    """The conversation in plain words: functions in the first turn of the user, calls as the
    assistant's JSON, results as the user's. Turns of one role in a row become one."""
    found = [turn for message in messages for turn in _turns(message)]
    if tools:
        _instruct(found, tools)
    joined: list[dict[str, object]] = []
    for turn in found:
        if joined and joined[-1]["role"] == turn["role"]:
            joined[-1]["content"] = f"{joined[-1]['content']}\n\n{turn['content']}"
        else:
            joined.append(turn)
    return joined


def _instruct(turns: list[dict[str, object]], tools: Sequence[Mapping[str, object]]) -> None:
    functions = "\n".join(json.dumps(tool.get("function", tool)) for tool in tools)
    text = _INSTRUCTIONS.format(functions=functions)
    first = next((turn for turn in turns if turn["role"] == "user"), None)
    if first is None:
        turns.append({"role": "user", "content": text})
    else:
        first["content"] = f"{text}\n\n{first['content']}"


def _turns(message: Mapping[str, object]) -> Iterator[dict[str, object]]:
    role, content = message.get("role"), message.get("content") or ""
    if role == "tool":
        name = message.get("name")
        of = f" of {name}" if name else ""
        yield {"role": "user", "content": f"The result{of}:\n{content}"}
        return
    calls = message.get("tool_calls")
    if isinstance(calls, Sequence) and calls and not isinstance(calls, str):
        said = [str(content)] if content else []
        said += [_written(call) for call in calls if isinstance(call, Mapping)]
        content = "\n".join(said)
    yield {"role": role, "content": content}


def _written(call: Mapping[str, object]) -> str:
    function = call.get("function")
    found = function if isinstance(function, Mapping) else call
    return json.dumps({"name": found.get("name"), "parameters": found.get("arguments")})
