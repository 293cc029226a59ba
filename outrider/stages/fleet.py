"""The workers that may hold stages of one model: who answers, what fits, and the chain of them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

from outrider.engine import EngineSpec
from outrider.errors import EngineFull, HandshakeRefused, OutriderError, PlanError
from outrider.models import graph, source
from outrider.partitioner.graph import ModelGraph
from outrider.protocol.activations import ActivationCodec
from outrider.protocol.stages import StageHost
from outrider.stages import mdns
from outrider.stages.chain import Chain
from outrider.stages.channel import Credentials
from outrider.stages.planner import Demand, Member, choose, slowdowns
from outrider.stages.remote import RemoteChain
from outrider.stages.replan import Chosen, Layout
from outrider.stages.worker_at import WorkerAt, look

SIZES = {"fp32": 4.0, "bf16": 2.0, "fp16": 2.0, "int8": 1.05, "int4": 0.65}
"""Bytes of a number of a hidden state on the wire, outliers and scales included."""

ITEMS = (2.0, 4.0, 5.0, 6.0)
"""Bytes of a number that a worker may need; one that was fuller than planned is planned with
more, up to float32 with half of it kept in a second form."""
MDNS = "mdns"
"""In the place of a worker's address: those that announce themselves join too."""
FIND_S = 1.0
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
    find: Callable[[], Sequence[str]] | None = None
    """Addresses of workers that announce themselves; None where nobody asked for them."""
    _full: int = 0
    """How often a worker was fuller than planned."""
    _refused: dict[str, str] = field(default_factory=dict)
    """Why those that can not be used can not, at the last look."""
    _chain: tuple[Layout, RemoteChain] | None = None
    """The last one: what it measured is planned with."""
    _slow: dict[str, float] = field(default_factory=dict)

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
        named = [address for address in addresses if not is_mdns(address)]
        workers = tuple(WorkerAt(address) for address in named)
        found = graph.read(spec.model)
        fleet = cls(spec, workers, credentials, codec, found, files.digest, clock)
        fleet.find = announced if len(named) < len(addresses) else None
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
        """All are asked at once, so that one that is away costs no more than a time-out."""
        self._learn()
        self._search()
        asked = [worker for worker in self.workers if worker.called != without]
        with ThreadPoolExecutor(max(1, len(asked)), thread_name_prefix="look") as pool:
            found = list(pool.map(self._look, asked))
        members = [member for member in found if member is not None]
        if not members:
            raise self._nobody()
        return choose(self.demand, members)

    def _search(self) -> None:
        """Who announced itself since the last look joins."""
        if self.find is not None:
            known = {worker.address for worker in self.workers}
            fresh = sorted(set(self.find()) - known)
            self.workers += tuple(WorkerAt(address) for address in fresh)

    def _look(self, worker: WorkerAt) -> Member | None:
        began = self.clock()
        try:
            host = look(worker, self.credentials)
        except OutriderError as error:
            self._refused[worker.called] = error.what
            return None
        why = self._useless(host)
        if why:
            self._refused[worker.called] = why
            return None
        self._refused.pop(worker.called, None)
        rtt_s = (self.clock() - began) / TRIPS
        memory = host.memory_bytes - host.claimed_bytes if host.memory_bytes else None
        slow = self._slow.get(worker.called, 1.0 / host.speed)
        return Member(worker.called, memory, rtt_s, slow)

    def _useless(self, host: StageHost) -> str:
        """Why a worker that answers can hold nothing of this model; empty when it can."""
        if host.draining:
            return "it is shutting down"
        if all(model.digest != self.digest for model in host.models):
            return f"it has another model ({', '.join(m.name for m in host.models) or 'none'})"
        return ""

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
            todo="start them with `outrider worker --model` of the same files; check --workers",
        )

    def chain(self, layout: Layout) -> Chain:
        called = {worker.called: worker for worker in self.workers}
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

    def shutdown(self) -> None:
        """Workers are not ours to end."""


def is_mdns(address: str) -> bool:
    """`mdns`, with or without a port behind it."""
    return address.partition(":")[0] == MDNS


def announced() -> tuple[str, ...]:
    """Addresses of workers on the local network, in a second. Raises EngineMissing."""
    return tuple(found.address for found in asyncio.run(mdns.find(FIND_S)))
