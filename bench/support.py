"""What benches share around the runtime: a cloud in a process, devices without HTTP, drafters.

`python -m bench.support SETUP` is a cloud's process; SETUP is a `CloudSetup` as JSON.
"""

from __future__ import annotations

import asyncio
import ctypes
import sys
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, AsyncExitStack, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal
from unittest.mock import patch

import msgspec
import numpy as np

from bench.harness import ROOT
from outrider.cloud import main as cloud_main
from outrider.cloud.cost import StepCost
from outrider.edge.daemon import Daemon, Small
from outrider.edge.drafter import Drafter
from outrider.edge.fanout import Fanout
from outrider.edge.link import Link as CloudLink
from outrider.engine import EngineSpec, Picked, Span
from outrider.engines import registry
from outrider.engines.base import BaseEngine
from outrider.errors import ModelUnsupported
from outrider.lag import LoopLag
from outrider.models import gguf, served, source
from outrider.models.kept import Kept
from outrider.options import Address, CloudOptions, EdgeOptions, NamedModel
from outrider.protocol.bus import NoBus
from outrider.testing.child import ChildSpec, ReadyLine
from outrider.testing.link import Link
from outrider.testing.proxy import ShapingProxy
from outrider.testing.supervisor import Supervisor
from outrider.worker import EngineThread

LOCAL = Address("127.0.0.1", 0)
TARGET = "target"
MODEL_ENGINES = ("onnx", "torch", "llama")
"""Engines that draft with a model."""


# --- clouds ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class CloudSetup:
    """One target and how it is served; the fields are those of `CloudOptions`."""

    model: str = "bundled:target"
    engine: str = "auto"
    dtype: str = "auto"
    numerics: Literal["exact", "plain"] = "exact"
    trigger: str = "free"
    threads: int = 1
    max_slots: int = 16
    ahead: int = 64
    hint_rows: Literal["worth", "all"] = "worth"
    """`all`: rows are priced at nothing, so that every live hint is verified; `worth`: as served
    to users, where rows are spent only while they pay."""
    runtime_dir: str = ""

    def options(self) -> CloudOptions:
        return CloudOptions(
            listen=LOCAL,
            models=(NamedModel(TARGET, self.model),),
            engine=self.engine,
            dtype=self.dtype,
            numerics=self.numerics,
            trigger=self.trigger,
            threads=self.threads,
            max_slots=self.max_slots,
            ahead=self.ahead,
            runtime_dir=Path(self.runtime_dir) if self.runtime_dir else None,
        )

    def spec(self) -> EngineSpec:
        """The engine that such a cloud builds, for a plain loop of one's own beside it."""
        return EngineSpec(
            model=self.model,
            engine=self.engine,
            dtype=self.dtype,
            numerics=self.numerics,
            max_slots=self.max_slots,
            threads=self.threads,
        )


class FreeRows(StepCost):
    """Rows that cost nothing."""

    def ms(self, rows: int) -> float:
        return 1.0


def pricing(setup: CloudSetup) -> AbstractContextManager[object]:
    """Clouds that start in this process meanwhile price rows as the setup says."""
    if setup.hint_rows == "worth":
        return nullcontext()
    return patch.object(cloud_main, "StepCost", FreeRows)


async def start_cloud(supervisor: Supervisor, name: str, setup: CloudSetup) -> Address:
    """A cloud in a process of its own; where it listens. Raises ChildError."""
    argv = [sys.executable, "-m", "bench.support", msgspec.json.encode(setup).decode()]
    child = await supervisor.start(
        ChildSpec(name, argv, cwd=ROOT, ready=ReadyLine(r"^outrider cloud serves .* at (\S+)$"))
    )
    assert child.ready is not None
    return Address.parse(child.ready[1], 0)


def model_digest(spec: EngineSpec) -> str:
    """SHA-256 of a model's weights, as the runtime states it."""
    return served.load(spec).digest


def q4_0(folder: Path, model: str = "bundled:target") -> Path:
    """A GGUF with 4-bit weights, made by llama.cpp's own converter from the F16 one."""
    import llama_cpp

    from outrider.engines.llama import library

    path = folder / "target-q4_0.gguf"
    given = gguf.cached(source.resolve(model), "f16").path
    library.start()
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0
    failed = llama_cpp.llama_model_quantize(
        str(given).encode(), str(path).encode(), ctypes.pointer(params)
    )
    if failed:
        raise ModelUnsupported(f"llama.cpp could not convert {model} to Q4_0")
    return path


