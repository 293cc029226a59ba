"""The shape of the code, printed for people (`pytest -s tests/test_shape.py`). Blocks nothing."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from statistics import median, quantiles

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("outrider", "edge", "cloud", "protocol", "partitioner", "privacy", "tests")


def lengths(source: str) -> list[int]:
    """Lines of each function's code, its docstring left out."""
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    return [code_lines(n) for n in ast.walk(ast.parse(source)) if isinstance(n, functions)]


def code_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines from `def` to the end without those of the docstring."""
    last = function.end_lineno or function.lineno
    total = last - function.lineno + 1
    first = function.body[0]
    if ast.get_docstring(function) is None or first.end_lineno is None:
        return total
    return total - (first.end_lineno - first.lineno + 1)


def sources(folder: str) -> Iterator[str]:
    """Python sources of a folder that people wrote; links are not followed."""
    root = ROOT / folder
    for path in sorted(root.rglob("*.py")):
        inside = [p for p in path.parents if p.is_relative_to(root) and p != root]
        if "_pb2" not in path.name and not any(p.is_symlink() for p in inside):
            yield path.read_text()


def row(folder: str) -> str:
    """One line of the table."""
    files = list(sources(folder))
    found = sorted(n for text in files for n in lengths(text))
    if len(found) < 2:
        return f"{folder:<12} {len(files):5}"
    p90 = quantiles(found, n=10)[-1]
    size = median(text.count("\n") for text in files)
    return (
        f"{folder:<12} {len(files):5} {size:9.0f} {len(found):9} "
        f"{median(found):6.0f} {p90:4.0f} {found[-1]:7}"
    )


def test_shape(capsys: pytest.CaptureFixture[str]) -> None:
    table = [row(folder) for folder in FOLDERS]
    with capsys.disabled():
        print("\nfolder       files lines/p50 functions median  p90 longest")
        print("\n".join(table))
    assert len(table) == len(FOLDERS)


def test_lengths_leave_out_docstrings() -> None:
    source = 'def f():\n    """One.\n\n    Two.\n    """\n    return 1\n'
    assert lengths(source) == [2]
