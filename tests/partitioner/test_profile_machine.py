"""Memory, limits and kind from recorded trees of /proc and /sys."""

from __future__ import annotations

from pathlib import Path

import pytest

from outrider.partitioner.profile import machine

GIB = 1 << 30
MEMINFO = "MemTotal:       16777216 kB\nMemFree:         1048576 kB\nMemAvailable:    8388608 kB\n"


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_without_groups_what_is_available_counts(tmp_path: Path) -> None:
    found = machine.memory(tree(tmp_path, {"proc/meminfo": MEMINFO}))
    assert (found.total, found.available, found.limit) == (16 * GIB, 8 * GIB, None)
    assert found.usable == int(8 * GIB * 0.9)


def test_the_tightest_limit_on_the_way_up_binds_and_caches_are_free(tmp_path: Path) -> None:
    files = {
        "proc/meminfo": MEMINFO,
        "proc/self/cgroup": "0::/user/job\n",
        "sys/fs/cgroup/user/job/memory.max": "max\n",
        "sys/fs/cgroup/user/job/memory.current": "0\n",
        "sys/fs/cgroup/user/memory.max": f"{4 * GIB}\n",
        "sys/fs/cgroup/user/memory.current": f"{3 * GIB}\n",
        "sys/fs/cgroup/user/memory.stat": f"anon {GIB}\nfile {2 * GIB}\n",
    }
    found = machine.memory(tree(tmp_path, files))
    assert (found.limit, found.used) == (4 * GIB, GIB)
    assert found.usable == int(3 * GIB * 0.9)


def test_version_1_groups_are_read_and_its_infinity_is_none(tmp_path: Path) -> None:
    base = "sys/fs/cgroup/memory"
    files = {
        "proc/meminfo": MEMINFO,
        "proc/self/cgroup": "9:name=systemd:/\n4:memory,hugetlb:/box\n0::/\n",
        f"{base}/box/memory.limit_in_bytes": f"{2 * GIB}\n",
        f"{base}/box/memory.usage_in_bytes": f"{GIB}\n",
        f"{base}/box/memory.stat": f"total_cache {GIB // 2}\n",
        f"{base}/memory.limit_in_bytes": "9223372036854771712\n",
    }
    found = machine.memory(tree(tmp_path, files))
    assert (found.limit, found.used) == (2 * GIB, GIB // 2)


@pytest.mark.parametrize("text", ["", "nonsense", "MemTotal: many kB"])
def test_an_unreadable_tree_falls_back_on_the_system(tmp_path: Path, text: str) -> None:
    found = machine.memory(tree(tmp_path, {"proc/meminfo": text, "proc/self/cgroup": "x"}))
    assert found.total > 0 and found.limit is None


@pytest.mark.parametrize(
    ("files", "kind"),
    [
        ({}, "desktop"),
        ({"sys/class/dmi/id/chassis_type": "10\n"}, "laptop"),
        ({"sys/class/dmi/id/chassis_type": "23\n"}, "server"),
        ({"sys/class/dmi/id/chassis_type": "3\n"}, "desktop"),
        ({"etc/nv_tegra_release": "# R36"}, "jetson"),
    ],
)
def test_the_enclosure_says_the_kind(tmp_path: Path, files: dict[str, str], kind: str) -> None:
    assert machine.kind(tree(tmp_path, files)) == kind


def test_accelerators_are_named_by_who_can_use_them() -> None:
    assert all(name.startswith(("torch ", "onnxruntime ")) for name in machine.accelerators())
