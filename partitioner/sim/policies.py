"""Policies by name: who decides where an answer runs, and how long a cloud waits for hints."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from outrider.errors import ConfigError
from outrider.partitioner.signals import Placement

Mode = Literal["auto", "free", "wait"]
PLACEMENTS: tuple[Placement, ...] = ("edge", "cloud", "draft")


@dataclass(frozen=True, slots=True)
class Policy:
    """`placement` None is the runtime's own choice, answer by answer."""

    name: str = "auto"
    placement: Placement | None = None
    trigger: Mode = "auto"
    wait_ms: float = 0.0
    power: bool = True
    """Whether battery and heat have a say."""


def parse(text: str) -> Policy:
    """`auto`, `cloud`, `draft`, `edge`, with a trigger after a slash: `draft/free`,
    `auto/wait:50`; `mains` is `auto` without a look at the battery. Raises ConfigError."""
    name, _, trigger = text.partition("/")
    mode, _, wait = trigger.partition(":")
    known = name in (*PLACEMENTS, "auto", "mains")
    if not known or mode not in ("", "auto", "free", "wait") or (wait and mode != "wait"):
        raise _unknown(text)
    try:
        wait_ms = float(wait) if wait else (20.0 if mode == "wait" else 0.0)
    except ValueError:
        raise _unknown(text) from None
    if not 0.0 <= wait_ms < 60_000.0:
        raise _unknown(text)
    placements: dict[str, Placement] = {placement: placement for placement in PLACEMENTS}
    modes: dict[str, Mode] = {"": "auto", "auto": "auto", "free": "free", "wait": "wait"}
    return Policy(text, placements.get(name), modes[mode], wait_ms, name != "mains")


def _unknown(text: str) -> ConfigError:
    return ConfigError(
        f"there is no policy {text!r}",
        effect="nothing was simulated",
        todo="auto, mains, cloud, draft or edge, if wanted with /free, /auto or /wait:MS",
    )
