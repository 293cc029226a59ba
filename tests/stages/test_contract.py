"""The contract that every engine keeps, on a split model."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import pytest

from outrider.engine import Engine
from outrider.engines import registry
from outrider.engines.stages import build_stage
from outrider.stages.engine import SplitEngine
from outrider.stages.local import LocalChain
from outrider.stages.replan import Chosen, Layout, told
from tests.engines.conftest import SPECS
from tests.engines.test_contract import *  # noqa: F403

if "torch" not in registry.installed():
    pytest.skip("torch is not installed", allow_module_level=True)


class InProcess:
    """Three stages on two devices, all of them here; the last is the head alone."""

    def plan(self, without: str = "") -> Chosen:
        return Chosen(told("0:1,1:2,2:2", ["a", "b"], 2))

    def chain(self, layout: Layout) -> LocalChain:
        spec = replace(SPECS["torch"], context=256)
        builds = [partial(build_stage, spec, placed.layers) for placed in layout]
        return LocalChain(builds, names=[placed.device for placed in layout])

    def shutdown(self) -> None:
        """Nothing of its own."""


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    built = SplitEngine(InProcess(), None, clock=time.monotonic)
    yield built
    built.shutdown()


@pytest.fixture(autouse=True)
def _sound(engine: Engine) -> Iterator[None]:
    yield
    assert engine.statistics().slots_open == 0
    engine.check_integrity()
