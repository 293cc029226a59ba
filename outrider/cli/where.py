"""Which daemon a verb speaks to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

if TYPE_CHECKING:
    from outrider.sdk import Client


@dataclass(frozen=True)
class Daemon:
    """Flags that verbs which ask the daemon share."""

    host: str | None = None
    """The daemon, HOST:PORT or a URL; else OUTRIDER_HOST, else this user's, else port 11711."""
    api_key: str | None = None
    """Its API key; else OUTRIDER_API_KEY."""

    def client(self) -> Client:
        from outrider.sdk import Client

        return Client(self.host, api_key=self.api_key)


Where = Annotated[Daemon, Parameter(name="*")]
HERE = Daemon()
