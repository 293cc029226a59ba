"""What this machine has: memory that may be taken, accelerators, and what kind of thing it is.

Linux tells under /proc and /sys; `root` stands for `/`, so that recorded trees can be read.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from outrider.partitioner.device import DeviceKind

ROOT = Path("/")
NO_LIMIT = 1 << 60
"""cgroup v1 says 2^63 less a page where there is no limit."""
RESERVE = 0.1
"""Share of the available memory left for everything else."""


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes."""

    total: int
    available: int
    """By the kernel's estimate: free, and what its caches would give back."""
    limit: int | None
    """Of the control group, the tightest on the way up; None without one."""
    used: int = 0
    """Of that limit, by this group, caches left out."""

    @property
    def usable(self) -> int:
        """What stages may take."""
        room = self.available
        if self.limit is not None:
            room = min(room, max(self.limit - self.used, 0))
        return int(room * (1 - RESERVE))


def memory(root: Path = ROOT) -> Memory:
    """From /proc/meminfo and control groups; elsewhere from what the system says it has."""
    fields = _meminfo(root / "proc/meminfo")
    total = fields.get("MemTotal") or _physical()
    available = fields.get("MemAvailable") or total // 2
    tightest = min(_limits(root), default=None)
    if tightest is None:
        return Memory(total, available, None)
    return Memory(total, available, *tightest)


def _meminfo(path: Path) -> dict[str, int]:
    try:
        lines = path.read_text(encoding="ascii").splitlines()
        pairs = (line.split(":") for line in lines if ":" in line)
        return {name: int(rest.split()[0]) * 1024 for name, rest in pairs if rest.split()}
    except (OSError, ValueError):
        return {}


def _physical() -> int:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return 4 << 30


def _limits(root: Path) -> Iterator[tuple[int, int]]:
    """(limit, used without caches) of each group from ours up to the root."""
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="ascii").splitlines()
    except (OSError, ValueError):
        return
    for line in lines:
        number, _, rest = line.partition(":")
        kinds, _, path = rest.partition(":")
        if number == "0" and not kinds:
            yield from _up(root / "sys/fs/cgroup", path, "memory.max", "memory.current", "file")
        elif "memory" in kinds.split(","):
            base = root / "sys/fs/cgroup/memory"
            yield from _up(
                base, path, "memory.limit_in_bytes", "memory.usage_in_bytes", "total_cache"
            )


def _up(base: Path, path: str, limit: str, usage: str, cache: str) -> Iterator[tuple[int, int]]:
    place = Path(path.lstrip("/"))
    for group in (base / place, *(base / parent for parent in place.parents)):
        bound = _number(group / limit)
        if bound is not None and bound < NO_LIMIT:
            used = (_number(group / usage) or 0) - _stat(group / "memory.stat", cache)
            yield bound, max(used, 0)


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None


def _stat(path: Path, name: str) -> int:
    try:
        for line in path.read_text(encoding="ascii").splitlines():
            key, _, value = line.partition(" ")
            if key == name:
                return int(value)
    except (OSError, ValueError):
        return 0
    return 0


# --- accelerators ------------------------------------------------------------------------------


def accelerators() -> tuple[str, ...]:
    """As torch and onnxruntime name them, where they are installed: `torch cuda:0 NAME`, ..."""
    return (*_torch(), *_onnx())


def _torch() -> Iterator[str]:
    try:
        import torch
    except ImportError:
        return
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            yield f"torch cuda:{index} {torch.cuda.get_device_name(index)}"
    if torch.backends.mps.is_available():
        yield "torch mps"


def _onnx() -> Iterator[str]:
    try:
        import onnxruntime
    except ImportError:
        return
    for name in onnxruntime.get_available_providers():
        if name not in ("CPUExecutionProvider", "AzureExecutionProvider"):
            yield f"onnxruntime {name.removesuffix('ExecutionProvider')}"


# --- kind --------------------------------------------------------------------------------------

_CHASSIS: dict[int, DeviceKind] = {
    **dict.fromkeys((8, 9, 10, 11, 14, 30, 31, 32), "laptop"),
    **dict.fromkeys((17, 22, 23, 25, 28, 29), "server"),
}
"""DMTF SMBIOS (DSP0134) table 17, system enclosure types; others count as desktops."""


def kind(root: Path = ROOT) -> DeviceKind:
    """By its enclosure; `--kind` says it better where the firmware says nothing."""
    if (root / "etc/nv_tegra_release").is_file():
        return "jetson"
    chassis = _number(root / "sys/class/dmi/id/chassis_type")
    return _CHASSIS.get(chassis or 0, "desktop")
