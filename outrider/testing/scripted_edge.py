"""A `LocalEdge` whose answers are a given list of events: for what no engine does on demand."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence

from outrider.edge.service import GenerateRequest
from outrider.protocol.stream import (
    Done,
    FinishReason,
    Source,
    Speculation,
    Started,
    StreamEvent,
    Token,
)
from outrider.testing.local_edge import LocalEdge

Step = StreamEvent | Exception | Callable[[], Awaitable[object]]
"""An event to hand out, an error to raise, or something to wait for."""


class ScriptedEdge(LocalEdge):
    """Every request gets the same steps; `closed` counts answers that were ended, early or not."""

    def __init__(self, steps: Sequence[Step]) -> None:
        super().__init__()
        self.steps = steps
        self.asked: list[GenerateRequest] = []
        self.closed = 0

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[StreamEvent, None]:
        self.asked.append(request)
        try:
            for step in self.steps:
                if isinstance(step, Exception):
                    raise step
                if callable(step):
                    await step()
                else:
                    yield step
        finally:
            self.closed += 1


def started(choice: int = 0) -> Started:
    """As a cloud's answer begins."""
    return Started(
        choice=choice,
        request="r1",
        model="big",
        placement="draft",
        seed="7",
        exact=True,
        numeric_class="0123456789abcdef0123456789abcdef",
        prompt_tokens=5,
    )


def token(position: int, text: str, *, choice: int = 0, source: Source = "cloud") -> Token:
    """The id is 1000 + position."""
    return Token(
        choice=choice, position=position, id=1000 + position, text=text, source=source, t_ms=1.0
    )


def done(
    length: int,
    *,
    choice: int = 0,
    reason: FinishReason = "stop",
    mixed_from: int | None = None,
    error: str | None = None,
) -> Done:
    """An answer of `length` tokens, of which three came from seven hint rows in four passes."""
    return Done(
        choice=choice,
        finish_reason=reason,
        completion_tokens=length,
        prompt_tokens=5,
        speculation=Speculation(
            num_spec_steps=4,
            num_draft_tokens=7,
            num_accepted_draft_tokens=3,
            stale_draft_tokens=2,
            sent_draft_tokens=9,
            passes=6,
            acceptance_histogram=(2, 1, 1),
            discarded_target_tokens=1,
        ),
        exact=mixed_from is None,
        mixed_from=mixed_from,
        class_changed_at=(),
        queue_ms=1.0,
        prefill_ms=10.0,
        total_ms=111.0,
        ttft_ms=21.0,
        rtt_ms=40.0,
        bytes_up=300,
        bytes_down=500,
        energy_j=1.5,
        energy_kind="estimated",
        placement="cloud",
        placement_reason="drafting does not pay",
        decisions=1,
        error=error,
    )
