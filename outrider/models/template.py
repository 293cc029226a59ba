"""Chat templates: messages to the text that the model was trained on.

Templates come with a model, maybe from far away, so they run in jinja2's
immutable sandbox, set up as in transformers (trimmed blocks, loop controls,
`raise_exception`, `strftime_now`, `tojson`), without loader, and under a budget:
steps of loops, calls, and characters made are counted, so that no template can
hang or fill the memory. Recursive loops are refused, since they escape the count.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, cast

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

from outrider.errors import InvalidRequest, ModelCorrupt
from outrider.models import calls
from outrider.models.check.gguf import check_gguf
from outrider.models.source import ModelFiles
from outrider.models.vocabulary import MAX_TOKENIZER

MAX_SOURCE = 256 << 10
"""Characters of a template."""
MAX_STEPS = 200_000
"""Loop steps and calls of one rendering."""
MAX_CHARACTERS = 32 << 20
"""Characters of the result, and of all that is put together on the way."""
MAX_BITS = 4096
"""Of a whole number."""

Message = Mapping[str, object]
Turn = Literal["assistant", "none"]
"""`assistant`: end with the opening of the model's turn; `none`: end with the last message."""

PLAIN = "plain"


class ChatTemplate:
    """A compiled template. Raises ModelCorrupt or ModelUnsupported when it can not be compiled.

    `source` None is the plain one: the contents, one after the other, with an empty
    line between. It suits models without a template, such as code completers.
    """

    def __init__(self, source: str | None, tokens: Mapping[str, str] | None = None) -> None:
        self.name = PLAIN if source is None else "model"
        self.source = source
        self._tokens = dict(tokens or {})
        self._compiled = None if source is None else _compile(source)

    def render(
        self,
        messages: Sequence[Message],
        *,
        now: datetime,
        turn: Turn = "assistant",
        tools: Sequence[Mapping[str, object]] | None = None,
        extra: Mapping[str, object] | None = None,
    ) -> str:
        """The prompt. `now` is what `strftime_now` tells; `extra` are the template's own switches.

        A template that knows no tools gets them, calls and results in plain words. Raises
        InvalidRequest when the template refuses the messages or runs over its budget.
        """
        if _of_tools(messages, tools) and not calls.knows_tools(self.source or ""):
            messages, tools = calls.spelled(messages, tools), None
        if self._compiled is None:
            return _plain(messages)
        return _rendered(
            self._compiled,
            {
                **self._tokens,
                **(extra or {}),
                "messages": [dict(message) for message in messages],
                "tools": list(tools) if tools else None,
                "documents": None,
                "add_generation_prompt": turn == "assistant",
                "strftime_now": lambda form: now.strftime(str(form)[:256]),
            },
        )


def load(files: ModelFiles) -> ChatTemplate:
    """A model's template: chat_template.jinja, tokenizer_config.json, or GGUF metadata;
    the plain one when there is none."""
    if files.kind == "gguf":
        header = check_gguf(files.path)
        names = header.strings("tokenizer.ggml.tokens")
        tokens = {}
        for role in ("bos", "eos"):
            number = header.number(f"tokenizer.ggml.{role}_token_id")
            if number is not None and 0 <= number < len(names):
                tokens[f"{role}_token"] = names[number].decode("utf-8", "replace")
        return ChatTemplate(header.text("tokenizer.chat_template"), tokens)
    config = _tokenizer_config(files.sibling("tokenizer_config.json"))
    alone = files.sibling("chat_template.jinja")
    source = _limited(alone) if alone is not None else _chosen(config.get("chat_template"))
    return ChatTemplate(source, _named_tokens(config))


def _limited(path: Path) -> str:
    if path.stat().st_size > 4 * MAX_SOURCE:
        raise _corrupt("it is too large")
    return path.read_bytes().decode("utf-8", "replace")


def _tokenizer_config(path: Path | None) -> dict[str, object]:
    if path is None:
        return {}
    try:
        found = json.loads(path.read_bytes()) if path.stat().st_size <= MAX_TOKENIZER else None
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise ModelCorrupt("tokenizer_config.json is corrupt", why="it is no JSON object")
    return found


def _chosen(found: object) -> str | None:
    """A text, or of several named ones the one called default."""
    if isinstance(found, list):
        named = {item.get("name"): item.get("template") for item in found if isinstance(item, dict)}
        found = named.get("default")
    return found if isinstance(found, str) else None


def _named_tokens(config: Mapping[str, object]) -> dict[str, str]:
    """bos_token and its like, written as text or as an object with `content`."""
    found: dict[str, str] = {}
    for name, value in config.items():
        text = value.get("content") if isinstance(value, dict) else value
        if name.endswith("_token") and isinstance(text, str):
            found[name] = text
    return found


def _of_tools(messages: Sequence[Message], tools: Sequence[Mapping[str, object]] | None) -> bool:
    """Whether the conversation is about tools at all."""
    return bool(tools) or any(
        message.get("role") == "tool" or message.get("tool_calls") for message in messages
    )


