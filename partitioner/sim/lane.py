"""One answer at its device in virtual time: what is committed, drafted, sent and acknowledged.

`edge/answer.py` and the lane of `edge/drafter.py` without text: a draft is RIGHT or WRONG.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from outrider.partitioner.sim.agreement import Bits
from outrider.partitioner.sim.committer import RIGHT, WRONG
from outrider.partitioner.sim.steer import Steer
from outrider.partitioner.sim.trace import Ask

SLOTS = 8
"""Tokens of a hint."""
BURST = 8
PREFILL_ROWS = 64
PROBE_EVERY = 24
FIRST_WISH = 4


@dataclass(frozen=True, slots=True)
class Hint:
    seen: int
    base: int
    tokens: tuple[int, ...]


@dataclass(slots=True, eq=False)
class Lane:
    ask: Ask
    number: int
    bits: Bits
    steer: Steer
    end: int = 0
    """Committed tokens that were applied."""
    chain: list[int] = field(default_factory=list)
    depth: int = 0
    wish: int = FIRST_WISH
    sent_end: int = 0
    acknowledged: int = 0
    held: int = 0
    filled: int = 0
    """Tokens of prompt, answer and chain that stand in the drafter's slot and are right."""
    first_s: float | None = None
    last_s: float = 0.0
    over: bool = False
    epoch: int = 0
    """Rises with every stream that broke; what belongs to an older one is dropped."""
    refused: int = 0
    busy_s: float = 0.0
    messages: int = 0

    def commit(self, tokens: int, now: float) -> None:
        """Committed tokens came down."""
        count = min(tokens, len(self.chain))
        held = next((i for i in range(count) if self.chain[i] != RIGHT), count)
        broke = held < count
        self.steer.acceptance.follow(held, self.held, broke=broke)
        ended = broke or len(self.chain) < tokens
        self.held = 0 if ended else self.held + held
        if broke:
            self.filled = min(self.filled, self.ask.prompt + self.end + held)
        self.chain = [] if ended else self.chain[tokens:]
        self.end += tokens
        if not self.chain:
            self.sent_end = self.end
        self.first_s = now if self.first_s is None else self.first_s
        self.last_s = now
        self.over = self.end >= self.ask.tokens

    def aim(self, *, drafts: bool) -> None:
        """Set how far to draft ahead, from the committer's wish and the policy's depth."""
        if self.over or not drafts:
            self.depth = 0
            return
        wish = self.wish
        if wish == 0 and self.end % PROBE_EVERY == 0:
            wish = 1
        cap = self.steer.depth
        self.depth = wish if cap is None else min(wish, cap)

    def hint(self, ahead: int, *, drafts: bool) -> Hint | None:
        """What there is to send."""
        chain = self.chain if drafts and not self.over else []
        if not self.end < self.sent_end <= self.end + len(chain):
            self.sent_end = self.end
        fresh = tuple(chain[self.sent_end - self.end :][:SLOTS])
        if not fresh and self.end - self.acknowledged < max(1, ahead // 4):
            return None
        hint = Hint(self.end, self.sent_end, fresh)
        self.sent_end += len(fresh)
        self.acknowledged = self.end
        return hint

    def reconnect(self) -> None:
        self.sent_end = self.acknowledged = self.end

    def wants(self) -> bool:
        return not self.over and len(self.chain) < self.depth


@dataclass(slots=True)
class Job:
    """What a lane asks of a burst."""

    lane: Lane
    final: int
    """Its committed end when the job was made."""
    length: int
    """With its chain."""
    base: int
    """What stood in the slot and was right."""
    rows: int
    """Of the first pass."""
    want: int
    """0 while a prompt goes on being filled."""
    good: bool
    drafted: list[int] = field(default_factory=list)

    @classmethod
    def of(cls, lane: Lane) -> Job:
        length = lane.end + len(lane.chain)
        whole = lane.ask.prompt + length
        base = min(lane.filled, whole - 1)
        good = not lane.chain or lane.chain[-1] == RIGHT
        if whole - base > PREFILL_ROWS:
            return cls(lane, lane.end, length, base, PREFILL_ROWS, 0, good)
        want = min(BURST, lane.depth - len(lane.chain))
        return cls(lane, lane.end, length, base, whole - base, want, good)

    def step(self) -> bool:
        """One more token; whether to go on."""
        if not self.want:
            return False
        position = self.length + len(self.drafted)
        self.good = self.good and self.lane.bits.right(position)
        self.drafted.append(RIGHT if self.good else WRONG)
        return len(self.drafted) < self.want and self.holds()

    def holds(self) -> bool:
        """Whether what was committed meanwhile agrees with what was drafted on."""
        lane = self.lane
        fresh = lane.end - self.final
        if not fresh:
            return True
        # A chain that broke is gone, so all of it that is past was right.
        broke = any(token != RIGHT for token in self._foreseen()[:fresh])
        return not broke

    def _foreseen(self) -> list[int]:
        """From the committed end when the job was made: its chain, and these drafts."""
        bits = self.lane.bits
        chain = [RIGHT if bits.right(p) else WRONG for p in range(self.final, self.length)]
        return [*chain, *self.drafted]

    def take(self) -> None:
        """Into the lane, as far as it still fits."""
        lane = self.lane
        fed = self.base + self.rows + max(0, len(self.drafted) - 1)
        if not self.holds():
            # What the slot holds is right up to the first token that was not committed.
            wrong = self._foreseen().index(WRONG)
            lane.filled = min(fed, lane.ask.prompt + self.final + wrong)
            return
        lane.filled = fed
        known = lane.end + len(lane.chain) - self.length
        lane.chain.extend(self.drafted[max(0, known) :])
