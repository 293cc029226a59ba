"""`outrider profile`: what this device, its engines and its links can do, and what it takes."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from outrider.cli import console
from outrider.cli.servers import missing
from outrider.errors import ConfigError

if TYPE_CHECKING:
    from outrider.partitioner.device import DeviceProfile, Rate
    from outrider.partitioner.graph import ModelGraph
    from outrider.partitioner.observe import Estimate
    from outrider.partitioner.profile.providers import Placement
    from outrider.partitioner.profile.recommend import Offer

_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|)")
SHOWN_CONTEXT, SHOWN_PROMPT = 512, 512
"""Tokens at which a model's passes are priced."""


@dataclass(frozen=True)
class LinkFlags:
    """How to reach the cloud of `--link`."""

    link: str | None = None
    """Measure the link to a running cloud, HOST:PORT, instead of the device."""
    cloud_ca: Path | None = None
    """With --link: TLS, checked against this authority (PEM)."""
    cloud_cert: Path | None = None
    """With --link: this device's own certificate (PEM)."""
    cloud_key: Path | None = None
    """With --link: its key."""


@dataclass(frozen=True)
class ServiceFlags:
    """What `--recommend` is asked to meet."""

    recommend: str | None = None
    """Recommend hardware for this model (or shape:NAME) instead of measuring."""
    ttft: str = ""
    """With --recommend: time to the first token, as 500ms or 2s."""
    tpot: str = ""
    """With --recommend: time per token after it."""
    sequences: int = 1
    """With --recommend: answers at a time."""
    prompt_tokens: int = 512
    """With --recommend: of a request."""
    new_tokens: int = 128
    """With --recommend: of an answer."""
    precision: Sequence[str] = ()
    """With --recommend: stored, q8_0, q4_k; by default the first two."""


LINK, SERVICE = LinkFlags(), ServiceFlags()


def profile(
    model: str | None = None,
    /,
    *,
    engine: Sequence[str] = (),
    quick: bool = False,
    saved: bool = False,
    slowdown: bool = False,
    providers: bool = False,
    save: Path | None = None,
    name: str = "local",
    kind: Literal["auto", "phone", "laptop", "jetson", "desktop", "server", "cloud"] = "auto",
    device: str = "cpu",
    numerics: Literal["exact", "plain"] = "exact",
    threads: int = 1,
    link: Annotated[LinkFlags, Parameter(name="*")] = LINK,
    service: Annotated[ServiceFlags, Parameter(name="*")] = SERVICE,
    json: bool = False,
) -> int:
    """Measure this device's engines, fit the cost model, and keep the profile for plans.

    Args:
        model: Also tell what this model would take here: a folder, a file, bundled:target, or
            shape:NAME of a well-known one.
        engine: torch, llama or onnx, or with a precision as llama:q8_0. Repeat it for several;
            by default all that are installed.
        quick: The usual precision of each engine, smaller models; about half a minute.
        saved: Measure nothing, read the saved profile.
        slowdown: Only measure how much slower the device is now than its saved profile.
        providers: Only show onnxruntime's execution providers, their options and what they take.
        save: Write the profile here instead of under the state folder.
        name: What plans call this device.
        kind: What kind of device it is; auto looks at its enclosure.
        device: cpu, cuda:N or mps, for torch.
        numerics: exact as clouds and workers compute, or plain, the engine's fastest.
        threads: CPU threads of an engine.
        json: Print one JSON object.
    """
    try:
        if service.recommend is not None:
            return _recommend(service, json=json)
        if link.link is not None:
            return _link(link, name, save, json=json)
        if providers:
            return _providers(json=json)
        chosen = None if kind == "auto" else kind
        return _device(
            model,
            _wanted(engine, numerics, device, threads, name, chosen),
            "saved" if saved else "slowdown" if slowdown else "quick" if quick else "full",
            save,
            json=json,
        )
    except ModuleNotFoundError as error:
        raise missing("edge,torch", error) from None


