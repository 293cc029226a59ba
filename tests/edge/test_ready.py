"""When the daemon calls itself ready: exactly when a plain request would be answered."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest

from outrider.errors import CloudUnreachable, InvalidRequest
from outrider.options import Address
from tests.support import ask, cloud, edge, run

NOBODY = Address("127.0.0.1", 9)
"""A port of loopback at which nothing listens."""


@pytest.mark.parametrize("fallback", ["wait", "error"])
def test_a_daemon_that_needs_a_cloud_is_ready_when_one_is_known(
    tmp_path: Path, fallback: Literal["wait", "error"]
) -> None:
    async def main() -> None:
        async with cloud(tmp_path) as c, edge(c.address, fallback=fallback) as e:
            assert not e.daemon.ready()
            (await e.answer(ask(max_tokens=2))).check()
            assert e.daemon.ready()

    run(main())


def test_a_daemon_without_cloud_and_model_is_not_ready_and_answers_nothing() -> None:
    async def main() -> None:
        async with edge(NOBODY, draft=None) as e:
            assert not e.daemon.ready()
            with pytest.raises(CloudUnreachable):
                await e.answer(ask(max_tokens=2))

    run(main())


def test_refusals_name_the_fields_as_the_request_spells_them() -> None:
    async def main() -> None:
        async with edge(NOBODY, draft=None) as e:
            with pytest.raises(InvalidRequest) as caught:
                await e.answer(ask(max_tokens=2, placement="edge"))
            assert caught.value.param == "outrider.placement"

    run(main())
