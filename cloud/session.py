"""One generation request at the cloud: its choices, what is committed, what goes down."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from outrider.cloud.hints import HintWindow
from outrider.cloud.trigger import TriggerWatch
from outrider.errors import OutriderError
from outrider.protocol.messages import (
    Commit,
    Down,
    EnergyKind,
    Finished,
    Hint,
    Open,
    Reason,
)
from outrider.protocol.sampling import Sampling, TokenLogprobs
from outrider.protocol.state import Ledger
from outrider.protocol.stops import Cutter

LAG_FADE = 0.8


@dataclass(slots=True, eq=False)
class Choice:
    """One answer of a session. Times are seconds on the cloud's monotonic clock."""

    session: Session
    number: int
    sampling: Sampling
    cutter: Cutter
    ledger: Ledger
    window: HintWindow = field(default_factory=HintWindow)
    slot: int | None = None
    """The engine's slot; None until there is one, and after the end."""
    filled: int = 0
    """Tokens of prompt and answer that stand in the slot and are right."""
    opened_at: float = 0.0
    started_at: float | None = None
    """When its first row ran."""
    decoding_at: float | None = None
    """When its first own token was committed."""
    settled_at: float = 0.0
    """When its last commit was made."""
    passed_over: int = 0
    """Passes that ran without it while it waited for a hint."""
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    """Of the tokens committed here, where they were asked for; for a device that missed some."""
    waited: bool = False
    """The last wait ended without a hint."""
    lag_s: float | None = None
    """From a commit to the first hint of a device that had seen it, a fading mean."""
    trigger: TriggerWatch = field(default_factory=TriggerWatch)
    joules: float = 0.0
    """Its share of the passes that computed its rows, estimated."""
    ends: dict[int, float] = field(default_factory=dict)
    """When the answer reached a length; emptied as hints answer for it."""

    @property
    def committed(self) -> list[int]:
        return self.ledger.tokens

    @property
    def done(self) -> bool:
        return self.ledger.finished is not None

    @property
    def pending(self) -> list[int]:
        """Right tokens that the slot does not hold yet; the last one's successor is wanted."""
        prompt = self.session.open.prompt
        if self.filled >= len(prompt):
            return self.committed[self.filled - len(prompt) :]
        return [*prompt[self.filled :], *self.committed]

    @property
    def prefilling(self) -> bool:
        return self.filled + 1 < len(self.session.open.prompt) + len(self.committed)

    def hear(self, hint: Hint, now: float) -> None:
        """Take a hint; a new chain tells how far behind the device is."""
        self.window.offer(hint, self.committed)
        if hint.tokens and hint.base == hint.seen and hint.seen in self.ends:
            lag = now - self.ends[hint.seen]
            fade = LAG_FADE if self.lag_s is not None else 0.0
            self.lag_s = (self.lag_s or 0.0) * fade + lag * (1 - fade)
        self.ends = {end: at for end, at in self.ends.items() if end > hint.seen}
        if self.window.live(len(self.committed)):
            self.waited = False

    def settle(
        self, tokens: Sequence[int], found: Sequence[TokenLogprobs] | None, now: float
    ) -> None:
        """Tokens were committed: compare the hints with them."""
        self.logprobs.extend(found or ())
        self.ledger.tokens.extend(tokens)
        self.window.settle(self.committed)
        self.settled_at = now
        self.ends[len(self.committed)] = now


@dataclass(slots=True, eq=False)
class Session:
    """Its stream may come and go; the choices stay until they end or their time is over."""

    tenant: str
    open: Open
    outbox: asyncio.Queue[Down | OutriderError] = field(default_factory=asyncio.Queue)
    """What the writer sends; an error ends the stream."""
    choices: dict[int, Choice] = field(default_factory=dict)
    attached: bool = True
    detached_at: float = 0.0
    strikes: int = 0
    """Engines that ended while they computed rows of this session."""
    cleared_at: int = 0
    """Committed tokens, of all choices, at which the strikes are forgotten."""

    @property
    def key(self) -> tuple[str, bytes]:
        return self.tenant, self.open.session

    @property
    def done(self) -> bool:
        return all(choice.done for choice in self.choices.values())

    @property
    def name(self) -> str:
        """For events: the session id is random, eight digits tell sessions apart."""
        return self.open.session.hex()[:8]

    @property
    def length(self) -> int:
        """Committed tokens of all choices."""
        return sum(len(choice.committed) for choice in self.choices.values())

    def strike(self, probation: int) -> None:
        """An engine ended on it; `probation` more tokens clear it."""
        self.strikes += 1
        self.cleared_at = self.length + probation

    def clear(self) -> None:
        """After a commit."""
        if self.strikes and self.length >= self.cleared_at:
            self.strikes = 0

    def emit(self, messages: Iterable[Down]) -> None:
        for message in messages:
            self.outbox.put_nowait(message)

    def fail(self, error: OutriderError) -> None:
        self.outbox.put_nowait(error)

    def replay(self, choice: Choice, known: int) -> list[Down]:
        """What a device that holds `known` committed tokens has missed."""
        slots = self.open.slots
        ends = range(known, len(choice.committed), slots)
        missed: list[Down] = [self._again(choice, at, at + slots) for at in ends]
        if choice.ledger.finished is not None:
            missed.append(finished(choice, choice.ledger.finished))
        return missed

    def _again(self, choice: Choice, start: int, stop: int) -> Commit:
        tokens = tuple(choice.committed[start:stop])
        skipped = len(choice.committed) - len(choice.logprobs)
        found = tuple(choice.logprobs[start - skipped : stop - skipped]) if start >= skipped else ()
        return Commit(
            self.open.fence,
            choice.number,
            start,
            tokens,
            logprobs=found if len(found) == len(tokens) else None,
        )


def finished(choice: Choice, reason: Reason) -> Finished:
    started = choice.started_at or choice.opened_at
    decoding = choice.decoding_at or started
    return Finished(
        fence=choice.session.open.fence,
        choice=choice.number,
        reason=reason,
        tokens=len(choice.committed),
        discarded=choice.ledger.discarded,
        queue_us=int((started - choice.opened_at) * 1e6),
        prefill_us=int((decoding - started) * 1e6),
        energy_uj=int(choice.joules * 1e6),
        energy_kind=EnergyKind.ESTIMATED if choice.joules else EnergyKind.NONE,
    )
