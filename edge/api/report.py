"""What a response says about how it was made: usage, metrics, timings, the `outrider` block.

`metrics` has vLLM's shape, `timings` llama.cpp's, so that their tools read them.
All times are milliseconds.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

from outrider.protocol.stream import Done, Forked, Speculation, Started


@dataclass(frozen=True, slots=True)
class Ended:
    """One finished choice."""

    index: int
    source: int
    """Which prompt it answers."""
    started: Started
    done: Done
    forked: Forked | None


def usage(ended: Sequence[Ended]) -> dict[str, Any]:
    """Tokens of the final text; each prompt counts once, whatever `n`."""
    spoken = sum(one.done.completion_tokens for one in ended)
    prompts = sum({one.source: one.done.prompt_tokens for one in ended}.values())
    speculation = total(one.done.speculation for one in ended)
    accepted, drafted = speculation.num_accepted_draft_tokens, speculation.num_draft_tokens
    if speculation.predicted_tokens:
        # The request brought a prediction: the fields mean what OpenAI means by them.
        accepted, drafted = speculation.accepted_predicted_tokens, speculation.predicted_tokens
    return {
        "prompt_tokens": prompts,
        "completion_tokens": spoken,
        "total_tokens": prompts + spoken,
        "completion_tokens_details": {
            "accepted_prediction_tokens": accepted,
            "rejected_prediction_tokens": drafted - accepted,
            "reasoning_tokens": 0,
        },
    }


def total(parts: Iterable[Speculation]) -> Speculation:
    """Sums over choices."""
    found = list(parts)

    def add(name: str) -> int:
        return sum(getattr(part, name) for part in found)

    columns = zip_longest(*(part.acceptance_histogram for part in found), fillvalue=0)
    return Speculation(
        num_spec_steps=add("num_spec_steps"),
        num_draft_tokens=add("num_draft_tokens"),
        num_accepted_draft_tokens=add("num_accepted_draft_tokens"),
        stale_draft_tokens=add("stale_draft_tokens"),
        sent_draft_tokens=add("sent_draft_tokens"),
        passes=add("passes"),
        acceptance_histogram=tuple(sum(column) for column in columns),
        discarded_target_tokens=add("discarded_target_tokens"),
        predicted_tokens=add("predicted_tokens"),
        accepted_predicted_tokens=add("accepted_predicted_tokens"),
    )


def speculative(speculation: Speculation) -> dict[str, Any]:
    """vLLM's `speculative_decoding`; the histogram is sparse, its keys are text."""
    steps, drafted = speculation.num_spec_steps, speculation.num_draft_tokens
    accepted = speculation.num_accepted_draft_tokens
    histogram = speculation.acceptance_histogram
    return {
        "mean_acceptance_length": 1.0 + (accepted / steps if steps else 0.0),
        "draft_acceptance_rate": accepted / drafted if drafted else 0.0,
        "acceptance_histogram": {str(i): n for i, n in enumerate(histogram) if n},
        "num_spec_steps": steps,
        "num_accepted_draft_tokens": accepted,
        "num_draft_tokens": drafted,
        "num_spec_tokens": max(len(histogram) - 1, 0),
    }


def metrics(ended: Sequence[Ended]) -> dict[str, Any]:
    """vLLM's `metrics`. Several choices run side by side: times are those of the slowest."""
    times = [one.done for one in ended]
    generation = max(max(done.total_ms - done.ttft_ms, 0.0) for done in times)
    spoken = sum(done.completion_tokens for done in times)
    longest = max(done.completion_tokens for done in times)
    whole = max(done.total_ms for done in times)
    return {
        "time_to_first_token_ms": min(done.ttft_ms for done in times),
        "generation_time_ms": generation,
        "queue_time_ms": max(done.queue_ms for done in times),
        "mean_itl_ms": generation / (longest - 1) if longest > 1 else 0.0,
        "tokens_per_second": per_second(spoken, whole),
        "speculative_decoding": speculative(total(done.speculation for done in times)),
    }


