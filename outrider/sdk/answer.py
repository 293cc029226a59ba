"""Answers: folded from events, by both clients alike."""

from __future__ import annotations

from dataclasses import dataclass, field

from outrider.errors import OutriderError
from outrider.protocol.faults import of_done
from outrider.protocol.stream import (
    Done,
    FinishReason,
    Forked,
    Provisional,
    Retract,
    Speculation,
    Started,
    StreamEvent,
    Token,
)
from outrider.protocol.trace import Commit, Decision, Draft, Energy, Event, Fallback
from outrider.sdk.errors import mirrored


@dataclass(frozen=True, slots=True)
class Choice:
    """One finished answer."""

    index: int
    text: str
    tokens: tuple[Token, ...]
    """Committed tokens, each with its source; after a fork the small model's own."""
    finish_reason: FinishReason
    mixed_from: int | None
    """Position of the first token that is not the target's; None when all are."""
    done: Done
    """Counts, times in milliseconds, bytes and joules."""


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of the final text, all choices together."""

    prompt_tokens: int
    completion_tokens: int
    accepted_draft_tokens: int
    """Drafts that the target agreed with."""
    rejected_draft_tokens: int
    """Drafts that it verified and did not agree with."""

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True, slots=True)
class Metrics:
    """Of the first choice, but for bytes, which are the whole request's. Milliseconds."""

    ttft_ms: float
    """From the question, as the daemon got it, to the first token."""
    total_ms: float
    queue_ms: float
    """At the cloud, until the first row."""
    prefill_ms: float
    mean_itl_ms: float | None
    """Between two tokens; None for an answer of one."""
    tokens_per_second: float | None
    rtt_ms: float | None
    """Of the link to the cloud; None where there was none."""
    bytes_up: int
    bytes_down: int
    speculation: Speculation

    @property
    def acceptance_length(self) -> float | None:
        """Tokens a pass with hints: 1 + accepted / such passes; None when there was none."""
        counts = self.speculation
        steps = counts.num_spec_steps
        return 1 + counts.num_accepted_draft_tokens / steps if steps else None


@dataclass(frozen=True, slots=True)
class Placed:
    """Where an answer ran, and why."""

    began: str
    ended: str
    reason: str
    """Why it ended there."""
    changes: int
    """Of placement, on the way."""
    decisions: tuple[Decision, ...]
    """Each with its reasons and alternatives; told with `trace="events"` only."""
    fallbacks: tuple[Fallback, ...]
    """The same for the cloud's absences."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What `complete` and `chat` return. With `n` > 1 the properties speak of the first choice."""

    request: str
    """Its name in `status`, logs and `resume`."""
    model: str
    placement: str
    seed: str
    """Decimal; with the same parameters it makes the same text again."""
    numeric_class: str
    prompt_tokens: int
    choices: tuple[Choice, ...]
    plan: Placed
    energy: Energy
    """Joules of the whole request; their parts with `trace="events"` only."""

    @property
    def text(self) -> str:
        return self.choices[0].text

    @property
    def tokens(self) -> tuple[Token, ...]:
        return self.choices[0].tokens

    @property
    def finish_reason(self) -> FinishReason:
        return self.choices[0].finish_reason

    @property
    def exact(self) -> bool:
        """Every choice is what the target alone would have said."""
        return all(choice.done.exact for choice in self.choices)

    @property
    def mixed(self) -> bool:
        """Some choice is partly the small model's."""
        return any(choice.mixed_from is not None for choice in self.choices)

    @property
    def completion_tokens(self) -> int:
        return sum(choice.done.completion_tokens for choice in self.choices)

    @property
    def usage(self) -> Usage:
        counts = [choice.done.speculation for choice in self.choices]
        accepted = sum(count.num_accepted_draft_tokens for count in counts)
        drafted = sum(count.num_draft_tokens for count in counts)
        return Usage(self.prompt_tokens, self.completion_tokens, accepted, drafted - accepted)

    @property
    def metrics(self) -> Metrics:
        done = self.choices[0].done
        spent_ms, more = done.total_ms - done.ttft_ms, done.completion_tokens - 1
        itl_ms = spent_ms / more if more > 0 and spent_ms > 0 else None
        return Metrics(
            ttft_ms=done.ttft_ms,
            total_ms=done.total_ms,
            queue_ms=done.queue_ms,
            prefill_ms=done.prefill_ms,
            mean_itl_ms=itl_ms,
            tokens_per_second=None if itl_ms is None else 1e3 / itl_ms,
            rtt_ms=done.rtt_ms,
            bytes_up=done.bytes_up,
            bytes_down=done.bytes_down,
            speculation=done.speculation,
        )

    @property
    def acceptance_rate(self) -> float | None:
        """Accepted hint rows / verified hint rows; None when none was verified."""
        drafted = sum(choice.done.speculation.num_draft_tokens for choice in self.choices)
        taken = sum(choice.done.speculation.num_accepted_draft_tokens for choice in self.choices)
        return taken / drafted if drafted else None