def seconds(text: str, flag: str) -> float | None:
    """`500ms`, `2s`, `500` (milliseconds); None of nothing. Raises ConfigError."""
    if not text:
        return None
    match = _DURATION.fullmatch(text.strip())
    if match is None:
        raise ConfigError(f"{flag} {text!r} is no duration", todo="as 500ms or 2s")
    return float(match[1]) / (1.0 if match[2] == "s" else 1e3)


# --- the device --------------------------------------------------------------------------------


def _wanted(
    engine: Sequence[str], numerics: str, device: str, threads: int, name: str, kind: Any
) -> Any:
    from outrider.partitioner.profile.device import Wanted

    if threads < 1:
        raise ConfigError(f"--threads must be at least 1, not {threads}", todo="leave it away")
    engines = tuple(part for given in engine for part in given.split(",") if part)
    return Wanted(engines, numerics, device, threads, name, kind)


def _device(model: str | None, wanted: Any, how: str, save: Path | None, *, json: bool) -> int:
    from outrider.models import graph as graphs
    from outrider.partitioner.profile import store

    graph = graphs.read(model) if model else None
    missing_engines: dict[str, str] = {}
    if how == "saved":
        found = store.load_device_profile(save)
    elif how == "slowdown":
        found = _slowed(wanted, save)
    else:
        found, missing_engines = _measured(wanted, how)
    place = None if how == "saved" else store.save_device_profile(found, save)
    placements = _placements() if how in ("quick", "full") else ()
    if json:
        console.as_json(
            {
                "device": asdict(found),
                "missing": missing_engines,
                "providers": [asdict(placement) for placement in placements],
                "model": _priced(graph, found) if graph else None,
                "saved": str(place) if place else None,
            }
        )
        return 0
    console.out(_device_page(found, missing_engines, placements))
    if graph is not None:
        console.out(_model_page(graph, found))
    if place is not None:
        console.note(f"saved to {place}: outrider plan and the daemon read it")
    return 0


def _measured(wanted: Any, how: str) -> tuple[DeviceProfile, dict[str, str]]:
    from outrider.partitioner.profile import device

    plan = device.QUICK if how == "quick" else device.FULL
    found = device.profile(wanted, plan, console.note)
    return found.device, found.missing


def _slowed(wanted: Any, save: Path | None) -> DeviceProfile:
    from outrider.partitioner.profile import device, store

    known = store.load_device_profile(save)
    return store.slowed(known, device.probed(known, wanted))


def _device_page(
    found: DeviceProfile, missing_engines: dict[str, str], placements: Sequence[Placement]
) -> str:
    lines = [
        f"{found.name}: {found.kind}, {found.memory_bytes / 2**30:.1f} GiB for models, "
        f"accelerators: {', '.join(found.accelerators) or 'none'}",
        f"slowdown {found.slowdown:.2f}; {found.idle_w:g} W idle and {found.busy_w:g} W more while "
        f"computing ({found.power})",
        "",
        console.table([_HEAD, *(_row(rate) for rate in found.rates)]),
    ]
    lines += [f"{which}: not measured, {why}" for which, why in missing_engines.items()]
    if placements:
        present = [placement for placement in placements if placement.state != "absent"]
        absent = [placement.provider for placement in placements if placement.state == "absent"]
        lines += ["", *(_placement_line(placement) for placement in present)]
        lines += [f"onnxruntime providers absent: {', '.join(absent)}"] if absent else []
    return "\n".join(lines)


_HEAD = ("ENGINE", "PRECISION", "GFLOP/s", "GB/s", "MS A PASS", "US A LAYER", "ERROR", "ROWS")


def _row(rate: Rate) -> tuple[str, ...]:
    curve = " ".join(f"{rows}:{factor:.2f}" for rows, factor in rate.rows)
    return (
        rate.engine,
        rate.dtype,
        f"{rate.flops_per_s / 1e9:.1f}",
        f"{rate.bytes_per_s / 1e9:.1f}",
        f"{rate.pass_s * 1e3:.2f}",
        f"{rate.layer_s * 1e6:.0f}",
        "-" if rate.error is None else f"{rate.error:.1%}",
        curve,
    )


