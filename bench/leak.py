"""`bench leak`: what the wire tells an onlooker, and what a host can read back.

A wire capture of real sessions (edge and cloud with the bundled pair, 20 ms apart): fifty
prompts, each asked several times at temperature 0, so that the answer is the same each time,
which is the onlooker's best case. Every hint is verified, so that the number and the timing of
commits follow the text as closely as they can. From what passes, classifiers guess the prompt:

- sizes of the first 64 messages in order, their number and times withheld (`size_only_accuracy`)
- the numbers of messages; the times between them, as they are
- control: the same messages as large as their content (`unpadded_accuracy`)

and the attacks of `outrider privacy` read back what a host is given; on unprotected data they
must succeed (`plain_recovery`), or the small figures would mean nothing.
"""

from __future__ import annotations

import asyncio
import sys
import sysconfig
import time
from collections import Counter
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench.harness import main, note
from bench.leak_wire import Capture, Message, Tap, bare
from bench.support import TARGET, CloudSetup, start_cloud, start_small
from outrider.edge.daemon import Daemon
from outrider.edge.fanout import Fanout
from outrider.edge.link import Link as CloudLink
from outrider.edge.service import GenerateRequest
from outrider.lag import LoopLag
from outrider.models.tokenizer import Tokenizer
from outrider.options import Address, EdgeOptions
from outrider.privacy.leak import meter
from outrider.privacy.leak.fingerprint import Floats, Found, accuracy, common, filled
from outrider.protocol import codec
from outrider.protocol.bus import NoBus
from outrider.protocol.messages import ChoiceOpen, Open
from outrider.protocol.sampling import SamplingParams
from outrider.protocol.vocabulary import Vocabulary
from outrider.testing.link import Link
from outrider.testing.proxy import ShapingProxy
from outrider.testing.supervisor import Supervisor

PROMPTS, RUNS, TOKENS = 50, 4, 160
QUICK_PROMPTS, QUICK_RUNS, QUICK_TOKENS = 8, 2, 64
FIRST = 64
"""Messages whose sizes the onlooker sees."""
MOST = 400
"""Messages whose times it sees."""
RTT_MS = 20.0
SETTLE_S = 0.02
"""For the last messages of a session to pass."""
LEAST_TOKENS, MOST_TOKENS = 24, 160
"""Of a prompt: opens of one size class, 1024 bytes; beyond it `open_class_accuracy` tells."""
GREEDY = SamplingParams(temperature=0.0, logit_bias=((0, -100.0),))
"""The end token is held back: all answers are of one length, so that it tells nothing."""
CLASS_LENGTHS = (16, 960)
"""Tokens of prompts of all lengths, evenly over the logarithm."""


@dataclass(frozen=True, slots=True)
class Seen:
    """One session on the wire."""

    prompt: int
    run: int
    messages: list[Message]
    bare: list[int]
    """Bytes of each message, if sizes followed content."""


def run(*, quick: bool, seed: int = 20) -> dict[str, Any]:
    """A capture, its classifiers, and the inversion attacks."""
    shape = (QUICK_PROMPTS, QUICK_RUNS, QUICK_TOKENS) if quick else (PROMPTS, RUNS, TOKENS)
    seen, opens = asyncio.run(_capture(*shape))
    figures, controls = _wire(seen, seed)
    figures |= {name: value for name, value in opens.items() if name == "open_class_accuracy"}
    controls |= {name: value for name, value in opens.items() if name != "open_class_accuracy"}
    depths, most, texts = ((1,), 6, meter.TEXTS[:1]) if quick else ((1, 3), 16, meter.TEXTS)
    readings = meter.measure("bundled:target", depths, texts, most, note)
    found = {(one.mode, one.attack): one.recovered for one in readings}
    figures |= {
        "chance": 1.0 / shape[0],
        "sealed_recovery": found["kv sealed", "candidates, sorted"],
        "permuted_recovery": found["kv permuted", "candidates, sorted"],
    }
    plain = ("hidden@1", "nearest embedding"), ("hidden@1", "candidates"), ("kv", "candidates")
    controls["plain_recovery"] = min(found[one] for one in plain)
    return {
        "seed": seed,
        "cases": len(seen),
        "models": {"target": "bundled:target", "draft": "bundled:draft"},
        "figures": figures,
        "controls": controls,
        "cells": [
            {"leaves": one.leaves, "attack": one.attack, "recovered": one.recovered}
            for one in readings
        ],
    }


# --- the capture -------------------------------------------------------------------------------


async def _capture(prompts: int, runs: int, tokens: int) -> tuple[list[Seen], dict[str, float]]:
    async with AsyncExitStack() as stack:
        supervisor = await stack.enter_async_context(Supervisor())
        cloud = await start_cloud(supervisor, "cloud", CloudSetup(hint_rows="all"))
        capture = Capture()
        daemon = await _device(cloud, capture, stack)
        served = daemon.link.served(TARGET)
        assert served is not None
        texts = _prompts(served.tokenizer, prompts)
        seen: list[Seen] = []
        for number in range(runs):
            note(f"run {number + 1} of {runs}, {prompts} prompts")
            for which, ids in enumerate(texts):
                capture.clear()
                await _ask(daemon, ids, tokens)
                messages = capture.session()
                sizes = [bare(message, 8, served.vocabulary) for message in messages]
                seen.append(Seen(which, number, messages, sizes))
        return seen, _opens(served.tokenizer, served.vocabulary, prompts)


