"""The workers that may hold stages of one model: who answers, what fits, and the chain of them."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

from outrider.engine import EngineSpec
from outrider.errors import EngineFull, OutriderError, PlanError
from outrider.models import graph, source
from outrider.partitioner.cost import item_bytes
from outrider.partitioner.graph import ModelGraph
from outrider.protocol.activations import ActivationCodec
from outrider.protocol.stages import StageHost
from outrider.stages.chain import Chain
from outrider.stages.channel import Credentials
from outrider.stages.remote import RemoteChain, WorkerAt, look
from outrider.stages.replan import Layout, Member, by_speed

ITEMS = (2, 4)
"""Bytes of a number that a worker may compute in; a worker that is full is planned with more."""


@dataclass(slots=True)
class WorkerFleet:
    """`spec.model` lies here too, for its headers: workers must have the same weights."""

    spec: EngineSpec
    workers: tuple[WorkerAt, ...]
    credentials: Credentials
    codec: ActivationCodec
    graph: ModelGraph
    digest: str
    _item: int = ITEMS[0]
    _refused: dict[str, OutriderError] = field(default_factory=dict)
    """Why those that did not answer did not, at the last look."""

    @classmethod
    def make(
        cls,
        spec: EngineSpec,
        addresses: Sequence[str],
        credentials: Credentials,
        codec: ActivationCodec,
    ) -> WorkerFleet:
        """Raises what the model's files deserve."""
        files = source.resolve(spec.model)
        workers = tuple(WorkerAt(address) for address in addresses)
        found = graph.read(spec.model)
        return cls(spec, workers, credentials, codec, found, files.digest)

    @property
    def layers(self) -> int:
        return self.graph.decoders

    def members(self, without: str = "") -> tuple[Member, ...]:
        """All are asked at once, so that one that is away costs no more than a time-out."""
        asked = [worker for worker in self.workers if worker.called != without]
        with ThreadPoolExecutor(len(self.workers), thread_name_prefix="look") as pool:
            found = list(pool.map(self._look, asked))
        return tuple(member for member in found if member is not None)

    def _look(self, worker: WorkerAt) -> Member | None:
        try:
            host = look(worker, self.credentials)
        except OutriderError as error:
            self._refused[worker.called] = error
            return None
        self._refused.pop(worker.called, None)
        if host.draining:
            return None
        return Member(worker.called, self._fits(host), host.speed)

    def _fits(self, host: StageHost) -> int:
        """Decoder layers that its memory holds; embedding and head are counted as one more."""
        if not host.memory_bytes:
            return self.layers
        free = host.memory_bytes - host.claimed_bytes
        return max(0, min(self.layers, int((free - self._ends()) // self._layer())))

    def _layer(self) -> float:
        """Bytes of the largest layer with the KV of all slots."""
        scale = self._item / item_bytes(self.graph.dtype)
        tokens = (self.spec.context or self.graph.context) * (self.spec.max_slots + 1)
        return max(
            unit.weight_bytes * scale + unit.kv_bytes * self._item / 2 * tokens
            for unit in self.graph.units
            if unit.kind == "decoder"
        )

    def _ends(self) -> float:
        ends = (unit for unit in self.graph.units if unit.kind != "decoder")
        scale = self._item / item_bytes(self.graph.dtype)
        return max(unit.weight_bytes for unit in ends) * scale

    def plan(self, members: Sequence[Member]) -> Layout:
        if not members:
            raise PlanError(
                "no worker answers",
                why="; ".join(f"{name}: {error.what}" for name, error in self._refused.items()),
                effect="no stage was loaded",
                todo="start them with `outrider worker`, and check --workers",
            )
        return by_speed(members, self.layers)

    def chain(self, layout: Layout) -> Chain:
        called = {worker.called: worker for worker in self.workers}
        try:
            return RemoteChain.connect(
                [called[placed.device] for placed in layout],
                [placed.layers for placed in layout],
                replace(self.spec, engine="auto", options=()),
                codec=self.codec,
                credentials=self.credentials,
                weights_digest=self.digest,
            )
        except EngineFull:
            self._item = ITEMS[-1]
            raise

    def shutdown(self) -> None:
        """Workers are not ours to end."""
