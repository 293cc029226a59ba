"""The commented `config.toml` of `outrider config init`, made from the options themselves."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator

import msgspec

from outrider.config.keys import LINK, SCHEMA, SECTIONS, Key, keys
from outrider.config.values import bare, expected, plain

WIDTH = 96
OPENING = f"""\
# Settings of Outrider. A flag goes before an environment variable, that before this file, and
# this file before the default. Each key stands here with its default: take the # away to change
# it. `outrider config show --origin` tells what is in force, and where it is from;
# `outrider config reload` gives a running daemon what changed. Keys marked "restart" wait for
# the next start.
schema = {SCHEMA}
"""
MEANT = {
    "edge": "The daemon: outrider edge, outrider up.",
    "cloud": "The committer: outrider cloud, outrider up --cloud.",
    "worker": "Holds layers of a split model: outrider worker.",
}
LINKS = """
# Clouds by name; outrider link add NAME HOST:PORT writes one, outrider link test NAME tries it.
# [link.NAME]
"""


def template() -> str:
    """All keys, commented out; what is left is the format alone."""
    parts = [OPENING]
    for section in SECTIONS:
        parts.append(f"\n# {MEANT[section]}\n[{section}]\n")
        parts.extend(entry(key) for key in keys(section).values())
    parts.append(LINKS)
    parts.extend(entry(key) for key in keys(LINK).values())
    return "".join(parts)


def entry(key: Key) -> str:
    """What it means, and its default."""
    text = f"{key.help}{'' if key.live else ' (restart)'}".strip()
    lines = [f"# {line}" for line in textwrap.wrap(text, WIDTH)]
    return "\n".join([*lines, f"# {assignment(key)}"]) + "\n"


def assignment(key: Key) -> str:
    """`name = default`; of a key without a default what it takes."""
    if key.default is None:
        return f"{key.name} =   # not set; takes {expected(bare(key.type), key)}"
    return f"{key.name} = {toml(plain(key.default))}"


def toml(value: object) -> str:
    """A value as TOML writes it: for the plain values of settings JSON's form is the same."""
    return "".join(_toml(value))


def _toml(value: object) -> Iterator[str]:
    if isinstance(value, list):
        yield "[" + ", ".join(toml(one) for one in value) + "]"
    else:
        yield msgspec.json.encode(value).decode()
