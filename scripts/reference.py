"""Pages of the manual that the code writes: one function a page, Markdown out.

What a class, field or flag means is said once, in the code; here it is only set.
"""

from __future__ import annotations

import ast
import inspect
import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import MISSING
from functools import cache
from pathlib import Path
from typing import Any

from house import ROOT

NOTICE = "<!-- Written by scripts/docs from the code; change it there. -->\n\n"


def table(head: str, rows: Iterable[Iterable[object]]) -> str:
    """Markdown; `head` names the columns with `|` between them."""
    columns = head.split("|")
    lines = [columns, ["---"] * len(columns), *([cell(c) for c in row] for row in rows)]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines) + "\n"


def cell(value: object) -> str:
    """One line that does not end its column."""
    return re.sub(r"\s+", " ", str(value)).replace("|", "\\|").strip()


def code(text: object) -> str:
    return f"`{text}`" if str(text) else ""


def paragraph(text: str | None) -> str:
    return inspect.cleandoc(text or "").replace("<", "&lt;") + "\n\n" if text else ""


# --- events ------------------------------------------------------------------------------------


def classes(path: Path) -> dict[str, ast.ClassDef]:
    """The classes of a file, in its order."""
    tree = ast.parse(path.read_text("utf-8"))
    return {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}


def fields(node: ast.ClassDef) -> Iterator[tuple[str, str, str, str]]:
    """Name, type, default, and the text below, of each field of a class."""
    for here, after in zip(node.body, [*node.body[1:], None], strict=True):
        if isinstance(here, ast.AnnAssign) and isinstance(here.target, ast.Name):
            said = ""
            if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
                said = str(after.value.value)
            default = "" if here.value is None else ast.unparse(here.value)
            yield here.target.id, ast.unparse(here.annotation), default, said


def tag(node: ast.ClassDef) -> str:
    """What `type` says on the wire; empty for a part of others."""
    found = [word.value for word in node.keywords if word.arg == "tag"]
    return str(found[0].value) if found and isinstance(found[0], ast.Constant) else ""


def structs(path: str) -> str:
    """All classes of a file with their fields."""
    found = classes(ROOT / path)
    text = ""
    for name, node in found.items():
        if name.startswith("_") or not list(fields(node)):
            continue
        wire = "" if tag(node) == "True" else tag(node)
        text += f"### {name}\n\n" + (f"`type` is `{wire}`.\n\n" if wire else "")
        text += paragraph(ast.get_docstring(node))
        rows = ((code(n), code(t), code(d), said) for n, t, d, said in fields(node))
        text += table("field|type|default|means", rows)
    return text


def events() -> str:
    parts = (
        ("Of one answer", "protocol/stream.py", "On `/outrider/v1/generate`, and in the SDK."),
        (
            "What the daemon did for it",
            "protocol/trace.py",
            'Between them with `trace="events"`.',
        ),
        (
            "Of daemon and cloud",
            "protocol/events.py",
            "On `/outrider/v1/events`, the bus, and in records. Every one has `v` (schema), "
            "`source`, `at` (Unix seconds) and `t_ms` (the producer's monotonic clock).",
        ),
    )
    text = NOTICE + "# Events\n\n"
    for title, path, where in parts:
        said = ast.get_docstring(ast.parse((ROOT / path).read_text("utf-8")))
        text += f"## {title}\n\n{where}\n\n{paragraph(said)}{structs(path)}"
    return text


# --- the command line --------------------------------------------------------------------------


def commands() -> str:
    from outrider.cli.app import VERBS, make

    app = make()
    text = NOTICE + "# Command line reference\n\n"
    text += "Every verb and flag. [The command line](../cli.md) tells how they are used.\n\n"
    for verb in VERBS:
        text += "".join(command((verb,), app[verb]))
    return text


def command(words: tuple[str, ...], app: Any) -> Iterator[str]:
    """A verb, and the verbs below it."""
    yield f"{'#' * (1 + len(words))} outrider {' '.join(words)}\n\n"
    yield paragraph(str(app.help or ""))
    rows = list(flags(app)) if app.default_command is not None else []
    if rows:
        yield table("argument|takes|default|means", rows)
    for name in app:
        if not name.startswith("-"):
            yield from command((*words, name), app[name])


