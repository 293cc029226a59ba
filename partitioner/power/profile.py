"""The power profile that the user chose, by the kernel's platform_profile."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from outrider.partitioner.power.reading import Absent, Reading
from outrider.partitioner.power.state import Profile
from outrider.partitioner.power.sysfs import Tree

PLACE = "sys/firmware/acpi/platform_profile"
NAMES: Mapping[str, Profile] = {
    "low-power": "low-power",
    "quiet": "low-power",
    "cool": "balanced",
    "balanced": "balanced",
    "balanced-performance": "performance",
    "performance": "performance",
}


@dataclass(frozen=True, slots=True)
class ProfileReader:
    tree: Tree
    name: str = "profile"

    def read(self) -> Reading:
        return Reading(profile=NAMES.get(self.tree.text(PLACE) or ""))


def find(tree: Tree) -> ProfileReader | Absent:
    if tree.text(PLACE) is not None:
        return ProfileReader(tree)
    return Absent("profile", f"/{PLACE}", "the firmware offers no power profiles")
