"""Numbers for people: short, with a unit, and of a width that does not jump."""

from __future__ import annotations

import math
from datetime import datetime, tzinfo

NOTHING = "-"


def ms(value: float | None) -> str:
    """`42 ms`, `4.2 ms`, `1.3 s`."""
    if value is None:
        return NOTHING
    if value >= 10_000:
        return f"{value / 1e3:.0f} s"
    if value >= 1000:
        return f"{value / 1e3:.1f} s"
    return f"{value:.0f} ms" if value >= 9.95 else f"{value:.1f} ms"


def share(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.0%}".replace("%", " %")


def percent(value: float | None) -> str:
    """A small share: `0.3 %`."""
    return NOTHING if value is None else f"{value * 100:.1f} %"


def signed(value: float | None) -> str:
    """`+12 %`: a gain or a margin."""
    if value is None or not math.isfinite(value):
        return NOTHING
    return f"{value:+.0%}".replace("%", " %")


def rate(bytes_per_s: float | None) -> str:
    return NOTHING if bytes_per_s is None else f"{size(bytes_per_s)}/s"


def size(count: float) -> str:
    """`96 B`, `1.2 kB`, `3.4 MB`."""
    if count < 1000:
        return f"{count:.0f} B"
    if count < 1e6:
        return f"{count / 1e3:.1f} kB"
    return f"{count / 1e6:.1f} MB"


def number(value: float | None, unit: str = "", digits: int = 1) -> str:
    if value is None:
        return NOTHING
    return f"{value:.{digits}f} {unit}".rstrip()


def count(value: int) -> str:
    """`999`, `12.3k`, `4.5M`."""
    if value < 10_000:
        return str(value)
    return f"{value / 1e3:.1f}k" if value < 1e6 else f"{value / 1e6:.1f}M"


def span(seconds: float) -> str:
    """`8 s`, `12 min`, `3 h 4 min`, `61 d`."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 100:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours < 48 else f"{hours // 24} d"


def clock(at: float, zone: tzinfo | None = None) -> str:
    """Time of day of a Unix time; this machine's, unless a zone is given."""
    return datetime.fromtimestamp(at, zone).strftime("%H:%M:%S")


def fit(text: str, width: int, ellipsis: str = "…") -> str:
    """Exactly `width` cells, cut with a sign that it was."""
    if len(text) <= width:
        return text.ljust(width)
    if width <= len(ellipsis):
        return text[:width]
    return text[: width - len(ellipsis)] + ellipsis


def wrap(text: str, width: int, lines: int, ellipsis: str = "…") -> list[str]:
    """At most so many lines; the last is cut when there is more."""
    found: list[str] = []
    line = ""
    for word in text.split():
        longer = f"{line} {word}" if line else word
        if len(longer) <= width or not line:
            line = longer
        else:
            found.append(line)
            line = word
    found.append(line)
    if len(found) > lines:
        rest = " ".join(found[lines - 1 :])
        found = [*found[: lines - 1], fit(rest, width, ellipsis).rstrip()]
    return [fit(one, width, ellipsis).rstrip() for one in found]
