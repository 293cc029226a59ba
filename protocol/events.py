"""What the daemon and the cloud tell about themselves: one versioned union.

Published over ZeroMQ by both (`protocol/bus.py`), shown by `outrider status
--watch`, the terminal UI and logs. No prompt text, no generated text, no token
ids, no seeds, no keys: numbers, states, reasons. An event says what its producer
measured; nothing here is decided by readers. `t_ms` is the producer's monotonic
clock, `at` its wall clock in Unix seconds, `source` names the producer.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from outrider.protocol.status import ScoreStatus

SCHEMA = 1
"""Rises when a field changes meaning; readers refuse a newer one and read the one before."""


class _Event(msgspec.Struct, frozen=True, tag_field="type", tag=True, kw_only=True):
    v: int = SCHEMA
    source: str = ""
    at: float = 0.0
    t_ms: float = 0.0


class Up(_Event, frozen=True, tag="up"):
    """A process began to serve."""

    role: Literal["edge", "cloud"]
    version: str
    listen: str
    pid: int


class Down(_Event, frozen=True, tag="down"):
    """A process ends; `draining` first, when it lets sessions finish."""

    role: Literal["edge", "cloud"]
    reason: str


class ModelLoaded(_Event, frozen=True, tag="model_loaded"):
    model: str
    role: Literal["target", "draft"]
    engine: str
    device: str
    dtype: str
    exact: bool
    row_rule: str
    numeric_class: str
    load_ms: float


class ModelUnloaded(_Event, frozen=True, tag="model_unloaded"):
    """A model was put away: nobody asked for a while, or another took its place."""

    model: str
    role: Literal["target", "draft"]
    reason: Literal["idle", "replaced"]


class LinkChanged(_Event, frozen=True, tag="link"):
    """Edge: a cloud became reachable, or stopped to be, or the way to it is another (`detail` is
    then `measured`). Figures are those of live traffic; None where it does not tell."""

    cloud: str
    state: Literal["connected", "connecting", "unreachable", "lost"]
    rtt_ms: float | None = None
    detail: str = ""
    jitter_ms: float | None = None
    up_bytes_per_s: float | None = None
    down_bytes_per_s: float | None = None
    loss: float | None = None
    """Of segments."""


class RequestStarted(_Event, frozen=True, tag="request_started"):
    request: str
    placement: str
    prompt_tokens: int
    choices: int


class SessionOpened(_Event, frozen=True, tag="session_opened"):
    """Cloud: a session lives; `resumed` when its KV was still there."""

    session: str
    fence: int
    prompt_tokens: int
    resumed: bool


class HintSent(_Event, frozen=True, tag="hint_sent"):
    """Edge: a draft went up; `draft_ms` is what it cost the device."""

    request: str
    choice: int
    base: int
    tokens: int
    draft_ms: float


class CommitReceived(_Event, frozen=True, tag="commit_received"):
    """Edge: committed tokens arrived."""

    request: str
    choice: int
    position: int
    tokens: int
    hint_rows: int
    from_hints: int
    step_ms: float
    rows: int


class Stepped(_Event, frozen=True, tag="stepped"):
    """Cloud: one target pass (every n-th, see `every`)."""

    every: int
    sessions: int
    rows: int
    hint_rows: int
    accepted: int
    committed: int
    step_ms: float
    waiting: int


class Decision(_Event, frozen=True, tag="decision"):
    """Something was switched: why, and what it was expected to bring and then brought.

    Said when it is decided (`phase` made), and again with the same `number` once its
    effect was measured (`measured`, with `observed_gain`). Gains are shares of the cost
    per token, energy priced in. `drafting` with `probe` is a short try of the other way.
    """

    request: str
    what: Literal["placement", "hint_depth", "trigger", "drafting"]
    old: str
    new: str
    reason: str
    predicted_gain: float | None = None
    observed_gain: float | None = None
    binding: str = ""
    runner_up: str = ""
    phase: Literal["made", "measured"] = "made"
    number: int = 0
    """Of its producer's decisions."""
    position: int = 0
    """Committed tokens of the answer, its shortest choice."""
    cause: str = ""
    """The measurement that moved: `round trip 21 -> 83 ms`."""
    margin: float | None = None
    """The runner-up's cost over the chosen one's, minus 1."""
    probe: bool = False
    ms_before: float | None = None
    """Measured milliseconds a token."""
    ms_after: float | None = None
    scores: tuple[ScoreStatus, ...] = ()
    """All ways that were weighed then, best first."""


class Fallback(_Event, frozen=True, tag="fallback"):
    """Edge: the cloud is away in the middle of an answer."""

    request: str
    cause: str
    to: Literal["wait", "provisional", "fork", "error", "cloud"]


class RequestDone(_Event, frozen=True, tag="request_done"):
    request: str
    finish_reason: str
    completion_tokens: int
    ttft_ms: float
    total_ms: float
    passes: int
    hint_rows: int
    accepted: int
    stale: int
    sent: int
    mixed: bool
    exact: bool
    bytes_up: int
    bytes_down: int
    energy_j: float | None = None
    energy_kind: Literal["measured", "estimated", "none"] = "none"
    device_j: float | None = None
    """Parts of `energy_j`: this device, its radio, the cloud's share."""
    radio_j: float | None = None
    cloud_j: float | None = None
    wasted_j: float | None = None
    """Of the device's part: drafts that were sent and not accepted."""
    queue_ms: float = 0.0
    """At the cloud until the first row, the longest of the choices; so is the next."""
    prefill_ms: float = 0.0


