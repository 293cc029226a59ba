"""Another target in the place of one that sessions still use."""

from __future__ import annotations

from pathlib import Path

import pytest

from outrider.errors import ConfigError, OutriderError
from outrider.options import NamedModel
from outrider.protocol import events
from outrider.protocol.stream import Started, StreamEvent, Token
from tests.support import ask, cloud, edge, expected, run, until


def test_open_sessions_stay_with_what_they_were_opened_under(tmp_path: Path) -> None:
    async def main() -> None:
        async with cloud(tmp_path) as target, edge(target.address) as device:
            swap, first = target.running.swap, target.running.cloud.hosts["t"]
            request = ask(max_tokens=200)
            running = device.daemon.generate(request)
            said: list[StreamEvent] = [await anext(running)]
            await swap.take([NamedModel("t", "other")])
            second = target.running.cloud.hosts["t"]
            assert second.description.numeric_class != first.description.numeric_class
            if first.verifier.sessions:
                assert target.running.cloud.retired == [first]
            said += [event async for event in running]
            ids = tuple(e.id for e in said if isinstance(e, Token))
            assert ids == expected(request), "the answer is the old model's to its end"
            await until(lambda: not first.verifier.engine.alive, "it is unloaded")
            assert not target.running.cloud.retired
            for peer in device.daemon.link.peers:
                await device.daemon.link.describe(peer)
            fresh = await device.answer(request)
            assert fresh.ids() == expected(request)
            begun = [e for e in (said[0], *fresh.of(Started)) if isinstance(e, Started)]
            classes = [e.numeric_class for e in begun]
            assert classes == [h.description.numeric_class for h in (first, second)]

    run(main())


def test_one_more_and_one_less(tmp_path: Path) -> None:
    async def main() -> None:
        async with cloud(tmp_path) as target:
            running = target.running
            first = running.cloud.hosts["t"]
            await running.swap.take([NamedModel("t", "fake"), NamedModel("u", "other")])
            assert list(running.cloud.hosts) == ["t", "u"] and running.cloud.hosts["t"] is first
            await running.swap.take([NamedModel("u", "other")])
            assert list(running.cloud.hosts) == ["u"] and not running.cloud.retired
            assert not first.verifier.engine.alive

    run(main())


def test_what_can_not_be_loaded_changes_nothing(tmp_path: Path) -> None:
    async def main() -> None:
        async with cloud(tmp_path) as target:
            running = target.running
            heard: list[events.Event] = []
            made, running.swap.publish = running.swap.make, heard.append

            async def broken(model: NamedModel, ends: object) -> object:
                if model.name == "bad":
                    raise ConfigError("it can not be loaded")
                return await made(model, ends)  # type: ignore[arg-type]

            running.swap.make = broken  # type: ignore[assignment]
            models = [NamedModel("new", "other"), NamedModel("bad", "absent")]
            with pytest.raises(OutriderError):
                await running.swap.take(models)
            assert list(running.cloud.hosts) == ["t"] and len(running.swap._ends) == 1
            running.swap.begin(models)
            await until(lambda: any(isinstance(e, events.Trouble) for e in heard), "it is told")

    run(main())
