"""Changing `config.toml` without losing a comment: one key, or one link."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from outrider import paths
from outrider.config.file import ConfigFile, where
from outrider.config.keys import LINK, SCHEMA, SECTIONS, Key, keys
from outrider.config.layers import Layers
from outrider.config.template import toml
from outrider.config.values import Wrong, of_text, plain
from outrider.errors import ConfigError, NotFound

if TYPE_CHECKING:
    from tomlkit.items import Table


def key_of(dotted: str) -> tuple[Key, str]:
    """The key and the section it stands in: `edge.patience_s`, `link.NAME.url`.

    Raises ConfigError naming the nearest.
    """
    from difflib import get_close_matches

    section, _, name = dotted.rpartition(".")
    head, _, link = section.partition(".")
    if head == LINK and link and name in keys(LINK):
        return keys(LINK)[name], section
    if section in SECTIONS and name in keys(section):
        return keys(section)[name], section
    every = [key.dotted for one in SECTIONS for key in keys(one).values()]
    close = get_close_matches(dotted, every, 1) or [d for d in every if d.endswith(f".{dotted}")]
    raise ConfigError(
        f"there is no key {dotted!r}",
        effect="nothing was written",
        todo=f"did you mean {close[0]!r}?" if close else "outrider config schema lists them",
    )


def put(path: Path, dotted: str, text: str) -> Key:
    """Set one key from what was typed. Raises ConfigError; then the file is as it was."""
    key, section = key_of(dotted)
    try:
        value = plain(of_text(key, text))
    except Wrong as error:
        raise ConfigError(
            f"{text!r} is not {error}",
            why=key.help,
            effect="nothing was written",
            todo=f"outrider config set {dotted} VALUE",
        ) from None
    _write(path, with_value(_text(path), section, key.name, value))
    return key


def with_value(text: str, section: str, name: str, value: object) -> str:
    """The text with one value more, or another one: in place, else below its commented default,
    else at the end of its section."""
    line = f"{name} = {toml(value)}"
    if f"{section}.{name}" in where(text):
        return _replaced(text, section, name, value)
    head = where(text).get(section)
    if head is None:
        return f"{text.rstrip()}\n\n[{section}]\n{line}\n"
    lines = text.splitlines()
    at = _commented(lines, head, name)
    return "\n".join([*lines[:at], line, *lines[at:]]) + "\n"


def _commented(lines: list[str], head: int, name: str) -> int:
    """The number of lines that stay above: through the commented default, or the section's last
    line that is not empty."""
    mark = re.compile(rf"#\s*{re.escape(name)}\s*=")
    last = head
    for number in range(head, len(lines)):
        if lines[number].lstrip().startswith("["):
            break
        if mark.match(lines[number]):
            return number + 1
        if lines[number].strip() and not lines[number].startswith("#"):
            last = number + 1
    return last


def _replaced(text: str, section: str, name: str, value: object) -> str:
    import tomlkit

    document = tomlkit.parse(text)
    table = cast("Table", _table(document, section))
    table[name] = cast(Any, value)
    return tomlkit.dumps(document)


def _table(document: Any, section: str) -> Any:
    for part in section.split("."):
        document = document[part]
    return document


def take_away(path: Path, dotted: str) -> bool:
    """Back to the default; whether there was anything to take away."""
    import tomlkit

    key, section = key_of(dotted)
    text = _text(path)
    if f"{section}.{key.name}" not in where(text):
        return False
    document = tomlkit.parse(text)
    del _table(document, section)[key.name]
    _write(path, tomlkit.dumps(document))
    return True


# --- links -------------------------------------------------------------------------------------

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,40}")


def add_link(path: Path, name: str, fields: Mapping[str, object]) -> None:
    """Write `[link.NAME]`. Raises ConfigError: a name that is none, or is taken."""
    check_name(path, name)
    body = "\n".join(f"{key} = {toml(plain(value))}" for key, value in fields.items())
    _write(path, f"{_text(path).rstrip()}\n\n[link.{name}]\n{body}\n")


def check_name(path: Path, name: str) -> None:
    """Raises ConfigError for a name that is none, or is taken."""
    if not NAME.fullmatch(name):
        raise ConfigError(
            f"{name!r} can not name a link", effect="nothing was written", todo="letters and digits"
        )
    text = _text(path)
    if name in ConfigFile.parse(path, text.encode()).values.get(LINK, {}):
        raise ConfigError(
            f"there is a link {name!r} already",
            effect="nothing was written",
            todo=f"outrider link rm {name}, or choose another name",
        )


def remove_link(path: Path, name: str) -> None:
    """Raises NotFound."""
    import tomlkit

    text = _text(path)
    document: Any = tomlkit.parse(text)
    if name not in document.get(LINK, {}):
        raise NotFound(
            f"there is no link {name!r}", effect="nothing was written", todo="outrider link ls"
        )
    del document[LINK][name]
    _write(path, tomlkit.dumps(document))


# --- the file ----------------------------------------------------------------------------------


def _text(path: Path) -> str:
    """What is there, or the least that a file must say."""
    try:
        return path.read_text("utf-8")
    except FileNotFoundError:
        return f"schema = {SCHEMA}\n"


def _write(path: Path, text: str) -> None:
    """Only what can be read back without a fault. Raises ConfigError."""
    file = ConfigFile.parse(path, text.encode())
    for trouble in Layers(file).troubles():
        raise ConfigError(
            trouble.what, why=trouble.why, effect="nothing was written", todo=trouble.todo
        )
    # A link to the file is followed: the file itself is what changes.
    paths.write_atomically(Path(os.path.realpath(path)), text.encode())
