"""`doctor` finds what works and what does not; `bench` finds its benches."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from outrider import benches
from outrider.cli import app, health
from outrider.cli.where import Daemon
from outrider.errors import ConfigError, NotFound
from outrider.protocol.status import CloudStatus, Status
from outrider.testing.local_edge import LocalEdge
from outrider.testing.served import Served


@pytest.fixture(autouse=True)
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OUTRIDER_RUNTIME", str(tmp_path / "run"))
    monkeypatch.setenv("OUTRIDER_STATE", str(tmp_path / "state"))


def test_doctor(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "ENGINES", {"fake": "numpy"})
    with Served(LocalEdge()) as served:
        code = app.run(("doctor", "--json", "--host", served.url))
    found = {check["name"]: check for check in json.loads(capsys.readouterr().out)["checks"]}
    assert code == 0
    assert found["python"]["state"] == found["daemon"]["state"] == "ok"
    assert found["engine fake"]["detail"].startswith("cpu, float64, exact")
    assert found["runtime folder"]["state"] == "ok"


def test_doctor_fails_when_something_does(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health, "ENGINES", {"made-up": "numpy"})
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    assert app.run(("doctor", "--host", f"127.0.0.1:{port}")) == 1
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("failed   engine made-up") for line in lines)
    assert any(line.startswith("warning  daemon") for line in lines)
    assert any("try: outrider up" in line for line in lines)


def test_an_engine_runs_a_real_operation() -> None:
    assert health.works("ngram", "numpy").state == "ok"


def test_an_engine_without_its_library() -> None:
    check = health.works("made-up", "no_such_library")
    assert (check.state, check.detail) == ("absent", "no_such_library is not installed")


def ended(monkeypatch: pytest.MonkeyPatch, code: int, output: bytes = b"") -> health.Check:
    def run(*words: Any, **settings: Any) -> subprocess.CompletedProcess[bytes]:
        return subprocess.CompletedProcess([], code, output, b"")

    monkeypatch.setattr(subprocess, "run", run)
    return health.works("llama", "numpy")


def test_a_library_for_another_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    check = ended(monkeypatch, -4)
    assert check.state == "failed"
    assert "SIGILL" in check.detail and "outrider[llama]" in check.todo


def test_a_probe_without_a_word(monkeypatch: pytest.MonkeyPatch) -> None:
    assert ended(monkeypatch, 1).detail == "it ended without a word"


def test_the_probe_says_why() -> None:
    command = [sys.executable, "-m", "outrider.cli.probe", "made-up"]
    done = subprocess.run(command, capture_output=True, check=False)
    found = json.loads(done.stdout)
    assert (done.returncode, found["ok"]) == (1, False)
    assert "no engine 'made-up'" in found["what"]


def test_extras() -> None:
    assert health.installed("x", ("json", "os")).state == "ok"
    check = health.installed("x", ("json", "no_such_module"))
    assert (check.state, check.detail) == ("absent", "without no_such_module")
    assert check.todo == 'pip install "outrider[x]"'


def test_folders(tmp_path: Path) -> None:
    assert health.writable("state", tmp_path / "new" / "deep").state == "ok"
    (tmp_path / "file").write_text("")
    check = health.writable("state", tmp_path / "file")
    assert check.state == "failed" and "OUTRIDER_STATE" in check.todo


def test_ports() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        number = taken.getsockname()[1]
        assert health.port("p", number, used=False).state == "warning"
        assert health.port("p", number, used=True).state == "ok"
    assert health.port("p", number, used=False).state == "ok"


class Clouded(LocalEdge):
    """Says that it knows two clouds."""

    def status(self) -> Status:
        from msgspec.structs import replace

        away = CloudStatus("b:2", "unreachable", None, None, "refused")
        return replace(super().status(), clouds=(CloudStatus("a:1", "connected", 7.0, "m"), away))


def test_clouds_of_the_daemon() -> None:
    with Served(Clouded()) as served:
        _, first, second = health.daemon(Daemon(served.url))
    assert (first.state, first.detail) == ("ok", "a:1 connected, RTT 7.0 ms")
    assert (second.state, second.todo) == ("warning", "start `outrider cloud` at b:2")


def test_status_shows_clouds(capsys: pytest.CaptureFixture[str]) -> None:
    with Served(Clouded()) as served:
        assert app.run(("status", "--strict", "--host", served.url)) == 0
    out = capsys.readouterr().out
    assert "a:1, connected, m, RTT 7.0 ms" in out
    assert "b:2, unreachable, refused" in out
    assert "no cloud is connected" not in out


# --- benches -----------------------------------------------------------------------------------


def test_benches_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert app.run(("bench",)) == 0
    assert "pair" in capsys.readouterr().out.splitlines()
    assert app.run(("bench", "--json")) == 0
    assert "pair" in json.loads(capsys.readouterr().out)["benches"]


def test_an_unknown_bench_names_the_others() -> None:
    with pytest.raises(NotFound, match="pair"):
        benches.run("none")


def test_an_installed_package_has_no_benches(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="source checkout"):
        benches.folder(tmp_path / "outrider" / "__init__.py")


def test_flags_reach_the_bench(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, list[str]]] = []

    def run(name: str, flags: list[str]) -> int:
        asked.append((name, flags))
        return 0

    monkeypatch.setattr(benches, "run", run)
    assert app.run(("bench", "pair", "--quick", "--json", "--seed", "4")) == 0
    assert asked == [("pair", ["--json", "--quick", "--seed", "4"])]
