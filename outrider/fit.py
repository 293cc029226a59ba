"""Does a draft model suit a target? Vocabulary, agreement and cost, measured on both models.

Agreement is teacher-forced on the target's own answers: the target answers each
prompt, then the draft reads prompt and answer in one pass and picks a token at each
place, under the same noise (`protocol/sampling.py`). A hint is accepted iff it equals
the target's token, so the share of equal picks is the acceptance rate of the first
hint row, and runs of equal picks give the acceptance length at any depth.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from statistics import mean, median
from typing import Literal

import msgspec

from outrider.engine import Engine, EngineSpec, Span
from outrider.engines import registry
from outrider.errors import ConfigError
from outrider.models import served, verdicts
from outrider.models.shelf import Shelf
from outrider.models.verdicts import Verdict as Kept
from outrider.protocol.sampling import GREEDY, Sampling, SamplingParams
from outrider.protocol.vocabulary import Vocabulary

Clock = Callable[[], float]
"""Monotonic seconds."""

CODE = (
    "def fibonacci(n):\n    ",
    "import os\nimport sys\n\n\ndef main(argv=None):\n    parser = ",
    "class Stack:\n    def __init__(self):\n        self.items = []\n\n    def push(self, item):\n",
    "def test_addition(self):\n        self.assertEqual(",
)
PROSE = (
    "The three most important things to know about the sea are",
    "Dear colleagues,\n\nI am writing to tell you that",
    "Question: Why is the sky blue?\nAnswer:",
    "Once upon a time, in a village between two rivers, there lived",
)
SAMPLED = SamplingParams(temperature=0.8)
SEED = 20
DEPTHS = (2, 4, 8)
"""Hint depths whose acceptance length is told."""

TIMED = 4
"""Steps of the draft that are timed after each answer."""

GOOD, USABLE = 0.6, 0.3
"""Acceptance rates: from the first on drafts pay nearly everywhere; below the second hardly."""

Verdict = Literal["good", "usable", "poor", "unusable"]


class Overlap(msgspec.Struct, frozen=True):
    """How much of the target's vocabulary the draft has."""

    same_digest: bool
    """Needed for drafting: ids mean the same on both sides."""
    same_ids: float
    """Share of the target's ids with the same bytes in the draft."""
    same_bytes: float
    """Share of the target's tokens whose bytes are some token of the draft."""
    draft_size: int
    target_size: int


class Agreement(msgspec.Struct, frozen=True):
    """On one kind of prompt, with one way of sampling."""

    kind: str
    """`code` or `prose`."""
    sampling: str
    """`greedy`, or `T=0.8`: equal picks under the same noise."""
    tokens: int
    rate: float
    """Accepted first hints / places."""
    acceptance_length: dict[str, float]
    """Hint depth to tokens that a pass yields, the target's own included."""


class Fit(msgspec.Struct, frozen=True):
    """What `outrider fit --json` prints."""

    draft: str
    target: str
    overlap: Overlap
    agreements: tuple[Agreement, ...]
    """Empty when the vocabularies differ: then ids can not be compared."""
    draft_step_ms: float | None
    """Median time of one token, one slot, on this machine."""
    target_step_ms: float | None
    acceptance_rate: float | None
    """Mean over all places."""
    verdict: Verdict
    advice: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Model:
    """An engine with what text needs."""

    engine: Engine
    words: Vocabulary
    encode: Callable[[str], tuple[int, ...]]
    """Text to ids, begin token included."""
    steps_s: list[float] = field(default_factory=list)
    """Seconds of passes of one row."""

    @property
    def step_ms(self) -> float | None:
        """Their median; None before any was timed."""
        return median(self.steps_s) * 1e3 if self.steps_s else None


def load(spec: EngineSpec) -> Model:
    """Build it. Raises ModelError, EngineMissing, ConfigError."""
    found = served.load(spec)
    return Model(registry.build(spec), found.vocabulary, found.tokenizer.encode)


def measure(
    draft: EngineSpec,
    target: EngineSpec,
    *,
    tokens: int = 48,
    clock: Clock = time.perf_counter,
    note: Callable[[str], None] = lambda text: None,
) -> Fit:
    """Load both, measure, and judge. `tokens`: of each of the target's sixteen answers."""
    if not 8 <= tokens <= 1024:
        raise ConfigError(f"{tokens} tokens an answer can not be measured", todo="take 8 to 1024")
    note(f"loading the target {target.model}")
    large = load(target)
    note(f"loading the draft {draft.model}")
    small = load(draft)
    try:
        return compare(small, large, tokens=tokens, clock=clock, note=note)
    finally:
        small.engine.shutdown()
        large.engine.shutdown()