class LocalTokens(_Event, frozen=True, tag="local_tokens"):
    """Edge: the small model spoke: final tokens of an `edge` or forked answer, or provisional
    ones that a commit confirms or replaces."""

    request: str
    choice: int
    position: int
    tokens: int
    provisional: bool


class SessionClosed(_Event, frozen=True, tag="session_closed"):
    session: str
    reason: str
    tokens: int


class Shed(_Event, frozen=True, tag="shed"):
    """A request was refused because of load."""

    where: Literal["edge", "cloud"]
    queued: int
    retry_after_s: float


class Trouble(_Event, frozen=True, tag="trouble"):
    """An error that did not end the process; `code` is one of `outrider.errors`."""

    code: str
    what: str


class Lag(_Event, frozen=True, tag="lag"):
    """Event-loop lateness over the last interval."""

    p50_ms: float
    p99_ms: float


class LinkGauge(msgspec.Struct, frozen=True):
    """One committer as the daemon knows it. None where nothing tells it."""

    cloud: str
    state: Literal["connected", "connecting", "unreachable"]
    kind: Literal["cloud", "split"] = "cloud"
    model: str = ""
    device: str = ""
    """What computes there, in that cloud's words."""
    rtt_ms: float | None = None
    jitter_ms: float | None = None
    """Standard deviation of the round trip."""
    up_bytes_per_s: float | None = None
    """Bandwidth as live traffic shows it; so is the next."""
    down_bytes_per_s: float | None = None
    loss: float | None = None
    """Estimated share of segments that had to be sent again."""
    bytes_up: int = 0
    """Of sessions, since the daemon started; so is the next."""
    bytes_down: int = 0
    cert_expires: float | None = None
    """Unix seconds at which the cloud's certificate ends; None in the clear or not known."""
    tls: bool = False
    detail: str = ""


class Gauge(_Event, frozen=True, tag="gauge"):
    """Edge: how things stand, every half second while answers run and every second else, so that
    a reader who comes late knows all there is. Counts are since the daemon started."""

    version: str
    listen: str
    pid: int
    uptime_s: float
    placement: str
    """What requests without a wish get."""
    pinned: bool = False
    """An operator pinned it."""
    model: str = ""
    """The default target."""
    drafter: str = ""
    """The draft model's name."""
    drafter_device: str = ""
    running: int = 0
    queued: int = 0
    requests: int = 0
    tokens: int = 0
    sent: int = 0
    """Draft tokens sent; `hint_rows` of them were verified and `accepted` held."""
    hint_rows: int = 0
    accepted: int = 0
    lag_p99_ms: float = 0.0
    rss_mb: float | None = None
    supply: str = "unknown"
    battery: float | None = None
    """0 to 1."""
    charging: bool | None = None
    watts: float | None = None
    watts_kind: str = "none"
    watts_source: str = ""
    temperature_c: float | None = None
    limit_c: float | None = None
    throttled: bool | None = None
    power_policy: str = "auto"
    battery_floor: float = 0.0
    power_draft: str = "free"
    """What power and heat leave for drafts: free, shallow, off."""
    power_reason: str = ""
    joules_per_token: float | None = None
    joules_kind: str = "none"
    links: tuple[LinkGauge, ...] = ()


class PlanMade(_Event, frozen=True, tag="plan"):
    """Edge: the last verdict on a model's answers; when it changes, and every few seconds."""

    model: str
    placement: str
    peer: str
    reason: str
    binding: str = "none"
    runner_up: str = "none"
    margin: float | None = None
    """The runner-up's cost over the chosen one's, minus 1."""
    depth: int = 0
    trigger: str = ""
    scores: tuple[ScoreStatus, ...] = ()


class Remark(_Event, frozen=True, tag="remark"):
    """Something that a person did, or a script of a demo: for readers and records."""

    said: str


Event = (
    Up
    | Down
    | ModelLoaded
    | ModelUnloaded
    | LinkChanged
    | RequestStarted
    | SessionOpened
    | HintSent
    | CommitReceived
    | Stepped
    | Decision
    | Fallback
    | RequestDone
    | LocalTokens
    | SessionClosed
    | Shed
    | Trouble
    | Lag
    | Gauge
    | PlanMade
    | Remark
)

_ENCODER = msgspec.json.Encoder()
_DECODER: msgspec.json.Decoder[Event] = msgspec.json.Decoder(Event)


class _Version(msgspec.Struct):
    v: int


def encode(event: Event) -> bytes:
    """One line of JSON, without the newline."""
    return _ENCODER.encode(event)


def decode(data: bytes) -> Event:
    """Raises `msgspec.ValidationError` for what is no event of this schema or the one before."""
    try:
        version = msgspec.json.decode(data, type=_Version).v
        if version > SCHEMA:
            raise msgspec.ValidationError(f"an event of a schema above {SCHEMA}: update outrider")
        if version < SCHEMA - 1:
            raise msgspec.ValidationError(f"an event of a schema below {SCHEMA - 1}")
        return _DECODER.decode(data)
    except msgspec.ValidationError:
        raise
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise msgspec.ValidationError("no event: not JSON in UTF-8") from None
