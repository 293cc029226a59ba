"""Which readers this machine has, what was looked for in vain, and what kind of device it is."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType

from outrider.partitioner.power import (
    battery,
    ina3221,
    macos,
    nvml,
    profile,
    rapl,
    thermal,
)
from outrider.partitioner.power.constants import HostKind, RadioKind
from outrider.partitioner.power.meter import Meter
from outrider.partitioner.power.reading import Absent, Reader, Run, Unit
from outrider.partitioner.power.sysfs import Tree

COMMAND_S = 3.0
ROOT = "OUTRIDER_POWER_ROOT"
"""In the environment: a folder that stands for / to the readers of files. Demos and recorded
machines use it; nothing else of the system is asked then."""
ROUTES = "proc/net/route"
MODEL = "proc/device-tree/model"


def command(words: Sequence[str]) -> str:
    """Runs a tool of the system; raises OSError when it is missing, fails, or takes too long."""
    try:
        done = subprocess.run(words, capture_output=True, timeout=COMMAND_S, check=True)
    except subprocess.SubprocessError as error:
        raise OSError(0, f"{words[0]}: {type(error).__name__}") from None
    return done.stdout.decode("utf-8", "replace")


def user() -> int:
    return os.geteuid() if hasattr(os, "geteuid") else -1


@dataclass(frozen=True, slots=True)
class Machine:
    """Where readers look; tests replace each of these."""

    tree: Tree = Tree()
    run: Run = command
    platform: str = sys.platform
    user: int = -1
    load: Callable[[str], ModuleType] = import_module

    def meter(self, drafts_on: Unit = "cpu") -> Meter:
        """Looks for every kind of reader. Not for the event loop."""
        found = [*self._by_system(), nvml.find(self.load)]
        readers: list[Reader] = [one for one in found if not isinstance(one, Absent)]
        return Meter(readers, [one for one in found if isinstance(one, Absent)], drafts_on)

    def _by_system(self) -> list[Reader | Absent]:
        if self.platform == "darwin":
            return [macos.find(self.run), macos.find_powermetrics(self.run, self.user)]
        tree = self.tree
        return [
            battery.find(tree),
            rapl.find(tree),
            ina3221.find(tree),
            thermal.find(tree),
            profile.find(tree),
        ]

    def kind(self) -> HostKind:
        """For estimates: what class of device this is."""
        model = self.tree.text(MODEL) or ""
        if "Jetson" in model or not isinstance(ina3221.find(self.tree), Absent):
            return "jetson"
        if self.platform == "darwin" or self._has_battery():
            return "laptop"
        return "board" if model else "desktop"

    def _has_battery(self) -> bool:
        places = self.tree.folders(f"{battery.PLACE}/*")
        return any(self.tree.text(f"{place}/type") == "Battery" for place in places)

    def radio(self) -> RadioKind:
        """What the default route goes over; a Mac is taken to be on Wi-Fi."""
        if self.platform == "darwin":
            return "wifi"
        name = self._default_route()
        if name is None:
            return "none"
        place = f"sys/class/net/{name}"
        uevent = self.tree.text(f"{place}/uevent") or ""
        if "DEVTYPE=wwan" in uevent or name.startswith(("ww", "rmnet", "ppp")):
            return "cellular"
        wireless = "DEVTYPE=wlan" in uevent or any(True for _ in self.tree.folders(f"{place}/w*"))
        return "wifi" if wireless else "ethernet"

    def _default_route(self) -> str | None:
        """The interface of the default route with the lowest metric (proc_net, fib_route)."""
        best: tuple[int, str] | None = None
        for line in (self.tree.text(ROUTES) or "").splitlines()[1:]:
            fields = line.split()
            if len(fields) < 8 or fields[1] != "00000000" or not fields[6].isdigit():
                continue
            found = (int(fields[6]), fields[0])
            best = found if best is None else min(best, found)
        return None if best is None else best[1]


def here() -> Machine:
    """This one, or the one whose files lie in OUTRIDER_POWER_ROOT."""
    root = os.environ.get(ROOT)
    if root:
        return Machine(Tree(Path(root)), _no_tool, "linux", user(), _no_library)
    return Machine(user=user())


def _no_tool(words: Sequence[str]) -> str:
    raise OSError(0, "a machine of files has no tools")


def _no_library(name: str) -> ModuleType:
    raise ModuleNotFoundError(name)
