"""`bench kv`: what each KV codec costs in bytes, quality and time, and when shipping KV pays.

Quality: windows of 256 held-out tokens, as `bench pair` reads them. The target computes the
first 192 of each; their keys and values are exported, coded, decoded and imported, and the other
64 are scored on top of them, beside the same 64 on what was never coded. The perplexity ratio's
interval is over windows. The lossless stage changes no value, so that it is scored once.

Speed: real keys and values, none twice, laid out as a 1 B model's, against a copy of the same
buffer, in turns. Time to first token: the like laid out as the 1 B and 8 B models', coded,
sealed, sent over an emulated link of 100 Mbit/s, opened and decoded, against computing them:
their FLOPs at the speed at which one layer of that very shape runs here.
"""

from __future__ import annotations

import asyncio
import math
import os
import struct
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar
from unittest.mock import patch

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from tokenizers import Tokenizer

from bench import harness
from bench.pair import BUNDLED, digest, held_out_files
from examples.train_pair.stream import encode as encode_text
from outrider.engine import Engine, EngineSpec, KvSegment, Span
from outrider.engines import registry
from outrider.partitioner.ship import Piece, Prefill, Rung, Wire, break_even, plan
from outrider.privacy import chunked
from outrider.privacy.kv_object import KvIdentity, token_hash
from outrider.protocol.kv import LADDER, Level, Reader, codec, decode, encode, level
from outrider.protocol.kv.floats import DTYPES, Dtype, narrow_into, stored_as
from outrider.protocol.kv.groups import Grouped, restored
from outrider.testing.link import Link
from outrider.testing.proxy import ShapingProxy

DRAWING = harness.ROOT / "docs" / "drawings" / "kv.svg"
WINDOW = 256
SHIPPED = 192
STRIDE = 128
SLOTS = 4
QUICK_WINDOWS = 24
BARS = {"1_001": 1.001, "1_01": 1.01, "1_05": 1.05}
ROUNDS = 7
SPEED_TOKENS = 1024
SHIP_TOKENS = 512
QUICK_PART = 4
"""A quick run lays out so many times fewer tokens."""
MBIT = 1e6 / 8
LINK_MBIT = 100
PIECE = 64
SHIP_LEVEL = "int4+zstd"

Values = NDArray[np.float32]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Shape:
    """A model's sizes, as in its published config.json."""

    name: str
    layers: int
    hidden: int
    inner: int
    heads: int
    kv_heads: int
    head_dim: int

    @property
    def layer_weights(self) -> int:
        attention = 2 * self.hidden * (self.heads + self.kv_heads) * self.head_dim
        return attention + 3 * self.hidden * self.inner

    @property
    def token_values(self) -> int:
        return self.layers * 2 * self.kv_heads * self.head_dim

    def flops(self, tokens: int) -> float:
        """Of the prefill: a multiplication and an addition a weight, and attention; no head."""
        pairs = tokens * (tokens + 1) / 2
        attention = 4.0 * self.heads * self.head_dim * pairs
        return self.layers * (2.0 * self.layer_weights * tokens + attention)

    def prefill(self, flops_per_s: float) -> Prefill:
        position = 4.0 * self.layers * self.heads * self.head_dim
        token = 2.0 * self.layers * self.layer_weights + position
        return Prefill(token / flops_per_s, position / flops_per_s)


SHAPES = (
    Shape("1b", 16, 2048, 8192, 32, 8, 64),
    Shape("8b", 32, 4096, 14336, 32, 8, 128),
)
"""Llama-3.2-1B and Llama-3.1-8B."""


# --- quality -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Passage:
    """One window: its keys and values, what follows, and how it is scored on them uncoded."""

    segment: KvSegment
    rest: tuple[int, ...]
    labels: tuple[int, ...]
    log_probs: Values


@dataclass(frozen=True, slots=True)
class Quality:
    """Of one codec; the ratio with its 95 % interval over windows."""

    ratio: float
    low: float
    high: float
    kl: float