def kept(
    shelf: Shelf,
    found: Kept,
    *,
    tokens: int = 48,
    clock: Clock = time.perf_counter,
    note: Callable[[str], None] = lambda text: None,
) -> Kept:
    """Measure a pair whose vocabularies were compared, and keep the verdict on the shelf."""
    small, large = (
        EngineSpec(model=name, numerics="plain", threads=1) for name in (found.draft, found.target)
    )
    fit = measure(small, large, tokens=tokens, clock=clock, note=note)
    verdict = msgspec.structs.replace(
        found,
        how="measured",
        verdict=fit.verdict,
        acceptance_rate=fit.acceptance_rate,
        draft_step_ms=fit.draft_step_ms,
        target_step_ms=fit.target_step_ms,
        advice=fit.advice,
    )
    verdicts.keep(shelf, verdict)
    return verdict


def compare(
    small: Model,
    large: Model,
    *,
    tokens: int,
    clock: Clock,
    note: Callable[[str], None] = lambda text: None,
) -> Fit:
    """Measure two loaded models."""
    shared = overlap(small.words, large.words)
    pair = Pair(small, large, tokens, clock)
    runs = list(pair.agreements(note)) if shared.same_digest else []
    places = sum(run.tokens for run in runs)
    rate = sum(run.rate * run.tokens for run in runs) / places if places else None
    verdict, advice = judge(shared, runs, rate, small.step_ms, large.step_ms)
    return Fit(
        draft=small.engine.info.model,
        target=large.engine.info.model,
        overlap=shared,
        agreements=tuple(runs),
        draft_step_ms=small.step_ms,
        target_step_ms=large.step_ms,
        acceptance_rate=rate,
        verdict=verdict,
        advice=advice,
    )


def overlap(draft: Vocabulary, target: Vocabulary) -> Overlap:
    """Compare the tables: by id, and by bytes alone."""
    known = set(draft.tokens)
    pairs = zip(draft.tokens, target.tokens, strict=False)
    return Overlap(
        same_digest=draft.digest == target.digest,
        same_ids=sum(mine == theirs for mine, theirs in pairs) / len(target),
        same_bytes=sum(token in known for token in target.tokens) / len(target),
        draft_size=len(draft),
        target_size=len(target),
    )


@dataclass(frozen=True, slots=True)
class Pair:
    """Both models, and how long the target's answers are."""

    small: Model
    large: Model
    tokens: int
    clock: Clock

    def agreements(self, note: Callable[[str], None]) -> Iterator[Agreement]:
        """Each kind of prompt with each way of sampling."""
        for kind, prompts in (("code", CODE), ("prose", PROSE)):
            for name, params in (("greedy", GREEDY), ("T=0.8", SAMPLED)):
                note(f"{kind}, {name}")
                yield self.agreement(kind, name, params, prompts)

    def agreement(
        self, kind: str, name: str, params: SamplingParams, prompts: Sequence[str]
    ) -> Agreement:
        matches = [self.matches(prompt, params) for prompt in prompts]
        places = sum(len(match) for match in matches)
        lengths = {d: mean(acceptance_length(match, d) for match in matches) for d in DEPTHS}
        return Agreement(
            kind=kind,
            sampling=name,
            tokens=places,
            rate=sum(map(sum, matches)) / places,
            acceptance_length={str(depth): length for depth, length in lengths.items()},
        )

    def matches(self, prompt: str, params: SamplingParams) -> list[bool]:
        """At each place of the target's answer: does the draft pick the same token?"""
        ids = self.large.encode(prompt)
        sampling = Sampling(params, SEED, 0, len(ids))
        said = answer(self.large, ids, sampling, self.tokens, self.clock)
        picked = follow(self.small, ids, said, sampling, self.clock)
        return [mine == theirs for mine, theirs in zip(picked, said, strict=True)]


def answer(
    model: Model, prompt: tuple[int, ...], sampling: Sampling, tokens: int, clock: Clock
) -> tuple[int, ...]:
    """The model's own answer, one token a pass; each pass after the prompt's is timed."""
    engine = model.engine
    slot = engine.open(sampling)
    try:
        said = _picks(engine, slot, prompt, len(prompt) - 1)
        while len(said) < tokens and said[-1] not in model.words.end:
            began = clock()
            step = Span(slot, engine.length(slot), (said[-1],))
            said += engine.extend([step])[0].ids
            model.steps_s.append(clock() - began)
    finally:
        engine.close(slot)
    return tuple(said)


