"""The generated pages say all that the code has, and every link of the manual leads somewhere."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Iterator
from functools import cache
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec
import pytest

import outrider
from outrider.cli.app import VERBS
from outrider.protocol import events, stream, trace

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def scripts() -> Iterator[Any]:
    """Loads a script of the house as a module."""
    before = list(sys.path)
    sys.path.insert(0, str(ROOT / "scripts"))

    @cache
    def load(name: str) -> ModuleType:
        loader = SourceFileLoader(f"docs_{name}", str(ROOT / "scripts" / name))
        spec = importlib.util.spec_from_loader(loader.name, loader)
        assert spec is not None
        module = importlib.util.module_from_spec(spec)
        loader.exec_module(module)
        return module

    yield load
    sys.path[:] = before


def test_every_error_is_reached_by_a_test(scripts: Any) -> None:
    reference = scripts("reference.py")
    reached = reference.tested()
    assert [kind.code for kind in reference.kinds() if kind.__name__ not in reached] == []


def test_the_search_for_tests_wants_more_than_a_name(scripts: Any) -> None:
    import ast

    reference = scripts("reference.py")
    code = (
        "from x import Overloaded\nOverloaded()\nwith raises(EngineFull): pass\nassert c == 'link'"
    )
    assert {"EngineFull", "link"} <= set(reference.expected(ast.parse(code)))
    assert "Overloaded" not in set(reference.expected(ast.parse(code)))


def test_the_error_index_has_every_code_and_what_it_says(scripts: Any) -> None:
    reference = scripts("reference.py")
    page = reference.errors()
    for kind in reference.kinds():
        part = page.partition(f"\n## {kind.code}\n")[2].partition("\n## ")[0]
        assert f"exit code {kind.exit_code}" in part and "Reached by" in part
    assert "| … is not a loopback address |" in page


def test_every_verb_and_flag_is_listed(scripts: Any) -> None:
    page = scripts("reference.py").commands()
    assert [verb for verb in VERBS if f"## outrider {verb}\n" not in page] == []
    for row in ("| `--temperature` | `float` |", "| `--max-tokens` | `int` | `256` |"):
        assert row in page


def test_every_event_is_listed_with_its_fields(scripts: Any) -> None:
    page = scripts("reference.py").events()
    for union in (stream.StreamEvent, trace.TraceEvent, events.Event):
        for kind in union.__args__:
            # Two unions have a Decision and a Fallback.
            parts = page.split(f"### {kind.__name__}\n\n`type` is `{_tag(kind)}`.")[1:]
            said = "".join(part.partition("\n### ")[0] for part in parts)
            for field in kind.__struct_fields__:
                shared = field in ("v", "source", "at", "t_ms", "choice")
                assert shared or f"| `{field}` |" in said, kind


def _tag(kind: Any) -> str:
    return str(msgspec.inspect.type_info(kind).tag)  # type: ignore[attr-defined]


def test_everything_public_says_what_it_is() -> None:
    silent = []
    for name in outrider.__all__:
        value = getattr(outrider, name)
        if not (inspect.isclass(value) or inspect.isfunction(value)):
            continue
        if name in ("Client", "AsyncClient", "Stream", "AsyncStream"):
            methods = [m for m in vars(value) if not m.startswith("_")]
            silent += [f"{name}.{m}" for m in methods if not getattr(value, m).__doc__]
        own = (value.__doc__ or "").startswith(f"{name}(")
        silent += [name] if not value.__doc__ or own else []
    assert silent == []


def test_links_lead_to_pages_and_headings(scripts: Any) -> None:
    assert list(scripts("docs").broken()) == []


def test_a_broken_link_is_seen(
    scripts: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    docs = scripts("docs")
    page = tmp_path / "page.md"
    page.write_text("# One `word`\n[a](gone.md) [b](page.md#one-word) [c](#two) [d](https://x.y)\n")
    monkeypatch.setattr(docs, "ROOT", tmp_path)
    monkeypatch.setattr(docs, "DOCS", tmp_path)
    monkeypatch.setattr(docs, "OUTSIDE", ())
    found = list(docs.broken())
    assert found == ["page.md: gone.md leads nowhere", "page.md: #two names no heading"]


def test_examples_in_pages_are_the_files(scripts: Any) -> None:
    tutorial = (ROOT / "docs" / "tutorial.md").read_text("utf-8")
    for path in sorted((ROOT / "examples").glob("[0-9]*.py")):
        assert path.read_text("utf-8") in tutorial, path.name


def test_a_page_that_is_out_of_date_is_seen(
    scripts: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    docs = scripts("docs")
    reference = importlib.import_module("reference")
    monkeypatch.setattr(reference, "PAGES", {"reference/x.md": lambda: "made"})
    page = tmp_path / "page.md"
    page.write_text("x\n<!-- written: states -->\nold\n<!-- end of written -->\n")
    monkeypatch.setattr(docs, "DOCS", tmp_path)
    assert {page, tmp_path / "reference" / "x.md"} <= set(docs.stale())
    for path, text in docs.pages().items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert docs.stale() == {}
