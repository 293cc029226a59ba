"""The daemon: what requests it takes, where they run, and what it says of itself."""

from __future__ import annotations

import asyncio
import os
import secrets
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from outrider import __version__
from outrider.edge import journal as journals
from outrider.edge.channel import attested
from outrider.edge.drafter import Drafter
from outrider.edge.fanout import Fanout
from outrider.edge.journal import DiskJournal, Journal, MemoryJournal, PlainSeals, Seal, Seals
from outrider.edge.link import Figures, Link, Peer
from outrider.edge.placement import Alone, Governor, drawn
from outrider.edge.power import PowerWatch
from outrider.edge.service import GenerateRequest
from outrider.edge.session import Job, Request
from outrider.edge.stay import Stay
from outrider.engine import Engine, EngineInfo
from outrider.engines.base import BaseEngine
from outrider.errors import (
    CloudUnreachable,
    ContextExceeded,
    InvalidRequest,
    JournalError,
    NotFound,
    OutriderError,
    Overloaded,
    SealError,
    UnsupportedParameter,
)
from outrider.lag import LoopLag
from outrider.models import grammar
from outrider.models.served import Served
from outrider.options import EdgeOptions, NamedModel
from outrider.partitioner.placement import Objective, Verdict, Wants
from outrider.partitioner.power.account import Accountant
from outrider.partitioner.power.state import Bounds
from outrider.partitioner.signals import Share
from outrider.protocol import events
from outrider.protocol.constraint import PARAM
from outrider.protocol.messages import ModelDescription
from outrider.protocol.status import (
    CloudStatus,
    LoadedModel,
    ModelCard,
    Placement,
    RequestState,
    Status,
)
from outrider.protocol.stream import Provisional, Retract, StreamEvent, Token

SCRATCH = ".journal.new"
"""A journal that is being written anew, to take the place of the one that it was read from."""
KEPT = 100
"""Requests that have ended and can still be attached to."""
SCHEMA = 1
SHARES: tuple[Share, ...] = ("tokens", "hidden", "nothing")
"""From most to least."""
LOOK_S = 0.25
"""Between two looks for a first cloud."""


@dataclass(frozen=True, slots=True)
class Small:
    """The draft model: its lanes, and what is needed to speak with it alone."""

    name: str
    drafter: Drafter
    served: Served | None
    """None for drafters without a model: they propose, but can not answer."""
    loaded_at: float

    @property
    def info(self) -> EngineInfo:
        return self.drafter.engine.info


@dataclass(frozen=True, slots=True)
class Chosen:
    """Where a request runs, and as which model."""

    model: str
    served: Served
    context: int
    placement: Literal["edge", "cloud", "draft", "split"]
    pinned: bool = True
    """Asked for, so that nothing changes it."""
    reason: str = ""
    share: Share = "tokens"
    alone: Verdict | None = None
    """The policy chose the small model."""
    exact: bool = False
    numeric_class: str = ""


@dataclass(slots=True)
class _Totals:
    requests: int = 0
    tokens: int = 0
    sent: int = 0
    hint_rows: int = 0
    accepted: int = 0


