"""Failpoints, in real child processes where the action ends or freezes one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from outrider.testing import failpoints
from outrider.testing.failpoints import Failpoint, parse, spell

LOOP = """
from outrider.testing.failpoints import FailpointHit, hit
for index in range(5):
    print(index, flush=True)
    try:
        hit("here")
        hit("elsewhere")
    except FailpointHit as error:
        print("raised", error, flush=True)
"""


def run(armed: str) -> subprocess.CompletedProcess[str]:
    env = os.environ | {failpoints.VARIABLE: armed}
    command = [sys.executable, "-c", LOOP]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)


def test_unarmed_points_do_nothing() -> None:
    done = run("")
    assert (done.returncode, done.stdout.split(), done.stderr) == (0, list("01234"), "")


def test_kill_strikes_at_the_nth_hit_and_is_announced() -> None:
    done = run("here=kill:3")
    assert done.returncode == -signal.SIGKILL
    assert done.stdout.split() == list("012")
    found = failpoints.ANNOUNCEMENT.fullmatch(done.stderr.strip())
    assert found is not None
    assert (found["point"], found["action"]) == ("here", "kill")


def test_exit_leaves_with_its_status() -> None:
    done = run("unknown=kill,elsewhere=exit:2")
    assert done.returncode == failpoints.EXIT_STATUS
    assert done.stdout.split() == list("01")


def test_raise_acts_once() -> None:
    done = run("here=raise:2")
    assert done.returncode == 0
    assert done.stdout.count("raised here") == 1
    assert done.stdout.split()[-1] == "4"


def test_points_are_spelt_as_they_are_read() -> None:
    points = (Failpoint("cloud.before_commit", "kill", 3), Failpoint("edge.after_hint", "stop"))
    assert parse(spell(*points)) == points
    assert parse(" cloud.before_commit=kill:3 , edge.after_hint=stop ") == points
    assert parse("") == ()


@pytest.mark.parametrize(
    "bad", ["here", "here=", "here=burn", "here=kill:0", "a=kill:x", "a b=kill"]
)
def test_bad_entry_is_named(bad: str) -> None:
    with pytest.raises(ValueError, match="OUTRIDER_FAILPOINTS") as caught:
        parse(f"fine=stop,{bad}")
    assert repr(bad) in str(caught.value)


def test_point_armed_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="twice"):
        parse("a=kill,a=stop")
