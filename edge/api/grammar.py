"""Grammars that keep an answer to its tools: free text up to a call, then the function's schema.

Written in llguidance's language: https://github.com/guidance-ai/llguidance/blob/main/docs/syntax.md
"""

from __future__ import annotations

import json
from typing import Any

from outrider.edge.api.fields import refuse, unsupported
from outrider.edge.api.structure import made, quoted
from outrider.edge.api.tools import Function, Tools
from outrider.errors import InvalidRequest
from outrider.models import grammar as grammars
from outrider.models.calls import CallForm
from outrider.protocol.constraint import Constraint
from outrider.protocol.vocabulary import Vocabulary

TEXT = r"TEXT: /(.|\n)*/"
UNLIKE_JSON = r"TEXT: /(\s*[^\s{](.|\n)*)?/"
"""Where calls are bare JSON, an answer that begins like JSON is one."""
COMPACT = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""Arguments as templates write them."""


def of_tools(
    tools: Tools, form: CallForm, vocabulary: Vocabulary, content: Constraint | None
) -> Constraint:
    """The grammar of a whole answer. `content` is what it must match where it calls nothing."""
    calls = _Calls(form, special(vocabulary, form))
    calls.rules += [_function(form, i, f) for i, f in enumerate(tools.functions)]
    calls.rules.append("call: " + " | ".join(f"call_{i}" for i in range(len(tools.functions))))
    if tools.choice == "auto":
        calls.free(_content(content), tools)
    else:
        calls.rules.append(f"start: {calls.several(tools)}")
    return made("lark", "%llguidance {}\n" + "\n".join(calls.rules) + "\n", "tools")


def special(vocabulary: Vocabulary, form: CallForm) -> dict[str, int]:
    """The form's markers that are special tokens here: they give no text."""
    wanted = {form.opener, form.closer, form.separator, form.also} - {""}
    spelled = {word.encode(): word for word in wanted}
    return {
        spelled[vocabulary.tokens[i]]: i
        for i in vocabulary.special
        if vocabulary.tokens[i] in spelled
    }


def _content(content: Constraint | None) -> str | None:
    """A rule's body for answers without a call; None for any text."""
    if content is None:
        return None
    if content.kind in ("json_object", "json_schema"):
        schema = json.loads(content.text or '{"type": "object"}')
        options = {**schema.get("x-guidance", {}), **COMPACT}
        return f"%json {json.dumps({**schema, 'x-guidance': options})}"
    raise refuse("tools", "absent beside a grammar or a choice")


def _function(form: CallForm, number: int, function: Function) -> str:
    schema = _parameters(function)
    if form.style == "named":
        return f"call_{number}: {quoted(function.name)} separator %json {schema}"
    head = quoted(f'{{"name": "{function.name}", "{form.key}": ')
    return f'call_{number}: {head} %json {schema} "}}"'


def _parameters(function: Function) -> str:
    """The schema; what can not be kept of one that is not strict is passed over."""
    options = {**COMPACT, **({} if function.strict else {"lenient": True})}
    return json.dumps({**_bare(function.parameters), "x-guidance": options})


WORDS = frozenset({"description", "title", "examples", "default", "$comment", "deprecated"})
"""Keywords that a template shows, and no mask needs."""
NAMES = frozenset({"properties", "patternProperties", "$defs", "definitions", "dependentSchemas"})
"""Keywords whose object is of names, not of keywords."""
LITERAL = frozenset({"enum", "const"})


def _bare(schema: Any) -> Any:
    """A schema without what is only said to the model: grammars have a size that they may have."""
    if isinstance(schema, list):
        return [_bare(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    found: dict[str, Any] = {}
    for key, value in schema.items():
        if key in NAMES and isinstance(value, dict):
            found[key] = {name: _bare(inner) for name, inner in value.items()}
        elif key in LITERAL:
            found[key] = value
        elif key not in WORDS:
            found[key] = _bare(value)
    return found


class _Calls:
    """The rules around the functions' own."""

    def __init__(self, form: CallForm, special: dict[str, int]) -> None:
        self._form = form
        self._special = special
        self.rules: list[str] = []
        if form.separator:
            self.rules.append(f"separator: {self._marker(form.separator)}")

    def _marker(self, word: str) -> str:
        number = self._special.get(word)
        return quoted(word) if number is None else f"<[{number}]>"

    def _gap(self) -> str:
        return f"{quoted(self._form.gap)} " if self._form.gap else ""

    def _rest(self, tools: Tools) -> str:
        """One call after its opener, or a list of them."""
        form = self._form
        if form.style == "list":
            return f'"[" call{" (" + quoted(", ") + " call)*" if tools.parallel else ""} "]"'
        closer = f" {self._gap()}{self._marker(form.closer)}" if form.closer else ""
        return f"{self._gap()}call{closer}"

    def several(self, tools: Tools) -> str:
        """Calls and nothing else, at least one."""
        form = self._form
        if not form.opener:
            number = self._special.get(form.also)
            return "call" if number is None else f"<[{number}]>? call"
        one = f"{self._marker(form.opener)} {self._rest(tools)}"
        return f"{one}{self._more(tools)}"

    def _more(self, tools: Tools) -> str:
        form = self._form
        if not tools.parallel or form.style == "list":
            return ""
        return f" ({self._gap()}{self._marker(form.opener)} {self._rest(tools)})*"

    def free(self, content: str | None, tools: Tools) -> None:
        """Text, and then perhaps calls; or an answer that keeps to `content`, or calls alone."""
        form = self._form
        if content is not None:
            self.rules += [f"start: content | {self.several(tools)}", f"content: {content}"]
        elif not form.opener:
            self.rules += [f"start: TEXT | {self.several(tools)}", UNLIKE_JSON]
        elif form.opener in self._special:
            marker = self._marker(form.opener)
            calls = f"TEXT {marker} {self._rest(tools)}{self._more(tools)}"
            self.rules += [f"start: TEXT | {calls}", TEXT]
        else:
            calls = f"head {self._rest(tools)}{self._more(tools)}"
            self.rules += [f"start: tail | {calls}", "tail: TEXT"]
            self.rules += [f"head[lazy]: TEXT {quoted(form.opener)}", TEXT]


# --- whether it can be kept --------------------------------------------------------------------


def check(constraint: Constraint, vocabulary: Vocabulary, param: str) -> None:
    """Raises InvalidRequest, naming `param`, for one that can not be kept. The first of a
    vocabulary takes half a second, a large schema some tens of milliseconds: not for the event
    loop."""
    if not grammars.masks():
        raise unsupported(param, 'pip install "outrider[edge]", which brings llguidance')
    known = grammars.grammars(vocabulary.digest, lambda: vocabulary)
    try:
        known.compile(constraint)
    except InvalidRequest as error:
        raise InvalidRequest(
            error.what, param=param, why=error.why, effect=error.effect, todo=error.todo
        ) from None


def check_tools(tools: Tools, vocabulary: Vocabulary) -> None:
    """As `check`, of each function by itself, so that the one is named that can not be kept."""
    for i, function in enumerate(tools.functions):
        param = f"tools[{i}].function.parameters"
        check(made("json_schema", _parameters(function), param), vocabulary, param)
