"""What the daemon says of itself in turn, and pins of an operator, over real answers."""

from __future__ import annotations

import asyncio
import ssl
import threading
from pathlib import Path
from typing import Any

import httpx2
import pytest

from outrider.edge.api.app import build
from outrider.edge.api.settings import ApiSettings
from outrider.edge.gauge import REPEAT_S, Teller, certificate_end
from outrider.errors import InvalidRequest
from outrider.options import Address, EdgeOptions
from outrider.protocol import events
from outrider.protocol.status import Placement
from outrider.protocol.stream import Started, Token
from outrider.testing.local_edge import LocalEdge
from tests.certificates import identity
from tests.support import Answered, EdgeUnderTest, ask, cloud, edge, expected, run

PATH = "/outrider/v1/placement"


async def post(body: object, pinned: list[Placement] | None, **headers: str) -> httpx2.Response:
    settings = ApiSettings(api_keys=frozenset({"k" * 20}))
    pin = None if pinned is None else pinned.append
    app = build(LocalEdge(), settings, pin=pin)
    transport = httpx2.ASGITransport(app=app)
    keyed = {"authorization": f"Bearer {'k' * 20}", **headers}
    async with httpx2.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
        return await client.post(PATH, json=body, headers=keyed)


@pytest.mark.parametrize("placement", ["auto", "edge", "cloud", "draft"])
def test_a_pin_reaches_the_daemon(placement: Placement) -> None:
    pinned: list[Placement] = []
    answer = asyncio.run(post({"placement": placement}, pinned))
    assert (answer.status_code, answer.json()) == (200, {"placement": placement})
    assert pinned == [placement]


@pytest.mark.parametrize("body", [{}, {"placement": "moon"}, {"placement": None}])
def test_a_bad_pin_changes_nothing(body: object) -> None:
    pinned: list[Placement] = []
    answer = asyncio.run(post(body, pinned))
    assert answer.status_code == 400 and answer.json()["error"]["param"] == "placement"
    assert not pinned


def test_pins_pass_the_same_door_as_requests() -> None:
    pinned: list[Placement] = []
    body = {"placement": "edge"}
    assert asyncio.run(post(body, pinned, authorization="Bearer no")).status_code == 401
    assert asyncio.run(post(body, pinned, host="evil.example")).status_code == 403
    assert asyncio.run(post(body, pinned, origin="https://evil.example")).status_code == 403
    assert not pinned


def test_a_service_without_pins_says_so() -> None:
    assert asyncio.run(post({"placement": "edge"}, None)).status_code == 404


# --- over real answers --------------------------------------------------------------------------


async def ride(e: EdgeUnderTest, at: int, pin: Placement) -> Answered:
    """An answer of `auto` during which an operator pins."""
    found = Answered()
    async for event in e.daemon.generate(ask()):
        found.events.append(event)
        if isinstance(event, Token) and event.position == at:
            e.daemon.pin(pin)
    return found


def test_a_pin_moves_an_answer_that_runs(tmp_path: Path) -> None:
    async def main() -> None:
        async with cloud(tmp_path) as c, edge(c.address) as e:
            e.daemon.pin("draft")
            found = await ride(e, 40, "cloud")
            found.check()
            assert found.ids() == expected(ask())
            moves = [d for d in e.kinds(events.Decision) if d.what == "placement"]
            made = [d for d in moves if d.phase == "made"]
            assert (made[-1].old, made[-1].new) == ("draft", "cloud")
            assert made[-1].reason == "cloud was asked for"
            later = e.published[e.published.index(made[-1]) :]
            # One may have been under way when it was decided.
            assert len([event for event in later if isinstance(event, events.HintSent)]) <= 1
            assert found.done().placement == "cloud"

    run(main())


