"""One cloud in virtual time: sessions, slots, pass after pass, as `cloud/verifier.py` does it."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from outrider.partitioner.power.account import pass_shares
from outrider.partitioner.signals import at
from outrider.partitioner.sim.committer import Committer, Pass, Settled
from outrider.partitioner.sim.result import CloudUse
from outrider.partitioner.sim.setup import CloudSetup


@dataclass(slots=True)
class Guest:
    """A session as the cloud keeps it beside its committer."""

    ticket: int
    tokens: int
    opened_s: float
    send: Callable[[Told], None]
    seated: bool = False
    detached_s: float | None = None
    started_s: float | None = None
    decoding_s: float | None = None
    passes: int = 0
    hint_rows: int = 0
    held: int = 0
    joules: float = 0.0


@dataclass(frozen=True, slots=True)
class Told:
    """A commit on its way down; `guest` is what the cloud knows of the answer."""

    guest: Guest
    position: int
    tokens: int
    rows: int = 0
    hint_rows: int = 0
    held: int = 0
    wish: int = 4
    step_ms: float = 0.0
    done: bool = False


@dataclass(slots=True)
class Cloud:
    env: Any
    """A `simpy.Environment`; its unit is the second."""
    setup: CloudSetup
    committer: Committer
    random: np.random.Generator
    use: CloudUse = field(default_factory=CloudUse)
    guests: dict[int, Guest] = field(default_factory=dict)
    """In the order of their coming."""
    _wake: Any = None
    _seated: int = 0

    def start(self) -> None:
        self._wake = self.env.event()
        self.env.process(self._run())

    # --- sessions --------------------------------------------------------------------------

    def open(
        self, ticket: int, prompt: int, tokens: int, committed: int, send: Callable[[Told], None]
    ) -> bool:
        """Whether it was taken."""
        if len(self.guests) >= self.setup.most_sessions:
            return False
        self.committer.open(ticket, prompt, tokens, committed, self.env.now)
        self.guests[ticket] = Guest(ticket, tokens, self.env.now, send)
        self.wake()
        return True

    def hear(self, ticket: int, seen: int, base: int, tokens: tuple[int, ...]) -> None:
        if ticket in self.guests:
            self.committer.hear(ticket, seen, base, tokens, self.env.now)
            self.wake()

    def detach(self, ticket: int) -> None:
        if (guest := self.guests.get(ticket)) is not None:
            guest.detached_s = self.env.now
            self.committer.detach(ticket)

    def attach(self, ticket: int, seen: int, send: Callable[[Told], None]) -> bool:
        """Its device is back and holds `seen` tokens, and is sent what it missed; False when
        all is forgotten."""
        guest = self.guests.get(ticket)
        if guest is None:
            return False
        if guest.detached_s is not None and self.env.now - guest.detached_s > self.setup.ttl_s:
            self.drop(ticket)
            return False
        guest.detached_s, guest.send = None, send
        committed = self.committer.attach(ticket, seen)
        if committed > seen:
            send(Told(guest, seen, committed - seen))
        if committed >= guest.tokens:
            self.drop(ticket)
        self.wake()
        return True

    def drop(self, ticket: int) -> None:
        guest = self.guests.pop(ticket, None)
        if guest is not None:
            self._seated -= guest.seated
            self.committer.close(ticket)
            self.wake()

    def wake(self) -> None:
        if not self._wake.triggered:
            self._wake.succeed()

    # --- passes ----------------------------------------------------------------------------

    def _run(self) -> Generator[Any, Any, None]:
        while True:
            self._wake = self.env.event()
            self._seat()
            plan = self.committer.plan(self.env.now)
            if plan.rows:
                took_s = self._took_s(plan)
                for guest in self.guests.values():
                    if guest.seated and guest.started_s is None:
                        guest.started_s = self.env.now
                yield self.env.timeout(took_s)
                self._settle(plan, took_s)
                yield self.env.timeout(self.setup.gap_ms / 1e3)
            elif plan.until is None:
                yield self._wake
            else:
                until = self.env.timeout(max(0.0, plan.until - self.env.now))
                yield self._wake | until
                if not self._wake.triggered:
                    self.committer.waited()

    def _seat(self) -> None:
        for guest in self.guests.values():
            if self._seated >= self.setup.slots:
                return
            if not guest.seated and guest.detached_s is None:
                guest.seated = True
                self._seated += 1
                self.committer.seat(guest.ticket)
        self.use.most_seated = max(self.use.most_seated, self._seated)

    def _took_s(self, plan: Pass) -> float:
        ms = step_ms(self.setup, plan.rows)
        spread = self.setup.noise
        if spread:
            ms *= math.exp(spread * self.random.standard_normal() - spread * spread / 2)
        return ms / 1e3

    def _settle(self, plan: Pass, took_s: float) -> None:
        settled = self.committer.settle(took_s * 1e3, self.env.now)
        self.use.passes += 1
        self.use.rows += plan.rows
        self.use.busy_s += took_s
        self._charge(plan, settled, took_s)
        for one in settled:
            if (guest := self.guests.get(one.ticket)) is not None and one.tokens:
                self._tell(guest, one, plan, took_s)

    def _charge(self, plan: Pass, settled: list[Settled], took_s: float) -> None:
        common_s = self.committer.step_ms(plan.answers) / 1e3
        rows = [one.rows for one in settled]
        shares = pass_shares(took_s, min(took_s, common_s), rows)
        for one, share_s in zip(settled, shares, strict=True):
            if (guest := self.guests.get(one.ticket)) is not None:
                guest.joules += share_s * self.setup.watts

    def _tell(self, guest: Guest, one: Settled, plan: Pass, took_s: float) -> None:
        guest.passes += 1
        guest.hint_rows += one.hint_rows
        guest.held += one.held
        guest.decoding_s = self.env.now if guest.decoding_s is None else guest.decoding_s
        self.use.hint_rows += one.hint_rows
        self.use.accepted += one.held
        self.use.committed += one.tokens
        told = Told(
            guest, one.position, one.tokens, plan.rows, one.hint_rows, one.held, one.wish,
            took_s * 1e3, one.done,
        )  # fmt: skip
        guest.send(told)
        if one.done and guest.detached_s is None:
            self._seated -= guest.seated
            guest.seated = False
            del self.guests[guest.ticket]
            self.committer.close(guest.ticket)


def step_ms(setup: CloudSetup, rows: int) -> float:
    """A pass of so many wanted rows, by the rows that are really computed."""
    least = max(rows, setup.minimum)
    padded = -(-least // setup.multiple) * setup.multiple
    return at(setup.step, padded, 0.0)
