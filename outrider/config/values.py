"""From what a file or a variable says to a field's value, and back."""

from __future__ import annotations

import re
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from outrider.config.keys import Key
from outrider.errors import ConfigError
from outrider.options import Address, NamedModel

SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT])?(?:i?B)?", re.IGNORECASE)
UNITS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}
WORDS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


class Wrong(ValueError):
    """A value that does not fit; its text says what is expected."""


def of_file(key: Key, raw: object, folder: Path) -> object:
    """A TOML value; relative paths are relative to the file's folder. Raises Wrong."""
    return _take(bare(key.type), raw, key, folder)


def of_text(key: Key, raw: str) -> object:
    """A variable's text; lists have commas between. Raises Wrong."""
    kind = bare(key.type)
    if get_origin(kind) is tuple:
        return _take(kind, [part.strip() for part in raw.split(",") if part.strip()], key, None)
    return _take(kind, _typed(kind, raw), key, None)


def _typed(kind: Any, raw: str) -> object:
    try:
        if kind is bool:
            return WORDS[raw.strip().lower()]
        if kind in (int, float):
            return kind(raw)
    except (KeyError, ValueError):
        return raw
    return raw


def bare(kind: Any) -> Any:
    """Without its `| None`: what is absent needs no value."""
    if get_origin(kind) in (Union, types.UnionType):
        return next(one for one in get_args(kind) if one is not type(None))
    return kind


def _take(kind: Any, raw: object, key: Key, folder: Path | None) -> object:
    if get_origin(kind) is tuple:
        if not isinstance(raw, list):
            raise Wrong(expected(kind, key))
        return tuple(_take(get_args(kind)[0], one, key, folder) for one in raw)
    if get_origin(kind) is Literal:
        if raw not in get_args(kind):
            raise Wrong(expected(kind, key))
        return raw
    if kind in (Address, NamedModel, Path):
        return _parsed(kind, raw, key, folder)
    if key.name.endswith("_bytes") and isinstance(raw, str):
        return _size(raw, kind, key)
    if kind is float and isinstance(raw, int) and not isinstance(raw, bool):
        return float(raw)
    if type(raw) is not kind:
        raise Wrong(expected(kind, key))
    return raw


def _parsed(kind: Any, raw: object, key: Key, folder: Path | None) -> object:
    if not isinstance(raw, str) or not raw:
        raise Wrong(expected(kind, key))
    if kind is Path:
        path = Path(raw).expanduser()
        return path if folder is None else folder / path
    try:
        if kind is NamedModel:
            return NamedModel.parse(raw)
        return Address.parse(re.sub(r"^grpcs?://", "", raw), key.port)
    except ConfigError:
        raise Wrong(expected(kind, key)) from None


def _size(raw: str, kind: Any, key: Key) -> int:
    match = SIZE.fullmatch(raw.strip())
    if match is None:
        raise Wrong(expected(kind, key))
    return int(float(match[1]) * 1024 ** UNITS[(match[2] or "").upper()])


def expected(kind: Any, key: Key) -> str:
    """In words, such as "a whole number"."""
    if get_origin(kind) is tuple:
        return f"a list, each {expected(get_args(kind)[0], key)}"
    if get_origin(kind) is Literal:
        return f"one of {', '.join(map(str, get_args(kind)))}"
    if key.name.endswith("_bytes"):
        return "bytes, or a size such as 512M"
    named = {
        Address: "an address, HOST:PORT",
        NamedModel: "a model, [NAME=]PATH",
        Path: "a path",
        bool: "true or false",
        int: "a whole number",
        float: "a number",
        str: "text",
    }
    return named[kind]


def plain(value: object) -> Any:
    """What a file or JSON would say; None stays."""
    if isinstance(value, NamedModel):
        return f"{value.name}={value.path}"
    if isinstance(value, Address | Path):
        return str(value)
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [plain(one) for one in value]
    return value