def flags(app: Any) -> Iterator[tuple[str, str, str, str]]:
    helps = _helps(app)
    for argument in app.assemble_argument_collection():
        if not argument.show or not argument.names:
            continue
        names = [name for name in argument.names if not name.startswith("--no-")]
        key = argument.names[0].lstrip("-").replace("-", "_").lower()
        said = argument.parameter.help or helps.get(key, "")
        yield (
            ", ".join(map(code, names)),
            code(hint(argument.hint)),
            code(default(argument)),
            said,
        )


def default(argument: Any) -> str:
    """As one would type it; empty where there is none, or it must be given."""
    value = argument.field_info.default
    if argument.required or value in (inspect.Parameter.empty, MISSING, None, "", ()):
        return ""
    if value is False:
        return "off"
    if isinstance(value, tuple | list):
        return " ".join(map(str, value))
    return "on" if value is True else str(value)


def hint(kind: Any) -> str:
    """A type as a reader of a manual knows it."""
    text = kind.__name__ if isinstance(kind, type) else str(kind)
    text = re.sub(r"(typing|collections\.abc|pathlib|outrider(\.\w+)+)\.", "", text)
    text = re.sub(
        r"Literal\[([^\]]*)\]", lambda m: m[1].replace("'", "").replace(", ", " or "), text
    )
    text = re.sub(r"<class '([^']*)'>", r"\1", text)
    for long, short in ((" | None", ""), ("bool", "flag"), ("str", "text"), ("NoneType", "")):
        text = text.replace(long, short)
    return text


def _helps(app: Any) -> dict[str, str]:
    """What the docstrings of the verb's function, and of the values in it, say of each name."""
    found: dict[str, str] = {}
    function = app.default_command
    try:
        source = inspect.getsource(function)
    except (OSError, TypeError):
        return found
    doc = inspect.getdoc(function) or ""
    for name, said in re.findall(r"^ {4}(\w+): (.*(?:\n {8}.*)*)", doc, re.M):
        found[name] = said
    module = inspect.getmodule(function)
    for name in set(re.findall(r"\b([A-Z]\w+)\b", source)):
        kind = getattr(module, name, None)
        if isinstance(kind, type) and kind.__module__.startswith("outrider"):
            found.update(_of_class(kind))
    return found


def _of_class(kind: type) -> dict[str, str]:
    try:
        node = ast.parse(inspect.cleandoc(inspect.getsource(kind))).body[0]
    except (OSError, TypeError, SyntaxError, IndexError):
        return {}
    if not isinstance(node, ast.ClassDef):
        return {}
    return {name: said for name, _, _, said in fields(node) if said}


# --- errors ------------------------------------------------------------------------------------

SOURCES = ("outrider", "edge", "cloud", "protocol", "partitioner", "privacy")
LINKED = {"edge", "cloud", "protocol", "partitioner", "privacy"}
PARTS = ("what", "why", "effect", "todo")


def sources() -> Iterator[Path]:
    """Every file of the package once: links into it are other names of the same files."""
    for folder in SOURCES:
        for path in sorted((ROOT / folder).rglob("*.py")):
            inner = path.relative_to(ROOT).parts
            if inner[0] == "outrider" and (inner[1] in LINKED or inner[1] == "testing"):
                continue
            yield path