def timings(ended: Sequence[Ended]) -> dict[str, Any]:
    """llama.cpp's `timings`."""
    counts = usage(ended)
    prompt_n, predicted_n = counts["prompt_tokens"], counts["completion_tokens"]
    prompt_ms = max(one.done.prefill_ms for one in ended)
    predicted_ms = max(
        max(d.total_ms - d.queue_ms - d.prefill_ms, 0.0) for d in (one.done for one in ended)
    )
    speculation = total(one.done.speculation for one in ended)
    return {
        "prompt_n": prompt_n,
        "prompt_ms": prompt_ms,
        "prompt_per_token_ms": prompt_ms / prompt_n if prompt_n else 0.0,
        "prompt_per_second": per_second(prompt_n, prompt_ms),
        "predicted_n": predicted_n,
        "predicted_ms": predicted_ms,
        "predicted_per_token_ms": predicted_ms / predicted_n if predicted_n else 0.0,
        "predicted_per_second": per_second(predicted_n, predicted_ms),
        "draft_n": speculation.num_draft_tokens,
        "draft_n_accepted": speculation.num_accepted_draft_tokens,
    }


def per_second(count: int, ms: float) -> float:
    """A rate; 0 when no time passed."""
    return count * 1000.0 / ms if ms > 0 else 0.0


def served(started: Started, done: Done | None, forked: Forked | None) -> str:
    """The model that spoke: the target, the small one, or `target+small` for a mixed answer."""
    if forked is None:
        return started.model
    nothing_before = forked.position == 0 if done is None else done.mixed_from == 0
    return forked.model if nothing_before else f"{started.model}+{forked.model}"


def provenance(ended: Sequence[Ended], ignored: Sequence[str]) -> dict[str, Any]:
    """The `outrider` block; with several choices it sums up, and `choices` tells them apart."""
    first = ended[0]
    rtts = [one.done.rtt_ms for one in ended if one.done.rtt_ms is not None]
    block = {
        "request": first.started.request,
        **_choice(first),
        "exact": all(one.done.exact for one in ended),
        "mixed": any(one.done.mixed_from is not None for one in ended),
        "rtt_ms": max(rtts) if rtts else None,
        **_carried(ended),
        **_energy(ended),
        **_waste(total(one.done.speculation for one in ended)),
    }
    if any(one.started.redacted is not None for one in ended):
        block["redacted"] = _redacted(ended)
        block["answers"] = "the redacted prompt"
    if ignored:
        block["ignored"] = list(ignored)
    if len(ended) > 1:
        block["choices"] = [{"index": one.index, **_choice(one)} for one in ended]
    return block


def _redacted(ended: Sequence[Ended]) -> dict[str, int]:
    """Values taken out by kind; choices of one prompt share them."""
    by_prompt = {one.source: one.started.redacted or {} for one in ended}
    kinds = sorted({kind for counts in by_prompt.values() for kind in counts})
    return {kind: sum(counts.get(kind, 0) for counts in by_prompt.values()) for kind in kinds}


def _choice(one: Ended) -> dict[str, Any]:
    ended = one.done.placement or one.started.placement
    return {
        "placement": one.started.placement,
        "placement_ended": ended,
        "placement_reason": one.done.placement_reason,
        "decisions": one.done.decisions,
        "model_served": served(one.started, one.done, one.forked),
        "exact": one.done.exact,
        "numeric_class": one.started.numeric_class,
        "mixed": one.done.mixed_from is not None,
        "mixed_from": one.done.mixed_from,
        "class_changed_at": list(one.done.class_changed_at),
        "seed": one.started.seed,
    }


def _last(ended: Sequence[Ended]) -> list[Done]:
    """Per prompt the choice that ended last: choices share a session, and its totals grow."""
    found: dict[int, Done] = {}
    for one in sorted(ended, key=lambda one: one.done.total_ms):
        found[one.source] = one.done
    return list(found.values())


def _carried(ended: Sequence[Ended]) -> dict[str, Any]:
    last = _last(ended)
    return {
        "bytes_up": sum(done.bytes_up for done in last),
        "bytes_down": sum(done.bytes_down for done in last),
    }


def _energy(ended: Sequence[Ended]) -> dict[str, Any]:
    """A sum is only as good as its worst part: one estimate makes an estimate."""
    last = _last(ended)
    kinds = {done.energy_kind for done in last}
    kind = "none" if "none" in kinds else "estimated" if "estimated" in kinds else "measured"
    joules = None if kind == "none" else sum(done.energy_j or 0.0 for done in last)
    spoken = sum(one.done.completion_tokens for one in ended)
    each = joules / spoken if joules is not None and spoken else None
    return {"energy_kind": kind, "energy_j": joules, "energy_j_per_token": each}


def _waste(speculation: Speculation) -> dict[str, Any]:
    return {
        "passes": speculation.passes,
        "sent_draft_tokens": speculation.sent_draft_tokens,
        "stale_draft_tokens": speculation.stale_draft_tokens,
        "discarded_target_tokens": speculation.discarded_target_tokens,
    }
