"""`outrider worker` as a process: a real model over two of them, and how they end."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from outrider.engine import Engine, EngineSpec, LayerRange, Span, StageSpan
from outrider.errors import AccessDenied, ConfigError, EngineFull, HandshakeRefused, StageLost
from outrider.models.source import resolve
from outrider.options import Address, NamedModel, WorkerOptions, parse_bounds
from outrider.stages.chain import Chain
from outrider.stages.channel import Credentials
from outrider.stages.remote import RemoteChain
from outrider.stages.worker_at import WorkerAt, look
from outrider.testing.child import Child, ChildSpec, ReadyFile
from outrider.testing.supervisor import Supervisor
from tests.support import run

pytest.importorskip("torch", reason="stages of the bundled model need torch")

SPEC = EngineSpec(
    "bundled:target", "torch", "cpu", "float32", context=128, max_slots=2, max_rows=64
)
LAYERS = 6
HALVES = (LayerRange(0, 3, True, False), LayerRange(3, LAYERS, False, True))
PATIENCE_S = 60.0
PROMPT = tuple(range(40, 60))


def spec(folder: Path, name: str, *flags: str) -> ChildSpec:
    ready = folder / f"{name}.json"
    command = "from outrider.cli import main; main()"
    return ChildSpec(
        name,
        (sys.executable, "-c", command, "worker", "--listen", "127.0.0.1:0", "--name", name)
        + ("--threads", "1", "--ready-file", str(ready), *flags),
        env={"OMP_NUM_THREADS": "1", "OUTRIDER_CACHE": str(folder / "cache")},
        cwd=Path(__file__).resolve().parents[2],
        ready=ReadyFile(ready),
    )


Start = Callable[..., Any]


@asynccontextmanager
async def workers(folder: Path) -> AsyncIterator[Start]:
    """Starts workers by name; gives where they are."""
    async with Supervisor() as supervisor:

        async def start(name: str, *flags: str) -> tuple[WorkerAt, Child]:
            child = await supervisor.start(spec(folder, name, *flags))
            address = json.loads((folder / f"{name}.json").read_text())["address"]
            return WorkerAt(address, name), child

        yield start


def unsplit() -> list[int]:
    """What the whole model says in one engine of the same kind."""
    from outrider.engines import registry

    engine: Engine = registry.build(EngineSpec(**{**_fields(), "threads": 1}))
    slot = engine.open()
    ids = [*engine.extend([Span(slot, 0, PROMPT, len(PROMPT) - 1)])[0].ids]
    for base in range(len(PROMPT), len(PROMPT) + 11):
        ids += engine.extend([Span(slot, base, (ids[-1],))])[0].ids
    engine.shutdown()
    return ids


def _fields() -> dict[str, Any]:
    return {name: getattr(SPEC, name) for name in EngineSpec.__dataclass_fields__}


def split(chain: Chain) -> list[int]:
    """The same over stages, the prompt in three pieces."""
    chain.open(0)
    cuts = [PROMPT[:7], PROMPT[7:11], PROMPT[11:]]
    starts = (0, 7, 11)
    pieces = [
        chain.submit([StageSpan(0, at, len(cut), cut, first=len(cut) - 1)])
        for at, cut in zip(starts, cuts, strict=True)
    ]
    ids = [*pieces[-1].result(PATIENCE_S)[0].ids]
    for base in range(len(PROMPT), len(PROMPT) + 11):
        span = StageSpan(0, base, 1, (ids[-1],))
        ids += chain.submit([span]).result(PATIENCE_S)[0].ids
    chain.close(0)
    return ids


def test_a_real_model_over_two_processes_and_the_end_of_one(tmp_path: Path) -> None:
    async def main() -> None:
        async with workers(tmp_path) as start:
            (a, first), (b, second) = await asyncio.gather(start("a"), start("b"))
            digest = resolve("bundled:target").digest
            chain = await asyncio.to_thread(
                RemoteChain.connect, [a, b], HALVES, SPEC, weights_digest=digest
            )
            assert chain.direct == (True,)
            assert await asyncio.to_thread(split, chain) == await asyncio.to_thread(unsplit)
            chain.open(1)
            futures = [chain.submit([StageSpan(1, n, 1, (n + 1,))]) for n in range(40)]
            await second.kill()
            with pytest.raises(StageLost) as found:
                for future in futures + [chain.submit([StageSpan(1, 40, 1, (1,))])]:
                    future.result(PATIENCE_S)
            assert found.value.device == "b"
            await asyncio.to_thread(chain.shutdown)
            # The other goes on, and has the stage still.
            host = look(a)
            assert [stage.busy for stage in host.loaded] == [False]
            assert await first.terminate() == 0

    run(main())


def test_refusals_of_a_real_worker(tmp_path: Path) -> None:
    async def main() -> None:
        keys = tmp_path / "keys"
        keys.write_text("me right\n")
        async with workers(tmp_path) as start:
            both = start("a", "--model", "t=bundled:draft", "--memory", "1M")
            (draft, _), (small, child) = await asyncio.gather(
                both, start("b", "--memory", "1M", "--api-keys", str(keys), "--speed", "0.5")
            )
            assert "emulating a device of 0.5" in "\n".join(child.lines)
            ours, theirs = resolve("bundled:target").digest, resolve("bundled:draft").digest

            def joined(worker: WorkerAt, key: str, digest: str) -> RemoteChain:
                whole = (LayerRange(0, LAYERS, True, True),)
                known = Credentials(key)
                return RemoteChain.connect(
                    [worker], whole, SPEC, credentials=known, weights_digest=digest
                )

            with pytest.raises(HandshakeRefused) as refused:
                await asyncio.to_thread(joined, draft, "", ours)
            assert ours in str(refused.value) and theirs in str(refused.value)
            with pytest.raises(AccessDenied, match="the worker does not know this key"):
                await asyncio.to_thread(joined, small, "wrong", ours)
            with pytest.raises(EngineFull, match="does not fit this device: .* are missing"):
                await asyncio.to_thread(joined, small, "right", ours)
            host = await asyncio.to_thread(look, small, Credentials("right"))
            assert (host.name, host.speed, host.memory_bytes) == ("b", 0.5, 1 << 20)
            assert host.models[0].digest == ours and host.models[0].layers == LAYERS
            assert host.loaded == ()

    run(main())


def test_sigterm_lets_a_chain_go_on_for_a_while(tmp_path: Path) -> None:
    async def main() -> None:
        async with workers(tmp_path) as start:
            worker, child = await start("a", "--drain", "30")
            whole = (LayerRange(0, LAYERS, True, True),)
            chain = await asyncio.to_thread(RemoteChain.connect, [worker], whole, SPEC)
            ending = asyncio.create_task(child.terminate(PATIENCE_S))
            async with asyncio.timeout(PATIENCE_S):
                while chain.leaving != ("a",):
                    await asyncio.sleep(0.01)
            assert await asyncio.to_thread(split, chain)
            await asyncio.to_thread(chain.shutdown)
            assert await ending == 0

    run(main())


# --- options -----------------------------------------------------------------------------------

WRONG: dict[str, dict[str, Any]] = {
    "an open port": {"listen": Address("0.0.0.0", 1)},
    "a speed above 1": {"speed": 2.0},
    "no memory": {"memory_bytes": 0},
    "no threads": {"threads": 0},
    "layers": {"layers": "3:1"},
    "half a certificate": {"tls_cert": Path("c")},
    "an authority alone": {"client_ca": Path("c")},
    "no model": {"models": ()},
    "a name twice": {"models": (NamedModel("t", "a"), NamedModel("t", "b"))},
    "announced loopback": {"mdns": True},
}


@pytest.mark.parametrize("name", WRONG)
def test_options_that_can_not_work(name: str) -> None:
    with pytest.raises(ConfigError):
        WorkerOptions(**WRONG[name])


def test_layers_that_a_worker_takes() -> None:
    assert parse_bounds("auto") == (0, 0) and parse_bounds("2:12") == (2, 12)


def test_a_port_that_is_taken_is_named(tmp_path: Path) -> None:
    async def main() -> None:
        async with workers(tmp_path) as start:
            worker, _ = await start("a")
            taken = spec(tmp_path, "b")
            argv = [part.replace("127.0.0.1:0", worker.address) for part in taken.argv]
            process = await asyncio.create_subprocess_exec(
                *argv, cwd=taken.cwd, stderr=asyncio.subprocess.PIPE
            )
            _, said = await process.communicate()
            assert process.returncode == 2
            assert b"can not be bound" in said and b"the worker was not started" in said

    run(main())
