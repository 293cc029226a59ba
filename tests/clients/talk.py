"""What all clients ask."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from outrider.models import served
from outrider.models.served import Served

MODEL = "local/fake"
HI: Any = [{"role": "user", "content": "hi"}]
HERMES = """{% if tools %}<tools>{{ tools | tojson }}</tools>{% endif %}
{% for m in messages %}[{{ m.role }}]{{ m.content }}{% for c in m.tool_calls or [] %}
<tool_call>{{ c.function | tojson }}</tool_call>{% endfor %}{% endfor %}[assistant]"""
CITY: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"type": "string", "enum": ["Ulm", "Rom"]}},
    "required": ["city"],
    "additionalProperties": False,
}
WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {"name": "weather", "description": "The weather of a city.", "parameters": CITY},
}


def face(template: str) -> Served:
    return replace(served.fake(MODEL), chat_template=template)
