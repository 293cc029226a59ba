"""The harness: statistics of ratios, the result object, receipts, options."""

from __future__ import annotations

import asyncio
import json
import random
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from bench import harness
from bench.harness import Bar, Ratio


def bench(*, quick: bool, seed: int = 0) -> Mapping[str, Any]:
    """A bench that finds its own options."""
    return {
        "cases": 2,
        "figures": {"seed": seed, "speed": 1.5},
        "controls": {"slow": 0.5},
        "cells": [{"rtt": 0, "quick": quick}, {"rtt": 80, "ratio": 0.25}],
        "models": {"target": "ab" * 32},
        "extra": "kept",
    }


# --- statistics --------------------------------------------------------------------------------


def test_a_ratio_is_of_pairs_and_so_immune_to_drift() -> None:
    pairs = [(2.0 * pace, 1.0 * pace) for pace in (1, 7, 3, 50, 2, 9, 4)]
    found = harness.ratio(pairs)
    assert (found.median, found.low, found.high, found.pairs) == (2.0, 2.0, 2.0, 7)
    assert found.coverage == pytest.approx(1 - 2 / 2**7)


def test_few_pairs_give_the_whole_range_and_say_what_it_covers() -> None:
    found = harness.ratio([(1, 1), (2, 1), (3, 1)])
    assert (found.low, found.median, found.high) == (1.0, 2.0, 3.0)
    assert found.coverage == pytest.approx(0.75)


@pytest.mark.parametrize(("count", "cut"), [(5, 0), (6, 0), (8, 0), (9, 1), (20, 5), (61, 22)])
def test_interval_is_that_of_the_sign_test(count: int, cut: int) -> None:
    """Values from tables of the sign test (two-sided, 5 %)."""
    assert harness.sign_interval(count)[0] == cut


def test_interval_covers_the_median_as_often_as_it_says() -> None:
    drawn = random.Random(3)
    hits = 0
    for _ in range(2000):
        found = harness.ratio([(drawn.lognormvariate(0.3, 0.5), 1.0) for _ in range(15)])
        hits += found.low <= 2.718281828**0.3 <= found.high
    assert hits / 2000 == pytest.approx(harness.sign_interval(15)[1], abs=0.015)


def test_no_pairs_no_ratio() -> None:
    with pytest.raises(ValueError, match="pairs"):
        harness.ratio([])


@pytest.mark.parametrize(
    ("low", "high", "failed"), [(1.06, 1.2, True), (1.04, 1.2, False), (0.9, 1.0, False)]
)
def test_a_bar_fails_only_when_the_interval_lies_beyond_it(
    low: float, high: float, *, failed: bool
) -> None:
    found = Ratio((low + high) / 2, low, high, 9, 0.96)
    assert Bar(at_most=1.05).failed(found) is failed
    assert Bar(at_least=1.1).failed(found) is (high < 1.1)


def test_mean_interval_is_seeded_and_holds_the_mean() -> None:
    values = [5.2, 4.0, 5.0, 6.0, 5.5, 4.5]
    low, high = harness.mean_interval(values, 7)
    assert (low, high) == harness.mean_interval(values, 7)
    assert low < sum(values) / len(values) < high


def test_arms_take_turns() -> None:
    ran: list[str] = []

    def arm(name: str) -> Any:
        async def one() -> float:
            ran.append(name)
            return float(len(ran))

        return one

    rounds = asyncio.run(harness.interleave([arm("A"), arm("B")], 3))
    assert "".join(ran) == "ABABAB"
    assert rounds == [(1.0, 2.0), (3.0, 4.0), (5.0, 6.0)]


# --- the result --------------------------------------------------------------------------------


def test_json_is_one_object_with_all_that_is_promised(capsys: pytest.CaptureFixture[str]) -> None:
    assert harness.main("sample", bench, ["--quick", "--json", "--seed", "9"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found) >= {
        *("schema", "bench", "commit", "machine", "seed", "quick", "cases"),
        *("figures", "controls", "cells", "losing", "receipt"),
    }
    assert (found["bench"], found["seed"], found["quick"], found["cases"]) == ("sample", 9, True, 2)
    assert found["figures"] == {"seed": 9, "speed": 1.5}
    assert found["receipt"]["command"] == "outrider bench sample --quick --seed 9"
    assert found["receipt"]["file"] is None
    assert found["details"] == {"extra": "kept"}


def test_a_bench_without_a_seed_tells_its_own() -> None:
    def fixed(*, quick: bool) -> Mapping[str, Any]:
        return {"cases": int(quick), "figures": {}, "seed": 20}

    assert harness.execute("fixed", fixed, quick=True, seed=5).seed == 20


def test_figures_are_numbers() -> None:
    def wrong(*, quick: bool) -> Mapping[str, Any]:
        return {"cases": int(quick), "figures": {"speed": "fast"}}

    with pytest.raises(TypeError, match="speed"):
        harness.execute("wrong", wrong, quick=True, seed=1)


def test_a_receipt_stands_for_a_full_run(tmp_path: Path) -> None:
    full = harness.execute("sample", bench, quick=False, seed=4)
    kept = harness.write_receipt(full, tmp_path)
    read = json.loads((tmp_path / "sample.json").read_text())
    assert read["receipt"]["file"] == kept.receipt.file == "sample.json"
    assert read["receipt"]["models"] == {"target": "ab" * 32}
    assert (read["seed"], read["commit"]) == (4, full.commit)
    with pytest.raises(ValueError, match="quick"):
        harness.write_receipt(harness.execute("sample", bench, quick=True, seed=4), tmp_path)


def test_quick_receipt_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        harness.main("sample", bench, ["--quick", "--receipt"])
    assert ended.value.code == 2
    assert "full run" in capsys.readouterr().err


def test_machine_tells_no_name_and_no_path() -> None:
    text = harness.as_json(harness.execute("sample", bench, quick=True, seed=1)).decode()
    assert socket.gethostname() not in text.split('"')
    assert str(harness.ROOT) not in text and str(Path.home()) not in text
    assert harness.machine().cores >= 1
    assert harness.machine().libraries["numpy"]


def test_table_lists_every_cell(capsys: pytest.CaptureFixture[str]) -> None:
    assert harness.main("sample", bench, ["--quick"]) == 0
    said = capsys.readouterr().out
    assert "speed  1.5" in said and "slow  0.5" in said
    rows = [line.split() for line in said.splitlines()]
    assert ["0", "True", "-"] in rows and ["80", "-", "0.25"] in rows


def test_benches_are_found_by_name() -> None:
    assert "harness" not in harness.names()
    assert "pair" in harness.names()
