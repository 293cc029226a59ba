"""`outrider doctor --bundle`: what a report needs, and nothing that must stay here.

No key: settings hold none, variables are told by name alone, and the log is made of events. No
prompt, no answer: neither events nor status hold any.
"""

from __future__ import annotations

import os
import platform
import sys
import zipfile
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

import outrider
from outrider import paths
from outrider.cli.where import Daemon
from outrider.config.keys import SECTIONS
from outrider.config.layers import Layers
from outrider.config.values import plain
from outrider.errors import OutriderError

if TYPE_CHECKING:
    from outrider.cli.health import Check

LINES = 2000
"""Of each log, its last."""


def write(place: Path, checks: Sequence[Check], where: Daemon) -> None:
    """Raises OSError."""
    place.touch(mode=0o600)
    parts = {
        "checks.json": checks,
        "machine.json": machine(),
        "settings.json": settings(),
        "status.json": status(where),
    }
    with zipfile.ZipFile(place, "w", zipfile.ZIP_DEFLATED) as bundle:
        for name, value in parts.items():
            data = msgspec.json.format(msgspec.json.encode(msgspec.to_builtins(value)))
            bundle.writestr(name, data)
        for role in ("edge", "cloud"):
            log = paths.log_file(role)
            if log.is_file():
                bundle.writestr(f"{role}.jsonl", "\n".join(lines(log)))


def lines(log: Path) -> list[str]:
    """Those of ours: what is no JSON was written by somebody else."""
    last = log.read_text("utf-8", "replace").splitlines()[-LINES:]
    return [line for line in last if line.startswith('{"time"')]


def machine() -> dict[str, Any]:
    """Versions, and names of variables; no values."""
    installed = {d.metadata["Name"]: d.version for d in metadata.distributions()}
    return {
        "outrider": outrider.__version__,
        "python": sys.version,
        "platform": platform.platform(),
        "processors": os.cpu_count(),
        "packages": dict(sorted((str(k), v) for k, v in installed.items())),
        "variables": sorted(name for name in os.environ if name.startswith("OUTRIDER_")),
    }


def settings() -> dict[str, Any]:
    """In force, with origins; of a file that can not be used why."""
    try:
        layers = Layers.load()
        return {
            name: {k: [plain(f.value), f.origin] for k, f in layers.section(name).items()}
            for name in SECTIONS
        } | {"links": [link.name for link in layers.links()]}
    except OutriderError as error:
        return {"error": str(error)}


def status(where: Daemon) -> Any:
    """Of the daemon, where one answers."""
    try:
        with where.client() as client:
            return client.status()
    except OutriderError as error:
        return {"error": error.what}
