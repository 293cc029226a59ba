"""One request's life at the device: open, draft ahead, commit, roll back, go on elsewhere, end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from outrider.edge.answer import Answer
from outrider.edge.drafter import Drafter, Lane
from outrider.edge.foretold import Foretold
from outrider.edge.journal import (
    FORMAT,
    Committed,
    Fenced,
    Fork,
    Journal,
    MemoryJournal,
)
from outrider.edge.journal import (
    Opened as OpenedRecord,
)
from outrider.edge.journal import (
    Provisional as ProvisionalRecord,
)
from outrider.edge.link import Link, Peer, Wire
from outrider.edge.placement import Governor, Steering
from outrider.edge.text import TextStream
from outrider.edge.transcript import Transcript
from outrider.errors import (
    AccessDenied,
    CloudUnreachable,
    EngineFailed,
    HandshakeRefused,
    JournalError,
    LinkError,
    NotFound,
    OutriderError,
    Overloaded,
    PeerUntrusted,
    RemoteProtocolError,
    SealBroken,
)
from outrider.partitioner.book import Heard
from outrider.partitioner.placement import Wants
from outrider.partitioner.power.account import Accountant, Bill, Traffic
from outrider.partitioner.signals import Share
from outrider.protocol import events
from outrider.protocol.constraint import Constraint
from outrider.protocol.messages import (
    ChoiceOpen,
    Close,
    Commit,
    EnergyKind,
    Finished,
    Open,
    Opened,
)
from outrider.protocol.sampling import Sampling, SamplingParams
from outrider.protocol.state import Ledger
from outrider.protocol.stops import Cutter
from outrider.protocol.stream import Done, FinishReason, Started, Waiting
from outrider.protocol.vocabulary import Vocabulary
from outrider.testing import failpoints

SLOTS = 8
RETRACT_PATIENCE = 6
"""A client that sees local tokens meanwhile, and can take them back, waits this much longer
for the committed ones."""
FINISH_S = 1.0
"""How long an answer that is whole waits for the cloud's account of it."""
CLOSING_S = 0.5
"""How long a stream that is given up has to carry its Close."""
ELSEWHERE = (LinkError, RemoteProtocolError, SealBroken, EngineFailed, Overloaded)
"""Errors of one cloud after which the answer goes on elsewhere, or later."""
REFUSED = (HandshakeRefused, NotFound, AccessDenied, PeerUntrusted)
"""Errors of one cloud that another one may not have; they end the request when all refuse."""


@dataclass(frozen=True, slots=True)
class Job:
    """A request made definite."""

    id: str
    model: str
    """The target's name; the draft's for placement `edge`."""
    prompt: tuple[int, ...]
    sampling: SamplingParams
    seed: int
    choices: int
    max_tokens: int
    stop: tuple[bytes, ...]
    top_logprobs: int | None
    placement: Literal["edge", "cloud", "draft", "split"]
    """Where it begins; it stays there when `pinned`."""
    fallback: Literal["wait", "local", "error"]
    patience_s: float
    exact_required: bool
    retract: bool
    hint_depth: int | None
    vocabulary: Vocabulary
    draft_model: str
    session: bytes
    pinned: bool = True
    """The placement was asked for."""
    reason: str = ""
    """Why it begins there, where the policy is not asked."""
    exact: bool = False
    """What the target was last known to be; `Started` says so until a cloud has answered."""
    numeric_class: str = ""
    prediction: tuple[int, ...] = ()
    """What the answer probably repeats."""
    constraint: Constraint | None = None
    """What the answer must match."""
    share: Share = "tokens"
    """What of it may leave the device; the link keeps to it too."""


@dataclass(slots=True)
class _Totals:
    bytes_up: int = 0
    bytes_down: int = 0
    hints: int = 0


