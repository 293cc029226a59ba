"""`bench seal`: what sealing costs: objects at rest or on the move, frames, and a sealed session.

Objects: `seal_into` and `open_into` of `privacy/chunked.py` against bare AES-256-GCM
`encrypt_into` and `decrypt_into` on the same chunks, in turns, nonces and views of the bare loop
made beforehand. `share_of_gigabit` is the time to seal and open an object of 1 MiB, best of all
rounds, over the time that its bytes take at 1 Gbit/s; the bare cipher's share stands beside it.

Sessions: a real edge and a real cloud with the bundled pair, in one process, so that both ends of
the channel burden one loop. The arms take turns on the same cloud: sealed and padded; plain and
padded; plain without padding, for which this bench alone cuts the zeros off open, hint and
commit. Tokens a second are over whole answers, handshake included. The control seals byte by byte.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AsyncExitStack, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from bench import harness
from bench.harness import Bar
from bench.support import LOCAL, drafters, model_digest, start_small
from bench.support import CloudSetup as Setup
from outrider.cloud import main as cloud_main
from outrider.edge.daemon import Daemon, Small
from outrider.edge.fanout import Fanout
from outrider.edge.link import Link
from outrider.edge.service import GenerateRequest
from outrider.lag import LoopLag
from outrider.options import Address, CloudOptions, EdgeOptions, NamedModel
from outrider.privacy import chunked
from outrider.privacy.handshake import Binding, Channel, Initiator, Responder
from outrider.privacy.identity import Identity
from outrider.protocol import codec
from outrider.protocol.bus import NoBus
from outrider.protocol.messages import Hint
from outrider.protocol.sampling import SamplingParams
from outrider.protocol.stream import Done

OBJECT = 1 << 20
"""Bytes."""
GIGABIT = 1e9 / 8
CONTROL = 1 << 16
TOKENS = 192
PROMPT = "def read_lines(path):\n    with open(path) as file:\n"
BARS = {
    "seal_over_raw": Bar(at_least=0.8),
    "open_over_raw": Bar(at_least=0.8),
    "channel_ratio": Bar(at_least=0.97),
}


# --- objects -----------------------------------------------------------------------------------


@dataclass(slots=True)
class Buffers:
    """One object, plain and sealed, and what the bare loop works on."""

    size: int
    key: bytes = field(default_factory=lambda: os.urandom(32))
    plain: bytes = b""
    sealed: bytearray = field(default_factory=bytearray)
    back: bytearray = field(default_factory=bytearray)

    def __post_init__(self) -> None:
        self.plain = os.urandom(self.size)
        self.sealed = bytearray(chunked.sealed_size(self.size))
        self.back = bytearray(self.size)

    def seal(self) -> None:
        chunked.seal_into(self.key, b"bench", self.plain, memoryview(self.sealed))

    def open(self) -> None:
        chunked.open_into(self.key, b"bench", self.sealed, memoryview(self.back))

    def bare(self) -> tuple[Callable[[], None], Callable[[], None]]:
        """Encrypts and decrypts the same chunks, and does nothing else."""
        cipher, source = AESGCM(self.key), memoryview(self.plain)
        text, back = memoryview(bytearray(len(self.sealed))), memoryview(bytearray(self.size))
        pieces = []
        for chunk in range(self.size // chunked.CHUNK + 1):
            at, to = chunk * chunked.CHUNK, chunk * chunked.STEP
            stop = min(self.size, at + chunked.CHUNK)
            room = text[to : to + stop - at + chunked.TAG]
            pieces.append((chunk.to_bytes(12, "big"), source[at:stop], room, back[at:stop]))

        def encrypt(into: Any = cipher.encrypt_into) -> None:
            for nonce, piece, room, _ in pieces:
                into(nonce, piece, None, room)

        def decrypt(into: Any = cipher.decrypt_into) -> None:
            for nonce, _, room, out in pieces:
                into(nonce, room, None, out)

        return encrypt, decrypt


def timed(work: Callable[[], None], times: int = 1) -> float:
    """Seconds of so many runs."""
    began = time.perf_counter()
    for _ in range(times):
        work()
    return time.perf_counter() - began


def slow_seal(buffers: Buffers) -> None:
    """The control: the same, and every byte moved by itself."""
    chunked.seal_into(buffers.key, b"bench", buffers.plain, memoryview(buffers.sealed))
    for at, byte in enumerate(bytes(buffers.sealed)):
        buffers.sealed[at] = byte


def objects(rounds: int) -> dict[str, Any]:
    """Pairs of seconds, (bare, ours), for sealing and opening."""
    buffers = Buffers(OBJECT)
    encrypt, decrypt = buffers.bare()
    buffers.seal()
    pairs: dict[str, list[tuple[float, float]]] = {"seal": [], "open": []}
    for _ in range(rounds):
        pairs["seal"].append((timed(encrypt, 4), timed(buffers.seal, 4)))
        pairs["open"].append((timed(decrypt, 4), timed(buffers.open, 4)))
    if buffers.back != buffers.plain:
        raise AssertionError("what was opened is not what was sealed")
    return pairs


def object_figures(rounds: int) -> tuple[dict[str, float], dict[str, float]]:
    """(figures, controls)"""
    pairs = objects(rounds)
    wire_s = OBJECT / GIGABIT
    best = {
        name: [min(side) / 4 for side in zip(*found, strict=True)] for name, found in pairs.items()
    }
    figures = {
        **harness.ratio(pairs["seal"]).flat("seal_over_raw"),
        **harness.ratio(pairs["open"]).flat("open_over_raw"),
        "share_of_gigabit": (best["seal"][1] + best["open"][1]) / wire_s,
        "share_of_gigabit_seal": best["seal"][1] / wire_s,
        "share_of_gigabit_open": best["open"][1] / wire_s,
        "share_of_gigabit_raw": (best["seal"][0] + best["open"][0]) / wire_s,
        "seal_mb_per_s": OBJECT / best["seal"][1] / 1e6,
        "open_mb_per_s": OBJECT / best["open"][1] / 1e6,
    }
    small = Buffers(CONTROL)
    encrypt, _ = small.bare()
    slow = [(timed(encrypt, 4), timed(partial(slow_seal, small), 4)) for _ in range(8)]
    return figures, {"slow_seal_over_raw": harness.ratio(slow).median}


# --- frames and handshakes ---------------------------------------------------------------------


def shaken() -> tuple[Channel, Channel]:
    """Both ends after a handshake."""
    device, verifier = Identity.generate(), Identity.generate()
    one = Initiator(device, verifier.public)
    two = Responder(verifier, lambda public: public == device.public)
    binding = Binding("model", "class", "", bytes(16), 1)
    finish, ours = one.finish(two.accept(one.hello()), binding, bytes(1100), 0.0)
    return ours, two.finished(finish, 0.0)[2]


def frame_figures(rounds: int) -> dict[str, float]:
    hint = codec.encode_up(Hint(1, 0, 5, 5, (1, 2, 3, 4)), 8)
    ours, theirs = shaken()

    def one() -> None:
        theirs.receiver.open(ours.sender.seal(1, hint, 0.0))

    frames = [timed(one, 200) / 200 for _ in range(rounds)]
    hands = [timed(lambda: (shaken(), None)[1]) for _ in range(rounds)]
    return {
        "frame_us": statistics.median(frames) * 1e6,
        "handshake_cpu_ms": statistics.median(hands) * 1e3,
        "handshake_round_trips": 1,
    }


# --- sessions ----------------------------------------------------------------------------------


@contextmanager
def unpadded() -> Iterator[None]:
    """Messages without the zeros that hide their content's length; readers put them back."""
    pack_hint, pack_commit = codec.pack_hint, codec.pack_commit
    read_hint, read_commit = codec.unpack_hint, codec.unpack_commit

    def hint(data: bytes, slots: int) -> Any:
        return read_hint(data.ljust(codec.hint_size(slots), b"\0"), slots)

    def commit(data: bytes, slots: int, top: int | None) -> Any:
        return read_commit(data.ljust(codec.commit_size(slots, top), b"\0"), slots, top)

    with ExitStack() as stack:
        for name, other in {
            "pack_hint": lambda *given: pack_hint(*given).rstrip(b"\0"),
            "pack_commit": lambda *given: pack_commit(*given).rstrip(b"\0"),
            "unpack_hint": hint,
            "unpack_commit": commit,
            "_padded": lambda wire: wire,
        }.items():
            stack.enter_context(patch.object(codec, name, other))
        yield


