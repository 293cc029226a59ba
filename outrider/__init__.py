"""Outrider: a small model on the device drafts, the large model in the cloud decides.

    from outrider import Client

    with Client() as client:
        print(client.complete("def fib(n):", max_tokens=64).text)

Importing this loads no engine and no network library: each public name loads
what it needs when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from outrider.errors import OutriderError
    from outrider.protocol.status import ModelCard, RequestState, Status
    from outrider.protocol.stream import (
        Done,
        Forked,
        Logprob,
        Provisional,
        Retract,
        Speculation,
        Started,
        StreamEvent,
        Token,
        Waiting,
    )
    from outrider.protocol.trace import Commit, Decision, Draft, Energy, Event, Fallback
    from outrider.sdk import (
        Answer,
        APIConnectionError,
        APIError,
        APIStatusError,
        APITimeoutError,
        AsyncClient,
        AsyncStream,
        AuthenticationError,
        BadRequestError,
        Choice,
        Client,
        ConflictError,
        InternalServerError,
        Metrics,
        NotFoundError,
        PermissionDeniedError,
        Placed,
        Planned,
        RateLimitError,
        Retry,
        Stream,
        Timeouts,
        UnprocessableEntityError,
        Usage,
        openai,
    )

__version__ = "0.1.0"

__all__ = [
    "APIConnectionError",
    "APIError",
    "APIStatusError",
    "APITimeoutError",
    "Answer",
    "AsyncClient",
    "AsyncStream",
    "AuthenticationError",
    "BadRequestError",
    "Choice",
    "Client",
    "Commit",
    "ConflictError",
    "Decision",
    "Done",
    "Draft",
    "Energy",
    "Event",
    "Fallback",
    "Forked",
    "InternalServerError",
    "Logprob",
    "Metrics",
    "ModelCard",
    "NotFoundError",
    "OutriderError",
    "PermissionDeniedError",
    "Placed",
    "Planned",
    "Provisional",
    "RateLimitError",
    "RequestState",
    "Retract",
    "Retry",
    "Speculation",
    "Started",
    "Status",
    "Stream",
    "StreamEvent",
    "Timeouts",
    "Token",
    "UnprocessableEntityError",
    "Usage",
    "Waiting",
    "__version__",
    "openai",
]

_HOMES = {
    "outrider.errors": ("OutriderError",),
    "outrider.protocol.status": ("ModelCard", "RequestState", "Status"),
    "outrider.protocol.stream": (
        "Done",
        "Forked",
        "Logprob",
        "Provisional",
        "Retract",
        "Speculation",
        "Started",
        "StreamEvent",
        "Token",
        "Waiting",
    ),
    "outrider.protocol.trace": ("Commit", "Decision", "Draft", "Energy", "Event", "Fallback"),
    "outrider.sdk": (
        "APIConnectionError",
        "APIError",
        "APIStatusError",
        "APITimeoutError",
        "Answer",
        "AsyncClient",
        "AsyncStream",
        "AuthenticationError",
        "BadRequestError",
        "Choice",
        "Client",
        "ConflictError",
        "InternalServerError",
        "Metrics",
        "NotFoundError",
        "PermissionDeniedError",
        "Placed",
        "Planned",
        "RateLimitError",
        "Retry",
        "Stream",
        "Timeouts",
        "UnprocessableEntityError",
        "Usage",
        "openai",
    ),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    """Load a public name's module when it is first asked for (PEP 562)."""
    if name not in _HOME:
        raise AttributeError(f"module 'outrider' has no attribute {name!r}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