# --- devices -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Device:
    """A daemon without its HTTP face, and the emulated link between it and its cloud."""

    daemon: Daemon
    proxy: ShapingProxy


async def start_device(
    cloud: Address, link: Link, small: Small | None, running: int, stack: AsyncExitStack
) -> Device:
    """Everything ends with the stack, except the drafter, which devices may share."""
    proxy = await stack.enter_async_context(ShapingProxy(cloud.host, cloud.port, link))
    options = EdgeOptions(
        clouds=(Address(proxy.host, proxy.port),),
        draft="none",
        fallback="wait",
        max_running=running,
    )
    fanout = Fanout(NoBus())
    to_cloud = CloudLink.make(options, fanout.publish)
    stack.push_async_callback(to_cloud.close)
    daemon = Daemon(options, to_cloud, small, fanout, LoopLag())
    stack.push_async_callback(daemon.close)
    return Device(daemon, proxy)


# --- drafters ----------------------------------------------------------------------------------


def draft_spec(name: str, slots: int) -> EngineSpec:
    """`onnx`, `torch`, `llama` on the bundled draft; `ngram`; `fake`, which mostly agrees with
    a fake target."""
    if name == "fake":
        options = (("agreement", "0.8"),)
        return EngineSpec("draft", "fake", max_slots=slots, options=options)
    return EngineSpec("bundled:draft", name, numerics="plain", max_slots=slots, threads=1)


def drafters() -> tuple[str, ...]:
    """Every installed engine that can draft, the hostile drafter, and none."""
    models = tuple(name for name in MODEL_ENGINES if name in registry.installed())
    return (*models, "ngram", "hostile", "none")


async def start_small(name: str, slots: int, stack: AsyncExitStack) -> Small | None:
    """A drafter by name; `hostile:ENGINE` spoils what that engine proposes."""
    if name == "none":
        return None
    spec = draft_spec(name.removeprefix("hostile:"), slots)

    def build() -> BaseEngine:
        engine = registry.build(spec)
        assert isinstance(engine, BaseEngine)
        return Hostile(engine) if name.startswith("hostile:") else engine

    engine = await EngineThread.start(build)
    stack.push_async_callback(engine.shutdown)
    drafter = Drafter(engine, time.monotonic)
    stack.callback(asyncio.create_task(drafter.run()).cancel)
    return Small(name, drafter, None, 0.0)


def thread_of(small: Small) -> EngineThread:
    """The thread of its engine, whoever keeps it."""
    engine = small.drafter.engine
    found = engine._engine if isinstance(engine, Kept) else engine
    assert isinstance(found, EngineThread)
    return found


class Hostile(BaseEngine):
    """A drafter that means harm: what an engine proposes is spoilt, by slot in one of three ways.

    Garbage: any id of the vocabulary, end tokens too. Wrong: never what the engine said.
    Turncoat: honest until every fourth token, so that wrong ones stand behind right ones.
    """

    def __init__(self, inner: BaseEngine, seed: int = 0) -> None:
        super().__init__(inner.info)
        self._inner = inner
        self._vocabulary = inner._vocabulary
        self._slot_of: dict[int, int] = {}
        self._random = np.random.default_rng(seed)
        self._proposed = 0

    def _opened(self, number: int) -> None:
        self._slot_of[number] = self._inner.open(self._slots[number].sampling)

    def _closed(self, number: int) -> None:
        self._inner.close(self._slot_of.pop(number))

    def _pass(self, spans: Sequence[Span]) -> list[Picked]:
        inner = [replace(span, slot=self._slot_of[span.slot]) for span in spans]
        found = self._inner.extend(inner)
        return [self._spoilt(s.slot, f) for s, f in zip(spans, found, strict=True)]

    def _spoilt(self, slot: int, found: Picked) -> Picked:
        return Picked(tuple(self._spoil(slot, token) for token in found.ids))

    def _spoil(self, slot: int, token: int) -> int:
        size = self.info.vocabulary_size
        self._proposed += 1
        match slot % 3:
            case 0:
                return int(self._random.integers(size))
            case 1:
                return (token + 1) % size
            case _:
                return token if self._proposed % 4 else (token + 1) % size

    def shutdown(self) -> None:
        super().shutdown()
        self._inner.shutdown()


def main(argv: Sequence[str]) -> int:
    """A cloud's process, until SIGTERM."""
    setup = msgspec.json.decode(argv[0], type=CloudSetup)
    with pricing(setup):
        return cloud_main.serve(setup.options())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
