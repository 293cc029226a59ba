"""A cloud whose target is unloaded while nobody asks."""

from __future__ import annotations

from pathlib import Path

from outrider.cloud import rest
from outrider.models.kept import Kept
from outrider.protocol import events
from tests.support import ask, cloud, edge, expected, run, until


def test_the_target_goes_and_comes_back_with_the_same_text(tmp_path: Path) -> None:
    async def main() -> None:
        async with cloud(tmp_path, keep_alive_s=0.0) as target, edge(target.address) as device:
            host = next(iter(target.running.cloud.hosts.values()))
            request = ask(max_tokens=40)
            first = await device.answer(request)
            await until(lambda: not _loaded(target.verifier.engine), "it is put away")
            second = await device.answer(request)
            assert first.ids() == second.ids() == expected(request)
            assert host.description.numeric_class == target.verifier.engine.info.numeric_class
            await rest.look(host, -1.0)

    run(main())


def test_a_target_that_stays_is_not_wrapped(tmp_path: Path) -> None:
    async def main() -> None:
        async with cloud(tmp_path) as target:
            assert not isinstance(target.verifier.engine, Kept)

    run(main())


def _loaded(engine: object) -> bool:
    assert isinstance(engine, Kept)
    return engine.is_loaded


def test_the_events_name_the_model() -> None:
    event = events.ModelUnloaded(model="t", role="target", reason="idle")
    assert events.decode(events.encode(event)) == event
