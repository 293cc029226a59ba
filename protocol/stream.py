"""What a caller of the edge sees: one typed union from the session to HTTP, SDK and TUI.

Positions count tokens of the answer from 0. `Token` is committed and final;
`Provisional` may be taken back by `Retract`; after `Forked` tokens are the small
model's own and final, and no identity is claimed for them.
"""

from __future__ import annotations

from typing import Literal

import msgspec

Source = Literal["cloud", "accepted", "corrected", "bonus", "edge"]
"""Who produced a token: the target alone; a draft the target agreed with; the target against
a draft; the target after all drafts held; the small model alone."""

FinishReason = Literal["stop", "length", "cancelled", "error"]


class _Base(msgspec.Struct, frozen=True, tag=True, tag_field="type", kw_only=True):
    choice: int = 0


class Started(_Base, frozen=True, tag="started"):
    """The answer begins; once a choice, before its tokens."""

    request: str
    """Its name in status, events and logs, and for who comes back to it."""
    model: str
    """Whose words these are, unless it forks."""
    placement: str
    """Where it begins: `edge`, `cloud`, `draft`, `split`."""
    seed: str
    """Decimal: whoever holds it and the parameters can make the text again."""
    exact: bool
    """The text is what the target alone would say, to the bit."""
    numeric_class: str
    """Digest of all that can change the last bit of a score."""
    prompt_tokens: int
    redacted: dict[str, int] | None = None
    """Values of each kind that were taken out of the prompt and come back in the text; the answer
    is the target's to the redacted prompt. None: nothing was looked for."""


_Bytes = bytes
"""Another name for the type: inside `Logprob` the field would stand for itself."""


class Logprob(msgspec.Struct, frozen=True):
    """One of the best tokens at a position."""

    id: int
    bytes: _Bytes
    """What the token stands for; part of a character is possible."""
    logprob: float
    """Natural logarithm, of the unprocessed scores."""


class Token(_Base, frozen=True, tag="token"):
    """Committed. `text` may be empty while a UTF-8 character is incomplete."""

    position: int
    id: int
    text: str
    source: Source
    t_ms: float
    logprob: float | None = None
    top_logprobs: tuple[Logprob, ...] = ()


class Provisional(_Base, frozen=True, tag="provisional"):
    """Shown while the cloud is away; not final."""

    position: int
    id: int
    text: str
    t_ms: float


class Retract(_Base, frozen=True, tag="retract"):
    """Forget provisional tokens from `position` on."""

    position: int


class Forked(_Base, frozen=True, tag="forked"):
    """From `position` on the answer is the small model's."""

    position: int
    model: str
    reason: str


class Waiting(_Base, frozen=True, tag="waiting"):
    """Nothing new, and why (`reconnecting`, `queued`); clients keep the connection open."""

    reason: str


class Speculation(msgspec.Struct, frozen=True):
    """Per choice; names as in vLLM's `metrics.speculative_decoding`."""

    num_spec_steps: int = 0
    """Passes with at least one hint row."""
    num_draft_tokens: int = 0
    """Hint rows verified."""
    num_accepted_draft_tokens: int = 0
    stale_draft_tokens: int = 0
    """Sent, but dropped unverified."""
    sent_draft_tokens: int = 0
    passes: int = 0
    acceptance_histogram: tuple[int, ...] = ()
    """Entry i: spec steps in which exactly i hint rows were accepted."""
    discarded_target_tokens: int = 0
    """Committed by the target beyond a stop string, and thrown away."""
    predicted_tokens: int = 0
    """Drafts taken from the request's prediction."""
    accepted_predicted_tokens: int = 0


class Done(_Base, frozen=True, tag="done"):
    """The answer is over; once a choice. Times in milliseconds since the request began."""

    finish_reason: FinishReason
    completion_tokens: int
    prompt_tokens: int
    speculation: Speculation
    exact: bool
    mixed_from: int | None
    """Position of the first token that is not the target's; None when all are."""
    class_changed_at: tuple[int, ...]
    queue_ms: float
    prefill_ms: float
    total_ms: float
    ttft_ms: float
    rtt_ms: float | None
    bytes_up: int
    bytes_down: int
    energy_j: float | None = None
    energy_kind: Literal["measured", "estimated", "none"] = "none"
    error: str | None = None
    placement: str = ""
    """Where it ended; `Started` says where it began."""
    placement_reason: str = ""
    decisions: int = 0
    """Changes of placement on the way."""


StreamEvent = Started | Token | Provisional | Retract | Forked | Waiting | Done
