"""The words between a coordinator and its workers, and from worker to worker. SPEC.md 10.

A *coordinator* drives a split model; a *worker* holds stages of it. What changes slots
(open, rewind, close, pass) goes through all stages in one order, from each to the next, so
that no stage sees it in another. No I/O here.
"""

from __future__ import annotations

from dataclasses import dataclass

from outrider.engine import LayerRange, Numerics, Picked, StageSpan
from outrider.errors import OutriderError
from outrider.protocol.activations import ActivationCodec
from outrider.protocol.messages import VERSION
from outrider.protocol.sampling import Sampling

PIPELINE_BYTES = 16
TICKET_BYTES = 32

# --- what a worker is --------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class HostedModel:
    """A model whose files a worker has."""

    name: str
    digest: str
    """Of its weights and config."""
    layers: int
    """Decoder layers of the whole model; 0 where its header does not say."""


@dataclass(frozen=True, slots=True)
class LoadedStage:
    """Layers in a worker's memory."""

    digest: str
    layers: LayerRange
    memory_bytes: int
    busy: bool
    """Some coordinator holds it; otherwise it waits for one, or for its memory to be wanted."""


@dataclass(frozen=True, slots=True)
class StageHost:
    """What a worker says of itself."""

    name: str
    kind: str
    """phone, laptop, jetson, desktop, server or cloud."""
    memory_bytes: int
    """What stages may claim; 0 where nothing bounds them."""
    claimed_bytes: int
    """What those that are held claim now; idle stages give way."""
    speed: float
    """Below 1: the worker emulates a device that is so much slower than its processor."""
    engines: tuple[str, ...]
    models: tuple[HostedModel, ...]
    loaded: tuple[LoadedStage, ...] = ()
    first_layer: int = 0
    """With `stop_layer`: the decoder layers that it takes."""
    stop_layer: int = 0
    """0: to the last one."""
    draining: bool = False
    accepts_bytes: int = 0
    """Of weights that may be pushed to it, in all; 0: none."""
    version: int = VERSION


# --- loading -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class StageLoad:
    """Coordinator: make layers of a model a stage of a pipeline."""

    pipeline: bytes
    """16 random bytes, the same for all stages of a chain."""
    index: int
    """Which stage of the chain; a worker may hold several."""
    ticket: bytes
    """32 random bytes that whoever sends to this stage must show."""
    layers: LayerRange
    model: str = ""
    """Its name at the worker; empty goes by the digest, or takes the only one."""
    weights_digest: str = ""
    """Empty: not pinned. Otherwise a difference refuses it."""
    engine: str = "auto"
    """`auto` for this and the next two is the worker's own choice."""
    device: str = "auto"
    dtype: str = "auto"
    numerics: Numerics = "exact"
    max_slots: int = 16
    max_rows: int = 512
    context: int | None = None
    options: tuple[tuple[str, str], ...] = ()
    """Of the engine, by name."""
    version: int = VERSION


# --- what goes through the stages --------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class OpenSlot:
    slot: int
    sampling: Sampling | None = None


@dataclass(frozen=True, slots=True)
class RewindSlot:
    slot: int
    length: int


@dataclass(frozen=True, slots=True)
class CloseSlot:
    slot: int


@dataclass(frozen=True, slots=True)
class Hop:
    """One stage's part in a pass."""

    compute_us: int
    """In the stage, an emulated device's wait included."""
    bytes_in: int
    """Activations that came; 0 for the first stage."""
    bytes_out: int
    """Activations that went on; 0 for the last one."""


@dataclass(frozen=True, slots=True)
class Pass:
    """Rows on their way through the stages; spans carry tokens, activations come apart."""

    number: int
    """Rises by one with each pass of a chain."""
    spans: tuple[StageSpan, ...]
    activations: bytes = b""
    """Hidden states of all spans' rows in order (`protocol.activations`); none to the first."""
    trail: tuple[Hop, ...] = ()
    """Of the stages that it went through."""

    @property
    def rows(self) -> int:
        return sum(span.rows for span in self.spans)


StageOp = OpenSlot | RewindSlot | CloseSlot | Pass

# --- a coordinator's stream to one stage -------------------------------------------------------


@dataclass(frozen=True, slots=True)
class NextStage:
    """Where a stage sends what it computed."""

    address: str
    """HOST:PORT as the sending worker can reach it; empty: through the coordinator."""
    ticket: bytes
    """Of the next stage."""
    authority: bytes = b""
    """PEM of the authority that signed the next worker's certificate; empty: no TLS."""


@dataclass(frozen=True, slots=True)
class Attach:
    """Coordinator: the first message. The stage is its own until the stream ends."""

    pipeline: bytes
    index: int
    codec: ActivationCodec = "fp32"
    next: NextStage | None = None
    """None for the last stage, which gives picks to the coordinator."""
    version: int = VERSION


@dataclass(frozen=True, slots=True)
class Detach:
    """Coordinator: nothing more is wanted; all slots of the stage are closed."""


@dataclass(frozen=True, slots=True)
class Beat:
    """In silence, both ways. `echo_us` gives back the peer's last `sent_us`, 0 asks."""

    sent_us: int
    echo_us: int = 0
    leaving: bool = False
    """Worker: it is shutting down and wants to be planned without."""


StageUp = Attach | Detach | Beat


@dataclass(frozen=True, slots=True)
class Attached:
    """Worker: ready. `direct`: it sends to the next stage itself; else `why` says why not."""

    direct: bool
    why: str = ""


@dataclass(frozen=True, slots=True)
class Passed:
    """The last stage: what a pass gave, one for each span."""

    number: int
    picked: tuple[Picked, ...]
    trail: tuple[Hop, ...] = ()


@dataclass(frozen=True, slots=True)
class Failed:
    """A pass ended here; the stages after this one never saw it."""

    number: int
    error: OutriderError


@dataclass(frozen=True, slots=True)
class Forward:
    """A worker that can not reach the next stage: an encoded `StageOp` to be passed on."""

    op: bytes


@dataclass(frozen=True, slots=True)
class Broken:
    """The way to the next stage ended."""

    error: OutriderError


StageDown = Attached | Passed | Failed | Forward | Broken | Beat
