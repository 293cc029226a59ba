"""The keys of `config.toml`: the fields of the options, and what the code says of each."""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, get_type_hints

from outrider import options
from outrider.options import (
    CLOUD_PORT,
    WORKER_PORT,
    Address,
    CloudLink,
    CloudOptions,
    EdgeOptions,
    WorkerOptions,
)

SCHEMA = 1
"""Of the file; rises when a key changes meaning."""

SECTIONS: Mapping[str, type] = {
    "edge": EdgeOptions,
    "cloud": CloudOptions,
    "worker": WorkerOptions,
}
LINK = "link"
"""`[link.NAME]`: any number, each with the fields of `CloudLink`."""

SECRET = {
    "cloud_api_key": "OUTRIDER_CLOUD_API_KEY",
    "join_api_key": "OUTRIDER_CLOUD_API_KEY",
    "workers_api_key": "OUTRIDER_WORKERS_API_KEY",
}
"""Fields that are keys of doors, to the variable they come from."""
INNER = frozenset({*SECRET, "links", "reread", "ready_file", "name"})
"""Fields that are no keys of a file: secrets, what is derived, and what one start is told."""
KEPT_NAMES = frozenset({("worker", "name")})

FLAGS: Mapping[str, Mapping[str, str]] = {
    "edge": {
        "clouds": "cloud",
        "patience_s": "patience",
        "allowed_hosts": "allow_host",
        "keep_alive_s": "keep_alive",
    },
    "cloud": {
        "models": "model",
        "session_ttl_s": "session_ttl",
        "drain_s": "drain",
        "keep_alive_s": "keep_alive",
    },
    "worker": {"models": "model", "memory_bytes": "memory", "drain_s": "drain"},
}
"""Where a flag has another name than the field."""

LIVE: Mapping[str, frozenset[str]] = {
    "edge": frozenset(
        {
            "allowed_hosts",
            "battery_floor",
            "cloud_api_key",
            "cloud_ca",
            "cloud_cert",
            "cloud_key",
            "clouds",
            "fallback",
            "hint_depth",
            "keep_alive_s",
            "links",
            "log_level",
            "max_queue",
            "patience_s",
            "placement",
            "power",
            "redact",
            "share",
            "watt_cap",
        }
    ),
    "cloud": frozenset({"drain_s", "log_level", "models"}),
    "worker": frozenset(),
}
"""What a running server takes without a restart."""

PORTS: Mapping[tuple[str, str], int] = {
    ("edge", "clouds"): CLOUD_PORT,
    (LINK, "url"): CLOUD_PORT,
}
"""Of addresses that name none, and have no default that does; all others are workers'."""


@dataclass(frozen=True, slots=True)
class Key:
    """One key of a section: `type` and `default` are those of the field."""

    section: str
    name: str
    type: Any = field(compare=False)
    default: object = field(compare=False)
    help: str = field(compare=False)

    @property
    def dotted(self) -> str:
        return f"{self.section}.{self.name}"

    @property
    def flag(self) -> str:
        """The parameter of the verb that sets the same."""
        return FLAGS.get(self.section, {}).get(self.name, self.name)

    @property
    def variable(self) -> str:
        """The environment variable that sets the same."""
        return f"OUTRIDER_{self.section.upper()}__{self.name.upper()}"

    @property
    def live(self) -> bool:
        """Whether a running server takes it without a restart."""
        return self.section == LINK or self.name in LIVE[self.section]

    @property
    def port(self) -> int:
        if isinstance(self.default, Address):
            return self.default.port
        return PORTS.get((self.section, self.name), WORKER_PORT)


@functools.cache
def keys(section: str) -> Mapping[str, Key]:
    """Of `edge`, `cloud`, `worker` or `link`, in the order of the code. Raises KeyError."""
    kind = CloudLink if section == LINK else SECTIONS[section]
    return of(kind, section, options)


def of(kind: type, section: str, home: ModuleType) -> Mapping[str, Key]:
    """The keys that a dataclass makes; `home` is the module it is written in."""
    types = get_type_hints(kind)
    said = documented(home).get(kind.__name__, {})
    found = {}
    for each in dataclasses.fields(kind):
        if each.name in INNER and (section, each.name) not in KEPT_NAMES:
            continue
        default = None if each.default is dataclasses.MISSING else each.default
        text = said.get(each.name, "")
        found[each.name] = Key(section, each.name, types[each.name], default, text)
    return found


@functools.cache
def documented(home: ModuleType) -> Mapping[str, Mapping[str, str]]:
    """Class to field to the string below the field, which Python itself throws away."""
    tree = ast.parse(inspect.getsource(home))
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    return {one.name: _strings(one) for one in classes}


def _strings(one: ast.ClassDef) -> Mapping[str, str]:
    found = {}
    for before, after in zip(one.body, one.body[1:], strict=False):
        if isinstance(before, ast.AnnAssign) and isinstance(before.target, ast.Name):
            text = _text(after)
            if text:
                found[before.target.id] = text
    return found


def _text(node: ast.stmt) -> str:
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
        return " ".join(str(node.value.value).split())
    return ""
