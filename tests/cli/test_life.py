"""The daemon's life by its verbs: settings, up and down, logs, links; and what every verb keeps."""

from __future__ import annotations

import json
import os
import socket
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from outrider import paths
from outrider.cli import app as entry
from outrider.cli import background, bundle, health, logs, mend, purge
from outrider.cli.jetson import Jetson
from outrider.cli.where import Daemon
from outrider.testing.local_edge import LocalEdge
from outrider.testing.served import Served

Say = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Everything of Outrider below one folder of the test's."""
    for name in list(os.environ):
        if name.startswith("OUTRIDER_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("OUTRIDER_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "xdg"))
    return tmp_path / "home"


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str]) -> Say:
    def run(*words: str) -> tuple[int, str, str]:
        code = entry.run(words)
        found = capsys.readouterr()
        return code, found.out, found.err

    return run


# --- every verb --------------------------------------------------------------------------------

SERVERS = {"cloud", "edge", "worker"}
TALKS = {"chat", "completion", "top"}
"""They print no data, or data of another form."""
ASKS = {"ps", "stop", "status", "models", "run", "chat", "power", "doctor"}


@pytest.mark.parametrize("verb", sorted(entry.VERBS))
def test_every_verb_keeps_the_conventions(say: Say, verb: str) -> None:
    subs = {
        "config": ("show", "reload"),
        "link": ("test", "invite"),
        "tenants": ("add", "ls", "revoke"),
        "vault": ("init", "status", "rotate", "erase"),
    }.get(verb, ("",))
    for sub in subs:
        code, out, _ = say(*filter(None, (verb, sub, "--help")))
        assert code == 0
        for flag in ("--config", "--quiet", "--no-color", "--no-input", "--debug"):
            assert flag in out, f"{verb} {sub}: {flag}"
        if verb not in SERVERS | TALKS:
            assert "--json" in out, f"{verb} {sub}"
        if verb in ASKS:
            assert "--host" in out and "--api-key" in out


def test_flags_of_every_verb_stand_anywhere(say: Say, tmp_path: Path) -> None:
    other = tmp_path / "other.toml"
    other.write_text("schema = 1\n[edge]\nmax_queue = 5\n")
    for words in (
        ("--config", str(other), "config", "path"),
        ("config", "path", f"--config={other}"),
    ):
        assert say(*words)[1].strip() == str(other)
    assert "OUTRIDER_CONFIG" not in os.environ, "a flag ends with its command line"
    code, _, err = say("--config", str(tmp_path / "none"), "config", "path")
    assert code == 2 and "there is no such file" in err


def test_quiet_keeps_hints_away_and_errors_not(say: Say) -> None:
    assert say("config", "init", "-q")[2] == ""
    code, _, err = say("config", "init", "-q")
    assert code == 2 and "is there already" in err


# --- settings ----------------------------------------------------------------------------------


def test_settings_from_nothing_to_in_force(say: Say, monkeypatch: pytest.MonkeyPatch) -> None:
    assert say("config", "init")[1].strip() == str(paths.config_file())
    code, out, err = say("config", "set", "edge.patience_s", "3")
    assert (code, "edge.patience_s = 3.0  # " in out) == (0, True)
    assert "outrider config reload" in err
    assert "a restart" in say("config", "set", "edge.max_running", "3")[2]
    monkeypatch.setenv("OUTRIDER_EDGE__MAX_QUEUE", "7")
    shown = json.loads(say("config", "show", "--origin", "--json")[1])["settings"]["edge"]
    assert shown["max_queue"] == {"value": 7, "origin": "OUTRIDER_EDGE__MAX_QUEUE"}
    assert shown["patience_s"]["origin"].startswith(str(paths.config_file()))
    assert shown["fallback"] == {"value": "local", "origin": "default"}
    out = say("config", "show", "--origin", "--changed")[1]
    assert "max_queue = 7" in out and "fallback" not in out
    assert json.loads(say("config", "schema")[1])["type"] == "object"
    assert say("config", "unset", "edge.patience_s")[1] == "edge.patience_s = 10.0  # default\n"


def test_two_keys_that_go_together_may_be_set_one_by_one(say: Say) -> None:
    code, _, err = say("config", "set", "edge.cloud_cert", "/c.pem")
    assert code == 0 and "warning:" in err and "go together" in err
    assert "warning:" not in say("config", "set", "edge.cloud_key", "/k.pem")[2]


