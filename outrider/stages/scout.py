"""Looks, beside the engine, whether workers that came or went make another layout pay."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from outrider.errors import OutriderError
from outrider.stages.replan import Chosen, Layout

LOOK_S = 1.0
"""Between two looks at who is there."""


class Compares(Protocol):
    """A fleet that can tell what another layout would bring."""

    def beside(self, layout: Layout) -> tuple[Chosen, float]: ...


@dataclass(frozen=True, slots=True)
class Offer:
    """The best layout now, and the share of a token's time that it would save."""

    chosen: Chosen
    gain: float


@dataclass(slots=True)
class Scout:
    """`stamp` differs when somebody came or went; `layout` is where the layers lie.

    `look` is one look, by whoever wants; `start` looks every second in a thread until `stop`.
    """

    fleet: Compares
    stamp: Callable[[], object]
    layout: Callable[[], Layout]
    _seen: object = None
    _offer: Offer | None = None
    _ended: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self._seen = self.stamp()

    def look(self) -> None:
        """Plans anew, which takes as long as the slowest worker's answer, when it must."""
        stamp, layout = self.stamp(), self.layout()
        if stamp == self._seen:
            return
        self._seen = stamp
        try:
            chosen, gain = self.fleet.beside(layout)
        except OutriderError:
            # Nothing to offer; a device that is lost is found by the pass that misses it.
            return
        if chosen.layout != layout and layout == self.layout():
            self._offer = Offer(chosen, gain)

    def take(self) -> Offer | None:
        """What the last look found, once."""
        offer, self._offer = self._offer, None
        return offer

    def start(self) -> None:
        threading.Thread(target=self._run, name="scout", daemon=True).start()

    def stop(self) -> None:
        self._ended.set()

    def _run(self) -> None:
        while not self._ended.wait(LOOK_S):
            self.look()
