"""systemd user units: their text, and how they are installed. `packaging/systemd` holds copies."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from outrider import paths
from outrider.cli.background import Role
from outrider.errors import OutriderError

MEANT: Mapping[Role, str] = {
    "edge": "Outrider's daemon: OpenAI's API here, drafts ahead of the cloud",
    "cloud": "Outrider's cloud: commits what target models say",
}
PASSED = ("OUTRIDER_HOME", "OUTRIDER_RUNTIME", "OUTRIDER_STATE", "OUTRIDER_CACHE")
UNIT = """\
[Unit]
Description={meant}
After=network-online.target

[Service]
Type=notify
NotifyAccess=main
ExecStart={command}
ExecReload=/bin/kill -HUP $MAINPID
{environment}Restart=on-failure
RestartSec=2
TimeoutStartSec=300
TimeoutStopSec=30
WatchdogSec=60
UMask=0077
NoNewPrivileges=yes

[Install]
WantedBy=default.target
"""
MANAGER_S = 60.0


def name(role: Role) -> str:
    return f"outrider-{role}.service"


def folder() -> Path:
    """Of this user's own units."""
    home = os.environ.get("XDG_CONFIG_HOME") or "~/.config"
    return Path(home).expanduser() / "systemd" / "user"


def file(role: Role) -> Path:
    return folder() / name(role)


def text(role: Role, python: str, environment: Mapping[str, str]) -> str:
    """The unit; only what is not default of `environment` is handed on, and no keys."""
    words = [python, "-m", "outrider.cli", role]
    if config := environment.get("OUTRIDER_CONFIG"):
        words += ["--config", str(Path(config).expanduser().absolute())]
    if role == "cloud":
        words += ["--ready-file", "%t/outrider/cloud.json"]
    passed = [f"{key}={environment[key]}" for key in PASSED if environment.get(key)]
    lines = "".join(f"Environment={_quoted(line)}\n" for line in passed)
    command = " ".join(_quoted(word) for word in words)
    return UNIT.format(meant=MEANT[role], command=command, environment=lines)


def _quoted(word: str) -> str:
    """As systemd reads it; a percent sign of ours begins a specifier, one of a path does not."""
    escaped = word if word.startswith("%t/") else word.replace("%", "%%")
    return shlex.quote(escaped) if any(c in escaped for c in " \"'\\") else escaped


def install(role: Role) -> Path:
    """Write, enable and start it. Raises OutriderError where there is no systemd to ask."""
    place = file(role)
    made = text(role, sys.executable, os.environ)
    if role == "cloud":
        made = made.replace("%t/outrider/cloud.json", str(paths.card_file("cloud")))
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(made, encoding="utf-8")
    manage("daemon-reload")
    manage("enable", "--now", name(role))
    return place


def remove(role: Role) -> bool:
    """Stop it, and take its file away; whether there was one."""
    place = file(role)
    if not place.exists():
        return False
    if shutil.which("systemctl"):
        _ask("disable", "--now", name(role))
    place.unlink(missing_ok=True)
    if shutil.which("systemctl"):
        _ask("daemon-reload")
    return True


def active(role: Role) -> bool:
    """Whether the service manager runs it."""
    if not file(role).exists() or not shutil.which("systemctl"):
        return False
    return _ask("is-active", "--quiet", name(role)).returncode == 0


def manage(*words: str) -> None:
    """`systemctl --user WORDS`. Raises OutriderError with what it said."""
    if not shutil.which("systemctl"):
        raise OutriderError(
            "there is no systemctl on this machine",
            effect=f"units may lie in {folder()}; nothing was started",
            todo="start it by `outrider up`, or by the service manager that there is",
        )
    done = _ask(*words)
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()
        raise OutriderError(
            f"systemctl --user {' '.join(words)} failed",
            why=said[-1] if said else f"status {done.returncode}",
            effect=f"units may lie in {folder()}; nothing was started",
            todo="journalctl --user -u outrider-edge tells more; without a user session: "
            "loginctl enable-linger",
        )


def _ask(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["systemctl", "--user", *words],
        capture_output=True,
        text=True,
        timeout=MANAGER_S,
        check=False,
    )