def _placement_line(placement: Placement) -> str:
    detail = f": {placement.detail}" if placement.detail else ""
    return (
        f"onnxruntime {placement.provider}: {placement.state}, {placement.share:.0%} of"
        f" {placement.nodes} nodes{detail}"
    )


# --- a model on it -----------------------------------------------------------------------------


def _priced(graph: ModelGraph, device: DeviceProfile) -> dict[str, Any]:
    """The graph's sums, and what each rate makes of it."""
    from outrider.partitioner.cost import stage_bytes
    from outrider.partitioner.profile.recommend import Service, decode_s, prefill_s

    service = Service(prompt_tokens=SHOWN_PROMPT, new_tokens=1)
    count = len(graph.units)
    return {
        "name": graph.name,
        "dtype": graph.dtype,
        "layers": graph.decoders,
        "weight_bytes": graph.weight_bytes,
        "kv_bytes_per_token": sum(unit.kv_bytes for unit in graph.units),
        "flops_per_token": sum(unit.flops for unit in graph.units),
        "activation_numbers": graph.units[0].output,
        "rates": [
            {
                "engine": rate.engine,
                "dtype": rate.dtype,
                "decode_ms": decode_s(graph, device, rate, service) * 1e3,
                "prefill_ms": prefill_s(graph, device, rate, service) * 1e3,
                "memory_bytes": stage_bytes(graph, 0, count, rate, SHOWN_CONTEXT),
            }
            for rate in device.rates
        ],
    }


def _model_page(graph: ModelGraph, device: DeviceProfile) -> str:
    found = _priced(graph, device)
    head = (
        f"\n{graph.name}: {graph.decoders} layers, {graph.weight_bytes / 1e6:.1f} MB in"
        f" {graph.dtype}, {found['kv_bytes_per_token']} bytes of KV a token,"
        f" {found['flops_per_token'] / 1e6:.1f} Mflop a token"
    )
    rows = [("ENGINE", "PRECISION", "MS A TOKEN", f"MS FOR {SHOWN_PROMPT}", "MEMORY")]
    rows += [
        (
            rate["engine"],
            rate["dtype"],
            f"{rate['decode_ms']:.1f}",
            f"{rate['prefill_ms']:.0f}",
            _fits(rate["memory_bytes"], device),
        )
        for rate in found["rates"]
    ]
    return "\n".join([head, console.table(rows)])


def _fits(size: int, device: DeviceProfile) -> str:
    text = f"{size / 2**20:.0f} MiB"
    return text if size <= device.memory_bytes else f"{text}, too much"


# --- providers ---------------------------------------------------------------------------------


def _placements() -> tuple[Placement, ...]:
    """Of the bundled draft as exported; none where onnxruntime or the exporter is missing."""
    from outrider.errors import OutriderError
    from outrider.partitioner.profile.providers import placements

    try:
        from outrider.engines.onnx.files import exported
        from outrider.models.source import resolve

        return placements(exported(resolve("bundled:draft"), "float32"))
    except (ModuleNotFoundError, OutriderError) as error:
        console.note(f"execution providers were not looked at: {error}")
        return ()


def _providers(*, json: bool) -> int:
    from outrider.partitioner.profile.providers import SHEETS

    found = {placement.provider: placement for placement in _placements()}
    if json:
        sheets = [asdict(sheet) for sheet in SHEETS]
        placed = [asdict(placement) for placement in found.values()]
        console.as_json({"providers": sheets, "placements": placed})
        return 0
    rows = [("PROVIDER", "HERE", "OPTION", "VALUE", "WHY")]
    for sheet in SHEETS:
        placement = found.get(sheet.name)
        here = "unknown" if placement is None else placement.state
        if placement is not None and placement.nodes:
            here = f"{here}, {placement.share:.0%} of {placement.nodes} nodes"
        lines = [(o.name, o.value, o.why) for o in sheet.options] or [("-", "-", sheet.hardware)]
        for i, line in enumerate(lines):
            rows.append((sheet.name if not i else "", here if not i else "", *line))
    console.out(console.table(rows))
    return 0


# --- links -------------------------------------------------------------------------------------