async def _device(cloud: Address, capture: Capture, stack: AsyncExitStack) -> Daemon:
    proxy = await stack.enter_async_context(
        ShapingProxy(
            cloud.host,
            cloud.port,
            Link.of_rtt(RTT_MS),
            up=[lambda: Tap("up", capture)],
            down=[lambda: Tap("down", capture)],
        )
    )
    options = EdgeOptions(
        clouds=(Address(proxy.host, proxy.port),), draft="none", fallback="wait", max_running=2
    )
    fanout = Fanout(NoBus())
    link = CloudLink.make(options, fanout.publish)
    stack.push_async_callback(link.close)
    small = await start_small("onnx", 2, stack)
    daemon = Daemon(options, link, small, fanout, LoopLag())
    stack.push_async_callback(daemon.close)
    await daemon.served(GenerateRequest(prompt="a"))
    return daemon


async def _ask(daemon: Daemon, ids: tuple[int, ...], tokens: int) -> None:
    request = GenerateRequest(
        prompt=ids, placement="draft", max_tokens=tokens, sampling=GREEDY, seed=0
    )
    async for _ in daemon.generate(request):
        pass
    await asyncio.sleep(SETTLE_S)


def _texts() -> list[str]:
    """Passages of the standard library, one a file."""
    files = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    passages = [
        "".join(p.read_text("utf-8", "ignore").splitlines(keepends=True)[40:]) for p in files
    ]
    return [passage for passage in passages if len(passage) > 4000]


def _prompts(tokenizer: Tokenizer, count: int) -> list[tuple[int, ...]]:
    """Of all lengths between the two bounds, in no order."""
    lengths = np.random.default_rng(1).integers(LEAST_TOKENS, MOST_TOKENS, count)
    texts = _texts()[:count]
    assert len(texts) == count, "this Python has too few sources"
    return [
        tokenizer.encode(text, "plain")[: int(length)]
        for text, length in zip(texts, lengths, strict=True)
    ]


def _opens(tokenizer: Tokenizer, vocabulary: Vocabulary, count: int) -> dict[str, float]:
    """What the size of the open alone tells, over prompts of all lengths: the best guess is
    right once for each size that there is."""
    low, high = CLASS_LENGTHS
    lengths = np.geomspace(low, high, count).round().astype(int)
    padded, plain = Counter[int](), Counter[int]()
    for text, length in zip(_texts()[:count], lengths, strict=True):
        ids = tokenizer.encode(text, "plain")[:length]
        message = Open(bytes(16), 1, ids, (ChoiceOpen(0),), GREEDY, 0, TOKENS)
        body = codec.encode_up(message, 8)
        padded[len(body)] += 1
        plain[bare(Message("up", 0.0, body), 8, vocabulary)] += 1
    return {
        "open_class_accuracy": len(padded) / count,
        "open_unpadded_accuracy": len(plain) / count,
    }


# --- the onlooker ------------------------------------------------------------------------------


def _wire(seen: list[Seen], seed: int) -> tuple[dict[str, float], dict[str, float]]:
    labels = np.array([one.prompt for one in seen])
    runs = np.array([one.run for one in seen])

    def guess(name: str, features: Floats) -> Found:
        began = time.perf_counter()
        found = accuracy(features, labels, runs, seed)
        note(f"{name}: {found.best:.3f} in {time.perf_counter() - began:.0f} s")
        return found

    size = guess("sizes", _sizes([[len(m.body) for m in one.messages] for one in seen], seen))
    count = guess("numbers", _counts(seen))
    timing = guess("times", filled([_gaps(one) for one in seen], MOST))
    plain = guess("unpadded", _sizes([one.bare for one in seen], seen))
    figures = {
        "size_only_accuracy": size.best,
        "count_only_accuracy": count.best,
        "timing_only_accuracy": timing.best,
        "messages_compared": float(min(FIRST, *(len(one.messages) for one in seen))),
    }
    return figures, {"unpadded_accuracy": plain.best}


def _sizes(sizes: list[list[int]], seen: list[Seen]) -> Floats:
    """The first sizes in the order in which they passed, negative downward, and their sums up
    to each message; of every case as many, so that the number is withheld."""
    signed = [
        [size if m.direction == "up" else -size for size, m in zip(row, one.messages, strict=True)]
        for row, one in zip(sizes, seen, strict=True)
    ]
    first = common(signed, FIRST)
    up, down = np.maximum(first, 0).cumsum(1), np.minimum(first, 0).cumsum(1)
    return np.concatenate([first, up, down], axis=1)


def _counts(seen: list[Seen]) -> Floats:
    counts = [Counter(m.direction for m in one.messages) for one in seen]
    return np.array([[each["up"], each["down"]] for each in counts], dtype=np.float64)


def _gaps(one: Seen) -> list[float]:
    """Logarithms of the milliseconds between messages."""
    times = np.array([message.t for message in one.messages])
    return list(np.log(np.diff(times) * 1e3 + 0.05))


if __name__ == "__main__":
    sys.exit(main("leak", run))