def _plain(messages: Sequence[Message]) -> str:
    return "\n\n".join(_text_of(message.get("content")) for message in messages)


def _text_of(content: object) -> str:
    """A text, or the text parts of a list."""
    if isinstance(content, list):
        return "".join(_text_of(part.get("text")) for part in content if isinstance(part, dict))
    return content if isinstance(content, str) else ""


def _corrupt(why: str) -> ModelCorrupt:
    return ModelCorrupt(
        "the model's chat template can not be used",
        why=why,
        effect="no chat can be rendered",
        todo="repair the template, or use completions instead of chat",
    )


def _compile(source: str) -> jinja2.Template:
    if len(source) > MAX_SOURCE:
        raise _corrupt(f"it has {len(source)} characters, at most {MAX_SOURCE} are read")
    try:
        return _Environment().from_string(source)
    except jinja2.TemplateSyntaxError as error:
        raise _corrupt(f"line {error.lineno}: it is no valid template") from None
    except (RecursionError, MemoryError, SyntaxError, ValueError, OverflowError):
        raise _corrupt("it is nested too deep, or holds impossible numbers") from None
    except jinja2.TemplateError:
        raise _corrupt("it uses what the sandbox does not have") from None


def _rendered(template: jinja2.Template, variables: dict[str, object]) -> str:
    budget = _Budget()
    parts = []
    try:
        for part in template.generate({**variables, _BUDGET: budget}):
            budget.made(len(part))
            parts.append(part)
    except _Raised as error:
        raise _refused(f"it says: {error.message}") from None
    except (_Spent, RecursionError, MemoryError):
        raise _refused("it ran over its budget of steps or characters") from None
    except jinja2.TemplateError:
        raise _refused("it used what the sandbox forbids, or a value that is not there") from None
    except Exception:  # noqa: BLE001  A template can raise whatever Python can.
        raise _refused("it failed on these messages") from None
    return "".join(parts)


def _refused(why: str) -> InvalidRequest:
    return InvalidRequest(
        "the chat template refused the messages",
        param="messages",
        why=why,
        effect="the request was not started",
        todo="check the roles and their order",
    )


# --- the sandbox -------------------------------------------------------------------------------

_BUDGET = "_outrider_budget"
_FILTERS = frozenset(
    "abs attr batch capitalize count d default dictsort e escape first float forceescape groupby "
    "int items join last length list lower map max min reject rejectattr replace reverse round "
    "safe select selectattr slice sort string striptags sum title trim truncate unique upper "
    "wordcount".split()
)
"""Filters whose result is not much larger than what goes in, or is measured below."""
_GROWING = frozenset(
    "center expandtabs format format_map ljust rjust translate zfill encode".split()
)
"""Methods of texts that can make much out of nothing."""
_WIDTH = re.compile(r"\d{4}|\*")


class _Spent(Exception):
    """The budget is used up."""


class _Raised(Exception):
    """The template called raise_exception."""

    def __init__(self, message: object) -> None:
        self.message = str(message)[:200]
        super().__init__(self.message)


class _Budget:
    """What one rendering may still do."""

    def __init__(self) -> None:
        self._steps = MAX_STEPS
        self._characters = MAX_CHARACTERS

    def step(self) -> None:
        self._steps -= 1
        if self._steps < 0:
            raise _Spent

    def made(self, characters: int) -> None:
        self._characters -= characters
        if self._characters < 0:
            raise _Spent


def _of(context: Context) -> _Budget:
    found = context.resolve(_BUDGET)
    if not isinstance(found, _Budget):
        raise _Spent
    return found


class _Generation(Extension):
    """`{% generation %}` marks the model's turns for training; here it is its content."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


class _Environment(ImmutableSandboxedEnvironment):
    """The sandbox, counting."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[_Generation, "jinja2.ext.loopcontrols"],
        )
        self.filters = {name: made for name, made in self.filters.items() if name in _FILTERS}
        self.filters |= {"tojson": _to_json, "indent": _indent}
        self.filters |= {name: _measured(self.filters[name]) for name in ("join", "replace")}
        self.filters |= {"_steps": _steps, "_glue": _glue}
        self.globals |= {"raise_exception": _raise}
        del self.globals["lipsum"]

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        """Every loop counts its steps, every `~` its characters."""
        tree = super()._parse(source, name, filename)
        for loop in list(tree.find_all(nodes.For)):
            if loop.recursive:
                raise jinja2.TemplateSyntaxError("recursive loops are refused", loop.lineno)
            loop.iter = _through("_steps", loop.iter)
        for glue in list(tree.find_all(nodes.Concat)):
            glue.nodes = [_through("_glue", nodes.List(glue.nodes, lineno=glue.lineno))]
        return tree

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        _check_size(_of(context), operator, left, right)
        return super().call_binop(context, operator, left, right)

    def call(self, context: Context, called: Any, *args: Any, **named: Any) -> Any:
        budget = _of(context)
        budget.step()
        method = getattr(called, "__wrapped__", called)  # The sandbox wraps `format`.
        owner, name = getattr(method, "__self__", None), getattr(method, "__name__", "")
        if isinstance(owner, str | bytes):
            if name in _GROWING:
                raise jinja2.exceptions.SecurityError(f"texts have no {name} here")
            budget.made(_grown(owner, name, args))
        return super().call(context, called, *args, **named)


