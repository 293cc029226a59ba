"""One request as its events tell it: who made each token, and when what happened. Pure."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Literal

from outrider.protocol import events
from outrider.tui.glyphs import SOURCES

MARKS = 600
"""Hints and commits that a request keeps, the latest."""
POSITIONS = 4096
"""Tokens of a choice whose source is kept."""
CODES = {name: number for number, name in enumerate(SOURCES)}

Phase = Literal["running", "waiting", "provisional", "done"]


@dataclass(frozen=True, slots=True)
class Mark:
    """Something on the way between device and cloud, at `t_ms` of the daemon's clock."""

    t_ms: float
    kind: Literal["hint", "commit", "local", "cut", "back"]
    tokens: int = 0
    ms: float = 0.0
    """Of drafting a hint, or of the pass of a commit."""
    hint_rows: int = 0
    from_hints: int = 0
    rows: int = 0


@dataclass(slots=True)
class Ride:
    id: str
    placement: str = ""
    prompt_tokens: int = 0
    began_ms: float = 0.0
    began_at: float = 0.0
    """Unix seconds."""
    last_ms: float = 0.0
    phase: Phase = "running"
    choices: list[bytearray] = field(default_factory=list)
    """Per choice one code a token, an index into `SOURCES`."""
    finals: list[int] = field(default_factory=list)
    """Per choice: tokens that are final; what follows is provisional."""
    marks: deque[Mark] = field(default_factory=lambda: deque(maxlen=MARKS))
    passes: int = 0
    sent: int = 0
    hint_rows: int = 0
    accepted: int = 0
    first_ms: float | None = None
    """From its start to the first token."""
    done: events.RequestDone | None = None
    moves: int = 0
    """Changes of placement."""

    @property
    def tokens(self) -> int:
        if self.done is not None:
            return self.done.completion_tokens
        return sum(self.finals)

    @property
    def rate(self) -> float | None:
        """Tokens a second from the first token on."""
        if self.first_ms is None or self.tokens < 2:
            return None
        ms = self.last_ms - self.began_ms - self.first_ms
        return 1e3 * (self.tokens - 1) / ms if ms > 0 else None

    @property
    def acceptance(self) -> float | None:
        return self.accepted / self.hint_rows if self.hint_rows else None

    def sources(self) -> dict[str, int]:
        """Kept tokens by who made them."""
        codes = b"".join(self.choices)
        return {name: codes.count(code) for name, code in CODES.items()}

    # --- events ----------------------------------------------------------------------------

    def started(self, event: events.RequestStarted) -> None:
        self.placement, self.prompt_tokens = event.placement, event.prompt_tokens
        self.began_ms = self.last_ms = event.t_ms
        self.began_at = event.at

    def hint(self, event: events.HintSent) -> None:
        self._at(event)
        self.sent += event.tokens
        self.marks.append(Mark(event.t_ms, "hint", event.tokens, event.draft_ms))

    def commit(self, event: events.CommitReceived) -> None:
        self._at(event)
        self._first(event.t_ms)
        self.phase = "running"
        self.passes += 1
        self.hint_rows += event.hint_rows
        self.accepted += event.from_hints
        self._write(event.choice, event.position, _codes(event))
        self.finals[event.choice] = event.position + event.tokens
        self.marks.append(
            Mark(
                event.t_ms,
                "commit",
                event.tokens,
                event.step_ms,
                event.hint_rows,
                event.from_hints,
                event.rows,
            )
        )

    def local(self, event: events.LocalTokens) -> None:
        self._at(event)
        self._first(event.t_ms)
        code = CODES["provisional" if event.provisional else "edge"]
        self._write(event.choice, event.position, bytes([code]) * event.tokens)
        if event.provisional:
            self.phase = "provisional"
        else:
            self.finals[event.choice] = event.position + event.tokens
        self.marks.append(Mark(event.t_ms, "local", event.tokens))

    def fallback(self, event: events.Fallback) -> None:
        self._at(event)
        if event.to == "cloud":
            self.phase = "running"
            self.marks.append(Mark(event.t_ms, "back"))
            return
        self.phase = "waiting" if event.to == "wait" else self.phase
        if event.to in ("fork", "provisional"):
            self.phase = "provisional" if event.to == "provisional" else "running"
            self.placement = "edge" if event.to == "fork" else self.placement
        self.marks.append(Mark(event.t_ms, "cut"))

    def moved(self, event: events.Decision) -> None:
        if event.phase == "made" and event.what == "placement":
            self.placement = event.new
            self.moves += 1

    def ended(self, event: events.RequestDone) -> None:
        self._at(event)
        self.done, self.phase = event, "done"
        if event.ttft_ms:
            self.first_ms = event.ttft_ms
        self.hint_rows, self.accepted = event.hint_rows, event.accepted
        self.passes, self.sent = event.passes, event.sent

    def _at(self, event: events.Event) -> None:
        self.last_ms = event.t_ms
        if not self.began_ms:
            # A reader that came late knows the request from here on.
            self.began_ms, self.began_at = event.t_ms, event.at

    def _first(self, t_ms: float) -> None:
        if self.first_ms is None:
            self.first_ms = t_ms - self.began_ms

    def _write(self, choice: int, position: int, codes: bytes) -> None:
        """A commit takes the place of what was provisional from its position on."""
        while len(self.choices) <= choice:
            self.choices.append(bytearray())
            self.finals.append(0)
        known = self.choices[choice]
        if position > len(known):
            # Missed, or made before this reader came.
            known.extend(bytes([CODES["cloud"]]) * min(POSITIONS, position - len(known)))
        known[position:] = codes
        del known[POSITIONS:]


def _codes(event: events.CommitReceived) -> bytes:
    """Of the tokens of a commit, in order; as `edge/answer.py` names them."""
    accepted = min(event.from_hints, event.tokens)
    rest = "bonus" if event.from_hints == event.hint_rows else "corrected"
    name = rest if event.hint_rows else "cloud"
    return bytes([CODES["accepted"]]) * accepted + bytes([CODES[name]]) * (event.tokens - accepted)
