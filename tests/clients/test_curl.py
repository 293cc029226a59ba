"""curl, as the documents show it: recorded transcripts, replayed and compared.

A transcript is the arguments behind the address, an empty line, and what was answered, with
what differs from run to run masked. `TRANSCRIPTS_WRITE=1 pytest tests/clients/test_curl.py`
records them anew.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent / "transcripts"
MASKED = (
    (re.compile(r'"seed":"\d+"'), '"seed":S'),
    (re.compile(r'local-\d+'), "ID"),
    (re.compile(r'call_[0-9a-f]{24}'), "CALL"),
    (re.compile(r'"(created|created_at|modified_at)":("[^"]*"|\d+)'), r'"\1":TIME'),
    (re.compile(r'"(\w+_ms|\w+_per_second|\w+_duration)":[\d.]+'), r'"\1":N'),
    (re.compile(r'"version":"[^"]*"'), '"version":V'),
    (re.compile(r'[0-9a-f]{64}|fp_[0-9a-f]{16}'), "DIGEST"),
)  # fmt: skip


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.txt")), ids=lambda path: path.stem)
def test_transcript(url: str, path: Path) -> None:
    arguments, _, recorded = path.read_text().partition("\n\n")
    route, *rest = shlex.split(arguments)
    command = ["curl", "-sN", "--noproxy", "*", f"{url}{route}", *rest]
    said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    for pattern, word in MASKED:
        said = pattern.sub(word, said)
    if os.environ.get("TRANSCRIPTS_WRITE"):
        path.write_text(f"{arguments}\n\n{said}\n")
        return
    assert said.strip() == recorded.strip()


def test_there_are_transcripts() -> None:
    assert len(list(FOLDER.glob("*.txt"))) >= 8