def _link(flags: LinkFlags, name: str, save: Path | None, *, json: bool) -> int:
    from outrider.options import CLOUD_PORT, Address
    from outrider.partitioner.profile import link as links
    from outrider.partitioner.profile import store

    address = Address.parse(flags.link or "", CLOUD_PORT)
    key = os.environ.get("OUTRIDER_CLOUD_API_KEY", "")
    metadata = (("authorization", f"Bearer {key}"),) if key else ()
    target = links.Target(address, metadata, _credentials(flags))
    found = asyncio.run(links.probe(target))
    place = store.save_link_profile(found.link(name, str(address)), save)
    if json:
        console.as_json({"link": str(address), **asdict(found), "saved": str(place)})
        return 0
    console.out("\n".join(_link_lines(str(address), found)))
    console.note(f"saved to {place}: outrider plan reads it")
    return 0


def _credentials(flags: LinkFlags) -> Any:
    from outrider import transport

    return transport.channel_tls(
        transport.read_pem(flags.cloud_ca, "--cloud-ca"),
        transport.read_pem(flags.cloud_cert, "--cloud-cert"),
        transport.read_pem(flags.cloud_key, "--cloud-key"),
    )


def _link_lines(address: str, found: Estimate) -> Iterator[str]:
    yield f"link to {address}, {found.exchanges} exchanges"
    yield (
        f"round trip  {found.rtt_s * 1e3:.1f} ms median, {found.rtt_min_s * 1e3:.1f} least,"
        f" {found.jitter_s * 1e3:.1f} jitter   (small Describe calls)"
    )
    yield f"up          {_speed(found.up_bytes_per_s)}   (refused opens of 4 and 32 KiB)"
    yield f"down        {_speed(found.down_bytes_per_s)}   (Describe with and without tokenizers)"
    yield f"loss        {found.loss:.2%} of segments   (answers late by a retransmission)"


def _speed(rate: float | None) -> str:
    return "too fast to tell" if rate is None else f"{rate * 8 / 1e6:.1f} Mbit/s"


# --- recommendations ---------------------------------------------------------------------------


def _recommend(flags: ServiceFlags, *, json: bool) -> int:
    from outrider.models import graph as graphs
    from outrider.partitioner.profile import recommend as advice
    from outrider.partitioner.profile import store

    graph = graphs.read(flags.recommend or "")
    service = advice.Service(
        ttft_s=seconds(flags.ttft, "--ttft"),
        tpot_s=seconds(flags.tpot, "--tpot"),
        sequences=flags.sequences,
        prompt_tokens=flags.prompt_tokens,
        new_tokens=flags.new_tokens,
        precisions=tuple(flags.precision) or advice.LOSSLESS,
    )
    own = store.find_device_profile()
    devices = (*([own] if own else []), *advice.catalogue())
    offers = advice.recommend(graph, service, devices)
    if json:
        console.as_json({"model": graph.name, "offers": [asdict(offer) for offer in offers]})
        return 0
    console.out(_offers_page(graph, offers))
    return 0


def _offers_page(graph: ModelGraph, offers: Sequence[Offer]) -> str:
    rows = [("DEVICE", "PRECISION", "TTFT MS", "TPOT MS", "TOKENS/S", "MEMORY", "$/H", "LACKS")]
    rows += [
        (
            f"{offer.device}",
            offer.precision,
            f"{offer.ttft_s * 1e3:.0f}",
            f"{offer.tpot_s * 1e3:.1f}",
            f"{offer.tokens_per_s:.0f}",
            f"{offer.memory_bytes / 2**30:.1f} GiB",
            f"{offer.dollars_per_hour:.3f}",
            "; ".join(offer.lacks) or "-",
        )
        for offer in offers
    ]
    best = offers[0]
    return "\n".join(
        [
            console.bold(f"{graph.name}: take {best.device}, {best.precision} ({best.source})"),
            "",
            console.table(rows),
            "",
            "Figures of catalogue devices are estimated from public peaks; bought ones are paid off"
            " over 3 years, without electricity.",
        ]
    )
