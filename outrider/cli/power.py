"""`outrider power`: supply, watts, heat, what the policy makes of them, and joules per token."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from threading import Event
from typing import TYPE_CHECKING

from outrider.cli import console
from outrider.cli.where import HERE, Daemon, Where
from outrider.errors import DaemonUnreachable

if TYPE_CHECKING:
    from outrider.protocol.energy import PowerStatus

EVERY_S = 1.0
"""Between two looks; counters need two of them to tell watts."""
ASIDE = "no daemon runs: read here, with its default settings"


def power(*, json: bool = False, watch: bool = False, where: Where = HERE) -> int:
    """What the machine draws, what is left, and what tokens cost under each placement.

    Args:
        json: Print one JSON object; with --watch one a line and second.
        watch: Look again every second, until ctrl-c.
    """
    try:
        for found in _looks(where, once=not watch):
            if json:
                console.as_json(found)
            else:
                console.out(page(found) + ("\n" if watch else ""))
    except KeyboardInterrupt:
        return 130
    return 0


def _looks(where: Daemon, *, once: bool) -> Iterator[PowerStatus]:
    """By the daemon, or by this process where none runs."""
    try:
        yield from _by_daemon(where, once=once)
    except DaemonUnreachable:
        if where.host is not None:
            raise
        console.note(ASIDE)
        yield from _here(once=once)


def _by_daemon(where: Daemon, *, once: bool) -> Iterator[PowerStatus]:
    with where.client() as client:
        while True:
            found = client.status().power
            if found is None:
                raise DaemonUnreachable(
                    "the daemon tells nothing of power",
                    why="it is of an earlier version",
                    todo="update and start it anew: outrider edge",
                )
            yield found
            if once:
                return
            Event().wait(EVERY_S)


def _here(*, once: bool) -> Iterator[PowerStatus]:
    from outrider.edge.power import PowerWatch, accountant
    from outrider.options import EdgeOptions

    options = EdgeOptions()
    watch = PowerWatch(options, accountant(options), lambda event: None, time.monotonic)
    asyncio.run(watch.look())
    while True:
        if any(draw.watts is None for draw in watch.status().draws) or not once:
            Event().wait(EVERY_S)
            asyncio.run(watch.look())
        yield watch.status()
        if once:
            return


# --- for people --------------------------------------------------------------------------------


def page(found: PowerStatus) -> str:
    """Rows of name and text."""
    rows = [
        ("supply", _supply(found)),
        ("watts", _watts(found)),
        *(("", line) for line in _draws(found)),
        ("heat", _heat(found)),
        ("policy", _policy(found)),
        ("drafts", _bounds(found)),
        ("radio", found.radio),
        *(("trouble", text) for text in found.troubles),
        *(("not found", f"{one.name}: {one.why} ({one.looked})") for one in found.absent),
    ]
    lines = [f"{console.bold(name.ljust(10))} {text}".rstrip() for name, text in rows]
    return "\n".join([*lines, *_placements(found)])


def _supply(found: PowerStatus) -> str:
    parts = {"ac": "mains", "battery": "battery"}.get(found.supply, "unknown")
    if found.battery is not None:
        state = "charging" if found.charging else "not charging"
        parts += f", battery {found.battery * 100:.0f} %, {state}"
    return parts + (f", profile {found.profile}" if found.profile else "")


def _watts(found: PowerStatus) -> str:
    if found.watts is None:
        return "unknown: no reader tells, so requests are accounted at estimated watts"
    idle = "" if found.idle_watts is None else f", idle {found.idle_watts:.1f} W"
    counted = f", requests by {found.accounted_by}{idle}" if found.accounted_by else ""
    return f"{found.watts:.1f} W, {found.watts_kind} ({found.watts_source}){counted}"


def _draws(found: PowerStatus) -> list[str]:
    if len(found.draws) < 2:
        return []
    return [
        f"{draw.source}: {'-' if draw.watts is None else f'{draw.watts:.1f} W'}, {draw.kind}"
        for draw in found.draws
    ]


def _heat(found: PowerStatus) -> str:
    if found.temperature_c is None:
        return "unknown: no zone tells its temperature"
    now = f"{found.zone} {found.temperature_c:.0f} °C"
    if found.throttled:
        return f"{now}, throttled now"
    if found.limit_c is None:
        return f"{now}, no limit is told"
    room = found.limit_c - found.temperature_c
    return f"{now}, throttles at {found.limit_c:.0f} °C: {room:.0f} °C to go"


def _policy(found: PowerStatus) -> str:
    cap = "none" if found.watt_cap is None else f"{found.watt_cap:g} W"
    return f"{found.policy}, battery floor {found.battery_floor * 100:.0f} %, watt cap {cap}"


def _bounds(found: PowerStatus) -> str:
    elsewhere = ", whole answers and layers elsewhere" if found.compute == "avoid" else ""
    return f"{found.draft}{elsewhere}" + (f": {found.reason}" if found.reason else "")


def _placements(found: PowerStatus) -> list[str]:
    """Joules per token so far."""
    if not found.placements:
        return ["no request has ended yet: no joules per token to tell"]
    rows: list[tuple[str, ...]] = [
        ("PLACEMENT", "J/TOKEN", "DEVICE", "RADIO", "CLOUD", "KIND", "TOKENS", "WASTED")
    ]
    rows += [
        (
            one.placement,
            *(f"{value:.3g}" for value in (one.joules_per_token, one.device, one.radio, one.cloud)),
            one.kind,
            str(one.tokens),
            f"{one.wasted_j:.3g} J",
        )
        for one in found.placements
    ]
    return ["", console.table(rows)]
