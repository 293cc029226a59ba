"""What a request says of tools: the functions, whether they must be called, how many at once."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from outrider.edge.api.fields import Fields, refuse, unsupported

MAX_TOOLS = 128
MAX_DEPTH = 64
"""Nesting of a schema, of arguments, of any JSON that is handed on."""
_NAME = re.compile(r"[A-Za-z0-9_.:-]{1,64}")


@dataclass(frozen=True, slots=True)
class Function:
    """One tool; `parameters` is a JSON schema."""

    name: str
    parameters: Mapping[str, Any]
    strict: bool
    """Refuse a schema that can not be kept to the letter."""
    raw: Mapping[str, Any]
    """As the template gets it."""


@dataclass(frozen=True, slots=True)
class Tools:
    """Functions that may be called; there is at least one."""

    functions: tuple[Function, ...]
    choice: str = "auto"
    """`auto`, `required`, or `named`: then the one function that is left is called once."""
    parallel: bool = True

    @property
    def names(self) -> frozenset[str]:
        return frozenset(function.name for function in self.functions)


def tools(fields: Fields) -> Tools | None:
    """`tools`, `tool_choice` and `parallel_tool_calls`; None when nothing may be called."""
    functions = _functions(fields.raw("tools"))
    choice = fields.raw("tool_choice")
    parallel = fields.flag("parallel_tool_calls")
    if not functions:
        if choice not in (None, "none", "auto"):
            raise refuse("tool_choice", "none or auto where there are no tools")
        return None
    if isinstance(choice, dict):
        return Tools((_chosen(choice, functions),), "named", parallel=False)
    found = fields.choice("tool_choice", ("none", "auto", "required", "any")) or "auto"
    if found == "none":
        return None
    return Tools(functions, "auto" if found == "auto" else "required", parallel is not False)


def _functions(value: Any) -> tuple[Function, ...]:
    if value is None:
        return ()
    if not isinstance(value, list) or len(value) > MAX_TOOLS:
        raise refuse("tools", f"a list of at most {MAX_TOOLS} tools")
    found = tuple(_function(item, f"tools[{i}]") for i, item in enumerate(value))
    if len({function.name for function in found}) < len(found):
        raise refuse("tools", "functions of different names")
    return found


def _function(value: Any, at: str) -> Function:
    if not isinstance(value, dict):
        raise refuse(at, "an object with type and function")
    if value.get("type", "function") != "function":
        raise unsupported(f"{at}.type", "send tools of type function")
    inner = value.get("function")
    if not isinstance(inner, dict):
        raise refuse(f"{at}.function", "an object with name and parameters")
    fields = Fields(inner, f"{at}.function.")
    parameters = schema(inner.get("parameters"), f"{at}.function.parameters")
    strict = fields.flag("strict") or False
    raw: dict[str, Any] = {"name": function_name(inner.get("name"), f"{at}.function.name")}
    description = fields.text("description")
    if description is not None:
        raw["description"] = description
    raw["parameters"] = parameters
    return Function(raw["name"], parameters, strict, {"type": "function", "function": raw})


def function_name(value: Any, at: str) -> str:
    """A function's name. Raises InvalidRequest."""
    if not isinstance(value, str) or _NAME.fullmatch(value) is None:
        raise refuse(at, "1 to 64 letters, digits, or _ - . :")
    return value


def schema(value: Any, at: str) -> Mapping[str, Any]:
    """A JSON schema of an object; without one, of an object without properties."""
    if value is None:
        return {"type": "object", "properties": {}, "additionalProperties": False}
    found = json_object(value, at)
    if found.get("type", "object") != "object":
        raise refuse(f"{at}.type", "object: arguments have names")
    return {"type": "object", **found}


def json_object(value: Any, at: str) -> Mapping[str, Any]:
    """An object that can be written as JSON and is not nested too deep."""
    if not isinstance(value, dict):
        raise refuse(at, "an object")
    if deeper(value, MAX_DEPTH):
        raise refuse(at, f"nested at most {MAX_DEPTH} deep")
    try:
        json.dumps(value, allow_nan=False, ensure_ascii=False).encode()
    except ValueError:
        raise refuse(at, "JSON without NaN, infinities and lone surrogates") from None
    return value


def deeper(value: Any, limit: int) -> bool:
    """Whether a JSON value is nested deeper than `limit`; without recursion."""
    layer: list[Any] = [value]
    for _ in range(limit + 1):
        inner: list[Any] = []
        for item in layer:
            if isinstance(item, dict):
                inner.extend(item.values())
            elif isinstance(item, list):
                inner.extend(item)
        if not inner:
            return False
        layer = inner
    return True


def _chosen(choice: Mapping[str, Any], functions: tuple[Function, ...]) -> Function:
    inner = choice.get("function")
    if choice.get("type", "function") != "function" or not isinstance(inner, dict):
        raise refuse("tool_choice", "none, auto, required, or an object that names a function")
    wanted = inner.get("name")
    for function in functions:
        if function.name == wanted:
            return function
    raise refuse("tool_choice.function.name", "the name of one of the tools")


# --- the turns of a conversation with tools ----------------------------------------------------


def turn_calls(value: Any, at: str) -> list[dict[str, Any]]:
    """`tool_calls` of an assistant's message, with arguments as an object, as templates
    expect them; arguments that are no JSON stay text."""
    if not isinstance(value, list) or len(value) > MAX_TOOLS:
        raise refuse(at, f"a list of at most {MAX_TOOLS} calls")
    return [_turn_call(item, f"{at}[{i}]") for i, item in enumerate(value)]


def _turn_call(value: Any, at: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise refuse(at, "an object with id and function")
    fields = Fields(value, f"{at}.")
    if value.get("type", "function") != "function":
        raise unsupported(f"{at}.type", "send calls of type function")
    inner = value.get("function")
    if not isinstance(inner, dict):
        raise refuse(f"{at}.function", "an object with name and arguments")
    called = function_name(inner.get("name"), f"{at}.function.name")
    arguments = _arguments(inner.get("arguments"), f"{at}.function.arguments")
    found: dict[str, Any] = {"type": "function", "function": {"name": called}}
    found["function"]["arguments"] = arguments
    identity = fields.text("id")
    return found if identity is None else {"id": identity, **found}


def _arguments(value: Any, at: str) -> Any:
    if value is None:
        return {}
    if isinstance(value, dict):
        return json_object(value, at)
    text = Fields({"arguments": value}, at.removesuffix("arguments")).text("arguments")
    try:
        found = json.loads(text or "{}")
    except (ValueError, RecursionError):
        return text
    return json_object(found, at) if isinstance(found, dict) else text
