"""An engine's own plain loop in a process of its own: prompt, then token by token, no network.

A line `N` on standard input decodes N tokens; the answer is the mean milliseconds
from the first token to the last.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from asyncio.subprocess import PIPE, Process
from dataclasses import asdict, dataclass
from typing import Self

from outrider.engine import Engine, EngineSpec, Span
from outrider.engines import registry


def decode(engine: Engine, prompt: tuple[int, ...], count: int) -> float:
    """Milliseconds a token after the first."""
    slot = engine.open()
    token = engine.extend([Span(slot, 0, prompt, len(prompt) - 1)])[0].ids[0]
    began = time.perf_counter()
    for offset in range(count - 1):
        token = engine.extend([Span(slot, len(prompt) + offset, (token,))])[0].ids[0]
    took = time.perf_counter() - began
    engine.close(slot)
    return took * 1e3 / max(1, count - 1)


def main() -> None:
    setting = json.loads(sys.argv[1])
    setting["options"] = tuple(map(tuple, setting["options"]))
    engine = registry.build(EngineSpec(**setting))
    prompt = tuple(range(5, 21))
    decode(engine, prompt, 8)
    print("ready", flush=True)
    for line in sys.stdin:
        print(decode(engine, prompt, int(line)), flush=True)


@dataclass(slots=True)
class BareLoop:
    """Drives `main` in a child."""

    child: Process

    @classmethod
    async def start(cls, spec: EngineSpec) -> Self:
        child = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "bench.bare", json.dumps(asdict(spec))),
            stdin=PIPE,
            stdout=PIPE,
        )
        assert child.stdout is not None
        if (await child.stdout.readline()).strip() != b"ready":
            raise RuntimeError("the bare loop did not start")
        return cls(child)

    async def run(self, tokens: int) -> float:
        assert self.child.stdin is not None and self.child.stdout is not None
        self.child.stdin.write(f"{tokens}\n".encode())
        return float(await self.child.stdout.readline())

    async def aclose(self) -> None:
        assert self.child.stdin is not None
        self.child.stdin.close()
        await self.child.wait()


if __name__ == "__main__":
    main()
