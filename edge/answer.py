"""One choice of a request at the device: what is committed, what was drafted, what is shown."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import msgspec

from outrider.edge.drafter import Lane
from outrider.edge.text import TextStream
from outrider.errors import RemoteProtocolError
from outrider.partitioner.acceptance import Acceptance
from outrider.protocol.messages import Commit, Finished, Hint, Reason
from outrider.protocol.sampling import TokenLogprobs
from outrider.protocol.state import Ledger
from outrider.protocol.stops import Cutter
from outrider.protocol.stream import (
    Forked,
    Logprob,
    Provisional,
    Retract,
    Source,
    Speculation,
    StreamEvent,
    Token,
)
from outrider.protocol.vocabulary import Vocabulary

ACK_SHARE = 4
"""An acknowledgement without drafts goes up when a quarter of the window is unseen."""
PROBE_EVERY = 24
"""Committed tokens between two probes of a drafter that the committer does not want."""


@dataclass(slots=True)
class Counts:
    passes: int = 0
    spec_steps: int = 0
    hint_rows: int = 0
    accepted: int = 0
    sent: int = 0
    discarded: int = 0
    histogram: list[int] = field(default_factory=list)

    def note(self, commit: Commit) -> None:
        self.passes += 1
        if commit.hint_rows:
            self.spec_steps += 1
            self.hint_rows += commit.hint_rows
            self.accepted += commit.from_hints
            while len(self.histogram) <= commit.from_hints:
                self.histogram.append(0)
            self.histogram[commit.from_hints] += 1

    def speculation(self) -> Speculation:
        return Speculation(
            num_spec_steps=self.spec_steps,
            num_draft_tokens=self.hint_rows,
            num_accepted_draft_tokens=self.accepted,
            stale_draft_tokens=max(0, self.sent - self.hint_rows),
            sent_draft_tokens=self.sent,
            passes=self.passes,
            acceptance_histogram=tuple(self.histogram),
            discarded_target_tokens=self.discarded,
        )


@dataclass(slots=True, eq=False)
class Answer:
    """Committed tokens stand in `ledger`; provisional ones are the lane's chain, shown ahead."""

    number: int
    vocabulary: Vocabulary
    ledger: Ledger
    cutter: Cutter
    text: TextStream
    now_ms: Callable[[], float]
    """Milliseconds since the request began."""
    emit: Callable[[StreamEvent], None]
    lane: Lane | None = None
    wish: int = 4
    """Hint tokens that the committer would look at."""
    sent_end: int = 0
    """The chain was sent up to this position."""
    acknowledged: int = 0
    counts: Counts = field(default_factory=Counts)
    shown: list[int] = field(default_factory=list)
    """Provisional tokens that were shown past the committed end."""
    shown_text: TextStream | None = None
    shown_cutter: Cutter | None = None
    shown_reason: Reason | None = None
    forked_at: int | None = None
    reason: Reason | None = None
    first_ms: float | None = None
    queue_ms: float = 0.0
    prefill_ms: float = 0.0
    drafting: bool = True
    """Whether drafts are wanted for the cloud; what a lane says while it is away is another
    matter."""
    acceptance: Acceptance | None = None
    """Told how far each chain held."""
    held: int = 0
    """Tokens of the present chain that held so far."""

    @property
    def done(self) -> bool:
        return self.reason is not None

    @property
    def end(self) -> int:
        return len(self.ledger.tokens)

    # --- commits ---------------------------------------------------------------------------

    def commit(self, message: Commit) -> tuple[int, ...]:
        """Take committed tokens over; the new ones. Raises RemoteProtocolError."""
        fresh = self.ledger.commit(message.position, message.tokens, message.fence)
        if not fresh:
            return ()
        self.counts.note(message)
        self.wish = message.wish
        if self.done:
            raise RemoteProtocolError("a commit came after the answer's end")
        skipped = len(message.tokens) - len(fresh)
        for offset, token in enumerate(fresh, start=skipped):
            found = _logprobs(message, offset)
            self._final(message.position + offset, token, source_of(message, offset), found)
        if self.lane is not None:
            self._compare(self.lane.chain, fresh)
            self.lane.commit(fresh)
            if not self.lane.chain:
                # What will be drafted now begins a new chain, wherever the old one ended.
                self.sent_end = self.end
        if self.done:
            self._rest()
        return fresh

    def _compare(self, chain: Sequence[int], fresh: Sequence[int]) -> None:
        """Learn from each drafted token whether it held."""
        pairs = zip(chain, fresh, strict=False)
        held = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(chain), len(fresh)))
        broke = held < min(len(chain), len(fresh))
        foretold = self.lane is not None and self.lane.foretold is not None
        if self.acceptance is not None and not foretold:
            self.acceptance.follow(held, self.held, broke=broke)
        over = broke or len(chain) < len(fresh)
        self.held = 0 if over else self.held + held

    def _final(
        self, position: int, token: int, source: Source, found: TokenLogprobs | None
    ) -> None:
        self._confirm(position, token)
        reason = self.cutter.feed(token)
        text = self.text.feed(token)
        if reason is not None:
            text += self.text.end()
            self.reason = reason
        self.first_ms = self.first_ms if self.first_ms is not None else self.now_ms()
        self.emit(
            Token(
                choice=self.number,
                position=position,
                id=token,
                text=text,
                source=source,
                t_ms=self.now_ms(),
                logprob=None if found is None else found.chosen,
                top_logprobs=() if found is None else self._named(found.top),
            )
        )

    def _named(self, top: Sequence[tuple[int, float]]) -> tuple[Logprob, ...]:
        size = len(self.vocabulary)
        return tuple(Logprob(i, self.vocabulary.tokens[i], v) for i, v in top if i < size)

    def finish(self, message: Finished) -> None:
        """The committer's own end; raises RemoteProtocolError when it differs from ours."""
        if self.ledger.finish(message):
            self.queue_ms = message.queue_us / 1e3
            self.prefill_ms = message.prefill_us / 1e3
            self.counts.discarded = message.discarded
            if self.reason is None:
                self.reason = message.reason
                self._rest()

    def _rest(self) -> None:
        if self.lane is not None:
            self.lane.depth = 0

    # --- drafts ----------------------------------------------------------------------------

    @property
    def sends(self) -> bool:
        """Whether there may be something to send: the model's drafts, or what is foretold."""
        return self.drafting or (self.lane is not None and self.lane.foretold is not None)

    def speculation(self) -> Speculation:
        """The counts, with what became of a prediction."""
        lane = self.lane
        if lane is None:
            return self.counts.speculation()
        right, wrong = lane.foretold_right, lane.foretold_wrong + len(lane.told)
        return msgspec.structs.replace(
            self.counts.speculation(),
            predicted_tokens=right + wrong,
            accepted_predicted_tokens=right,
        )

    def aim(self, cap: int | None, floor: int = 0) -> None:
        """Set how far the lane drafts ahead, from the committer's wish; at least `floor`."""
        if self.lane is None or self.done:
            return
        if not self.sends:
            self.lane.depth = 0
            return
        self.lane.resting = not self.drafting
        wish = self.wish
        if wish == 0 and self.end % PROBE_EVERY == 0:
            wish = 1
        wish = max(wish, floor)
        self.lane.depth = wish if cap is None else min(wish, cap)
        self.lane.foretell()

    def hint(self, slots: int, ahead: int) -> Hint | None:
        """What there is to send: new drafts, or an acknowledgement that is due."""
        lane = self.lane if self.sends and not self.done else None
        chain = lane.chain if lane is not None else []
        chain_end = self.end + len(chain)
        if not self.end < self.sent_end <= chain_end:
            self.sent_end = self.end
        fresh = tuple(chain[self.sent_end - self.end :][:slots])
        if not fresh and self.end - self.acknowledged < max(1, ahead // ACK_SHARE):
            return None
        hint = Hint(self.ledger.fence, self.number, self.end, self.sent_end, fresh)
        self.sent_end += len(fresh)
        self.counts.sent += len(fresh)
        self.acknowledged = self.end
        return hint

    def reconnect(self, fence: int) -> None:
        """A new stream: everything past the committed end has to be sent again."""
        self.ledger.fence = fence
        self.sent_end = self.end
        self.acknowledged = self.end

    # --- while the cloud is away -----------------------------------------------------------

    def show(self) -> int:
        """Show what the chain has grown by as provisional; how many tokens that were."""
        if self.lane is None or self.done:
            return 0
        if self.shown_text is None or self.shown_cutter is None:
            self.shown_text, self.shown_cutter = self.text.copy(), self.cutter.copy()
        before = len(self.shown)
        for token in self.lane.chain[before:]:
            if self.shown_reason is not None:
                break
            self._show(token, self.shown_text, self.shown_cutter)
        return len(self.shown) - before

    def _show(self, token: int, text: TextStream, cutter: Cutter) -> None:
        position = self.end + len(self.shown)
        self.shown.append(token)
        self.shown_reason = cutter.feed(token)
        piece = text.feed(token) + (text.end() if self.shown_reason is not None else "")
        self.emit(
            Provisional(
                choice=self.number, position=position, id=token, text=piece, t_ms=self.now_ms()
            )
        )

    def _confirm(self, position: int, token: int) -> None:
        """A final token takes the place of a shown one; a different one takes all back."""
        if not self.shown:
            self._forget()
            return
        if self.shown[0] == token:
            del self.shown[0]
            if not self.shown:
                self._forget()
            return
        self.emit(Retract(choice=self.number, position=position))
        self._forget()

    def _forget(self) -> None:
        self.shown.clear()
        self.shown_text = self.shown_cutter = self.shown_reason = None

    def fork(self, model: str, why: str) -> None:
        """From here on the small model's tokens are final."""
        self.forked_at = self.end
        self.emit(Forked(choice=self.number, position=self.end, model=model, reason=why))

    def take_local(self) -> int:
        """After a fork: the chain's tokens become final; how many."""
        if self.lane is None or self.done:
            return 0
        taken = 0
        while self.lane.chain and not self.done:
            token = self.lane.chain[0]
            self.ledger.tokens.append(token)
            self._final(self.end - 1, token, "edge", None)
            self.lane.commit((token,))
            taken += 1
        if self.done:
            self._rest()
        return taken


def source_of(message: Commit, offset: int) -> Source:
    """Who produced the token at `offset` of a commit."""
    if offset < message.from_hints:
        return "accepted"
    if not message.hint_rows:
        return "cloud"
    return "bonus" if message.from_hints == message.hint_rows else "corrected"


def _logprobs(message: Commit, offset: int) -> TokenLogprobs | None:
    found = message.logprobs
    return None if found is None or offset >= len(found) else found[offset]
