# Made from ../_async by scripts/sdk; change it there.
"""The client of the daemon."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Unpack

import httpx2

from outrider.protocol.status import ModelCard, RequestState, Status
from outrider.sdk import models, question, wire
from outrider.sdk._sync.stream import Stream
from outrider.sdk.answer import Answer
from outrider.sdk.find import find
from outrider.sdk.question import Messages, Options, Prompt


class Client:
    """Asks one daemon. Close it, or use it as a context.

    `url` and `api_key` default to OUTRIDER_HOST and OUTRIDER_API_KEY, then to the
    running daemon's `daemon.json`, then to http://127.0.0.1:11711. All methods raise
    errors of `outrider.errors`; `DaemonUnreachable` when nothing answers.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        api_key: str | None = None,
        transport: httpx2.BaseTransport | None = None,
    ) -> None:
        self._place = find(url, api_key)
        self._http = httpx2.Client(
            base_url=self._place.url,
            headers=wire.headers(self._place),
            timeout=wire.timeouts(),
            transport=transport,
            # A proxy of the environment is no way to this very machine.
            trust_env=not self._place.loopback,
            # Reading the authorities takes a tenth of a second, and plain HTTP needs none.
            verify=self._place.url.startswith("https://"),
        )

    @property
    def url(self) -> str:
        """The daemon's address."""
        return self._place.url

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Hang up everything."""
        self._http.close()

    def complete(self, prompt: Prompt, **options: Unpack[Options]) -> Answer:
        """Go on from a text, or from token ids of the target. Options: see `Options`."""
        with self._ask(question.of_prompt(prompt, options)) as stream:
            return stream.answer()

    def chat(self, messages: Messages, **options: Unpack[Options]) -> Answer:
        """Answer a message, or a conversation; rendered with the target's chat template."""
        with self._ask(question.of_messages(messages, options)) as stream:
            return stream.answer()

    def stream(self, prompt: Prompt, **options: Unpack[Options]) -> Stream:
        """Typed events of a completion. `retract` is on unless given: provisional tokens come
        while the cloud is away, and the committed ones replace them."""
        options.setdefault("retract", True)
        return self._ask(question.of_prompt(prompt, options))

    def stream_chat(self, messages: Messages, **options: Unpack[Options]) -> Stream:
        """Typed events of a chat turn, as `stream`."""
        options.setdefault("retract", True)
        return self._ask(question.of_messages(messages, options))

    def resume(self, request: str, positions: Sequence[int] = (0,)) -> Stream:
        """The rest of a running or just ended request, from a position per choice on."""
        path = f"/outrider/v1/requests/{request}"
        position = ",".join(str(at) for at in positions)
        return self._stream(self._http.build_request("GET", path, params={"position": position}))

    def status(self) -> Status:
        """What the daemon does now."""
        return wire.decode(self._get("/outrider/v1/status"), Status)

    def requests(self) -> tuple[RequestState, ...]:
        """Running and just ended requests."""
        found = wire.decode(self._get("/outrider/v1/requests"), models.Requests)
        return found.requests

    def models(self) -> tuple[ModelCard, ...]:
        """Models that can be asked for by name."""
        return wire.decode(self._get("/v1/models"), models.Listing).cards()

    def _ask(self, body: dict[str, object]) -> Stream:
        content, kind = wire.encode(body), {"content-type": "application/json"}
        path = "/outrider/v1/generate"
        return self._stream(self._http.build_request("POST", path, content=content, headers=kind))

    def _stream(self, request: httpx2.Request) -> Stream:
        return Stream(self._http, request, self._place)

    def _get(self, path: str) -> httpx2.Response:
        try:
            return self._http.get(path)
        except httpx2.TransportError as error:
            raise wire.lost(error, self._place) from None