def said(node: ast.expr) -> str:
    """The text of an argument; what is put in at run time stands as an ellipsis."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(
            str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values
        )
    if isinstance(node, ast.BinOp):
        return said(node.left) + said(node.right)
    return "…"


@cache
def raised() -> dict[str, set[tuple[str, ...]]]:
    """Class name to (what, why, effect, todo) of every place in the code that makes one."""
    found: dict[str, set[tuple[str, ...]]] = {}
    for path in sources():
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.args:
                named = {word.arg: said(word.value) for word in node.keywords if word.arg}
                what = said(node.args[0])
                if what.strip("… "):
                    rest = (named.get(part, "") for part in PARTS[1:])
                    found.setdefault(node.func.id, set()).add((what, *rest))
    return found


def kinds(base: Any = None) -> list[Any]:
    """The tree of `outrider/errors.py`, in its order."""
    from outrider import errors

    base = base or errors.OutriderError
    here = [kind for kind in base.__subclasses__() if kind.__module__ == errors.__name__]
    return [base, *(kind for child in here for kind in kinds(child))]


def meanings() -> dict[str, str]:
    from outrider import errors

    found = re.findall(r"^[│├└─ ]*(\w+) +(?:\d{3} *)?(\S.*)?$", errors.__doc__ or "", re.M)
    return {name: text.strip() for name, text in found if hasattr(errors, name)}


@cache
def tested() -> dict[str, str]:
    """Class name to a test file that reaches it: it expects the class, or compares its code."""
    found: dict[str, str] = {}
    names = {kind.__name__: kind.__name__ for kind in kinds()}
    names |= {kind.code: kind.__name__ for kind in kinds()}
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        if path.name.startswith("test_docs"):
            continue
        for word in expected(ast.parse(path.read_text("utf-8"))):
            if word in names:
                found.setdefault(names[word], str(path.relative_to(ROOT)))
    return found


def expected(tree: ast.AST) -> Iterator[str]:
    """Names in `raises`, `isinstance` and the rows of parametrized tests; texts in comparisons."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else ""
            called = node.func.id if isinstance(node.func, ast.Name) else called
            if called in ("raises", "isinstance", "parametrize", "refused", "fails"):
                yield from words(node)
        elif isinstance(node, ast.Compare | ast.MatchClass):
            yield from words(node)


