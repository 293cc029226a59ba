"""The bundled pair, torch above and onnxruntime below: one text, with real hints and a real cut."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from outrider.engine import EngineSpec, Span
from outrider.engines import registry
from outrider.options import Address, NamedModel
from outrider.protocol.sampling import Sampling
from outrider.testing.proxy import ShapingProxy
from tests.support import GREEDY, SAMPLED, Answered, ask, cloud, edge, run

PROMPT = "def read(path):\n    with open(path) as "
TARGET = EngineSpec(model="bundled:target", engine="torch", device="cpu", threads=1, context=256)
DRAFT = EngineSpec(
    model="bundled:draft", engine="onnx", device="cpu", threads=1, context=256, numerics="plain"
)
pytestmark = pytest.mark.skipif(
    not {"torch", "onnx"} <= set(registry.installed()),
    reason="torch and onnxruntime are not both installed",
)


def alone(requests: list[Any], prompt: tuple[int, ...]) -> list[tuple[int, ...]]:
    """The target's own text: one row at a time, by an engine without company."""
    engine = registry.build(TARGET)
    answers = []
    for request in requests:
        slot = engine.open(Sampling(request.sampling, request.seed, 0, len(prompt)))
        rows = prompt
        answer: list[int] = []
        while len(answer) < request.max_tokens:
            base = engine.length(slot)
            answer.append(engine.extend([Span(slot, base, rows, len(rows) - 1)])[0].ids[0])
            rows = (answer[-1],)
        engine.close(slot)
        answers.append(tuple(answer))
    engine.shutdown()
    return answers


def test_the_bundled_pair_says_what_its_target_says_alone(tmp_path: Path) -> None:
    async def main() -> None:
        served = {
            "models": (NamedModel("t", "bundled:target"),),
            "engine": "torch",
            "device": "cpu",
            "context": 256,
            "trigger": "wait:300",
        }
        async with (
            cloud(tmp_path, **served) as c,
            ShapingProxy("127.0.0.1", c.address.port) as proxy,
            edge(Address("127.0.0.1", proxy.port), draft=DRAFT, patience_s=60.0) as e,
        ):
            requests = [ask(PROMPT, sampling=each, max_tokens=32) for each in (GREEDY, SAMPLED)]
            await e.daemon.link.find_one("t")
            truth = alone(requests, e.daemon.render(requests[0]))
            for request, right in zip(requests, truth, strict=True):
                found, cut = Answered(), False
                async for event in e.daemon.generate(request):
                    found.events.append(event)
                    if len(found.tokens()) >= 12 and not cut:
                        cut = True
                        proxy.reset()
                found.check()
                ends = c.running.cloud.hosts["t"].vocabulary.end
                stop = next((i + 1 for i, t in enumerate(right) if t in ends), len(right))
                assert found.ids() == right[:stop]
                assert found.done().exact and found.done().mixed_from is None
            assert c.verifier.counts.accepted > 0, "real drafts were accepted"

    run(main())
