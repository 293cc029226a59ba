"""The benches of a source checkout: they lie beside the package, and are not in the wheel."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import outrider
from outrider.errors import ConfigError, NotFound


def folder(package: Path | None = None) -> Path:
    """`bench/` of the checkout. Raises ConfigError where the package is installed without it."""
    root = (package or Path(outrider.__file__)).resolve().parent.parent
    found = root / "bench"
    if not (found / "harness.py").is_file():
        raise ConfigError(
            "there are no benches here",
            why="they belong to the source checkout, and this is an installed package",
            effect="nothing was measured",
            todo="clone the repository, `make setup`, and run it from there",
        )
    return found


def names() -> tuple[str, ...]:
    """Benches by name."""
    found: tuple[str, ...] = _harness().names()
    return found


def run(name: str, arguments: Sequence[str] = ()) -> int:
    """Run one in this process; `arguments` are those of `python -m bench.NAME`."""
    harness = _harness()
    known = harness.names()
    if name not in known:
        raise NotFound(f"there is no bench {name!r}", todo=f"one of {', '.join(known)}")
    status: int = harness.main(name, harness.load(name), list(arguments))
    return status


def _harness() -> ModuleType:
    """Found by the folder's parent, at the end of the path: names there hide nothing."""
    root = str(folder().parent)
    if root not in sys.path:
        sys.path.append(root)
    return importlib.import_module("bench.harness")
