"""A memory cage is a real limit: it counts what a process claims, page cache too, and ends it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from outrider.testing.cage import Cage, cage

MB = 1 << 20
CHILD = """
import sys
sys.stdin.readline()
kept = []
for line in sys.stdin:
    kept.append(bytearray(int(line)))
    print(len(kept), flush=True)
"""


@pytest.fixture
def child() -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, "-c", CHILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        yield process
        process.kill()


def ask(child: subprocess.Popen[str], line: object) -> str:
    assert child.stdin is not None and child.stdout is not None
    child.stdin.write(f"{line}\n")
    child.stdin.flush()
    return child.stdout.readline().strip()


def caged(held: Cage | None) -> Cage:
    if held is None:
        pytest.skip("this process may not make memory cgroups")
    return held


def test_a_process_over_its_limit_is_ended_and_one_below_is_counted(
    child: subprocess.Popen[str],
) -> None:
    assert child.stdin is not None
    with cage("outrider-test", 64 * MB) as held:
        try:
            caged(held).enter(child.pid)
            child.stdin.write("go\n")
            assert ask(child, 20 * MB) == "1"
            usage = caged(held).usage()
            assert 20 * MB <= usage.peak <= 40 * MB
            assert ask(child, 100 * MB) == ""
            assert child.wait() != 0
        finally:
            child.kill()
            child.wait()


def test_where_cgroups_can_not_be_made_there_is_no_cage(tmp_path: Path) -> None:
    with cage("outrider-test", MB, root=tmp_path / "absent") as held:
        assert held is None
