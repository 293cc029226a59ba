"""What a request wants its answer to match: JSON, a schema, a regular expression, a choice,
a grammar; in the words of OpenAI, of vLLM and of llama.cpp."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from outrider.edge.api.fields import Fields, clean, refuse, unsupported
from outrider.edge.api.tools import json_object
from outrider.errors import InvalidRequest
from outrider.protocol.constraint import MAX_BYTES, Constraint, Kind

MAX_CHOICES = 1024
FIELDS = (
    "response_format",
    "guided_json",
    "guided_regex",
    "guided_choice",
    "guided_grammar",
    "structured_outputs",
    "json_schema",
    "grammar",
)

Read = Callable[[Any, str], Constraint | None]


def structure(fields: Fields) -> tuple[Constraint, str] | None:
    """The constraint and the field that asks for it; None where the answer is free."""
    found = [
        (constraint, name)
        for name, read in _READERS.items()
        if (value := fields.raw(name)) is not None and (constraint := read(value, name)) is not None
    ]
    if len(found) > 1:
        raise refuse(found[1][1], f"absent beside {found[0][1]}: both say what the answer must be")
    return found[0] if found else None


def of_schema(schema: Any, at: str, *, strict: bool) -> Constraint:
    """A JSON schema. One that is not `strict` may hold keywords that can not be kept."""
    found = json_object(schema, at)
    if not strict:
        own = found.get("x-guidance")
        options = {"lenient": True, **(json_object(own, f"{at}.x-guidance") if own else {})}
        found = {**found, "x-guidance": options}
    return made("json_schema", json.dumps(found), at)


def made(kind: Kind, text: str, at: str) -> Constraint:
    """The constraint. Raises InvalidRequest naming `at` for a text that is too long."""
    if len(text.encode()) > MAX_BYTES:
        raise refuse(at, f"a grammar or schema of at most {MAX_BYTES} bytes")
    return Constraint(kind, text)


def _response_format(value: Any, at: str) -> Constraint | None:
    if not isinstance(value, dict):
        raise refuse(at, "an object with a type")
    kind = value.get("type")
    if kind == "text":
        return None
    if kind == "json_object":
        # vLLM and llama.cpp take a schema here too.
        schema = value.get("schema")
        return _any_object() if schema is None else of_schema(schema, f"{at}.schema", strict=False)
    if kind != "json_schema":
        raise refuse(f"{at}.type", "one of text, json_object, json_schema")
    inner = value.get("json_schema")
    if not isinstance(inner, dict):
        raise refuse(f"{at}.json_schema", "an object with name and schema")
    fields = Fields(inner, f"{at}.json_schema.")
    fields.text("name")
    strict = fields.flag("strict") or False
    if inner.get("schema") is None:
        return _any_object()
    return of_schema(inner["schema"], f"{at}.json_schema.schema", strict=strict)


def _any_object() -> Constraint:
    return Constraint("json_object")


def _json(value: Any, at: str) -> Constraint | None:
    """A schema, or the text of one."""
    if isinstance(value, str):
        try:
            value = json.loads(clean(value, at))
        except (ValueError, RecursionError) as error:
            if isinstance(error, InvalidRequest):
                raise
            raise refuse(at, "a JSON schema, as an object or as its text") from None
    return of_schema(value, at, strict=True)


def _text(value: Any, at: str) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= MAX_BYTES:
        raise refuse(at, f"text of 1 to {MAX_BYTES} characters")
    return clean(value, at)


def _regex(value: Any, at: str) -> Constraint | None:
    return made("regex", _text(value, at), at)


def _choice(value: Any, at: str) -> Constraint | None:
    if not isinstance(value, list) or not 0 < len(value) <= MAX_CHOICES:
        raise refuse(at, f"a list of 1 to {MAX_CHOICES} texts")
    words = [_text(item, f"{at}[{i}]") for i, item in enumerate(value)]
    return made("lark", "start: " + " | ".join(map(quoted, words)), at)


def quoted(text: str) -> str:
    """A literal of the grammar language."""
    return json.dumps(text, ensure_ascii=False)


def _grammar(value: Any, at: str) -> Constraint | None:
    """Lark as it is; GBNF (llama.cpp) and EBNF translated by llguidance."""
    if value == "":
        return None
    text = _text(value, at)
    try:
        from llguidance.gbnf_to_lark import any_to_lark
    except ImportError:
        raise unsupported(at, 'pip install "outrider[edge]", which brings llguidance') from None
    try:
        lark = any_to_lark(text)
    except Exception:  # noqa: BLE001  The converter raises whatever Python can.
        raise refuse(at, "a grammar in Lark or GBNF") from None
    return made("lark", lark, at)


_OUTPUTS: Mapping[str, Read] = {
    "json": _json,
    "regex": _regex,
    "choice": _choice,
    "grammar": _grammar,
}


def _outputs(value: Any, at: str) -> Constraint | None:
    """vLLM's `structured_outputs`."""
    if not isinstance(value, dict):
        raise refuse(at, "an object")
    fields = Fields(value, f"{at}.")
    found: list[Constraint] = []
    for name in fields.given():
        if name == "json_object":
            found += [_any_object()] if fields.flag(name) else []
        elif name in _OUTPUTS:
            constraint = _OUTPUTS[name](value[name], fields.named(name))
            found += [constraint] if constraint is not None else []
        elif value[name] is not False:
            raise unsupported(fields.named(name))
    if len(found) > 1:
        raise refuse(at, "an object with one of json, regex, choice, grammar, json_object")
    return found[0] if found else None


_READERS: Mapping[str, Read] = {
    "response_format": _response_format,
    "guided_json": _json,
    "guided_regex": _regex,
    "guided_choice": _choice,
    "guided_grammar": _grammar,
    "structured_outputs": _outputs,
    "json_schema": _json,
    "grammar": _grammar,
}
