"""What the HTTP face may be told: who may call, how much, and how long silence lasts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True, slots=True)
class ApiSettings:
    """Limits and doors of the HTTP face."""

    hosts: tuple[str, ...] = ()
    """Names allowed in `Host` beside loopback's; `*` allows all (only behind API keys)."""
    origins: tuple[str, ...] = ()
    """Origins of web pages that may call (and get CORS headers); none by default."""
    hosts_now: Callable[[], tuple[str, ...]] = tuple
    """More of them, which may change while it serves."""
    api_keys: frozenset[str] = field(default=frozenset(), repr=False)
    """Accepted as `Authorization: Bearer KEY`; empty: no key is asked for."""
    max_body_bytes: int = 8 * 1024 * 1024
    """Larger bodies get 413."""
    max_choices: int = 16
    """Most answers to one prompt (`n`)."""
    max_prompts: int = 16
    """Most prompts in one `/v1/completions` request."""
    ping_s: float = 15.0
    """Silence after which a stream gets a comment, so that clients and proxies keep it open."""
    buffer: int = 64
    """Events kept for a slow reader; beyond it the work upstream waits."""

    def allows_host(self, name: str) -> bool:
        """Whether `Host` may be `name` (no port, no brackets)."""
        hosts = (*self.hosts, *self.hosts_now())
        return name.lower() in (*LOOPBACK, *hosts) or "*" in hosts
