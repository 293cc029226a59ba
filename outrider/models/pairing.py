"""Two models of this machine as a pair, from their files alone: nothing is loaded."""

from __future__ import annotations

from outrider.models import graph, source
from outrider.models.anatomy import memory
from outrider.models.verdicts import Verdict
from outrider.models.vocabulary import load as load_vocabulary

ROOM = 0.8
"""Share of this machine's memory that the weights of both may take to be measured here."""


def compare(draft: str, target: str) -> Verdict:
    """Their vocabularies, from the files alone. Raises NotFound, ModelError."""
    small, large = source.resolve(draft), source.resolve(target)
    ours, theirs = load_vocabulary(small), load_vocabulary(large)
    same = ours.digest == theirs.digest
    shared = sum(a == b for a, b in zip(ours.tokens, theirs.tokens, strict=False)) / len(theirs)
    return Verdict(
        draft=draft,
        target=target,
        draft_digest=small.digest,
        target_digest=large.digest,
        how="vocabulary",
        verdict="unmeasured" if same else "unusable",
        advice=(_alike(draft, target) if same else _foreign(shared)),
    )


def _alike(draft: str, target: str) -> tuple[str, ...]:
    return (
        "the vocabularies are the same: one can draft for the other",
        f"how often drafts hold was not measured: outrider fit {draft} {target}",
    )


def _foreign(shared: float) -> tuple[str, ...]:
    return (
        f"the vocabularies differ ({shared:.1%} of ids agree): drafts would mean other tokens",
        "take another draft, or --draft ngram, which needs none",
    )


def has_room(found: Verdict) -> bool:
    """Whether both fit into this machine's memory at once."""
    total = memory()
    need = sum(graph.read(source.locate(name)).weight_bytes for name in (found.draft, found.target))
    return total is not None and need <= total * ROOM
