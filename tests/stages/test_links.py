"""Links that workers measure themselves, and plans that are made with them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from outrider.errors import AccessDenied, OutriderError, RemoteProtocolError
from outrider.models import graph
from outrider.partitioner.device import LinkProfile
from outrider.partitioner.plan import Problem
from outrider.partitioner.solve import choose as solver
from outrider.protocol import fleet_codec
from outrider.protocol.fleet import (
    MAX_PROBE,
    MAX_PROBED,
    JoinReply,
    JoinRequest,
    MeasuredLink,
    MeasureLink,
    ProbeData,
    PushDone,
    PushedFile,
    PushOffer,
    PushWant,
)
from outrider.protocol.stages import HostedModel
from outrider.stages import links as linked
from outrider.stages.channel import Credentials
from outrider.stages.links import FRESH_S, Links, measure
from outrider.stages.planner import Demand, Member, choose, neighbours, problem, token_s
from outrider.stages.replan import spelled
from outrider.stages.worker_at import WorkerAt
from outrider.testing.link import Link
from tests.stages.town import Town, shelf, town

KEYS = Credentials()


@pytest.fixture
def place() -> Iterator[Town]:
    with town() as made:
        yield made


# --- measuring ---------------------------------------------------------------------------------


def test_a_worker_measures_the_way_to_another(place: Town) -> None:
    (a, _), (b, other) = place.worker(shelf("a")), place.worker(shelf("b"))
    far, _ = place.proxy(b, link=Link(up_delay_ms=15.0, down_delay_ms=15.0, up_bits_per_s=16e6))
    near = measure(WorkerAt(a), WorkerAt(b), KEYS)
    delayed = measure(WorkerAt(a), WorkerAt(b, peer_address=far), KEYS)
    assert near.up_bytes_per_s > 0 and near.down_bytes_per_s > 0
    assert near.size <= MAX_PROBED and near.size >= 2 * MAX_PROBE
    assert delayed.rtt_us >= 30_000
    # The link is the slower one whatever else the machine does; what it lets through is bounded.
    assert delayed.up_bytes_per_s < 2.6e6
    assert not other.guests.tickets


def test_a_way_that_is_not_there_is_remembered_as_none(place: Town) -> None:
    (a, _), (b, _) = place.worker(shelf("a")), place.worker(shelf("b"))
    workers = {"a": WorkerAt(a, "a"), "b": WorkerAt(b, "b", peer_address="127.0.0.1:9")}
    now = [0.0]
    links = Links(lambda: now[0])
    assert links.learn([("a", "b")], workers, KEYS)
    assert links.known() == {("a", "b"): None, ("b", "a"): None}
    assert not links.learn([("b", "a")], workers, KEYS)
    now[0] = FRESH_S
    assert links.known() == {}


def test_a_probe_needs_a_ticket_and_each_serves_once(place: Town) -> None:
    (a, _), (b, worker) = place.worker(shelf("a")), place.worker(shelf("b"))
    order = MeasureLink(b"t" * 32, b)
    with pytest.raises(AccessDenied, match="expects no probe"):
        linked._asked(WorkerAt(a), order, KEYS)
    linked._asked(WorkerAt(b), MeasureLink(b"t" * 32), KEYS)
    assert linked._asked(WorkerAt(a), order, KEYS).rtt_us > 0
    with pytest.raises(AccessDenied):
        linked._asked(WorkerAt(a), order, KEYS)
    worker.guests.tickets.update(bytes([n]) * 32 for n in range(64))
    with pytest.raises(RemoteProtocolError, match="more than 64 probes"):
        linked._asked(WorkerAt(b), MeasureLink(b"u" * 32), KEYS)


# --- planning ----------------------------------------------------------------------------------

MODEL = graph.read("bundled:target")
DEMAND = Demand(MODEL, 256, 2.0)
HALF = sum(unit.weight_bytes for unit in MODEL.units)


def members() -> list[Member]:
    """Three that look alike from here; any two hold the model."""
    return [Member(name, HALF, 0.004) for name in "abc"]


def way(a: str, b: str, rtt_s: float) -> LinkProfile:
    return LinkProfile(a, b, rtt_s, 1e7, 1e7, source="measured")


def test_measured_links_take_the_place_of_estimates() -> None:
    asked = problem(DEMAND, members(), {("a", "b"): way("a", "b", 0.5), ("a", "c"): None})
    found = {(link.a, link.b): link for link in asked.links}
    assert found["a", "b"].rtt_s == 0.5 and found["a", "b"].source == "measured"
    assert found["b", "c"].source == "estimated" and found["b", "c"].rtt_s == 0.004
    # Without a direct way all goes through the coordinator.
    assert found["a", "c"].rtt_s == 0.008


def test_a_slow_way_between_two_is_planned_around() -> None:
    demand = DEMAND
    need = [Member(name, int(0.75 * HALF), 0.004) for name in "abc"]
    first = choose(demand, need)
    [pair] = neighbours(first.layout)
    ways = {pair: way(*pair, 0.3), pair[::-1]: way(*pair, 0.3)}
    second = choose(demand, need, ways)
    assert len({placed.device for placed in second.layout}) == 2
    assert neighbours(second.layout) != (pair,)
    before, after = (token_s(demand, need, ways, c.layout) for c in (first, second))
    assert before is not None and after is not None and after < before / 3
    assert token_s(demand, need[:1], ways, first.layout) is None


def test_a_plan_says_which_links_it_goes_over() -> None:
    need = [Member(name, int(0.75 * HALF), 0.004) for name in "ab"]
    ways = {("a", "b"): way("a", "b", 0.003), ("b", "a"): way("a", "b", 0.003)}
    asked: Problem = problem(DEMAND, need, ways)
    plan = solver.solve(asked)
    assert [link.source for link in plan.links] == ["estimated", "measured", "estimated"]
    chosen = choose(DEMAND, need, ways)
    assert chosen.told == "links a-b 3 ms 10 MB/s (measured)"
    assert spelled(chosen.links[0]) in chosen.told


# --- the wire ----------------------------------------------------------------------------------

OFFER = PushOffer("ab" * 32, "t", (PushedFile("config.json", 7, b"d" * 32),))
JOIN = JoinRequest("shelf", "phone", "h:1", "key", ("ab" * 32,), 9, True)


def test_messages_of_a_fleet_come_back_as_they_went() -> None:
    there = {
        (fleet_codec.encode_join, fleet_codec.decode_join): (JOIN,),
        (fleet_codec.encode_joined, fleet_codec.decode_joined): (
            JoinReply(6000, "h:1", (HostedModel("t", "ab" * 32, 6),)),
        ),
        (fleet_codec.encode_push, fleet_codec.decode_push): (OFFER, b"chunk"),
        (fleet_codec.encode_pushed, fleet_codec.decode_pushed): (PushWant(3, 4), PushDone(5)),
        (fleet_codec.encode_measure, fleet_codec.decode_measure): (
            MeasureLink(b"t" * 32, "h:1", b"pem"),
        ),
        (fleet_codec.encode_measured, fleet_codec.decode_measured): (
            MeasuredLink(12, 3.5, 4.5, 6),
        ),
        (fleet_codec.encode_probe, fleet_codec.decode_probe): (ProbeData(5, b"xyz"),),
    }
    for (encode, decode), messages in there.items():
        for message in messages:
            assert decode(encode(message)) == message  # type: ignore[operator]


GOLDEN = {
    "join": "0d0100000012057368656c661a0570686f6e652203683a312a036b65793240" + "6162" * 32
    + "39090000000000000045"[:2] + "0900000000000000" + "4501000000",
    "want": "0a0e0d03000000110400000000000000",
    "probe": "0d05000000120378797a",
}  # fmt: skip


def test_golden_bytes_of_a_fleet() -> None:
    assert fleet_codec.encode_join(JOIN).hex() == GOLDEN["join"]
    assert fleet_codec.encode_pushed(PushWant(3, 4)).hex() == GOLDEN["want"]
    assert fleet_codec.encode_probe(ProbeData(5, b"xyz")).hex() == GOLDEN["probe"]


def test_bytes_that_mean_nothing_good_are_refused() -> None:
    twice = PushOffer(OFFER.digest, "t", OFFER.files * 2)
    bad = [
        (fleet_codec.decode_push, fleet_codec.encode_push(twice)),
        (fleet_codec.decode_push, fleet_codec.encode_push(PushOffer("d", "t", ()))),
        (fleet_codec.decode_push, fleet_codec.encode_push(b"x" * ((1 << 20) + 1))),
        (fleet_codec.decode_push, b""),
        (fleet_codec.decode_pushed, b""),
        (fleet_codec.decode_join, fleet_codec.encode_join(JoinRequest("", "phone", "h:1"))),
        (fleet_codec.decode_join, b"\xff"),
        (fleet_codec.decode_joined, fleet_codec.encode_joined(JoinReply(1, "h:1"))),
        (fleet_codec.decode_measure, fleet_codec.encode_measure(MeasureLink(b"short"))),
        (
            fleet_codec.decode_measured,
            fleet_codec.encode_measured(MeasuredLink(1, float("nan"), 1.0)),
        ),
        (fleet_codec.decode_probe, fleet_codec.encode_probe(ProbeData(MAX_PROBE + 1))),
    ]
    for decode, data in bad:
        with pytest.raises(OutriderError):
            decode(data)
