"""The demo's life: make the target, start the processes, tell the story, print or write it."""

from __future__ import annotations

import asyncio
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from outrider import AsyncClient
from outrider.demo.screen import Screen, Typist
from outrider.demo.story import CUT_PROMPT, MODES, PROMPTS, Cut, Mode, Story
from outrider.demo.target import MODEL, made
from outrider.errors import ConfigError
from outrider.testing.link import Link
from outrider.testing.pair import Pair

WIDTH = 96


@dataclass(frozen=True, slots=True)
class DemoOptions:
    """`outrider demo`."""

    json: bool = False
    """One JSON object on stdout, and nothing else there."""
    rtt_ms: float = 40.0
    """Round trip of the emulated link."""
    step_ms: float = 40.0
    """What a plain step of the inflated target shall take; 0 takes the bundled one as it is."""
    tokens: int = 48
    """Tokens of each answer."""
    patience_s: float = 2.0
    """How long a plain client waits for the cloud before its answer forks."""
    svg: Path | None = None
    """Write what was shown as an SVG."""

    def __post_init__(self) -> None:
        if not 0 <= self.rtt_ms <= 2000:
            raise ConfigError("--rtt-ms lies between 0 and 2000")
        if not 0 <= self.step_ms <= 1000:
            raise ConfigError("--step-ms lies between 0 and 1000")
        if not 24 <= self.tokens <= 256:
            raise ConfigError("--tokens lies between 24 and 256")


def run(options: DemoOptions) -> int:
    """Exit code 0 when every promise held, else 1."""
    return asyncio.run(_run(options))


async def _run(options: DemoOptions) -> int:
    screen = Screen(_console(options))
    screen.opening(options.rtt_ms, options.step_ms, MODEL)
    with screen.console.status("making the inflated target, once"):
        target = await asyncio.to_thread(made, options.step_ms)
    pair = Pair(
        Link.of_rtt(options.rtt_ms),
        cloud_arguments=(
            *("--model", f"{MODEL}={target}", "--threads", "1", "--context", "512"),
            *("--max-slots", "4"),
        ),
        edge_arguments=("--patience", str(options.patience_s), "--max-running", "4"),
    )
    with screen.console.status("starting cloud and edge"):
        await pair.__aenter__()
    try:
        async with AsyncClient(pair.url) as client:
            story = Story(pair, client, options.tokens)
            await _tell(story, screen)
            cut = await _cut(story, screen, options)
    finally:
        await pair.__aexit__(None, None, None)
    return _close(story, cut, screen, options)


def _console(options: DemoOptions) -> Console:
    """The story goes to stdout; with --json it goes to stderr."""
    return Console(
        stderr=options.json,
        record=options.svg is not None,
        width=WIDTH if options.svg is not None else None,
        highlight=False,
    )


async def _tell(story: Story, screen: Screen) -> None:
    """All prompts under all placements, in turn, so that no placement has the better moment."""
    screen.legend()
    for number, (prompt, _) in enumerate(PROMPTS):
        for mode in MODES:
            with screen.console.status(f"prompt {number + 1}, placement {mode}"):
                ride = await story.ride(number, mode)
            if mode == "draft":
                screen.answer(prompt, ride, mode)
    screen.table({mode: story.figures(mode) for mode in MODES})
    screen.identity(identical=story.identical())


async def _cut(story: Story, screen: Screen, options: DemoOptions) -> Cut:
    typist = Typist(screen.console)
    screen.console.print("[bold]Now the link breaks[/] while an answer is under way:\n")
    typist.begin(CUT_PROMPT)
    cut = await story.cut(typist)
    screen.cut(cut, options.patience_s)
    return cut


def _close(story: Story, cut: Cut, screen: Screen, options: DemoOptions) -> int:
    if options.svg is not None:
        screen.console.save_svg(str(options.svg), title="outrider demo")
    if options.json:
        sys.stdout.write(json.dumps(report(story, cut)) + "\n")
    kept = story.identical() and cut.identical and cut.lost == 0 and cut.doubled == 0
    return 0 if kept else 1


def report(story: Story, cut: Cut) -> dict[str, Any]:
    """What `--json` prints."""
    return {
        "schema": 1,
        "modes": {mode: _figures(story, mode) for mode in MODES},
        "identical": story.identical(),
        "cut": {
            "lost": cut.lost,
            "doubled": cut.doubled,
            "identical": cut.identical,
            "local_tokens": cut.local_tokens,
            "retracted": cut.retracted,
            "committed_before": cut.committed_before,
            "plain_client_mixed_from": cut.fork_from,
        },
    }


def _figures(story: Story, mode: Mode) -> dict[str, float]:
    return {name: round(value, 4) for name, value in asdict(story.figures(mode)).items()}
