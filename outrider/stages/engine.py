"""A model whose layers lie on several devices, as an ordinary engine.

Whoever verifies or drafts with it sees slots, passes and picks as of any other engine;
so decoding over a split is speculative without more ado: a pass of 1 + k rows costs one
trip through the stages. Tokens of every slot are kept here. When a device goes away the
layers are placed anew on those that are left, every slot is computed again from its
tokens, and the pass that failed runs again (Petals, arXiv 2312.08361): the text goes on
as if nothing had been, within one numeric class.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace

from outrider.engine import EngineInfo, EngineStatistics, Note, Picked, RowRule, Span, StageInfo
from outrider.engines.base import BaseEngine
from outrider.engines.numeric import digest_of, joined_class, probe_tokens
from outrider.errors import EngineFailed, PlanError, StageLost
from outrider.stages.chain import Chain
from outrider.stages.pipeline import Pipeline, run
from outrider.stages.replan import Fleet, Layout, check, describe

TRIES = 8
"""Devices that may be lost within one call."""
NOTES = 32
"""Decisions that are remembered."""


class SplitEngine(BaseEngine):
    """`layout` is where the layers lie first; None lets the fleet plan.

    `wire` names what lossy hops do to activations, empty where they carry every bit.
    `clock` gives seconds, monotonic.
    """

    def __init__(
        self,
        fleet: Fleet,
        layout: Layout | None,
        *,
        clock: Callable[[], float],
        wire: str = "",
        chunk: int | None = None,
    ) -> None:
        self._fleet = fleet
        self._clock = clock
        self._wire = wire
        self._chunk = chunk
        self._notes: deque[Note] = deque(maxlen=NOTES)
        self._noted = 0
        self._layout = layout or fleet.plan(fleet.members())
        self._chain: Chain | None = fleet.chain(self._layout)
        infos = self._chain.infos
        check(self._layout, infos)
        self._pipeline = _pipeline(self._layout, infos, chunk)
        super().__init__(described(self._layout, infos, self._class(self._chain)))

    @property
    def layout(self) -> Layout:
        return self._layout

    @property
    def pipeline(self) -> Pipeline:
        return self._pipeline

    @property
    def chain(self) -> Chain:
        """Raises EngineFailed while no devices hold the model."""
        if self._chain is None:
            raise self._nobody()
        return self._chain

    # --- passes --------------------------------------------------------------------------------

    def _pass(self, spans: Sequence[Span]) -> list[Picked]:
        for _ in range(TRIES):
            if self._chain is None:
                self._mend(None)
            try:
                return self._pipeline.run(self.chain, spans)
            except StageLost as lost:
                self._mend(lost)
        raise self._nobody()

    # --- slots ---------------------------------------------------------------------------------

    # The next pass's base cuts the stages, so a rewind costs no message of its own.

    def _opened(self, number: int) -> None:
        try:
            self._open_stages(number)
        except BaseException:
            self._slots.close(number)
            raise

    def _open_stages(self, number: int) -> None:
        """A chain that is made anew opens all slots that stand in the table, this one too."""
        if self._chain is None:
            self._mend(None)
            return
        try:
            self._chain.open(number, self._slots[number].sampling)
        except StageLost as lost:
            self._mend(lost)

    def _closed(self, number: int) -> None:
        """A device that is gone is found out by the next pass: freeing needs none."""
        if self._chain is not None:
            try:
                self._chain.close(number)
            except StageLost:
                self._break()

    def _break(self) -> None:
        chain, self._chain = self._chain, None
        if chain is not None:
            chain.shutdown()

    # --- planning anew -------------------------------------------------------------------------

    def _mend(self, lost: StageLost | None) -> None:
        """Make the chain anew, however many devices go meanwhile.

        Raises EngineFailed when those that are left can not hold the model; the next call
        looks again who answers.
        """
        for _ in range(TRIES):
            try:
                self._replan(lost)
                return
            except StageLost as error:
                lost = error
        raise self._nobody() from lost

    def _replan(self, lost: StageLost | None) -> None:
        """Place the layers on who answers now, and fill every slot again.

        Raises StageLost when another device goes meanwhile.
        """
        began, old = self._clock(), self._layout
        self._break()
        layout = self._planned(lost)
        chain = self._fleet.chain(layout)
        try:
            check(layout, chain.infos)
            numeric_class = self._class(chain)
            self._pipeline = _pipeline(layout, chain.infos, self._chunk)
            self._refill(chain)
        except BaseException:
            chain.shutdown()
            raise
        self._chain, self._layout = chain, layout
        self._info = _within(described(layout, chain.infos, numeric_class), self._info)
        self._note(old, lost, self._clock() - began)

    def _planned(self, lost: StageLost | None) -> Layout:
        members = [m for m in self._fleet.members() if lost is None or m.name != lost.device]
        try:
            return self._fleet.plan(members)
        except PlanError as error:
            raise EngineFailed(
                "no devices are left that can hold the model",
                why=f"{error.what}; {error.why}" if error.why else error.what,
                effect="the pass was not run; what was committed stays",
                todo=error.todo or "start the worker again, or one with more memory",
            ) from error

    def _refill(self, chain: Chain) -> None:
        """Compute every slot's tokens again."""
        spans = []
        for slot in self._slots:
            chain.open(slot.number, slot.sampling)
            if slot.tokens:
                spans.append(_body(slot.number, tuple(slot.tokens)))
        self._pipeline.run(chain, spans)

    def _class(self, chain: Chain) -> str:
        """The unsplit model's class where every stage computes as it does and no bit is lost."""
        stems = [info.numeric_class for info in chain.infos]
        if self._wire:
            cuts = [str(info.layers.stop) for info in chain.infos[:-1]]
            stems = [*stems, f"{self._wire} at {','.join(cuts)}"]
        return joined_class(stems, probe(chain))

    def _note(self, old: Layout, lost: StageLost | None, seconds: float) -> None:
        self._noted += 1
        tokens = sum(len(slot.tokens) for slot in self._slots)
        reason = "the devices were looked for again" if lost is None else lost.what
        self._notes.append(
            Note(
                number=self._noted,
                what="placement",
                old=describe(old),
                new=describe(self._layout),
                reason=f"{reason}; {tokens} tokens of {len(self._slots)} slots were computed "
                f"again in {seconds:.2f} s",
                binding=f"{lost.device} is gone" if lost is not None and lost.device else "",
            )
        )

    def _nobody(self) -> EngineFailed:
        return EngineFailed(
            "the devices that hold the model went away",
            why=f"the layers lay on {describe(self._layout)}",
            effect="the pass was not run; what was committed stays",
            todo="start the workers again",
        )

    # --- figures and the end -------------------------------------------------------------------

    def statistics(self) -> EngineStatistics:
        return replace(super().statistics(), notes=tuple(self._notes))

    def shutdown(self) -> None:
        super().shutdown()
        self._break()
        self._fleet.shutdown()


