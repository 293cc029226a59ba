"""The engine in a child process: the same answers, and no way for it to take the cloud along."""

from __future__ import annotations

import asyncio
import os
import signal
from typing import Any

import pytest

from outrider.engine import EngineSpec, Span
from outrider.errors import (
    ConfigError,
    EngineFailed,
    EngineFull,
    InvalidRequest,
    LocalProtocolError,
    NotFound,
)
from outrider.protocol.sampling import Sampling
from outrider.worker import EngineProcess
from tests.support import SAMPLED, fake, run, until

SPEC = EngineSpec(model="fake", engine="fake", max_slots=2, context=64)
PROMPT = tuple(b"ahead")


def test_it_answers_as_the_engine_in_this_process_does() -> None:
    async def main() -> None:
        process, here = await EngineProcess.start(SPEC), fake()
        sampling = Sampling(SAMPLED, 2**127 + 5, 3, len(PROMPT))
        ours, theirs = here.open(sampling), await process.open(sampling)
        for want in ("ids", "logprobs", "scores"):
            [a] = here.extend([Span(ours, 0, PROMPT, 1, want=want, top_n=2)])
            [b] = await process.extend([Span(theirs, 0, PROMPT, 1, want=want, top_n=2)])
            assert (a.ids, a.logprobs) == (b.ids, b.logprobs)
            if want == "scores":
                assert a.scores is not None and b.scores is not None
                assert a.scores.tobytes() == b.scores.tobytes()
        assert process.info.numeric_class == here.info.numeric_class
        await process.rewind(theirs, 2)
        await process.close(theirs)
        assert (await process.statistics()).slots_open == 0
        await process.shutdown()

    run(main())


def test_errors_keep_their_class_across_the_border() -> None:
    async def main() -> None:
        process = await EngineProcess.start(SPEC)
        slots = [await process.open(), await process.open()]
        with pytest.raises(EngineFull, match="2 slots"):
            await process.open()
        with pytest.raises(InvalidRequest, match="0 to 256") as found:
            await process.extend([Span(slots[0], 0, (999,))])
        assert found.value.param == "prompt"
        with pytest.raises(LocalProtocolError):
            await process.close(7)
        [picked] = await process.extend([Span(slots[0], 0, PROMPT, 4)])
        assert len(picked.ids) == 1, "it is well after all that"
        await process.shutdown()

    run(main())


def test_calls_that_wait_for_a_child_that_is_killed_end_and_so_do_later_ones() -> None:
    async def main() -> None:
        process = await EngineProcess.start(SPEC)
        slot = await process.open()
        os.kill(process.pid, signal.SIGSTOP)
        tasks = [asyncio.ensure_future(process.statistics()) for _ in range(3)]
        await asyncio.sleep(0)
        os.kill(process.pid, signal.SIGKILL)
        for task in tasks:
            with pytest.raises(EngineFailed, match="process ended"):
                await task
        assert not process.alive
        with pytest.raises(EngineFailed):
            await process.extend([Span(slot, 0, PROMPT)])
        await process.shutdown()

    run(main())


def test_a_child_that_talks_nonsense_is_ended() -> None:
    async def main() -> None:
        process: Any = await EngineProcess.start(SPEC)
        process._reader.feed_data(b"\x03\0\0\0\xc1\xc1\xc1")
        await until(lambda: not process.alive)
        with pytest.raises(EngineFailed):
            await process.open()
        await process.shutdown()

    run(main())


def test_a_terminal_or_a_service_manager_does_not_end_the_child_before_its_parent() -> None:
    async def main() -> None:
        process = await EngineProcess.start(SPEC)
        for number in (signal.SIGINT, signal.SIGTERM):
            os.kill(process.pid, number)
        assert (await process.statistics()).slots_open == 0 and process.alive
        await process.shutdown()
        assert not process.alive

    run(main())


@pytest.mark.parametrize(
    ("spec", "kind"),
    [
        (EngineSpec(model="fake", engine="nobody's"), ConfigError),
        (EngineSpec(model="fake", engine="fake", options=(("x", "y"),)), ConfigError),
        (EngineSpec(model="nowhere/at/all", engine="torch"), NotFound),
    ],
)
def test_a_model_that_can_not_be_loaded_is_told_typed_and_leaves_no_child(
    spec: EngineSpec, kind: type[Exception]
) -> None:
    import psutil

    async def main() -> None:
        before = {child.pid for child in psutil.Process().children()}
        with pytest.raises(kind):
            await EngineProcess.start(spec)
        assert {child.pid for child in psutil.Process().children()} <= before

    run(main())