@dataclass(slots=True, eq=False)
class Request:
    job: Job
    link: Link | None
    drafter: Drafter | None
    """None when there is no draft model of the target's vocabulary."""
    publish: Callable[[events.Event], None]
    clock: Callable[[], float]
    energy: Accountant = field(default_factory=Accountant)
    governor: Governor | None = None
    """None for an answer that is the small model's from the start."""
    journal: Journal = field(default_factory=MemoryJournal)
    transcript: Transcript = field(default_factory=Transcript)
    answers: list[Answer] = field(default_factory=list)
    fence: int = 0
    exact: bool = False
    numeric_class: str = ""
    class_changed_at: list[int] = field(default_factory=list)
    totals: _Totals = field(default_factory=_Totals)
    rtt_s: float | None = None
    began: float = 0.0
    announced: str | None = None
    """The numeric class that `Started` named."""
    steering: Steering | None = None
    spoken_class: str = ""
    """The numeric class of what is committed, as far as a cloud said it."""
    barred: set[str] = field(default_factory=set)
    """Committers that refused to take this answer over."""
    _any_class: bool = False
    """The class that was asked for is not to be had; the next one that answers will do."""
    _moving: bool = False
    """Another committer is to have it: this stream is left at a commit."""
    _kick: asyncio.Event = field(default_factory=asyncio.Event)
    """A lane grew, or a commit came: look whether there is something to send."""

    # --- life ------------------------------------------------------------------------------

    async def run(self) -> None:
        """To the end of all choices; the transcript gets everything, errors too."""
        try:
            self._begin()
            await self._serve()
            self._end("done")
        except OutriderError as error:
            self._end("failed", error)
        except asyncio.CancelledError:
            self._end("cancelled")
            raise
        finally:
            self._close_lanes()
            self.energy.finish(self.job.id, Traffic())

    def _begin(self) -> None:
        self.began = self.clock()
        self._steer_first()
        self.energy.begin(self.job.id, self.placement)
        if not self.answers:
            self.answers = [self._answer(number) for number in range(self.job.choices)]
            self._keep(self._record())
        self.publish(
            events.RequestStarted(
                request=self.job.id,
                placement=self.placement,
                prompt_tokens=len(self.job.prompt),
                choices=self.job.choices,
            )
        )

    def restore(self, committed: Sequence[Sequence[int]], fence: int) -> None:
        """Take up what a journal kept; before `run`."""
        self.began = self.clock()
        self._steer_first()
        self.fence = fence
        self.answers = [self._answer(number) for number in range(self.job.choices)]
        self._keep(self._record())
        self._started(exact=self.job.exact, numeric_class=self.numeric_class)
        for answer, tokens in zip(self.answers, committed, strict=True):
            if tokens:
                self._keep(Committed(fence, answer.number, 0, tuple(tokens)))
                answer.commit(Commit(fence, answer.number, 0, tuple(tokens)))
                answer.acknowledged = answer.end
        self._keep(Fenced(fence, self.numeric_class))

    def _answer(self, number: int) -> Answer:
        job = self.job
        answer = Answer(
            number,
            job.vocabulary,
            Ledger(self.fence),
            Cutter(job.vocabulary, job.stop, job.max_tokens),
            TextStream(job.vocabulary, job.stop),
            now_ms=lambda: (self.clock() - self.began) * 1e3,
            emit=self.transcript.add,
        )
        if self.steering is not None:
            answer.acceptance = self.steering.acceptance
        answer.drafting = job.placement == "edge" or self._drafts()
        if answer.drafting or job.prediction:
            self._give_lane(answer)
        return answer

    def _give_lane(self, answer: Answer) -> None:
        """Let the answer be drafted, where there is a drafter; those that end have none."""
        job = self.job
        if answer.lane is not None or answer.done:
            return
        if self.drafter is None and not job.prediction:
            return
        length = len(job.prompt)
        sampling = Sampling(job.sampling, job.seed, answer.number, length, job.constraint)
        tokens = (*job.prompt, *answer.ledger.tokens)
        if self.drafter is None:
            lane = Lane(sampling, list(tokens), self._kick.set)
        else:
            lane = self.drafter.open(sampling, tokens, self._kick.set, job.id)
        answer.lane = lane
        if job.prediction:
            lane.foretold = Foretold(job.prediction)
            for token in answer.ledger.tokens:
                lane.foretold.follow(token)
        steering, number = self.steering, answer.number
        if steering is not None:
            lane.drawn = lambda count, ms, own: steering.burst(count, ms, own, number)

    async def _serve(self) -> None:
        if self.job.placement == "edge":
            self._started(exact=False, numeric_class="")
            await self._alone(self.job.reason or "the small model was asked for")
            return
        while not self._all_done():
            await self._ride_or_fall_back()

    def _all_done(self) -> bool:
        return all(answer.done for answer in self.answers)

    # --- with a cloud ----------------------------------------------------------------------

    async def _ride_or_fall_back(self) -> None:
        try:
            await self._ride()
        except HandshakeRefused as error:
            if not self._take_other_class(error):
                raise
        except ELSEWHERE as error:
            await self._away(error)

    async def _ride(self) -> None:
        """One stream on the first cloud that takes it, to its end. Raises what broke it."""
        wire, opened, peer = await self._open()
        self._opened(opened, peer)
        sender = asyncio.create_task(self._send_all(wire, opened.ahead))
        try:
            await self._receive_all(wire, sender)
        except ELSEWHERE as error:
            assert self.link is not None
            wire.cancel()
            if self._all_done():
                return
            if not isinstance(error, Overloaded):
                self.link.lost(peer, error)
            raise
        finally:
            await self._leave(wire, sender)

    async def _open(self) -> tuple[Wire, Opened, Peer]:
        """Try the clouds that may serve it, in order. Raises the most telling error."""
        assert self.link is not None
        failed: OutriderError = CloudUnreachable(
            "no cloud can be reached",
            effect="the answer waits, or goes on with the small model",
            todo="check --cloud, and that the cloud runs",
        )
        self._moving = False
        for peer in self._candidates():
            if not peer.takes(self.job.model, self.job.constraint):
                failed = _unmasked(self.job)
                continue
            self.fence += 1
            # Before the cloud may know it: after a crash the next one must be higher.
            self._keep(Fenced(self.fence, self.numeric_class))
            try:
                wire, opened = await self.link.open(
                    peer, self._open_message(self._class_for(peer)), self.job.share
                )
                _check_masks(self.job, wire, opened)
            except ELSEWHERE as error:
                if not isinstance(failed, REFUSED):
                    failed = error
                if not isinstance(error, Overloaded):
                    self.link.lost(peer, error)
                continue
            except REFUSED as error:
                failed = error
                self.barred.add(peer.address)
                continue
            return wire, opened, peer
        raise failed

    def _candidates(self) -> list[Peer]:
        """Committers that may be tried now: the one that placement names first, and a house of
        one's own only where placement may choose it."""
        assert self.link is not None
        wanted = self.steering.peer if self.steering is not None else ""
        found = [
            peer
            for peer in self.link.usable()
            if (not peer.known or peer.serves(self.job.model)) and self._may_have(peer)
        ]
        return sorted(
            found,
            key=lambda p: (p.address in self.barred, p.address != wanted, p.kind != "cloud"),
        )

    def _may_have(self, peer: Peer) -> bool:
        if not peer.may_have(self.job.share):
            return False
        chosen = self.job.pinned and self.job.placement == "split"
        if peer.kind == "cloud":
            return not chosen
        assert self.link is not None
        if all(other.kind == "split" for other in self.link.peers):
            return True
        if (self.job.pinned and not chosen) or peer.address in self.barred:
            return False
        classes = peer.classes(self.job.model, self.job.constraint)
        other = self.spoken_class and self.spoken_class not in classes
        return not (self.job.exact_required and other)

    def _class_for(self, peer: Peer) -> str:
        """The class to ask for. A committer that was chosen although it is of another class is
        asked for none; what comes of it is labelled."""
        chosen = self.steering is not None and self.steering.peer == peer.address
        classes = peer.classes(self.job.model, self.job.constraint)
        other = chosen and bool(classes) and self.numeric_class not in classes
        if self._any_class or (other and not self.job.exact_required):
            return ""
        return self.numeric_class

    def _open_message(self, numeric_class: str) -> Open:
        job = self.job
        return Open(
            session=job.session,
            fence=self.fence,
            prompt=job.prompt,
            choices=tuple(
                ChoiceOpen(answer.number, tuple(answer.ledger.tokens))
                for answer in self.answers
                if not answer.done
            ),
            sampling=job.sampling,
            seed=job.seed,
            max_tokens=job.max_tokens,
            slots=SLOTS,
            model=job.model,
            vocabulary_digest=job.vocabulary.digest,
            numeric_class=numeric_class,
            exact_required=job.exact_required,
            stop=job.stop,
            top_logprobs=job.top_logprobs,
            constraint=job.constraint,
        )

    def _opened(self, opened: Opened, peer: Peer) -> None:
        self._started(exact=opened.exact, numeric_class=opened.numeric_class)
        spoken = self.spoken_class or self.announced
        if spoken not in ("", opened.numeric_class):
            # Not the class any more that the answer began with, or was chosen by.
            self._note_class_change()
        self.exact = opened.exact
        self.numeric_class = self.spoken_class = opened.numeric_class
        self._any_class = False
        self.barred.discard(peer.address)
        self.rtt_s = peer.rtt_s
        device = peer.device(self.job.model)
        self.energy.opened(self.job.id, device, self.clock(), resumed=opened.resumed)
        self._keep(Fenced(self.fence, opened.numeric_class))
        if self.steering is not None:
            self.steering.opened(peer.address, peer.kind)
        for answer in self.answers:
            answer.reconnect(self.fence)
        self._apply_drafting()

    def _started(self, *, exact: bool, numeric_class: str) -> None:
        """Said once, before anything else is."""
        job = self.job
        if self.announced is not None:
            return
        self.announced = numeric_class
        for answer in self.answers:
            self.transcript.add(
                Started(
                    choice=answer.number,
                    request=job.id,
                    model=job.model,
                    placement=self.placement,
                    seed=str(job.seed),
                    exact=exact,
                    numeric_class=numeric_class,
                    prompt_tokens=len(job.prompt),
                ),
            )

    async def _receive_all(self, wire: Wire, sender: asyncio.Task[None]) -> None:
        """Apply what comes until the cloud has told the end of every choice."""
        while wire.conversation.open_choices:
            try:
                async with asyncio.timeout(FINISH_S if self._all_done() else None):
                    message = await wire.receive()
            except TimeoutError:
                return
            if message is None:
                return
            answer = self._of(message)
            if isinstance(message, Commit):
                self._commit(answer, message)
            elif isinstance(message, Finished):
                answer.finish(message)
                self._account_end(message)
                if self.steering is not None:
                    self.steering.finished(message.queue_us / 1e3, message.prefill_us / 1e3)
            if self._moving and not self._all_done():
                return
            if sender.done():
                sender.result()

    def _of(self, message: object) -> Answer:
        number = getattr(message, "choice", -1)
        if not 0 <= number < len(self.answers):
            raise RemoteProtocolError("the cloud names a choice that was not asked for")
        return self.answers[number]

    def _commit(self, answer: Answer, message: Commit) -> None:
        position = answer.end
        fresh = answer.commit(message)
        if not fresh:
            return
        self._keep(Committed(self.fence, answer.number, position, fresh))
        failpoints.hit("edge.after_commit")
        self.energy.committed(
            self.job.id,
            len(fresh),
            self.clock(),
            step_s=message.step_us / 1e6,
            rows=1 + message.hint_rows,
            of_rows=message.rows,
        )
        if self.steering is not None:
            if self.job.prediction and message.hint_rows:
                self.steering.passed(len(fresh))
            else:
                self.steering.heard(Heard.of(message, len(fresh)), message.choice)
            self._steer(self.steering)
        answer.aim(self._cap(), self._floor())
        self._nudge()
        self.publish(
            events.CommitReceived(
                request=self.job.id,
                choice=answer.number,
                position=position,
                tokens=len(fresh),
                hint_rows=message.hint_rows,
                from_hints=message.from_hints,
                step_ms=message.step_us / 1e3,
                rows=message.rows,
            )
        )

    def _account_end(self, message: Finished) -> None:
        """What the cloud spent on a choice: its own joules, or the time its prompt took."""
        self.energy.prefilled(self.job.id, message.prefill_us / 1e6)
        if message.energy_kind is not EnergyKind.NONE:
            measured = message.energy_kind is EnergyKind.MEASURED
            kind: Literal["measured", "estimated"] = "measured" if measured else "estimated"
            self.energy.told(self.job.id, message.energy_uj / 1e6, kind)

    # --- placement -------------------------------------------------------------------------

    @property
    def placement(self) -> str:
        """Where it runs now."""
        return self.steering.placement if self.steering is not None else self.job.placement

    def _steer_first(self) -> None:
        """Ask the policy where to begin."""
        if self.governor is None or self.steering is not None:
            return
        job = self.job
        self.steering = self.governor.steer(job.id, job.model, self._wants(), job.placement)
        self.steering.begin()

    def _wants(self) -> Wants:
        job = self.job
        committed = min((answer.end for answer in self.answers), default=0)
        return Wants(
            pinned=job.placement if job.pinned else None,
            exact_required=job.exact_required,
            numeric_class=self.spoken_class,
            drafter="" if self.drafter is not None else "there is no draft model that fits",
            share=job.share,
            barred=tuple(self.barred),
            prompt=len(job.prompt),
            committed=committed,
            remaining=max(1, job.max_tokens - committed),
        )

    def _steer(self, steering: Steering) -> None:
        """At a commit: look whether something has to change, and change it."""
        if not steering.due() or self._all_done():
            return
        before = steering.peer
        if steering.look(self._wants()):
            self._moving = steering.peer != before and self._can_move(steering, before)
            self.energy.placed(self.job.id, steering.placement)
        self._apply_drafting()

    def _can_move(self, steering: Steering, before: str) -> bool:
        """Whether the committer that was chosen may have it; else everything stays."""
        assert self.link is not None
        known = {peer.address: peer for peer in self.link.peers}
        chosen = known.get(steering.peer)
        if chosen is not None and self._may_have(chosen):
            return True
        self.barred.add(steering.peer)
        here = known.get(before)
        steering.opened(before, here.kind if here is not None else "cloud")
        return False

    def _drafts(self) -> bool:
        return self.steering is not None and self.steering.drafts

    def _cap(self) -> int | None:
        """The farthest that lanes may draft: the user's bound, and the policy's."""
        bounds = [self.job.hint_depth]
        if self.steering is not None and self._drafts():
            bounds.append(self.steering.depth)
        known = [bound for bound in bounds if bound is not None]
        return min(known, default=None)

    def _floor(self) -> int:
        return self.steering.floor if self.steering is not None else 0

    def _apply_drafting(self) -> None:
        """Lanes work or rest as the placement says; the stream itself does not change."""
        drafts = self._drafts()
        for answer in self.answers:
            answer.drafting = drafts
            if drafts:
                self._give_lane(answer)
            answer.aim(self._cap(), self._floor())
        self._nudge()

    def _nudge(self) -> None:
        self._kick.set()
        if self.drafter is not None:
            self.drafter.wake()

    async def _send_all(self, wire: Wire, ahead: int) -> None:
        """Send drafts as they grow and acknowledgements as they are due, until cancelled."""
        while True:
            self._kick.clear()
            for answer in self.answers:
                while (hint := answer.hint(SLOTS, ahead)) is not None:
                    failpoints.hit("edge.before_hint")
                    await wire.send(hint)
                    self.energy.sent(self.job.id, self.clock())
                    if hint.tokens:
                        self._say_hint(answer, hint.base, len(hint.tokens))
            await self._pause(await wire.beat())

    def _say_hint(self, answer: Answer, base: int, count: int) -> None:
        self.publish(
            events.HintSent(
                request=self.job.id,
                choice=answer.number,
                base=base,
                tokens=count,
                draft_ms=answer.lane.draft_ms if answer.lane is not None else 0.0,
            )
        )

    async def _leave(self, wire: Wire, sender: asyncio.Task[None]) -> None:
        """End a stream; a cloud that still listens is told, so that it frees everything."""
        sender.cancel()
        await asyncio.gather(sender, return_exceptions=True)
        self.totals.bytes_up += wire.bytes_up
        self.totals.bytes_down += wire.bytes_down
        try:
            if not wire.call.done():
                async with asyncio.timeout(CLOSING_S):
                    if wire.conversation.open_choices:
                        await wire.send(Close())
                    await wire.call.done_writing()
        except (OutriderError, asyncio.InvalidStateError, TimeoutError):
            pass
        finally:
            asyncio.get_running_loop().call_later(CLOSING_S, wire.cancel)

    # --- without one -----------------------------------------------------------------------

    def _take_other_class(self, error: HandshakeRefused) -> bool:
        """Go on under another numeric class, labelled, unless the request forbids it."""
        if (
            not self.numeric_class
            or self._any_class
            or self.job.exact_required
            or "fence" in error.what
        ):
            return False
        self._any_class = True
        self.publish(events.Trouble(code=error.code, what=error.what))
        return True

    def _note_class_change(self) -> None:
        self.class_changed_at.append(min(answer.end for answer in self.answers))

    async def _away(self, error: OutriderError) -> None:
        """The cloud is away: wait for it, show local tokens meanwhile, fork, or give up."""
        job = self.job
        local = self._can_go_local()
        self._started(exact=job.exact, numeric_class=job.numeric_class)
        self.publish(
            events.Fallback(
                request=job.id,
                cause=error.what,
                to="provisional" if local and job.retract else "wait",
            )
        )
        patience_s = job.patience_s
        if local and job.retract:
            patience_s *= RETRACT_PATIENCE
            self._go_provisional()
        deadline = self.clock() + patience_s
        while not await self._cloud_is_back(deadline, shows=local and job.retract):
            if self.clock() < deadline:
                continue
            if job.fallback == "error":
                raise error
            if local and self._time_to_fork():
                self.publish(events.Fallback(request=job.id, cause=error.what, to="fork"))
                await self._alone(error.what)
                return
            deadline = self.clock() + patience_s
        self.publish(events.Fallback(request=job.id, cause="the cloud is back", to="cloud"))

    def _can_go_local(self) -> bool:
        """Whether the small model may and can speak; it then has a lane for every answer."""
        drafter = self.drafter
        if self.job.fallback != "local" or self.job.exact_required:
            return False
        if drafter is None or not drafter.speaks:
            return False
        for answer in self.answers:
            self._give_lane(answer)
        return True

    def _go_provisional(self) -> None:
        """Let the lanes run on past the committed end; what they say is shown."""
        for answer in self.answers:
            if not answer.done and answer.lane is not None:
                answer.lane.speak()
                answer.lane.depth = self.job.max_tokens - answer.end
                self._keep(ProvisionalRecord(answer.number, answer.end))
        self._nudge()

    def _say_local(self, answer: Answer, position: int, count: int, how: str) -> None:
        if count:
            said = events.LocalTokens(
                request=self.job.id,
                choice=answer.number,
                position=position,
                tokens=count,
                provisional=how == "shown",
            )
            self.publish(said)

    def _time_to_fork(self) -> bool:
        """A client that can retract waits until its provisional answer has an end."""
        if not self.job.retract:
            return True
        return all(answer.done or answer.shown_reason is not None for answer in self.answers)

    async def _cloud_is_back(self, deadline: float, *, shows: bool) -> bool:
        """Wait for a cloud or the deadline, and show what the small model says meanwhile."""
        assert self.link is not None
        self.transcript.add(Waiting(reason="reconnecting"))
        found = asyncio.create_task(self.link.find_one(self.job.model, self._may_have))
        found.add_done_callback(lambda _: self._kick.set())
        try:
            while self.clock() < deadline and not found.done():
                for answer in self.answers if shows else ():
                    self._say_local(answer, answer.end + len(answer.shown), answer.show(), "shown")
                await self._pause(min(0.05, max(0.0, deadline - self.clock())))
            return found.done()
        finally:
            found.cancel()

    async def _pause(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._kick.wait()
                self._kick.clear()
        except TimeoutError:
            pass

    async def _alone(self, why: str) -> None:
        """The small model answers from here on; every token is final and named as its own."""
        self.energy.placed(self.job.id, "edge")
        for answer in self.answers:
            if not answer.done:
                if self.job.placement != "edge" or answer.end:
                    answer.fork(self.job.draft_model, why)
                else:
                    answer.forked_at = 0
                self._keep(Fork(answer.number, answer.end, self.job.draft_model))
                assert answer.lane is not None
                answer.lane.speak()
                answer.lane.depth = self.job.max_tokens - answer.end
                answer.lane.silent = False
        self._nudge()
        while True:
            self._kick.clear()
            for answer in self.answers:
                self._say_local(answer, answer.end, answer.take_local(), "final")
            if self._all_done():
                return
            self._check_drafter()
            await self._kick.wait()

    def _check_drafter(self) -> None:
        """A small model that has nothing more to say ends the answer with an error."""
        assert self.drafter is not None
        context = self.drafter.engine.info.context
        for answer in self.answers:
            lane = answer.lane
            if answer.done or lane is None or lane.chain:
                continue
            if lane.silent or len(lane.tokens) >= context:
                raise EngineFailed(
                    "the draft model can not go on",
                    effect="the answer ends here",
                    todo="ask again when the cloud is back",
                )

    # --- records and the end ---------------------------------------------------------------

    def _record(self) -> OpenedRecord:
        job = self.job
        return OpenedRecord(
            FORMAT,
            job.id,
            job.session,
            job.model,
            self.numeric_class,
            job.prompt,
            job.sampling,
            job.seed.to_bytes(16, "little"),
            job.choices,
            job.max_tokens,
            job.stop,
            job.exact_required,
            job.top_logprobs,
            job.constraint,
        )

    def _keep(self, record: OpenedRecord | Committed | Fenced | ProvisionalRecord | Fork) -> None:
        """A journal that fails is given up, loudly; the answer goes on."""
        try:
            self.journal.write(record)
        except JournalError as error:
            self.publish(events.Trouble(code=error.code, what=error.what))
            self._drop_journal()
            self.journal = MemoryJournal()

    def _drop_journal(self) -> None:
        """What it keeps is not the whole any more: a later start must not take it up."""
        try:
            self.journal.close(outcome="done")
        except JournalError as error:
            self.publish(events.Trouble(code=error.code, what=error.what))

    def _close_lanes(self) -> None:
        for answer in self.answers:
            if answer.lane is not None and self.drafter is not None:
                self.drafter.close(answer.lane)

    def _end(
        self, how: FinishReason | Literal["done", "failed"], error: OutriderError | None = None
    ) -> None:
        bill = self.energy.finish(self.job.id, self._traffic())
        if self.steering is not None:
            self.steering.end()
        for answer in self.answers:
            self.transcript.add(self._done(answer, how, error, bill))
        self.transcript.end(error)
        self.publish(self._said(how, bill))
        self._drop_journal()

    def _traffic(self) -> Traffic:
        return Traffic(
            tokens=sum(answer.end for answer in self.answers),
            bytes_up=self.totals.bytes_up,
            bytes_down=self.totals.bytes_down,
            sent=sum(answer.counts.sent for answer in self.answers),
            accepted=sum(answer.counts.accepted for answer in self.answers),
        )

    def _done(self, answer: Answer, how: str, error: OutriderError | None, bill: Bill) -> Done:
        job = self.job
        return Done(
            choice=answer.number,
            finish_reason=_finish_reason(answer, how),
            completion_tokens=answer.end,
            prompt_tokens=len(job.prompt),
            speculation=answer.speculation(),
            exact=self.exact and answer.forked_at is None and not self.class_changed_at,
            mixed_from=answer.forked_at,
            class_changed_at=tuple(self.class_changed_at),
            queue_ms=answer.queue_ms,
            prefill_ms=answer.prefill_ms,
            total_ms=(self.clock() - self.began) * 1e3,
            ttft_ms=answer.first_ms or 0.0,
            rtt_ms=None if self.rtt_s is None else self.rtt_s * 1e3,
            bytes_up=self.totals.bytes_up,
            bytes_down=self.totals.bytes_down,
            energy_j=bill.joules,
            energy_kind=bill.kind,
            error=None if error is None else error.code,
            placement="edge" if answer.forked_at is not None else self.placement,
            placement_reason=self._placement_reason(),
            decisions=self.steering.changes if self.steering is not None else 0,
        )

    def _placement_reason(self) -> str:
        if self.steering is not None:
            return self.steering.reason
        return self.job.reason or f"{self.job.placement} was asked for"

    def _said(self, how: str, bill: Bill) -> events.RequestDone:
        counts = [answer.counts for answer in self.answers]
        first = [answer.first_ms for answer in self.answers if answer.first_ms is not None]
        return events.RequestDone(
            request=self.job.id,
            finish_reason=how,
            completion_tokens=sum(answer.end for answer in self.answers),
            ttft_ms=min(first, default=0.0),
            total_ms=(self.clock() - self.began) * 1e3,
            passes=sum(c.passes for c in counts),
            hint_rows=sum(c.hint_rows for c in counts),
            accepted=sum(c.accepted for c in counts),
            stale=sum(max(0, c.sent - c.hint_rows) for c in counts),
            sent=sum(c.sent for c in counts),
            mixed=any(answer.forked_at is not None for answer in self.answers),
            exact=self.exact,
            bytes_up=self.totals.bytes_up,
            bytes_down=self.totals.bytes_down,
            device_j=None if bill.joules is None else bill.parts.device_j,
            radio_j=None if bill.joules is None else bill.parts.radio_j,
            cloud_j=None if bill.joules is None else bill.parts.cloud_j,
            wasted_j=None if bill.joules is None else bill.wasted_j,
            energy_j=bill.joules,
            energy_kind=bill.kind,
            queue_ms=max((answer.queue_ms for answer in self.answers), default=0.0),
            prefill_ms=max((answer.prefill_ms for answer in self.answers), default=0.0),
        )


def _check_masks(job: Job, wire: Wire, opened: Opened) -> None:
    """A cloud that passed the constraint over says nothing of masks: its tokens are not ours."""
    if job.constraint is not None and not opened.masks:
        wire.cancel()
        raise _unmasked(job)


def _unmasked(job: Job) -> HandshakeRefused:
    kind = job.constraint.kind if job.constraint is not None else ""
    return HandshakeRefused(
        "masks",
        ours="none",
        theirs=f"a constraint of kind {kind}",
        todo='update the cloud, or pip install "outrider[cloud]" there',
    )


def _finish_reason(answer: Answer, how: str) -> FinishReason:
    if answer.reason is not None:
        return "length" if answer.reason.name == "LENGTH" else "stop"
    return "cancelled" if how == "cancelled" else "error"