def _within(new: EngineInfo, old: EngineInfo) -> EngineInfo:
    """Whoever plans passes goes on with the limits that it was told."""
    limits = old.context, old.max_slots, old.max_rows
    return replace(new, context=limits[0], max_slots=limits[1], max_rows=limits[2])


def _body(slot: int, tokens: tuple[int, ...]) -> Span:
    return Span(slot, 0, tokens, first=len(tokens) - 1)


def _pipeline(layout: Layout, infos: Sequence[StageInfo], chunk: int | None) -> Pipeline:
    rule = _rule(infos)
    return Pipeline(
        devices=tuple(placed.device for placed in layout),
        most=min(info.max_rows for info in infos),
        multiple=math.lcm(rule.multiple, max(rule.minimum, 1)),
        chunk=chunk,
    )


def _rule(infos: Sequence[StageInfo]) -> RowRule:
    return RowRule(
        minimum=max(info.row_rule.minimum for info in infos),
        multiple=math.lcm(*(info.row_rule.multiple for info in infos)),
        uniform=any(info.row_rule.uniform for info in infos),
    )


def probe(chain: Chain) -> str:
    """Digest of the scores that the whole chain gives the probe's tokens.

    Run in the first slot, before any is open; nothing of it stays.
    """
    tokens = probe_tokens(chain.infos[0].vocabulary_size)
    chain.open(0)
    try:
        span = Span(0, 0, tokens, want="scores")
        [found] = run(chain, [span], rows=min(info.max_rows for info in chain.infos))
    finally:
        chain.close(0)
    assert found.scores is not None
    return digest_of(found.scores)


def described(layout: Layout, infos: Sequence[StageInfo], numeric_class: str) -> EngineInfo:
    """What the stages are together."""
    first = infos[0]
    return EngineInfo(
        engine="split",
        model=first.model,
        device=describe(layout),
        dtype="+".join(dict.fromkeys(info.dtype for info in infos)),
        vocabulary_digest=first.vocabulary_digest,
        vocabulary_size=first.vocabulary_size,
        context=min(info.context for info in infos),
        max_slots=min(info.max_slots for info in infos),
        max_rows=min(info.max_rows for info in infos),
        exact=all(info.exact for info in infos),
        row_rule=_rule(infos),
        numeric_class=numeric_class,
        scores=True,
    )
