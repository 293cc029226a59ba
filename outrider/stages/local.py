"""A chain of stages in one process: the plain twin of the chain over workers.

Each stage has a thread of its own, so that they overlap as far as cores and the
interpreter's lock allow. Hidden states are coded from stage to stage as on a wire, so a
lossy code changes the results here as it does there.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future

from outrider.engine import EngineSpec, LayerRange, Picked, Stage, StageInfo, StageSpan
from outrider.errors import EngineFailed, LocalProtocolError
from outrider.protocol.activations import ActivationCodec
from outrider.protocol.sampling import Sampling
from outrider.protocol.stages import (
    CloseSlot,
    Failed,
    OpenSlot,
    Pass,
    Passed,
    RewindSlot,
    StageOp,
)
from outrider.stages.chain import StageTimes
from outrider.stages.emulate import Processor
from outrider.stages.ledger import Ledger, check_spans
from outrider.stages.post import Given, Post

Build = Callable[[], Stage]


class LocalChain:
    """`builds` make the stages in order, each in its own thread.

    `processors`: one for each stage; stages of one device share theirs. Raises what
    building raised, and then nothing is left running.
    """

    def __init__(
        self,
        builds: Sequence[Build],
        *,
        codec: ActivationCodec = "fp32",
        processors: Sequence[Processor] | None = None,
        names: Sequence[str] | None = None,
    ) -> None:
        names = names or [f"stage {number}" for number in range(len(builds))]
        processors = processors or [Processor() for _ in builds]
        self._posts = [
            Post(build, processor, name)
            for build, processor, name in zip(builds, processors, names, strict=True)
        ]
        try:
            self._infos = tuple([post.ready() for post in self._posts])
        except BaseException:
            for post in self._posts:
                post.shutdown()
            raise
        self._orders = [post.orders(codec) for post in self._posts]
        self._ledger = Ledger(names)
        self._lock = threading.Lock()
        self._ended = False

    @classmethod
    def load(
        cls, spec: EngineSpec, layers: Sequence[LayerRange], *, codec: ActivationCodec = "fp32"
    ) -> LocalChain:
        """Stages of one model on this machine. Raises what `build_stage` raises."""
        from outrider.engines.stages import build_stage

        def build(part: LayerRange) -> Build:
            return lambda: build_stage(spec, part)

        return cls([build(part) for part in layers], codec=codec)

    @property
    def infos(self) -> tuple[StageInfo, ...]:
        return self._infos

    @property
    def leaving(self) -> tuple[str, ...]:
        return ()

    def open(self, slot: int, sampling: Sampling | None = None) -> None:
        self._put(OpenSlot(slot, sampling))

    def rewind(self, slot: int, length: int) -> None:
        self._put(RewindSlot(slot, length))

    def close(self, slot: int) -> None:
        self._put(CloseSlot(slot))

    def submit(self, spans: Sequence[StageSpan]) -> Future[list[Picked]]:
        check_spans(spans)
        with self._lock:
            number, future = self._ledger.begin(sum(span.rows for span in spans), len(spans))
            self._put(Pass(number, tuple(spans)))
        return future

    def times(self) -> tuple[StageTimes, ...]:
        return self._ledger.times()

    def shutdown(self) -> None:
        """Passes under way fail; returns when every stage is freed."""
        self._ended = True
        self._ledger.fail(_ended())
        for orders, post in zip(self._orders, self._posts, strict=True):
            orders.ended = True
            post.processor.stop()
        for post in self._posts:
            post.shutdown()

    def _put(self, op: StageOp) -> None:
        if self._ended:
            raise LocalProtocolError("the chain was shut down")
        self._give(0, op)

    def _give(self, index: int, op: StageOp) -> None:
        """To a stage, from the caller's thread or from that of the stage before."""
        self._posts[index].put(self._orders[index], op, lambda given: self._take(index, given))

    def _take(self, index: int, given: Given) -> None:
        match given:
            case Passed():
                self._ledger.passed(given)
            case Failed():
                self._ledger.failed(given.number, given.error)
            case _:
                if index + 1 < len(self._posts):
                    self._give(index + 1, given)


def _ended() -> EngineFailed:
    return EngineFailed("the chain was shut down", effect="passes under way were dropped")
