"""The example of a split plan runs as it stands, and shows a split and a "do not split"."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

PATH = Path(__file__).resolve().parent.parent.parent / "examples" / "split_plan.py"


def test_split_plan() -> None:
    done = subprocess.run(
        [sys.executable, str(PATH)], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    allowed, ends, near, alone = done.stdout.splitlines()
    assert "Do not split: cloud alone is best" in allowed
    assert "phone 0-0" in ends and "phone 33-33" in ends and "cloud" in ends
    assert "Split: no single device" in near and "on phone 0-1, laptop 2-33." in near
    assert "not possible" in alone and "GiB on phone" in alone


def test_it_is_short() -> None:
    assert len(PATH.read_text().splitlines()) <= 40
