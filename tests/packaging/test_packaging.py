"""Units and container files: what can be known of them without a service manager or a builder."""

from __future__ import annotations

import configparser
import os
import re
import shlex
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

from outrider.cli import units
from outrider.cli.app import VERBS
from outrider.cli.background import Role

PACKAGING = Path(__file__).resolve().parent.parent.parent / "packaging"
ROLES: tuple[Role, ...] = ("edge", "cloud")
CONTAINERS = sorted((PACKAGING / "container").glob("*.Containerfile"))
INSTRUCTIONS = frozenset(
    "FROM ARG ENV RUN COPY USER WORKDIR VOLUME EXPOSE STOPSIGNAL HEALTHCHECK ENTRYPOINT CMD".split()
)


def parsed(text: str) -> configparser.ConfigParser:
    found = configparser.ConfigParser(strict=False, interpolation=None)
    found.optionxform = str  # type: ignore[assignment,method-assign]
    found.read_string(text)
    return found


@pytest.mark.parametrize("role", ROLES)
def test_the_copies_are_what_up_installs(role: Role) -> None:
    kept = (PACKAGING / "systemd" / units.name(role)).read_text()
    assert kept == units.text(role, "/usr/bin/python3", {})


@pytest.mark.parametrize("role", ROLES)
def test_a_unit_tells_when_it_serves_and_is_watched(role: Role) -> None:
    service = parsed(units.text(role, "/opt/a venv/bin/python", {}))["Service"]
    assert (service["Type"], service["NotifyAccess"]) == ("notify", "main")
    assert int(service["WatchdogSec"]) > 0 and service["Restart"] == "on-failure"
    assert service["ExecReload"] == "/bin/kill -HUP $MAINPID"
    words = shlex.split(service["ExecStart"])
    assert words[:4] == ["/opt/a venv/bin/python", "-m", "outrider.cli", role]


def test_a_unit_hands_on_places_and_no_keys() -> None:
    given = {"OUTRIDER_HOME": "/x/100%", "OUTRIDER_API_KEY": "secret", "OUTRIDER_CONFIG": "/c.toml"}
    text = units.text("edge", "python", given)
    assert "Environment=OUTRIDER_HOME=/x/100%%\n" in text
    assert "--config /c.toml" in text and "secret" not in text


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="needs systemd-analyze")
@pytest.mark.parametrize("role", ROLES)
def test_systemd_takes_the_unit(role: Role, tmp_path: Path) -> None:
    place = tmp_path / units.name(role)
    place.write_text(units.text(role, "/bin/sh", {}))
    command = ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", str(place)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert [line for line in done.stderr.splitlines() if units.name(role) in line] == []


@pytest.fixture
def systemctl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A real program of that name that writes down what it was asked."""
    told = tmp_path / "asked"
    program = tmp_path / "bin" / "systemctl"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\necho "$@" >> {told}\n')
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}/usr/bin{os.pathsep}/bin")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "xdg"))
    return told


def test_installing_and_removing(systemctl: Path) -> None:
    place = units.install("edge")
    assert place == units.file("edge") and place.parent.name == "user"
    assert systemctl.read_text().splitlines() == [
        "--user daemon-reload",
        "--user enable --now outrider-edge.service",
    ]
    assert units.remove("edge") and not place.exists()
    assert "--user disable --now outrider-edge.service" in systemctl.read_text()
    assert not units.remove("edge")


# --- containers --------------------------------------------------------------------------------


def instructions(path: Path) -> list[tuple[str, str]]:
    """Instruction and its words; lines that go on are put together."""
    text = re.sub(r"^#.*\n", "", path.read_text(), flags=re.M)
    lines = [line for line in re.sub(r"\\\n\s*", " ", text).splitlines() if line.strip()]
    return [(name, rest) for name, _, rest in (line.partition(" ") for line in lines)]


def test_there_is_one_for_each_kind_of_machine() -> None:
    assert [path.name.partition(".")[0] for path in CONTAINERS] == ["cpu", "cuda", "l4t"]


@pytest.mark.parametrize("path", CONTAINERS, ids=lambda path: path.name)
def test_a_container_file_is_sound(path: Path) -> None:
    found = instructions(path)
    names = [name for name, _ in found]
    assert set(names) <= INSTRUCTIONS and names[0] == "FROM"
    user = next(rest for name, rest in found if name == "USER")
    assert user.strip() not in ("root", "0")
    assert names.index("USER") < names.index("ENTRYPOINT")
    health = next(rest for name, rest in found if name == "HEALTHCHECK")
    assert "outrider status --strict" in health
    assert next(rest for name, rest in found if name == "ENTRYPOINT") == '["outrider"]'
    assert next(rest for name, rest in found if name == "EXPOSE").split() == ["11711", "11712"]


@pytest.mark.parametrize("path", CONTAINERS, ids=lambda path: path.name)
def test_a_container_starts_what_there_is(path: Path) -> None:
    import msgspec

    found = dict(instructions(path))
    words = msgspec.json.decode(found["CMD"], type=list[str])
    assert words[0] in VERBS
    import tomllib

    table = tomllib.loads((PACKAGING.parent / "pyproject.toml").read_text())
    extras = found["ARG"].partition("=")[2].split(",")
    assert set(extras) <= set(table["project"]["optional-dependencies"])


@pytest.mark.parametrize("path", CONTAINERS, ids=lambda path: path.name)
def test_what_a_container_runs_is_shell(path: Path) -> None:
    for name, rest in instructions(path):
        if name == "RUN":
            subprocess.run(["/bin/sh", "-n", "-c", rest], check=True)
