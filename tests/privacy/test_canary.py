"""A prompt that nobody else would write is looked for in all that was written and said."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx2
import msgspec
import pytest

from outrider.cloud.main import start as start_cloud
from outrider.daemon.log import Log
from outrider.edge.main import start
from outrider.options import Address, EdgeOptions
from outrider.privacy import keys, vault
from outrider.protocol.events import Event
from tests.privacy.test_rotation import paired
from tests.support import LOOPBACK, cloud_options, run, until

CANARY = "Xylograph-7c1f9 quails"
"""Bytes are the fake engine's tokens, so that packed tokens are this very text."""
FORMS = (
    CANARY.encode(),
    CANARY.lower().encode(),
    base64.b64encode(CANARY.encode())[:20],
    CANARY.encode().hex().encode(),
    ", ".join(str(byte) for byte in CANARY.encode()).encode(),
    ",".join(str(byte) for byte in CANARY.encode()).encode(),
    CANARY.encode("utf-16-le"),
    b"".join(byte.to_bytes(4, "little") for byte in CANARY.encode()),
)


def seen(data: bytes) -> bool:
    return any(form in data for form in FORMS)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Everything that is written lands below one folder."""
    import logging

    for name in ("STATE", "RUNTIME", "CACHE", "HOME"):
        monkeypatch.setenv(f"OUTRIDER_{name}", str(tmp_path / name.lower()))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setenv("OUTRIDER_KEYS", "file")
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    yield tmp_path
    root.handlers[:] = before
    root.setLevel(level)


async def ride(tmp_path: Path) -> tuple[dict[str, bytes], bytes]:
    """A paired edge and cloud, both with their logs, answer the prompt; one answer is under way
    while the disk is looked at. (what lay on the disk, what was said)"""
    async with AsyncExitStack() as stack:
        log = Log.start(tmp_path / "log.jsonl", "debug", "edge")
        stack.callback(log.close)
        at_cloud = await start_cloud(cloud_options(tmp_path, paired=True), stack, log)
        link = paired(tmp_path / "state" / "links" / "home", Address.parse(at_cloud.address, 0))
        options = EdgeOptions(
            listen=LOOPBACK,
            clouds=(),
            links=(link,),
            draft="d=fake",
            draft_engine="fake",
            journal="disk",
            runtime_dir=tmp_path / "run",
        )
        edge = await start(options, stack, log)
        told: list[bytes] = []
        edge.daemon.fanout.publish = _heard(edge.daemon.fanout.publish, told)  # type: ignore[method-assign, assignment]
        client = await stack.enter_async_context(
            httpx2.AsyncClient(base_url=edge.url, trust_env=False, timeout=30.0)
        )
        await until(lambda: edge.daemon.link.connected() is not None, "the cloud is found")
        asked = {"model": "", "prompt": f"{CANARY} and so on", "max_tokens": 8, "seed": 1}
        answered = await client.post("/v1/completions", json=asked)
        assert answered.status_code == 200, answered.text
        said = [(await client.get("/metrics")).content]
        wrong: list[dict[str, Any]] = [
            asked | {"max_tokens": 10**9},
            asked | {"model": "no such model"},
            asked | {"logit_bias": {"x": 1}},
            asked | {"temperature": -5},
        ]
        for request in wrong:
            refused = await client.post("/v1/completions", json=request)
            assert refused.status_code >= 400
            said.append(refused.content)
        long = asked | {"max_tokens": 3000, "stream": True}
        async with client.stream("POST", "/v1/completions", json=long) as stream:
            async for line in stream.aiter_lines():
                if line.startswith("data:") and edge.daemon.running:
                    break
            said.append((await client.get("/outrider/v1/status")).content)
            written = on_disk(tmp_path)
        await until(lambda: not edge.daemon.running)
    said += told
    return written | {f"after {name}": data for name, data in on_disk(tmp_path).items()}, b"".join(
        said
    )


def _heard(publish: Callable[[Event], None], told: list[bytes]) -> Callable[[Event], None]:
    def both(event: Event) -> None:
        told.append(msgspec.json.encode(event))
        publish(event)

    return both


def on_disk(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_it_is_nowhere(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    async def main() -> None:
        vault.make(vault.place(), keys.here())
        written, said = await ride(tmp_path)
        names = " ".join(written)
        for expected in ("journal", "log.jsonl", "vault", "register", "device.pem"):
            assert expected in names, f"{expected} was not looked at"
        assert [name for name, data in written.items() if seen(data)] == []
        assert not seen(said)
        out, err = capfd.readouterr()
        assert not seen(out.encode() + err.encode())

    run(main())


def test_without_a_vault_it_is_found(tmp_path: Path) -> None:
    """The control: the same ride, its journal in the clear."""

    async def main() -> None:
        written, _ = await ride(tmp_path)
        found = [name for name, data in written.items() if seen(data)]
        assert found and all("journal" in name for name in found)

    run(main())


@pytest.mark.parametrize("place", ["log", "json", "binary", "words"])
def test_planted_it_is_found(tmp_path: Path, place: str) -> None:
    ids = list(CANARY.encode())
    planted = {
        "log": f"2026 info {CANARY}".encode(),
        "json": json.dumps(ids).encode(),
        "binary": msgspec.msgpack.encode(ids),
        "words": b"".join(one.to_bytes(4, "little") for one in ids),
    }
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "file").write_bytes(b"before" + planted[place] + b"after")
    assert [name for name, data in on_disk(tmp_path).items() if seen(data)] == ["deep/file"]
