"""What `outrider top` can be told."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import tzinfo
from pathlib import Path
from typing import Literal

from outrider.errors import ConfigError
from outrider.tui.look import PAGES

ThemeName = Literal["dark", "light", "ansi"]
PageName = Literal["overview", "split", "requests", "decisions", "links", "logs"]


@dataclass(frozen=True, slots=True)
class TopOptions:
    readonly: bool = False
    """Nothing is pinned from here."""
    ascii: bool = False
    theme: ThemeName = "dark"
    page: PageName = "overview"
    """The first screen."""
    record: Path | None = None
    """Write every event that comes."""
    speed: float = 1.0
    """Of a replay."""
    zone: tzinfo | None = None
    """Of times of day; None for this machine's."""
    every_s: float | None = 0.5
    """Between two looks at the feed; None looks only when told to."""

    def __post_init__(self) -> None:
        if self.page not in PAGES:
            raise ConfigError(
                f"there is no screen {self.page!r}", todo=f"one of {', '.join(PAGES)}"
            )
        if not 0 < self.speed <= 1000:
            raise ConfigError("--speed lies above 0 and up to 1000")
