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
    Started,
    StreamEvent,
    Token,
)


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

    def take(self, event: StreamEvent) -> None:
        if isinstance(event, Token):
            self.tokens.append(event)
            self.tail.pop(event.position, None)
        elif isinstance(event, Provisional):
            self.tail[event.position] = event.text
        elif isinstance(event, Retract):
            self.tail = {at: text for at, text in self.tail.items() if at < event.position}
        elif isinstance(event, Forked):
            self.forked = event
        elif isinstance(event, Done):
            self.done = event

    def text(self) -> str:
        return "".join(token.text for token in self.tokens)


class Fold:
    """Feed the events of one request; read what is shown now, and the answer at the end."""

    def __init__(self) -> None:
        self._choices: dict[int, _Growing] = {}

    def take(self, event: StreamEvent) -> None:
        if isinstance(event, Started):
            self._choices[event.choice] = _Growing(event)
        elif event.choice in self._choices:
            self._choices[event.choice].take(event)

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
            raise OutriderError("the stream ended before the answer began")
        first = self._choices[min(self._choices)]
        return Answer(
            request=first.started.request,
            model=_served(first),
            placement=first.started.placement,
            seed=first.started.seed,
            numeric_class=first.started.numeric_class,
            prompt_tokens=first.started.prompt_tokens,
            choices=choices,
        )


def _finished(index: int, one: _Growing) -> Choice:
    done = one.done
    if done is None:
        raise OutriderError("the stream ended before the answer did", todo="ask again, or resume")
    if done.finish_reason in ("error", "cancelled"):
        raise of_done(done)
    return Choice(index, one.text(), tuple(one.tokens), done.finish_reason, done.mixed_from, done)


def _served(one: _Growing) -> str:
    """The target; the small model; or `target+small` for a mixed answer."""
    if one.forked is None:
        return one.started.model
    mixed = one.done is None or one.done.mixed_from != 0
    return f"{one.started.model}+{one.forked.model}" if mixed else one.forked.model