@dataclass(slots=True)
class Arm:
    """One way of speaking to the cloud."""

    name: str
    daemon: Daemon
    padded: bool = True
    opens_s: list[float] = field(default_factory=list)
    bytes_a_token: list[float] = field(default_factory=list)

    async def rate(self, seed: int) -> float:
        """Tokens a second of one whole answer."""
        sampling = SamplingParams(temperature=0.7)
        request = GenerateRequest(
            prompt=PROMPT, sampling=sampling, max_tokens=TOKENS, seed=seed, placement="draft"
        )
        with nullcontext() if self.padded else unpadded():
            began = time.perf_counter()
            tokens = 0
            async for event in self.daemon.generate(request):
                if isinstance(event, Done):
                    tokens = event.completion_tokens
                    self.bytes_a_token.append((event.bytes_up + event.bytes_down) / tokens)
            return tokens / (time.perf_counter() - began)


async def a_daemon(
    cloud: Address, small: Small | None, stack: AsyncExitStack, **more: Any
) -> Daemon:
    options = EdgeOptions(clouds=(cloud,), draft="none", fallback="wait", **more)
    fanout = Fanout(NoBus())
    link = Link.make(options, fanout.publish)
    stack.push_async_callback(link.close)
    daemon = Daemon(options, link, small, fanout, LoopLag())
    stack.push_async_callback(daemon.close)
    await link.check(link.peers[0])
    return daemon