def test_servers_read_the_settings(say: Say, monkeypatch: pytest.MonkeyPatch) -> None:
    from outrider.cli import servers
    from outrider.options import EdgeOptions

    seen: list[EdgeOptions] = []

    def serve(options: EdgeOptions) -> int:
        seen.append(options)
        return 0

    monkeypatch.setattr(servers, "_serve_edge", lambda: serve)
    say("config", "set", "edge.patience_s", "3")
    say("config", "set", "edge.max_queue", "3")
    assert say("edge", "--max-queue", "64")[0] == 0
    assert (seen[0].patience_s, seen[0].max_queue) == (3.0, 64)
    say("config", "set", "edge.patience_s", "4")
    assert seen[0].reread is not None
    again = seen[0].reread()
    assert (again.patience_s, again.max_queue) == (4.0, 64), "flags stay"


# --- logs --------------------------------------------------------------------------------------

LINES = [
    {"time": "2026-11-23T03:00:00.000000Z", "level": "info", "event": "up", "pid": 1},
    {"time": "2026-11-23T03:00:01.000000Z", "level": "debug", "event": "lag", "p99_ms": 2.5},
    {"time": "2026-11-23T03:00:02.000000Z", "level": "info", "event": "done", "request": "r1"},
    {"time": "2026-11-23T03:00:03.000000Z", "level": "warning", "event": "link", "request": "r2"},
]


@pytest.fixture
def log() -> Path:
    place = paths.log_file("edge")
    place.parent.mkdir(parents=True)
    place.write_text("".join(json.dumps(line) + "\n" for line in LINES))
    return place


@pytest.mark.usefixtures("log")
def test_logs(say: Say) -> None:
    assert [line.split()[2] for line in say("logs")[1].splitlines()] == [
        "up",
        "lag",
        "done",
        "link",
    ]
    assert [line.split()[2] for line in say("logs", "-n", "1")[1].splitlines()] == ["link"]
    assert say("logs", "--request", "r1")[1].split()[2] == "done"
    assert "link" in (out := say("logs", "--level", "warning")[1]) and "done" not in out
    assert [json.loads(line) for line in say("logs", "--json")[1].splitlines()] == LINES


def test_logs_without_a_log(say: Say) -> None:
    code, _, err = say("logs")
    assert code == 3 and "there is no log of the edge" in err and "outrider up" in err


def test_following_goes_over_to_the_new_file(log: Path) -> None:
    file = logs.File(log)
    assert len(list(file.last())) == len(LINES)
    with log.open("a") as more:
        more.write('{"event":"half')
    assert file._new() == []
    with log.open("a") as more:
        more.write(' and whole"}\n')
    assert file._new() == ['{"event":"half and whole"}']
    log.rename(log.with_name("edge.jsonl.1"))
    log.write_text('{"event":"new"}\n')
    assert file._new() == ['{"event":"new"}']
    assert len(list(logs.File(log).last())) == len(LINES) + 2, "older files come first"


# --- links -------------------------------------------------------------------------------------


def test_links_by_verb(say: Say) -> None:
    assert say("link", "add", "home", "grpc://127.0.0.1:9", "--priority", "3")[0] == 0
    (row,) = json.loads(say("link", "ls", "--json")[1])["links"]
    assert (row["name"], row["url"], row["priority"]) == ("home", "127.0.0.1:9", 3)
    assert say("link", "add", "far", "cloud.example:1")[0] == 2
    assert say("link", "test", "nowhere")[0] == 3
    assert say("link", "rm", "home")[0] == 0
    assert say("link", "rm", "home")[0] == 3


def test_a_dial_says_at_which_step_it_failed(say: Say) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    code, _, err = say("link", "test", f"127.0.0.1:{port}")
    assert code == 5
    assert f"(deadline 2 s, DNS ok, TCP refused)\n  why: nothing listens at 127.0.0.1:{port}" in err
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        where = f"127.0.0.1:{silent.getsockname()[1]}"
        code, _, err = say("link", "test", where, "--deadline", "0.3")
    assert code == 5 and "DNS ok, TCP ok, handshake failed" in err


# --- up and down -------------------------------------------------------------------------------


