"""Faults of the link at many points of an answer; after each one the invariants are checked."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from outrider.options import Address
from outrider.protocol.stream import StreamEvent
from outrider.testing.link import Link
from outrider.testing.mangle import BitFlip, Slicer
from outrider.testing.proxy import ShapingProxy
from tests.certificates import identity
from tests.support import Answered, Screen, ask, cloud, edge, expected, run

COUNT = 40


def check(found: Answered, request: Any) -> None:
    """Append-only, the undisturbed text, and nothing unverified that is called verified."""
    found.check()
    for choice in range(request.n):
        screen = Screen()
        for event in found.events:
            if event.choice == choice:
                screen.show(event)
        assert tuple(screen.tokens) == found.ids(choice)
        assert found.ids(choice) == expected(request, choice)
        done = found.done(choice)
        assert done.exact and done.mixed_from is None and done.class_changed_at == ()
        sources = [token.source for token in found.tokens(choice)]
        assert "edge" not in sources
        assert sources.count("accepted") <= done.speculation.num_accepted_draft_tokens
        assert done.speculation.num_accepted_draft_tokens <= done.speculation.num_draft_tokens
        assert done.speculation.num_draft_tokens <= done.speculation.sent_draft_tokens


@asynccontextmanager
async def rig(tmp_path: Path, **proxied: Any) -> AsyncIterator[tuple[ShapingProxy, Any]]:
    """Edge, proxy, cloud; afterwards no session, no stream and no slot is left."""
    async with (
        cloud(tmp_path) as c,
        ShapingProxy("127.0.0.1", c.address.port, **proxied) as proxy,
        edge(Address("127.0.0.1", proxy.port), patience_s=60.0, hint_depth=4) as e,
    ):
        await e.daemon.link.check(e.daemon.link.peers[0])
        yield proxy, e


async def struck(e: Any, request: Any, faults: dict[int, Callable[[], Any]]) -> Answered:
    """Each fault strikes when so many events came."""
    found, left = Answered(), dict(faults)

    async def strike(event: StreamEvent) -> None:
        found.events.append(event)
        for at in [at for at in left if len(found.tokens()) >= at]:
            result = left.pop(at)()
            if asyncio.iscoroutine(result):
                await result

    async for event in e.daemon.generate(request):
        await strike(event)
    assert not left
    return found


async def blink(proxy: ShapingProxy) -> None:
    """Cut, and welcome again."""
    proxy.cut()
    await proxy.restore()


@pytest.mark.parametrize("retract", [False, True], ids=["plain", "retracting"])
@pytest.mark.parametrize("how", ["reset", "blink"])
def test_a_broken_connection_anywhere_in_an_answer(
    tmp_path: Path, how: str, *, retract: bool
) -> None:
    async def main() -> None:
        async with rig(tmp_path) as (proxy, e):
            fault = proxy.reset if how == "reset" else partial(blink, proxy)
            for at in (0, 1, 16, 25, COUNT - 1):
                request = ask(max_tokens=COUNT, n=2, seed=at, retract=retract)
                check(await struck(e, request, {at: fault}), request)

    run(main())


def test_breaks_one_after_the_other(tmp_path: Path) -> None:
    async def main() -> None:
        async with rig(tmp_path) as (proxy, e):
            request = ask(max_tokens=90, retract=True)
            faults = {at: proxy.reset for at in (5, 20, 35, 50, 70)}
            check(await struck(e, request, dict(faults)), request)
            assert proxy.statistics().connections >= 5

    run(main())


def test_a_black_hole_ends_in_a_resume_once_it_is_gone(tmp_path: Path) -> None:
    async def main() -> None:
        async with rig(tmp_path) as (proxy, e):
            request = ask(max_tokens=COUNT, retract=True)
            answering = asyncio.create_task(struck(e, request, {20: proxy.black_hole}))
            async with asyncio.timeout(20):
                while not e.published or not any(
                    type(event).__name__ == "Fallback" for event in e.published
                ):
                    await asyncio.sleep(0.01)
            await proxy.restore()
            check(await answering, request)

    run(main())


@pytest.mark.parametrize("size", [1, 7])
def test_bytes_that_come_in_slices(tmp_path: Path, size: int) -> None:
    async def main() -> None:
        slices = {"up": [lambda: Slicer(size)], "down": [lambda: Slicer(size)]}
        async with rig(tmp_path, **slices) as (_, e):
            request = ask(max_tokens=20)
            check(await struck(e, request, {}), request)

    run(main())


@pytest.mark.parametrize(
    "link",
    [
        Link(up_delay_ms=20.0, down_delay_ms=20.0, jitter_ms=20.0),
        Link(up_delay_ms=350.0, down_delay_ms=350.0),
        Link(up_delay_ms=2.0, down_delay_ms=2.0, loss=0.05, retransmit_ms=30.0),
    ],
    ids=["jitter", "far away", "loss"],
)
def test_a_bad_link_is_slower_and_nothing_else(tmp_path: Path, link: Link) -> None:
    async def main() -> None:
        async with rig(tmp_path, link=link) as (_, e):
            request = ask(max_tokens=30)
            check(await struck(e, request, {}), request)

    run(main())


@pytest.mark.parametrize("direction", ["up", "down"])
@pytest.mark.parametrize("offset", [2300, 3000, 4200])
def test_a_bit_that_flips_under_tls_ends_a_connection_and_changes_no_text(
    tmp_path: Path, direction: str, offset: int
) -> None:
    """Once, on the first connection."""
    authority = identity(tmp_path, "authority")
    server = identity(tmp_path, "server", authority)

    async def main() -> None:
        flips = iter([BitFlip(offset, 3)])
        manglers: dict[str, Any] = {direction: [lambda: next(flips, None) or Slicer(65536)]}
        async with (
            cloud(tmp_path, tls_cert=server.cert, tls_key=server.key) as c,
            ShapingProxy("127.0.0.1", c.address.port, **manglers) as proxy,
            edge(Address("127.0.0.1", proxy.port), patience_s=60.0, cloud_ca=authority.cert) as e,
        ):
            await e.daemon.link.find_one("t")
            request = ask(max_tokens=80)
            check(await struck(e, request, {}), request)
            assert proxy.statistics().connections >= 2, "the flip was met"

    run(main())