class Judge:
    """Scores what follows on coded keys and values."""

    def __init__(self, engine: Engine, ids: Sequence[int], windows: int | None) -> None:
        self._engine = engine
        self._slots = [engine.open() for _ in range(SLOTS)]
        starts = range(0, len(ids) - WINDOW, STRIDE)[:windows]
        self.passages = [p for some in batched(starts, SLOTS) for p in self._read(ids, some)]

    def _read(self, ids: Sequence[int], starts: Sequence[int]) -> list[Passage]:
        spans = []
        for slot, at in zip(self._slots, starts, strict=False):
            head = tuple(ids[at : at + SHIPPED])
            spans.append(Span(slot, 0, head, first=SHIPPED - 1))
        self._engine.extend(spans)
        segments = [self._engine.export_kv(span.slot, 0, SHIPPED) for span in spans]
        blank = np.zeros((0, 0), np.float32)
        passages = [
            Passage(
                s,
                tuple(ids[a + SHIPPED : a + WINDOW]),
                tuple(ids[a + SHIPPED + 1 : a + WINDOW + 1]),
                blank,
            )
            for a, s in zip(starts, segments, strict=True)
        ]
        scores = self._scores(passages)
        return [replace(p, log_probs=s) for p, s in zip(passages, scores, strict=True)]

    def _scores(self, passages: Sequence[Passage]) -> list[Values]:
        """Log-probabilities, [tokens, vocabulary], on what the slots hold."""
        spans = [
            Span(slot, SHIPPED, p.rest, want="scores")
            for slot, p in zip(self._slots, passages, strict=False)
        ]
        found = self._engine.extend(spans)
        return [torch.from_numpy(f.scores).log_softmax(-1).numpy() for f in found]

    def quality(self, through: Callable[[KvSegment], KvSegment], seed: int) -> Quality:
        losses, divergences = [], []
        for passages in batched(self.passages, SLOTS):
            for slot, passage in zip(self._slots, passages, strict=False):
                self._engine.rewind(slot, 0)
                self._engine.import_kv(slot, through(passage.segment))
            for passage, found in zip(passages, self._scores(passages), strict=True):
                loss, divergence = compared(passage, found)
                losses.append(loss)
                divergences.append(divergence)
        low, high = harness.mean_interval(losses, seed)
        ratio, least, most = (math.exp(value) for value in (np.mean(losses), low, high))
        return Quality(ratio, least, most, float(np.mean(divergences)))


def compared(passage: Passage, found: Values) -> tuple[float, float]:
    """Means over a window: nats lost a token, and the Kullback-Leibler divergence."""
    before, after = passage.log_probs.astype(np.float64), found.astype(np.float64)
    rows = np.arange(len(passage.labels))
    lost = before[rows, passage.labels] - after[rows, passage.labels]
    divergence = (np.exp(before) * (before - after)).sum(-1)
    return float(lost.mean()), float(divergence.mean())


