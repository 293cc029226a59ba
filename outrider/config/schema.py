"""JSON Schema of `config.toml`, for editors and checks."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from outrider.config.keys import LINK, SCHEMA, SECTIONS, Key, keys
from outrider.config.values import bare, expected, plain
from outrider.options import Address, NamedModel

PLAIN: dict[Any, str] = {
    bool: "boolean",
    int: "integer",
    float: "number",
    str: "string",
    Path: "string",
    Address: "string",
    NamedModel: "string",
}


def schema() -> dict[str, Any]:
    """Draft 2020-12; what it refuses, the daemon refuses too."""
    link = _table(LINK) | {"required": ["url"]}
    sections: dict[str, Any] = {name: _table(name) for name in SECTIONS}
    links = {"type": "object", "additionalProperties": link}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Outrider's config.toml",
        "type": "object",
        "additionalProperties": False,
        "properties": {"schema": {"const": SCHEMA}, **sections, LINK: links},
    }


def _table(section: str) -> dict[str, Any]:
    fields = {key.name: _field(key) for key in keys(section).values()}
    return {"type": "object", "additionalProperties": False, "properties": fields}


def _field(key: Key) -> dict[str, Any]:
    made: dict[str, Any] = {"description": key.help, **_type(bare(key.type), key)}
    if key.default is not None:
        made["default"] = plain(key.default)
    return made


def _type(kind: Any, key: Key) -> dict[str, Any]:
    if get_origin(kind) is tuple:
        return {"type": "array", "items": _type(get_args(kind)[0], key)}
    if get_origin(kind) is Literal:
        return {"enum": list(get_args(kind))}
    if key.name.endswith("_bytes"):
        return {"type": ["integer", "string"], "format": expected(kind, key)}
    made: dict[str, Any] = {"type": PLAIN[kind]}
    if kind in (Address, NamedModel, Path):
        made["format"] = expected(kind, key)
    return made