def words(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def errors() -> str:
    meant, made, reached = meanings(), raised(), tested()
    text = NOTICE + "# Error index\n\n"
    text += "Every code, and every text the code can say under it; an ellipsis stands for what is "
    text += "put in at run time. How errors travel is told in [errors](../errors.md).\n\n"
    for kind in kinds():
        name = kind.__name__
        parent = kind.__mro__[1].__name__
        text += f"## {kind.code}\n\n{meant.get(name, '').capitalize()}.\n\n".replace(
            "\n\n.\n", "\n"
        )
        text += f"`{name}`, a kind of `{parent}`: HTTP {kind.http_status}, exit code "
        text += f"{kind.exit_code}, gRPC {kind.grpc_status}."
        test = reached.get(name)
        text += f" Reached by [{test}](../../{test}).\n\n" if test else "\n\n"
        rows = sorted(made.get(name, ()))
        if rows:
            text += table("what|why|effect|what to do", rows)
    return text


# --- the SDK -----------------------------------------------------------------------------------


def sdk() -> str:
    import outrider

    text = NOTICE + "# SDK reference\n\n"
    text += paragraph(inspect.getdoc(__import__("outrider.sdk", fromlist=["x"])))
    text += "`AsyncClient` and `AsyncStream` have the same methods, to be awaited.\n\n"
    for name in outrider.__all__:
        value = getattr(outrider, name)
        if isinstance(value, type) and not name.startswith("Async"):
            text += "".join(public(name, value))
        elif inspect.isfunction(value):
            text += f"## {name}\n\n```\n{name}{signature(value)}\n```\n\n" + paragraph(
                value.__doc__
            )
    return text


def public(name: str, kind: type) -> Iterator[str]:
    yield f"## {name}\n\n" + paragraph(kind.__doc__ if _own_doc(kind) else "")
    rows = [(code(n), code(t), s) for n, t, _, s in _class_fields(kind) if not n.startswith("_")]
    if rows:
        yield table("field|type|means", rows)
    for method, value in vars(kind).items():
        if method.startswith("_"):
            continue
        if isinstance(value, property) and value.__doc__:
            yield f"**{method}**: {cell(value.__doc__)}\n\n"
        elif inspect.isfunction(value):
            yield f"```\n{method}{signature(value)}\n```\n\n" + paragraph(value.__doc__)


def signature(function: Callable[..., Any]) -> str:
    text = re.sub(r"\(self(, )?", "(", str(inspect.signature(function)).replace("'", ""))
    text = re.sub(r"<(function|built-in function) (\w+)( at \w+)?>", r"\2", text)
    return text.replace("daemon.Event", "events.Event")


def _own_doc(kind: type) -> bool:
    doc = kind.__doc__ or ""
    return not doc.startswith(f"{kind.__name__}(")


def _class_fields(kind: type) -> Iterator[tuple[str, str, str, str]]:
    try:
        tree = ast.parse(inspect.cleandoc(inspect.getsource(kind)))
    except (OSError, TypeError, SyntaxError):
        return
    if isinstance(tree.body[0], ast.ClassDef):
        yield from fields(tree.body[0])


# --- the wire ----------------------------------------------------------------------------------


def wire() -> str:
    proto = (ROOT / "protocol" / "wire.proto").read_text("utf-8")
    text = NOTICE + "# The wire\n\n"
    text += "What it means, in which order it may be said, and how large it is: "
    text += "[the specification](../../protocol/SPEC.md). Here are the messages of "
    text += "[wire.proto](../../protocol/wire.proto), package `outrider.v1`.\n\n"
    pending: list[str] = []
    rows: list[tuple[str, str, str, str]] = []
    for line in proto.splitlines():
        bare = line.strip()
        if match := re.match(r"(message|service|enum) (\w+)", line):
            text += f"## {match[2]}\n\n" + paragraph(" ".join(pending))
            pending, rows = [], []
        elif bare.startswith("//"):
            pending.append(bare[2:].strip())
        elif line == "}":
            text += table("field|type|number|means", rows) if rows else ""
            rows, pending = [], []
        elif match := re.match(
            r"(?:rpc (\w+)\s*\(([^)]*)\) returns \(([^)]*)\)"
            r"|((?:repeated |optional )?[\w.]+ )?(\w+) = (\d+))[^/]*(?://\s*(.*))?",
            bare,
        ):
            note = match[7] or " ".join(pending)
            pending = []
            if match[1]:
                rows.append((code(match[1]), f"{match[2]} → {match[3]}", "", note))
            else:
                rows.append((code(match[5]), (match[4] or "").strip(), match[6], note))
        elif not bare:
            pending = []
    return text


# --- where it loses ----------------------------------------------------------------------------

WORDS: dict[str, Callable[[dict[str, Any]], str]] = {
    "rtt": lambda c: (
        f"round trip {c['rtt_ms']:g} ms: {c['arm']} takes {c['ratio']:.3f} of {c['behind']}'s time"
    ),
    "draft": lambda c: f"{c['figure']}: {c['median']:.3f}",
    "offload": lambda c: f"round {c['round']}: {c['ratio']:.2f} of {c['behind']}'s time",
    "placement": lambda c: (
        f"{c['kind']}, {c['cell']}: auto is {c['regret']:.1%} behind the best, {c['best']}"
        if c.get("regret") is not None
        else f"{c.get('kind', '')}, {c.get('cell', '')}"
    ),
    "power": lambda c: f"joules / {c['over']}: {c['ratio']:.3f}",
    "split": lambda c: f"{c['what']}: {c['ratio']:.2f} of the unsplit model's tokens a second",
}
MOST_CELLS = 20


def losing() -> str:
    """Every cell that lost, as the receipts say; those of one kind are counted."""
    text = ""
    for path in sorted((ROOT / "bench" / "receipts").glob("*.json")):
        receipt = json.loads(path.read_text("utf-8"))
        cells = receipt.get("losing") or []
        if not cells or path.stem not in WORDS:
            continue
        text += f"\n`outrider bench {path.stem}`\n\n"
        text += "".join(f"- {cell(WORDS[path.stem](one))}\n" for one in cells[:MOST_CELLS])
    return text


PAGES: dict[str, Callable[[], str]] = {
    "reference/cli.md": commands,
    "reference/errors.md": errors,
    "reference/events.md": events,
    "reference/sdk.md": sdk,
    "reference/wire.md": wire,
}
"""Page below docs/ to what writes it."""
