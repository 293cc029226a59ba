"""What is on the screen as a command line: `outrider plan` under today's conditions. Pure."""

from __future__ import annotations

import shlex

from outrider.tui.state import State

BUNDLED = "outrider-"


def command(state: State) -> str:
    """Plans the target over this machine and the measured link; `shape:NAME` stands where the
    model's files lie elsewhere."""
    gauge, link = state.gauge, state.link
    name = gauge.model if gauge is not None else ""
    words = ["outrider", "plan", _model(name)]
    changes = []
    if link is not None and link.now.rtt_ms is not None:
        changes.append(f"rtt={link.now.rtt_ms:.3g}ms")
    if link is not None and link.now.up_bytes_per_s:
        changes.append(f"bw={link.now.up_bytes_per_s * 8 / 1e6:.3g}M")
    if changes:
        words += ["--what-if", ",".join(changes)]
    return shlex.join(words)


def _model(name: str) -> str:
    if not name:
        return "bundled:target"
    kind = name.removeprefix(BUNDLED)
    bundled = name.startswith(BUNDLED) and kind in ("target", "draft")
    return f"bundled:{kind}" if bundled else f"shape:{name}"
