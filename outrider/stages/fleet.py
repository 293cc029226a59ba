"""The workers that may hold stages of one model: who answers, what fits, and the chain of them."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace

from outrider.engine import EngineSpec, LayerRange
from outrider.errors import (
    EngineFull,
    HandshakeRefused,
    LinkError,
    ModelUnsupported,
    OutriderError,
    PlanError,
)
from outrider.models import graph, source
from outrider.partitioner.graph import ModelGraph
from outrider.protocol.activations import ActivationCodec
from outrider.protocol.stages import StageHost
from outrider.stages import mdns
from outrider.stages.chain import Chain
from outrider.stages.channel import Credentials
from outrider.stages.emulate import spell
from outrider.stages.links import Links
from outrider.stages.parcel import Parcel
from outrider.stages.planner import Demand, Member, choose, neighbours, slowdowns, token_s
from outrider.stages.push import push
from outrider.stages.remote import RemoteChain
from outrider.stages.replan import Chosen, Layout
from outrider.stages.roster import Roster
from outrider.stages.worker_at import WorkerAt, look, lost_by

SIZES = {"fp32": 4.0, "bf16": 2.0, "fp16": 2.0, "int8": 1.05, "int4": 0.65}
"""Bytes of a number of a hidden state on the wire, outliers and scales included."""

ITEMS = (2.0, 4.0, 5.0, 6.0)
"""Bytes of a number that a worker may need; one that was fuller than planned is planned with
more, up to float32 with half of it kept in a second form."""
MDNS = "mdns"
"""In the place of a worker's address: those that announce themselves join too."""
JOIN = "join"
"""In the place of a worker's address: those that register themselves join too."""
FIND_S = 1.0
ROUNDS = 3
"""How often a plan is made again because links of the last one had yet to be measured."""
TRIPS = 3
"""Round trips that a first look takes: two connect."""


