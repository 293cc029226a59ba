"""Models and pairs that are known to be worth a try, by short names.

What stands in `presets.json` is what publishers state: repositories, licences, sizes, and
whether draft and target have one tokenizer. None of these pairs was measured by this project;
`outrider pull --pair` compares the vocabularies, and `outrider fit` measures.
"""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path
from typing import Literal

import msgspec

from outrider.errors import NotFound

TABLE = Path(__file__).with_name("presets.json")


class Known(msgspec.Struct, frozen=True):
    """One model as its publisher describes it."""

    repo: str
    part: str
    """Of a GGUF repository, the quantisation."""
    licence: str
    gated: bool
    parameters_b: float
    """Thousand millions."""
    weights_gib: float
    family: str

    @property
    def spec(self) -> str:
        """What `outrider pull` takes."""
        return f"{self.repo}:{self.part}" if self.part else self.repo


class Pair(msgspec.Struct, frozen=True):
    """Names of two models; the small one drafts for the large one."""

    draft: str
    target: str
    vocabulary: Literal["same", "likely"]
    """By what is published: one tokenizer, or one that may differ in special tokens."""
    note: str


class _Table(msgspec.Struct, frozen=True):
    schema: int
    models: dict[str, Known]
    pairs: dict[str, Pair]


@lru_cache(maxsize=1)
def _table() -> _Table:
    return msgspec.json.decode(TABLE.read_bytes(), type=_Table)


def models() -> Mapping[str, Known]:
    """Short name to model."""
    return _table().models


def pairs() -> Mapping[str, Pair]:
    """Name of a pair to the pair."""
    return _table().pairs


def pair(name: str) -> Pair:
    """Raises NotFound with the nearest name."""
    found = pairs().get(name.lower().replace(":", "-"))
    if found is None:
        near = get_close_matches(name.lower(), pairs(), 1, 0.4)
        raise NotFound(
            f"there is no pair {name!r}",
            param="pair",
            effect="nothing was done",
            todo=f"did you mean {near[0]}?" if near else "outrider models --presets lists them",
        )
    return found
