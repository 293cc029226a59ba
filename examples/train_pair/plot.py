"""A loss curve as SVG, drawn without a plotting library."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence

WIDTH, HEIGHT, MARGIN = 720, 360, 48
COLOURS = ("#1f6feb", "#d1242f", "#1a7f37", "#8250df")


def smoothed(losses: Sequence[float], weight: float = 0.9) -> list[float]:
    """Exponential mean, corrected for its start."""
    total, norm, out = 0.0, 0.0, []
    for loss in losses:
        total, norm = weight * total + (1 - weight) * loss, weight * norm + (1 - weight)
        out.append(total / norm)
    return out


def loss_plot(curves: Mapping[str, Sequence[float]]) -> str:
    """The SVG text of one smoothed line per named curve; the abscissa is the share of steps."""
    lines = {name: smoothed(losses) for name, losses in curves.items() if losses}
    values = [value for line in lines.values() for value in line] or [0.0, 1.0]
    low, high = min(values), max(values)
    body = [_text(MARGIN, 20, "loss (nats a token), smoothed"), _axes(low, high)]
    for index, (name, line) in enumerate(lines.items()):
        colour = COLOURS[index % len(COLOURS)]
        body.append(_polyline(line, low, high, colour))
        label = f"{name}: {line[-1]:.3f} after {len(line)} steps"
        body.append(_text(WIDTH - 280, 40 + 18 * index, label, colour))
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}">'
    return "\n".join([head, '<rect width="100%" height="100%" fill="white"/>', *body, "</svg>", ""])


def _text(x: float, y: float, text: str, colour: str = "#333") -> str:
    style = f'fill="{colour}" font-family="sans-serif" font-size="12"'
    return f'<text x="{x:.1f}" y="{y:.1f}" {style}>{html.escape(text)}</text>'


def _height(value: float, low: float, high: float) -> float:
    share = (value - low) / (high - low) if high > low else 0.5
    return HEIGHT - MARGIN - share * (HEIGHT - 2 * MARGIN)


def _axes(low: float, high: float) -> str:
    parts = []
    for tick in range(5):
        value = low + (high - low) * tick / 4
        y = _height(value, low, high)
        line = f'x1="{MARGIN}" x2="{WIDTH - MARGIN}" y1="{y:.1f}" y2="{y:.1f}"'
        parts.append(f'<line {line} stroke="#ddd"/>' + _text(8, y + 4, f"{value:.2f}"))
    return "\n".join(parts)


def _polyline(line: Sequence[float], low: float, high: float, colour: str) -> str:
    stride = max(1, len(line) // 600)
    width = WIDTH - 2 * MARGIN
    points = (
        f"{MARGIN + width * i / max(1, len(line) - 1):.1f},{_height(line[i], low, high):.1f}"
        for i in range(0, len(line), stride)
    )
    return f'<polyline fill="none" stroke="{colour}" points="{" ".join(points)}"/>'
