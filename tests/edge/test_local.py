"""The committer on the device: a child that is a peer while it lives, and ends with the daemon."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from outrider.edge.local import LocalCommitter
from outrider.options import Address
from outrider.protocol import events
from outrider.testing.child import process_state
from tests.support import EdgeUnderTest, ask, cloud, edge, expected, run, until

NOBODY = Address("127.0.0.1", 9)
_CHILD = """
import sys
from pathlib import Path
from outrider.cloud.main import serve
from outrider.options import Address, CloudOptions, NamedModel
flags = dict(zip(sys.argv[1::2], sys.argv[2::2]))
assert flags["--model"] == "t=fake" and flags["--workers"] == "127.0.0.1:1,127.0.0.1:2", flags
sys.exit(serve(CloudOptions(
    listen=Address.parse(flags["--listen"], 1), models=(NamedModel.parse(flags["--model"]),),
    engine="fake", ahead=16, max_slots=int(flags["--max-slots"]), threads=1,
    runtime_dir=Path(flags["--runtime-dir"]), ready_file=Path(flags["--ready-file"]),
    drain_s=float(flags["--drain"]),
)))
"""
"""Serves the fake engine where the real one would drive workers; told as the real one is."""
COMMAND = (sys.executable, "-c", _CHILD)
WORKERS = (Address("127.0.0.1", 1), Address("127.0.0.1", 2))


@asynccontextmanager
async def committing(
    e: EdgeUnderTest, folder: Path, command: tuple[str, ...] = COMMAND
) -> AsyncIterator[LocalCommitter]:
    daemon = e.daemon
    committer = LocalCommitter(
        daemon.options, daemon.link, daemon.fanout.publish, folder, command=command
    )
    task = asyncio.create_task(committer.run())
    try:
        yield committer
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def known(e: EdgeUnderTest) -> bool:
    return any(peer.kind == "split" and peer.known for peer in e.daemon.link.peers)


def pid(committer: LocalCommitter) -> int:
    assert committer.process is not None
    return committer.process.pid


def test_it_answers_as_a_peer_and_ends_with_the_daemon(tmp_path: Path) -> None:
    async def main() -> None:
        async with edge(NOBODY, split="t=fake", workers=WORKERS) as e:
            async with committing(e, tmp_path) as committer:
                await until(lambda: known(e))
                child = pid(committer)
                found = await e.answer(ask(max_tokens=40))
                assert found.ids() == expected(ask(max_tokens=40)) and found.done().exact
            assert process_state(child) == "gone"
            assert [peer.kind for peer in e.daemon.link.peers] == ["cloud"]

    run(main())


def test_a_child_that_was_killed_is_started_again_and_the_answer_goes_on(tmp_path: Path) -> None:
    async def main() -> None:
        async with (
            edge(NOBODY, split="t=fake", workers=WORKERS, fallback="wait", watching=True) as e,
            committing(e, tmp_path) as committer,
        ):
            await until(lambda: known(e))
            request = ask(max_tokens=80)
            answering = asyncio.create_task(e.answer(request))
            await until(lambda: len(e.kinds(events.CommitReceived)) > 5)
            before = pid(committer)
            os.kill(before, signal.SIGKILL)
            found = await answering
            found.check()
            assert found.ids() == expected(request) and not found.done().class_changed_at
            assert pid(committer) != before
            whats = [trouble.what for trouble in e.kinds(events.Trouble)]
            assert whats == ["the committer of the split model ended with status -9"]

    run(main())


def test_answers_move_to_a_cloud_of_the_same_class(tmp_path: Path) -> None:
    async def main() -> None:
        async with cloud(tmp_path) as c, edge(c.address, split="t=fake", workers=WORKERS) as e:
            async with committing(e, tmp_path) as committer:
                await until(lambda: known(e))
                e.daemon.link.peers.reverse()
                request = ask(max_tokens=80, exact_required=True)
                answering = asyncio.create_task(e.answer(request))
                await until(lambda: len(e.kinds(events.CommitReceived)) > 5)
                assert not c.opened(), "it runs on the device's own committer"
                os.kill(pid(committer), signal.SIGKILL)
                found = await answering
                assert found.ids() == expected(request) and found.done().exact
                assert len(c.opened()) == 1

    run(main())


def test_what_it_decides_is_told_by_the_daemon(tmp_path: Path) -> None:
    telling = _CHILD.replace(
        "sys.exit(",
        """
import asyncio
import outrider.cloud.main as main
from outrider.protocol import events
async def tell(running):
    while True:
        running.publish(events.Decision(
            request="", what="placement", old="a=0:6", new="b=0:6", reason="a was lost"))
        running.publish(events.Lag(p50_ms=0, p99_ms=0))
        await asyncio.sleep(0.02)
async def start(*arguments, begin=main.start):
    running = await begin(*arguments)
    stack = arguments[1]
    stack.callback(asyncio.create_task(tell(running)).cancel)
    return running
main.start = start
sys.exit(""",
        1,
    )

    async def main() -> None:
        command = (sys.executable, "-c", telling)
        async with (
            edge(NOBODY, split="t=fake", workers=WORKERS) as e,
            committing(e, tmp_path, command),
        ):
            await until(lambda: bool(e.kinds(events.Decision)))
            assert e.kinds(events.Decision)[0].reason == "a was lost"
            assert not e.kinds(events.Lag)

    run(main())


def test_one_that_can_not_start_is_tried_again_less_and_less_often(tmp_path: Path) -> None:
    async def main() -> None:
        broken = (sys.executable, "-c", "import sys; sys.exit(3)")
        async with (
            edge(NOBODY, split="t=fake", workers=WORKERS) as e,
            committing(e, tmp_path, broken),
        ):
            await until(lambda: len(e.kinds(events.Trouble)) == 2)
            assert all("status 3" in trouble.what for trouble in e.kinds(events.Trouble))
            assert [peer.kind for peer in e.daemon.link.peers] == ["cloud"]

    run(main())
