"""The fit finds the rates that made the times, stands disturbed ones, and refuses nonsense."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from functools import lru_cache

import numpy as np
import pytest

from outrider.errors import InvalidProfile
from outrider.partitioner.device import Rate
from outrider.partitioner.profile import cells, fit
from outrider.partitioner.profile.cells import Cell
from outrider.partitioner.profile.device import graph_of
from outrider.partitioner.profile.fit import Observation, Precision
from outrider.partitioner.profile.synthetic import Form

KIND = Precision("torch", "float32")
FITTED = (Form(256, 704, 10, 4, 2), Form(512, 1408, 3, 8, 4), Form(1024, 2816, 4, 16, 8))
OTHER = (Form(768, 2048, 5, 12, 4), Form(2048, 5632, 24, 32, 8))
TRUE = replace(
    KIND.rate(),
    flops_per_s=5e10,
    bytes_per_s=1e10,
    pass_s=3e-4,
    layer_s=2e-4,
    attention_flops_per_s=2e10,
    attention_bytes_per_s=4e9,
    rows=((1, 1.0), (4, 1.5), (16, 1.7), (128, 1.0)),
)


def observed(
    rate: Rate, forms: tuple[Form, ...], chosen: tuple[Cell, ...], noise: float = 0.0
) -> list[Observation]:
    """Times as the rate makes them, some of them twice as long by `noise`'s share."""
    draw = random.Random(3)
    found = []
    for form in forms:
        graph = graph_of(form)
        for cell in chosen:
            extra = 2.0 if draw.random() < noise else 1.0
            found.append(Observation(graph, cell, fit.predicted(rate, graph, cell) * extra))
    return found


@lru_cache
def calibrated() -> Rate:
    return fit.fit(KIND, observed(TRUE, FITTED, cells.FULL))


def test_it_finds_what_made_the_times() -> None:
    found = calibrated()
    held = observed(TRUE, OTHER, cells.HELD_OUT)
    assert fit.geomean_error(fit.ratios(found, held)) < 0.03
    assert found.flops_per_s == pytest.approx(TRUE.flops_per_s, rel=0.05)
    assert found.bytes_per_s == pytest.approx(TRUE.bytes_per_s, rel=0.05)
    assert found.layer_s == pytest.approx(TRUE.layer_s, rel=0.1)
    assert (found.engine, found.dtype, found.bytes_per_weight) == ("torch", "float32", 4.0)


def test_two_models_tell_no_cost_per_pass_from_one_per_layer() -> None:
    found = fit.fit(KIND, observed(TRUE, (FITTED[0], FITTED[2]), cells.FULL))
    assert found.pass_s == 0.0 and found.layer_s > TRUE.layer_s and not found.cache_bytes
    held = observed(TRUE, OTHER, cells.HELD_OUT)
    assert fit.geomean_error(fit.ratios(found, held)) < 0.05


def test_the_roofline_alone_is_worse() -> None:
    known = observed(TRUE, FITTED, cells.FULL)
    held = observed(TRUE, OTHER, cells.HELD_OUT)
    alone = fit.geomean_error(fit.ratios(fit.analytic(KIND, known), held))
    assert alone > 5 * fit.geomean_error(fit.ratios(calibrated(), held))


def test_a_tenth_of_disturbed_times_does_little() -> None:
    found = fit.fit(KIND, observed(TRUE, FITTED, cells.FULL, noise=0.1))
    held = observed(TRUE, OTHER, cells.HELD_OUT)
    assert fit.geomean_error(fit.ratios(found, held)) < 0.05


def test_shuffled_times_fit_nothing() -> None:
    known = observed(TRUE, FITTED, cells.FULL)
    times = [one.seconds for one in known]
    random.Random(1).shuffle(times)
    mixed = [replace(one, seconds=time) for one, time in zip(known, times, strict=True)]
    held = observed(TRUE, OTHER, cells.HELD_OUT)
    assert fit.geomean_error(fit.ratios(fit.fit(KIND, mixed), held)) > 0.5


def test_a_cache_is_found_where_small_models_stream_faster() -> None:
    cached = replace(TRUE, cache_bytes=1e8, cache_bytes_per_s=4e10, layer_s=1e-5, pass_s=0.0)
    found = fit.fit(KIND, observed(cached, FITTED, cells.FULL))
    assert 44e6 < found.cache_bytes < 100e6 and not calibrated().cache_bytes
    assert found.cache_bytes_per_s > 2 * found.bytes_per_s
    held = observed(cached, OTHER, cells.HELD_OUT)
    assert fit.geomean_error(fit.ratios(found, held)) < 0.1


@pytest.mark.parametrize("seconds", [math.nan, math.inf, 0.0, -1.0])
def test_times_that_are_none_are_refused(seconds: float) -> None:
    known = observed(TRUE, FITTED, cells.QUICK)
    with pytest.raises(InvalidProfile, match="torch float32"):
        fit.fit(KIND, [replace(known[0], seconds=seconds), *known[1:]])


def test_too_few_measurements_are_refused() -> None:
    with pytest.raises(InvalidProfile, match="too few"):
        fit.fit(KIND, observed(TRUE, FITTED, (Cell(1, 32), Cell(1, 512))))


def test_least_squares_keep_above_zero() -> None:
    table = np.array([[1.0, 1.0], [1.0, 2.0], [1.0, 3.0]])
    falling = fit.non_negative(table, np.array([3.0, 2.0, 1.0]))
    assert falling == pytest.approx([2.0, 0.0])
    rising = fit.non_negative(table, np.array([3.0, 5.0, 7.0]))
    assert rising == pytest.approx([1.0, 2.0])


def test_errors_are_symmetric_and_geometric() -> None:
    assert fit.geomean_error([2.0, 0.5]) == pytest.approx(1.0)
    assert fit.geomean_error([1.0, 1.0]) == 0.0
    assert fit.quantile_error([1.0] * 9 + [0.5], 0.9) == pytest.approx(1.0)


def test_a_throttled_device_is_slower_by_what_the_probe_says() -> None:
    assert fit.slowdown([0.01, 0.1], [0.02, 0.2]) == pytest.approx(2.0)
    assert fit.slowdown([0.01], [0.0001]) == 0.5
    graph, cell = graph_of(OTHER[0]), Cell(7, 100)
    assert fit.predicted(TRUE, graph, cell, 2.0) == 2 * fit.predicted(TRUE, graph, cell)
    for now in ([0.01], [0.01, math.nan]):
        with pytest.raises(InvalidProfile):
            fit.slowdown([0.01, 0.1], now)
