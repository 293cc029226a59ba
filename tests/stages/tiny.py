"""A tiny deterministic model in stages, and a fleet of devices that can be lost: no libraries.

Every layer keeps its inputs as its KV and adds their sum to each row, in whole numbers
that float32 holds exactly; so a token that is missing, doubled or out of place changes
all that follows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from outrider.engine import LayerRange, Picked, RowRule, Span, StageInfo, StageSpan
from outrider.engines.slots import Slot, pick
from outrider.errors import LocalProtocolError, PlanError, StageLost
from outrider.protocol.sampling import GREEDY, Sampling
from outrider.stages.chain import StageTimes
from outrider.stages.replan import Chosen, Layout, Placed, ranges

LAYERS = 6
SIZE = 97
WIDTH = 4
MODULUS = 8191.0


def info(device: str, layers: LayerRange, **changed: object) -> StageInfo:
    fields = dict(
        engine="tiny", model="tiny", device=device, dtype="float32", layers=layers,
        model_layers=LAYERS, hidden_size=WIDTH, vocabulary_digest="v", vocabulary_size=SIZE,
        context=256, max_slots=4, max_rows=128, exact=True, row_rule=RowRule(),
        weights_digest="w", numeric_class="tiny", memory_bytes=0,
    )  # fmt: skip
    return StageInfo(**{**fields, **changed})  # type: ignore[arg-type]


@dataclass
class TinyStage:
    info: StageInfo
    kv: dict[int, dict[int, NDArray[np.float64]]] = field(default_factory=dict)
    slots: dict[int, Slot] = field(default_factory=dict)
    passes: int = 0
    rows: int = 0

    def open(self, slot: int, sampling: Sampling | None = None) -> None:
        if slot in self.kv:
            raise LocalProtocolError("the slot is open")
        layers = range(self.info.layers.start, self.info.layers.stop)
        self.kv[slot] = {layer: np.zeros((0, WIDTH)) for layer in layers}
        self.slots[slot] = Slot(slot, sampling or Sampling(GREEDY, seed=0))

    def close(self, slot: int) -> None:
        del self.kv[slot], self.slots[slot]

    def run(self, spans: Sequence[StageSpan]) -> list[NDArray[np.float32] | Picked]:
        assert len({span.slot for span in spans}) == len(spans)
        self.passes += 1
        self.rows += sum(span.rows for span in spans)
        return [self._one(span) for span in spans]

    def _one(self, span: StageSpan) -> NDArray[np.float32] | Picked:
        hidden = self._embed(span) if self.info.layers.embedding else np.asarray(span.hidden)
        hidden = hidden.astype(np.float64)
        assert hidden.shape == (span.rows, WIDTH)
        for layer, kept in self.kv[span.slot].items():
            if len(kept) < span.base:
                raise LocalProtocolError("the span does not go on where the slot ends")
            seen = np.concatenate([kept[: span.base], hidden])
            self.kv[span.slot][layer] = seen
            sums = np.cumsum(seen, axis=0)[span.base :]
            hidden = (hidden * 3 + sums * (layer + 1) + layer) % MODULUS
        if self.info.layers.head:
            return self._pick(span, hidden)
        return hidden.astype(np.float32)

    def _embed(self, span: StageSpan) -> NDArray[np.float64]:
        tokens = np.asarray(span.tokens, np.float64)[:, None]
        return (tokens * np.arange(3, 3 + WIDTH) + 1) % MODULUS

    def _pick(self, span: StageSpan, hidden: NDArray[np.float64]) -> Picked:
        slot = self.slots[span.slot]
        del slot.tokens[span.base :]
        ids = np.arange(SIZE)
        mixed = hidden[span.first :] @ np.arange(1, 1 + WIDTH)
        scores = ((mixed[:, None] * (ids + 7) + ids * 31) % 251 / 25).astype(np.float32)
        whole = Span(span.slot, span.base, span.tokens, span.first, None, span.want, span.top_n)
        found = pick(whole, slot, scores)
        slot.tokens += span.tokens
        return found


@dataclass
class TinyChain:
    stages: list[TinyStage]
    lose: Callable[[str], bool] = lambda device: False
    """Asked before each call of a stage."""
    submitted: list[int] = field(default_factory=list)
    """Rows of each pass."""
    closed: bool = False
    leaving: tuple[str, ...] = ()

    @property
    def infos(self) -> tuple[StageInfo, ...]:
        return tuple(stage.info for stage in self.stages)

    def _check(self, stage: TinyStage) -> None:
        device = stage.info.device
        if self.lose(device):
            raise StageLost(f"{device} went away", device=device)

    def open(self, slot: int, sampling: Sampling | None = None) -> None:
        for stage in self.stages:
            self._check(stage)
            stage.open(slot, sampling)

    def rewind(self, slot: int, length: int) -> None:
        raise AssertionError("a pass's base cuts the stages")

    def close(self, slot: int) -> None:
        for stage in self.stages:
            self._check(stage)
            stage.close(slot)

    def submit(self, spans: Sequence[StageSpan]) -> Future[list[Picked]]:
        future: Future[list[Picked]] = Future()
        self.submitted.append(sum(span.rows for span in spans))
        try:
            future.set_result(self._run(spans))
        except Exception as error:  # noqa: BLE001
            future.set_exception(error)
        return future

    def _run(self, spans: Sequence[StageSpan]) -> list[Picked]:
        found: Sequence[object] = [None] * len(spans)
        for stage in self.stages:
            self._check(stage)
            inputs = [
                StageSpan(s.slot, s.base, s.rows, s.tokens, h, s.first, s.want, s.top_n)  # type: ignore[arg-type]
                for s, h in zip(spans, found, strict=True)
            ]
            found = stage.run(inputs)
        return found  # type: ignore[return-value]

    def times(self) -> tuple[StageTimes, ...]:
        return tuple(
            StageTimes(s.info.device, s.passes, s.rows, 1e-3 * s.passes + 1e-4 * s.rows, 0, 0)
            for s in self.stages
        )

    def shutdown(self) -> None:
        self.closed = True


def dealt(fits: dict[str, int]) -> Layout:
    """Layer after layer to whoever has least and has room."""
    if sum(fits.values()) < LAYERS:
        raise PlanError(f"{LAYERS} layers do not fit", why=f"there is room for {fits}")
    counts = dict.fromkeys(fits, 0)
    for _ in range(LAYERS):
        counts[min((d for d in fits if counts[d] < fits[d]), key=lambda d: counts[d])] += 1
    ends = list(accumulate(counts.values(), initial=0))
    held = [(d, a, b) for d, a, b in zip(counts, ends, ends[1:], strict=False) if b > a]
    parts = ranges([(a, b) for _, a, b in held], LAYERS)
    return tuple(Placed(d, part) for (d, _, _), part in zip(held, parts, strict=True))


@dataclass
class TinyFleet:
    """Devices by name; `loses` counts down calls of a device's stages to its end."""

    fits: dict[str, int]
    loses: dict[str, int] = field(default_factory=dict)
    gone: set[str] = field(default_factory=set)
    changed: dict[str, dict[str, object]] = field(default_factory=dict)
    """What differs in a device's `StageInfo`."""
    chains: list[TinyChain] = field(default_factory=list)

    def _lose(self, device: str) -> bool:
        if device in self.loses:
            self.loses[device] -= 1
            if self.loses[device] < 0:
                self.gone.add(device)
                del self.loses[device]
        return device in self.gone

    def plan(self, without: str = "") -> Chosen:
        away = {*self.gone, without}
        return Chosen(dealt({d: n for d, n in self.fits.items() if d not in away}))

    def chain(self, layout: Layout) -> TinyChain:
        for placed in layout:
            if placed.device in self.gone:
                raise StageLost(f"{placed.device} went away", device=placed.device)
        stages = [
            TinyStage(info(p.device, p.layers, **self.changed.get(p.device, {}))) for p in layout
        ]
        self.chains.append(TinyChain(stages, self._lose))
        return self.chains[-1]

    def shutdown(self) -> None:
        self.fits = {}
