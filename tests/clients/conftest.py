"""One server for all clients: real HTTP, real masks, an engine that is known to the bit."""

from __future__ import annotations

import gc
import importlib
import os
import warnings
from collections.abc import AsyncGenerator, Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from msgspec.structs import replace as replaced

from outrider.edge.service import GenerateRequest
from outrider.protocol.stream import StreamEvent, Token
from outrider.testing.local_edge import LocalEdge
from outrider.testing.served import Served
from tests.clients.talk import HERMES, face


class Mute(LocalEdge):
    """The control of `bench use_clients`: every answer is empty, so no client can pass."""

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[StreamEvent, None]:
        async for event in super().generate(replace(request, constraint=None, max_tokens=1)):
            yield event if not isinstance(event, Token) else replaced(event, text="")


@pytest.fixture(scope="session")
def url() -> Iterator[str]:
    """Base address, without `/v1`. The model speaks as Qwen and Hermes do when it calls tools."""
    edge = Mute() if os.environ.get("OUTRIDER_MUTE_SERVER") else LocalEdge()
    edge.face = face(HERMES)
    with Served(edge) as served:
        yield served.url


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Any]]:
    """Import a client when its test runs; none of them may look for anything on the network."""
    for name, value in {
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "LANGSMITH_TRACING": "false",
        "OPENAI_API_KEY": "none",
        "NO_PROXY": "*",
    }.items():
        monkeypatch.setenv(name, value)

    def imported(name: str) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            pytest.importorskip(name.partition(".")[0], reason=f"{name} is not installed")
            return importlib.import_module(name)

    yield imported
    with warnings.catch_warnings():
        # Clients that leave their connections to the garbage collector.
        warnings.simplefilter("ignore")
        gc.collect()
