# Made from ../_async by scripts/sdk; change it there.
"""One daemon's HTTP: requests that are tried again where that is safe, errors of the tree."""

from __future__ import annotations

from collections.abc import Mapping

import httpx2

from outrider.errors import DaemonUnreachable, OutriderError
from outrider.sdk import wire
from outrider.sdk._sync import pause
from outrider.sdk.errors import mirrored
from outrider.sdk.find import Place
from outrider.sdk.limits import Budget, Retry, asked_wait_s

_UNBEGUN = (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout)
"""The daemon has not seen the request."""
_AGAIN = (429, 503)
"""Refused before anything was begun."""


class Caller:
    """Sends requests. `retry` bounds how often one is sent again, its budget how many are."""

    def __init__(self, http: httpx2.Client, place: Place, retry: Retry) -> None:
        self.http = http
        self.place = place
        self._retry = retry
        self._budget = Budget(retry)

    def get(self, path: str) -> httpx2.Response:
        """A whole response, good or raised; what only reads."""
        return self.send(self.http.build_request("GET", path), whole=True)

    def post(self, path: str, body: dict[str, object]) -> httpx2.Response:
        """The same for a question whose answer is in one piece."""
        request = self.http.build_request("POST", path, json=body)
        return self.send(request, whole=True)

    def send(self, request: httpx2.Request, *, whole: bool = False) -> httpx2.Response:
        """A response with a good status, read when `whole`; else its body is the caller's.

        Raises errors of the tree, after as many tries as are allowed.
        """
        for attempt in range(1, self._retry.attempts + 1):
            try:
                response = self.once(request, whole=whole)
            except OutriderError as error:
                wait = self._wait_s(error, attempt, request)
                if wait is None:
                    raise
                pause.pause(wait)
            else:
                self._budget.went_well()
                return response
        raise AssertionError("the last try returns or raises")

    def once(self, request: httpx2.Request, *, whole: bool = False) -> httpx2.Response:
        """The same, tried once."""
        try:
            response = self.http.send(request, stream=True)
            if whole or not response.is_success:
                response.read()
        except httpx2.TransportError as error:
            raise mirrored(wire.lost(error, self.place)) from error
        wire.check(response)
        return response

    def _wait_s(self, error: OutriderError, attempt: int, request: httpx2.Request) -> float | None:
        """How long to wait before the next try; None when there is none."""
        headers = wire.headers_of(error)
        if attempt >= self._retry.attempts or not _safe(error, headers, request.method):
            return None
        wait = self._retry.wait_s(attempt, asked_wait_s(error, headers))
        return wait if wait is not None and self._budget.spend() else None

    def quietly(self, method: str, path: str) -> None:
        """A request whose failure changes nothing."""
        try:
            self.once(self.http.build_request(method, path, timeout=1.0), whole=True)
        except OutriderError:
            return


def _safe(error: OutriderError, headers: Mapping[str, str], method: str) -> bool:
    """Whether a request can be sent again without being answered twice."""
    if isinstance(error, DaemonUnreachable):
        return method == "GET" or isinstance(error.__cause__, _UNBEGUN)
    wish = headers.get("x-should-retry")
    if wish in ("true", "false"):
        return wish == "true"
    return getattr(error, "status_code", None) in _AGAIN
