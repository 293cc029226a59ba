"""What the screen asks of the daemon over HTTP, and only when the user does: a pin, a text."""

from __future__ import annotations

from collections.abc import AsyncIterator

import httpx2
import msgspec

from outrider.errors import OutriderError
from outrider.protocol.stream import Token
from outrider.sdk import AsyncClient, wire
from outrider.sdk.find import find

TIMEOUT_S = 5.0


class Caller:
    """One daemon; `host` and `api_key` as for every verb. Opens nothing until it is used."""

    def __init__(self, host: str | None = None, api_key: str | None = None) -> None:
        self._host, self._key = host, api_key

    async def pin(self, placement: str) -> None:
        """Raises the daemon's refusal, or DaemonUnreachable."""
        place = find(self._host, self._key)
        async with httpx2.AsyncClient(
            base_url=place.url,
            headers=wire.headers(place),
            timeout=TIMEOUT_S,
            trust_env=not place.loopback,
        ) as http:
            try:
                body = {"placement": placement}
                answer = await http.post("/outrider/v1/placement", json=body)
            except httpx2.TransportError as error:
                raise wire.lost(error, place) from None
        if answer.status_code != 200:
            raise _refused(answer.content)

    async def text(self, request: str, choice: int = 0) -> AsyncIterator[tuple[str, str]]:
        """(Text, source) of a request's final tokens, to its end. Raises typed errors."""
        async with AsyncClient(self._host, api_key=self._key) as client:
            async with client.resume(request) as stream:
                async for event in stream:
                    if isinstance(event, Token) and event.choice == choice:
                        yield event.text, event.source


def _refused(body: bytes) -> OutriderError:
    try:
        error = msgspec.json.decode(body)["error"]
        return OutriderError(str(error["message"]))
    except (msgspec.DecodeError, KeyError, TypeError):
        return OutriderError("the daemon refused, and did not say why")