@dataclass(slots=True)
class WorkerFleet:
    """`spec.model` lies here too, for its headers: workers must have the same weights."""

    spec: EngineSpec
    workers: tuple[WorkerAt, ...]
    credentials: Credentials
    codec: ActivationCodec
    graph: ModelGraph
    digest: str
    clock: Callable[[], float]
    find: Callable[[], Sequence[WorkerAt]] | None = None
    """Workers that announce themselves; None where nobody asked for them. They stay known."""
    roster: Roster | None = None
    """Those that registered themselves, for as long as they do."""
    links: Links = field(default_factory=lambda: Links(time.monotonic))
    _full: int = 0
    """How often a worker was fuller than planned."""
    _refused: dict[str, str] = field(default_factory=dict)
    """Why those that can not be used can not, at the last look."""
    _chain: tuple[Layout, RemoteChain] | None = None
    """The last one: what it measured is planned with."""
    _slow: dict[str, float] = field(default_factory=dict)
    _lacking: set[str] = field(default_factory=set)
    """Those that have to be sent what they are to hold."""
    _barred: dict[str, str] = field(default_factory=dict)
    """Why those that could not be sent it can not."""
    _went: dict[str, frozenset[str]] = field(default_factory=dict)
    """Names of files that each was sent."""
    _parcel: Parcel | None = None
    _lock: threading.RLock = field(default_factory=threading.RLock)
    """Plans are made by the engine, and beside it by whoever looks who came."""

    @classmethod
    def make(
        cls,
        spec: EngineSpec,
        addresses: Sequence[str],
        credentials: Credentials,
        codec: ActivationCodec,
        clock: Callable[[], float],
    ) -> WorkerFleet:
        """Raises what the model's files deserve."""
        files = source.resolve(spec.model)
        named = [address for address in addresses if not (is_mdns(address) or is_join(address))]
        workers = tuple(WorkerAt(address) for address in named)
        found = graph.read(spec.model)
        fleet = cls(spec, workers, credentials, codec, found, files.digest, clock)
        fleet.find = announced if any(map(is_mdns, addresses)) else None
        fleet.links = Links(clock)
        with suppress(ModelUnsupported):
            fleet._parcel = Parcel.of(files)
        return fleet

    @property
    def layers(self) -> int:
        return self.graph.decoders

    @property
    def demand(self) -> Demand:
        context = self.spec.context or self.graph.context
        item = ITEMS[min(self._full, len(ITEMS) - 1)]
        return Demand(self.graph, context * (self.spec.max_slots + 1), item, SIZES[self.codec])

    def plan(self, without: str = "") -> Chosen:
        """All are asked at once, so that one that is away costs no more than a time-out. Ways
        between those that would be neighbours are measured, and then it is planned again."""
        with self._lock:
            members = self._members(without)
            return self._chosen(members)

    def beside(self, layout: Layout) -> tuple[Chosen, float]:
        """The best layout now, and by what share a token would take less than as the layers lie
        (0.2: a fifth); beyond 0 it pays. Raises PlanError."""
        with self._lock:
            members = self._members("")
            chosen, ways = self._chosen(members), self.links.known()
            old = token_s(self.demand, members, ways, layout)
            new = token_s(self.demand, members, ways, chosen.layout)
        return chosen, 0.0 if not old or new is None else 1 - new / old

    def _members(self, without: str) -> list[Member]:
        self._learn()
        self._search()
        asked = [worker for worker in self._known() if worker.called != without]
        with ThreadPoolExecutor(max(1, len(asked)), thread_name_prefix="look") as pool:
            found = list(pool.map(self._look, asked))
        members = [member for member in found if member is not None]
        if not members:
            raise self._nobody()
        return members

    def _chosen(self, members: Sequence[Member]) -> Chosen:
        called = {worker.called: worker for worker in self._known()}
        chosen = choose(self.demand, members, self.links.known())
        for _ in range(ROUNDS):
            if not self.links.learn(neighbours(chosen.layout), called, self.credentials):
                break
            chosen = choose(self.demand, members, self.links.known())
        return replace(chosen, remarks=self._remarks(chosen.layout))

    def _remarks(self, layout: Layout) -> tuple[str, ...]:
        lacking = dict.fromkeys(p.device for p in layout if p.device in self._lacking)
        sizes = {device: self._to_send(layout, device) for device in lacking}
        return tuple(
            f"{device} is sent the {spell(size)} that it lacks"
            for device, size in sizes.items()
            if size
        )

    def _to_send(self, layout: Layout, device: str) -> int:
        """Bytes that were not yet sent there."""
        assert self._parcel is not None
        layers, sent = _held(layout, device), self._went.get(device, frozenset())
        return sum(f.size for f in self._parcel.contents(layers) if f.name not in sent)

    def _known(self) -> tuple[WorkerAt, ...]:
        joined = self.roster.workers() if self.roster is not None else ()
        named = {worker.address for worker in self.workers}
        return (*self.workers, *(w for w in joined if w.address not in named))

    def _search(self) -> None:
        """Who announced itself since the last look joins."""
        if self.find is not None:
            known = {worker.address for worker in self.workers}
            fresh = {each.address: each for each in self.find() if each.address not in known}
            self.workers += tuple(fresh[address] for address in sorted(fresh))

    def _look(self, worker: WorkerAt) -> Member | None:
        began, name = self.clock(), worker.called
        try:
            host = look(worker, self.credentials)
        except OutriderError as error:
            self._refused[name] = error.what
            return None
        rtt_s = (self.clock() - began) / TRIPS
        why = self._useless(host) or self._barred.get(name, "")
        if why:
            self._refused[name] = why
            return None
        self._refused.pop(name, None)
        slow = self._slow.get(name, 1.0 / host.speed)
        return Member(name, self._room(name, host), rtt_s, slow)

    def _room(self, name: str, host: StageHost) -> int | None:
        """Bytes that it has for stages; what it holds of the present chain would be free again."""
        limits = []
        if host.memory_bytes:
            limits.append(host.memory_bytes - host.claimed_bytes + self._own(name))
        self._lacking.discard(name)
        if not self._has(host):
            self._lacking.add(name)
            limits.append(host.accepts_bytes)
        return min(limits, default=None)

    def _own(self, name: str) -> int:
        if self._chain is None or not self._chain[1].alive:
            return 0
        layout, chain = self._chain
        held = zip(layout, chain.infos, strict=True)
        return sum(info.memory_bytes for placed, info in held if placed.device == name)

    def _has(self, host: StageHost) -> bool:
        return any(model.digest == self.digest for model in host.models)

    def _useless(self, host: StageHost) -> str:
        """Why a worker that answers can hold nothing of this model; empty when it can."""
        if host.draining:
            return "it is shutting down"
        if self._has(host) or (host.accepts_bytes and self._parcel is not None):
            return ""
        others = ", ".join(model.name for model in host.models) or "none"
        return f"it has another model ({others}), and takes no weights (--accept-weights)"

    def _learn(self) -> None:
        """What the last chain measured."""
        if self._chain is not None:
            layout, chain = self._chain
            self._slow |= slowdowns(self.demand, layout, chain.times())

    def _nobody(self) -> PlanError:
        return PlanError(
            f"no worker can hold layers of {self.graph.name}",
            why="; ".join(f"{name}: {why}" for name, why in self._refused.items())
            or "none was named, and none announced itself",
            effect="no stage was loaded",
            todo="start them with `outrider worker --model` of the same files, or with "
            "--accept-weights; check --workers",
        )

    def chain(self, layout: Layout) -> Chain:
        """Raises as `Fleet.chain`; a worker that could not be sent its layers is left out of the
        plans that follow (EngineFull)."""
        called = {worker.called: worker for worker in self._known()}
        gone = next((p.device for p in layout if p.device not in called), None)
        if gone is not None:
            raise lost_by(gone, LinkError("it left the fleet"))
        self._send(layout, called)
        try:
            chain = RemoteChain.connect(
                [called[placed.device] for placed in layout],
                [placed.layers for placed in layout],
                replace(self.spec, engine="auto", options=()),
                codec=self.codec,
                credentials=self.credentials,
                weights_digest=self.digest,
            )
        except EngineFull:
            self._full += 1
            raise
        except HandshakeRefused as error:
            raise PlanError(
                "a worker holds another model",
                why=error.why.replace("edge has", "one has").replace("cloud has", "the other has"),
                effect="the stages were not joined",
                todo=error.todo,
            ) from error
        self._chain = layout, chain
        return chain

    def _send(self, layout: Layout, called: Mapping[str, WorkerAt]) -> None:
        """What workers lack of the layers that they are to hold, to all at once."""
        names = list(dict.fromkeys(p.device for p in layout if p.device in self._lacking))
        if not names:
            return
        with ThreadPoolExecutor(len(names), thread_name_prefix="push") as pool:
            sent = [pool.submit(self._sent, layout, called[name]) for name in names]
        errors = [error for each in sent if (error := each.exception()) is not None]
        for error in errors:
            raise error

    def _sent(self, layout: Layout, worker: WorkerAt) -> None:
        assert self._parcel is not None
        layers, name = _held(layout, worker.called), worker.called
        try:
            push(self._parcel, layers, worker, self.credentials)
            files = {file.name for file in self._parcel.contents(layers)}
            self._went[name] = self._went.get(name, frozenset()) | files
        except LinkError:
            raise
        except OutriderError as error:
            self._barred[name] = f"it was not sent its layers: {error.what}"
            raise EngineFull(
                f"worker {worker.called} was not sent its layers",
                why=f"{error.what}: {error.why}",
                effect="it is planned without",
                todo=error.todo,
            ) from error

    def shutdown(self) -> None:
        """Workers are not ours to end."""


def _held(layout: Layout, device: str) -> list[LayerRange]:
    return [placed.layers for placed in layout if placed.device == device]


def is_mdns(address: str) -> bool:
    """`mdns`, with or without a port behind it."""
    return address.partition(":")[0] == MDNS


def is_join(address: str) -> bool:
    """`join`, with or without a port behind it."""
    return address.partition(":")[0] == JOIN


def announced() -> tuple[WorkerAt, ...]:
    """Workers on the local network, in a second. Raises EngineMissing."""
    return tuple(WorkerAt(found.address) for found in asyncio.run(mdns.find(FIND_S)))
