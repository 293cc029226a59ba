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
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from outrider.engine import (
    EngineInfo,
    EngineSpec,
    EngineStatistics,
    Note,
    Picked,
    RowRule,
    Span,
    StageInfo,
)
from outrider.engines.base import BaseEngine
from outrider.engines.numeric import digest_of, joined_class, probe_tokens
from outrider.errors import (
    ConfigError,
    EngineFailed,
    EngineFull,
    OutriderError,
    PlanError,
    StageLost,
)
from outrider.protocol.activations import CODECS, ActivationCodec
from outrider.stages.chain import Chain
from outrider.stages.pipeline import Pipeline, run
from outrider.stages.replan import AUTO, Chosen, Fleet, Layout, check, describe, told
from outrider.stages.scout import Offer, Scout

TRIES = 8
"""Devices that may be lost within one call."""
FULLER = 3
"""How often a plan is made again because a device was fuller than planned."""
NOTES = 32
"""Decisions that are remembered."""
WORTH = 0.1
"""Share of a token's time that another layout must save to be moved to: every slot is computed
again for it."""


class SplitEngine(BaseEngine):
    """`layout` is where the layers lie first; None lets the fleet plan.

    `codec` is what the fleet's hops do to activations; `clock` gives seconds, monotonic.
    """

    def __init__(
        self,
        fleet: Fleet,
        layout: Layout | None,
        *,
        clock: Callable[[], float],
        codec: ActivationCodec = "fp32",
        chunk: int | None = None,
    ) -> None:
        self._fleet = fleet
        self._clock = clock
        self._codec: ActivationCodec = codec
        self._chunk = chunk
        self._notes: deque[Note] = deque(maxlen=NOTES)
        self._noted = 0
        self._chain: Chain | None = None
        chosen, self._chain = self._joined(layout, None)
        self._layout = chosen.layout
        infos = self._chain.infos
        self._scout: Scout | None = None
        self._stuck: tuple[str, ...] = ()
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

    def follow(self, scout: Scout) -> None:
        """Move to what it finds, where that pays; it ends with the engine."""
        self._scout = scout

    # --- passes --------------------------------------------------------------------------------

    def _pass(self, spans: Sequence[Span]) -> list[Picked]:
        self._reconsider()
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
            except (PlanError, EngineFull) as error:
                raise self._nobody(error) from error
        raise self._nobody() from lost

    def _replan(self, lost: StageLost | None) -> None:
        """Place the layers on who answers now, and fill every slot again.

        Raises StageLost when another device goes meanwhile.
        """
        began = self._clock()
        self._break()
        chosen, chain = self._joined(None, lost)
        reason = "the devices were looked for again" if lost is None else lost.what
        self._settle(chosen, chain, reason, began)

    def _settle(
        self,
        chosen: Chosen,
        chain: Chain,
        reason: str,
        began: float,
        gain: float | None = None,
    ) -> None:
        """Fill a chain's slots, and go on with it. Raises StageLost; then it is shut down."""
        old, layout = self._layout, chosen.layout
        try:
            numeric_class = self._class(chain)
            self._pipeline = _pipeline(layout, chain.infos, self._chunk)
            self._refill(chain)
        except BaseException:
            chain.shutdown()
            raise
        self._chain, self._layout = chain, layout
        self._info = _within(described(layout, chain.infos, numeric_class), self._info)
        tokens = sum(len(slot.tokens) for slot in self._slots)
        again = f"{tokens} tokens of {len(self._slots)} slots were computed again"
        self._note(old, chosen, f"{reason}; {again} in {self._clock() - began:.2f} s", gain)

    # --- moving without need -------------------------------------------------------------------

    def _reconsider(self) -> None:
        """Leave devices that are going before they go; move where others that came make it pay."""
        if self._chain is None:
            return
        leaving = tuple(dict.fromkeys(self._chain.leaving))
        if leaving and leaving != self._stuck:
            self._leave(leaving)
            return
        self._stuck = leaving
        if self._scout is not None and (offer := self._scout.take()) is not None:
            self._weigh(offer)

    def _leave(self, leaving: tuple[str, ...]) -> None:
        """Once for the same devices: where the others can not hold the model, they are used to
        their end."""
        self._stuck, names = leaving, ", ".join(leaving)
        try:
            chosen = self._fleet.plan(leaving[0])
        except PlanError as error:
            stays = Chosen(self._layout)
            self._note(self._layout, stays, f"{names} is shutting down, but {error.what}")
            return
        if not {placed.device for placed in chosen.layout} & set(leaving):
            self._move(chosen, f"{names} is shutting down")

    def _weigh(self, offer: Offer) -> None:
        gain = f"a token would take {100 * offer.gain:.0f} % less there"
        if offer.gain < WORTH:
            less = f"{describe(offer.chosen.layout)} was considered: {gain}, and {WORTH:.0%} pay"
            stays = Chosen(self._layout, runner_up=describe(offer.chosen.layout))
            self._note(self._layout, stays, less, offer.gain)
        else:
            self._move(offer.chosen, f"devices came or went: {gain}", offer.gain)

    def _move(self, chosen: Chosen, reason: str, gain: float | None = None) -> None:
        """To another layout of the same numeric class, or back: a text never changes its class
        for speed. Raises EngineFailed when neither can be had."""
        began, old = self._clock(), self._layout
        self._break()
        try:
            chain = self._checked(chosen.layout)
            if self._same(chain):
                self._settle(chosen, chain, reason, began, gain)
                return
            chain.shutdown()
            reason = f"{describe(chosen.layout)} would be another numeric class"
            self._settle(Chosen(old), self._checked(old), reason, began)
        except StageLost as lost:
            self._mend(lost)
        except (PlanError, EngineFull):
            self._mend(None)

    def _same(self, chain: Chain) -> bool:
        try:
            return self._class(chain) == self._info.numeric_class
        except BaseException:
            chain.shutdown()
            raise

    def _joined(self, layout: Layout | None, lost: StageLost | None) -> tuple[Chosen, Chain]:
        """As told or as planned; a device that was fuller than planned is planned once more.

        Raises StageLost, EngineFailed (nobody holds the model), and at the start PlanError,
        EngineFull, HandshakeRefused, ModelError.
        """
        if layout is not None:
            return Chosen(layout), self._checked(layout)
        for _ in range(FULLER):
            try:
                return self._tried(lost)
            except EngineFull:
                continue
        return self._tried(lost)

    def _tried(self, lost: StageLost | None) -> tuple[Chosen, Chain]:
        chosen = self._fleet.plan("" if lost is None else lost.device)
        return chosen, self._checked(chosen.layout)

    def _checked(self, layout: Layout) -> Chain:
        chain = self._fleet.chain(layout)
        try:
            check(layout, chain.infos)
        except BaseException:
            chain.shutdown()
            raise
        return chain

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
        cuts = [str(info.layers.stop) for info in chain.infos[:-1]]
        if cuts and not all(keeps(self._codec, info.dtype) for info in chain.infos[:-1]):
            stems = [*stems, f"{self._codec} at {','.join(cuts)}"]
        return joined_class(stems, probe(chain))

    def _note(self, old: Layout, chosen: Chosen, reason: str, gain: float | None = None) -> None:
        self._noted += 1
        self._notes.append(
            Note(
                number=self._noted,
                what="placement",
                old=describe(old),
                new=describe(chosen.layout),
                reason="; ".join(filter(None, (reason, chosen.told))),
                binding=chosen.binding,
                runner_up=chosen.runner_up,
                predicted_gain=gain,
            )
        )
        # Whoever looks at notes does when the description is another object.
        self._info = replace(self._info)

    def _nobody(self, cause: OutriderError | None = None) -> EngineFailed:
        why = f"the layers lay on {describe(self._layout)}"
        if cause is not None:
            why = f"{cause.what}; {cause.why}" if cause.why else cause.what
        return EngineFailed(
            "no devices are left that can hold the model",
            why=why,
            effect="the pass was not run; what was committed stays",
            todo=(cause.todo if cause else "") or "start the workers again",
        )

    # --- figures and the end -------------------------------------------------------------------

    def statistics(self) -> EngineStatistics:
        return replace(super().statistics(), notes=tuple(self._notes))

    def shutdown(self) -> None:
        super().shutdown()
        if self._scout is not None:
            self._scout.stop()
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


