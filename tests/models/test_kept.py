"""An engine that is put away and comes back."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from outrider.engine import EngineInfo, EngineSpec, Span
from outrider.engines import registry
from outrider.errors import ModelChanged
from outrider.models.kept import FOREVER, Kept
from outrider.worker import EngineProcess, EngineThread
from tests.support import run

FAKE = EngineSpec(model="kept", engine="fake", max_slots=4)


class Told:
    """What is said of loads and unloads, under a clock that the test turns."""

    def __init__(self) -> None:
        self.loads: list[EngineInfo] = []
        self.unloads = 0
        self.now = 0.0

    async def kept(self, spec: EngineSpec = FAKE) -> Kept[EngineThread]:
        return await Kept.load(
            lambda: EngineThread.start(lambda: registry.build(spec)),
            lambda info, took_s: self.loads.append(info),
            self.away,
            lambda: self.now,
        )

    def away(self) -> None:
        self.unloads += 1


def test_it_goes_when_idle_and_comes_back_when_asked() -> None:
    async def main() -> None:
        told = Told()
        kept = await told.kept()
        before = kept.info
        await kept.rest(300.0, 10.0, wanted=False)
        await kept.rest(300.0, 309.0, wanted=False)
        assert kept.is_loaded
        await kept.rest(300.0, 310.0, wanted=False)
        assert not kept.is_loaded and kept.alive and told.unloads == 1
        assert kept.info == before and (await kept.statistics()).slots_open == 0
        slot = await kept.open()
        assert kept.is_loaded and len(told.loads) == 2
        assert (await kept.extend([Span(slot, 0, (1, 2), 1)]))[0].ids
        await kept.close(slot)
        await kept.shutdown()
        assert not kept.alive

    run(main())


def test_what_is_wanted_or_open_stays() -> None:
    async def main() -> None:
        told = Told()
        kept = await told.kept()
        slot = await kept.open()
        for now in (0.0, 1.0, 1000.0):
            await kept.rest(0.0, now, wanted=False)
        await kept.unload()
        assert kept.is_loaded, "a slot is open"
        await kept.close(slot)
        await kept.rest(0.0, 1001.0, wanted=True)
        await kept.rest(FOREVER, 9999.0, wanted=False)
        assert kept.is_loaded
        await kept.rest(0.0, 10_000.0, wanted=False)
        assert not kept.is_loaded, "0 is at once"
        await kept.shutdown()

    run(main())


def test_many_that_ask_at_once_load_it_once() -> None:
    async def main() -> None:
        told = Told()
        kept = await told.kept()
        await kept.unload()
        slots = await asyncio.gather(*(kept.open() for _ in range(4)))
        assert len(set(slots)) == 4 and len(told.loads) == 2
        await kept.shutdown()

    run(main())


def test_another_model_does_not_take_its_place_unseen() -> None:
    async def main() -> None:
        told = Told()
        spec = [FAKE]
        kept = await Kept.load(
            lambda: EngineThread.start(lambda: registry.build(spec[0])),
            lambda info, took_s: told.loads.append(info),
            told.away,
            lambda: 0.0,
        )
        await kept.unload()
        spec[0] = EngineSpec(model="other", engine="fake", max_slots=4)
        with pytest.raises(ModelChanged, match="another model"):
            await kept.open()
        spec[0] = FAKE
        assert await kept.open() == 0, "it comes back as soon as it is itself again"
        await kept.shutdown()

    run(main())


def _resident(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) << 10
    return 0


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="reads /proc")
def test_a_child_gives_all_of_its_memory_back() -> None:
    async def main() -> None:
        kept = await Kept.load(
            lambda: EngineProcess.start(FAKE), lambda info, took_s: None, lambda: None, lambda: 0.0
        )
        pid = kept.pid
        assert pid and _resident(pid) > 1 << 20
        await kept.unload()
        assert not os.path.exists(f"/proc/{pid}/status") and kept.pid == 0
        assert await kept.open() == 0 and kept.pid not in (0, pid)
        await kept.shutdown()

    run(main())
