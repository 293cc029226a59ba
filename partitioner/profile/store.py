"""Where a device's own profile lies, and links it has measured: JSON under the state folder."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import msgspec

from outrider.errors import InvalidProfile, NotFound
from outrider.partitioner.device import DeviceProfile, LinkProfile
from outrider.partitioner.profile.check import check_device, check_link
from outrider.paths import state_dir, write_atomically

SCHEMA = 1
_TODO = "measure again: outrider profile"


class SavedDevice(msgspec.Struct, frozen=True):
    """What the file holds. A newer schema is refused, an older one would be read."""

    schema: int
    device: DeviceProfile


class SavedLinks(msgspec.Struct, frozen=True):
    schema: int
    links: tuple[LinkProfile, ...]


def device_file() -> Path:
    return state_dir() / "device.json"


def links_file() -> Path:
    return state_dir() / "links.json"


def save_device_profile(device: DeviceProfile, path: Path | None = None) -> Path:
    """Raises InvalidProfile for one that makes no sense, before anything is written."""
    place = path or device_file()
    _write(place, SavedDevice(SCHEMA, check_device(device)))
    return place


def load_device_profile(path: Path | None = None) -> DeviceProfile:
    """The saved profile. Raises NotFound without one, InvalidProfile naming what is wrong."""
    place = path or device_file()
    return check_device(_read(place, SavedDevice).device)


def find_device_profile(path: Path | None = None) -> DeviceProfile | None:
    """The same, or None where none was saved."""
    return load_device_profile(path) if (path or device_file()).is_file() else None


def save_link_profile(link: LinkProfile, path: Path | None = None) -> Path:
    """Kept beside others; one between the same two ends is replaced."""
    place = path or links_file()
    ends = (check_link(link).a, link.b)
    others = [old for old in load_link_profiles(place) if (old.a, old.b) != ends]
    _write(place, SavedLinks(SCHEMA, (*others, link)))
    return place


def load_link_profiles(path: Path | None = None) -> tuple[LinkProfile, ...]:
    """Saved ones; none where no file is. Raises InvalidProfile."""
    place = path or links_file()
    if not place.is_file():
        return ()
    return tuple(check_link(link) for link in _read(place, SavedLinks).links)


def slowed(device: DeviceProfile, factor: float) -> DeviceProfile:
    """The profile of a device that is `factor` times slower now."""
    return check_device(replace(device, slowdown=factor))


def _write(path: Path, value: SavedDevice | SavedLinks) -> None:
    data = msgspec.json.format(msgspec.json.encode(value), indent=1)
    write_atomically(path, data + b"\n")


Saved = TypeVar("Saved", SavedDevice, SavedLinks)


def _read(path: Path, kind: type[Saved]) -> Saved:
    """JSON numbers only: NaN and infinity, which some writers put there, are named as such."""
    try:
        fields = json.loads(path.read_bytes())
        _check_schema(path, fields)
        return msgspec.convert(fields, kind)
    except FileNotFoundError:
        raise NotFound(
            f"there is no profile at {path.name}",
            effect="nothing was read",
            todo=_TODO,
        ) from None
    except (ValueError, TypeError, RecursionError, OSError) as error:
        raise InvalidProfile(
            f"the profile {path.name} can not be read",
            why=str(error).splitlines()[0],
            effect="it was not used",
            todo=_TODO,
        ) from None


def _check_schema(path: Path, fields: object) -> None:
    found = fields.get("schema") if isinstance(fields, dict) else None
    if found != SCHEMA:
        raise InvalidProfile(
            f"the profile {path.name} has schema {found!r}, this version reads {SCHEMA}",
            effect="it was not used",
            todo=_TODO,
        )