def paired(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Options of a cloud and of a device that know each other."""
    device, verifier = Identity.generate(), Identity.generate()
    (folder / "device.pem").write_bytes(device.pem())
    (folder / "verifier.pem").write_bytes(verifier.pem())
    (folder / "devices").write_text(f"bench {device.public.hex()}\n")
    cloud = {
        "channel_identity": folder / "verifier.pem",
        "channel_devices": folder / "devices",
    }
    edge = {
        "channel_identity": folder / "device.pem",
        "channel_pin": verifier.public.hex(),
    }
    return cloud, edge


@contextmanager
def opens_timed(arms: Sequence[Arm]) -> Iterator[None]:
    """Note how long each session took to open, on its arm."""
    inner = Link.open

    async def measured(self: Link, *given: Any) -> Any:
        began = time.perf_counter()
        found = await inner(self, *given)
        arm = next(arm for arm in arms if arm.daemon.link is self)
        arm.opens_s.append(time.perf_counter() - began)
        return found

    with patch.object(Link, "open", measured):
        yield


async def sessions(rounds: int, seed: int) -> tuple[list[Arm], list[tuple[float, ...]]]:
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        for_cloud, for_edge = paired(folder)
        options = CloudOptions(
            listen=LOCAL,
            models=(NamedModel("target", "bundled:target"),),
            threads=1,
            trigger="free",
            runtime_dir=folder,
            **for_cloud,
        )
        running = await cloud_main.start(options, stack)
        where = Address.parse(running.address, 0)
        small = await start_small(drafters()[0], 4, stack)
        arms = [
            Arm("sealed", await a_daemon(where, small, stack, **for_edge)),
            Arm("plain", await a_daemon(where, small, stack)),
            Arm("unpadded", await a_daemon(where, small, stack), padded=False),
        ]
        for arm in arms:
            await arm.rate(seed)
            arm.bytes_a_token.clear()
        with opens_timed(arms):
            found = []
            for number in range(rounds):
                # Who goes first changes, so that no arm always follows the same one.
                turn = [arms[(number + i) % len(arms)] for i in range(len(arms))]
                rates = {arm.name: await arm.rate(seed + number) for arm in turn}
                found.append(tuple(rates[arm.name] for arm in arms))
        return arms, found


def session_figures(rounds: int, seed: int) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """(figures, cells)"""
    arms, found = asyncio.run(sessions(rounds, seed))
    sealed, plain, bare = zip(*found, strict=True)
    opens = [statistics.median(arm.opens_s) * 1e3 for arm in arms]
    cells = [
        {
            "arm": arm.name,
            "tokens_per_s": statistics.median(rates),
            "open_ms": opened,
            "bytes_a_token": statistics.median(arm.bytes_a_token),
        }
        for arm, rates, opened in zip(arms, (sealed, plain, bare), opens, strict=True)
    ]
    figures = {
        **harness.ratio(list(zip(sealed, bare, strict=True))).flat("channel_ratio"),
        **harness.ratio(list(zip(sealed, plain, strict=True))).flat("channel_alone_ratio"),
        "open_extra_ms": opens[0] - opens[1],
    }
    return figures, cells


# --- together ----------------------------------------------------------------------------------


def run(*, quick: bool, seed: int = harness.SEED) -> dict[str, Any]:
    """What sealing costs: objects, frames, sessions."""
    made, controls = object_figures(20 if quick else 300)
    framed = frame_figures(20 if quick else 100)
    spoken, cells = session_figures(4 if quick else 32, seed)
    figures = {**made, **framed, **spoken}
    losing = [
        {"figure": name, "value": figures[name], "bar": bar.at_least}
        for name, bar in BARS.items()
        if figures[f"{name}_high"] < bar.at_least
    ]
    if figures["share_of_gigabit"] > 0.04:
        losing.append(
            {"figure": "share_of_gigabit", "value": figures["share_of_gigabit"], "bar": 0.04}
        )
    return {
        "cases": len(cells) + 4,
        "figures": figures,
        "controls": controls,
        "cells": cells,
        "losing": losing,
        "models": {
            name: model_digest(Setup(f"bundled:{name}").spec()) for name in ("target", "draft")
        },
    }


if __name__ == "__main__":
    sys.exit(harness.main("seal", run))
