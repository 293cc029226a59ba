"""Constants of energy with their sources, read from `constants.json`. All stand for estimates."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Literal

from outrider.partitioner.power.radio import NONE, Radio

RadioKind = Literal["none", "ethernet", "wifi", "cellular"]
HostKind = Literal["laptop", "desktop", "jetson", "board", "phone"]


@dataclass(frozen=True, slots=True)
class Constant:
    """One number, and whoever measured or reasoned it."""

    value: float
    unit: str
    source: str


@cache
def table() -> Mapping[str, Constant]:
    """All of them, by name."""
    text = resources.files("outrider.partitioner.power").joinpath("constants.json").read_text()
    return {name: Constant(**fields) for name, fields in json.loads(text)["constants"].items()}


def value(name: str) -> float:
    """One of them. KeyError for an unknown name."""
    return table()[name].value


def radio(kind: RadioKind) -> Radio:
    """A cable's joules are not counted: its transceiver draws the same whether bytes flow."""
    if kind in ("none", "ethernet"):
        return NONE
    return Radio(
        name=kind,
        up_j_per_byte=value(f"{kind}_up_j_per_byte"),
        down_j_per_byte=value(f"{kind}_down_j_per_byte"),
        tail_w=value(f"{kind}_tail_w"),
        tail_s=value(f"{kind}_tail_s"),
        wake_j=value(f"{kind}_wake_j"),
    )


def busy_w(host: HostKind) -> float:
    """What a device of this kind draws beyond idle while a small model computes."""
    return value(f"{host}_busy_w")


def cloud_w(device: str) -> float:
    """What the device of a cloud's engine (`cuda:0`, `cpu`) draws in a pass, with host
    and cooling."""
    base = value("cloud_cpu_w" if device.startswith("cpu") else "cloud_gpu_w")
    return base * value("cloud_host") * value("cloud_pue")
