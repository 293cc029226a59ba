"""`outrider demo`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from outrider.cli.servers import missing
from outrider.errors import InvalidRequest

if TYPE_CHECKING:
    from outrider.demo import DemoOptions


def demo(
    *,
    json: bool = False,
    rtt_ms: float = 40.0,
    step_ms: float = 40.0,
    tokens: int = 48,
    patience: float = 2.0,
    svg: Path | None = None,
    top: bool = False,
    once: bool = False,
    record: Path | None = None,
) -> int:
    """Start a cloud and an edge with a slow link between, ask, cut the link, and compare.

    Args:
        json: Print one JSON object and nothing else.
        rtt_ms: Round trip of the emulated link, milliseconds.
        step_ms: What a step of the inflated target shall take; 0 takes the target as it is.
        tokens: Tokens of each answer.
        patience: Seconds a plain client waits for the cloud before its answer forks.
        svg: Write what was shown as an SVG file.
        top: Open the live screen instead, and let things happen to the device: worse Wi-Fi, a
            pulled charger, a cloud that dies.
        once: With --top: no terminal; all of it once, then print the screen.
        record: With --top: write every event to this file.
    """
    if top:
        return _top(rtt_ms, step_ms, tokens, patience, once=once, record=record)
    if once or record is not None:
        raise InvalidRequest("--once and --record go with --top", todo="outrider demo --top")
    try:
        from outrider.demo import DemoOptions, run
    except ModuleNotFoundError as error:
        raise missing("edge,cloud", error) from None
    options: DemoOptions = DemoOptions(
        json=json, rtt_ms=rtt_ms, step_ms=step_ms, tokens=tokens, patience_s=patience, svg=svg
    )
    return run(options)


def _top(
    rtt_ms: float, step_ms: float, tokens: int, patience: float, *, once: bool, record: Path | None
) -> int:
    try:
        from outrider.demo import top as tops
        from outrider.tui.options import TopOptions
    except ModuleNotFoundError as error:
        raise missing("edge,cloud,tui", error) from None
    screen = TopOptions(record=record)
    return tops.run(tops.Show(rtt_ms, step_ms, tokens, patience, screen, once=once))
