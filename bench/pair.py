"""`bench pair`: how well the bundled draft agrees with its target on text neither was trained on.

The text is the standard library's files named in `held_out.json`, less those in `SHARED`
and `LEFT_OUT`, as the running Python has them. Each file is `<|endoftext|>` and its tokens;
the files follow one another and are cut into windows of 256 tokens, each read from an empty
cache.

Which files are measured was chosen by looking at contamination: four files that share passages
with the corpus were set aside afterwards. So the figures with them (`first_card_*`) and the
contamination of every held-out file are given as well.

Contamination: the share of held-out shingles (runs of 50 words or punctuation marks, white space
dropped, quotes alike) that occur in a file of the corpus manifest which is installed here.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from bench import harness
from examples.train_pair import agreement
from examples.train_pair.corpus import Source, environment_roots, read_manifest, read_source
from examples.train_pair.model import Decoder, read_model
from examples.train_pair.shingles import Hashes, Lexicon, shared_with
from examples.train_pair.stream import encode

BUNDLED = Path(__file__).parents[1] / "outrider" / "bundled"
CONTEXT = 256
SHINGLE_WORDS = 50
QUICK_WINDOWS = 40
QUICK_FILES = 4

SHARED = {
    "aifc.py": "wave.py and sunau.py are built alike",
    "site.py": "passages stand in other files too",
    "uu.py": "the licence text stands in other files too",
    "xml/sax/handler.py": "lists of properties stand in other files too",
}
"""Held-out files that are unlike every file of the corpus, but share long passages with some.

They count in the figures `first_card_*`, which are over the sixteen files of the pair's first
card, and not in the others.
"""

LEFT_OUT = {
    "distutils/fancy_getopt.py": "setuptools ships a reformatted copy",
    "distutils/versionpredicate.py": "setuptools shipped a reformatted copy",
    "encodings/cp1256.py": "the other code pages share most of their table",
    "encodings/cp424.py": "the other code pages share most of their table",
    "encodings/iso8859_9.py": "the other code pages share most of their table",
    "encodings/koi8_t.py": "the other code pages share most of their table",
    "encodings/koi8_u.py": "the other code pages share most of their table",
    "encodings/utf_32.py": "the other Unicode codecs share most of its code",
}
"""Held-out files that are not measured: the environment has near-duplicates of them."""


@dataclass(frozen=True, slots=True)
class HeldOut:
    """The held-out files that this Python has, and those whose text is not the card's."""

    measured: tuple[Source, ...]
    shared: tuple[Source, ...]
    left_out: tuple[Source, ...]
    changed: tuple[str, ...]

    @property
    def every(self) -> tuple[Source, ...]:
        return (*self.measured, *self.shared, *self.left_out)


def held_out_files(names_file: Path) -> HeldOut:
    """Reads the held-out files from the running standard library."""
    stdlib = environment_roots()[0]
    sources: list[Source] = []
    changed: list[str] = []
    for entry in json.loads(names_file.read_text()):
        path = stdlib.folder / entry["file"]
        source = read_source(stdlib, path) if path.is_file() else None
        if source is None or source.sha256 != entry["sha256"]:
            changed.append(entry["file"])
        if source is not None:
            sources.append(source)
    return HeldOut(
        tuple(s for s in sources if s.path not in LEFT_OUT and s.path not in SHARED),
        tuple(s for s in sources if s.path in SHARED),
        tuple(s for s in sources if s.path in LEFT_OUT),
        tuple(changed),
    )


def interval(values: Tensor, seed: int) -> tuple[float, float]:
    """95 % interval of the mean, by resampling whole windows (tokens in one are not independent).

    `values` is [windows * CONTEXT] in window order.
    """
    return harness.mean_interval(values.view(-1, CONTEXT).mean(1).tolist(), seed)


def shuffled_draft(draft: Decoder, seed: int) -> Decoder:
    """The control: a copy whose embedding rows, and so its head's, are in another order."""
    twin = Decoder(draft.shape).eval()
    weights = {name: value.clone() for name, value in draft.state_dict().items()}
    table = weights["model.embed_tokens.weight"]
    order = torch.randperm(len(table), generator=torch.Generator().manual_seed(seed))
    weights["model.embed_tokens.weight"] = table[order]
    twin.load_state_dict(weights)
    return twin


