"""The seam between the engine of a split model and whatever runs its stages."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Protocol

from outrider.engine import Picked, StageInfo, StageSpan
from outrider.protocol.sampling import Sampling


@dataclass(frozen=True, slots=True)
class StageTimes:
    """One stage since the chain was made; seconds and bytes."""

    device: str
    passes: int
    rows: int
    compute_s: float
    """Inside the stage's engine, an emulated device's sleep included."""
    bytes_in: int
    """Activations that reached it, as they went over the wire."""
    bytes_out: int


class Chain(Protocol):
    """Stages in a row: embedding first, head last. Made in-process or of remote workers.

    Calls keep their order through all stages. Several passes may be under way at a
    time, which is the pipeline; passes of one slot are submitted in token order.
    """

    @property
    def infos(self) -> tuple[StageInfo, ...]: ...

    @property
    def leaving(self) -> tuple[str, ...]:
        """Devices that are shutting down and want to be planned without."""
        ...

    def open(self, slot: int, sampling: Sampling | None = None) -> None: ...

    def rewind(self, slot: int, length: int) -> None: ...

    def close(self, slot: int) -> None: ...

    def submit(self, spans: Sequence[StageSpan]) -> Future[list[Picked]]:
        """Spans carry `tokens`, never `hidden`. The future fails with `StageLost` (whose `device`
        names the worker that went away), `EngineFull`, `EngineFailed`."""
        ...

    def times(self) -> tuple[StageTimes, ...]: ...

    def shutdown(self) -> None: ...
