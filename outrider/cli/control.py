"""What only the command line asks of the daemon: to read its settings anew."""

from __future__ import annotations

from typing import TypeVar

import httpx2
import msgspec

from outrider.cli.where import Daemon
from outrider.sdk import wire
from outrider.sdk.find import find

T = TypeVar("T")
PATIENCE_S = 10.0


class Reloaded(msgspec.Struct, frozen=True):
    """`outrider.daemon.reload.Reloaded` as it travels."""

    changed: tuple[str, ...] = ()
    restart: tuple[str, ...] = ()
    error: dict[str, str] | None = None


def reload(where: Daemon) -> Reloaded:
    """Raises DaemonUnreachable, AccessDenied."""
    return _ask(where, "POST", "/outrider/v1/reload", Reloaded)


def _ask(where: Daemon, method: str, path: str, kind: type[T]) -> T:
    place = find(where.host, where.api_key)
    with httpx2.Client(
        base_url=place.url,
        headers=wire.headers(place),
        timeout=PATIENCE_S,
        trust_env=not place.loopback,
        verify=place.url.startswith("https://"),
    ) as http:
        try:
            response = http.request(method, path)
        except httpx2.TransportError as error:
            raise wire.lost(error, place) from None
        wire.check(response)
        return msgspec.json.decode(response.content, type=kind)
