"""`config.toml` as it lies there: its values, and the lines they stand in."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from outrider import paths
from outrider.config.keys import SCHEMA
from outrider.errors import ConfigError

HEAD = re.compile(r"\s*\[\s*([^\[\]]+?)\s*\]\s*(?:#.*)?")
ENTRY = re.compile(r"\s*([A-Za-z0-9_.\"'-]+)\s*=")
MOST = 1 << 20
"""Bytes; a longer file is none of settings."""


@dataclass(frozen=True, slots=True)
class ConfigFile:
    """Read once; `values` is section to key to value. A file that is not there says nothing."""

    path: Path
    values: Mapping[str, Any] = field(default_factory=dict)
    lines: Mapping[str, int] = field(default_factory=dict)
    """`section` and `section.key` to the line, from 1."""
    there: bool = False

    @classmethod
    def read(cls, path: Path | None = None) -> ConfigFile:
        """Raises ConfigError: it can not be read, is no TOML, or is of a newer format."""
        place = path or paths.config_file()
        try:
            data = place.read_bytes()[: MOST + 1]
        except FileNotFoundError:
            return cls(place)
        except OSError as error:
            raise _unusable(
                place, error.strerror or "the system refused", "check the rights"
            ) from None
        return cls.parse(place, data)

    @classmethod
    def parse(cls, path: Path, data: bytes) -> ConfigFile:
        """The same from bytes."""
        try:
            if len(data) > MOST:
                raise _unusable(path, "it is larger than 1 MiB", "name another file")
            text = data.decode()
            values = tomllib.loads(text)
        except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            todo = "mend that line, or outrider config init --force"
            raise _unusable(path, str(error), todo) from None
        file = cls(path, values, where(text), there=True)
        file._check_format()
        return file

    def _check_format(self) -> None:
        found = self.values.get("schema", SCHEMA)
        if found != SCHEMA or isinstance(found, bool):
            newer = isinstance(found, int) and found > SCHEMA
            raise ConfigError(
                f"{self.at('schema')} has format {found!r}",
                why=f"this version reads format {SCHEMA}",
                effect="no setting of it was taken",
                todo="update outrider" if newer else f"write schema = {SCHEMA}",
            )

    def at(self, dotted: str) -> str:
        """`FILE:LINE` of a key, or of what it stands in."""
        parts = dotted.split(".")
        for length in range(len(parts), 0, -1):
            line = self.lines.get(".".join(parts[:length]))
            if line is not None:
                return f"{self.path}:{line}"
        return str(self.path)


def where(text: str) -> dict[str, int]:
    """Dotted name to line. Good for telling people; what is in a file, the parser says."""
    found: dict[str, int] = {}
    section = ""
    for number, line in enumerate(text.splitlines(), 1):
        if head := HEAD.fullmatch(line):
            section = _name(head[1])
            found.setdefault(section, number)
        elif entry := ENTRY.match(line):
            name = _name(entry[1])
            found.setdefault(f"{section}.{name}" if section else name, number)
    return found


def _name(text: str) -> str:
    return ".".join(part.strip().strip("\"'") for part in text.split("."))


def _unusable(path: Path, why: str, todo: str) -> ConfigError:
    return ConfigError(
        f"{path} can not be used", why=why, effect="no setting of it was taken", todo=todo
    )
