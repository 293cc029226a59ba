"""Whether a profile makes sense: every number finite and of the right sign. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import fields

from outrider.errors import InvalidProfile
from outrider.partitioner.device import DeviceProfile, LinkProfile, Rate

_ABOVE_ZERO = frozenset(
    ("flops_per_s", "bytes_per_s", "weight_scale", "kv_scale", "slowdown")
    + ("up_bytes_per_s", "down_bytes_per_s")
)


def check_device(device: DeviceProfile) -> DeviceProfile:
    """The same, or InvalidProfile that names the field."""
    _numbers(f"device {device.name}", device)
    if not device.name:
        raise _invalid("a device", "name", "")
    if device.memory_bytes <= 0:
        raise _invalid(f"device {device.name}", "memory_bytes", device.memory_bytes)
    for rate in device.rates:
        check_rate(rate, device.name)
    return device


def check_rate(rate: Rate, device: str = "") -> Rate:
    """The same, or InvalidProfile that names the field."""
    what = f"rate {rate.engine} {rate.dtype}" + (f" of device {device}" if device else "")
    _numbers(what, rate)
    counts = [rows for rows, _ in rate.rows]
    if counts != sorted(set(counts)) or any(rows < 1 for rows in counts):
        raise _invalid(what, "rows", counts, "row counts must rise from 1 or more")
    for rows, factor in rate.rows:
        if not (math.isfinite(factor) and factor >= 0):
            raise _invalid(what, f"rows[{rows}]", factor)
    return rate


def check_link(link: LinkProfile) -> LinkProfile:
    """The same, or InvalidProfile that names the field."""
    what = f"link {link.a} to {link.b}"
    _numbers(what, link)
    if not link.a or not link.b or link.a == link.b:
        raise _invalid(what, "b", link.b, "a link joins two devices")
    if link.loss >= 1:
        raise _invalid(what, "loss", link.loss, "it is a share below 1")
    return link


def _numbers(what: str, value: DeviceProfile | Rate | LinkProfile) -> None:
    for name in _names(value):
        number = getattr(value, name)
        if not isinstance(number, int | float) or isinstance(number, bool):
            continue
        if not math.isfinite(number) or number < 0 or (name in _ABOVE_ZERO and number == 0):
            raise _invalid(what, name, number)


def _names(value: DeviceProfile | Rate | LinkProfile) -> Iterable[str]:
    return (field.name for field in fields(value))


def _invalid(what: str, name: str, value: object, why: str = "") -> InvalidProfile:
    return InvalidProfile(
        f"{what}: {name} is {value!r}",
        why=why or "it must be a finite number of the right sign",
        effect="the profile was not used",
        todo="measure again: outrider profile",
    )
