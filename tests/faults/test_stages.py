"""A split model loses devices in the middle of an answer; the text is the unsplit model's."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from outrider.edge.local import LocalCommitter
from outrider.engines import registry
from outrider.options import Address, CloudOptions, NamedModel
from outrider.protocol import events
from outrider.testing.child import ChildSpec, ReadyFile
from outrider.testing.supervisor import Supervisor
from tests.faults.test_pair import DRAFT, PROMPT, alone
from tests.support import GREEDY, SAMPLED, Answered, EdgeUnderTest, ask, cloud, edge, until

pytestmark = pytest.mark.skipif(
    not {"torch", "onnx"} <= set(registry.installed()),
    reason="torch and onnxruntime are not both installed",
)
COMMAND = (sys.executable, "-c", "from outrider.cli import main; main()")
NOBODY = Address("127.0.0.1", 9)


def run(work: Any) -> None:
    """Bounded: four processes load torch."""
    asyncio.run(asyncio.wait_for(work, 150.0))


@dataclass(slots=True)
class Devices:
    """Worker processes by name."""

    supervisor: Supervisor
    folder: Path

    async def start(self, name: str, port: int = 0, memory: str = "1G") -> Address:
        ready = self.folder / f"{name}.json"
        ready.unlink(missing_ok=True)
        command = (
            *(*COMMAND, "worker", "--listen", f"127.0.0.1:{port}", "--name", name),
            *("--threads", "1", "--engine", "torch", "--memory", memory),
            *("--ready-file", str(ready)),
        )
        if name in self.supervisor.names:
            await self.supervisor[name].wait()
        await self.supervisor.start(ChildSpec(name, command, ready=ReadyFile(ready)))
        return self.address(name)

    def address(self, name: str) -> Address:
        ready = json.loads((self.folder / f"{name}.json").read_text())
        return Address.parse(ready["address"], 0)

    def kill(self, name: str) -> None:
        os.kill(self.supervisor[name].pid, signal.SIGKILL)


@asynccontextmanager
async def devices(folder: Path) -> AsyncIterator[Devices]:
    async with Supervisor() as supervisor:
        yield Devices(supervisor, folder)


@asynccontextmanager
async def committing(e: EdgeUnderTest, folder: Path) -> AsyncIterator[LocalCommitter]:
    """The device's committer, as its daemon runs it; returns when it serves."""
    daemon = e.daemon
    committer = LocalCommitter(daemon.options, daemon.link, daemon.fanout.publish, folder)
    task = asyncio.create_task(committer.run())
    try:
        async with asyncio.timeout(90):
            while not any(p.kind == "split" and p.known for p in daemon.link.peers):
                await asyncio.sleep(0.02)
        yield committer
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def answer(
    e: EdgeUnderTest, request: Any, at: int = 0, do: Callable[[], None] = lambda: None
) -> Answered:
    """`do` once `at` tokens are there."""
    found = Answered()
    async for event in e.daemon.generate(request):
        found.events.append(event)
        if at and len(found.tokens()) >= at:
            at = 0
            do()
    found.check()
    return found


def where(e: EdgeUnderTest) -> str:
    """On which devices the layers lie, as the device's committer says."""
    [peer] = [peer for peer in e.daemon.link.peers if peer.kind == "split"]
    return peer.models[0].device


def moves(e: EdgeUnderTest) -> list[events.Decision]:
    """Decisions of the split itself; the daemon's own name a request."""
    return [each for each in e.kinds(events.Decision) if not each.request]


def test_a_device_killed_in_an_answer_changes_no_token_and_the_move_is_told(
    tmp_path: Path,
) -> None:
    async def main() -> None:
        async with devices(tmp_path) as d:
            # None holds the model alone, any two do.
            workers = await asyncio.gather(*(d.start(name, memory="40M") for name in "abc"))
            split: dict[str, Any] = {
                "split": "t=bundled:target",
                "workers": tuple(workers),
                "max_running": 4,
            }
            async with edge(NOBODY, draft=DRAFT, patience_s=60.0, **split) as e:
                async with committing(e, tmp_path):
                    requests = [ask(PROMPT, sampling=s, max_tokens=24) for s in (GREEDY, SAMPLED)]
                    truth = alone(requests, e.daemon.render(requests[0]))
                    still = await answer(e, requests[0])
                    assert same(still.ids(), truth[0], e) and still.done().exact
                    assert not moves(e)
                    lost = where(e).split()[1].split("=")[0]
                    name = next(n for n in "abc" if str(d.address(n)) == lost)
                    struck = await answer(e, requests[1], 6, lambda: d.kill(name))
                    assert same(struck.ids(), truth[1], e) and struck.done().exact
                    assert not struck.done().class_changed_at
                    [move] = moves(e)
                    assert len(move.old.split()) == len(move.new.split()) == 2
                    assert lost in move.old and lost not in move.new
                    assert f"worker {lost} was lost" in move.reason

    run(main())


def same(found: tuple[int, ...], right: tuple[int, ...], e: EdgeUnderTest) -> bool:
    """The answer, up to where it ends."""
    served = e.daemon.link.served("t")
    assert served is not None
    stop = next((i + 1 for i, t in enumerate(right) if t in served.vocabulary.end), len(right))
    return found == right[:stop] and stop > 12


def test_an_answer_waits_for_devices_that_are_all_gone_and_goes_on_with_one_that_comes_back(
    tmp_path: Path,
) -> None:
    async def main() -> None:
        async with devices(tmp_path) as d:
            a, b = await asyncio.gather(d.start("a"), d.start("b"))
            served: dict[str, Any] = {
                "models": (NamedModel("t", "bundled:target"),),
                "engine": CloudOptions().engine,
                "workers": (a, b),
                "max_slots": 4,
                "threads": None,
            }
            async with (
                cloud(tmp_path, **served) as c,
                edge(c.address, draft=DRAFT, patience_s=60.0, fallback="wait") as e,
            ):
                request = ask(PROMPT, sampling=SAMPLED, max_tokens=24)
                await e.daemon.link.find_one("t")
                [truth] = alone([request], e.daemon.render(request))

                def kill() -> None:
                    d.kill("a")
                    d.kill("b")

                answering = asyncio.create_task(answer(e, request, 6, kill))
                await until(lambda: bool(e.kinds(events.Fallback)), "the answer waits")
                assert "no devices are left" in e.kinds(events.Fallback)[0].cause
                await d.start("b", b.port)
                found = await answering
                assert same(found.ids(), truth, e)
                assert found.done().exact and not found.done().class_changed_at
                told = [x for x in c.published if isinstance(x, events.Decision)]
                assert told[-1].new == f"{b}=0:6"

    run(main())