def test_a_daemon_in_the_background_from_up_to_purge(say: Say, home: Path) -> None:
    """The whole way, with a real process, once."""
    for key, value in (("listen", "127.0.0.1:0"), ("draft", "none"), ("clouds", "127.0.0.1:9")):
        say("config", "set", f"edge.{key}", value)
    code, out, _ = say("up", "--json", "--timeout", "60")
    assert code == 0
    (server,) = json.loads(out)["servers"]
    try:
        assert server["already"] is False
        card = paths.card_file("edge")
        assert card.stat().st_mode & 0o077 == 0 and card.parent.stat().st_mode & 0o077 == 0
        assert "runs already" in say("up")[1]
        assert json.loads(say("status", "--json")[1])["pid"] == server["pid"]
        assert json.loads(say("ps", "--json")[1])["requests"] == []
        say("config", "set", "edge.patience_s", "3")
        assert json.loads(say("config", "reload", "--json")[1])["changed"] == ["patience_s"]
        assert '"event":"up"' in say("logs", "--json")[1]
        assert say("--no-input", "down", "--purge")[0] == 2
        assert background.running("edge") is not None
    finally:
        code, out, _ = say("down", "--purge", "--yes", "--json")
    assert code == 0 and json.loads(out)["stopped"] == ["edge"]
    assert background.ours(server["pid"]) is False
    assert not home.exists(), "nothing is left behind"
    assert say("down")[1] == "nothing ran\n"


def test_what_can_not_work_fails_before_anything_is_started(say: Say, home: Path) -> None:
    say("config", "set", "edge.listen", "0.0.0.0:0")
    code, _, err = say("up")
    assert code == 2 and "not a loopback address" in err
    assert not paths.log_file("edge").exists()


def test_a_pair_that_is_not_here_says_what_to_pull(say: Say) -> None:
    code, _, errors = say("up", "--pair", "qwen3-8b")
    assert code == 3
    assert "outrider pull --pair qwen3-8b" in errors
    code, _, errors = say("up", "--pair", "qwen-8b")
    assert code == 3
    assert "did you mean qwen3-8b" in errors
    code, _, errors = say("up", "--install", "--pair", "qwen3-8b")
    assert code == 2
    assert "edge.draft qwen3:0.6b" in errors
    assert background.running("edge") is None


@pytest.mark.parametrize(
    ("said", "what", "why", "todo"),
    [
        (
            "loading x\nerror: port 1 is taken\n  why: w: v\n  try: t\n",
            "port 1 is taken",
            "w: v",
            "t",
        ),
        ("Segmentation fault\n", "the edge ended with status 2 before it served", "", "read "),
    ],
)
def test_a_server_that_ends_tells_why(
    tmp_path: Path, said: str, what: str, why: str, todo: str
) -> None:
    (tmp_path / "edge.err").write_text(said)
    found = background._failed("edge", 2, tmp_path / "edge.err")
    assert (found.what, found.why, found.exit_code) == (what, why, 2)
    assert found.todo.startswith(todo)


def test_a_card_of_a_process_that_is_gone_is_no_daemon() -> None:
    card = paths.card_file("edge")
    paths.write_atomically(card, b'{"schema":1,"url":"http://127.0.0.1:1","pid":1,"events":""}')
    assert background.running("edge") is None, "process 1 is not ours"
    assert list(mend.mend()) != [] and not card.exists()


# --- purge -------------------------------------------------------------------------------------


def test_a_purge_leaves_what_is_not_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shared, target = tmp_path / "shared", tmp_path / "target"
    target.mkdir()
    (target / "precious").write_text("x")
    (shared / "log").mkdir(parents=True)
    (shared / "log" / "edge.jsonl").write_text("{}")
    (shared / "thesis.tex").write_text("x")
    (shared / "journals").symlink_to(target)
    monkeypatch.setenv("OUTRIDER_STATE", str(shared))
    found = purge.pieces()
    assert {piece.path.name for piece in found} == {"log", "journals"}
    purge.remove(found)
    assert [p.name for p in shared.iterdir()] == ["thesis.tex"]
    assert (target / "precious").exists(), "links are not followed"


# --- doctor ------------------------------------------------------------------------------------

ORIN = "NVIDIA Jetson Orin Nano Developer Kit\0"


def jetson(root: Path, release: str) -> Path:
    for name, text in {
        "proc/device-tree/model": ORIN,
        "etc/nv_tegra_release": release,
        "proc/meminfo": "MemTotal:        7802900 kB\n",
        "var/lib/nvpmodel/status": "pmode:0002\n",
    }.items():
        place = root / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)
    return root


