"""The link as live answers show it, over an emulated one, and what placement makes of it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from outrider.edge.api.metrics import Metrics
from outrider.edge.traffic import WINDOW, Asked, Traffic
from outrider.options import Address
from outrider.partitioner.acceptance import DEPTHS
from outrider.partitioner.observe import BULK_S, SPREAD, Exchange
from outrider.partitioner.placement import Pilot, Rules, Wants
from outrider.partitioner.signals import Bias, Energy, PeerSignals, Signals
from outrider.partitioner.traffic import COMMIT_BYTES, FRAME, HINT_BYTES, open_bytes
from outrider.protocol import codec, events
from outrider.protocol.messages import ChoiceOpen, Commit, Hint, Open
from outrider.testing.link import Link
from outrider.testing.proxy import ShapingProxy
from tests.support import GREEDY, CloudUnderTest, EdgeUnderTest, ask, cloud, edge, run

LONG = "x" * 1700
"""Seven KiB of token ids, padded to eight."""


@asynccontextmanager
async def over(
    link: Link, tmp: Path, **changes: Any
) -> AsyncIterator[tuple[CloudUnderTest, EdgeUnderTest, ShapingProxy]]:
    """A cloud behind an emulated link, and an edge that knows it by the proxy."""
    async with (
        cloud(tmp) as c,
        ShapingProxy(c.address.host, c.address.port, link) as proxy,
        edge(Address(proxy.host, proxy.port), **changes) as e,
    ):
        yield c, e, proxy


async def answers(e: EdgeUnderTest, count: int, text: str = "ride") -> None:
    for _ in range(count):
        await e.answer(ask(text, max_tokens=1, placement="cloud"))


def measured(e: EdgeUnderTest) -> PeerSignals:
    """The cloud as placement sees it."""
    (peer,) = e.daemon.governor.signals("t", None, "").peers
    return peer


# --- found in answers ----------------------------------------------------------------------------


def test_a_thin_way_up_shows_in_opens_and_changes_the_decision(tmp_path: Path) -> None:
    async def main() -> None:
        link = Link.of_rtt(6, up_bits_per_s=64e3)
        async with over(link, tmp_path) as (_, e, _):
            await answers(e, 5)
            assert measured(e).up_bytes_per_s is None, "small messages do not tell"
            await answers(e, 1, LONG)
            peer = measured(e)
            assert peer.up_bytes_per_s == pytest.approx(8e3, rel=0.25)
            assert peer.down_bytes_per_s is None and peer.loss == 0.0
            assert _chosen(replace(peer, up_bytes_per_s=None)) == "draft"
            assert _chosen(peer) == "cloud", "a hint takes longer than a pass"
            (shown,) = e.daemon.status().clouds
            assert shown.up_bytes_per_s == pytest.approx(peer.up_bytes_per_s, rel=1e-3)
            assert shown.down_bytes_per_s is None and shown.jitter_ms is not None
            page = Metrics().text(e.daemon).decode()
            assert "outrider_link_up_bytes_per_second{" in page
            assert "outrider_link_down_bytes_per_second{" not in page
            e.daemon.link.tell_measured()
            e.daemon.link.tell_measured()
            (said,) = [x for x in e.kinds(events.LinkChanged) if x.detail == "measured"]
            assert said.up_bytes_per_s == shown.up_bytes_per_s and said.loss == 0.0

    run(main())


def _chosen(peer: PeerSignals) -> str:
    """By the policy, where passes are short and somewhat more than half of the drafts hold."""
    sure = Bias(1.0, 0.01, 50.0)
    fast = replace(peer, step=((1.0, 4.0), (8.0, 5.0)), rows=1.0, plain=sure, drafted=sure)
    fast = replace(fast, wait_ms=0.0, busy_ms=None, rtt_ms=6.0)
    rates = (0.6,) * DEPTHS
    draft = ((1.0, 0.5), (8.0, 4.0))
    free = Energy(draft_w=0.0, stream_w=0.0)
    seen = Signals(100.0, rates, rates, rates, 100.0, draft, peers=(fast,), energy=free)
    pilot = Pilot(Wants(), "cloud", peer.name, rules=Rules(probes=False))
    for look in range(12):
        pilot.decide(replace(seen, at_s=100.0 + look), Wants(committed=8 * (look + 1)))
    return pilot.placement


def test_losses_show_and_are_waited_for(tmp_path: Path) -> None:
    async def main() -> None:
        async with over(Link.of_rtt(4, loss=0.08, seed=3), tmp_path) as (_, e, _):
            await answers(e, 24)
            peer = measured(e)
            assert peer.loss is not None and 0.02 < peer.loss < 0.2
            assert peer.stall_ms >= 150.0
            sound = replace(peer, loss=0.0)
            assert _cost(peer) > 1.2 * _cost(sound), "a hint that is lost is waited for"

    run(main())


def _cost(peer: PeerSignals) -> float:
    from outrider.partitioner.pace import drafted

    slow = replace(peer, step=((1.0, 40.0), (8.0, 44.0)), rows=1.0, rtt_ms=4.0, wait_ms=0.0)
    return drafted(slow, (0.8,) * DEPTHS, ((1.0, 1.0), (8.0, 8.0)), 15).ms


# --- what tells, and what does not ---------------------------------------------------------------


def test_the_first_hint_of_a_chain_tells_where_the_committer_waited_for_it() -> None:
    traffic = Traffic()
    asked = Asked(traffic)

    def turn(base: int, *, position: int, rows: int, hint_rows: int, now: float) -> None:
        asked.hinted(Hint(1, 0, base, base, (5, 6)), 48, now)
        commit = Commit(1, 0, position, (5, 6, 7), hint_rows, 2, 3, rows, 50_000)
        asked.committed(commit, 53, now + 0.08)

    for number in range(4):
        turn(number, position=number, rows=3, hint_rows=2, now=float(number))
    found = traffic.estimate(4.0)
    assert found is not None and found.exchanges == 4
    assert found.rtt_s == pytest.approx(0.03), "the pass is the cloud's time"
    turn(9, position=8, rows=3, hint_rows=2, now=5.0)
    turn(9, position=9, rows=7, hint_rows=2, now=6.0)
    turn(9, position=9, rows=1, hint_rows=0, now=7.0)
    later = traffic.estimate(8.0)
    assert later is not None and later.exchanges == 4, "it ran on, was shared, or did not read it"


def test_a_bandwidth_is_remembered_for_a_while_and_then_unknown() -> None:
    traffic = Traffic()
    for number in range(6):
        size = 100 if number else 20_000
        traffic.observer.note(Exchange(size, 100, number, number + 0.02 + size / 1e5))
    first = traffic.estimate(6.0)
    assert first is not None and first.up_bytes_per_s == pytest.approx(1e5, rel=0.05)

    def calm(now: float) -> None:
        for number in range(6):
            traffic.observer.note(Exchange(100, 100, now + number, now + number + 0.021))

    calm(100.0)
    later = traffic.estimate(110.0)
    assert later is not None and later.up_bytes_per_s == first.up_bytes_per_s
    calm(10.0 + BULK_S)
    gone = traffic.estimate(20.0 + BULK_S)
    assert gone is not None and gone.up_bytes_per_s is None


def test_what_grpcs_window_lets_through_is_no_bandwidth() -> None:
    traffic, rtt = Traffic(), 0.1
    for number in range(6):
        down = 100 if number else 600_000
        took = rtt * (1 + down / WINDOW)
        traffic.observer.note(Exchange(100, down, number, number + took))
    found = traffic.estimate(6.0)
    assert found is not None and found.down_bytes_per_s is None


def test_the_bytes_of_messages_are_those_of_the_codec() -> None:
    for count in (0, 1, 8):
        hint = codec.encode_up(Hint(1, 0, 5, 5, (7,) * count), 8)
        assert abs(len(hint) + FRAME - HINT_BYTES) <= 4
    commit = codec.encode_down(Commit(1, 0, 5, (7, 8), 1, 1, 3, 4, 50_000), 8, None)
    assert abs(len(commit) + FRAME - COMMIT_BYTES) <= 4
    for tokens in (1, 100, 700, 1700, 3000):
        opening = Open(
            bytes(16), 1, (7,) * tokens, (ChoiceOpen(0),), GREEDY, 0, 100, model="m" * 20,
            vocabulary_digest="a" * 64, numeric_class="b" * 64,
        )  # fmt: skip
        assert abs(len(codec.encode_up(opening, 8)) + FRAME - open_bytes(tokens)) <= 32
    assert open_bytes(1700) - open_bytes(1) > SPREAD
