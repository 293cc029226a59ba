"""The rungs of the ladder: how keys and values are coded, from whole to a tenth.

    raw     as the engine holds them
    fp16    IEEE half precision
    int8    255 even steps over each group's largest magnitude
    int6    63 of them
    int4    16 steps between each group's least and greatest
    int3    9 steps for keys and 5 for values about zero: made for the lossless stage
    int2    4 steps between least and greatest, groups of 32, with the first and the latest
            tokens kept whole (KIVI, arXiv 2402.02750)

A group of keys is one channel over a block of tokens, a group of values is a part of one
token's head: keys have channels that are large for every token, values have not. Each rung may
be followed by the lossless stage, `+zstd`: planes of bytes or of symbols, each compressed.
Which steps are worth their bytes was measured: docs/kv.md.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from outrider.errors import InvalidRequest

Coding = Literal["raw", "fp16", "groups"]
Steps = Literal["symmetric", "ranged"]
"""`symmetric`: about zero, by the largest magnitude; `ranged`: between least and greatest."""
LOSSLESS = "+zstd"


@dataclass(frozen=True, slots=True)
class Level:
    """One rung. `key_steps` to `group` matter to `groups` alone."""

    name: str
    coding: Coding
    key_steps: int = 0
    value_steps: int = 0
    steps: Steps = "symmetric"
    block: int = 64
    """Tokens in a block: the unit of random access, and a key's group."""
    group: int = 64
    """Values in a value's group; less where the head is not a multiple of it."""
    first: int = 0
    """Tokens at the context's beginning that are kept whole."""
    recent: int = 0
    """Tokens at its end that are kept whole."""
    zstd: bool = False

    @property
    def exact(self) -> bool:
        """What is decoded is bit for bit what was coded, whatever the engine's dtype."""
        return self.coding == "raw"

    def squeezed(self) -> Level:
        """The same rung with the lossless stage."""
        return replace(self, name=self.name + LOSSLESS, zstd=True)


PLAIN = (
    Level("raw", "raw"),
    Level("fp16", "fp16"),
    Level("int8", "groups", 255, 255),
    Level("int6", "groups", 63, 63),
    Level("int4", "groups", 16, 16, "ranged"),
    Level("int3", "groups", 9, 5),
    Level("int2", "groups", 4, 4, "ranged", block=32, group=32, first=4, recent=32),
)
LADDER: tuple[Level, ...] = tuple(rung for p in PLAIN for rung in (p, p.squeezed()))
"""Every rung, the most faithful first."""
_BY_NAME = {rung.name: rung for rung in LADDER}


def level(name: str) -> Level:
    """The rung of that name. Raises InvalidRequest for another."""
    found = _BY_NAME.get(name)
    if found is None:
        raise InvalidRequest(
            "there is no KV codec of this name",
            param="codec",
            effect="nothing was coded",
            todo=f"one of {', '.join(_BY_NAME)}",
        )
    return found
