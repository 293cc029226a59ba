"""The verbs, as they are typed: what goes to which stream, and the exit codes."""

from __future__ import annotations

import io
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import outrider
from outrider.cli import app as entry
from outrider.cli import servers
from outrider.errors import (
    AccessDenied,
    CloudUnreachable,
    LinkLost,
    ModelCorrupt,
    OutriderError,
    Overloaded,
)
from outrider.options import Address, CloudOptions, EdgeOptions, NamedModel
from outrider.protocol.stream import Forked, Waiting
from outrider.testing.local_edge import LocalEdge
from outrider.testing.scripted_edge import ScriptedEdge, Step, done, started, token
from outrider.testing.served import Served

Say = Callable[..., tuple[int, str, str]]


@pytest.fixture
def edge() -> LocalEdge:
    return LocalEdge()


@pytest.fixture
def url(edge: LocalEdge, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    with Served(edge) as served:
        monkeypatch.setenv("OUTRIDER_HOST", served.url)
        yield served.url


@pytest.fixture
def nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An address where nothing answers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setenv("OUTRIDER_HOST", f"127.0.0.1:{free.getsockname()[1]}")
    monkeypatch.setenv("OUTRIDER_RUNTIME", str(tmp_path / "run"))
    monkeypatch.setenv("OUTRIDER_STATE", str(tmp_path / "state"))


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str]) -> Say:
    """(exit code, standard output, standard error) of a command line."""

    def run(*words: str) -> tuple[int, str, str]:
        code = entry.run(words)
        found = capsys.readouterr()
        return code, found.out, found.err

    return run


# --- without a daemon --------------------------------------------------------------------------


@pytest.mark.usefixtures("nobody")
def test_bare_is_a_quickstart_when_no_daemon_runs(say: Say) -> None:
    code, out, err = say()
    assert (code, err) == (0, "")
    assert "outrider demo" in out and len(out.splitlines()) == 3


@pytest.mark.usefixtures("nobody")
@pytest.mark.parametrize("verb", [("run", "x"), ("chat",), ("status",), ("models",)])
def test_no_daemon_is_4(say: Say, verb: tuple[str, ...]) -> None:
    code, out, err = say(*verb)
    assert (code, out) == (4, "")
    assert "error: no daemon answers" in err
    assert "try: start one with `outrider edge`" in err


@pytest.mark.usefixtures("nobody")
def test_an_error_is_json_for_those_who_asked_for_json(say: Say) -> None:
    code, out, err = say("status", "--json")
    found = json.loads(out)
    assert (code, found["schema"], found["error"]["code"]) == (4, 1, "daemon_unreachable")
    assert "error:" in err


def test_help_names_every_verb(say: Say) -> None:
    code, out, _ = say("--help")
    assert code == 0
    for verb in entry.VERBS:
        assert f" {verb} " in out


@pytest.mark.parametrize("verb", sorted(entry.VERBS))
def test_help_of_every_verb_explains_every_flag(say: Say, verb: str) -> None:
    code, out, _ = say(verb, "--help")
    assert code == 0
    lines = [line.strip("│ ").rstrip() for line in out.splitlines() if "--" in line]
    assert not [line for line in lines if line.split("  ")[0] == line and "--help" not in line]


@pytest.mark.parametrize(
    "words", [("run", "--no-such-flag"), ("cloud", "--ahead", "x"), ("edge", "--journal", "tape")]
)
def test_wrong_flags_are_2(say: Say, words: tuple[str, ...]) -> None:
    code, out, err = say(*words)
    assert (code, out) == (2, "")
    assert "error:" in err and "--help" in err


def test_a_mistyped_verb(say: Say) -> None:
    code, _, err = say("statsu")
    assert code == 2
    assert "no verb 'statsu'" in err and "try: outrider status" in err


def test_version(say: Say) -> None:
    assert say("version")[1].startswith(f"outrider {outrider.__version__}\n")
    found = json.loads(say("version", "--json")[1])
    assert (found["schema"], found["version"]) == (1, outrider.__version__)
    assert set(found["libraries"]) >= {"torch", "onnxruntime"}


