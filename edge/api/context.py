"""What every endpoint needs: the service, the settings, clocks and counters."""

from __future__ import annotations

import logging
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from outrider.edge.api.errors import internal
from outrider.edge.api.flow import Flow, T, Timeout
from outrider.edge.api.metrics import Metrics
from outrider.edge.api.settings import ApiSettings
from outrider.edge.service import EdgeService, GenerateRequest, Placement
from outrider.errors import OutriderError
from outrider.protocol.status import LoadedModel
from outrider.protocol.stream import StreamEvent

log = logging.getLogger("outrider.edge.api")


class EventSource(Protocol):
    """Where `/outrider/v1/events` comes from: the daemon's event bus."""

    def subscribe(self) -> AsyncIterator[Any]:
        """msgspec structs as they happen; closing the iterator ends the subscription."""
        ...


@dataclass(frozen=True, slots=True)
class Context:
    """Shared by the endpoints of one application."""

    service: EdgeService
    settings: ApiSettings
    metrics: Metrics
    events: EventSource | None
    ready: Callable[[], bool]
    timeout: Timeout
    now: Callable[[], float]
    """Unix seconds, for `created`."""
    pin: Callable[[Placement], None] | None = None
    use: Callable[[str], Awaitable[LoadedModel | None]] | None = None
    """Takes another draft model."""
    """Sets where requests without a wish run; None where nothing can be set."""

    def flow(self, requests: Sequence[GenerateRequest]) -> Flow[StreamEvent]:
        """The answers to the requests, side by side, counted."""
        counted = self.metrics.counted
        return self.watch([counted(self.service.generate(request)) for request in requests])

    def watch(self, sources: Sequence[AsyncIterator[T]]) -> Flow[T]:
        """Any sources, with silence noticed."""
        return Flow(
            sources,
            silence_s=self.settings.ping_s,
            buffer=self.settings.buffer,
            timeout=self.timeout,
        )

    def typed(self, error: Exception) -> OutriderError:
        """Itself if it is ours; else it is a bug, logged without its text (prompts!)."""
        if isinstance(error, OutriderError):
            return error
        trace = "".join(traceback.format_tb(error.__traceback__))
        log.error("%s inside the daemon\n%s", type(error).__name__, trace)
        return internal()
