"""SIGKILL at named points, of cloud, engine and edge; the text is the undisturbed one."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from outrider.errors import CloudUnreachable
from outrider.options import Address
from outrider.protocol import events
from outrider.protocol.messages import Close
from outrider.protocol.stream import Forked, Started
from outrider.testing.failpoints import Failpoint
from outrider.testing.supervisor import Supervisor
from tests.cloud.client import Refused, connect, opening
from tests.faults.processes import cloud_child, edge_child, port_of
from tests.support import Answered, ask, cloud, edge, expected, run, until

POINTS = ("cloud.before_pass", "cloud.after_pass", "cloud.before_commit")


@pytest.mark.parametrize("point", POINTS)
def test_a_cloud_killed_around_a_pass_is_replaced_and_the_text_is_the_same(
    tmp_path: Path, point: str
) -> None:
    async def main() -> None:
        async with Supervisor() as supervisor:
            child = await supervisor.start(
                cloud_child(tmp_path / "c", Failpoint(point, "kill", 12))
            )
            port = port_of(tmp_path / "c")
            async with edge(Address("127.0.0.1", port), patience_s=60.0) as e:
                request = ask(max_tokens=60, n=2, retract=True)
                answering = asyncio.create_task(e.answer(request))
                struck = await child.reached(point)
                assert struck["action"] == "kill" and child.status == -signal.SIGKILL
                await supervisor.start(cloud_child(tmp_path / "c", port=port))
                found = await answering
                found.check()
                for choice in (0, 1):
                    assert found.ids(choice) == expected(request, choice)
                    assert found.done(choice).exact
                    assert not found.done(choice).class_changed_at
                assert not found.of(Forked)

    run(main())


def test_sessions_go_on_when_the_engines_process_is_killed(tmp_path: Path) -> None:
    async def main() -> None:
        async with cloud(tmp_path) as c, edge(c.address) as e:
            requests = [ask(f"rider {n}", seed=n, max_tokens=60) for n in range(3)]
            answers: list[asyncio.Task[Answered]] = [
                asyncio.create_task(e.answer(request)) for request in requests
            ]
            await until(lambda: c.verifier.counts.committed > 45)
            engine: Any = c.verifier.engine
            os.kill(engine.pid, signal.SIGKILL)
            for request, answer in zip(requests, answers, strict=True):
                assert (await answer).ids() == expected(request)
            assert c.verifier.engine is not engine
            assert [x.what for x in c.published if isinstance(x, events.Trouble)] == [
                "the engine's process ended"
            ]

    run(main())


def test_an_engine_killed_while_nobody_asks_is_there_for_the_next(tmp_path: Path) -> None:
    async def main() -> None:
        async with cloud(tmp_path) as c, edge(c.address) as e:
            await e.answer(ask(max_tokens=5))
            await c.settled()
            engine: Any = c.verifier.engine
            os.kill(engine.pid, signal.SIGKILL)
            await until(lambda: not engine.alive)
            assert (await e.answer(ask(max_tokens=20))).ids() == expected(ask(max_tokens=20))

    run(main())


# --- the edge ----------------------------------------------------------------------------------


@asynccontextmanager
async def left_behind(
    tmp_path: Path, *points: Failpoint, n: int = 1
) -> AsyncIterator[tuple[Any, Path]]:
    """A cloud, and the journals of an edge that was killed in the middle of an answer."""
    async with cloud(tmp_path, session_ttl_s=3.0) as c:
        async with Supervisor() as supervisor:
            spec = edge_child(tmp_path / "e", c.address, *points, n=n)
            child = await supervisor.start(spec)
            await child.reached(points[0].point)
            assert child.status == -signal.SIGKILL
        yield c, tmp_path / "e" / "journals"


@pytest.mark.parametrize(
    ("point", "nth"), [("edge.after_commit", 1), ("edge.after_commit", 25), ("edge.before_hint", 3)]
)
def test_an_edge_killed_in_an_answer_takes_it_up_again_from_its_journal(
    tmp_path: Path, point: str, nth: int
) -> None:
    async def main() -> None:
        async with left_behind(tmp_path, Failpoint(point, "kill", nth), n=2) as (c, folder):
            [path] = folder.iterdir()
            assert path.stat().st_mode & 0o777 == 0o600
            async with edge(c.address, journal="disk", journal_dir=folder) as e:
                await e.daemon.restore()
                [state] = e.daemon.requests()
                found = Answered([x async for x in e.daemon.attach(state.id, (0, 0))])
                found.check()
                request = ask(max_tokens=60, n=2)
                for choice in (0, 1):
                    assert found.ids(choice) == expected(request, choice)
                    assert found.done(choice).finish_reason == "length"
                    assert found.done(choice).exact
                assert [type(x) for x in found.events[:2]] == [Started, Started]
                await until(lambda: not list(folder.iterdir()), "the journal is removed")

    run(main())


def test_an_answer_taken_up_survives_a_second_crash(tmp_path: Path) -> None:
    async def main() -> None:
        point = Failpoint("edge.after_commit", "kill", 20)
        async with left_behind(tmp_path, point) as (c, folder):
            async with edge(c.address, journal="disk", journal_dir=folder) as e:
                await e.daemon.restore()
                [path] = folder.iterdir()
                [ride] = e.daemon.running.values()
                # What a crash right now would leave.
                snapshot, had = path.read_bytes(), ride.answers[0].end
                await until(lambda: not e.daemon.running)
            path.write_bytes(snapshot)
            async with edge(c.address, journal="disk", journal_dir=folder) as e:
                await e.daemon.restore()
                [ride] = [*e.daemon.running.values(), *e.daemon.ended]
                assert ride.job.exact_required, "what was required still is"
                found = Answered([x async for x in e.daemon.attach(ride.job.id, (0,))])
                assert had >= 20 and found.ids() == expected(ask(max_tokens=60))

    run(main())


def test_a_journal_waits_for_a_cloud_that_serves_its_model(tmp_path: Path) -> None:
    async def main() -> None:
        async with left_behind(tmp_path, Failpoint("edge.after_commit", "kill", 9)) as (c, folder):
            place = c.address
        async with edge(place, journal="disk", journal_dir=folder) as e:
            restoring = asyncio.create_task(e.daemon.restore())
            await until(lambda: e.daemon.link.peers[0].failures > 0)
            assert len(list(folder.iterdir())) == 1, "it is kept"
            async with cloud(tmp_path / "later", listen=place):
                await restoring
                [state] = e.daemon.requests()
                found = Answered([x async for x in e.daemon.attach(state.id, (0,))])
                assert found.ids() == expected(ask(max_tokens=60))

    run(main())


def test_journals_that_can_not_be_taken_up_are_named_and_a_newer_one_is_kept(
    tmp_path: Path,
) -> None:
    import msgspec

    from outrider.edge.journal import FORMAT
    from tests.edge.test_journal import framed

    folder = tmp_path / "journals"
    folder.mkdir()
    (folder / "newer.journal").write_bytes(framed(msgspec.msgpack.encode(["open", FORMAT + 1, {}])))
    (folder / "torn.journal").write_bytes(b"outrider journal\n\x05\0\0")
    (folder / "half.journal.new").write_bytes(b"outrider journal\n")

    async def main() -> None:
        nobody = Address("127.0.0.1", 9)
        async with edge(nobody, journal="disk", journal_dir=folder) as e:
            await e.daemon.restore()
            said = [trouble.what for trouble in e.kinds(events.Trouble)]
            assert len(said) == 2 and any("newer outrider" in what for what in said)
            assert [path.name for path in folder.iterdir()] == ["newer.journal"]

    run(main())


def test_a_disk_that_fills_up_costs_the_journal_and_not_the_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        folder = tmp_path / "journals"
        async with (
            cloud(tmp_path) as c,
            edge(c.address, journal="disk", journal_dir=folder) as e,
        ):
            writes, real = [0], os.write

            def filling(descriptor: int, data: bytes) -> int:
                writes[0] += 1
                if writes[0] > 6:
                    raise OSError(28, "No space left on device")
                return real(descriptor, data)

            monkeypatch.setattr("outrider.edge.journal.os.write", filling)
            request = ask(max_tokens=40)
            assert (await e.answer(request)).ids() == expected(request)
            [trouble] = e.kinds(events.Trouble)
            assert trouble.code == "journal" and writes[0] == 7
            assert list(folder.iterdir()) == [], "half a journal is not taken up later"

    run(main())


# --- SIGTERM -----------------------------------------------------------------------------------


def test_sigterm_lets_a_running_session_end_refuses_new_ones_and_exits_with_0(
    tmp_path: Path,
) -> None:
    async def main() -> None:
        async with Supervisor() as supervisor:
            child = await supervisor.start(cloud_child(tmp_path / "c", drain_s=20.0))
            client = connect(f"127.0.0.1:{port_of(tmp_path / 'c')}")
            running = await client.open(opening(max_tokens=60))
            await running.until(16)
            ending = asyncio.create_task(child.terminate(30.0))
            async with asyncio.timeout(20):
                while True:
                    try:
                        late = await client.open(opening(2))
                    except Refused as found:
                        assert isinstance(found.error, CloudUnreachable)
                        assert "shutting down" in found.error.what
                        break
                    await late.send(Close())
                    await asyncio.sleep(0.01)
            await running.acknowledge()
            await running.to_the_end()
            assert len(running.ids()) == 60
            assert await ending == 0
            await client.channel.close()

    run(main())


def test_sigterm_with_a_session_that_does_not_end_moves_it_to_another_cloud(
    tmp_path: Path,
) -> None:
    async def main() -> None:
        async with (
            Supervisor() as supervisor,
            cloud(tmp_path / "second") as second,
        ):
            child = await supervisor.start(cloud_child(tmp_path / "c", drain_s=0.2))
            first = Address("127.0.0.1", port_of(tmp_path / "c"))
            async with edge(first, second.address, patience_s=60.0) as e:
                await e.daemon.link.check(e.daemon.link.peers[1])
                request = ask(max_tokens=400)
                found, ending = Answered(), None
                async for event in e.daemon.generate(request):
                    found.events.append(event)
                    if ending is None and len(found.tokens()) == 20:
                        ending = asyncio.create_task(child.terminate(30.0))
                    if ending is not None and not second.opened():
                        await asyncio.sleep(0.002)
                assert ending is not None and await ending == 0
                assert found.ids() == expected(request)
                assert second.opened() and found.done().exact

    run(main())
