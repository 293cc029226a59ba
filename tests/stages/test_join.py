"""Workers that join by themselves: known for a lease, called with their key, gone when they go."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from outrider.cloud.tenants import Tenants
from outrider.errors import AccessDenied, ConfigError, LinkLost, Overloaded
from outrider.options import Address, CloudOptions, EdgeOptions, WorkerOptions
from outrider.protocol.fleet import JoinRequest
from outrider.protocol.stages import HostedModel
from outrider.stages import roster as rosters
from outrider.stages.channel import Credentials
from outrider.stages.desk import Desk
from outrider.stages.joiner import Joiner
from outrider.stages.roster import Entry, Register, Roster
from tests.stages.town import PATIENCE_S, Town, town

ASKED = JoinRequest("shelf", "phone", "127.0.0.1:4711", "its-key")
JOIN = Address("join", 11713)
AWAY = Address("10.0.0.7", 11714)


@pytest.fixture
def place() -> Iterator[Town]:
    with town() as made:
        yield made


class Door:
    """A desk that serves, and what it said."""

    def __init__(self, place: Town, folder: Path, key: str = "", **changed: Any) -> None:
        self.place, self.told = place, list[str]()
        keys = folder / "keys"
        keys.write_text(f"shelf {key}\n")
        who = (Tenants.read(keys) if key else Tenants()).who
        models = (HostedModel("t", "ab" * 32, 6),)
        self.desk = Desk.open(folder, models, who, self.told.append, None)
        self.stack = AsyncExitStack()

        async def serve() -> str:
            return await self.desk.serve(Address("127.0.0.1", 0), None, self.stack)

        self.address = Address.parse(place.do(serve()), 0)
        self.roster = Roster(self.desk.register.path)

    def joiner(self, request: JoinRequest = ASKED, key: str = "") -> Joiner:
        return Joiner(self.address, request, Credentials(key), self.told.append)

    def ask(self, request: JoinRequest = ASKED, key: str = "") -> Any:
        return self.place.do(self.joiner(request, key)._ask(request))

    def close(self) -> None:
        self.place.do(self.stack.aclose())


def test_a_worker_joins_and_leaves(place: Town, tmp_path: Path) -> None:
    door = Door(place, tmp_path)
    reply = door.ask()
    assert reply.models[0].name == "t" and reply.address == ASKED.address
    [worker] = door.roster.workers()
    assert (worker.called, worker.address, worker.key) == ("shelf", ASKED.address, "its-key")
    assert worker.keys(Credentials("ours")).metadata == (("authorization", "Bearer its-key"),)
    assert door.desk.register.path.stat().st_mode & 0o077 == 0
    stamp = door.roster.stamp()
    door.ask()
    assert door.roster.stamp() == stamp and len(door.told) == 1
    door.ask(replace(ASKED, leaving=True))
    assert door.roster.workers() == () and "leaves" in door.told[-1]
    door.close()


def test_a_joiner_keeps_at_it_and_says_each_state_once(place: Town, tmp_path: Path) -> None:
    door = Door(place, tmp_path)
    joiner = door.joiner()

    async def live() -> None:
        task = asyncio.create_task(joiner.run())
        await asyncio.wait_for(joiner.joined.wait(), PATIENCE_S)
        await joiner.leave()
        # A renewal that comes while the worker drains does not bring it back.
        await joiner._ask(joiner.request)
        task.cancel()

    place.do(live())
    assert sum("which splits t" in line for line in door.told) == 1
    assert door.roster.workers() == ()
    door.close()
    with pytest.raises(LinkLost, match="no coordinator answers"):
        door.ask()


def test_who_shows_no_key_does_not_join(place: Town, tmp_path: Path) -> None:
    door = Door(place, tmp_path, key="right")
    with pytest.raises(AccessDenied):
        door.ask(key="wrong")
    assert door.roster.workers() == ()
    door.ask(key="right")
    assert len(door.roster.workers()) == 1
    door.close()


def test_a_worker_that_can_not_be_called_is_told_why(place: Town, tmp_path: Path) -> None:
    door = Door(place, tmp_path)
    with pytest.raises(ConfigError, match="can not be called at 10.0.0.7:4711") as refused:
        door.ask(replace(ASKED, address="10.0.0.7:4711"))
    assert "--workers-ca" in refused.value.why
    # A wildcard is where the call came from.
    assert door.ask(replace(ASKED, address="0.0.0.0:4711")).address == "127.0.0.1:4711"
    door.close()


def test_leases_end_and_names_that_two_have_are_addresses(tmp_path: Path) -> None:
    now = [0.0]
    register = Register(tmp_path / "roster", 6.0, lambda: now[0])
    roster = Roster(register.path)
    assert roster.workers() == () and roster.stamp() == (0, 0)
    one, two = Entry("shelf", "phone", "h:1", "k"), Entry("shelf", "phone", "h:2", "k")
    assert register.renew(one) and not register.renew(one)
    now[0] = 4.0
    register.renew(two)
    assert [worker.called for worker in roster.workers()] == ["h:1", "h:2"]
    now[0] = 6.5
    assert register.expire() == (one,)
    assert [worker.called for worker in roster.workers()] == ["shelf"]


def test_a_roster_has_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rosters, "MOST", 1)
    register = Register(tmp_path / "roster", 6.0, lambda: 0.0)
    register.renew(Entry("a", "phone", "h:1", ""))
    with pytest.raises(Overloaded):
        register.renew(Entry("b", "phone", "h:2", ""))


def test_a_file_that_is_no_roster_names_nobody(tmp_path: Path) -> None:
    path = tmp_path / "roster"
    for text in ("", "{}", '{"format":2,"entries":[]}'):
        path.write_text(text)
        assert Roster(path).workers() == ()


@pytest.mark.parametrize(
    ("make", "wrong", "why"),
    [
        (CloudOptions, {"join_keys": Path("k")}, "need --workers join"),
        (
            CloudOptions,
            {
                "workers": (JOIN,), "listen": AWAY, "tls_cert": Path("c"), "tls_key": Path("k"),
                "api_keys": Path("a"),
            },
            "anybody could join",
        ),
        (
            CloudOptions,
            {"workers": (JOIN,), "join_listen": AWAY, "join_keys": Path("k")},
            "not a loopback",
        ),
        (EdgeOptions, {"split": "t", "workers": (JOIN,), "join_listen": AWAY}, "anybody could"),
        (EdgeOptions, {"split": "t", "workers": (JOIN,), "join_cert": Path("c")}, "go together"),
        (WorkerOptions, {"join": (AWAY,)}, "beyond loopback needs TLS"),
        (WorkerOptions, {"models": ()}, "nothing to hold"),
        (WorkerOptions, {"accept_weights": 0}, "above 0"),
    ],
)  # fmt: skip
def test_options_that_would_let_anybody_in_are_refused(make: Any, wrong: Any, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        make(**wrong)