@pytest.mark.parametrize(
    ("release", "jetpack", "python", "said"),
    [
        ("# R36 (release), REVISION: 4.3, GCID: 1", "6", (3, 10), "uv python install"),
        ("# R39 (release), REVISION: 2.0", "7.2", (3, 12), "llama"),
        ("# R35 (release), REVISION: 5.0", "5", (3, 11), "install JetPack 6"),
    ],
)
def test_doctor_knows_jetsons(
    tmp_path: Path, release: str, jetpack: str, python: tuple[int, int], said: str
) -> None:
    found = Jetson.find(jetson(tmp_path, release))
    assert found is not None
    assert (found.jetpack, found.power_mode) == (jetpack, "2")
    advice = " ".join(f"{what} {todo}" for what, todo in found.advice(python))
    assert said in advice and "share 7.4 GiB" in advice and "stop the desktop" in advice
    checks = list(health.jetson(tmp_path))
    assert checks[0].detail.startswith("NVIDIA Jetson Orin Nano")
    assert (checks[1].state == "failed") is (jetpack == "5")


def test_other_machines_are_no_jetsons(tmp_path: Path) -> None:
    assert Jetson.find(tmp_path) is None and list(health.jetson(tmp_path)) == []


def test_doctor_looks_at_settings_room_and_clock(tmp_path: Path) -> None:
    assert health.settings().state == "ok"
    paths.write_atomically(paths.config_file(), b"[edge]\npatience = 3\n")
    check = health.settings()
    assert check.state == "failed" and "patience_s" in check.todo
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc" / "meminfo").write_text("MemAvailable:   100000 kB\n")
    memory, disk = health.room(tmp_path)
    assert memory.state == "warning" and disk.name == "disk"
    assert health.clock(now=0.0).state == "failed"
    assert health.clock(root=tmp_path).state == "ok"
    (tmp_path / "run" / "systemd" / "timesync").mkdir(parents=True)
    assert health.clock(root=tmp_path).state == "warning"


def test_fixing_makes_folders_and_takes_rights() -> None:
    paths.write_atomically(paths.config_file(), b"schema = 1\n")
    paths.config_file().chmod(0o666)
    socket_file = paths.runtime_dir() / "edge-999999999.events"
    socket_file.parent.mkdir(parents=True, mode=0o755)
    socket_file.touch()
    done = "\n".join(mend.mend())
    assert "is readable by you alone" in done and "is made" in done and "gone is removed" in done
    assert paths.config_file().stat().st_mode & 0o077 == 0
    assert paths.runtime_dir().stat().st_mode & 0o077 == 0
    assert not socket_file.exists() and list(mend.mend()) == []


CANARY = "sk-canary-51ef"


def test_a_bundle_holds_no_key_and_no_prompt(
    tmp_path: Path, log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OUTRIDER_API_KEY", CANARY)
    monkeypatch.setenv("OUTRIDER_CLOUD_API_KEY", CANARY)
    monkeypatch.setenv("NEAR_KEY", CANARY)
    text = b"[link.home]\nurl = '127.0.0.1:9'\napi_key_ref = 'env:NEAR_KEY'\n"
    paths.write_atomically(paths.config_file(), text)
    with log.open("a") as more:
        more.write(f"a native library said {CANARY}\n")
    place = tmp_path / "report.zip"
    with Served(LocalEdge()) as served:
        bundle.write(place, [health.python()], Daemon(served.url))
    with zipfile.ZipFile(place) as found:
        names = set(found.namelist())
        data = b"".join(found.read(name) for name in names)
    assert names == {"checks.json", "machine.json", "settings.json", "status.json", "edge.jsonl"}
    assert CANARY.encode() not in data
    assert b"OUTRIDER_API_KEY" in data, "that it is set, is told"
    assert place.stat().st_mode & 0o077 == 0


# --- requests ----------------------------------------------------------------------------------


def test_ps_and_stop(say: Say) -> None:
    with Served(LocalEdge()) as served:
        say("run", "x", "--max-tokens", "3", "--host", served.url)
        assert say("ps", "--host", served.url)[1].startswith("no request runs")
        assert "done" in say("ps", "--all", "--host", served.url)[1]
        assert say("stop", "local/fake", "--host", served.url)[1] == "local/fake: nothing runs\n"
        code, _, err = say("stop", "none", "--host", served.url)
        assert code == 3 and "outrider ps" in err


def test_a_daemon_without_settings_can_not_reload(say: Say) -> None:
    with Served(LocalEdge()) as served:
        assert say("config", "reload", "--host", served.url)[0] == 3


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_knows_every_verb(say: Say, shell: str) -> None:
    code, out, _ = say("completion", shell)
    assert code == 0
    assert [verb for verb in entry.VERBS if verb not in out] == []
