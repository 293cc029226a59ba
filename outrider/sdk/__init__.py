"""The SDK: ask the daemon, get typed events.

    from outrider import Client, Token

    with Client() as client:
        print(client.complete("def fib(n):", max_tokens=64).text)
        with client.stream("def fib(n):", max_tokens=64) as events:
            for event in events:
                if isinstance(event, Token):
                    print(event.text, end="")

`AsyncClient` is the same with `async with`, `async for` and `await`. It needs the
base installation only: HTTP to the daemon, no engine, no gRPC. `_sync` is made
from `_async` by `scripts/sdk`.
"""

from outrider.sdk._async.client import AsyncClient
from outrider.sdk._async.stream import AsyncStream
from outrider.sdk._sync.client import Client
from outrider.sdk._sync.stream import Stream
from outrider.sdk.answer import Answer, Choice, Metrics, Placed, Usage
from outrider.sdk.compat import openai
from outrider.sdk.errors import (
    APIConnectionError,
    APIError,
    APIStatusError,
    APITimeoutError,
    AuthenticationError,
    BadRequestError,
    ConflictError,
    InternalServerError,
    NotFoundError,
    PermissionDeniedError,
    RateLimitError,
    UnprocessableEntityError,
)
from outrider.sdk.limits import Retry, Timeouts
from outrider.sdk.models import Planned

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
]
