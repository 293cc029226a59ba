"""A device as the planner sees it: what it holds, how fast it computes, what it draws."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

DeviceKind = Literal["phone", "laptop", "jetson", "desktop", "server", "cloud"]
Source = Literal["measured", "estimated"]


@dataclass(frozen=True, slots=True)
class Rate:
    """How fast one engine computes at one precision on this device.

    A stage of units S with k rows at context c takes, in seconds,
    `pass_s + sum over S of unit_s`, times `DeviceProfile.slowdown`, with `unit_s` of
    `outrider.partitioner.cost`: a roofline (arXiv 2406.01698) of the products times the
    row curve, one of attention, and `layer_s`.
    """

    engine: str
    dtype: str
    flops_per_s: float
    bytes_per_s: float
    pass_s: float = 0.0
    layer_s: float = 0.0
    weight_scale: float = 1.0
    """Bytes of a weight at this precision over bytes as stored."""
    rows: tuple[tuple[int, float], ...] = ()
    """Measured over predicted time at row counts, where the roofline is off; linear between."""
    error: float | None = None
    """Geometric mean of max(a/b, b/a) - 1 on measurements that were held out."""
    source: Source = "measured"
    bytes_per_weight: float = 0.0
    """Of a number of a weight at this precision. Not 0, it stands for `weight_scale`, whatever
    precision a model is stored in (`cost.suited`)."""
    kv_scale: float = 1.0
    """Bytes of this engine's KV over `Unit.kv_bytes`."""
    attention_flops_per_s: float = 0.0
    """Of attention over the context; 0 is as of products."""
    attention_bytes_per_s: float = 0.0
    """Of reading KV; 0 is as of weights."""
    cache_bytes: float = 0.0
    """Models that stream less than this stay in the processor's cache between passes,"""
    cache_bytes_per_s: float = 0.0
    """and stream at this rate; 0 is as from memory."""
    numerics: str = "exact"
    probe_s: tuple[float, ...] = ()
    """Seconds of the reference passes when this was measured (`profile.device.PROBE`): what a
    short probe is compared with to find `DeviceProfile.slowdown`."""


@dataclass(frozen=True, slots=True)
class DeviceProfile:
    name: str
    kind: DeviceKind
    memory_bytes: int
    """What stages may take: weights, KV and working space."""
    rates: tuple[Rate, ...]
    slowdown: float = 1.0
    """Above 1 while the device is throttled, or shared with others."""
    idle_w: float = 0.0
    busy_w: float = 0.0
    """Drawn beyond idle while it computes."""
    power: Source = "estimated"
    dollars_per_hour: float = 0.0
    accelerators: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class LinkProfile:
    """The way from device `a` to device `b` and back."""

    a: str
    b: str
    rtt_s: float
    up_bytes_per_s: float
    """From `a` to `b`."""
    down_bytes_per_s: float
    jitter_s: float = 0.0
    loss: float = 0.0
    joules_per_byte: float = 0.0
    """What the radio of the weaker end draws for a byte; its tail is the power model's."""
    source: Source = "measured"
