"""The manual says what the code does: verbs, codes, routes, variables, links."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from outrider import errors
from outrider.cli.app import VERBS
from outrider.errors import OutriderError

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
INNER = {"OUTRIDER_FAILPOINTS"}
"""Variables of tests, no business of a user."""


def page(name: str) -> str:
    return (DOCS / name).read_text("utf-8")


def kinds(base: type[OutriderError] = OutriderError) -> list[type[OutriderError]]:
    here = [kind for kind in base.__subclasses__() if kind.__module__ == errors.__name__]
    return [base, *(kind for child in here for kind in kinds(child))]


def test_the_table_of_errors_is_what_the_code_says() -> None:
    check = subprocess.run([sys.executable, ROOT / "scripts" / "errors", "--check"], check=False)
    assert check.returncode == 0
    for kind in kinds():
        assert f"| `{kind.code}` | {kind.http_status} | {kind.exit_code} |" in page("errors.md")


def test_every_verb_has_an_example() -> None:
    assert [verb for verb in VERBS if f"outrider {verb}" not in page("cli.md")] == []


def test_every_exit_code_is_explained() -> None:
    rows = set(re.findall(r"^\| (\d+) \|", page("cli.md"), re.M))
    assert {str(kind.exit_code) for kind in kinds()} | {"0", "130"} == rows


def test_every_variable_is_named() -> None:
    folders = ("outrider", "edge", "cloud", "privacy", "protocol")
    sources = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    used = {
        name
        for path in sources
        for name in re.findall(r'"(OUTRIDER_[A-Z_]+)"', path.read_text("utf-8"))
    }
    rows = set(re.findall(r"^\| `(OUTRIDER_[A-Z_]+)`", page("cli.md"), re.M))
    assert used - INNER == rows


def test_every_route_is_described() -> None:
    pytest.importorskip("starlette", reason="needs outrider[edge]")
    from starlette.routing import Route

    from outrider.edge.api.app import build
    from outrider.testing.local_edge import LocalEdge

    said = page("api.md").replace(".../requests/", "/outrider/v1/requests/")
    for route in build(LocalEdge()).routes:
        assert isinstance(route, Route)
        assert f"{route.path.replace(':path', '')}" in said, route.path


@pytest.mark.parametrize("path", sorted(DOCS.glob("*.md")), ids=lambda path: path.name)
def test_links_lead_somewhere(path: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", path.read_text("utf-8"))
    local = [link for link in links if "://" not in link]
    assert [link for link in local if not (path.parent / link).exists()] == []
