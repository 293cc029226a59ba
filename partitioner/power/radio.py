"""What the device's radio draws: bytes, waking up, and the tail that follows every message.

A radio stays in its high state for a while after the last byte (Huang et al., "A close
examination of performance and power characteristics of 4G LTE networks", MobiSys 2012), so that
many small messages cost far more than their bytes. Pure; times in seconds, energy in joules.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Radio:
    """One kind of radio, beyond what it draws asleep."""

    name: str
    up_j_per_byte: float = 0.0
    down_j_per_byte: float = 0.0
    tail_w: float = 0.0
    """Drawn while it is awake, whether bytes flow or not."""
    tail_s: float = 0.0
    """How long it stays awake after the last byte."""
    wake_j: float = 0.0

    def bytes_j(self, up: float, down: float) -> float:
        return up * self.up_j_per_byte + down * self.down_j_per_byte


NONE = Radio("none")
"""The cloud is on this machine."""


@dataclass(slots=True)
class Tail:
    """Who pays for the time that the radio is awake; every second of it is paid once.

    The time after a message belongs to its sender up to the next message. Whoever ends pays for
    the rest of the tail that it leaves behind.
    """

    radio: Radio
    last: str = ""
    """Who was active last."""
    until: float = float("-inf")
    """The radio sleeps from then on."""
    paid: float = float("-inf")
    """Awake time up to here is paid."""
    owed: dict[str, float] = field(default_factory=dict)
    """Joules by request, not yet collected."""

    def touch(self, request: str, at_s: float) -> None:
        """A message of this request passed at `at_s`; calls come in order of time."""
        if at_s >= self.until:
            self._charge(self.last, self.until)
            self._owe(request, self.radio.wake_j)
            self.paid = at_s
        else:
            self._charge(self.last, at_s)
        self.last, self.until = request, max(self.until, at_s + self.radio.tail_s)

    def collect(self, request: str) -> float:
        """What it owes up to now."""
        return self.owed.pop(request, 0.0)

    def leave(self, request: str) -> float:
        """It ends: what it owes, with the tail that it leaves behind if it was the last."""
        if request == self.last:
            self._charge(request, self.until)
            self.last = ""
        return self.collect(request)

    def _charge(self, request: str, to_s: float) -> None:
        if to_s > self.paid:
            self._owe(request, (to_s - self.paid) * self.radio.tail_w)
            self.paid = to_s

    def _owe(self, request: str, joules: float) -> None:
        if request and joules:
            self.owed[request] = self.owed.get(request, 0.0) + joules
