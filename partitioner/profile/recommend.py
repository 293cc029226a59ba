"""Which hardware for a model and a service level: the cheapest of a catalogue that is adequate.

After LLM-Pilot (seed list, row 121), with the cost model in the place of its learned one.
Catalogue figures are public peaks times a share that decoders reach, marked `estimated`
throughout; a device of one's own enters with its measured profile.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from outrider.errors import ConfigError, Unplannable
from outrider.partitioner.cost import attention_s, item_bytes, stage_bytes, stage_s, suited
from outrider.partitioner.device import DeviceProfile, Rate
from outrider.partitioner.graph import ModelGraph
from outrider.partitioner.profile.check import check_device

CATALOGUE = Path(__file__).with_name("catalogue.json")
YEARS = 3.0
"""Over which a bought device pays off."""
HOURS = YEARS * 365 * 24
LOSSLESS = ("stored", "q8_0")
"""Precisions that are tried unless others are asked for; `stored`: as the model is stored."""
CHUNK = 512


@dataclass(frozen=True, slots=True)
class Service:
    """What is wanted. Seconds; None is not asked for."""

    ttft_s: float | None = None
    tpot_s: float | None = None
    sequences: int = 1
    prompt_tokens: int = 512
    new_tokens: int = 128
    precisions: tuple[str, ...] = LOSSLESS

    def __post_init__(self) -> None:
        for name in ("ttft_s", "tpot_s"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise ConfigError(f"{name.removesuffix('_s')} can not be {value}", todo="as 500ms")
        if min(self.sequences, self.prompt_tokens, self.new_tokens) < 1:
            raise ConfigError("a service has at least one sequence, prompt token and new token")


@dataclass(frozen=True, slots=True)
class Offer:
    """What a device would do at one precision, and what it lacks; `lacks` is empty if adequate."""

    device: str
    precision: str
    ttft_s: float
    tpot_s: float
    tokens_per_s: float
    memory_bytes: int
    dollars_per_hour: float
    dollars_per_mtoken: float
    watts: float
    source: str
    lacks: tuple[str, ...]


def recommend(
    graph: ModelGraph, service: Service, devices: Sequence[DeviceProfile]
) -> tuple[Offer, ...]:
    """All offers: adequate ones first, the cheapest on top; then what lacks least.

    Raises Unplannable when none is adequate, naming what fails on all and the nearest.
    """
    offers = [offer(graph, service, device, rate) for device, rate in _pairs(devices, service)]
    found = sorted(offers, key=lambda one: (len(one.lacks), one.dollars_per_hour, one.tpot_s))
    if not found or found[0].lacks:
        raise _none(service, found)
    return tuple(found)


def _pairs(
    devices: Iterable[DeviceProfile], service: Service
) -> Iterable[tuple[DeviceProfile, Rate]]:
    for device in devices:
        for rate in check_device(device).rates:
            if rate.source == "measured" or rate.dtype in service.precisions:
                yield device, rate


def offer(graph: ModelGraph, service: Service, device: DeviceProfile, rate: Rate) -> Offer:
    """One device at one precision."""
    fit = suited(graph, _as_stored(graph, rate))
    ttft, tpot = prefill_s(graph, device, fit, service), decode_s(graph, device, fit, service)
    tokens = (service.prompt_tokens + service.new_tokens) * service.sequences
    memory = stage_bytes(graph, 0, len(graph.units), fit, tokens)
    rate_of_tokens = service.sequences / tpot
    dollars = device.dollars_per_hour
    return Offer(
        device=device.name,
        precision=f"{rate.dtype}" if rate.dtype != "stored" else graph.dtype,
        ttft_s=ttft,
        tpot_s=tpot,
        tokens_per_s=rate_of_tokens,
        memory_bytes=memory,
        dollars_per_hour=dollars,
        dollars_per_mtoken=dollars / 3600 / rate_of_tokens * 1e6,
        watts=device.idle_w + device.busy_w,
        source=rate.source,
        lacks=tuple(_lacks(service, device, ttft, tpot, memory)),
    )


def _as_stored(graph: ModelGraph, rate: Rate) -> Rate:
    """A catalogue rate for `stored` is one of two bytes a weight; other sizes scale its bytes."""
    if rate.dtype != "stored":
        return rate
    return replace(rate, bytes_per_weight=item_bytes(graph.dtype))


def prefill_s(graph: ModelGraph, device: DeviceProfile, rate: Rate, service: Service) -> float:
    """The prompt alone, in chunks; the head computes its last row."""
    total, at = 0.0, 0
    while at < service.prompt_tokens:
        rows = min(CHUNK, service.prompt_tokens - at)
        last = at + rows == service.prompt_tokens
        context = at + (rows + 1) / 2
        total += stage_s(
            graph, 0, len(graph.units), device, rate, rows, context, 1.0 if last else 0.0
        )  # fmt: skip
        at += rows
    return total


def decode_s(graph: ModelGraph, device: DeviceProfile, rate: Rate, service: Service) -> float:
    """A pass with a row of each sequence; each reads its own KV, all share the weights."""
    context = service.prompt_tokens + service.new_tokens / 2
    count = len(graph.units)
    together = stage_s(graph, 0, count, device, rate, service.sequences, 0.0)
    keys = sum(attention_s(unit, rate, 1, context) for unit in graph.units)
    return together + keys * service.sequences * device.slowdown


def _lacks(
    service: Service, device: DeviceProfile, ttft: float, tpot: float, memory: int
) -> Iterable[str]:
    if memory > device.memory_bytes:
        yield f"memory: {memory / 2**30:.1f} GiB of {device.memory_bytes / 2**30:.1f}"
    for name, found, wanted in (("ttft", ttft, service.ttft_s), ("tpot", tpot, service.tpot_s)):
        if wanted is not None and found > wanted:
            yield f"{name}: {found * 1e3:.0f} ms, wanted {wanted * 1e3:.0f}"


def _none(service: Service, found: Sequence[Offer]) -> Unplannable:
    """The nearest: enough memory, then the least excess over what was asked."""

    def excess(one: Offer) -> float:
        pairs = ((one.ttft_s, service.ttft_s), (one.tpot_s, service.tpot_s))
        return max((a / b for a, b in pairs if b is not None), default=1.0)

    fitting = [one for one in found if not any(lack.startswith("memory") for lack in one.lacks)]
    if not fitting:
        least = min((one.memory_bytes for one in found), default=0)
        return Unplannable(
            "no device of the catalogue is adequate",
            constraint=f"memory of one device: {least / 2**30:.1f} GiB are needed",
            nearest="a split over several devices (outrider plan), or --precision q4_k",
        )
    best = min(fitting, key=excess)
    return Unplannable(
        "no device of the catalogue is adequate",
        constraint="; ".join(best.lacks),
        nearest=f"{best.device} at {best.precision}: ttft {best.ttft_s * 1e3:.0f} ms,"
        f" tpot {best.tpot_s * 1e3:.1f} ms",
    )


# --- the catalogue -----------------------------------------------------------------------------


def catalogue(path: Path = CATALOGUE) -> tuple[DeviceProfile, ...]:
    """Devices with rates for weights as stored, `q8_0` and `q4_k`, all of them estimated."""
    entries = json.loads(path.read_text(encoding="utf-8"))["devices"]
    return tuple(check_device(_device(entry)) for entry in entries)


def sources(path: Path = CATALOGUE) -> dict[str, str]:
    """Device to where its figures are from."""
    entries = json.loads(path.read_text(encoding="utf-8"))["devices"]
    return {entry["name"]: entry["sources"] for entry in entries}


def _device(entry: dict[str, object]) -> DeviceProfile:
    def number(name: str, default: float | None = None) -> float:
        value = entry.get(name, default)
        if not isinstance(value, int | float):
            raise ConfigError(f"catalogue entry {entry.get('name')} has no {name}")
        return float(value)

    kind = entry["kind"]
    assert kind in ("phone", "laptop", "jetson", "desktop", "server", "cloud")
    hourly = number("dollars_per_hour", number("price_dollars", 0.0) / HOURS)
    plain = Rate(
        "torch",
        "stored",
        flops_per_s=number("tflops_fp16") * 1e12 * number("compute_share"),
        bytes_per_s=number("gb_per_s") * 1e9 * number("bandwidth_share"),
        pass_s=number("pass_ms") / 1e3,
        layer_s=number("layer_us") / 1e6,
        source="estimated",
    )
    packed = [
        replace(plain, engine="llama", dtype=dtype, bytes_per_weight=item_bytes(dtype))
        for dtype in ("q8_0", "q4_k")
    ]
    return DeviceProfile(
        name=str(entry["name"]),
        kind=kind,
        memory_bytes=int(number("memory_gib") * 2**30 * 0.9),
        rates=(plain, *packed),
        idle_w=number("idle_w"),
        busy_w=number("busy_w"),
        dollars_per_hour=hourly,
    )
