"""The supervisor, with real child processes."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Coroutine
from pathlib import Path

import pytest

pytest.importorskip("psutil", reason="needs outrider[edge]")

from outrider.errors import ConfigError
from outrider.testing import child as children
from outrider.testing.child import (
    ChildError,
    ChildSpec,
    ReadyFile,
    ReadyLine,
    ReadyPort,
    process_state,
)
from outrider.testing.failpoints import Failpoint
from outrider.testing.supervisor import Supervisor

LIMIT_S = 60

WAITS = """
import signal
print("ready", 42)
signal.pause()
"""

COUNTS = """
import time
from outrider.testing.failpoints import hit
print("ready", 0)
for index in range(10**9):
    print("at", index)
    hit("loop")
    time.sleep(0.001)
"""

HAS_OFFSPRING = """
import signal, subprocess, sys
inner = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"])
print("ready", inner.pid)
signal.pause()
"""


def run(main: Coroutine[object, object, None]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(LIMIT_S):
            await main

    asyncio.run(bounded())


def python(name: str, code: str, **others: object) -> ChildSpec:
    fields: dict[str, object] = {"ready": ReadyLine(r"ready (\d+)")}
    argv = [sys.executable, "-c", textwrap.dedent(code)]
    return ChildSpec(name, argv, **(fields | others))  # type: ignore[arg-type]


async def until_gone(pid: int) -> None:
    while process_state(pid) != "gone":
        await asyncio.sleep(0.002)


def test_child_is_ready_by_its_line_and_dies_by_kill() -> None:
    async def main() -> None:
        async with Supervisor() as supervisor:
            child = await supervisor.start(python("one", WAITS))
            assert child.ready is not None
            assert child.ready[1] == "42"
            assert (child.is_running, child.status, supervisor["one"]) == (True, None, child)
            assert await child.kill() == -signal.SIGKILL
            assert not child.is_running
            with pytest.raises(ChildError, match="SIGTERM"):
                await child.terminate()

    run(main())


def test_all_children_end_with_the_supervisor_stopped_ones_and_offspring_too() -> None:
    async def main() -> None:
        async with Supervisor() as supervisor:
            one = await supervisor.start(python("one", HAS_OFFSPRING))
            two = await supervisor.start(python("two", WAITS))
            await two.freeze()
            assert one.ready is not None
            pids = [one.pid, int(one.ready[1]), two.pid]
            assert all(process_state(pid) != "gone" for pid in pids)
        for pid in pids:
            await until_gone(pid)

    run(main())


@pytest.mark.skipif(sys.platform != "linux", reason="the tie to the parent is Linux's")
def test_children_end_when_the_supervisors_program_is_killed() -> None:
    program = f"""
    import asyncio, signal, sys
    from outrider.testing.child import ChildSpec, ReadyLine
    from outrider.testing.supervisor import Supervisor

    async def main():
        async with Supervisor() as supervisor:
            argv = [sys.executable, "-c", {WAITS!r}]
            child = await supervisor.start(ChildSpec("one", argv, ready=ReadyLine("ready")))
            print(child.pid, flush=True)
            signal.pause()

    asyncio.run(main())
    """
    command = [sys.executable, "-c", textwrap.dedent(program)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as outer:
        assert outer.stdout is not None
        pid = int(outer.stdout.readline())
        assert process_state(pid) == "running"
        outer.kill()
        outer.wait()
        asyncio.run(asyncio.wait_for(until_gone(pid), LIMIT_S))


def test_terminate_waits_for_a_graceful_end() -> None:
    code = """
    import signal, sys
    def leave(number, frame):
        print("bye")
        sys.exit(7)
    signal.signal(signal.SIGTERM, leave)
    print("ready", 1)
    while True:
        signal.pause()
    """

    async def main() -> None:
        async with Supervisor() as supervisor:
            child = await supervisor.start(python("one", code))
            assert await child.terminate() == 7
            assert (await child.wait_line("bye"))[0] == "bye"

    run(main())


def test_a_child_that_ignores_sigterm_is_reported_and_left() -> None:
    code = """
    import signal
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    print("ready", 1)
    signal.pause()
    """

    async def main() -> None:
        async with Supervisor() as supervisor:
            child = await supervisor.start(python("stubborn", code))
            with pytest.raises(ChildError, match="stubborn.*did not end"):
                await child.terminate(patience_s=0.1)
            assert child.is_running

    run(main())


def test_freeze_stops_and_thaw_goes_on() -> None:
    async def main() -> None:
        async with Supervisor() as supervisor:
            child = await supervisor.start(python("one", COUNTS))
            await child.wait_line("at 3")
            await child.freeze()
            assert process_state(child.pid) == "stopped"
            for _ in range(20):  # What it had written before may still come in.
                await asyncio.sleep(0.001)
            seen = child.lines
            for _ in range(20):
                await asyncio.sleep(0.001)
            assert child.lines == seen
            child.thaw()
            await child.wait_line(f"at {int(seen[-1].split()[1]) + 5}$")

    run(main())


def test_restart_at_a_named_point() -> None:
    async def main() -> None:
        async with Supervisor() as supervisor:
            armed = (Failpoint("loop", "kill", 3),)
            child = await supervisor.start(python("one", COUNTS, failpoints=armed))
            found = await child.reached("loop")
            assert (found["action"], int(found["pid"])) == ("kill", child.pid)
            assert child.status == -signal.SIGKILL
            assert [line for line in child.lines if line.startswith("at")] == [
                "at 0",
                "at 1",
                "at 2",
            ]
            await child.restart(Failpoint("loop", "stop", 2))
            await child.reached("loop")
            assert process_state(child.pid) == "stopped"
            assert child.lines[-2] == "at 1"
            child.thaw()
            await child.wait_line("at 6")
            await child.restart()
            await child.wait_line("at 6")
            assert not any("failpoint" in line for line in child.lines)

    run(main())


def test_a_point_reached_in_a_process_the_child_started() -> None:
    code = """
    import os, signal, subprocess, sys
    inner = 'from outrider.testing.failpoints import hit; hit("inner"); print("past")'
    subprocess.run([sys.executable, "-c", inner])
    print("ready", 1)
    signal.pause()
    """

    async def main() -> None:
        async with Supervisor() as supervisor:
            armed = (Failpoint("inner", "exit"),)
            child = await supervisor.start(python("one", code, failpoints=armed))
            found = await child.reached("inner")
            assert int(found["pid"]) != child.pid
            assert child.is_running
            assert "past" not in child.lines

    run(main())


def test_ready_by_file_and_by_port(tmp_path: Path) -> None:
    by_file = f"""
    import pathlib, signal
    pathlib.Path({str(tmp_path / "made")!r}).touch()
    signal.pause()
    """
    by_port = """
    import socket, signal
    listener = socket.create_server(("127.0.0.1", {port}))
    signal.pause()
    """

    async def main() -> None:
        probe = await asyncio.start_server(lambda r, w: w.close(), "127.0.0.1", 0)
        port = probe.sockets[0].getsockname()[1]
        probe.close()
        async with Supervisor() as supervisor:
            ready = ReadyFile(tmp_path / "made")
            one = await supervisor.start(python("file", by_file, ready=ready))
            code = textwrap.dedent(by_port).format(port=port)
            listens = ReadyPort("127.0.0.1", port)
            two = await supervisor.start(python("port", code, ready=listens))
            assert (one.is_running, two.is_running) == (True, True)
            assert (tmp_path / "made").exists()

    run(main())


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("print('broken'); raise SystemExit(3)", "status 3"),
        (WAITS.replace("ready", "no"), "within"),
    ],
)
def test_a_child_that_does_not_get_ready_is_ended_and_its_output_told(code: str, said: str) -> None:
    async def main() -> None:
        async with Supervisor() as supervisor:
            limit = 60 if "status" in said else 0.5
            with pytest.raises(ChildError, match=said) as caught:
                await supervisor.start(python("one", code, ready_timeout_s=limit))
            assert not supervisor["one"].is_running
            assert ("broken" in str(caught.value)) == ("broken" in code)

    run(main())


def test_a_program_that_is_not_there_is_told() -> None:
    async def main() -> None:
        async with Supervisor() as supervisor:
            spec = ChildSpec("none", ["/no/such/program"], ready=ReadyLine("x"))
            with pytest.raises(ChildError, match="/no/such/program"):
                await supervisor.start(spec)

    run(main())


def test_a_name_is_used_once_at_a_time() -> None:
    async def main() -> None:
        async with Supervisor() as supervisor:
            child = await supervisor.start(python("one", WAITS))
            with pytest.raises(ConfigError, match="one"):
                await supervisor.start(python("one", WAITS))
            await child.kill()
            assert (await supervisor.start(python("one", WAITS))).is_running
            assert supervisor.names == ("one",)

    run(main())


def test_output_is_bounded_in_lines_and_in_length() -> None:
    code = """
    import sys
    for index in range(5000):
        print("line", index)
    sys.stdout.write("x" * 1_000_000 + chr(10))
    print("ready", 1)
    """

    async def main() -> None:
        async with Supervisor() as supervisor:
            child = await supervisor.start(python("loud", code))
            await child.wait()
            assert len(child.lines) <= children.TAIL_LINES
            assert max(len(line) for line in child.lines) == children.LINE_CHARACTERS

    run(main())


def test_nice_and_environment_reach_the_child() -> None:
    code = (
        "import os; print('ready', os.nice(0), os.environ['COLOUR']); import signal; signal.pause()"
    )

    async def main() -> None:
        async with Supervisor() as supervisor:
            ready = ReadyLine(r"ready (\d+) (\w+)")
            spec = python("one", code, nice=2, env={"COLOUR": "red"}, ready=ready)
            child = await supervisor.start(spec)
            assert child.ready is not None
            assert child.ready.groups() == (str(min(19, os.nice(0) + 2)), "red")

    run(main())


LAST_WORDS = "import os; [print('line', n) for n in range(400)]; print('the reason'); os._exit(3)"


def test_an_early_end_is_told_with_its_very_last_words(tmp_path: Path) -> None:
    async def main() -> None:
        async with Supervisor() as supervisor:
            spec = ChildSpec(
                "one", (sys.executable, "-u", "-c", LAST_WORDS), ready=ReadyFile(tmp_path / "never")
            )
            with pytest.raises(ChildError) as caught:
                await supervisor.start(spec)
            assert caught.value.what == "child 'one': it ended with status 3 before it got ready"
            assert caught.value.why.endswith("the reason")

    asyncio.run(main())
