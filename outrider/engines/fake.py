"""A deterministic engine without a model: it ships, for tests and for trying the runtime out.

Its vocabulary is the 256 bytes and one end token; its scores depend on the last
few tokens alone, through a hash. Two fakes with the same `world` and different
`name` agree on most tokens: `agreement` says on how many.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from outrider.engine import EngineInfo, EngineSpec, Picked, RowRule, Span
from outrider.engines.base import BaseEngine
from outrider.engines.slots import path_to, pick
from outrider.errors import ConfigError
from outrider.protocol.vocabulary import Vocabulary

END = 256
SIZE = 257


def vocabulary() -> Vocabulary:
    """256 bytes and `<|end|>`."""
    table = tuple(bytes([i]) for i in range(256)) + (b"<|end|>",)
    return Vocabulary(table, special=frozenset({END}), bos=None, end=(END,))


class FakeEngine(BaseEngine):
    """`world` seeds the shared scores, `agreement` in [0, 1] is how often own and shared agree."""

    def __init__(self, spec: EngineSpec, *, world: str = "0", agreement: float = 1.0) -> None:
        digest = hashlib.sha256(f"fake 1 {world} {agreement} {spec.model}".encode()).hexdigest()
        super().__init__(
            EngineInfo(
                engine="fake",
                model=spec.model,
                device="cpu",
                dtype="float64",
                vocabulary_digest=vocabulary().digest,
                vocabulary_size=SIZE,
                context=spec.context or 4096,
                max_slots=spec.max_slots,
                max_rows=spec.max_rows,
                exact=True,
                row_rule=RowRule(),
                numeric_class=digest,
                scores=True,
            )
        )
        self._world = world
        self._own = spec.model
        self._agreement = agreement

    def _pass(self, spans: Sequence[Span]) -> list[Picked]:
        return [self._picked(span) for span in spans]

    def _picked(self, span: Span) -> Picked:
        slot = self._slots[span.slot]
        rows = range(span.first, len(span.tokens))
        scores = [self._scores((*slot.tokens[-3:], *path_to(span, row))[-3:]) for row in rows]
        return pick(span, slot, np.stack(scores))

    def _scores(self, recent: tuple[int, ...]) -> NDArray[np.float64]:
        shared = scores_of(self._world, recent)
        if _share(f"{self._own} {recent}") < self._agreement:
            return shared
        return scores_of(self._own, recent)


def _share(text: str) -> float:
    """A fixed number in [0, 1) for a text."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "little") / 2.0**48


@lru_cache(maxsize=65536)
def scores_of(world: str, recent: tuple[int, ...]) -> NDArray[np.float64]:
    """Scores after the last tokens, shape [257]; printable bytes are likely, the end is not."""
    seed = hashlib.sha256(f"{world} {recent}".encode()).digest()
    scores = np.random.Generator(np.random.PCG64(list(seed))).normal(0.0, 3.0, SIZE)
    scores[:32] -= 12.0
    scores[127:] -= 12.0
    scores.flags.writeable = False
    return scores


def build(spec: EngineSpec) -> FakeEngine:
    """Options: `world` (text), `agreement` (0 to 1)."""
    options = dict(spec.options)
    world = options.pop("world", "0")
    agreement = options.pop("agreement", "1")
    if options:
        raise ConfigError(f"the fake engine has no option {sorted(options)[0]!r}")
    return FakeEngine(spec, world=world, agreement=float(agreement))
