"""Plans, and the devices they are made for, as JSON: written, and read back."""

from __future__ import annotations

import json
from typing import Any, TypeVar

import msgspec

from outrider.errors import InvalidProfile, PlanError
from outrider.partitioner.device import DeviceProfile, LinkProfile
from outrider.partitioner.plan import SCHEMA, Plan


class Fleet(msgspec.Struct, frozen=True):
    """A file of devices: `home` is where prompts are; without it the first device is."""

    schema: int
    devices: tuple[DeviceProfile, ...]
    links: tuple[LinkProfile, ...] = ()
    home: str | None = None


FLEET_SCHEMA = 1
Kind = TypeVar("Kind", Plan, Fleet)


def write_plan(plan: Plan) -> bytes:
    """One JSON object with `schema`."""
    return msgspec.json.encode(plan)


def read_plan(data: bytes) -> Plan:
    """Raises PlanError for what is no plan, or one of a newer version."""
    try:
        return _read(data, Plan, SCHEMA)
    except (ValueError, TypeError, RecursionError) as error:
        raise PlanError(
            "this is no plan that can be read",
            why=_first(error),
            effect="it was not used",
            todo="outrider plan MODEL --json writes one under the key plan",
        ) from None


def write_fleet(fleet: Fleet) -> bytes:
    return msgspec.json.format(msgspec.json.encode(fleet), indent=1)


def read_fleet(data: bytes, name: str = "the devices file") -> Fleet:
    """Raises InvalidProfile; numbers are not judged here (see `outrider.partitioner.check`)."""
    try:
        return _read(data, Fleet, FLEET_SCHEMA)
    except (ValueError, TypeError, RecursionError) as error:
        raise InvalidProfile(
            f"{name} can not be read",
            why=_first(error),
            effect="nothing was planned",
            todo="an object with schema, devices and links, see docs/partitioner.md",
        ) from None


def _first(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _read(data: bytes, kind: type[Kind], schema: int) -> Kind:
    """Python's JSON, so that NaN and infinity are read, and then refused by name."""
    fields: Any = json.loads(data)
    found = fields.get("schema") if isinstance(fields, dict) else None
    if found != schema:
        raise ValueError(f"its schema is {found!r}, this version reads {schema}")
    return msgspec.convert(fields, kind)
