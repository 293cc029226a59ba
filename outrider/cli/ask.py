"""`outrider run` and `outrider chat`: ask the daemon from a terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

from cyclopts import Parameter

from outrider.cli import console
from outrider.cli.where import HERE, Where
from outrider.errors import InvalidRequest
from outrider.protocol import trace
from outrider.protocol.stream import Forked, Token, Waiting

if TYPE_CHECKING:
    from outrider.sdk import Answer, Client
    from outrider.sdk.question import Options

BUNDLED = "outrider-"
"""What the names of the bundled models begin with."""

COMPLETER = (
    "this is the bundled pair: a small completer of Python code, which can not converse.\n"
    "  try: outrider run 'def parse(line):', or load a chat model and a small one beside it:\n"
    "       outrider cloud --model PATH/TO/CHAT.gguf, and outrider edge --draft PATH/TO/SMALL.gguf"
)


@Parameter(name="*")
@dataclass(frozen=True)
class Wishes:
    """How the answer is to be made; what is left out is the daemon's choice."""

    model: str = ""
    """A name of `outrider models`; the default target when left out."""
    max_tokens: int = 256
    """Tokens of the answer."""
    temperature: float | None = None
    """0 is greedy."""
    top_p: float | None = None
    """Sample from the best tokens that together reach this probability."""
    top_k: int | None = None
    """Sample from the k best tokens."""
    min_p: float | None = None
    """Sample from tokens of at least this share of the best one's probability."""
    seed: str | None = None
    """A whole number; the same seed and parameters make the same text."""
    stop: tuple[str, ...] = ()
    """End the answer before this text. Repeat it for more, up to four."""
    placement: Literal["auto", "edge", "cloud", "draft"] | None = None
    """Pin where the answer is made."""
    fallback: Literal["wait", "local", "error"] | None = None
    """While the cloud is away: wait, go on with the local model, or error."""
    exact: Literal["required", "preferred"] | None = None
    """required: an error rather than a token that is not the target's."""

    def options(self) -> Options:
        """The SDK's, with what was given; a terminal can not take text back."""
        named: dict[str, Any] = {
            "model": self.model or None,
            "max_tokens": self.max_tokens,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "top_k": self.top_k,
            "min_p": self.min_p,
            "seed": self.seed,
            "stop": self.stop or None,
            "placement": self.placement,
            "fallback": self.fallback,
            "exact": self.exact,
        }
        given = {name: value for name, value in named.items() if value is not None}
        return cast("Options", {**given, "retract": False})


def run(
    *words: str,
    json: bool = False,
    verbose: Annotated[bool, Parameter(alias="-v")] = False,
    wishes: Wishes = Wishes(),
    where: Where = HERE,
) -> int:
    """Complete one prompt; the text goes to standard output as it comes.

    Args:
        words: [MODEL] PROMPT. A prompt of - , or none, is read from standard input.
        json: Print one JSON object at the end instead.
        verbose: Tell counts and times on standard error.
    """
    model, prompt = _words(words)
    options = wishes.options()
    if model:
        options["model"] = model
    with where.client() as client, client.stream(prompt, **options) as stream:
        _show(stream, quiet=json)
        answer = stream.answer()
    if json:
        console.as_json(_object(answer))
    else:
        console.out("")
    _remarks(answer, verbose=verbose)
    return 0


def _words(words: Sequence[str]) -> tuple[str, str]:
    """(model, prompt)."""
    if len(words) > 2:
        raise InvalidRequest(
            f"{len(words)} words were given, and a prompt is one",
            effect="nothing was asked",
            todo='put the prompt in quotes: outrider run "def add(a, b):"',
        )
    model = words[0] if len(words) == 2 else ""
    prompt = words[-1] if words else console.STDIN
    if prompt == console.STDIN:
        if sys.stdin.isatty():
            console.note("reading the prompt from the terminal; end it with ctrl-d")
        prompt = sys.stdin.read()
    if not prompt:
        raise InvalidRequest("the prompt is empty", effect="nothing was asked")
    return model, prompt


def _show(events: Iterable[trace.Event], *, quiet: bool) -> None:
    """Final text to standard output; what else happens to standard error."""
    for event in events:
        if isinstance(event, Token):
            if not quiet:
                console.out(event.text, end="")
        elif isinstance(event, Waiting):
            console.note(f"[waiting: {event.reason}]")
        elif isinstance(event, Forked):
            console.note(f"[from here on {event.model}'s own words: {event.reason}]")


def _object(answer: Answer) -> dict[str, Any]:
    choice = answer.choices[0]
    done = choice.done
    return {
        "text": answer.text,
        "model": answer.model,
        "request": answer.request,
        "placement": answer.placement,
        "finish_reason": answer.finish_reason,
        "exact": answer.exact,
        "mixed_from": choice.mixed_from,
        "seed": answer.seed,
        "numeric_class": answer.numeric_class,
        "prompt_tokens": answer.prompt_tokens,
        "completion_tokens": answer.completion_tokens,
        "tokens": [{"id": t.id, "text": t.text, "source": t.source} for t in answer.tokens],
        "ttft_ms": done.ttft_ms,
        "total_ms": done.total_ms,
        "rtt_ms": done.rtt_ms,
        "bytes_up": done.bytes_up,
        "bytes_down": done.bytes_down,
        "speculation": done.speculation,
    }


def _remarks(answer: Answer, *, verbose: bool) -> None:
    done = answer.choices[0].done
    mixed_from = answer.choices[0].mixed_from
    if mixed_from == 0:
        console.warn(f"{answer.model} alone wrote this: it is not the target's text")
    elif mixed_from is not None:
        console.warn(f"from token {mixed_from} on this is not the target's text")
    if not verbose:
        return
    rate = answer.acceptance_rate
    console.note(
        f"model {answer.model}, placement {answer.placement}, seed {answer.seed}\n"
        f"{answer.completion_tokens} tokens in {done.total_ms:.0f} ms, first after"
        f" {done.ttft_ms:.0f} ms, {done.speculation.passes} passes,"
        f" accepted {'no drafts' if rate is None else f'{rate:.0%} of drafts'},"
        f" {done.bytes_up} bytes up, {done.bytes_down} down"
    )


def chat(*, wishes: Wishes = Wishes(), where: Where = HERE) -> int:
    """Talk to a model, turn by turn; /reset forgets the talk, /exit or ctrl-d ends it."""
    with where.client() as client:
        name = _introduce(client, wishes.model)
        console.note(f"{name}; /reset forgets, /exit ends")
        history: list[dict[str, str]] = []
        for line in _lines():
            if line == "/reset":
                history.clear()
            elif line:
                history.append({"role": "user", "content": line})
                history.append({"role": "assistant", "content": _turn(client, history, wishes)})
    return 0


def _introduce(client: Client, wanted: str) -> str:
    """The model that answers; says so when it is none to talk to."""
    targets = [card.id for card in client.models() if card.role == "target"]
    name = wanted or (targets[0] if targets else "no target yet")
    if name.startswith(BUNDLED):
        console.warn(COMPLETER)
    return name


def _lines() -> Iterable[str]:
    """What the user types, until the end."""
    prompt = "> " if sys.stdin.isatty() else ""
    while True:
        try:
            line = input(prompt).strip()
        except EOFError:
            return
        if line in ("/exit", "/quit", "/bye"):
            return
        yield line


def _turn(client: Client, history: Sequence[dict[str, str]], wishes: Wishes) -> str:
    with client.stream_chat(list(history), **wishes.options()) as stream:
        _show(stream, quiet=False)
        answer = stream.answer()
    console.out("")
    _remarks(answer, verbose=False)
    return answer.text
