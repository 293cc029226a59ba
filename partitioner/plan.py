"""A question to the planner and its answer, as JSON-able values. Times in seconds.

Units count as in `ModelGraph.units`: 0 is the embedding, the last is the head, so
a stage [a, b) holds decoder layers max(a - 1, 0) to min(b - 1, decoders).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from outrider.partitioner.device import DeviceProfile, LinkProfile
from outrider.partitioner.graph import ModelGraph

Objective = Literal["latency", "throughput", "energy", "cost"]
SCHEMA = 1


@dataclass(frozen=True, slots=True)
class Workload:
    """What is asked of the model."""

    prompt_tokens: int = 512
    new_tokens: int = 128
    sequences: int = 1
    """Answers at a time; each keeps KV for prompt and answer."""
    rows: float = 1.0
    """Rows of a decode pass of one answer: 1 + hint rows."""
    tokens_per_pass: float = 1.0
    """Tokens that such a pass is expected to commit (measured acceptance)."""
    activation_bytes: float = 2.0
    """Of one number of a hidden state on the wire."""
    prefill_chunk: int = 64
    """Rows of a prefill micro-batch."""
    batch: int = 1
    """Answers whose rows share a decode pass; at most `sequences`."""
    alone: Literal["streams", "asks"] = "streams"
    """A device with the whole model goes on by itself and streams its tokens home; or every pass
    waits for home, as one stage of a chain does."""


@dataclass(frozen=True, slots=True)
class Constraints:
    """What a plan must keep to. A constraint that can not be met is an `Unplannable`."""

    max_tpot_s: float | None = None
    max_ttft_s: float | None = None
    max_joules_per_token: float | None = None
    max_watts: tuple[tuple[str, float], ...] = ()
    """(device, watts that it may draw on average)."""
    stay: tuple[int, ...] = ()
    """Units that must not leave `Problem.home` (embedding and head at home is the U-shape)."""
    exclude: tuple[str, ...] = ()
    """Devices that must have no part."""
    max_devices: int | None = None
    include: tuple[str, ...] = ()
    """Devices that must have a part."""
    dtype: str | None = None
    """The one precision of all stages, where the numeric class must not vary among them."""
    dtype_loss: tuple[tuple[str, float], ...] = ()
    """(dtype, quality that a unit loses at it), in any additive measure; absent means 0."""
    max_loss: float | None = None
    """Of the sum over units: mixed precisions within a quality budget."""


@dataclass(frozen=True, slots=True)
class Problem:
    graph: ModelGraph
    devices: tuple[DeviceProfile, ...]
    links: tuple[LinkProfile, ...]
    """Devices without a link between them can not be neighbours in a plan."""
    home: str
    """Where prompts are and tokens are wanted."""
    workload: Workload = field(default_factory=Workload)
    objective: Objective = "latency"
    constraints: Constraints = field(default_factory=Constraints)


@dataclass(frozen=True, slots=True)
class StagePlan:
    """Units [start, stop) on a device."""

    device: str
    start: int
    stop: int
    engine: str
    dtype: str
    decode_s: float
    """One decode pass through this stage."""
    prefill_s: float
    """The whole prompt through this stage, alone."""
    memory_bytes: int


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a placement is expected to do."""

    ttft_s: float
    tpot_s: float
    """Per committed token, hops included, at `Workload.tokens_per_pass`."""
    tokens_per_s: float
    """All sequences together, the pipeline full."""
    joules_per_token: float
    dollars_per_mtoken: float
    hop_s: float
    """Of `tpot_s`, before division by tokens per pass: time on links."""
    kv_s: float = 0.0
    """KV on its way from the prefill's devices to the decode's, within `ttft_s`."""


@dataclass(frozen=True, slots=True)
class Alternative:
    """The best plan that uses other devices than the chosen one."""

    summary: str
    value: float


@dataclass(frozen=True, slots=True)
class Plan:
    """Stages in order, and why these."""

    model: str
    solver: str
    objective: Objective
    value: float
    """What was minimised: s per token (latency), s per token of throughput, J, or $ per Mtoken."""
    stages: tuple[StagePlan, ...]
    estimate: Estimate
    verdict: Literal["one device", "split"]
    runner_up: Alternative | None
    margin: float | None
    """Runner-up's value over this one's, minus 1."""
    binding: str
    """The constraint without which another plan would be better; `none`."""
    dropped: tuple[tuple[str, str], ...] = ()
    """(device, why it has no part)."""
    reasons: tuple[str, ...] = ()
    schema: int = SCHEMA
    gap: float | None = None
    """Proven relative distance from the best; 0 is optimal, None means nothing is proven."""
    prefill: tuple[StagePlan, ...] = ()
    """Where the prompt is computed, where that is not `stages`; KV then moves to `stages`."""
    links: tuple[LinkProfile, ...] = ()
    """That a pass goes over, in order: from home, between stages, and back; each says whether it
    was measured."""
