"""Where the SDK looks for the daemon, in which order; and that both clients are one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from outrider import paths
from outrider.errors import ConfigError
from outrider.sdk.find import find, normal

ROOT = Path(__file__).resolve().parents[2]


def written(folder: Path, url: str = "http://127.0.0.1:4711") -> Path:
    info = paths.DaemonInfo(schema=1, url=url, pid=1, events="")
    paths.write_atomically(paths.daemon_file(folder), msgspec.json.encode(info))
    return folder


def test_order(tmp_path: Path) -> None:
    running = written(tmp_path)
    both = {"OUTRIDER_HOST": "box:9"}
    assert find("other:1", environment=both, directory=running).url == "http://other:1"
    assert find(environment=both, directory=running).url == "http://box:9"
    assert find(environment={}, directory=running).url == "http://127.0.0.1:4711"
    nothing = find(environment={}, directory=tmp_path / "none")
    assert (nothing.url, nothing.found_by) == ("http://127.0.0.1:11711", "default")


def test_keys() -> None:
    environment = {"OUTRIDER_API_KEY": "env"}
    assert find("x", environment=environment).api_key == "env"
    assert find("x", "own", environment=environment).api_key == "own"
    assert "own" not in repr(find("x", "own", environment={}))


def test_a_broken_daemon_file_is_none(tmp_path: Path) -> None:
    paths.daemon_file(tmp_path).write_text("{")
    assert find(environment={}, directory=tmp_path).found_by == "default"


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("box", "http://box:11711"),
        ("box:80", "http://box:80"),
        (":80", "http://127.0.0.1:80"),
        ("[::1]:80", "http://[::1]:80"),
        ("http://box:80/", "http://box:80"),
        ("https://box/outrider", "https://box/outrider"),
    ],
)
def test_addresses(text: str, url: str) -> None:
    assert normal(text) == url


@pytest.mark.parametrize("text", ["ftp://box", "http://", "box:port", "a:b:c"])
def test_addresses_that_are_none(text: str) -> None:
    with pytest.raises(ConfigError):
        normal(text)


def test_loopback_is_known() -> None:
    assert find("http://127.0.0.1:80", environment={}).loopback
    assert find("[::1]", environment={}).loopback
    assert not find("https://box/x", environment={}).loopback


def test_the_sync_client_is_made_from_the_async_one() -> None:
    command = [sys.executable, str(ROOT / "scripts" / "sdk"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
