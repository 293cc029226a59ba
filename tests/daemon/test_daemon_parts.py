"""A server's word to its service manager, its log, and new settings while it runs."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import socket
from collections.abc import Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from outrider.config.keys import LIVE
from outrider.config.layers import Layers, with_reread
from outrider.daemon import log as logs
from outrider.daemon.log import Log
from outrider.daemon.notify import Notifier
from outrider.daemon.reload import Reloader, on_hangup
from outrider.edge.main import start
from outrider.errors import ConfigError
from outrider.options import Address, EdgeOptions
from outrider.protocol import events
from tests.support import run

NOBODY = Address("127.0.0.1", 9)


# --- the service manager -----------------------------------------------------------------------


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[tuple[str, socket.socket]]:
    """A real datagram socket, as systemd binds one."""
    place = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(place)
        listener.settimeout(5.0)
        yield place, listener


def test_the_manager_is_told(manager: tuple[str, socket.socket]) -> None:
    place, listener = manager
    environment = {"NOTIFY_SOCKET": place, "WATCHDOG_USEC": "40000", "OTHER": "x"}
    notifier = Notifier.of(environment)
    assert environment == {"OTHER": "x"}, "children would speak for us"
    notifier.ready("serves")
    assert listener.recv(4096).decode().splitlines()[:2] == ["READY=1", "STATUS=serves"]
    notifier.reloading()
    first, second = listener.recv(4096).decode().splitlines()
    assert (first, second.partition("=")[0]) == ("RELOADING=1", "MONOTONIC_USEC")
    notifier.stopping()
    assert listener.recv(4096) == b"STOPPING=1"

    async def beats() -> None:
        task = asyncio.create_task(notifier.beat())
        for _ in range(2):
            assert await asyncio.to_thread(listener.recv, 4096) == b"WATCHDOG=1"
        task.cancel()

    run(beats())


def test_an_abstract_socket_is_reached() -> None:
    name = f"outrider-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(f"\0{name}")
        listener.settimeout(5.0)
        Notifier(f"@{name}").tell("READY=1")
        assert listener.recv(64) == b"READY=1"


def test_nobody_listens_and_nothing_fails(tmp_path: Path) -> None:
    Notifier().ready("x")
    Notifier(str(tmp_path / "gone")).ready("x")
    other = {"NOTIFY_SOCKET": "x", "WATCHDOG_USEC": "1000", "WATCHDOG_PID": "1"}
    assert Notifier.of(other).watchdog_s is None, "the watchdog waits for another process"


# --- the log -----------------------------------------------------------------------------------

CANARY = "Zaphod-7c1f prompt"


@pytest.fixture
def log(tmp_path: Path) -> Iterator[tuple[Path, Log]]:
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    place = tmp_path / "log" / "edge.jsonl"
    made = Log.start(place, "info", "edge")
    yield place, made
    made.close()
    root.handlers[:] = before
    root.setLevel(level)


def lines(place: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in place.read_text().splitlines()]


def test_events_become_lines(tmp_path: Path, log: tuple[Path, Log]) -> None:
    place, made = log
    bus = logs.bus(tmp_path, "edge-1", made)
    bus.publish(events.Up(role="edge", version="1", listen="x", pid=1))
    bus.publish(events.Lag(p50_ms=1.0, p99_ms=2.0))
    bus.publish(events.Trouble(code="journal", what="w"))
    Log.set_level("debug")
    bus.publish(events.Lag(p50_ms=1.0, p99_ms=3.0))
    bus.close()
    found = [(line["level"], line["event"]) for line in lines(place)]
    assert found == [("info", "up"), ("warning", "trouble"), ("debug", "lag")]
    assert list(lines(place)[0])[:3] == ["time", "level", "event"]
    assert place.stat().st_mode & 0o077 == 0


def test_no_text_of_exceptions_gets_into_the_log(log: tuple[Path, Log]) -> None:
    place, _ = log
    try:
        raise ValueError(CANARY)
    except ValueError:
        logging.getLogger("foreign").exception("it failed\n%s", CANARY)
    (line,) = lines(place)
    assert (line["event"], line["error"]) == ("it failed", "ValueError")
    assert "test_daemon_parts" in str(line["trace"])
    assert CANARY not in place.read_text()


def test_without_a_file_nothing_is_logged(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("JOURNAL_STREAM", raising=False)
    assert Log.start(None, "info", "edge").place == ""
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="can not be written"):
        Log.start(tmp_path / "file" / "below", "info", "edge")


def test_a_log_that_grows_begins_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log: tuple[Path, Log]
) -> None:
    place, _ = log
    handler = logging.getLogger().handlers[0]
    assert isinstance(handler, logs.PrivateFile)
    monkeypatch.setattr(handler, "maxBytes", 2000)
    for number in range(60):
        logging.getLogger("outrider.test").warning("line %d", number)
    found = sorted(p.name for p in place.parent.iterdir())
    assert found == [f"edge.jsonl{end}" for end in ("", ".1", ".2", ".3")]
    assert all(p.stat().st_mode & 0o077 == 0 for p in place.parent.iterdir())


# --- new settings ------------------------------------------------------------------------------


@dataclass
class Applied:
    published: list[events.Event] = field(default_factory=list)
    taken: list[EdgeOptions] = field(default_factory=list)

    def apply(self, old: EdgeOptions, new: EdgeOptions) -> None:
        self.taken.append(new)


def reread(file: Path) -> EdgeOptions:
    def read() -> EdgeOptions:
        options = Layers.load(file, {}).settle(EdgeOptions, "edge", {}, ())
        return with_reread(options, read)

    return read()


def test_what_can_change_changes_and_the_rest_waits(tmp_path: Path) -> None:
    file, seen = tmp_path / "config.toml", Applied()
    reloader = Reloader(reread(file), LIVE["edge"], seen.apply, seen.published.append)
    assert reloader.reload().changed == () and seen.taken == []
    file.write_text("[edge]\npatience_s = 3\nmax_running = 4\n")
    found = reloader.reload()
    assert (found.changed, found.restart, found.error) == (("patience_s",), ("max_running",), None)
    assert (seen.taken[0].patience_s, seen.taken[0].max_running) == (3.0, 16)
    assert reloader.reload().changed == (), "taken once"


def test_a_broken_file_keeps_the_settings_and_says_so(tmp_path: Path) -> None:
    file, seen = tmp_path / "config.toml", Applied()
    reloader = Reloader(reread(file), LIVE["edge"], seen.apply, seen.published.append)
    file.write_text("[edge]\npatience_s = 'soon'\n")
    found = reloader.reload()
    assert found.error is not None and "not a number" in found.error["what"]
    assert reloader.options.patience_s == 10.0 and seen.taken == []
    assert isinstance(seen.published[-1], events.Trouble)


def test_a_running_daemon_takes_clouds_hosts_power_and_placement(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text("[edge]\nclouds = ['127.0.0.1:9']\ndraft = 'none'\n")

    async def main() -> None:
        options = replace(
            reread(file), listen=Address("127.0.0.1", 0), runtime_dir=tmp_path / "run"
        )
        async with AsyncExitStack() as stack:
            running = await start(options, stack)
            daemon, first = running.daemon, running.daemon.link.peers[0]
            file.write_text(
                "[edge]\ndraft = 'none'\nclouds = ['127.0.0.1:9', '127.0.0.1:10']\n"
                "allowed_hosts = ['box.lan']\nbattery_floor = 0.5\nfallback = 'wait'\n"
                "[link.home]\nurl = '127.0.0.1:11'\npriority = 2\n"
            )
            found = running.reloader.reload()
            assert found.error is None
            assert {"clouds", "links", "allowed_hosts"} <= set(found.changed)
            assert daemon.options.fallback == "wait"
            peers = list(daemon.link.peers)
            assert [p.address for p in peers] == ["127.0.0.1:9", "127.0.0.1:10", "127.0.0.1:11"]
            assert peers[0] is first and peers[2].name == "home"
            assert daemon.power is not None and daemon.power.governor.policy.battery_floor == 0.5
            file.write_text("[edge]\ndraft = 'none'\nclouds = ['127.0.0.1:10']\n")
            running.reloader.reload()
            assert [p.address for p in daemon.link.peers] == ["127.0.0.1:10"]
            assert daemon.link.peers[0] is peers[1]

    run(main())


def test_a_hangup_reads_anew(tmp_path: Path) -> None:
    file, seen = tmp_path / "config.toml", Applied()
    reloader = Reloader(reread(file), LIVE["edge"], seen.apply, seen.published.append)

    async def main() -> None:
        on_hangup(reloader, Notifier())
        file.write_text("[edge]\npatience_s = 3\n")
        os.kill(os.getpid(), signal.SIGHUP)
        while not seen.taken:
            await asyncio.sleep(0.001)

    before = signal.getsignal(signal.SIGHUP)
    try:
        run(main())
    finally:
        signal.signal(signal.SIGHUP, before)
    assert seen.taken[0].patience_s == 3.0


def test_a_lazy_draft_is_loaded_at_the_first_request(tmp_path: Path) -> None:
    from outrider.protocol.stream import Token
    from tests.support import ask

    async def main() -> None:
        options = EdgeOptions(
            listen=Address("127.0.0.1", 0),
            clouds=(NOBODY,),
            draft="fake",
            draft_engine="fake",
            draft_load="lazy",
            runtime_dir=tmp_path / "run",
        )
        async with AsyncExitStack() as stack:
            daemon = (await start(options, stack)).daemon
            assert daemon.small is None and daemon.ready()
            assert (daemon.status().draft, daemon.status().draft_later) == (None, "fake")
            heard = [e async for e in daemon.generate(ask(placement="edge", max_tokens=3))]
            assert sum(isinstance(event, Token) for event in heard) == 3
            assert daemon.small is not None and daemon.status().draft_later == ""

    run(main())