@dataclass(slots=True)
class _Growing:
    started: Started
    tokens: list[Token] = field(default_factory=list)
    tail: dict[int, str] = field(default_factory=dict)
    """Provisional text by position."""
    forked: Forked | None = None
    done: Done | None = None

    def take(self, event: StreamEvent) -> bool:
        """False for what was there before the connection was made again."""
        if isinstance(event, Token):
            return self._commit(event)
        if self.done is not None or (self.forked is not None and isinstance(event, Forked)):
            return False
        if isinstance(event, Provisional):
            self.tail[event.position] = event.text
        elif isinstance(event, Retract):
            self.tail = {at: text for at, text in self.tail.items() if at < event.position}
        elif isinstance(event, Forked):
            self.forked = event
        elif isinstance(event, Done):
            self.done = event
        return True

    def _commit(self, token: Token) -> bool:
        at = self.end
        if token.position < at:
            return False
        if token.position > at and self.tokens:
            gap = OutriderError(
                "the stream has a gap",
                why=f"token {token.position} came after token {at - 1}",
                effect="the answer was cancelled",
                todo="please report it",
            )
            raise mirrored(gap)
        self.tokens.append(token)
        self.tail.pop(token.position, None)
        return True

    @property
    def end(self) -> int:
        """Position of the next token."""
        return self.tokens[-1].position + 1 if self.tokens else 0

    def text(self) -> str:
        return "".join(token.text for token in self.tokens)


class Fold:
    """Feed the events of one request; read what is shown now, and the answer at the end."""

    def __init__(self) -> None:
        self._choices: dict[int, _Growing] = {}
        self._decisions: list[Decision] = []
        self._fallbacks: list[Fallback] = []
        self._energy: Energy | None = None

    def take(self, event: Event) -> bool:
        """False for an event that was taken before: after a cut some come again."""
        match event:
            case Decision():
                self._decisions.append(event)
            case Fallback():
                self._fallbacks.append(event)
            case Energy():
                self._energy = event
            case Draft() | Commit():
                pass
            case Started():
                if event.choice in self._choices:
                    return False
                self._choices[event.choice] = _Growing(event)
            case _:
                growing = self._choices.get(event.choice)
                return growing is None or growing.take(event)
        return True

    @property
    def request(self) -> str:
        """Its name; empty before the first `Started`."""
        return next((one.started.request for one in self._choices.values()), "")

    def positions(self, choices: int) -> tuple[int, ...]:
        """Of the next token, per choice."""
        ends = (self._choices.get(number) for number in range(choices))
        return tuple(one.end if one is not None else 0 for one in ends)

    def retractions(self) -> list[Retract]:
        """Takes back what is shown and not committed: on another connection it does not come
        again."""
        return [
            Retract(choice=number, position=min(one.tail))
            for number, one in self._choices.items()
            if one.tail
        ]

    def shown(self, choice: int = 0) -> str:
        """Committed text, and the provisional tail after it."""
        one = self._choices.get(choice)
        if one is None:
            return ""
        return one.text() + "".join(text for _, text in sorted(one.tail.items()))

    def answer(self) -> Answer:
        """The finished answer. Raises the error that ended it."""
        choices = tuple(_finished(i, one) for i, one in sorted(self._choices.items()))
        if not choices:
            raise mirrored(OutriderError("the stream ended before the answer began"))
        first = self._choices[min(self._choices)]
        return Answer(
            request=first.started.request,
            model=_served(first),
            placement=first.started.placement,
            seed=first.started.seed,
            numeric_class=first.started.numeric_class,
            prompt_tokens=first.started.prompt_tokens,
            choices=choices,
            plan=self._placed(first),
            energy=self._energy or _energy(choices),
        )

    def _placed(self, one: _Growing) -> Placed:
        assert one.done is not None
        began = one.started.placement
        return Placed(
            began=began,
            ended=one.done.placement or began,
            reason=one.done.placement_reason,
            changes=one.done.decisions,
            decisions=tuple(self._decisions),
            fallbacks=tuple(self._fallbacks),
        )


def _energy(choices: tuple[Choice, ...]) -> Energy:
    """From the end of the answer; every choice tells the whole request's."""
    joules, kind = choices[0].done.energy_j, choices[0].done.energy_kind
    tokens = sum(choice.done.completion_tokens for choice in choices)
    per_token = joules / tokens if joules is not None and tokens else None
    return Energy(joules=joules, joules_per_token=per_token, kind=kind)


def _finished(index: int, one: _Growing) -> Choice:
    done = one.done
    if done is None:
        early = OutriderError("the stream ended before the answer did", todo="ask again, or resume")
        raise mirrored(early)
    if done.finish_reason in ("error", "cancelled"):
        raise mirrored(of_done(done))
    return Choice(index, one.text(), tuple(one.tokens), done.finish_reason, done.mixed_from, done)


def _served(one: _Growing) -> str:
    """The target; the small model; or `target+small` for a mixed answer."""
    if one.forked is None:
        return one.started.model
    mixed = one.done is None or one.done.mixed_from != 0
    return f"{one.started.model}+{one.forked.model}" if mixed else one.forked.model