@dataclass(slots=True)
class Daemon:
    """An `EdgeService`. Make it, then `await restore()`."""

    options: EdgeOptions
    link: Link
    small: Small | None
    fanout: Fanout
    lag: LoopLag
    small_for: Callable[[ModelDescription], Awaitable[Small | None]] | None = None
    """Makes the drafter once a target's vocabulary is known, for those that need it."""
    small_at_first: Callable[[], Awaitable[Small | None]] | None = None
    """Loads the draft model at the first request, where that was asked for."""
    loaded: Callable[[], tuple[LoadedModel, ...]] = tuple
    """Models of this device, for the status."""
    energy: Accountant = field(default_factory=Accountant)
    power: PowerWatch | None = None
    seals: Seals = field(default_factory=PlainSeals)
    """Of disk journals."""
    clock: Callable[[], float] = time.monotonic
    listen: str = ""
    started_at: float = field(default_factory=time.monotonic)
    running: dict[str, Request] = field(default_factory=dict)
    ended: deque[Request] = field(default_factory=lambda: deque(maxlen=KEPT))
    totals: _Totals = field(default_factory=_Totals)
    governor: Governor = field(init=False)
    operator: Literal["edge", "cloud", "draft", "split"] | None = None
    """The placement that was pinned while the daemon runs."""
    _alone: dict[str, Alone] = field(default_factory=dict)
    """By request: that the small model answers because it was the better choice."""
    _queued: int = 0
    _free: asyncio.Semaphore = field(init=False)
    """Written here from `options.max_running`."""
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)
    _work: dict[str, asyncio.Task[None]] = field(default_factory=dict)
    """What runs, by request."""
    _stays: dict[str, Stay] = field(default_factory=dict)
    """Of requests that outlive their reader."""
    _making: asyncio.Lock = field(default_factory=asyncio.Lock)

    def __post_init__(self) -> None:
        self._free = asyncio.Semaphore(self.options.max_running)
        self.governor = Governor(
            self.link,
            self.fanout.publish,
            self.clock,
            power=lambda: self.power.bounds if self.power is not None else Bounds(),
            energy=lambda: drawn(self.energy),
            objective=Objective.named(self.options.objective),
        )

    # --- requests --------------------------------------------------------------------------

    async def generate(self, request: GenerateRequest) -> AsyncIterator[StreamEvent]:
        """See `EdgeService`. Raises InvalidRequest, ContextExceeded, NotFound, Overloaded,
        CloudUnreachable before the first event."""
        chosen = await self._choose(request)
        job = self._job(request, chosen)
        await _check_constraint(job)
        await self._take_place()
        try:
            ride = self._ride(job)
            if chosen.alone is not None:
                self._alone[job.id] = self.governor.began_alone(job.id, chosen.alone)
            task = self._launch(ride)
        except BaseException:
            self._free.release()
            raise
        if request.linger_s:
            self._stays[job.id] = Stay(request.linger_s, task.cancel)
        try:
            with self._reading(job.id):
                async for event in ride.transcript.read(_for_client(request)):
                    yield event
        finally:
            if not request.linger_s:
                # A client that went away cancels the work; all is freed before we return.
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)

    @contextmanager
    def _reading(self, request: str) -> Iterator[None]:
        """Somebody reads the answer, so that it stays."""
        if (stay := self._stays.get(request)) is None:
            yield
            return
        stay.enter()
        try:
            yield
        finally:
            if request in self._stays:
                stay.leave()

    def cancel(self, request_id: str) -> None:
        """See `EdgeService`."""
        self._find(request_id)
        if (task := self._work.get(request_id)) is not None:
            task.cancel()

    def _ride(self, job: Job, suffix: str = ".journal") -> Request:
        drafter = self.small.drafter if self.small and self._drafts(job) else None
        if job.placement == "edge" and (self.small is None or self.small.name != job.draft_model):
            raise _swapped(job.draft_model)
        ride = Request(
            job,
            self.link,
            drafter,
            self.fanout.publish,
            self.clock,
            energy=self.energy,
            governor=None if job.placement == "edge" else self.governor,
            journal=self._journal(job, suffix),
        )
        self.running[job.id] = ride
        return ride

    def _drafts(self, job: Job) -> bool:
        assert self.small is not None
        info = self.small.info
        kept = job.constraint is None or bool(info.masks)
        return kept and info.vocabulary_digest == job.vocabulary.digest

    def _launch(self, ride: Request) -> asyncio.Task[None]:
        task = asyncio.create_task(ride.run())
        self._tasks.add(task)
        self._work[ride.job.id] = task
        task.add_done_callback(lambda done: self._ended(done, ride))
        return task

    def _ended(self, task: asyncio.Task[None], ride: Request) -> None:
        self._tasks.discard(task)
        self._work.pop(ride.job.id, None)
        if (stay := self._stays.pop(ride.job.id, None)) is not None:
            stay.close()
        if self.running.pop(ride.job.id, None) is None:
            return
        if not ride.transcript.complete:
            # Cancelled before it ran at all.
            ride.transcript.end()
        self._free.release()
        self.ended.append(ride)
        self.totals.requests += 1
        if (made := self._alone.pop(ride.job.id, None)) is not None:
            took_ms = (self.clock() - ride.began) * 1e3
            tokens = sum(answer.end for answer in ride.answers)
            self.governor.ended_alone(ride.job.id, made, tokens, took_ms)
        for answer in ride.answers:
            self.totals.tokens += answer.end
            self.totals.sent += answer.counts.sent
            self.totals.hint_rows += answer.counts.hint_rows
            self.totals.accepted += answer.counts.accepted
        if not task.cancelled() and (error := task.exception()) is not None:
            what = f"a request failed: {type(error).__name__}"
            self.fanout.publish(events.Trouble(code="internal", what=what))
            if ride.transcript.error is None:
                ride.transcript.end(OutriderError("the daemon failed on this request"))

    async def _take_place(self) -> None:
        """A place among the running; Overloaded when too many wait already."""
        if self._free.locked() and self._queued >= self.options.max_queue:
            wait_s = 1.0 + 0.25 * self._queued
            self.fanout.publish(
                events.Shed(where="edge", queued=self._queued, retry_after_s=wait_s)
            )
            raise Overloaded(
                f"{self._queued} requests wait already",
                retry_after_s=wait_s,
                effect="the request was not started",
                todo="try again later, or raise --max-queue",
            )
        self._queued += 1
        try:
            await self._free.acquire()
        finally:
            self._queued -= 1

    # --- where it runs ---------------------------------------------------------------------

    @property
    def placement(self) -> Placement:
        """What requests without a wish get: the operator's pin, else the option."""
        return self.operator or self.options.placement

    @property
    def pinned(self) -> bool:
        return self.operator is not None

    @property
    def queued(self) -> int:
        return self._queued

    def pin(self, placement: Placement) -> None:
        """Run answers there until told otherwise, those under way from their next commit on;
        `auto` takes it back. Raises InvalidRequest for what this daemon can not do."""
        speaks = self.small is not None and self.small.served is not None
        if placement == "edge" and not speaks:
            raise InvalidRequest(
                "there is no model on this device that could answer",
                param="placement",
                effect="nothing was pinned",
                todo="start the edge with --draft PATH, a model",
            )
        if placement == "split" and not self.options.split:
            raise InvalidRequest(
                "this daemon commits no split model",
                param="placement",
                effect="nothing was pinned",
                todo="start the edge with --split MODEL and --workers HOST:PORT,...",
            )
        self.operator = self.governor.pin = None if placement == "auto" else placement
        said = "taken back" if placement == "auto" else f"set to {placement}"
        self.fanout.publish(events.Remark(said=f"the pin of placements was {said}"))

    async def _choose(self, request: GenerateRequest) -> Chosen:
        """The placement. Raises NotFound, CloudUnreachable, InvalidRequest."""
        await self._wake()
        wanted = request.placement if request.placement != "auto" else self.placement
        if self.pinned and request.placement == "auto" and wanted != "edge":
            # The governor applies it, so that it can be taken back while the answer runs.
            wanted = "auto"
        share = self._share(request)
        if wanted == "edge" or (self.small is not None and request.model == self.small.name):
            return replace(self._on_edge(request, "the small model was asked for"), share=share)
        if share != "tokens":
            return await self._kept(request, share)
        if wanted == "split":
            return await self._on_split(request, share, asked=True)
        description = await self._target(request)
        if description is None:
            return self._without_cloud(request)
        served = self.link.served(description.name)
        assert served is not None
        await self._make_small(description)
        fits = self.small is not None and (
            self.small.info.vocabulary_digest == description.vocabulary_digest
        )
        if wanted == "draft" and not fits:
            raise InvalidRequest(
                "there is no draft model of the target's vocabulary",
                param="outrider.placement",
                why=_vocabularies(self.small, description),
                effect="the request was not started",
                todo="start the edge with a --draft that fits (outrider fit), or ask for `cloud`",
            )
        if wanted == "auto" and (found := self._alone_is_best(request, description)) is not None:
            return replace(self._on_edge(request, found.reason), alone=found)
        placement: Literal["cloud", "draft"] = "draft" if fits and wanted != "cloud" else "cloud"
        return Chosen(
            description.name,
            served,
            description.context,
            placement,
            pinned=wanted in ("cloud", "draft"),
            exact=description.exact,
            numeric_class=description.class_of(request.constraint),
        )

    def _share(self, request: GenerateRequest) -> Share:
        """What may leave the device: a request may keep back more than the daemon does."""
        ours, wanted = self.options.share, request.share or self.options.share
        if SHARES.index(wanted) < SHARES.index(ours):
            raise InvalidRequest(
                f"this daemon does not share {wanted}",
                param="outrider.share",
                why=f"it was started with --share {ours}",
                effect="the request was not started",
                todo=f"ask for share={ours} or less, or leave it away",
            )
        return wanted

    async def _kept(self, request: GenerateRequest, share: Share) -> Chosen:
        """Where an answer runs of which not all may leave the device."""
        if request.placement in ("cloud", "draft") or (share, request.placement) == (
            "nothing",
            "split",
        ):
            raise InvalidRequest(
                f"share={share} and placement={request.placement} contradict each other",
                param="outrider.share",
                why="a committer that is not this device gets the prompt's token ids, or states",
                effect="the request was not started, and nothing was sent",
                todo="leave one of them away",
            )
        if share == "hidden" and self._keeps_ends:
            return await self._on_split(request, share, asked=request.placement == "split")
        if share == "hidden" and not request.small_allowed:
            raise InvalidRequest(
                "no committer here may have this answer",
                param="outrider.share",
                why=self._open_ends(),
                effect="the request was not started, and nothing was sent",
                todo="ask with share=tokens, or with small_allowed=true for the small model",
            )
        reason = f"share={share}: the small model alone may have it"
        return replace(self._on_edge(request, reason, share), share=share)

    @property
    def _keeps_ends(self) -> bool:
        return bool(self.options.split) and self.options.workers_here

    def _open_ends(self) -> str:
        if not self.options.split:
            return "share=hidden needs a split model whose embedding and head lie on this device"
        away = next(worker for worker in self.options.workers if not worker.loopback)
        return (
            f"share=hidden: embedding and head of the split model may lie at {away}, "
            "which would get the token ids"
        )

    async def _on_split(self, request: GenerateRequest, share: Share, *, asked: bool) -> Chosen:
        """The committer of this house, over the stages of its devices."""
        if not self.options.split:
            raise InvalidRequest(
                "this daemon commits no split model",
                param="outrider.placement",
                effect="the request was not started",
                todo="start the edge with --split MODEL and --workers HOST:PORT,...",
            )
        name = NamedModel.parse(self.options.split).name
        if request.model not in ("", name):
            raise InvalidRequest(
                f"the split model of this daemon is {name}, not the one asked for",
                param="model",
                effect="the request was not started",
                todo=f"ask for {name}, or for another placement",
            )
        found = await self._of_house(name)
        served = self.link.served(name)
        if found is None or served is None:
            raise CloudUnreachable(
                "the committer of the split model does not answer yet",
                effect="the request was not started",
                todo="try again in a moment; outrider status shows whether its workers are there",
            )
        await self._make_small(found)
        return Chosen(
            name,
            served,
            found.context,
            "split",
            pinned=asked,
            exact=found.exact,
            numeric_class=found.numeric_class,
            share=share,
        )

    async def _of_house(self, name: str) -> ModelDescription | None:
        """What the house's own committer says of a model, waiting for it as long as patience."""
        deadline = self.clock() + self.options.patience_s
        while True:
            for peer in self.link.peers:
                if peer.kind == "split" and (peer.known or await self.link.check(peer)):
                    return next((model for model in peer.models if model.name == name), None)
            if self.clock() >= deadline:
                return None
            await asyncio.sleep(min(LOOK_S, max(0.0, deadline - self.clock())))

    def _alone_is_best(self, request: GenerateRequest, target: ModelDescription) -> Verdict | None:
        """The policy's verdict where it takes the small model, and the request lets it."""
        speaks = self.small is not None and self.small.served is not None
        if not request.small_allowed or request.exact_required or not speaks:
            return None
        left = request.max_tokens or target.context
        return self.governor.alone(target.name, Wants(small_allowed=True, remaining=left))

    async def _wake(self) -> None:
        """The draft model that waits for the first request, once. Raises ModelError, ..."""
        async with self._making:
            if self.small is None and self.small_at_first is not None:
                self.small = await self.small_at_first()

    async def _make_small(self, target: ModelDescription) -> None:
        """The drafter of a target's vocabulary, once, however many requests ask for it."""
        async with self._making:
            if self.small is None and self.small_for is not None:
                self.small = await self.small_for(target)
                await self._spell(self.small, target)

    async def _spell(self, small: Small | None, target: ModelDescription) -> None:
        """A drafter without a model keeps to constraints by the target's vocabulary."""
        served = self.link.served(target.name)
        if small is None or served is None or small.info.masks:
            return
        vocabulary = served.vocabulary

        def spell(engine: Engine) -> None:
            if isinstance(engine, BaseEngine):
                engine.spell(lambda: vocabulary)

        await small.drafter.engine.run(spell)

    async def _target(self, request: GenerateRequest) -> ModelDescription | None:
        """The target, if a cloud names it; who is to wait does so while none was ever seen."""
        waits = (request.fallback or self.options.fallback) == "wait"
        deadline = self.clock() + (self.options.patience_s if waits else 0.0)
        while (found := self.link.find(request.model)) is None:
            await self._look_for_clouds()
            seen = any(peer.known for peer in self.link.peers)
            if seen or self.clock() >= deadline:
                return self.link.find(request.model)
            await asyncio.sleep(min(LOOK_S, max(0.0, deadline - self.clock())))
        return found

    async def _look_for_clouds(self) -> None:
        for peer in self.link.usable():
            if not peer.known:
                await self.link.check(peer)

    def _on_edge(self, request: GenerateRequest, reason: str, share: Share = "tokens") -> Chosen:
        if self.small is None or self.small.served is None:
            kept = share != "tokens"
            raise InvalidRequest(
                "there is no model on this device that could answer",
                param="outrider.share" if kept else "outrider.placement",
                why=f"share={share}: no other may have the request" if kept else "",
                effect="the request was not started",
                todo="start the edge with --draft PATH, a model",
            )
        if request.exact_required:
            raise InvalidRequest(
                "an answer of the small model is not the target's",
                param="outrider.exact",
                effect="the request was not started",
                todo="ask for another placement, or do not require exactness",
            )
        info = self.small.info
        if request.constraint is not None and not info.masks:
            raise _unmasked(f"the engine {info.engine} of this device does not compute masks")
        name, served = self.small.name, self.small.served
        return Chosen(name, served, info.context, "edge", reason=reason)

    def _without_cloud(self, request: GenerateRequest) -> Chosen:
        """No cloud knows the model: the small one answers if that is wanted, and says so."""
        if any(peer.known for peer in self.link.peers):
            names = [card.id for card in self.models()]
            raise NotFound(
                "there is no such model",
                param="model",
                effect="the request was not started",
                todo=f"one of: {', '.join(names)}",
            )
        fallback = request.fallback or self.options.fallback
        speaks = self.small is not None and self.small.served is not None
        if fallback == "local" and speaks and not request.exact_required:
            return self._on_edge(
                request, "no cloud has been reachable, and the small model may answer"
            )
        raise CloudUnreachable(
            "no cloud has been reachable since the daemon started",
            why="; ".join(f"{peer.address}: {peer.detail}" for peer in self.link.peers),
            effect="the request was not started",
            todo="start the cloud, check --cloud, or ask with fallback `local`",
        )

    def _job(self, request: GenerateRequest, chosen: Chosen) -> Job:
        prompt = self._tokens(request, chosen.served)
        room = chosen.context - len(prompt)
        if room < 1 or (request.max_tokens or 0) > room:
            raise ContextExceeded(
                f"this model's context is {chosen.context} tokens: the prompt has {len(prompt)}, "
                f"the answer may have {request.max_tokens or 'at least 1'}",
                param="max_tokens" if room >= 1 else "prompt",
                effect="the request was not started",
                todo="shorten the prompt, or lower max_tokens",
            )
        return Job(
            id=secrets.token_hex(8),
            model=chosen.model,
            prompt=prompt,
            sampling=request.sampling,
            seed=secrets.randbits(128) if request.seed is None else request.seed,
            choices=request.n,
            max_tokens=request.max_tokens or room,
            stop=tuple(text.encode() for text in request.stop),
            top_logprobs=request.top_logprobs,
            placement=chosen.placement,
            fallback=request.fallback or self.options.fallback,
            patience_s=self.options.patience_s,
            exact_required=request.exact_required,
            retract=request.retract,
            hint_depth=self.options.hint_depth,
            vocabulary=chosen.served.vocabulary,
            draft_model=self.small.name if self.small is not None else "",
            session=secrets.token_bytes(16),
            pinned=chosen.pinned,
            reason=chosen.reason,
            exact=chosen.exact,
            numeric_class=chosen.numeric_class,
            prediction=_foretold(request, chosen),
            share=chosen.share,
            constraint=request.constraint,
        )

    def _tokens(self, request: GenerateRequest, served: Served) -> tuple[int, ...]:
        prompt = request.prompt
        if isinstance(prompt, str):
            ids = served.tokenizer.encode(prompt, "add")
        elif prompt and isinstance(prompt[0], int):
            ids = tuple(token for token in prompt if isinstance(token, int))
        else:
            messages = [message for message in prompt if not isinstance(message, int)]
            text = served.template.render(
                messages, now=datetime.now(UTC), tools=request.tools or None
            )
            ids = served.tokenizer.encode(text, "keep")
        return self._checked(ids, served)

    def _checked(self, ids: tuple[int, ...], served: Served) -> tuple[int, ...]:
        size = len(served.vocabulary)
        if any(not 0 <= token < size for token in ids):
            raise InvalidRequest(
                f"a token id lies outside 0 to {size - 1}",
                param="prompt",
                effect="the request was not started",
                todo="send ids of the target's own vocabulary, or text",
            )
        if not ids:
            start = served.vocabulary.bos
            if start is None:
                raise InvalidRequest(
                    "the prompt is empty",
                    param="prompt",
                    why="this model has no token that begins a text",
                    effect="the request was not started",
                    todo="send at least one character",
                )
            return (start,)
        return ids

    # --- journals --------------------------------------------------------------------------

    def _journal(self, job: Job, suffix: str = ".journal") -> Journal:
        if self.options.journal == "memory" or self.options.journal_dir is None:
            return MemoryJournal()
        if job.share != "tokens":
            # A record on disk could be taken up by a daemon that shares more.
            return MemoryJournal()
        try:
            path = self.options.journal_dir / f"{job.id}{suffix}"
            return DiskJournal(path, self.seals.new(path))
        except JournalError as error:
            self.fanout.publish(events.Trouble(code=error.code, what=error.what))
            return MemoryJournal()

    async def restore(self) -> None:
        """Take up requests that a daemon before this one left on disk; they can be attached to."""
        directory = self.options.journal_dir
        if self.options.journal != "disk" or directory is None or not directory.is_dir():
            return
        for half_made in directory.glob(f"*{SCRATCH}"):
            half_made.unlink(missing_ok=True)
        paths = sorted(directory.glob("*.journal"))
        await asyncio.gather(*(self._restore(path) for path in paths))

    async def _restore(self, path: Path) -> None:
        try:
            seal = self.seals.of(path)
            left = Left.read(list(journals.read(path, seal)))
        except (JournalError, SealError, OSError) as error:
            what = _untaken(path, error)
            self.fanout.publish(events.Trouble(code="journal", what=what))
            return
        if left is None or left.forked:
            what = f"{path.name} holds no request that could be taken up"
            self.fanout.publish(events.Trouble(code="journal", what=what))
            path.unlink(missing_ok=True)
            seal.forget()
            return
        await self._take_up(path, left, seal)

    async def _take_up(self, path: Path, left: Left, seal: Seal) -> None:
        """Go on with a request, once a cloud serves its model; its file stays until then."""
        while (served := self.link.served(left.opened.model)) is None:
            await self.link.find_one(left.opened.model)
        await self._free.acquire()
        ride = self._ride(left.job(served, self.options, self.small), SCRATCH)
        ride.numeric_class = left.numeric_class
        ride.restore(left.committed, left.fence)
        self._replace(path, ride.journal)
        seal.forget()
        self._launch(ride)

    def _replace(self, path: Path, journal: Journal) -> None:
        try:
            if isinstance(journal, DiskJournal):
                journal.take_place(path)
            else:
                path.unlink(missing_ok=True)
        except JournalError as error:
            self.fanout.publish(events.Trouble(code=error.code, what=error.what))

    # --- views -----------------------------------------------------------------------------

    async def attach(self, request_id: str, positions: Sequence[int]) -> AsyncIterator[StreamEvent]:
        ride = self._find(request_id)
        start = dict(enumerate(positions))

        def wanted(event: StreamEvent) -> bool:
            if isinstance(event, Provisional | Retract):
                return False
            return not isinstance(event, Token) or event.position >= start.get(event.choice, 0)

        with self._reading(request_id):
            async for event in ride.transcript.read(wanted):
                yield event

    def _find(self, request_id: str) -> Request:
        known = [*self.running.values(), *self.ended]
        found = next((ride for ride in known if ride.job.id == request_id), None)
        if found is None:
            raise NotFound("there is no such request, or it ended long ago", param="id")
        return found

    async def served(self, request: GenerateRequest) -> Served:
        return (await self._choose(request)).served

    def render(self, request: GenerateRequest) -> tuple[int, ...]:
        small = self.small.served if self.small is not None else None
        if request.placement == "edge" and small is not None:
            return self._tokens(request, small)
        return self._tokens(request, self._served(request.model))

    def detokenize(self, model: str, ids: Sequence[int]) -> bytes:
        return self._served(model).tokenizer.decode_bytes(ids)

    def _served(self, model: str) -> Served:
        served = self.link.served(model)
        if served is None and self.small is not None and model in ("", self.small.name):
            served = self.small.served
        if served is None:
            raise NotFound("there is no such model", param="model")
        return served

    def ready(self) -> bool:
        """Whether a request that asks for nothing special would be answered now: a cloud is
        connected, or the small model answers while none is."""
        speaks = self.small is not None and self.small.served is not None
        speaks = speaks or self.small_at_first is not None
        options = self.options
        alone = options.fallback == "local" or options.placement == "edge"
        alone = alone or options.share == "nothing"
        return (speaks and alone) or any(p.known and not p.failures for p in self.link.peers)

    def models(self) -> tuple[ModelCard, ...]:
        cards: dict[str, ModelCard] = {}
        for peer in self.link.peers:
            for model in peer.models:
                cards.setdefault(model.name, _card(model))
        if self.small is not None and self.small.served is not None:
            cards.setdefault(self.small.name, _small_card(self.small))
        return tuple(cards.values())

    def requests(self) -> tuple[RequestState, ...]:
        running = [_state(ride, "running") for ride in self.running.values()]
        return tuple([*running, *(_state(ride, "done") for ride in self.ended)])

    def status(self) -> Status:
        totals, small = self.totals, self.small
        return Status(
            schema=SCHEMA,
            version=__version__,
            pid=os.getpid(),
            listen=self.listen,
            uptime_s=round(self.clock() - self.started_at, 3),
            placement=self.placement,
            draft=None if small is None else _small_card(small),
            draft_later=self.options.draft if small is None and self.small_at_first else "",
            clouds=tuple(_cloud(peer, self.link.clock()) for peer in self.link.peers),
            requests_running=len(self.running),
            requests_queued=self._queued,
            requests_total=totals.requests + len(self.running),
            tokens_total=totals.tokens,
            hint_yield=totals.accepted / totals.sent if totals.sent else None,
            acceptance_rate=totals.accepted / totals.hint_rows if totals.hint_rows else None,
            loop_lag_p99_ms=round(self.lag.quantile_ms(0.99), 3),
            events_address=self.fanout.address or None,
            power=self.power.status() if self.power is not None else None,
            placements=self.governor.status(),
            decisions=dict(self.governor.counts),
            loaded=self.loaded(),
        )

    async def close(self) -> None:
        """Cancel what runs; every cloud session is closed."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


@dataclass(frozen=True, slots=True)
class Left:
    """What a journal tells of an unfinished request."""

    opened: journals.Opened
    committed: tuple[tuple[int, ...], ...]
    fence: int
    numeric_class: str
    forked: bool

    @classmethod
    def read(cls, records: Sequence[journals.Record]) -> Left | None:
        """None when not even the open record is whole."""
        if not records or not isinstance(records[0], journals.Opened):
            return None
        opened = records[0]
        committed: list[list[int]] = [[] for _ in range(opened.choices)]
        fence, numeric_class, forked = 0, opened.numeric_class, False
        for record in records[1:]:
            match record:
                case journals.Committed(_, choice, position, tokens):
                    if choice >= len(committed) or position > len(committed[choice]):
                        return None
                    committed[choice][position:] = tokens
                case journals.Fenced(fence, numeric_class):
                    pass
                case journals.Fork():
                    forked = True
        return cls(opened, tuple(map(tuple, committed)), fence, numeric_class, forked)

    def job(self, served: Served, options: EdgeOptions, small: Small | None) -> Job:
        opened = self.opened
        return Job(
            id=opened.request,
            model=opened.model,
            prompt=opened.prompt,
            sampling=opened.sampling,
            seed=int.from_bytes(opened.seed, "little"),
            choices=opened.choices,
            max_tokens=opened.max_tokens,
            stop=opened.stop,
            top_logprobs=opened.top_logprobs,
            placement="draft",
            pinned=False,
            fallback="wait",
            patience_s=options.patience_s,
            exact_required=opened.exact_required,
            retract=False,
            hint_depth=options.hint_depth,
            vocabulary=served.vocabulary,
            draft_model=small.name if small is not None else "",
            session=opened.session,
            numeric_class=self.numeric_class,
            constraint=opened.constraint,
        )


def _untaken(path: Path, error: Exception) -> str:
    """Why a journal is not taken up; the file stays."""
    if isinstance(error, SealError):
        return f"{path.name}: {error.what}; {error.why}"
    return error.what if isinstance(error, JournalError) else f"{path.name} can not be read"


async def _check_constraint(job: Job) -> None:
    """Raises InvalidRequest for one that can not be kept, UnsupportedParameter without llguidance.

    Compiled away from the event loop; who drafts here finds it done.
    """
    constraint, vocabulary = job.constraint, job.vocabulary
    if constraint is None:
        return
    if not grammar.masks():
        raise _unmasked("llguidance is not installed on this device")
    known = await asyncio.to_thread(grammar.grammars, vocabulary.digest, lambda: vocabulary)
    await asyncio.to_thread(known.compile, constraint)


def _unmasked(why: str) -> UnsupportedParameter:
    return UnsupportedParameter(
        "the answer can not be kept to a constraint",
        param=PARAM,
        why=why,
        effect="the request was not started",
        todo='pip install "outrider[edge]", or ask without response_format',
    )


def _foretold(request: GenerateRequest, chosen: Chosen) -> tuple[int, ...]:
    """The prediction's ids, where drafts are wanted at all."""
    if not request.prediction or chosen.placement == "edge":
        return ()
    if chosen.pinned and chosen.placement == "cloud":
        return ()
    return chosen.served.tokenizer.encode(request.prediction, "plain")