def follow(
    model: Model,
    prompt: tuple[int, ...],
    said: tuple[int, ...],
    sampling: Sampling,
    clock: Clock,
) -> list[int]:
    """What the model picks at each place of another's answer; then a few steps are timed."""
    engine = model.engine
    slot = engine.open(sampling)
    try:
        chain = (*prompt, *said)
        picked = _picks(engine, slot, chain[:-1], len(prompt) - 1)
        for _ in range(TIMED):
            engine.rewind(slot, len(chain) - 2)
            began = clock()
            engine.extend([Span(slot, len(chain) - 2, (chain[-2],))])
            model.steps_s.append(clock() - began)
    finally:
        engine.close(slot)
    return picked


def _picks(engine: Engine, slot: int, chain: tuple[int, ...], first: int) -> list[int]:
    """The choice after each token from `first` on, in passes that the engine can hold."""
    picked: list[int] = []
    most = engine.info.max_rows
    for base in range(0, len(chain), most):
        part = chain[base : base + most]
        start = max(first - base, 0)
        if start >= len(part):
            engine.extend([Span(slot, base, part, first=len(part) - 1)])
            continue
        picked += engine.extend([Span(slot, base, part, first=start)])[0].ids
    return picked


def acceptance_length(matches: Sequence[bool], depth: int) -> float:
    """Tokens a pass yields with hints of `depth`, on a stretch of equal or unequal picks.

    A pass takes the run of equal picks, at most `depth`, and one token of the
    target's own after it.
    """
    passes, at = 0, 0
    while at < len(matches):
        run = 0
        while run < depth and at + run < len(matches) and matches[at + run]:
            run += 1
        at += run + 1
        passes += 1
    return len(matches) / passes if passes else 1.0


# --- the verdict -------------------------------------------------------------------------------


def judge(
    shared: Overlap,
    runs: Sequence[Agreement],
    rate: float | None,
    draft_ms: float | None,
    target_ms: float | None,
) -> tuple[Verdict, tuple[str, ...]]:
    """A word, and sentences that say why and what to do."""
    if rate is None:
        return "unusable", _foreign(shared)
    advice = [f"{rate:.0%} of first hints would be accepted"]
    verdict: Verdict = "good" if rate >= GOOD else "usable" if rate >= USABLE else "poor"
    if verdict == "poor":
        advice.append("take a draft of the same family, or distil one: examples/train_pair")
    rates = {kind: _rate(runs, kind) for kind in ("code", "prose")}
    if max(rates.values()) - min(rates.values()) > 0.2:
        best = max(rates, key=lambda kind: rates[kind])
        advice.append(f"it agrees on {best} far better than on the rest: look at your own prompts")
    if draft_ms and target_ms:
        verdict = _weigh(verdict, rate, draft_ms, target_ms, advice)
    return verdict, tuple(advice)


def _rate(runs: Sequence[Agreement], kind: str) -> float:
    return mean(run.rate for run in runs if run.kind == kind)


def _foreign(shared: Overlap) -> tuple[str, ...]:
    why = (
        "the vocabularies differ, so an id means another token on the other side:"
        f" {shared.same_ids:.1%} of ids and {shared.same_bytes:.1%} of tokens agree"
    )
    return why, "take a draft with the target's own tokenizer, or --draft ngram, which needs none"


def _weigh(
    verdict: Verdict, rate: float, draft_ms: float, target_ms: float, advice: list[str]
) -> Verdict:
    """The times are of this machine: the target's own may be another."""
    share = draft_ms / target_ms
    advice.append(
        f"a draft token costs {share:.2f} of a target token here"
        f" ({draft_ms:.1f} ms to {target_ms:.1f} ms)"
    )
    if share >= 1.0:
        advice.append("on this machine the draft is no faster than the target: only drafts made")
        advice.append("elsewhere, for a target that is slower there, can pay")
        return "poor" if verdict == "poor" else "usable"
    lead = f"a hint for a free-running target lives with {rate:.2f} to the power of RTT over"
    advice.append(f"{lead} {target_ms:.0f} ms: {rate ** max(40.0 / target_ms, 1.0):.2f} at 40 ms")
    return verdict
