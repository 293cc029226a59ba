"""The examples of docs/api.md, run as they stand there, against another address."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from outrider.edge.api.parse import NEUTRAL

PAGE = (Path(__file__).parent.parent.parent / "docs" / "api.md").read_text()
ADDRESS = "localhost:11711"

pytestmark = pytest.mark.filterwarnings("ignore")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("block", blocks("python"), ids=range(len(blocks("python"))))
def test_python(block: str, url: str, library: Callable[[str], Any]) -> None:
    named = re.search(r"^(?:from|import) (\w+)", block)
    assert named is not None
    library(named[1])
    printed: list[object] = []
    exec(block.replace(f"http://{ADDRESS}", url), {"print": printed.append})
    assert printed and printed[0]


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_sh(url: str) -> None:
    for block in blocks("sh"):
        command = block.replace(ADDRESS, url).replace("curl -s", "curl -s --noproxy '*'")
        done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=60)
        assert done.stdout.startswith("{") and ('"error"' in done.stdout) == ("min_tokens" in block)


def test_every_refused_field_is_there() -> None:
    missing = [name for name in NEUTRAL if f"`{name}" not in PAGE]
    assert not missing
