"""The words of a session, as frozen values. Sizes and meaning: SPEC.md. No I/O here."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from outrider.protocol.constraint import Constraint, constrained_class
from outrider.protocol.sampling import SamplingParams, TokenLogprobs

VERSION = 1
SLOT_CLASSES = (8, 16, 32)


class Reason(IntEnum):
    """Why a choice ended."""

    STOP = 1
    LENGTH = 2
    CANCELLED = 3


class CloseReason(IntEnum):
    CANCELLED = 1
    GOING = 2


class EnergyKind(IntEnum):
    NONE = 0
    ESTIMATED = 1
    MEASURED = 2


@dataclass(frozen=True, slots=True)
class ChoiceOpen:
    choice: int
    committed: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Open:
    """Edge: start a session, or take it up again with a higher fence."""

    session: bytes
    fence: int
    prompt: tuple[int, ...]
    choices: tuple[ChoiceOpen, ...]
    sampling: SamplingParams
    seed: int
    max_tokens: int
    slots: int = 8
    model: str = ""
    vocabulary_digest: str = ""
    numeric_class: str = ""
    exact_required: bool = False
    stop: tuple[bytes, ...] = ()
    top_logprobs: int | None = None
    version: int = VERSION
    constraint: Constraint | None = None
    """What every choice's text must match."""


@dataclass(frozen=True, slots=True)
class Opened:
    """Cloud: the session lives; `numeric_class` is what its text is a function of."""

    fence: int
    model: str
    model_digest: str
    vocabulary_digest: str
    numeric_class: str
    exact: bool
    context: int
    ahead: int
    heartbeat_ms: int
    resumed: bool
    version: int = VERSION
    masks: str = ""
    """What keeps the answer to the constraint of the open; empty: there is none, or this cloud
    knows of no such thing."""


@dataclass(frozen=True, slots=True)
class Hint:
    """Edge: draft tokens for positions `base ...` of the answer, a chain.

    `seen` is how many committed tokens the edge has applied: the acknowledgement.
    `base == seen` starts a new chain; a larger base continues the chain sent
    before. Without tokens it only acknowledges.
    """

    fence: int
    choice: int
    seen: int
    base: int
    tokens: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Commit:
    """Cloud: committed tokens at `position ...` of the answer.

    The first `from_hints` of them were hints; `hint_rows` were verified by the pass
    and `rows` computed in it for all sessions together.
    """

    fence: int
    choice: int
    position: int
    tokens: tuple[int, ...]
    hint_rows: int = 0
    from_hints: int = 0
    wish: int = 0
    """Hint tokens past the committed end that the committer would look at."""
    rows: int = 0
    step_us: int = 0
    logprobs: tuple[TokenLogprobs, ...] | None = None
    check: bytes = b""
    """On a sealed stream, in every 16th commit: what was committed so far, as a hash."""


@dataclass(frozen=True, slots=True)
class Finished:
    """Cloud: a choice has ended with `tokens` committed tokens."""

    fence: int
    choice: int
    reason: Reason
    tokens: int
    discarded: int = 0
    queue_us: int = 0
    prefill_us: int = 0
    energy_uj: int = 0
    energy_kind: EnergyKind = EnergyKind.NONE


@dataclass(frozen=True, slots=True)
class Close:
    """Edge: nothing more is wanted; the cloud frees everything."""

    reason: CloseReason = CloseReason.CANCELLED


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """Either side, in silence only."""

    sent_us: int
    echo_us: int = 0


# --- the sealed channel: what the bytes hold say privacy/handshake.py and privacy/frames.py ------


@dataclass(frozen=True, slots=True)
class Hello:
    """Edge: this stream is to be sealed."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Accept:
    """Cloud: who answers, and that it can be."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Finish:
    """Edge: who asks, for what, and the open; all of it sealed."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Frame:
    """Either side: any other message, sealed."""

    data: bytes


Up = Open | Hint | Close | Heartbeat | Hello | Finish | Frame
Down = Opened | Commit | Finished | Heartbeat | Accept | Frame


@dataclass(frozen=True, slots=True)
class ModelDescription:
    """What a cloud says of one model it serves."""

    name: str
    model_digest: str
    vocabulary_digest: str
    numeric_class: str
    vocabulary_size: int
    context: int
    exact: bool
    engine: str
    device: str
    dtype: str
    end_ids: tuple[int, ...]
    chat_template: str
    tokenizer_digest: str
    created: int
    bos: str = ""
    eos: str = ""
    tokenizer_json: bytes = b""
    masks: str = ""
    """Name and version of what computes the masks of constraints; empty: none are taken."""
    attestation: str = "none"
    """What it says that it can prove of the machine it runs on."""

    def class_of(self, constraint: Constraint | None) -> str:
        """The numeric class of a session with this constraint, or with none."""
        if constraint is None:
            return self.numeric_class
        return constrained_class(self.numeric_class, self.masks)
