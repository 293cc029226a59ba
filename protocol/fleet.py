"""The words about who is in a fleet, what weights it is sent, and its links. SPEC.md 10.6 to 10.8.

No I/O here.
"""

from __future__ import annotations

from dataclasses import dataclass

from outrider.protocol.messages import VERSION
from outrider.protocol.stages import HostedModel

MAX_CHUNK = 1 << 20
"""Bytes of a message of weights."""
MAX_PROBE = 64 << 10
"""Bytes of a probe's message."""
MAX_PROBED = 4 << 20
"""Bytes that one probe may cost, both ways."""

# --- who joins ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class JoinRequest:
    """Worker: plan with me, or, `leaving`, without me. Said again before the lease ends."""

    name: str
    kind: str
    address: str
    """HOST:PORT at which the coordinator calls it; an unspecified host is the caller's own."""
    key: str = ""
    """The coordinator shows it as its API key."""
    digests: tuple[str, ...] = ()
    """Of models whose files it has."""
    accepts_bytes: int = 0
    """Of weights that may be pushed to it; 0: none."""
    leaving: bool = False
    version: int = VERSION


@dataclass(frozen=True, slots=True)
class JoinReply:
    """Coordinator: known, for so long."""

    lease_ms: int
    address: str
    """Under which it is now known."""
    models: tuple[HostedModel, ...] = ()
    """What the coordinator splits."""
    version: int = VERSION


# --- weights -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class PushedFile:
    """A file of a model's part."""

    name: str
    size: int
    digest: bytes
    """SHA-256."""


@dataclass(frozen=True, slots=True)
class PushOffer:
    """Coordinator: the first message of a push. The config comes first among the files."""

    digest: str
    """Of the whole model, as `StageLoad` will name it."""
    name: str
    files: tuple[PushedFile, ...]
    version: int = VERSION

    @property
    def size(self) -> int:
        return sum(file.size for file in self.files)


PushUp = PushOffer | bytes
"""Bytes are the next ones of the file that was asked for last."""


@dataclass(frozen=True, slots=True)
class PushWant:
    """Worker: send file `index` from byte `offset` to its end."""

    index: int
    offset: int


@dataclass(frozen=True, slots=True)
class PushDone:
    """Worker: all are here and were checked; `size` bytes came now."""

    size: int


PushDown = PushWant | PushDone

# --- links -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class MeasureLink:
    """Coordinator: measure the way to `address`, or, without one, let it be measured."""

    ticket: bytes
    """32 random bytes that the probe shows, once."""
    address: str = ""
    authority: bytes = b""
    """PEM of the authority that signed the other's certificate; empty: no TLS."""
    version: int = VERSION


@dataclass(frozen=True, slots=True)
class MeasuredLink:
    """Worker: what it measured; all 0 from the one that is measured."""

    rtt_us: int = 0
    up_bytes_per_s: float = 0.0
    """From the worker that answers to the other."""
    down_bytes_per_s: float = 0.0
    size: int = 0
    """Bytes that it cost."""


@dataclass(frozen=True, slots=True)
class ProbeData:
    """There: `count` bytes are wanted back. Back: `count` bytes came."""

    count: int
    data: bytes = b""
