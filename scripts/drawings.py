"""The drawings of the manual: made of what the code says, and of a ride that was recorded."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from house import ROOT

from outrider.protocol import events, recording

RIDE = ROOT / "docs" / "drawings" / "ride.jsonl"
"""One answer of the bundled pair over a link of 24 ms, as the daemon told it."""
WIDTH, LEFT, RIGHT = 860, 70, 20
STYLE = (
    "text{font:12px sans-serif;fill:#555}line,path{stroke-width:1.5;fill:none}"
    ".axis{stroke:#888}.hint{stroke:#3b7dd8}.commit{stroke:#2a9d55}.fix{stroke:#d08a1e}"
    ".grid{stroke:#8884;stroke-width:1}"
)


def svg(height: int, title: str, body: list[str]) -> str:
    """A drawing that is legible on light and on dark."""
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img">'
    return "\n".join([head, f"<title>{title}</title><style>{STYLE}</style>", *body, "</svg>", ""])


def text(x: float, y: float, said: str, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{said}</text>'


def line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def ride(path: Path = RIDE, rtt_ms: float = 24.0) -> str:
    """Hints up and commits down over time: device above, cloud below."""
    told = list(recording.read(path))
    begin = next(event.t_ms for event in told if isinstance(event, events.RequestStarted))
    end = max(event.t_ms for event in told) - begin
    top, bottom, half = 60.0, 190.0, rtt_ms / 2

    def x(t_ms: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * max(0.0, min(1.0, t_ms / end))

    body = [line(LEFT, y, WIDTH - RIGHT, y, "axis") for y in (top, bottom)]
    body += [text(8, top + 4, "device"), text(8, bottom + 4, "cloud")]
    for event in told:
        at = event.t_ms - begin
        if isinstance(event, events.HintSent):
            body.append(line(x(at), top, x(at + half), bottom, "hint"))
            body.append(text(x(at), top - 8, str(event.tokens), "middle"))
        elif isinstance(event, events.CommitReceived):
            kind = "commit" if event.from_hints else "fix"
            body.append(line(x(at - half), bottom, x(at), top, kind))
            said = f"{event.tokens}" if not event.from_hints else f"{event.from_hints}+1"
            body.append(text(x(at - half), bottom + 18, said, "middle"))
    for step in range(0, int(end) + 1, 100):
        body.append(line(x(step), top - 24, x(step), bottom + 28, "grid"))
        body.append(text(x(step), bottom + 44, f"{step} ms", "middle"))
    body.append(text(LEFT, 20, "blue: a hint, with its tokens; green: a commit, drafts that held"))
    body.append(text(LEFT, 36, "plus the target's own; amber: the target alone"))
    return svg(250, "One answer: hints up, commits down", body)


def reach() -> str:
    """With what chance a hint still lives when it arrives at a target that does not wait."""
    top, bottom, most = 30.0, 220.0, 12.0

    def point(lead: float, chance: float) -> str:
        across = LEFT + (WIDTH - LEFT - 120) * lead / most
        return f"{across:.1f},{bottom - (bottom - top) * chance:.1f}"

    body = []
    for tenth in range(0, 11, 2):
        y = bottom - (bottom - top) * tenth / 10
        body += [
            line(LEFT, y, WIDTH - 120, y, "grid"),
            text(LEFT - 8, y + 4, f"{tenth / 10}", "end"),
        ]
    for kind, acceptance in (("commit", 0.95), ("hint", 0.8), ("fix", 0.6)):
        points = " L".join(point(n / 10, acceptance ** (n / 10)) for n in range(int(most * 10) + 1))
        body.append(f'<path class="{kind}" d="M{points}"/>')
        end = point(most, acceptance**most).split(",")
        body.append(text(float(end[0]) + 6, float(end[1]) + 4, f"acceptance {acceptance}"))
    for lead in range(0, int(most) + 1, 2):
        across = float(point(lead, 0.0).split(",")[0])
        body.append(text(across, bottom + 18, str(lead), "middle"))
    body.append(text(WIDTH / 2, bottom + 38, "round trip / time of a target step", "middle"))
    return svg(270, "How long a hint lives: acceptance to the power of round trip over step", body)


def states() -> str:
    """The session's state machine, from the table that both ends run."""
    from outrider.protocol.state import TRANSITIONS, Role

    lines = []
    for state, ways in TRANSITIONS.items():
        said: dict[str, list[str]] = {}
        for (sender, kind), target in ways.items():
            arrow = "up" if sender is Role.EDGE else "down"
            said.setdefault(target.name, []).append(f"{kind.__name__} {arrow}")
        lines += [f"{state.name:9} --{', '.join(words)}--> {name}" for name, words in said.items()]
    return "```text\n" + "\n".join(lines) + "\n```\n"


def layers() -> str:
    """Who may import whom, from the contract that scripts/layers keeps."""
    contract = (ROOT / ".importlinter").read_text("utf-8")
    found = re.search(r"^layers =\n((?:    .*\n)+)", contract, re.M)
    assert found is not None
    rows = [re.sub(r"[()]", "", row).strip() for row in found[1].splitlines()]
    drawn = [re.sub(r" : ", " · ", row).replace("|", "│") for row in rows]
    wide = max(map(len, drawn)) + 2
    edge = "+" + "-" * wide + "+"
    inner = [f"| {row:<{wide - 1}}|" for row in drawn]
    return "```text\n" + "\n".join([edge, *(r for row in inner for r in (row, edge))]) + "\n```\n"


DRAWINGS: dict[str, Callable[[], str]] = {"drawings/ride.svg": ride, "drawings/reach.svg": reach}
"""File below docs/ to what draws it."""
