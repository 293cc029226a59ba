"""Where the daemon is, and with which key: argument, environment, its own file, the default."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from outrider import paths
from outrider.errors import ConfigError
from outrider.options import EDGE_PORT, Address

HOST = "OUTRIDER_HOST"
KEY = "OUTRIDER_API_KEY"


@dataclass(frozen=True, slots=True)
class Place:
    """A daemon's address and how it was found."""

    url: str
    """Without a trailing slash."""
    found_by: str
    """`argument`, `OUTRIDER_HOST`, `daemon.json`, `default`: for error texts."""
    api_key: str = field(default="", repr=False)

    @property
    def loopback(self) -> bool:
        host = self.url.partition("://")[2].partition("/")[0]
        return Address.parse(host, EDGE_PORT).loopback


def find(
    url: str | None = None,
    api_key: str | None = None,
    *,
    environment: Mapping[str, str] = os.environ,
    directory: Path | None = None,
) -> Place:
    """The first of: `url`; OUTRIDER_HOST (HOST, HOST:PORT or a URL); the address that the
    daemon wrote into `daemon.json` in the runtime directory; http://127.0.0.1:11711.

    The key is `api_key`, else OUTRIDER_API_KEY. Raises ConfigError for an address that is none.
    """
    key = api_key if api_key is not None else environment.get(KEY, "")
    if url:
        return Place(normal(url), "argument", key)
    if environment.get(HOST):
        return Place(normal(environment[HOST]), HOST, key)
    daemon = paths.read_daemon(directory)
    if daemon is not None:
        return Place(normal(daemon.url), "daemon.json", key)
    return Place(f"http://127.0.0.1:{EDGE_PORT}", "default", key)


def normal(text: str) -> str:
    """A base URL from HOST, HOST:PORT or a URL; http and the daemon's port are understood."""
    scheme, separator, rest = text.partition("://")
    if not separator:
        return f"http://{Address.parse(text.rstrip('/'), EDGE_PORT)}"
    if scheme not in ("http", "https") or not rest.strip("/"):
        raise ConfigError(f"{text!r} is no address of a daemon", todo="write http://HOST:PORT")
    return text.rstrip("/")
