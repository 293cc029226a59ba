"""Constants that a run was made with are found again from what it shows."""

from __future__ import annotations

import numpy as np
import pytest

from outrider.partitioner.signals import at
from outrider.partitioner.sim.agreement import Agreement, Bits
from outrider.partitioner.sim.calibrate import (
    Observed,
    agreement_of,
    fit,
    knots_of,
    noise_of,
)
from outrider.partitioner.sim.setup import CloudSetup, Gear, World

BASE = World((Gear("laptop", ((1.0, 1.0),)),), CloudSetup(((1.0, 1.0),)))


def test_passes_by_rows() -> None:
    random = np.random.default_rng(1)
    rows = random.integers(1, 9, 900)
    points = [(int(n), float((40 + 3 * n) * random.lognormal(0, 0.05))) for n in rows]
    knots = knots_of(points)
    for n in (1, 4, 8):
        assert at(knots, n, 0.0) == pytest.approx(40 + 3 * n, rel=0.03)
    assert noise_of(points, knots) == pytest.approx(0.05, rel=0.15)


def test_a_pass_never_gets_cheaper_with_rows() -> None:
    points = [(1, 10.0)] * 9 + [(2, 30.0)] * 5 + [(3, 20.0)] * 5 + [(9, 50.0)] * 2
    knots = knots_of(points)
    assert [ms for _, ms in knots] == sorted(ms for _, ms in knots)
    assert at(knots, 2.5, 0.0) == pytest.approx(25.0)


def chains(agreement: Agreement, count: int) -> list[list[tuple[int, bool]]]:
    """What a device sees of answers with such an agreement."""
    random = np.random.default_rng(2)
    found = []
    for _ in range(count):
        bits = Bits(agreement.shifted(float(random.standard_normal())), random)
        depth, seen = 0, []
        for position in range(60):
            right = bits.right(position)
            seen.append((depth, right))
            depth = depth + 1 if right else 0
        found.append(seen)
    return found


def test_acceptance_by_depth_and_its_spread() -> None:
    truth = Agreement((0.5, 0.7, 0.8), 0.6)
    found = agreement_of(chains(truth, 400), Agreement())
    assert found.rates[0] == pytest.approx(0.5, abs=0.03)
    assert found.rates[1] == pytest.approx(0.7, abs=0.04)
    assert found.spread == pytest.approx(0.6, abs=0.11)
    alike = agreement_of(chains(Agreement((0.5, 0.7), 0.0), 400), Agreement())
    assert alike.spread < 0.25


def test_the_whole_fit() -> None:
    observed = Observed(
        passes=[(1, 40.0), (2, 44.0)] * 5,
        gaps=[0.4, 0.5, 9.0],
        drafts=[(1, 3.0)] * 8,
        bursts=[1.0, 2.0],
        openings=[7.0, 8.0, 90.0],
        rtts=[4.0, 4.0],
    )
    found = fit(observed, BASE)
    assert (found.cloud.gap_ms, found.overheads.open_ms) == (0.5, 8.0)
    assert (found.overheads.up_ms, found.overheads.down_ms) == (2.0, 2.0)
    assert found.gears[0].burst_ms == 1.5
    assert at(found.cloud.step, 1.5, 0.0) == pytest.approx(42.0)
    assert found.agreement == BASE.agreement
