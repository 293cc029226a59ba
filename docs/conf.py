"""The site of the manual, for Sphinx: Markdown as it stands, no network, no tracking."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

project = "Outrider"
author = "The Outrider authors"
extensions = ["myst_parser"]
html_theme = "furo"
html_title = "Outrider"
html_show_sphinx = False
html_copy_source = False
root_doc = "docs/index"
# The source is the repository, so that links between its documents hold.
include_patterns = [
    "docs/**.md",
    "README.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    "THIRD_PARTY.md",
    "privacy/THREATS.md",
    "protocol/SPEC.md",
    "outrider/bundled/README.md",
]
exclude_patterns = [".*", "build", "dist", "tests", "bench", "*.egg-info"]
myst_heading_anchors = 4
# Examples are shortened with dots, and drawings of other tools are no language here.
suppress_warnings = ["misc.highlighting_failure"]

CONTENTS = {
    "Begin": ("quickstart", "tutorial", "concepts", "recipes", "when-not", "benchmarks"),
    "Use": (
        "cli",
        "config",
        "api",
        "models",
        "top",
        "privacy",
        "keys",
        "kv",
        "constraints",
        "power",
    ),
    "Split": ("partitioner", "placement", "profiles", "stages", "offload", "simulator"),
    "Reference": (
        "reference/sdk",
        "reference/cli",
        "reference/events",
        "reference/wire",
        "../protocol/SPEC",
        "reference/errors",
        "errors",
    ),
    "House": (
        "architecture",
        "LOG",
        "../README",
        "../CHANGELOG",
        "../CONTRIBUTING",
        "../SECURITY",
        "../privacy/THREATS",
        "../THIRD_PARTY",
        "../outrider/bundled/README",
    ),
}
"""Pages by heading; one that is not named here comes last, so that none is lost."""

FOLDER = re.compile(r"\[([^\]]*)\]\([^)#:]+/\)")


def contents() -> str:
    here = Path(__file__).parent
    found = {str(p.relative_to(here).with_suffix("")) for p in here.rglob("*.md")} - {"index"}
    found |= {name for names in CONTENTS.values() for name in names if name.startswith("..")}
    named = [name for names in CONTENTS.values() for name in names]
    groups = {**CONTENTS, "More": tuple(sorted(found - set(named)))}
    text = ""
    for title, names in groups.items():
        listed = "\n".join(name for name in names if name in found)
        if listed:
            text += f"\n```{{toctree}}\n:hidden:\n:caption: {title}\n\n{listed}\n```\n"
    return text


def add_contents(app: Any, name: str, source: list[str]) -> None:
    """The first page is plain Markdown in the repository; here it lists the others too.
    A folder has no page: its link becomes its name."""
    source[0] = FOLDER.sub(r"\1", source[0])
    if name == root_doc:
        source[0] += contents()


def setup(app: Any) -> None:
    app.connect("source-read", add_contents)
