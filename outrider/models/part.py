"""A folder that holds some layers of a model: of which model, as its whole digest names it.

Whoever wrote the note vouches for it: what lies beside was checked file by file against the
digests that a coordinator named, since the whole model's can not be computed from a part.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path

NOTE = "outrider-part.json"
FORMAT = 1
MAX_NOTE = 4096


@dataclass(frozen=True, slots=True)
class Part:
    """What a folder's note says."""

    digest: str
    """Hex SHA-256 of the whole model, as `ModelFiles.digest`."""
    name: str
    """Of the model, for people."""


def read(folder: Path) -> Part | None:
    """None for a folder without a note, or with one that can not be read: then what lies there
    is a model of its own."""
    path = folder / NOTE
    try:
        if not path.is_file() or path.stat().st_size > MAX_NOTE:
            return None
        fields = json.loads(path.read_text(encoding="utf-8"))
        sound = fields["format"] == FORMAT and re.fullmatch(r"[0-9a-f]{64}", fields["digest"])
        return Part(fields["digest"], str(fields["name"])) if sound else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def write(folder: Path, part: Part) -> None:
    """Raises OSError."""
    text = json.dumps({"format": FORMAT, **asdict(part)})
    (folder / NOTE).write_text(text, encoding="utf-8")
