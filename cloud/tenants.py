"""Who may open sessions: API keys to tenant names."""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass
from pathlib import Path

from outrider.errors import AccessDenied, ConfigError

_VARIABLES = {"cloud": "CLOUD", "worker": "WORKERS"}
"""In whose environment variable a caller keeps its key."""
ANYBODY = "local"
"""The tenant of everybody where no keys are asked for: loopback only."""


@dataclass(frozen=True, slots=True)
class Tenants:
    """Key digests to names; without keys everybody is one tenant."""

    digests: tuple[tuple[bytes, str], ...] = ()
    server: str = "cloud"
    """What asks for the keys, for people."""

    @classmethod
    def read(cls, path: Path, server: str = "cloud") -> Tenants:
        """A file of `NAME KEY` lines; `#` begins a comment. Raises ConfigError."""
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"the API key file can not be read: {error}") from None
        pairs = [line.split() for line in lines if line.strip() and not line.startswith("#")]
        if not pairs or any(len(pair) != 2 for pair in pairs):
            raise ConfigError(
                "the API key file is malformed",
                why="every line is a name, a space and a key; there is at least one",
                effect=f"the {server} was not started",
            )
        return cls(tuple((_digest(key), name) for name, key in pairs), server)

    def who(self, authorization: str) -> str:
        """The tenant of an `authorization` metadata value. Raises AccessDenied."""
        if not self.digests:
            return ANYBODY
        given = _digest(authorization.removeprefix("Bearer ").strip())
        found = [name for digest, name in self.digests if hmac.compare_digest(digest, given)]
        if not found:
            raise AccessDenied(
                f"the {self.server} does not know this key",
                why=f"no key came, or it is not in the {self.server}'s key file",
                effect="nothing was opened",
                todo=f"give the caller a key: OUTRIDER_{_VARIABLES[self.server]}_API_KEY",
            )
        return found[0]


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()