def test_a_pin_is_for_those_without_a_wish_and_can_be_taken_back(tmp_path: Path) -> None:
    async def main() -> None:
        async with cloud(tmp_path) as c, edge(c.address) as e:
            e.daemon.pin("edge")
            assert (await e.answer(ask())).done().placement == "edge"
            assert (await e.answer(ask(placement="cloud"))).done().placement == "cloud"
            assert e.daemon.status().placement == "edge"
            e.daemon.pin("auto")
            found = await e.answer(ask())
            assert found.of(Started)[0].placement in ("draft", "cloud")
            remarks = [r.said for r in e.kinds(events.Remark)]
            assert remarks == [
                "the pin of placements was set to edge",
                "the pin of placements was taken back",
            ]

    run(main())


def test_what_can_not_be_pinned_is_refused(tmp_path: Path) -> None:
    async def main() -> None:
        async with cloud(tmp_path) as c, edge(c.address, draft=None) as e:
            with pytest.raises(InvalidRequest, match="no model on this device"):
                e.daemon.pin("edge")
            assert not e.daemon.pinned

    run(main())


def test_the_gauge_counts_what_was_answered(tmp_path: Path) -> None:
    async def main() -> None:
        async with cloud(tmp_path) as c, edge(c.address) as e:
            heard: list[Any] = []
            now = [0.0]
            teller = Teller(e.daemon, heard.append, clock=lambda: now[0])
            found = await e.answer(ask())
            teller.tell()
            gauge = next(event for event in heard if isinstance(event, events.Gauge))
            assert gauge.tokens == len(found.ids()) and gauge.requests == 1
            assert (gauge.model, gauge.drafter, gauge.running) == ("t", "d", 0)
            assert gauge.accepted == found.done().speculation.num_accepted_draft_tokens
            link = gauge.links[0]
            assert (link.state, link.cloud) == ("connected", str(c.address))
            assert link.bytes_up == found.done().bytes_up > 0
            assert link.bytes_down >= found.done().bytes_down > 0
            assert link.rtt_ms is not None and not link.tls

    run(main())


def test_a_plan_is_told_when_it_changes_and_again_later(tmp_path: Path) -> None:
    async def main() -> None:
        async with cloud(tmp_path) as c, edge(c.address) as e:
            heard: list[Any] = []
            now = [0.0]
            teller = Teller(e.daemon, heard.append, clock=lambda: now[0])
            await e.answer(ask())
            for now[0] in (0.0, 1.0, REPEAT_S + 1.0):
                teller.tell()
            plans = [event for event in heard if isinstance(event, events.PlanMade)]
            assert len(plans) == 2 and plans[0] == plans[1]
            assert {score.placement for score in plans[0].scores} >= {"edge", "cloud", "draft"}

    run(main())


def test_local_tokens_are_told_with_their_positions(tmp_path: Path) -> None:
    async def main() -> None:
        async with cloud(tmp_path) as c, edge(c.address) as e:
            found = await e.answer(ask(placement="edge"))
            told = e.kinds(events.LocalTokens)
            assert told[0].position == 0 and not any(one.provisional for one in told)
            assert sum(one.tokens for one in told) == len(found.ids())

    run(main())


# --- certificates -------------------------------------------------------------------------------


def test_the_end_of_a_certificate_is_read_from_the_cloud(tmp_path: Path) -> None:
    import socket

    house = identity(tmp_path, "house")
    server = identity(tmp_path, "server", house)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(server.cert, server.key)
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def greet() -> None:
            plain, _ = listening.accept()
            with context.wrap_socket(plain, server_side=True) as sealed:
                sealed.recv(1)

        greeter = threading.Thread(target=greet)
        greeter.start()
        address = f"127.0.0.1:{listening.getsockname()[1]}"
        options = EdgeOptions(clouds=(Address.parse(address, 0),), cloud_ca=house.cert)
        found = certificate_end(address, options)
        greeter.join(10.0)
    assert found == server.signed.not_valid_after_utc.timestamp()
    assert certificate_end(address, options) is None
