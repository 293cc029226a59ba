"""`outrider status` and `version`."""

from __future__ import annotations

import asyncio
import platform
import sys
from importlib import metadata
from typing import TYPE_CHECKING, Any

import msgspec

import outrider
from outrider.cli import console
from outrider.cli.servers import missing
from outrider.cli.where import HERE, Where
from outrider.errors import CloudUnreachable, NotFound

if TYPE_CHECKING:
    from outrider.protocol.status import CloudStatus, Status

ALONE = "at most the small model can answer, and says so"
NOBODY = "nothing can answer"
DEGRADED = CloudUnreachable.exit_code


def status(
    *, json: bool = False, watch: bool = False, strict: bool = False, where: Where = HERE
) -> int:
    """What the daemon does now.

    Args:
        json: Print one JSON object; with --watch one a line and event.
        watch: Go on with the events of the daemon as they happen, until ctrl-c.
        strict: Exit with 5 when no cloud is connected.
    """
    with where.client() as client:
        found = client.status()
        url = client.url
    if watch:
        return _watch(found, json=json)
    if json:
        console.out(msgspec.json.encode(found).decode())
    else:
        console.out(_page(found, url))
    return DEGRADED if strict and not _connected(found) else 0


def _connected(found: Status) -> bool:
    return any(cloud.state == "connected" for cloud in found.clouds)


def _page(found: Status, url: str) -> str:
    rows = [
        ("daemon", f"{url}, version {found.version}, pid {found.pid}, up {_span(found.uptime_s)}"),
        ("placement", found.placement),
        *(("", line) for line in _placements(found)),
        ("draft", _draft(found)),
        *(("cloud", _cloud(found, i)) for i in range(len(found.clouds))),
        ("requests", _requests(found)),
        ("drafts", _drafts(found)),
        ("loop lag", f"{found.loop_lag_p99_ms:.1f} ms (99th percentile)"),
    ]
    lines = [f"{console.bold(name.ljust(10))} {text}" for name, text in rows]
    if not _connected(found):
        lines.append(f"no cloud is connected: {ALONE if found.draft else NOBODY}")
    return "\n".join(lines)


def _placements(found: Status) -> list[str]:
    """What the last verdict of each model was, and how the placements score."""
    lines = []
    for one in found.placements:
        lines.append(f"{one.model}: {one.placement}, {one.reason}")
        scores = [f"{s.placement} {_score(s.total, s.why)}" for s in one.scores]
        lines.append(f"  cost a token: {', '.join(scores)}")
        if one.binding != "none":
            lines.append(f"  kept out: {one.binding}")
    return lines


def _score(total: float | None, why: str) -> str:
    shown = "unknown" if total is None else f"{total:.1f} ms"
    return f"({shown})" if why else shown


def _draft(found: Status) -> str:
    if found.draft is not None:
        return found.draft.id
    return f"{found.draft_later}, at the first request" if found.draft_later else "none"


def _requests(found: Status) -> str:
    return (
        f"{found.requests_running} running, {found.requests_queued} queued,"
        f" {found.requests_total} in all; {found.tokens_total} tokens"
    )


def _cloud(found: Status, number: int) -> str:
    cloud = found.clouds[number]
    parts = [cloud.address, cloud.state]
    parts += [cloud.model] if cloud.model else []
    parts += _link(cloud)
    parts += [cloud.detail] if cloud.detail else []
    parts += [f"{cloud.channel} channel", f"attestation {cloud.attestation}"]
    return ", ".join(parts)


def _link(cloud: CloudStatus) -> list[str]:
    """The way there; what live traffic does not tell is left away."""
    parts = []
    if cloud.rtt_ms is not None:
        jitter = "" if cloud.jitter_ms is None else f" ± {cloud.jitter_ms:.1f}"
        parts.append(f"RTT {cloud.rtt_ms:.1f}{jitter} ms")
    for name, rate in (("up", cloud.up_bytes_per_s), ("down", cloud.down_bytes_per_s)):
        parts += [f"{name} {_rate(rate)}"] if rate is not None else []
    return [*parts, f"loss {cloud.loss:.1%}"] if cloud.loss else parts


def _rate(bytes_per_s: float) -> str:
    bits = 8.0 * bytes_per_s
    return f"{bits / 1e6:.1f} Mbit/s" if bits >= 1e6 else f"{bits / 1e3:.0f} kbit/s"


def _drafts(found: Status) -> str:
    if found.acceptance_rate is None or found.hint_yield is None:
        return "none verified yet"
    return f"{found.acceptance_rate:.0%} of verified accepted, {found.hint_yield:.0%} of sent"


def _span(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def _watch(found: Status, *, json: bool) -> int:
    if not found.events_address:
        raise NotFound("the daemon publishes no events", todo="ask again without --watch")
    try:
        asyncio.run(_follow(found.events_address, json=json))
    except KeyboardInterrupt:
        return 130
    return 0


async def _follow(address: str, *, json: bool) -> None:
    """Print events as they come; ends by ctrl-c."""
    try:
        from outrider.protocol.bus import subscribe
    except ModuleNotFoundError as error:
        raise missing("edge", error) from None
    async for event in subscribe(address):
        fields = msgspec.to_builtins(event)
        console.out(msgspec.json.encode(fields).decode() if json else _line(fields))


def _line(fields: dict[str, Any]) -> str:
    """One event for people: when, what, and its fields; tables of figures are left to --json."""
    rest = {k: v for k, v in fields.items() if k not in ("v", "at", "t_ms", "type", "source")}
    told = {k: v for k, v in rest.items() if v not in (None, "") and not isinstance(v, list)}
    said = " ".join(f"{name}={value}" for name, value in told.items())
    return f"{fields.get('t_ms', 0.0) / 1e3:12.3f}  {fields.get('type', '')!s:18} {said}".rstrip()


LIBRARIES = ("torch", "onnxruntime", "llama-cpp-python", "grpcio", "numpy")


def version(*, json: bool = False) -> int:
    """Versions of Outrider, Python and the engines.

    Args:
        json: Print one JSON object.
    """
    found = {name: _installed(name) for name in LIBRARIES}
    if json:
        console.as_json(
            {
                "version": outrider.__version__,
                "python": platform.python_version(),
                "platform": f"{sys.platform}-{platform.machine()}",
                "libraries": found,
            }
        )
        return 0
    console.out(f"outrider {outrider.__version__}")
    console.out(f"python {platform.python_version()} on {sys.platform}-{platform.machine()}")
    for name, number in found.items():
        console.out(f"{name} {number or 'not installed'}")
    return 0


def _installed(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
