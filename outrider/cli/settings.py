"""From the flags of a verb to a server's options: flag, environment, file, default."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from outrider import paths
from outrider.cli import everywhere
from outrider.config.keys import keys
from outrider.config.layers import Layers, with_reread
from outrider.options import WorkerOptions

T = TypeVar("T")


def settle(kind: type[T], section: str, flags: Mapping[str, Any]) -> T:
    """`flags` are values by field. The options can be read anew. Raises ConfigError."""
    path, typed = paths.config_file(), everywhere.given()
    given = frozenset(key.flag for key in keys(section).values()) if typed is None else typed

    def read() -> T:
        options = Layers.load(path).settle(kind, section, flags, given)
        return options if kind is WorkerOptions else with_reread(options, read)

    return read()