def keeps(codec: ActivationCodec, dtype: str) -> bool:
    """Whether hidden states of a dtype travel without losing a bit."""
    return codec == "fp32" or (codec, dtype) in (("bf16", "bfloat16"), ("fp16", "float16"))


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


# --- from a specification ----------------------------------------------------------------------

OPTIONS = (
    "workers",
    "workers_ca",
    "workers_api_key",
    "roster",
    "layers",
    "activations",
    "chunk",
)


def build(spec: EngineSpec) -> SplitEngine:
    """`options`: `workers` (HOST:PORT,..., `mdns` for those that announce themselves, `join`
    for those that register, which stand in the file `roster`), `workers_ca` (a file),
    `workers_api_key`, `layers` (`auto`, or `A:B,B:C,...`), `activations` (a codec), `chunk`
    (rows of a micro-batch, or `auto`).

    Raises ConfigError, PlanError, StageLost, EngineFull, and as `source.resolve`.
    """
    from outrider.stages.channel import Credentials
    from outrider.stages.fleet import WorkerFleet
    from outrider.stages.roster import Roster

    given = _options(spec)
    workers = [part for part in given.get("workers", "").split(",") if part]
    if not workers:
        raise ConfigError("a split model needs workers", todo="give --workers HOST:PORT,...")
    codec = _codec(given.get("activations", "fp32"))
    authority = given.get("workers_ca")
    credentials = Credentials.read(
        given.get("workers_api_key", ""), Path(authority) if authority else None
    )
    fleet = WorkerFleet.make(spec, workers, credentials, codec, time.monotonic)
    if "roster" in given:
        fleet.roster = Roster(Path(given["roster"]))
    layers = given.get("layers", AUTO)
    if layers != AUTO and (fleet.find is not None or fleet.roster is not None):
        raise ConfigError(
            "--layers deals ranges to workers that are named; `mdns` and `join` name none",
            todo="write the workers' addresses, or leave --layers at auto",
        )
    engine = SplitEngine(
        fleet,
        None if layers == AUTO else told(layers, workers, fleet.layers),
        clock=time.monotonic,
        codec=codec,
        chunk=_chunk(given.get("chunk", AUTO)),
    )
    if fleet.roster is not None:
        scout = Scout(fleet, fleet.roster.stamp, lambda: engine.layout)
        engine.follow(scout)
        scout.start()
    return engine


def _options(spec: EngineSpec) -> dict[str, str]:
    for name, _ in spec.options:
        if name not in OPTIONS:
            raise ConfigError(
                f"the split engine has no option {name!r}", todo=f"one of {', '.join(OPTIONS)}"
            )
    return dict(spec.options)


def _codec(text: str) -> ActivationCodec:
    for codec in CODECS:
        if codec == text:
            return codec
    raise ConfigError(f"no code {text!r} for activations", todo=f"one of {', '.join(CODECS)}")


def _chunk(text: str) -> int | None:
    if text == AUTO:
        return None
    if not text.isdecimal() or int(text) < 1:
        raise ConfigError(f"a micro-batch of {text!r} rows", todo="a number above 0, or auto")
    return int(text)