def found_share(sources: Sequence[Source], lexicon: Lexicon, found: Hashes) -> float:
    """The share of the sources' shingles, repeats counted, that are among the found ones."""
    all_of = [lexicon.shingles(source.text, SHINGLE_WORDS) for source in sources]
    total = sum(len(hashes) for hashes in all_of)
    return sum(int(np.isin(hashes, found).sum()) for hashes in all_of) / total if total else 0.0


@dataclass(frozen=True, slots=True)
class Contamination:
    """Shares of shingles that occur in the corpus."""

    measured: float
    every: float
    """Of all held-out files, those left out too."""
    first_card: float
    """Of the sixteen files of the pair's first card."""
    planted: float
    """The control: of the measured ones, with the first of them added to the corpus."""
    files: dict[str, float]


def contamination(held: HeldOut, corpus: Sequence[Source]) -> Contamination:
    """Looks for the held-out files' shingles in the corpus."""
    lexicon = Lexicon()
    wanted = np.concatenate([lexicon.shingles(s.text, SHINGLE_WORDS) for s in held.every])
    found = shared_with(wanted, (s.text for s in corpus), lexicon, SHINGLE_WORDS)
    planted = lexicon.shingles(held.measured[0].text, SHINGLE_WORDS)
    return Contamination(
        found_share(held.measured, lexicon, found),
        found_share(held.every, lexicon, found),
        found_share((*held.measured, *held.shared), lexicon, found),
        found_share(held.measured, lexicon, np.union1d(found, planted)),
        {source.path: found_share([source], lexicon, found) for source in held.every},
    )


def digest(folder: Path) -> str:
    """SHA-256 of a model's weights."""
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


def run(*, quick: bool, seed: int = harness.SEED) -> dict[str, object]:
    """Measures how well the bundled draft agrees with its target on held-out text.

    `quick` reads the first `QUICK_WINDOWS` windows, and for contamination one corpus file in
    `QUICK_FILES`, so that its shares are lower bounds.
    """
    held = held_out_files(BUNDLED / "held_out.json")
    target, draft = (read_model(BUNDLED / name) for name in ("target", "draft"))
    words = Tokenizer.from_file(str(BUNDLED / "target" / "tokenizer.json"))
    short = QUICK_WINDOWS * CONTEXT + 1
    ids, shared_ids = (
        encode(words, [s.text for s in some]) for some in (held.measured, held.shared)
    )
    if quick:
        ids, shared_ids = ids[:short], shared_ids[:short]
    rows = agreement.measure(target, draft, ids, CONTEXT, seed)
    shared_rows = agreement.measure(target, draft, shared_ids, CONTEXT, seed)
    twin = shuffled_draft(draft, seed)
    control = agreement.summary(agreement.measure(target, twin, ids[:short], CONTEXT, seed))
    manifest = read_manifest(BUNDLED / "corpus.txt", environment_roots())
    looked_at = manifest.sources[::QUICK_FILES] if quick else manifest.sources
    shares = contamination(held, looked_at)
    spread = {
        f"{name}_{end}": value
        for column, name in enumerate(agreement.NAMES)
        for end, value in zip(("low", "high"), interval(rows[:, column], seed), strict=True)
    }
    card = asdict(agreement.summary(torch.cat((rows, shared_rows))))
    return {
        "seed": seed,
        "cases": len(rows),
        "figures": asdict(agreement.summary(rows))
        | spread
        | {f"first_card_{name}": value for name, value in card.items()}
        | {
            "contamination": shares.measured,
            "first_card_contamination": shares.first_card,
            "contamination_all_held_out": shares.every,
            "corpus_files_read": len(looked_at),
            "corpus_files_missing": len(manifest.missing),
            "target_parameters": target.size(),
            "draft_parameters": draft.size(),
        },
        "controls": {
            "control_mean_overlap": control.mean_overlap,
            "control_greedy_agreement": control.greedy_agreement,
            "control_draft_loss": control.draft_loss,
            "control_contamination": shares.planted,
        },
        "cells": [
            {"file": path, "contamination": share, "why_not": (SHARED | LEFT_OUT).get(path)}
            for path, share in shares.files.items()
        ],
        "changed": list(held.changed),
        "models": {name: digest(BUNDLED / name) for name in ("target", "draft")},
    }


if __name__ == "__main__":
    sys.exit(harness.main("pair", run))
