"""A link to a real cloud, through the shaping proxy: figures keep what the link imposes."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("grpc", reason="the edge extra is not installed")

from outrider.errors import CloudUnreachable
from outrider.options import Address
from outrider.partitioner.observe import Exchange
from outrider.partitioner.profile import link as links
from outrider.partitioner.profile.link import Target, Wire, probe
from outrider.testing.link import Link
from outrider.testing.proxy import ShapingProxy
from tests.support import cloud, run


def test_a_shaped_link_is_found_and_no_session_is_left(tmp_path: Path) -> None:
    async def scene() -> None:
        link = Link.of_rtt(20, up_bits_per_s=4e6)
        async with cloud(tmp_path) as served:
            place = served.address
            async with ShapingProxy(place.host, place.port, link) as proxy:
                found = await probe(Target(Address(proxy.host, proxy.port)), turns=4)
                up = proxy.statistics().bytes_up
            await served.settled()
            assert not served.opened()
        assert found.rtt_min_s >= 0.02
        assert found.exchanges == 4 * (links.TRIPS + 3)
        # 28 KiB more take at least 57 ms at this rate: the estimate can only be lower.
        assert found.up_bytes_per_s is not None and found.up_bytes_per_s <= 4e6 / 8 * 1.2
        assert up > 4 * (32 + 4) * 1024

    run(scene())


def test_nobody_there_is_said() -> None:
    async def scene() -> None:
        async with ShapingProxy("127.0.0.1", 9) as proxy:
            port = proxy.port
        with pytest.raises(CloudUnreachable, match="could not be measured"):
            await probe(Target(Address("127.0.0.1", port)), turns=1)

    run(scene())


def test_turns_alternate_all_kinds_of_exchange() -> None:
    seen: list[str] = []

    class Counted(Wire):
        async def describe(self, size: str) -> Exchange:
            seen.append(size)
            return Exchange(1, 1, 0.0, 1.0)

        async def refused(self, ids: int) -> Exchange:
            seen.append(str(ids))
            return Exchange(1, 1, 0.0, 1.0)

    async def scene() -> None:
        wire = Counted(None, (), lambda: 0.0)
        assert len([exchange async for exchange in wire.turns(2)]) == 12

    run(scene())
    turn = ["small"] * links.TRIPS + [str(links.SMALL_IDS), "bulk", str(links.LARGE_IDS)]
    assert seen == turn * 2
