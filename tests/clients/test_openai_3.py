"""The newest `openai`, which other clients do not bear yet: beside them, in its own process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

BESIDE = Path(sys.prefix) / "openai3"
"""Where scripts/setup puts it."""
TALK = """
import asyncio, json, sys, openai
asked = dict(model="local/fake", messages=[{"role": "user", "content": "hi"}], max_tokens=9)
asked["seed"] = 1
where = dict(base_url=sys.argv[1] + "/v1", api_key="none", max_retries=0)
with openai.OpenAI(**where) as client:
    whole = client.chat.completions.create(**asked).choices[0].message.content
    with client.chat.completions.create(**asked, stream=True) as parts:
        streamed = "".join(part.choices[0].delta.content or "" for part in parts)
    names = [model.id for model in client.models.list()]
async def later():
    async with openai.AsyncOpenAI(**where) as client:
        return (await client.chat.completions.create(**asked)).choices[0].message.content
print(json.dumps([openai.__version__, whole, streamed, asyncio.run(later()), names]))
"""


def test_the_newest_openai_whole_streamed_and_async(url: str) -> None:
    if not (BESIDE / "openai").is_dir():
        pytest.skip("openai 3 is not beside the other clients: make setup puts it there")
    done = subprocess.run(
        [sys.executable, "-c", TALK, url],
        env={**os.environ, "PYTHONPATH": str(BESIDE), "NO_PROXY": "*"},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    version, whole, streamed, later, names = json.loads(done.stdout)
    assert version.startswith("3.")
    assert whole
    assert whole == streamed == later
    assert names
