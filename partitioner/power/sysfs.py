"""Files of /sys and /proc under a root that tests replace."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from outrider.partitioner.power.reading import SensorError

_LONGEST = 4096
"""Characters of an attribute; the kernel gives a page at most."""


@dataclass(frozen=True, slots=True)
class Tree:
    """Paths are given as on the machine (`sys/class/...`)."""

    root: Path = Path("/")

    def folders(self, pattern: str) -> Iterator[str]:
        """Folders that match, in the order of their numbers."""
        found = [path for path in self.root.glob(pattern) if path.is_dir()]
        for path in sorted(found, key=_order):
            yield str(path.relative_to(self.root))

    def text(self, path: str) -> str | None:
        """An attribute without the newline; None when it is not there, or has no value now.

        Raises SensorError when it may not be read.
        """
        try:
            with (self.root / path).open("rb") as file:
                data = file.read(_LONGEST)
        except PermissionError:
            raise SensorError(
                f"/{path} can not be read",
                why="only some users may read it",
                effect="it is left out of the power readings",
                todo=f"let your user's group read /{path}, by a udev rule or chmod at start-up",
            ) from None
        except OSError:
            # Missing, or the driver has nothing to say (ENODATA, EINVAL, ENODEV).
            return None
        return data.decode("utf-8", "replace").strip("\0 \n\t")

    def number(self, path: str, low: float, high: float) -> float | None:
        """A number within its bounds. Raises SensorError for text, and beyond the bounds."""
        text = self.text(path)
        if text is None:
            return None
        try:
            value = float(text)
        except ValueError:
            raise nonsense(path, text) from None
        if not low <= value <= high:
            raise nonsense(path, text)
        return value


def nonsense(path: str, text: str) -> SensorError:
    """A value that no sensor of this kind can have."""
    return SensorError(
        f"/{path} says {text[:40]!r}",
        why="that is no value it could have",
        effect="it is left out of the power readings",
    )


def _order(path: Path) -> list[tuple[int, str]]:
    parts = re.split(r"(\d+)", path.name)
    return [(int(part), "") if part.isdigit() else (-1, part) for part in parts]
