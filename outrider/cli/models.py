"""`outrider models`: what can be asked for, what is worth a pull, and another one in its place."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from outrider.cli import console
from outrider.cli.where import HERE, Where
from outrider.errors import InvalidRequest

if TYPE_CHECKING:
    from outrider.models.presets import Pair
    from outrider.models.shelf import Shelf


def models(
    *words: str,
    presets: bool = False,
    json: bool = False,
    where: Where = HERE,
) -> int:
    """Models that can be asked for by name; `models use NAME` takes another draft.

    Args:
        words: Nothing, or `use NAME`: the daemon drafts with that from the next answer on. A
            name of outrider ls, a path, bundled:draft, ngram or none.
        presets: List models and pairs that are worth a try, and what they take.
        json: Print one JSON object.
    """
    if presets:
        return _presets(json=json)
    if words:
        return _use(words, where, json=json)
    with where.client() as client:
        cards = client.models()
    if json:
        console.as_json({"models": cards})
        return 0
    rows = [("NAME", "ROLE", "CONTEXT", "VOCABULARY", "CLASS")]
    rows += [
        (c.id, c.role, str(c.context), c.vocabulary_digest[:12], c.numeric_class[:12])
        for c in cards
    ]
    console.out(console.table(rows))
    return 0


def _presets(*, json: bool) -> int:
    from outrider.models import presets, verdicts
    from outrider.models.shelf import Shelf

    known, pairs, shelf = presets.models(), presets.pairs(), Shelf()
    judged = {(v.draft, v.target): v for v in verdicts.kept(shelf)}
    if json:
        console.as_json({"models": known, "pairs": pairs, "fits": list(judged.values())})
        return 0
    rows = [("PAIR", "DRAFT", "TARGET", "WEIGHTS", "LICENCE", "VOCABULARY", "HERE")]
    for name, pair in pairs.items():
        found = judged.get((pair.draft, pair.target))
        rows.append(
            (
                name,
                pair.draft,
                pair.target,
                _weights(pair),
                _licences(pair),
                pair.vocabulary,
                found.verdict if found else _there(shelf, pair),
            )
        )
    console.out(console.table(rows))
    console.note(
        "vocabulary: as published; outrider pull --pair NAME compares it and measures the pair.\n"
        "one model: outrider pull qwen3:0.6b. A licence with * is gated (HF_TOKEN)."
    )
    return 0


def _weights(pair: Pair) -> str:
    from outrider.models import presets

    known = presets.models()
    return f"{known[pair.draft].weights_gib:g} + {known[pair.target].weights_gib:g} GiB"


def _licences(pair: Pair) -> str:
    from outrider.models import presets

    known = presets.models()
    both = [known[pair.draft], known[pair.target]]
    return ", ".join(dict.fromkeys(k.licence + "*" * k.gated for k in both))


def _there(shelf: Shelf, pair: Pair) -> str:
    here = [name for name in (pair.draft, pair.target) if shelf.has(name)]
    return {0: "not yet", 1: f"{'draft' if pair.draft in here else 'target'} only", 2: "both"}[
        len(here)
    ]


def _use(words: tuple[str, ...], where: Where, *, json: bool) -> int:
    if len(words) != 2 or words[0] != "use":
        raise InvalidRequest(
            f"{' '.join(words)!r} is no order for models",
            effect="nothing was changed",
            todo="outrider models, outrider models use NAME, outrider models --presets",
        )
    with where.client() as client:
        loaded = client.use_model(_place(words[1]))
    if json:
        console.as_json({"loaded": loaded})
    elif loaded is None:
        console.out(f"{words[1]}: no model drafts from now on")
    else:
        console.out(f"{loaded.model} drafts from now on ({loaded.engine}, {loaded.dtype})")
    return 0


def _place(name: str) -> str:
    """A path as the daemon finds it, whose working directory is another."""
    path = Path(name).expanduser()
    return str(path.resolve()) if path.exists() and ("/" in name or path.suffix) else name
