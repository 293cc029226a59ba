"""`bench npu`: what INT8 graphs of fixed sizes keep of the bundled target, and what they cost.

The target is exported as for an NPU: chunks of 32 rows and of one row, products in INT8 with
scales fixed by calibration on the standard library's text, the input channels that reach
furthest in float (llm.npu, arXiv 2407.05858). Both graphs run in ONNX Runtime's CPU provider:
the figures say what the arithmetic does, not how fast an NPU is.

`greedy_agreement`: share of positions of held-out text at which INT8 and float32 would choose
the same next token, both given the text's own tokens (windows of 256 from an empty cache; the
held-out files of `bench pair`; none of the calibration's). `static_flop_share`: operations of
the chunk that are INT8 products, counted in the file by its shapes: two for a multiplication
in a product, one for each element that any other node makes; the second INT8 piece of an input
counts as no work. `graph_rebuilds`: sessions made while prompts of many lengths ran.

The contrasts leave out the outlier channels, the second piece, or both. The controls: INT8
alone, and scales that are four times too small.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench import harness
from bench.pair import BUNDLED, held_out_files
from outrider.engine import EngineSpec, LayerRange, Span
from outrider.engines import registry
from outrider.engines.onnx.calibrate import STANDARD, WINDOW, calibrate, spread, standard_text
from outrider.engines.onnx.static import Chunks, load
from outrider.models import tokenizer
from outrider.models.npu_export import CHUNK, export_chunks, files_at, flops_of
from outrider.models.npu_graph import Range, Ranges, Scheme
from outrider.models.source import ModelFiles, resolve

MODEL = "bundled:target"
LENGTHS = (1, 2, 5, 17, 31, 32, 33, 64, 100, 129, 200, 255)
WINDOWS = {True: 10, False: 58}
"""Of held-out text, in a quick run and in a full one."""
CALIBRATED = {True: 16, False: 48}
REPEATS = 15
TOO_SMALL = 0.25

Window = NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Text:
    """Held-out windows, and what float32 chose behind each token."""

    windows: Sequence[Window]
    chosen: Sequence[NDArray[np.int64]]

    def agreement(self, chosen: Sequence[NDArray[np.int64]]) -> list[float]:
        """Share of equal choices, window by window."""
        pairs = zip(chosen, self.chosen, strict=True)
        return [float((mine == theirs).mean()) for mine, theirs in pairs]

    def accuracy(self, chosen: Sequence[NDArray[np.int64]]) -> float:
        """Share of positions at which the choice is the text's next token."""
        pairs = zip(chosen, self.windows, strict=True)
        return float(np.mean([(mine[:-1] == ids[1:]).mean() for mine, ids in pairs]))


def held_out(files: ModelFiles, count: int) -> Text:
    held = held_out_files(BUNDLED / "held_out.json")
    known = {source.path for source in held.every}
    assert not known & set(STANDARD), "calibration text must not be measured"
    words = tokenizer.load(files)
    ids = [token for source in held.measured for token in words.encode(source.text)]
    windows = spread(ids, WINDOW, count)
    spec = EngineSpec(
        model=MODEL, engine="torch", device="cpu", dtype="float32", context=WINDOW, threads=1
    )
    engine = registry.build(spec)
    slot = engine.open()
    chosen = [
        np.array(engine.extend([Span(slot, 0, tuple(window.tolist()))])[0].ids)
        for window in windows
    ]
    engine.shutdown()
    return Text(windows, chosen)


# --- schemes -----------------------------------------------------------------------------------


def schemes(ranges: Ranges) -> dict[str, Scheme | None]:
    """By name; the first is what `outrider export --target npu` writes."""
    standard = Scheme(ranges)
    small = {
        point: Range(found.low * TOO_SMALL, found.high * TOO_SMALL)
        for point, found in ranges.items()
    }
    return {
        "standard": standard,
        "no outlier channels": Scheme(ranges, outliers=0.0),
        "one piece": Scheme(ranges, twice=()),
        "INT8 alone": Scheme(ranges, outliers=0.0, twice=()),
        "twice the outliers": Scheme(ranges, outliers=2 * standard.outliers),
        "scales too small": Scheme(small),
        "float": None,
    }


@dataclass(frozen=True, slots=True)
class Measured:
    name: str
    agreement: Sequence[float]
    accuracy: float
    flop_share: float
    again: float
    """Second pieces, as a share of the INT8 operations that count."""
    mebibytes: float
    chunks: Chunks

    @property
    def mean(self) -> float:
        return float(np.mean(self.agreement))

    def cell(self) -> dict[str, Any]:
        return {
            "scheme": self.name,
            "greedy_agreement": self.mean,
            "next_token_accuracy": self.accuracy,
            "static_flop_share": self.flop_share,
            "second_piece_share": self.again,
            "file_mib": self.mebibytes,
        }


