"""The door: request ids, and which hosts, origins and keys may pass.

Covered: web pages that reach for loopback through the visitor's browser (DNS
rebinding: `Host` is checked; cross-site posts: `Origin` is checked; nothing is
readable across origins, since no CORS header is sent unless configured), and
callers without a key. Not covered: other users of the same machine on loopback
without keys; plain HTTP beyond loopback is for a TLS proxy in front.
"""

from __future__ import annotations

import hmac
import re
import secrets
from collections.abc import Mapping
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from outrider.edge.api.errors import respond
from outrider.edge.api.metrics import Metrics
from outrider.edge.api.settings import ApiSettings
from outrider.errors import AccessDenied

OPEN = ("/", "/health")
"""Paths that need no key: they say nothing but that the daemon is there."""

_HOST = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([A-Za-z0-9._-]+))(?::\d{1,5})?")
_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


class Guard:
    """ASGI middleware around the whole application."""

    def __init__(self, app: ASGIApp, settings: ApiSettings, metrics: Metrics) -> None:
        self._app = app
        self._settings = settings
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        scope["request_id"] = request_id(headers)
        send = self._marked(scope, send)
        refusal = self._refusal(scope, headers)
        if refusal is None:
            await self._app(scope, receive, send)
            return
        status, error = refusal
        extra = {"www-authenticate": "Bearer"} if status == 401 else {}
        await respond(error, status=status, extra=extra)(scope, receive, send)

    def _marked(self, scope: Scope, send: Send) -> Send:
        """Adds the request id to the response, and counts it."""

        async def marked(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["x-request-id"] = scope["request_id"]
                route = getattr(scope.get("route"), "path", "none")
                self._metrics.request(route, message["status"])
            await send(message)

        return marked

    def _refusal(self, scope: Scope, headers: Headers) -> tuple[int, AccessDenied] | None:
        """403 for a wrong place, 401 for a wrong key."""
        if not self._settings.allows_host(hostname(headers.get("host", ""))):
            return 403, _denied("this Host is not allowed", "start the edge with --allow-host NAME")
        if not self._allows_origin(headers):
            return 403, _denied("this Origin is not allowed", "add it to the allowed origins")
        preflight = scope["method"] == "OPTIONS"
        if scope["path"] not in OPEN and not preflight and not self._has_key(headers):
            return 401, _denied(
                "no valid API key",
                "set OUTRIDER_API_KEY, or send Authorization: Bearer KEY with one of its keys",
            )
        return None

    def _allows_origin(self, headers: Headers) -> bool:
        origin = headers.get("origin")
        if origin is None or origin in self._settings.origins:
            return True
        return bool(origin) and urlsplit(origin).netloc == headers.get("host")

    def _has_key(self, headers: Headers) -> bool:
        if not self._settings.api_keys:
            return True
        scheme, _, key = headers.get("authorization", "").partition(" ")
        if "authorization" not in headers:
            # Clients of Anthropic's API send it so.
            scheme, key = "bearer", headers.get("x-api-key", "")
        given = key.strip().encode()
        # Every key is compared, each in constant time, so that timing tells nothing.
        matches = [hmac.compare_digest(given, one.encode()) for one in self._settings.api_keys]
        return scheme.lower() == "bearer" and any(matches)


def _denied(what: str, todo: str) -> AccessDenied:
    return AccessDenied(what, effect="the request was not read", todo=todo)


def hostname(host: str) -> str:
    """The name in a Host header: no port, no brackets; empty when it is malformed."""
    match = _HOST.fullmatch(host)
    return (match[1] or match[2]) if match else ""


def request_id(headers: Mapping[str, str]) -> str:
    """The caller's, if it is a plain word; else a new one."""
    given = headers.get("x-request-id", "")
    return given if _ID.fullmatch(given) else f"req-{secrets.token_hex(12)}"
