"""An emulated link, and when a piece of data sent into it comes out: pure, without a clock.

Times are seconds on whatever clock the caller uses. A direction of a link is one bottleneck
(`Pipe`, shared by all connections, first come first served) followed by a delay that each
connection has for itself (`Lane`). TCP keeps order, so a delayed piece holds up those behind it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from random import Random
from typing import Final, Literal, Self

from outrider.errors import ConfigError

Direction = Literal["up", "down"]

SEGMENT_BYTES: Final = 1448
"""TCP payload of a full Ethernet frame with time stamps: the unit that a link loses."""
PIECE_S: Final = 0.001
"""A limited link passes data on in pieces of about this length, at least one segment."""


@dataclass(frozen=True, slots=True)
class Link:
    """What lies between a client and a server."""

    up_delay_ms: float = 0.0
    """One-way delay from client to server."""
    down_delay_ms: float = 0.0
    """One-way delay from server to client."""
    jitter_ms: float = 0.0
    """Each piece's delay lies evenly within plus and minus this, never below zero."""
    up_bits_per_s: float | None = None
    """Bandwidth from client to server; None is unlimited."""
    down_bits_per_s: float | None = None
    """Bandwidth from server to client; None is unlimited."""
    loss: float = 0.0
    """Probability that a segment is lost, and lost again when sent again."""
    retransmit_ms: float = 200.0
    """Time until a lost segment is sent again; doubles with each further loss of it."""
    seed: int = 0
    """Seed of jitter and loss."""

    def __post_init__(self) -> None:
        for name in ("up_delay_ms", "down_delay_ms", "jitter_ms", "retransmit_ms"):
            _demand(0 <= getattr(self, name) < 1e9, name, getattr(self, name), "0 or more")
        for name in ("up_bits_per_s", "down_bits_per_s"):
            rate = getattr(self, name)
            _demand(rate is None or 0 < rate < 1e15, name, rate, "above 0, or none")
        _demand(0 <= self.loss <= 0.9, "loss", self.loss, "from 0 to 0.9")

    @classmethod
    def of_rtt(cls, rtt_ms: float, **others: float | None) -> Self:
        """A link with this round-trip time, half of it each way; `others` are further fields."""
        fields: dict[str, object] = {"up_delay_ms": rtt_ms / 2, "down_delay_ms": rtt_ms / 2}
        return cls(**(fields | others))  # type: ignore[arg-type]

    @property
    def rtt_ms(self) -> float:
        return self.up_delay_ms + self.down_delay_ms

    def way(self, direction: Direction) -> Way:
        """One direction, in seconds and bytes."""
        up = direction == "up"
        bits = self.up_bits_per_s if up else self.down_bits_per_s
        return Way(
            delay_s=(self.up_delay_ms if up else self.down_delay_ms) / 1e3,
            jitter_s=self.jitter_ms / 1e3,
            bytes_per_s=None if bits is None else bits / 8,
            loss=self.loss,
            retransmit_s=self.retransmit_ms / 1e3,
        )


def _demand(holds: object, name: str, value: object, wanted: str) -> None:
    if not holds:
        raise ConfigError(
            f"a link can not have {name} = {value!r}",
            why=f"it must be {wanted}",
            effect="the link was not changed",
        )


@dataclass(frozen=True, slots=True)
class Way:
    """One direction of a link."""

    delay_s: float = 0.0
    jitter_s: float = 0.0
    bytes_per_s: float | None = None
    loss: float = 0.0
    retransmit_s: float = 0.2

    def pieces(self, size: int) -> Iterator[int]:
        """Cuts a chunk into the sizes that travel by themselves; unlimited links do not cut."""
        piece = size
        if self.bytes_per_s is not None:
            piece = max(SEGMENT_BYTES, int(self.bytes_per_s * PIECE_S))
        while size > 0:
            yield min(size, piece)
            size -= piece

    def buffer_bytes(self, least: int, most: int) -> int:
        """How much may be under way before the sender has to wait: twice what the link holds."""
        if self.bytes_per_s is None:
            return most
        return min(most, max(least, int(2 * self.bytes_per_s * self.delay_s)))


@dataclass(slots=True)
class Pipe:
    """The bottleneck of one direction: sends one byte after the other."""

    free_at: float = 0.0

    def send(self, now: float, size: int, way: Way) -> float:
        """When the last byte of a piece that comes now has been sent."""
        if way.bytes_per_s is None:
            return now
        self.free_at = max(now, self.free_at) + size / way.bytes_per_s
        return self.free_at


@dataclass(slots=True)
class Lane:
    """One direction of one connection."""

    pipe: Pipe
    random: Random
    opens_at: float = 0.0
    """Nothing enters earlier: the opening handshake of TCP takes a round trip."""
    last_due: float = field(default=0.0, init=False)

    def due(self, now: float, size: int, way: Way) -> float:
        """When a piece that is handed over now comes out at the far end."""
        sent = self.pipe.send(max(now, self.opens_at), size, way)
        jitter = self.random.uniform(-way.jitter_s, way.jitter_s) if way.jitter_s else 0.0
        arrives = sent + max(0.0, way.delay_s + jitter) + self._retransmission(size, way)
        self.last_due = max(self.last_due, arrives)
        return self.last_due

    def _retransmission(self, size: int, way: Way) -> float:
        """The longest wait for a lost segment among those of a piece."""
        if not way.loss:
            return 0.0
        segments = -(-size // SEGMENT_BYTES)
        return max(self._lost_for(way) for _ in range(max(1, segments)))

    def _lost_for(self, way: Way) -> float:
        waited, pause = 0.0, way.retransmit_s
        while self.random.random() < way.loss:
            waited, pause = waited + pause, 2 * pause
        return waited
