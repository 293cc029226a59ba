"""Each example runs as it stands, against a real cloud and a real edge, and says what it should."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from outrider.testing.link import Link
from outrider.testing.pair import Pair

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
MOST_LINES = 40

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("torch") is None, reason="the target needs torch"
)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """A daemon with its cloud, for the examples that do not start their own."""
    with asyncio.Runner() as runner:
        pair = runner.run(Pair(Link(), ("--threads", "1")).__aenter__())
        try:
            yield pair.url
        finally:
            runner.run(pair.__aexit__(None, None, None))


def say(name: str, url: str = "http://127.0.0.1:9") -> str:
    """What an example prints; it must end well, without a word on standard error."""
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / name)],
        env={**os.environ, "OUTRIDER_HOST": url, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_examples_are_short() -> None:
    found = sorted(EXAMPLES.glob("[0-9]*.py"))
    assert [path.name[:2] for path in found] == [f"{number:02}" for number in range(1, 9)]
    assert not [path for path in found if len(path.read_text().splitlines()) > MOST_LINES]


def test_complete(url: str) -> None:
    out = say("01_complete.py", url)
    assert "exact: True" in out
    assert "True" in out.splitlines()[-1]


def test_edge_cloud() -> None:
    out = say("02_edge_cloud.py")
    cloud, draft = (part.partition("\n")[2].strip() for part in out.split("--- ")[1:])
    assert cloud == draft != ""


def test_stream_sources(url: str) -> None:
    out = say("03_stream_sources.py", url)
    assert "outrider-target, " in out
    assert "64 tokens in " in out


def test_openai_client(url: str) -> None:
    pytest.importorskip("openai", reason="the openai package is not installed")
    out = say("04_openai_client.py", url)
    assert "served by outrider-target" in out


def test_outage() -> None:
    out = say("05_outage.py")
    assert out.rstrip().endswith("the committed text is the same: True")
    shown = out.splitlines()[-2]
    assert int(shown.split()[0]) > 0


def test_fit() -> None:
    out = say("06_fit.py")
    assert "same vocabulary: True" in out
    assert "verdict: " in out


def test_decisions(url: str) -> None:
    out = say("07_decisions.py", url)
    assert "began as " in out and " J a token" in out
    assert "is connected, round trip" in out
    assert " drafts sent, " in out


def test_limits(url: str) -> None:
    out = say("08_limits.py", url)
    assert out.startswith("400: this model's context is")
    # The cancellation is on its way when the daemon is asked.
    assert "of 500 tokens" in out and " after 500 " not in out
    assert "resumed at token 12: True" in out
    assert "and back: True" in out


def test_private_kv() -> None:
    path = EXAMPLES / "private_kv.py"
    assert len(path.read_text().splitlines()) <= MOST_LINES
    out = say(path.name)
    assert "under another name they do not open" in out
    assert "they go on with the same token: True" in out
    assert "100% of the text came back from keys and values: candidates" in out
    assert "0% of the text came back from keys and values, sealed" in out
