"""The seam between the daemon's faces (HTTP, SDK, CLI) and what makes the answers."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from outrider.partitioner.signals import Share
from outrider.privacy.redact import Rules
from outrider.protocol.constraint import Constraint
from outrider.protocol.sampling import SamplingParams
from outrider.protocol.status import (
    CloudStatus,
    Fallback,
    ModelCard,
    Placement,
    RequestState,
    Status,
)
from outrider.protocol.stream import StreamEvent

if TYPE_CHECKING:
    from outrider.models.served import Served

__all__ = [
    "CloudStatus",
    "EdgeService",
    "Fallback",
    "GenerateRequest",
    "ModelCard",
    "Placement",
    "RequestState",
    "Share",
    "Status",
]


@dataclass(frozen=True, slots=True)
class GenerateRequest:
    """One request for `n` answers; already checked for types, not yet for the model."""

    prompt: str | tuple[int, ...] | tuple[Mapping[str, Any], ...]
    """Text, token ids, or chat messages (rendered with the target's template)."""
    model: str = ""
    """Empty: the default target."""
    sampling: SamplingParams = field(default_factory=SamplingParams)
    n: int = 1
    max_tokens: int | None = None
    """None: up to the context."""
    stop: tuple[str, ...] = ()
    seed: int | None = None
    """None: 128 random bits, returned in `Started`."""
    top_logprobs: int | None = None
    """None: no logprobs; 0: of the chosen token; k: of the best k too."""
    placement: Placement = "auto"
    fallback: Fallback | None = None
    """None: the daemon's setting."""
    exact_required: bool = False
    retract: bool = False
    """The client takes `Provisional` and `Retract`; otherwise it sees final tokens only."""
    tools: tuple[Mapping[str, Any], ...] = ()
    """Functions in OpenAI's form, for the chat template; how a call looks is in `constraint`."""
    constraint: Constraint | None = None
    """What the answer must match."""
    prediction: str = ""
    """Text that the answer probably repeats: drafts are taken from it where it fits."""
    share: Share | None = None
    """What may leave the device; None: the daemon's setting."""
    small_allowed: bool = False
    """The small model's own answer will do, so that `auto` may choose `edge`."""
    redact: Rules = field(default_factory=Rules)
    """What is taken out of the prompt before it leaves, beside what the daemon takes out."""
    linger_s: float = 0.0
    """Seconds for which the answer goes on after its last reader left."""


class EdgeService(Protocol):
    """Raises errors of `outrider.errors`; an error before the first event changes nothing."""

    def generate(self, request: GenerateRequest) -> AsyncIterator[StreamEvent]:
        """First `Started` per choice, then tokens, last `Done` per choice.

        Closing the iterator cancels the work upstream and frees everything; with `linger_s`
        it does so after that time, unless somebody attached meanwhile.
        """
        ...

    def attach(self, request_id: str, positions: Sequence[int]) -> AsyncIterator[StreamEvent]:
        """The rest of a running or just ended request, from a position per choice on."""
        ...

    def cancel(self, request_id: str) -> None:
        """End a running request; nothing happens to one that has ended. Raises NotFound."""
        ...

    async def served(self, request: GenerateRequest) -> Served:
        """Vocabulary, tokenizer and chat template of the model that would answer. Waits for a
        cloud, and raises, as `generate` does."""
        ...

    def render(self, request: GenerateRequest) -> tuple[int, ...]:
        """The prompt's token ids, by the target's tokenizer and chat template."""
        ...

    def detokenize(self, model: str, ids: Sequence[int]) -> bytes: ...

    def models(self) -> tuple[ModelCard, ...]: ...

    def requests(self) -> tuple[RequestState, ...]: ...

    def status(self) -> Status: ...
