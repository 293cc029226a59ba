"""Where small files lie, on machines that say so and on those that do not."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from outrider import paths


def test_a_machine_without_a_runtime_directory_is_no_news_to_the_user() -> None:
    names = ("XDG_RUNTIME_DIR", "OUTRIDER_RUNTIME")
    bare = {name: value for name, value in os.environ.items() if name not in names}
    code = "from outrider import paths; print(paths.runtime_dir())"
    found = subprocess.run([sys.executable, "-c", code], env=bare, capture_output=True, text=True)
    assert found.returncode == 0
    assert found.stderr == ""
    assert Path(found.stdout.strip()).is_absolute()


def test_what_is_written_is_whole_and_the_users_alone(tmp_path: Path) -> None:
    place = tmp_path / "new" / "file"
    paths.write_atomically(place, b"one")
    paths.write_atomically(place, b"two")
    assert place.read_bytes() == b"two"
    assert place.stat().st_mode & 0o077 == 0
    assert [entry.name for entry in place.parent.iterdir()] == ["file"]