def _swapped(name: str) -> Overloaded:
    return Overloaded(
        f"{name} is not this device's small model any more",
        retry_after_s=0.0,
        why="another took its place while the request waited",
        effect="the request was not started",
        todo="ask again",
    )


def _for_client(request: GenerateRequest) -> Callable[[StreamEvent], bool]:
    if request.retract:
        return lambda event: True
    return lambda event: not isinstance(event, Provisional | Retract)


def _vocabularies(small: Small | None, description: ModelDescription) -> str:
    ours = "none" if small is None else small.info.vocabulary_digest[:12]
    return f"the draft's is {ours}, the target's {description.vocabulary_digest[:12]}"


def _card(model: ModelDescription) -> ModelCard:
    return ModelCard(
        id=model.name,
        created=model.created,
        role="target",
        context=model.context,
        vocabulary_digest=model.vocabulary_digest,
        numeric_class=model.numeric_class,
    )


def _small_card(small: Small) -> ModelCard:
    return ModelCard(
        id=small.name,
        created=int(small.loaded_at),
        role="draft",
        context=small.info.context,
        vocabulary_digest=small.info.vocabulary_digest,
        numeric_class=small.info.numeric_class,
    )


def _cloud(peer: Peer, now: float) -> CloudStatus:
    state: Literal["connected", "connecting", "unreachable"] = "connecting"
    if peer.failures:
        state = "unreachable"
    elif peer.known:
        state = "connected"
    figures = Figures.of(peer.traffic.estimate(now))
    return CloudStatus(
        address=peer.address,
        state=state,
        rtt_ms=None if peer.rtt_s is None else round(peer.rtt_s * 1e3, 3),
        model=peer.models[0].name if peer.models else None,
        detail=peer.detail,
        jitter_ms=figures.jitter_ms,
        up_bytes_per_s=figures.up_bytes_per_s,
        down_bytes_per_s=figures.down_bytes_per_s,
        loss=figures.loss,
        channel="plain" if peer.sealing is None else "sealed",
        attestation=attested(peer.models),
    )


def _state(ride: Request, state: Literal["queued", "running", "done"]) -> RequestState:
    return RequestState(
        id=ride.job.id,
        model=ride.job.model,
        placement=ride.placement,
        state=state,
        committed=tuple(answer.end for answer in ride.answers),
        began_ms=ride.began * 1e3,
    )
