"""Cloud and edge as processes of their own, on the fake engine, to be killed at named points."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from outrider.testing.child import ChildSpec, ReadyFile
from outrider.testing.failpoints import Failpoint

_CLOUD = """
import sys
from pathlib import Path
from outrider.cloud.main import serve
from outrider.options import Address, CloudOptions, NamedModel
folder, port, drain = Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
sys.exit(serve(CloudOptions(
    listen=Address("127.0.0.1", port), models=(NamedModel("t", "fake"),), engine="fake",
    threads=1, ahead=16, runtime_dir=folder, ready_file=folder / "ready", drain_s=drain,
)))
"""

_EDGE = """
import asyncio, sys
from contextlib import AsyncExitStack
from pathlib import Path
from outrider.edge.main import start
from outrider.options import Address, EdgeOptions
from outrider.protocol.stream import Token
from tests.support import ask
folder, cloud, count, n = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
async def main():
    async with AsyncExitStack() as stack:
        running = await start(EdgeOptions(
            listen=Address("127.0.0.1", 0), clouds=(Address.parse(cloud, 0),), draft="d=fake",
            draft_engine="fake", journal="disk", journal_dir=folder / "journals",
            runtime_dir=folder, hint_depth=4,
        ), stack)
        answer = running.daemon.generate(ask(max_tokens=count, n=n, exact_required=True))
        async for event in answer:
            if isinstance(event, Token):
                print(f"token {event.choice} {event.position} {event.id}", flush=True)
asyncio.run(main())
"""


def cloud_child(
    folder: Path, *points: Failpoint, port: int = 0, drain_s: float = 10.0, name: str = "cloud"
) -> ChildSpec:
    folder.mkdir(parents=True, exist_ok=True)
    ready = folder / "ready"
    ready.unlink(missing_ok=True)
    return ChildSpec(
        name,
        (sys.executable, "-c", _CLOUD, str(folder), str(port), str(drain_s)),
        ready=ReadyFile(ready),
        failpoints=points,
        cwd=_root(),
    )


def port_of(folder: Path) -> int:
    """Where a cloud that is ready listens."""
    address: str = json.loads((folder / "ready").read_text())["address"]
    return int(address.rpartition(":")[2])


def edge_child(
    folder: Path, cloud: object, *points: Failpoint, count: int = 60, n: int = 1
) -> ChildSpec:
    folder.mkdir(parents=True, exist_ok=True)
    return ChildSpec(
        "edge",
        (sys.executable, "-c", _EDGE, str(folder), str(cloud), str(count), str(n)),
        env={"PYTHONPATH": str(_root())},
        failpoints=points,
        cwd=_root(),
    )


def _root() -> Path:
    return Path(__file__).parents[2]
