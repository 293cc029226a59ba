"""NVIDIA Jetsons: which one this is, which JetPack, and what that means for Outrider."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

RELEASE = re.compile(r"# R(\d+) \(release\), REVISION: (\d+)(?:\.(\d+))?")
JETPACKS = {35: "5", 36: "6", 38: "7", 39: "7.2"}
"""L4T's major number to JetPack's."""
FEW_GIB = 8.5


@dataclass(frozen=True, slots=True)
class Jetson:
    """What the files say; `l4t` such as 36.4.3, empty where it is not told."""

    model: str
    l4t: str
    memory_gib: float
    power_mode: str

    @classmethod
    def find(cls, root: Path = Path("/")) -> Jetson | None:
        """None on any other machine. `root` is where the files of the system lie."""
        model = _read(root / "proc/device-tree/model").strip("\0 \n")
        release = RELEASE.search(_read(root / "etc/nv_tegra_release"))
        if release is None and "jetson" not in model.lower():
            return None
        l4t = ".".join(part for part in release.groups() if part) if release else ""
        total = re.search(r"MemTotal:\s+(\d+) kB", _read(root / "proc/meminfo"))
        gib = int(total[1]) / 2**20 if total else 0.0
        return cls(model or "Jetson", l4t, gib, _power_mode(root))

    @property
    def jetpack(self) -> str:
        """`6`, `7.2`; empty for one that is not known."""
        major = self.l4t.partition(".")[0]
        return JETPACKS.get(int(major), "") if major else ""

    def advice(self, python: tuple[int, int] = sys.version_info[:2]) -> Iterator[tuple[str, str]]:
        """(what is so, what to do) of this one."""
        if self.jetpack == "5":
            yield "JetPack 5 is too old", "install JetPack 6 or 7.2"
        if self.jetpack == "6" and python < (3, 11):
            yield "JetPack 6 has Python 3.10", "uv python install 3.12, and a venv of it"
        if self.jetpack in ("6", "7", "7.2"):
            yield (
                "upstream has no onnxruntime-gpu for aarch64: onnxruntime computes on the CPU",
                'CMAKE_ARGS="-DGGML_CUDA=on" pip install "outrider[edge,llama]" builds llama.cpp '
                "for the GPU",
            )
        if self.memory_gib:
            yield (
                f"CPU and GPU share {self.memory_gib:.1f} GiB of memory",
                "count weights once, and leave 2 GiB to the system"
                + ("; on 8 GiB stop the desktop" if self.memory_gib < FEW_GIB else ""),
            )
        if self.power_mode:
            yield f"power mode {self.power_mode}", "sudo nvpmodel -q lists the others"


def _power_mode(root: Path) -> str:
    """The mode that nvpmodel left, by its number."""
    match = re.search(r"pmode:(\d+)", _read(root / "var/lib/nvpmodel/status"))
    return str(int(match[1])) if match else ""


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8", "replace")
    except OSError:
        return ""
