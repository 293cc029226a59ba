"""Models that say what a test wants, with the chat templates of real families in short."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from outrider.models import served
from outrider.models.served import Served
from outrider.protocol.stream import FinishReason
from outrider.protocol.vocabulary import Vocabulary
from outrider.testing.scripted_edge import ScriptedEdge, Step, done, started, token

HERMES = """{% if tools %}<tools>{% for tool in tools %}{{ tool | tojson }}{% endfor %}</tools>
{% endif %}{% for m in messages %}[{{ m.role }}]{{ m.content }}{% for c in m.tool_calls or [] %}
<tool_call>
{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}
</tool_call>{% endfor %}{% endfor %}"""
LLAMA = """{% if tools %}{{ tools | tojson }}{% endif %}{% for m in messages %}
<|start_header_id|>{{ m.role }}<|end_header_id|>{{ m.content }}{% endfor %}<|python_tag|>"""
MISTRAL = """{% if tools %}[AVAILABLE_TOOLS]{{ tools | tojson }}{% endif %}{% for m in messages %}
{{ m.content }}{% endfor %}{# [TOOL_CALLS] #}"""
NAMED = MISTRAL.replace("{# [TOOL_CALLS] #}", "{# [TOOL_CALLS] [ARGS] #}")
GEMMA = "{% for m in messages %}<start_of_turn>{{ m.role }}\n{{ m.content }}{% endfor %}"
TEMPLATES = {
    "hermes": HERMES,
    "llama": LLAMA,
    "mistral": MISTRAL,
    "mistral-named": NAMED,
    "plain": GEMMA,
}

WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}
CLOCK: dict[str, Any] = {"type": "function", "function": {"name": "clock"}}
ARGUMENTS = '{"city": "Zürich \\"{\\" a}b"}'
"""With a quote, braces in a string, and a character of two bytes."""


def face(template: str) -> Served:
    """The fake's vocabulary, and the template of a family."""
    return replace(served.fake("m"), chat_template=template)


def marked(template: str, *names: str) -> Served:
    """With special tokens of these names, from 257 on."""
    plain = face(template)
    words = plain.vocabulary
    ids = range(len(words), len(words) + len(names))
    table = (*words.tokens, *(name.encode() for name in names))
    vocabulary = Vocabulary(table, words.special | set(ids), words.bos, words.end)
    return replace(plain, vocabulary=vocabulary)


def said(*parts: str | int, size: int = 5, reason: FinishReason = "stop") -> list[Step]:
    """The steps of an answer: texts in pieces of some characters, and ids of special tokens."""
    steps: list[Step] = [started()]
    for part in parts:
        if isinstance(part, int):
            steps.append(replace_id(len(steps) - 1, part))
        else:
            for at in range(0, len(part), size):
                steps.append(token(len(steps) - 1, part[at : at + size]))
    return [*steps, done(len(steps) - 1, reason=reason)]


def replace_id(position: int, number: int) -> Step:
    import msgspec

    return msgspec.structs.replace(token(position, ""), id=number)


def speaker(known: Served, steps: Sequence[Step]) -> ScriptedEdge:
    edge = ScriptedEdge(steps)
    edge.face = known
    return edge
