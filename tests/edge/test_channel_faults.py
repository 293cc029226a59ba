"""Whoever stands between on a sealed session can break it, and the answer goes on to the same text.

What is between is where TLS would have ended: on gRPC's messages as they are, and on the bytes of
a connection in the clear.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from outrider.edge import link as links
from outrider.options import Address
from outrider.protocol import events
from outrider.testing.mangle import BitFlip, Slicer
from outrider.testing.proxy import ShapingProxy
from tests.sealing import Paired
from tests.support import ask, cloud, edge, expected, run

COUNT = 40
PLACES = (0, 1, 2, 3, 4, 20, 0.5, -17, -1)
"""Of a message's bytes; a fraction is a share of its length."""
Change = Callable[[list[bytes]], list[bytes]]
"""What becomes of the messages that came so far; the last is the one that is passed on."""


@pytest.fixture
def paired(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Paired:
    monkeypatch.setattr(links, "BACKOFF_S", (0.005, 0.01))
    monkeypatch.setattr(links, "LEAST_PAUSE_S", 0.005)
    return Paired.make(tmp_path)


@dataclass
class Between:
    """Sits on a peer's calls; does its harm to one message of one call, once."""

    way: str = "up"
    at: int = 0
    change: Change | None = None
    done: bool = False
    calls: list[dict[str, list[bytes]]] = field(default_factory=list)

    def sit(self, peer: Any) -> None:
        inner = peer.channel.stream_stream
        peer.channel.stream_stream = lambda path: lambda **given: self._on(inner(path)(**given))

    def arm(self, way: str, at: int, change: Change) -> None:
        self.way, self.at, self.change, self.done = way, at, change, False

    def _on(self, call: Any) -> Any:
        seen: dict[str, list[bytes]] = {"up": [], "down": []}
        self.calls.append(seen)
        write, read = call.write, call.read

        async def written(data: bytes) -> None:
            for each in self._passed("up", seen["up"], data):
                await write(each)

        async def came() -> Any:
            data = await read()
            if not isinstance(data, bytes):
                return data
            (found,) = self._passed("down", seen["down"], data)
            return found

        call.write, call.read = written, came
        return call

    def _passed(self, way: str, seen: list[bytes], data: bytes) -> list[bytes]:
        seen.append(data)
        if self.change is None or self.done or (way, len(seen) - 1) != (self.way, self.at):
            return [data]
        self.done = True
        return self.change(seen)


def flip(place: float) -> Change:
    def change(seen: list[bytes]) -> list[bytes]:
        data = bytearray(seen[-1])
        at = place if isinstance(place, int) else int(place * len(data))
        data[at if at < len(data) else -1] ^= 0x10
        return [bytes(data)]

    return change


@pytest.mark.parametrize("way", ["up", "down"])
def test_a_flipped_byte_ends_the_session_and_not_the_answer(
    tmp_path: Path, paired: Paired, way: str
) -> None:
    async def main() -> None:
        async with (
            cloud(tmp_path, **paired.cloud) as c,
            edge(c.address, patience_s=60.0, **paired.edge) as e,
        ):
            (peer,) = e.daemon.link.peers
            await e.daemon.link.check(peer)
            between = Between()
            between.sit(peer)
            whole = expected(ask(max_tokens=COUNT))
            # Hello and finish, or accept and opened; then frames.
            for number in (0, 1, 2, 4):
                for place in PLACES:
                    calls = len(between.calls)
                    between.arm(way, number, flip(place))
                    found = await e.answer(ask(max_tokens=COUNT))
                    found.check()
                    assert found.ids() == whole and found.done().exact
                    assert between.done and len(between.calls) == calls + 2, (number, place)
            told = e.published if way == "down" else c.published
            assert troubles(told) > len(PLACES)
            await c.forget()

    run(main())


HARMS: dict[str, tuple[str, Change]] = {
    "repeated up": ("up", lambda seen: [seen[-1], seen[-1]]),
    "left out up": ("up", lambda seen: []),
    "an older one up": ("up", lambda seen: [seen[-2]]),
    "an older one down": ("down", lambda seen: [seen[-2]]),
    "cut up": ("up", lambda seen: [seen[-1][:-1]]),
    "cut down": ("down", lambda seen: [seen[-1][:-1]]),
    "mirrored down": ("down", lambda seen: [b"\x32" + seen[-1][1:-1] + b"\x00"]),
}


def troubles(told: list[events.Event]) -> int:
    codes = ("seal_broken", "protocol_remote")
    return sum(isinstance(each, events.Trouble) and each.code in codes for each in told)


def test_frames_repeated_left_out_reordered_or_cut(tmp_path: Path, paired: Paired) -> None:
    async def main() -> None:
        async with (
            cloud(tmp_path, **paired.cloud) as c,
            edge(c.address, patience_s=60.0, **paired.edge) as e,
        ):
            (peer,) = e.daemon.link.peers
            await e.daemon.link.check(peer)
            between = Between()
            between.sit(peer)
            whole = expected(ask(max_tokens=COUNT))
            for name, (way, change) in HARMS.items():
                # gRPC may hide from a device that writes how the cloud ended its stream.
                told = e.published if way == "down" else c.published
                before, calls = troubles(told), len(between.calls)
                between.arm(way, 3, change)
                found = await e.answer(ask(max_tokens=COUNT))
                assert found.ids() == whole, name
                assert between.done and len(between.calls) == calls + 2, name
                assert troubles(told) > before, name
            await c.forget()

    run(main())


def test_a_whole_session_can_not_be_played_again(tmp_path: Path, paired: Paired) -> None:
    """Frames of one stream are nothing to the next one, even at the same place."""

    async def main() -> None:
        async with cloud(tmp_path, **paired.cloud) as c, edge(c.address, **paired.edge) as e:
            (peer,) = e.daemon.link.peers
            await e.daemon.link.check(peer)
            between = Between()
            between.sit(peer)
            request = ask(max_tokens=COUNT)
            assert (await e.answer(request)).ids() == expected(request)
            first = between.calls[0]
            for way, at in (("up", 1), ("down", 0), ("up", 2), ("down", 2)):
                between.arm(way, at, lambda seen, way=way, at=at: [first[way][at]])  # type: ignore[misc]
                assert (await e.answer(request)).ids() == expected(request)
                assert between.done
            await c.forget()

    run(main())


def test_flips_on_the_connection_itself(tmp_path: Path, paired: Paired) -> None:
    async def main() -> None:
        for direction, offset in (("up", 700), ("up", 1500), ("down", 11000), ("down", 12000)):
            flips = iter([BitFlip(offset, 3)])
            manglers: dict[str, Any] = {direction: [lambda flips=flips: next(flips, Slicer(65536))]}
            async with (
                cloud(tmp_path, **paired.cloud) as c,
                ShapingProxy("127.0.0.1", c.address.port, **manglers) as proxy,
                edge(Address("127.0.0.1", proxy.port), patience_s=60.0, **paired.edge) as e,
            ):
                await e.daemon.link.check(e.daemon.link.peers[0])
                request = ask(max_tokens=200)
                found = await e.answer(request)
                found.check()
                assert found.ids() == expected(request) and found.done().mixed_from is None
                await c.forget()

    run(main())


def test_a_cut_connection_and_a_resume_under_new_keys(tmp_path: Path, paired: Paired) -> None:
    async def main() -> None:
        async with (
            cloud(tmp_path, channel="required", **paired.cloud) as c,
            ShapingProxy("127.0.0.1", c.address.port) as proxy,
            edge(Address("127.0.0.1", proxy.port), patience_s=60.0, **paired.edge) as e,
        ):
            request, ids = ask(max_tokens=120), []
            cuts = [10, 60]
            async for event in e.daemon.generate(request):
                token = getattr(event, "id", None)
                if type(event).__name__ == "Token":
                    ids.append(token)
                    if cuts and len(ids) >= cuts[0]:
                        cuts.pop(0)
                        proxy.reset()
            assert tuple(ids) == expected(request)
            opened = c.opened()
            assert len(opened) == 3 and any(each.resumed for each in opened)

    run(main())