def test_the_installed_command() -> None:
    command = [str(Path(sys.executable).with_name("outrider")), "version", "--json"]
    if not Path(command[0]).exists():
        command = [sys.executable, "-c", "from outrider.cli import main; main()", *command[1:]]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert json.loads(out)["version"] == outrider.__version__


def test_the_command_line_loads_no_engine() -> None:
    code = (
        "import sys\nfrom outrider.cli.app import run\nrun(['version'])\n"
        "print(*[m for m in ('numpy', 'torch', 'grpc', 'zmq', 'httpx2') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == ""


# --- run ---------------------------------------------------------------------------------------


@pytest.mark.usefixtures("url")
def test_run_streams_the_text(say: Say, edge: LocalEdge) -> None:
    code, out, err = say("run", "def f", "--max-tokens", "12", "--seed", "3")
    assert (code, err) == (0, "")
    assert len(out) == 13 and out.endswith("\n")
    assert say("run", "def f", "--max-tokens", "12", "--seed", "3")[1] == out


@pytest.mark.usefixtures("url")
def test_run_reads_standard_input(say: Say, monkeypatch: pytest.MonkeyPatch) -> None:
    spoken = say("run", "two words", "--max-tokens", "5", "--seed", "3")[1]
    for words in (("run", "-"), ("run",)):
        monkeypatch.setattr("sys.stdin", io.StringIO("two words"))
        assert say(*words, "--max-tokens", "5", "--seed", "3")[1] == spoken


@pytest.mark.usefixtures("url")
def test_run_json_is_one_object(say: Say) -> None:
    code, out, _ = say("run", "x", "--max-tokens", "4", "--temperature", "0", "--json")
    found = json.loads(out)
    assert code == 0
    assert (found["schema"], found["model"], found["completion_tokens"]) == (1, "local/fake", 4)
    assert "".join(one["text"] for one in found["tokens"]) == found["text"]


@pytest.mark.usefixtures("url")
def test_run_verbose_tells_counts_on_standard_error(say: Say) -> None:
    _, out, err = say("run", "x", "--max-tokens", "4", "-v", "--seed", "9")
    assert len(out) == 5
    assert "seed 9" in err and "4 tokens in" in err


@pytest.mark.usefixtures("url")
def test_run_with_a_model(say: Say) -> None:
    assert say("run", "local/fake", "x", "--max-tokens", "2")[0] == 0
    assert say("run", "--model", "local/fake", "x", "--max-tokens", "2")[0] == 0
    code, _, err = say("run", "other", "x")
    assert code == 3 and "no model 'other'" in err


@pytest.mark.usefixtures("url")
@pytest.mark.parametrize("words", [("a", "b", "c"), ("",), ("x", "--temperature", "-1")])
def test_run_with_nonsense_is_2(say: Say, words: tuple[str, ...]) -> None:
    code, out, err = say("run", *words)
    assert (code, out) == (2, "")
    assert "error:" in err


def test_every_wish_reaches_the_service(say: Say, monkeypatch: pytest.MonkeyPatch) -> None:
    edge = ScriptedEdge([started(), done(0)])
    with Served(edge) as served:
        say(
            *("run", "x", "--host", served.url, "--max-tokens", "7", "--temperature", "0.5"),
            *("--top-p", "0.9", "--top-k", "5", "--min-p", "0.1", "--seed", "4", "--stop", "a"),
            *("--stop", "b", "--placement", "cloud", "--fallback", "wait", "--exact", "required"),
        )
    (asked,) = edge.asked
    assert (asked.max_tokens, asked.seed, asked.stop) == (7, 4, ("a", "b"))
    params = asked.sampling
    assert (params.temperature, params.top_p, params.top_k, params.min_p) == (0.5, 0.9, 5, 0.1)
    assert (asked.placement, asked.fallback, asked.exact_required) == ("cloud", "wait", True)
    assert not asked.retract


def test_a_fork_is_told_on_standard_error(say: Say) -> None:
    steps: list[Step] = [
        started(),
        token(0, "big "),
        Waiting(reason="reconnecting"),
        Forked(position=1, model="small", reason="patience is over"),
        token(1, "small", source="edge"),
        done(2, mixed_from=1),
    ]
    with Served(ScriptedEdge(steps)) as served:
        code, out, err = say("run", "x", "--host", served.url)
    assert (code, out) == (0, "big small\n")
    assert "waiting: reconnecting" in err
    assert "small's own words: patience is over" in err
    assert "from token 1 on" in err


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (OutriderError("a bug"), 1),
        (ModelCorrupt("truncated"), 3),
        (LinkLost("silent"), 5),
        (CloudUnreachable("nothing answered"), 5),
        (AccessDenied("wrong key"), 6),
        (Overloaded("full", retry_after_s=1.0), 7),
    ],
)
def test_exit_codes(say: Say, error: OutriderError, code: int) -> None:
    with Served(ScriptedEdge([error])) as served:
        found, _, err = say("run", "x", "--host", served.url)
    assert found == code
    assert error.what in err