def batched(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    for at in range(0, len(items), size):
        yield items[at : at + size]


def through(rung: Level) -> Callable[[KvSegment], KvSegment]:
    return lambda segment: decode(encode(segment, rung), segment.tokens)


def with_wrong_scales(segment: KvSegment) -> KvSegment:
    """The control: int8, decoded with each layer's steps taken from another one."""

    def turned(found: Grouped, steps: int) -> Values:
        return restored(replace(found, step=np.flip(found.step, 0)), steps)

    with patch.object(codec, "restored", turned):
        return through(level("int8"))(segment)


def sizes(passages: Sequence[Passage], rung: Level) -> float:
    """Bytes of the objects, heads and all, / those of bare fp16."""
    coded = sum(len(encode(p.segment, rung)) for p in passages)
    return coded / sum(2 * int(np.prod(p.segment.shape)) for p in passages)


# --- speed -------------------------------------------------------------------------------------


def laid_out(passages: Sequence[Passage], shape: Shape, tokens: int, dtype: Dtype) -> KvSegment:
    """Real keys and values in a model's shape, none twice: the lossless stage would see it.

    A head's channels are those of one or more of the target's heads, over windows in a row.
    """
    first = passages[0].segment.shape
    arrays = [np.frombuffer(p.segment.data, np.float32).reshape(first) for p in passages]
    wanted = (shape.layers, 2, shape.kv_heads, tokens, shape.head_dim)
    values = np.empty(wanted, stored_as(dtype))
    for which in range(2):
        rows = np.concatenate([array[:, which] for array in arrays], axis=2)
        strips = rows[:, :, : rows.shape[2] // tokens * tokens]
        strips = strips.reshape(-1, tokens, first[4])
        count = shape.layers * shape.kv_heads * (shape.head_dim // first[4])
        if len(strips) < count:
            raise ValueError(f"{len(strips)} strips of {tokens} tokens are fewer than {count}")
        spread = strips[np.arange(count) * len(strips) // count]
        heads = spread.reshape(shape.layers, shape.kv_heads, -1, tokens, first[4])
        laid = heads.swapaxes(2, 3).reshape(*wanted[:1], *wanted[2:])
        narrow_into(values[:, which], laid, dtype)
    return KvSegment("canonical", dtype, 0, tokens, tuple(range(tokens)), values.tobytes(), wanted)


def seconds(act: Callable[[], object]) -> float:
    began = time.perf_counter()
    act()
    return time.perf_counter() - began


@dataclass(frozen=True, slots=True)
class Speed:
    """Of one codec; memory speed / codec speed is a ratio of times in one round."""

    encode_mb_s: float
    decode_mb_s: float
    encode_over_memcpy: harness.Ratio
    decode_over_memcpy: harness.Ratio

    @property
    def least(self) -> float:
        return min(self.encode_over_memcpy.median, self.decode_over_memcpy.median)


def speed(segment: KvSegment, rung: Level, rounds: int) -> Speed:
    """Copy, encode, decode, in turns."""
    source = np.frombuffer(segment.data, np.uint8)
    copy = np.empty_like(source)
    coded = encode(segment, rung)
    reader = Reader(lambda start, stop: coded[start:stop], len(coded))
    out = reader.read(segment.start, segment.stop)
    runs = (
        lambda: np.copyto(copy, source),
        lambda: encode(segment, rung),
        lambda: reader.read_into(out, segment.start),
    )
    times = [tuple(seconds(run) for run in runs) for _ in range(rounds)]
    size = len(source) / 1e6
    return Speed(
        size / float(np.median([t[1] for t in times])),
        size / float(np.median([t[2] for t in times])),
        harness.ratio([(t[0], t[1]) for t in times]),
        harness.ratio([(t[0], t[2]) for t in times]),
    )


# --- time to first token -----------------------------------------------------------------------


def layer_flops_per_s(shape: Shape, tokens: int) -> float:
    """FLOP/s of one decoder layer's products and attention on this machine, all its cores."""
    width, head = shape.hidden, shape.head_dim
    queries, keys = shape.heads * head, shape.kv_heads * head
    sizes_of = (
        (queries + 2 * keys, width),
        (width, queries),
        (2 * shape.inner, width),
        (width, shape.inner),
    )
    qkv, out, up, down = (torch.randn(size) * 0.01 for size in sizes_of)
    x = torch.randn(tokens, width)

    def layer() -> None:
        q, k, v = torch.split(F.linear(x, qkv), [queries, keys, keys], 1)
        q, k, v = (t.view(1, tokens, -1, head).transpose(1, 2) for t in (q, k, v))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        h = F.linear(mixed[0].transpose(0, 1).reshape(tokens, queries), out)
        gate, wide = F.linear(h, up).chunk(2, 1)
        F.linear(F.silu(gate) * wide, down)

    layer()
    best = min(seconds(layer) for _ in range(3))
    return shape.flops(tokens) / shape.layers / best


def pieces_of(segment: KvSegment) -> list[KvSegment]:
    array, _ = codec.canonical(segment)
    found = []
    for at in range(0, segment.stop, PIECE):
        part = np.ascontiguousarray(array[:, :, :, at : at + PIECE])
        stop = at + part.shape[3]
        ids = segment.tokens[:stop]
        found.append(
            KvSegment("canonical", segment.dtype, at, stop, ids, part.tobytes(), part.shape)
        )
    return found


def context_of(piece: KvSegment, count: int, rung: Level) -> bytes:
    tokens = (piece.start, piece.stop)
    hashed = token_hash(piece.tokens)
    return KvIdentity(
        "bench", b"kv", "", "", (0, piece.shape[0]), tokens, hashed,
        piece.start // PIECE, count, 0, "wire", rung.name,
    ).context()  # fmt: skip


async def shipped(segment: KvSegment, rung: Level, mbit: float) -> tuple[float, int]:
    """Seconds from the first piece's coding to the last one's decoding, and bytes sent."""
    pieces, key = pieces_of(segment), os.urandom(chunked.KEY)
    contexts = [context_of(piece, len(pieces), rung) for piece in pieces]
    sent = 0

    async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        for piece, context in zip(pieces, contexts, strict=True):
            coded = await asyncio.to_thread(encode, piece, rung, segment.stop)
            sealed = await asyncio.to_thread(chunked.seal, key, context, coded)
            writer.write(struct.pack("<I", len(sealed)) + sealed)
            sent += len(sealed)
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    link = Link(down_bits_per_s=mbit * 1e6)
    async with server, ShapingProxy("127.0.0.1", port, link) as proxy:
        began = time.perf_counter()
        reader, writer = await asyncio.open_connection(proxy.host, proxy.port, limit=1 << 24)
        tasks: list[asyncio.Task[KvSegment]] = []
        for piece, context in zip(pieces, contexts, strict=True):
            (size,) = struct.unpack("<I", await reader.readexactly(4))
            sealed = await reader.readexactly(size)
            tasks.append(
                asyncio.create_task(asyncio.to_thread(opened, key, context, sealed, piece))
            )
        await asyncio.gather(*tasks)
        took = time.perf_counter() - began
        writer.close()
    return took, sent


def opened(key: bytes, context: bytes, sealed: bytes, piece: KvSegment) -> KvSegment:
    return decode(chunked.open_all(key, context, sealed), piece.tokens)


@dataclass(frozen=True, slots=True)
class FirstToken:
    """Of a context of so many tokens of one model."""

    shape: Shape
    tokens: int
    flops_per_s: float
    shipped_s: float
    size: int

    @property
    def recompute_s(self) -> float:
        return self.shape.flops(self.tokens) / self.flops_per_s

    @property
    def flops_per_kv_byte(self) -> float:
        return self.shape.flops(self.tokens) / (2.0 * self.shape.token_values * self.tokens)

    @property
    def rung(self) -> Rung:
        """As measured: what the link does not explain is coding."""
        return Rung(SHIP_LEVEL, self.size / self.tokens, 0.0, 0.0, 0.0)

    def planned_s(self, mbit: float, flops_per_s: float) -> float:
        """With the head recomputed while the tail streams in."""
        pieces = [Piece(at, at + PIECE) for at in range(0, self.tokens, PIECE)]
        prefill = self.shape.prefill(flops_per_s)
        return plan(pieces, self.rung, Wire(mbit * MBIT), prefill).finish_s

    def cell(self) -> dict[str, object]:
        return {
            "model": self.shape.name,
            "tokens": self.tokens,
            "level": SHIP_LEVEL,
            "sealed_bytes": self.size,
            "ship_s": self.shipped_s,
            "recompute_s": self.recompute_s,
            "ratio": self.shipped_s / self.recompute_s,
            "planned_s": self.planned_s(LINK_MBIT, self.flops_per_s),
            "gflops": self.flops_per_s / 1e9,
            "flops_per_kv_byte": self.flops_per_kv_byte,
        }


def first_token(passages: Sequence[Passage], shape: Shape, tokens: int) -> FirstToken:
    threads = torch.get_num_threads()
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    rate = layer_flops_per_s(shape, tokens)
    torch.set_num_threads(threads)
    segment = laid_out(passages, shape, tokens, "float16")
    took, size = asyncio.run(shipped(segment, level(SHIP_LEVEL), LINK_MBIT))
    return FirstToken(shape, tokens, rate, took, size)


def draw(found: Sequence[FirstToken], path: Path) -> None:
    """Bandwidth above which shipping beats recomputing, by the receiver's speed."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "outrider"
    from matplotlib import pyplot as plt

    speeds = np.logspace(10, 15, 41)
    figure, axes = plt.subplots(figsize=(6.4, 4.0))
    for first in found:
        fp16 = replace(first.rung, token_bytes=2.0 * first.shape.token_values)
        for rung, style in ((fp16, "--"), (first.rung, "-")):
            rates = [
                break_even(rung, first.shape.prefill(s), first.tokens, Wire(1.0)) / MBIT
                for s in speeds
            ]
            label = f"{first.shape.name.upper()}, {'fp16' if style == '--' else SHIP_LEVEL}"
            axes.loglog(speeds / 1e12, rates, style, label=label)
        axes.axvline(first.flops_per_s / 1e12, color="0.8", linewidth=1)
    axes.axhline(LINK_MBIT, color="0.6", linewidth=1, linestyle=":")
    axes.set(xlabel="receiver's prefill, TFLOP/s", ylabel="break-even, Mbit/s")
    axes.set_title("Above its line, shipping KV beats computing it")
    axes.legend()
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


# --- all of it ---------------------------------------------------------------------------------


def run(*, quick: bool, seed: int = harness.SEED) -> dict[str, object]:
    """Measures bytes, quality and speed of each KV codec, and shipping against recomputing.

    `quick` reads the first `QUICK_WINDOWS` windows and lays out and ships fewer tokens.
    """
    torch.set_num_threads(1)
    held = held_out_files(BUNDLED / "held_out.json")
    words = Tokenizer.from_file(str(BUNDLED / "target" / "tokenizer.json"))
    ids = encode_text(words, [source.text for source in held.measured]).tolist()
    spec = EngineSpec(
        "bundled:target", "torch", max_slots=SLOTS, max_rows=SLOTS * SHIPPED, threads=1
    )
    engine = registry.build(spec)
    judge = Judge(engine, ids, QUICK_WINDOWS if quick else None)
    passages = judge.passages
    harness.note(f"{len(passages)} windows")
    cells = [cell for rung in LADDER if not rung.zstd for cell in rated(judge, rung, seed)]
    control = judge.quality(with_wrong_scales, seed)
    engine.shutdown()
    part, rounds = (QUICK_PART, 2) if quick else (1, ROUNDS)
    speeds = measured_speeds(passages, engine.info.dtype, SPEED_TOKENS // part, rounds)
    for cell in cells:
        cell |= columns(speeds[str(cell["codec"])])
    tokens = PIECE if quick else SHIP_TOKENS
    firsts = [first_token(passages, shape, tokens) for shape in SHAPES]
    if not quick:
        draw(firsts, DRAWING)
    return {
        "seed": seed,
        "cases": len(passages) * (WINDOW - SHIPPED),
        "figures": figures(cells, speeds, firsts)
        | other_dtypes(passages, engine.info.dtype, SPEED_TOKENS // part),
        "controls": {
            "wrong_scales_perplexity_ratio": control.ratio,
            "wrong_scales_perplexity_ratio_low": control.low,
        },
        "cells": [*cells, *(first.cell() for first in firsts)],
        "losing": [cell for cell in cells if float(str(cell["bytes_over_fp16"])) >= 1],
        "dtype": engine.info.dtype,
        "models": {"target": digest(BUNDLED / "target")},
    }


def rated(judge: Judge, rung: Level, seed: int) -> Iterator[dict[str, object]]:
    """A rung without and with its lossless stage."""
    found = judge.quality(through(rung), seed)
    harness.note(f"{rung.name}: perplexity ratio {found.ratio:.5f}")
    for each in (rung, rung.squeezed()):
        yield {
            "codec": each.name,
            "bytes_over_fp16": sizes(judge.passages, each),
            "perplexity_ratio": found.ratio,
            "low": found.low,
            "high": found.high,
            "kl": found.kl,
        }


def known(dtype: str) -> Dtype:
    names: tuple[str, ...] = DTYPES
    return DTYPES[names.index(dtype)]


def measured_speeds(
    passages: Sequence[Passage], dtype: str, tokens: int, rounds: int
) -> dict[str, Speed]:
    segment = laid_out(passages, SHAPES[0], tokens, known(dtype))
    return {rung.name: speed(segment, rung, rounds) for rung in LADDER}


def other_dtypes(passages: Sequence[Passage], dtype: str, tokens: int) -> dict[str, float]:
    """The speed of int8 and int4 on what other engines hold."""
    found = {}
    for other in DTYPES:
        if other == dtype:
            continue
        segment = laid_out(passages, SHAPES[0], tokens, other)
        least = min(speed(segment, level(name), 3).least for name in ("int8", "int4"))
        found[f"codec_over_memcpy_{other}"] = least
    return found


def columns(found: Speed) -> dict[str, object]:
    return {
        "encode_mb_s": found.encode_mb_s,
        "decode_mb_s": found.decode_mb_s,
        "encode_over_memcpy": found.encode_over_memcpy.median,
        "decode_over_memcpy": found.decode_over_memcpy.median,
    }


def figures(
    cells: Sequence[dict[str, object]], speeds: dict[str, Speed], firsts: Sequence[FirstToken]
) -> dict[str, float]:
    plain = [speeds["int8"], speeds["int4"]]
    squeezed = [speeds["int8+zstd"], speeds["int4+zstd"]]
    found = {f"ratio_at_{name}": best(cells, bar) for name, bar in BARS.items()}
    found["codec_over_memcpy"] = min(s.least for s in plain)
    found["codec_over_memcpy_zstd"] = min(s.least for s in squeezed)
    for first in firsts:
        found[f"ttft_ratio_{first.shape.name}"] = first.shipped_s / first.recompute_s
        found[f"flops_per_kv_byte_{first.shape.name}"] = first.flops_per_kv_byte
    return found


def best(cells: Sequence[dict[str, object]], bar: float) -> float:
    """The smallest whose whole interval lies within the bar."""
    within = [c for c in cells if float(str(c["high"])) <= bar]
    return min(float(str(c["bytes_over_fp16"])) for c in within)


if __name__ == "__main__":
    sys.exit(harness.main("kv", run))