def _through(name: str, inner: nodes.Node) -> nodes.Filter:
    return nodes.Filter(cast(nodes.Expr, inner), name, [], [], None, None, lineno=inner.lineno)


def _grown(owner: str | bytes, name: str, args: tuple[Any, ...]) -> int:
    """At most how long a method of a text makes it."""
    if name == "replace" and len(args) > 1:
        return len(owner) + (len(owner) + 1) * len(args[1])
    if name == "join" and args:
        parts = list(args[0])
        return sum(len(part) for part in parts) + len(owner) * len(parts)
    return len(owner)


def _check_size(budget: _Budget, operator: str, left: Any, right: Any) -> None:
    if isinstance(left, int) and isinstance(right, int):
        _check_number(operator, left, right)
    elif operator == "*":
        many, times = (left, right) if isinstance(right, int) else (right, left)
        if isinstance(times, int) and isinstance(many, Sized):
            budget.made(len(many) * max(times, 0))
    elif operator == "+" and isinstance(left, Sized) and isinstance(right, Sized):
        budget.made(len(left) + len(right))
    elif operator == "%" and isinstance(left, str):
        if _WIDTH.search(left):
            raise _Spent
        budget.made(len(left))


def _check_number(operator: str, left: int, right: int) -> None:
    bits = left.bit_length() + right.bit_length()
    if operator == "**":
        bits = left.bit_length() * max(right, 0)
    if bits > MAX_BITS:
        raise _Spent


@jinja2.pass_context
def _steps(context: Context, items: Any) -> Any:
    """What a loop runs over, each step counted."""
    if isinstance(items, jinja2.Undefined):
        return items
    budget = _of(context)
    if isinstance(items, Sequence | Mapping | set | frozenset):
        budget.made(len(items))
        return _Counted(items, budget)
    return _counted(items, budget)


class _Counted:
    """A sized iterable, so that `loop.length` costs no copy."""

    def __init__(self, items: Sequence[Any] | Mapping[Any, Any] | Any, budget: _Budget) -> None:
        self._items = items
        self._budget = budget

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[Any]:
        return _counted(self._items, self._budget)


def _counted(items: Iterable[Any], budget: _Budget) -> Iterator[Any]:
    for item in items:
        budget.step()
        yield item


@jinja2.pass_context
def _glue(context: Context, parts: list[Any]) -> str:
    texts = [str(part) for part in parts]
    _of(context).made(sum(map(len, texts)))
    return "".join(texts)


def _measured(made: Callable[..., Any]) -> Callable[..., Any]:
    """`join` and `replace`, whose result can be far longer than their input."""
    passing = getattr(made, "jinja_pass_arg", None)

    @jinja2.pass_context
    def measured(context: Context, value: Any, *args: Any, **named: Any) -> Any:
        budget = _of(context)
        texts = [str(arg) for arg in (*args, *named.values())]
        widest = max(map(len, texts), default=0)
        count = len(str(value)) if isinstance(value, str) else len(value := list(value))
        budget.made((count + 1) * (widest + 1))
        lead = [] if passing is None else [context.eval_ctx]
        result = made(*lead, value, *args, **named)
        budget.made(len(str(result)))
        return result

    return measured


@jinja2.pass_context
def _to_json(
    context: Context,
    value: Any,
    ensure_ascii: bool = False,  # noqa: FBT001, FBT002  The signature of transformers.
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,  # noqa: FBT001, FBT002  The same.
) -> str:
    """As transformers: no HTML escapes."""
    if isinstance(indent, int) and not 0 <= indent <= 16:
        raise _Spent
    text = json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )
    _of(context).made(len(text))
    return text


@jinja2.pass_context
def _indent(
    context: Context,
    text: str,
    width: int | str = 4,
    first: bool = False,  # noqa: FBT001, FBT002  The signature of jinja2.
    blank: bool = False,  # noqa: FBT001, FBT002  The same.
) -> str:
    """jinja2's, measured before it is made."""
    lead = width if isinstance(width, str) else " " * min(max(width, 0), 256)
    lines = str(text).split("\n")
    _of(context).made(len(str(text)) + len(lead) * len(lines))
    made = [lead + line if line or blank else line for line in lines[1:]]
    head = lead + lines[0] if first else lines[0]
    return "\n".join([head, *made])


def _raise(message: object) -> None:
    raise _Raised(message)