def test_ctrl_c_is_130(say: Say, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*words: Any, **flags: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("outrider.cli.ask._show", interrupted)
    with Served(LocalEdge()) as served:
        assert say("run", "x", "--host", served.url)[0] == 130


# --- chat --------------------------------------------------------------------------------------


@pytest.mark.usefixtures("url")
def test_chat_remembers_and_resets(say: Say, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("hi\nagain\n\n/reset\nhi\n/exit\nnever\n"))
    code, out, _ = say("chat", "--max-tokens", "6", "--seed", "3")
    first, second, third = out.splitlines()
    assert code == 0
    assert first == third != second


def test_chat_sends_the_whole_talk(say: Say, monkeypatch: pytest.MonkeyPatch) -> None:
    edge = ScriptedEdge([started(), token(0, "yes"), done(1)])
    monkeypatch.setattr("sys.stdin", io.StringIO("one\ntwo\n"))
    with Served(edge) as served:
        say("chat", "--host", served.url)
    assert [turn["content"] for turn in edge.asked[1].prompt] == ["one", "yes", "two"]  # type: ignore[index]


def test_chat_says_that_the_bundled_pair_can_not_converse(
    say: Say, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    with Served(LocalEdge(model="outrider-target")) as served:
        _, _, err = say("chat", "--host", served.url)
    assert "completer of Python code" in err and "outrider cloud --model" in err
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    with Served(LocalEdge()) as served:
        assert "completer" not in say("chat", "--host", served.url)[2]


# --- status, models ----------------------------------------------------------------------------


@pytest.mark.usefixtures("url")
def test_status(say: Say) -> None:
    say("run", "x", "--max-tokens", "3")
    for words in (("status",), ()):
        code, out, _ = say(*words)
        assert code == 0
        assert "1 in all; 3 tokens" in out
        assert "no cloud is connected" in out
    found = json.loads(say("status", "--json")[1])
    assert (found["schema"], found["tokens_total"]) == (1, 3)


@pytest.mark.usefixtures("url")
def test_strict_status_is_5_without_a_cloud(say: Say) -> None:
    assert say("status", "--strict")[0] == 5


@pytest.mark.usefixtures("url")
def test_watching_a_daemon_without_events(say: Say) -> None:
    code, _, err = say("status", "--watch")
    assert code == 3 and "publishes no events" in err


@pytest.mark.usefixtures("url")
def test_models(say: Say) -> None:
    _, out, _ = say("models")
    assert out.splitlines()[1].split()[:3] == ["local/fake", "target", "4096"]
    (card,) = json.loads(say("models", "--json")[1])["models"]
    assert card["id"] == "local/fake"


# --- cloud and edge ----------------------------------------------------------------------------


@pytest.fixture
def served_options(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the servers would be started with."""
    found: list[Any] = []

    def serve(options: Any) -> int:
        found.append(options)
        return 0

    monkeypatch.setattr(servers, "_serve_cloud", lambda: serve)
    monkeypatch.setattr(servers, "_serve_edge", lambda: serve)
    return found


def test_defaults_are_those_of_the_options(say: Say, served_options: list[Any]) -> None:
    assert say("cloud")[0] == say("edge")[0] == 0
    assert served_options == [CloudOptions(), EdgeOptions()]


def test_flags_of_the_cloud(say: Say, served_options: list[Any]) -> None:
    say(
        *("cloud", "--listen", "127.0.0.1:0", "--model", "a=/m/a", "--model", "/m/b.gguf"),
        *("--device", "cuda:1", "--trigger", "wait:5", "--ahead", "9", "--session-ttl", "2.5"),
        *("--tls-cert", "c", "--tls-key", "k", "--client-ca", "ca", "--api-keys", "f"),
    )
    (options,) = served_options
    assert options.listen == Address("127.0.0.1", 0)
    assert options.models == (NamedModel("a", "/m/a"), NamedModel("b", "/m/b.gguf"))
    assert (options.device, options.trigger, options.ahead) == ("cuda:1", "wait:5", 9)
    assert (options.session_ttl_s, options.client_ca) == (2.5, Path("ca"))
    assert (options.tls_cert, options.tls_key, options.api_keys) == (
        Path("c"),
        Path("k"),
        Path("f"),
    )


def test_flags_of_the_edge(
    say: Say, served_options: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OUTRIDER_CLOUD_API_KEY", "secret")
    say(
        *("edge", "--listen", ":0", "--cloud", "127.0.0.1:1", "--cloud", "[::1]:2"),
        *("--draft", "ngram", "--fallback", "wait", "--journal", "disk", "--allow-host", "Box.lan"),
    )
    (options,) = served_options
    assert options.clouds == (Address("127.0.0.1", 1), Address("::1", 2))
    assert (options.draft, options.fallback, options.journal) == ("ngram", "wait", "disk")
    assert (options.allowed_hosts, options.cloud_api_key) == (("box.lan",), "secret")


@pytest.mark.parametrize(
    "words",
    [
        ("cloud", "--listen", "0.0.0.0:1"),
        ("cloud", "--trigger", "never"),
        ("cloud", "--ahead", "0"),
        ("cloud", "--model", "a=x", "--model", "a=y"),
        ("edge", "--listen", "0.0.0.0:1"),
        ("edge", "--listen", "a:b"),
        ("edge", "--patience", "0"),
    ],
)
def test_settings_that_can_not_work_start_nothing(
    say: Say, served_options: list[Any], words: tuple[str, ...]
) -> None:
    code, out, err = say(*words)
    assert (code, out, served_options) == (2, "", [])
    assert "error:" in err


def test_a_missing_extra_names_the_line(say: Say, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "outrider.cloud.main", None)
    with pytest.raises(ModuleNotFoundError):
        say("cloud")
    error = servers.missing("cloud", ModuleNotFoundError("no", name="grpc"))
    assert 'pip install "outrider[cloud]"' in str(error)


# --- what must not meet a user -----------------------------------------------------------------


def test_a_usage_error_names_the_verbs_own_help(say: Say) -> None:
    code, out, err = say("run", "--temprature", "1", "x")
    assert (code, out) == (2, "")
    assert "--temperature" in err and err.endswith("try: outrider run --help\n")


def test_a_number_that_is_none_is_refused_by_name(say: Say, url: str) -> None:
    code, out, err = say("run", "x", "--temperature", "nan")
    assert (code, out) == (2, "")
    assert "error: temperature can not be taken" in err


BUG = "from outrider.cli import look, main\ndel look.version\nmain(['version'])"


@pytest.mark.parametrize(("debug", "trace"), [("", False), ("1", True)])
def test_a_bug_of_ours_shows_its_trace_only_when_asked(debug: str, *, trace: bool) -> None:
    done = subprocess.run(
        [sys.executable, "-c", BUG],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OUTRIDER_DEBUG": debug},
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert ("Traceback" in done.stderr) is trace
    assert ("error: outrider failed inside" in done.stderr) is not trace


def test_servers_say_what_they_load(say: Say, served_options: list[Any]) -> None:
    assert "loading bundled:target" in say("cloud")[2]
    assert "loading bundled:draft" in say("edge")[2]
    assert say("edge", "--draft", "none")[2] == ""


def test_what_the_system_refuses_is_no_bug_of_ours(
    say: Say, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: CloudOptions) -> int:
        raise FileNotFoundError(2, "No such file or directory", "/proc/x")

    monkeypatch.setattr(servers, "_serve_cloud", lambda: refuse)
    code, out, err = say("cloud")
    assert (code, out) == (1, "")
    assert "error: /proc/x: No such file or directory" in err
