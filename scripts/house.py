"""Where things are, for the scripts beside this file. Standard library only."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
STAMPS = ROOT / ".venv" / ".stamps"
IN_CI = os.environ.get("CI", "").lower() not in ("", "0", "false")


def tools() -> Path:
    """The folder of the environment's commands: the active one, else the project's `.venv`."""
    return Path(sys.prefix if sys.prefix != sys.base_prefix else ROOT / ".venv") / "bin"


def python() -> str:
    """The environment's interpreter."""
    return str(tools() / "python")


def capture(command: Sequence[str], **settings: str) -> subprocess.CompletedProcess[str]:
    """Run in the repository root, `settings` added to the environment; output kept as text."""
    return subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, **settings},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
