"""What the daemon says about itself: shared by the daemon, the SDK and the command line.

msgspec alone, so that the SDK needs nothing of the edge's.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from outrider.protocol.energy import PowerStatus

Placement = Literal["auto", "edge", "cloud", "draft", "split"]
Fallback = Literal["wait", "local", "error"]


class ModelCard(msgspec.Struct, frozen=True):
    """A model that can be asked for by name."""

    id: str
    created: int
    """Unix seconds."""
    role: Literal["target", "draft"]
    context: int
    """Tokens, prompt and answer together."""
    vocabulary_digest: str
    """SHA-256 over ids and their bytes: equal digests can draft for each other."""
    numeric_class: str


class CloudStatus(msgspec.Struct, frozen=True):
    """A link: one cloud that the daemon may use."""

    address: str
    state: Literal["connected", "connecting", "unreachable"]
    rtt_ms: float | None
    model: str | None
    detail: str = ""
    jitter_ms: float | None = None
    """This and the next by live traffic; None where it does not tell."""
    up_bytes_per_s: float | None = None
    down_bytes_per_s: float | None = None
    loss: float | None = None
    """Of segments."""
    channel: Literal["plain", "sealed"] = "plain"
    """Whether sessions are sealed inside TLS."""
    attestation: str = "none"
    """What is proven of the machine that it runs on: nothing (none), or what it says of it could
    not be checked (unverified)."""


class ScoreStatus(msgspec.Struct, frozen=True):
    """One placement as it is scored now; None where it can not be reckoned."""

    placement: str
    peer: str
    ms: float | None
    """Expected milliseconds a token."""
    joules: float | None
    """Of the device, a token."""
    total: float | None
    """What is compared: ms with joules and dollars priced in."""
    error: float | None
    why: str
    """Why it can not be; empty when it can."""


class PlacementStatus(msgspec.Struct, frozen=True):
    """The last verdict of a model's answers."""

    model: str
    placement: str
    peer: str
    reason: str
    binding: str
    runner_up: str
    margin: float | None
    depth: int
    """Hint tokens to draft ahead, at most."""
    trigger: str
    """What the committer is expected to do best: free, wait; empty without hints."""
    energy_kind: str
    energy_source: str
    scores: tuple[ScoreStatus, ...]


class LoadedModel(msgspec.Struct, frozen=True):
    """One model of this daemon, in memory or put away until it is asked for."""

    model: str
    role: Literal["draft", "target"]
    state: Literal["loaded", "away", "retiring"]
    """`away`: put away for being idle; `retiring`: answers that began with it go on with it."""
    engine: str
    device: str
    dtype: str
    numeric_class: str
    path: str
    """As it was named to the loader."""
    idle_unload_s: float = -1.0
    """Seconds without a request until it is put away; below 0 never."""


class Status(msgspec.Struct, frozen=True):
    """What `outrider status --json` prints; `schema` rises when a field changes meaning."""

    schema: int
    version: str
    pid: int
    listen: str
    uptime_s: float
    placement: Placement
    draft: ModelCard | None
    clouds: tuple[CloudStatus, ...]
    requests_running: int
    requests_queued: int
    requests_total: int
    tokens_total: int
    hint_yield: float | None
    acceptance_rate: float | None
    loop_lag_p99_ms: float
    events_address: str | None
    placements: tuple[PlacementStatus, ...] = ()
    """Per model, once an answer was placed by `auto`."""
    decisions: dict[str, int] = {}
    """How many, by what was switched."""
    power: PowerStatus | None = None
    draft_later: str = ""
    """The draft model that is loaded at the first request; empty once it is, or for none."""
    loaded: tuple[LoadedModel, ...] = ()
    """Models of this daemon."""


class RequestState(msgspec.Struct, frozen=True):
    """One row of `outrider ps`, and `/outrider/v1/requests/{id}`."""

    id: str
    model: str
    placement: str
    state: Literal["queued", "running", "done"]
    committed: tuple[int, ...]
    """Committed tokens per choice."""
    began_ms: float = 0.0
    """On the clock of the daemon's events."""
