"""Drawings of a comparison, as SVG. matplotlib is asked for only here."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from outrider.errors import EngineMissing
from outrider.partitioner.sim.result import Outcome, Slo, Summary


def draw(outcomes: Sequence[Outcome], rows: Sequence[Summary], slo: Slo, path: Path) -> None:
    """Latency, time to first token, joules and shares by policy. Raises EngineMissing, OSError."""
    figure, axes = _sheet()
    for outcome in outcomes:
        _spread(axes[0][0], [one.latency_s for one in outcome.served], outcome.policy)
        _spread(axes[0][1], [one.ttft_s * 1e3 for one in outcome.served], outcome.policy)
        _arrivals(axes[1][0], outcome)
    axes[0][0].set(xlabel="seconds an answer", ylabel="share of answers", xscale="log")
    axes[0][1].set(xlabel="ms to the first token", ylabel="share of answers", xscale="log")
    for axis in axes[0]:
        axis.xaxis.set_major_formatter("{x:g}")
        axis.xaxis.set_minor_formatter("")
    axes[0][1].axvline(slo.ttft_ms, color="0.6", linestyle=":")
    axes[1][0].set(xlabel="minutes", ylabel="tokens a second")
    _energy(axes[1][1], rows)
    axes[0][0].legend()
    figure.tight_layout()
    figure.savefig(path, format="svg", metadata={"Date": None})


def _sheet() -> tuple[Any, Any]:
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        missing = EngineMissing("matplotlib", "bench")
        missing.what = "package 'matplotlib' is not installed"
        missing.why = "`outrider sim --plot` draws with it"
        missing.effect = "nothing was drawn"
        raise missing from None
    # The same figures give the same file.
    matplotlib.rcParams["svg.hashsalt"] = "outrider"
    figure = Figure(figsize=(10, 7))
    return figure, figure.subplots(2, 2)


def _spread(axis: Any, values: Sequence[float], name: str) -> None:
    ordered = np.sort(np.asarray(values))
    if len(ordered):
        axis.plot(ordered, np.arange(1, len(ordered) + 1) / len(ordered), label=name)


def _arrivals(axis: Any, outcome: Outcome) -> None:
    """Tokens by the minute in which their answer ended."""
    ends = np.array([one.at_s + one.latency_s for one in outcome.served]) / 60.0
    tokens = np.array([one.tokens for one in outcome.served], dtype=float)
    if len(ends):
        edges = np.arange(0.0, ends.max() + 2.0)
        heights, _ = np.histogram(ends, bins=edges, weights=tokens / 60.0)
        axis.plot(edges[:-1], heights, label=outcome.policy)


def _energy(axis: Any, rows: Sequence[Summary]) -> None:
    names = [row.policy for row in rows]
    below = np.zeros(len(rows))
    for part in ("cloud_j", "device_j", "radio_j"):
        heights = np.array([getattr(row, part) / max(1, row.tokens) for row in rows])
        axis.bar(names, heights, bottom=below, label=part.removesuffix("_j"))
        below += heights
    axis.set(ylabel="joules a token")
    axis.legend()