def measured(
    files: ModelFiles, name: str, scheme: Scheme | None, text: Text, folder: Path
) -> Measured:
    harness.note(f"npu: {name}")
    path = folder / f"{name.replace(' ', '_')}.onnx"
    export_chunks(files, whole_of(files), path, scheme, context=WINDOW)
    places = files_at(path)
    flops = flops_of(path)
    chunks = load(path)
    chosen = [chunks.run(0, 0, window).argmax(-1) for window in text.windows]
    size = sum(part.stat().st_size for part in (places.prefill, places.decode, places.data))
    again = flops.int8_again / flops.int8 if flops.int8 else 0.0
    return Measured(
        name,
        text.agreement(chosen),
        text.accuracy(chosen),
        flops.int8_share,
        again,
        size / 2**20,
        chunks,
    )


def whole_of(files: ModelFiles) -> LayerRange:
    from outrider.models.stage_export import config_of

    return LayerRange(0, config_of(files).layers, embedding=True, head=True)


# --- rebuilds and time -------------------------------------------------------------------------


def rebuilds(chunks: Chunks, ids: Window) -> tuple[int, int]:
    """Sessions made while prompts of `LENGTHS` and an answer of four rows each ran; runs."""
    before, runs = chunks.counters.graphs_built, sum(chunks.counters.runs.values())
    for length in LENGTHS:
        chunks.run(0, 0, ids[:length])
        for at in range(length, min(length + 4, len(ids))):
            chunks.run(0, at, ids[at : at + 1])
    done = sum(chunks.counters.runs.values()) - runs
    return chunks.counters.graphs_built - before, done


def timed(arms: Mapping[str, Chunks], ids: Window, rows: int) -> dict[str, float]:
    """Median milliseconds of a run of `rows` on top of 128 tokens, arms in turns."""
    found: dict[str, list[float]] = {name: [] for name in arms}
    for _ in range(REPEATS):
        for name, chunks in arms.items():
            began = time.perf_counter()
            chunks.run(0, 128, ids[128 : 128 + rows])
            found[name].append((time.perf_counter() - began) * 1e3)
    return {name: float(np.median(times)) for name, times in found.items()}


def building_ms(path: Path) -> float:
    """What one graph takes to be built, once for each length where sizes follow the prompt."""
    began = time.perf_counter()
    load(path)
    return (time.perf_counter() - began) * 1e3 / 2


# --- the bench ---------------------------------------------------------------------------------


def run(*, quick: bool, seed: int = harness.SEED) -> dict[str, object]:
    """Agreement with float, INT8 share, rebuilds and time of the NPU export on the CPU."""
    files = resolve(MODEL)
    text = held_out(files, WINDOWS[quick])
    harness.note("npu: calibrating")
    ranges = calibrate(files, standard_text(), CALIBRATED[quick])
    with tempfile.TemporaryDirectory(prefix="outrider-") as name:
        folder = Path(name)
        found = {
            name: measured(files, name, scheme, text, folder)
            for name, scheme in schemes(ranges).items()
        }
        build = building_ms(folder / "standard.onnx")
    best, plain = found["standard"], found["float"]
    ids = text.windows[0]
    built, runs = rebuilds(best.chunks, ids)
    arms = {"int8": best.chunks, "float": plain.chunks}
    times = {rows: timed(arms, ids, rows) for rows in (CHUNK, 1)}
    low, high = harness.mean_interval(best.agreement, seed)
    positions = sum(len(window) for window in text.windows)
    return {
        "seed": seed,
        "cases": positions,
        "figures": {
            "static_flop_share": best.flop_share,
            "greedy_agreement": best.mean,
            "greedy_agreement_low": low,
            "greedy_agreement_high": high,
            "score_ratio": best.accuracy / plain.accuracy,
            "float_graph_agreement": plain.mean,
            "agreement_without_outliers": found["no outlier channels"].mean,
            "agreement_one_piece": found["one piece"].mean,
            "graph_rebuilds": built,
            "graph_rebuild_ratio": built / len(LENGTHS),
            "graph_runs": runs,
            "graph_build_ms": build,
            "chunk_rows": CHUNK,
            "chunk_ms": times[CHUNK]["int8"],
            "chunk_ms_float": times[CHUNK]["float"],
            "decode_ms": times[1]["int8"],
            "decode_ms_float": times[1]["float"],
            "file_mib": best.mebibytes,
        },
        "controls": {
            "control_int8_alone_agreement": found["INT8 alone"].mean,
            "control_wrong_scales_agreement": found["scales too small"].mean,
        },
        "cells": [cell for cell in cells(found)],
        "models": {MODEL: files.digest},
        "prompt_lengths": list(LENGTHS),
        "calibration": list(STANDARD),
        "executed_on": "ONNX Runtime CPU provider; not on a phone's NPU",
    }


def cells(found: Mapping[str, Measured]) -> Iterator[dict[str, Any]]:
    for one in found.values():
        yield one.cell()


if __name__ == "__main__":
    sys.exit(harness.main("npu", run))
