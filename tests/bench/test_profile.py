"""`bench profile`: its arithmetic, its control, and that a throttle really throttles."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from bench import profile
from bench.profile import Checked
from outrider.partitioner.observe import Estimate
from outrider.partitioner.profile.cells import Cell
from outrider.partitioner.profile.fit import Precision
from outrider.testing.link import Link

KIND = Precision("torch", "float32")


def checked(predicted: float, roofline: float, duty: float = 1.0, rows: int = 1) -> Checked:
    return Checked(KIND, "m", Cell(rows, 32), duty, 1.0, predicted, roofline, 9.0)


def test_figures_are_geometric_means_of_ratios() -> None:
    cells = [checked(2.0, 4.0), checked(0.5, 0.25, rows=8), checked(1.0, 1.0, duty=0.5)]
    found = profile.figures(cells)
    assert found["geomean_error"] == pytest.approx(2 ** (2 / 3) - 1)
    assert found["reg_over_roofline"] == pytest.approx(1 / 4)
    assert found["decode_error"] == found["prefill_error"] == pytest.approx(1.0)
    assert found["throttled_error"] == pytest.approx(0.0)
    assert found["torch_float32_error"] == found["geomean_error"]
    assert found["geomean_error_low"] <= found["geomean_error"] <= found["geomean_error_high"]


def test_links_are_judged_by_what_the_proxy_was_told() -> None:
    link = Link.of_rtt(20, up_bits_per_s=8e6, down_bits_per_s=16e6)
    estimate = Estimate(0.022, 0.02, 0.001, 1e6, None, 0.0, 10)
    (row,) = profile.link_rows([(link, estimate)])
    assert row["rtt_over_true"] == pytest.approx(1.1)
    assert row["up_over_true"] == pytest.approx(1.0)
    assert profile.link_figures([row])["link_down_error"] == pytest.approx(99.0)


@pytest.mark.skipif(not Path("/proc/self/schedstat").exists(), reason="needs Linux's schedstat")
def test_a_throttled_process_stands_still_in_proportion_to_what_it_computes() -> None:
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as busy:
        try:
            began, before = time.monotonic(), profile.computed_s(busy.pid)
            with profile.throttle(busy.pid, 0.25):
                while profile.computed_s(busy.pid) < before + 0.1:
                    threading.Event().wait(0.005)
            share = (profile.computed_s(busy.pid) - before) / (time.monotonic() - began)
        finally:
            busy.kill()
    # Others' load can only make it smaller.
    assert share < 0.5


def test_plans_keep_what_is_asked_apart_from_what_is_fitted() -> None:
    for sizes in (profile.FULL, profile.QUICK):
        fitted = {form.name for form in sizes.plan.fitted}
        asked = {form if isinstance(form, str) else form.name for form in sizes.held_out}
        assert not fitted & asked and profile.THROTTLED_FORM.name not in fitted
        rows = {cell.rows for cell in sizes.plan.cells}
        assert {cell.rows for cell in sizes.checked} - rows
        assert not {c.context for c in sizes.checked} & {c.context for c in sizes.plan.cells}
