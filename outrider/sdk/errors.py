"""What the clients raise: errors of `outrider.errors`, which are OpenAI's at the same time.

APIError
├── APIConnectionError              no daemon answers, or it went away
│   └── APITimeoutError             no token within the time that was given
└── APIStatusError                  the daemon refused, with `status_code`
    ├── BadRequestError         400
    ├── AuthenticationError     401
    ├── PermissionDeniedError   403
    ├── NotFoundError           404
    ├── ConflictError           409
    ├── UnprocessableEntityError 422
    ├── RateLimitError          429
    └── InternalServerError     500 and above

Every error that a client raises is one of `outrider.errors` (`Overloaded`, with `what`,
`why`, `effect`, `todo` and its own fields) and one of these, so that
`except outrider.RateLimitError` and `except Overloaded` both take it, and code that was
written for `openai` needs a new import only.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType, new_class
from typing import Any, cast

from outrider.errors import DaemonUnreachable, OutriderError, TimedOut


class APIError(OutriderError):
    """Base of all that the clients raise."""

    request_id: str | None = None
    """Of the HTTP request, as in the daemon's log; None where none came back."""
    headers: Mapping[str, str] = MappingProxyType({})
    """What the response said about trying again."""

    @property
    def message(self) -> str:
        """What happened."""
        return self.what

    def __reduce__(self) -> tuple[object, ...]:
        bases = type(self).__bases__
        kind, mirror = bases if len(bases) == 2 else (OutriderError, type(self))
        return _again, (kind, mirror, self.__dict__)


class APIConnectionError(APIError):
    """No daemon answers, or it went away while answering."""


class APITimeoutError(APIConnectionError):
    """No token within the time that was given."""


class APIStatusError(APIError):
    """The daemon refused."""

    status_code: int = 500
    """Of HTTP."""


class BadRequestError(APIStatusError):
    """400: the request; nothing was changed."""


class AuthenticationError(APIStatusError):
    """401: no key, or a wrong one."""


class PermissionDeniedError(APIStatusError):
    """403: the daemon does not serve this name or origin."""


class NotFoundError(APIStatusError):
    """404: an unknown model, request or route."""


class ConflictError(APIStatusError):
    """409, which a proxy before the daemon may send."""


class UnprocessableEntityError(APIStatusError):
    """422, which a proxy before the daemon may send."""


class RateLimitError(APIStatusError):
    """429: too many requests, or no memory for one more; try again later."""


class InternalServerError(APIStatusError):
    """500 and above: the daemon, or its way to the cloud."""


_BY_STATUS: dict[int, type[APIStatusError]] = {
    400: BadRequestError,
    401: AuthenticationError,
    403: PermissionDeniedError,
    404: NotFoundError,
    409: ConflictError,
    422: UnprocessableEntityError,
    429: RateLimitError,
}


def mirrored(
    error: OutriderError, status: int | None = None, request_id: str | None = None
) -> APIError:
    """The same error, and OpenAI's for the status; `status` None is the error's own."""
    status = status or error.http_status
    made = _again(type(error), _mirror(error, status), error.__dict__)
    made.request_id = request_id
    if isinstance(made, APIStatusError):
        made.status_code = status
    return made


def _mirror(error: OutriderError, status: int) -> type[APIError]:
    if isinstance(error, TimedOut):
        return APITimeoutError
    if isinstance(error, DaemonUnreachable):
        return APIConnectionError
    return _BY_STATUS.get(status, InternalServerError if status >= 500 else APIStatusError)


_MADE: dict[tuple[str, str], type[APIError]] = {}


def _both(kind: type[OutriderError], mirror: type[APIError]) -> type[APIError]:
    """One class that is both, always the same; it is called as the first."""
    key = (kind.__qualname__, mirror.__name__)
    if key not in _MADE:
        names = {"__doc__": kind.__doc__, "__module__": __name__}
        made = new_class(kind.__name__, (kind, mirror), exec_body=lambda body: body.update(names))
        _MADE[key] = cast(type[APIError], made)
    return _MADE[key]


def _again(kind: type[OutriderError], mirror: type[APIError], parts: dict[str, Any]) -> APIError:
    made = mirror if issubclass(mirror, kind) else _both(kind, mirror)
    error: APIError = made.__new__(made)
    Exception.__init__(error, parts["what"])
    error.__dict__.update(parts)
    return error
