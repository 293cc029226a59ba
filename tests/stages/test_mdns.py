"""Workers found on the local network, where there is one that carries multicast."""

from __future__ import annotations

import asyncio
import sys

import pytest

from outrider.errors import EngineMissing
from outrider.stages.mdns import Found, announce, find
from tests.support import run

LOOPBACK = ["127.0.0.1"]


def test_announced_found_and_taken_back() -> None:
    pytest.importorskip("zeroconf", reason="the extra mdns is not installed")

    async def main() -> None:
        try:
            end = await announce("my.phone", "phone", "127.0.0.1:4711", LOOPBACK)
        except OSError as error:
            pytest.skip(f"loopback carries no multicast here: {error.strerror}")
        try:
            found = await find(1.0, LOOPBACK)
        finally:
            await end()
        if not found:
            pytest.skip("loopback carries no multicast here")
        assert Found("my.phone", "phone", "127.0.0.1:4711") in found
        assert not any(each.name == "my.phone" for each in await find(0.3, LOOPBACK))

    run(main())


def test_without_the_extra_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "zeroconf", None)
    with pytest.raises(EngineMissing, match="zeroconf") as found:
        asyncio.run(find(0.0))
    assert 'pip install "outrider[mdns]"' in str(found.value)
