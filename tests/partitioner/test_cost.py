"""The roofline and its corrections, against sums done by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from outrider.models import graph
from outrider.partitioner.cost import (
    hop_s,
    item_bytes,
    row_factor,
    stage_bytes,
    stage_s,
    suited,
    unit_s,
)
from outrider.partitioner.device import DeviceProfile, LinkProfile, Rate
from outrider.partitioner.graph import ModelGraph, Unit, chain

LAYER = Unit("layer.0", "decoder", 2e6, 100.0, 2_000_000, 1000, 64)
RATE = Rate("torch", "float32", flops_per_s=1e9, bytes_per_s=1e9, pass_s=1e-3, layer_s=1e-4)


def model(*units: Unit, tied: bool = False) -> ModelGraph:
    return ModelGraph("m", units, chain(len(units)), "float16", 1024, 4096, tied)


def device(rate: Rate, slowdown: float = 1.0) -> DeviceProfile:
    return DeviceProfile("d", "laptop", 1 << 30, (rate,), slowdown=slowdown)


def test_few_rows_are_bound_by_bytes_and_many_by_products() -> None:
    assert unit_s(LAYER, RATE, 1, 0) == pytest.approx(2e6 / 1e9 + 1e-4)
    assert unit_s(LAYER, RATE, 64, 0) == pytest.approx(64 * 2e6 / 1e9 + 1e-4)


def test_the_context_costs_by_itself_and_its_window_bounds_it() -> None:
    plain = unit_s(LAYER, RATE, 1, 0)
    products = 1000 * LAYER.attention_flops / RATE.flops_per_s
    reading = 1000 * LAYER.kv_bytes / RATE.bytes_per_s
    assert unit_s(LAYER, RATE, 1, 1000) - plain == pytest.approx(products + reading)
    fast = replace(RATE, attention_flops_per_s=1e6)
    assert unit_s(LAYER, fast, 2, 1000) - plain == pytest.approx(2 * 100 * 1000 / 1e6, rel=0.1)
    assert unit_s(replace(LAYER, window=10), RATE, 1, 1000) == unit_s(LAYER, RATE, 1, 10)


def test_keys_scale_with_the_engines_own_kv() -> None:
    wide = replace(RATE, kv_scale=2.0)
    grown = unit_s(LAYER, wide, 1, 1000) - unit_s(LAYER, wide, 1, 0)
    narrow = unit_s(LAYER, RATE, 1, 1000) - unit_s(LAYER, RATE, 1, 0)
    assert grown - narrow == pytest.approx(1000 * LAYER.kv_bytes / RATE.bytes_per_s)


def test_the_row_curve_is_linear_between_knots_and_flat_beyond() -> None:
    rate = replace(RATE, rows=((2, 1.0), (4, 2.0)))
    assert [row_factor(rate, rows) for rows in (1, 2, 3, 4, 9)] == [1.0, 1.0, 1.5, 2.0, 2.0]
    assert unit_s(LAYER, rate, 4, 0) == pytest.approx(4 * 2e6 / 1e9 * 2.0 + 1e-4)


def test_a_stage_is_the_sum_of_its_units_times_the_slowdown() -> None:
    whole = model(LAYER, LAYER, LAYER)
    expected = (RATE.pass_s + 2 * unit_s(LAYER, RATE, 3, 50)) * 2.5
    assert stage_s(whole, 1, 3, device(RATE, 2.5), RATE, 3, 50) == pytest.approx(expected)


def test_only_the_head_computes_the_rows_that_are_asked_for() -> None:
    head = replace(LAYER, kind="head", attention_flops=0.0, kv_bytes=0)
    whole = model(LAYER, head)
    full = stage_s(whole, 0, 2, device(RATE), RATE, 64, 0)
    last = stage_s(whole, 0, 2, device(RATE), RATE, 64, 0, head_rows=1)
    assert full - last == pytest.approx(63 * 2e6 / 1e9)


def test_a_rate_is_suited_to_how_a_model_is_stored() -> None:
    rate = replace(RATE, bytes_per_weight=4.0)
    fit = suited(model(LAYER), rate)
    assert fit.weight_scale == 2.0 and suited(model(LAYER), fit) is fit
    assert stage_s(model(LAYER), 0, 1, device(rate), rate, 1, 0) == pytest.approx(
        RATE.pass_s + unit_s(LAYER, fit, 1, 0)
    )
    assert item_bytes("q8_0") == 34 / 32


def test_small_models_stream_from_the_cache() -> None:
    rate = replace(RATE, cache_bytes=5e6, cache_bytes_per_s=1e10)
    assert suited(model(LAYER, LAYER), rate).bytes_per_s == 1e10
    assert suited(model(LAYER, LAYER, LAYER), rate).bytes_per_s == 1e9


def test_both_ends_of_a_tied_model_share_one_matrix() -> None:
    found = graph.read("bundled:target")
    count = len(found.units)
    whole = stage_bytes(found, 0, count, RATE, 0)
    parts = stage_bytes(found, 0, 4, RATE, 0) + stage_bytes(found, 4, count, RATE, 0)
    assert whole == pytest.approx(found.weight_bytes, abs=4096)
    assert parts - whole == pytest.approx(found.units[0].weight_bytes, abs=3 * 4096)


def test_memory_grows_with_the_tokens_kept() -> None:
    whole = model(LAYER, LAYER)
    rate = replace(RATE, weight_scale=0.5, kv_scale=2.0)
    assert stage_bytes(whole, 0, 2, rate, 0) == pytest.approx(2_000_000, abs=4096)
    grown = stage_bytes(whole, 0, 2, rate, 4096) - stage_bytes(whole, 0, 2, rate, 0)
    assert grown == pytest.approx(2 * 1000 * 2 * 4096, abs=4096)


def test_a_hop_takes_half_a_round_trip_and_its_bytes() -> None:
    link = LinkProfile("a", "b", rtt_s=0.02, up_bytes_per_s=1e6, down_bytes_per_s=2e6)
    assert hop_s(link, "a", 1e4) == pytest.approx(0.01 + 0.01)
    assert hop_s(link, "b", 1e4) == pytest.approx(0.01 + 0.005)
