"""Measuring: on a clock of the test's own, and once for real in a process of its own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from outrider.engine import EngineSpec, Span
from outrider.engines.fake import FakeEngine
from outrider.errors import EngineFailed, EngineMissing
from outrider.partitioner.profile import device, measure, synthetic
from outrider.partitioner.profile.cells import Cell, grid
from outrider.partitioner.profile.child import Child
from outrider.partitioner.profile.measure import Watch
from outrider.partitioner.profile.synthetic import Form
from outrider.partitioner.profile.worker import Job

SMALL = Form(64, 128, 2, 2, 1, head_dim=32)


class Timed(FakeEngine):
    """Takes a millisecond a row on a clock that only it moves."""

    def __init__(self) -> None:
        super().__init__(EngineSpec(model="timed", engine="fake", max_slots=4))
        self.now = 0.0
        self.disturbed = 0
        self.seen: list[tuple[int, int, int]] = []

    def extend(self, spans: Sequence[Span]) -> list:  # type: ignore[type-arg]
        rows = sum(len(span.tokens) for span in spans)
        self.seen.append((spans[0].base, rows, spans[0].first))
        self.disturbed += 1
        self.now += rows * 1e-3 * (10 if self.disturbed % 4 == 0 else 1)
        return super().extend(spans)


def test_disturbed_rounds_do_not_show() -> None:
    engine = Timed()
    chosen = (Cell(1, 8), Cell(4, 8), Cell(4, 8, "all"))
    found = measure.measure(
        engine, chosen, budget_s=0.0, watch=Watch(lambda: engine.now, lambda: 0)
    )
    assert [sample.cell for sample in found] == list(chosen)
    assert [sample.seconds for sample in found] == pytest.approx([1e-3, 4e-3, 4e-3])
    assert all(sample.rounds == measure.LEAST_ROUNDS for sample in found)
    assert {(8, 1, 0), (8, 4, 3), (8, 4, 0)} <= set(engine.seen)


def test_time_in_the_queue_for_a_core_is_taken_off() -> None:
    engine = Timed()
    queued = Watch(lambda: engine.now, lambda: engine.now * 0.75)
    (found,) = measure.measure(engine, (Cell(4, 8),), budget_s=0.0, watch=queued)
    assert found.seconds == pytest.approx(1e-3)


def test_a_thread_that_waits_between_the_reads_reads_again() -> None:
    queue = iter([0.0, 5.0, 5.0])
    assert Watch(lambda: 10.0, lambda: next(queue)).now() == 5.0


def test_sustained_passes_count_what_comes_between() -> None:
    engine = Timed()
    (found,) = measure.sustained(
        engine, (Cell(2, 8),), span_s=0.1, watch=Watch(lambda: engine.now, lambda: 0.0)
    )
    assert 3e-3 < found.seconds < 10e-3 and found.rounds >= 3


def test_a_synthetic_model_is_the_same_each_time(tmp_path: Path) -> None:
    first, second = (synthetic.write(SMALL, tmp_path / name) for name in "ab")
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        assert (first / name).read_bytes() == (second / name).read_bytes()
    assert device.graph_of(SMALL).decoders == 2


@pytest.mark.parametrize("kind", ["torch:float32", "onnx:int8", "llama:q8_0"])
def test_an_engine_is_measured_in_a_process_of_its_own(kind: str, tmp_path: Path) -> None:
    engine, dtype = kind.split(":")
    library = {"torch": "torch", "onnx": "onnxruntime", "llama": "llama_cpp"}[engine]
    pytest.importorskip(library, reason=f"the {engine} extra is not installed")
    form = Form(64, 128, 2, 4, 2, head_dim=32)
    model = synthetic.write(form, tmp_path)
    chosen = grid((1, 3), (8, 16), 3)
    job = Job(model=str(model), engine=engine, dtype=dtype, cache=str(tmp_path), cells=chosen)
    with Child.start() as child:
        found = child.ask(job)
        wrong = child.ask(
            Job(model=str(tmp_path / "nowhere"), engine=engine, dtype=dtype, cells=chosen)
        )
    assert found.error == "" and found.dtype == dtype
    assert tuple(sample.cell for sample in found.samples) == chosen
    assert all(0 < sample.seconds < 5 for sample in found.samples)
    assert "nowhere" in wrong.error and not wrong.samples


def test_a_process_that_dies_is_an_error_of_its_engine(tmp_path: Path) -> None:
    with Child.start() as child:
        child.process.kill()
        with pytest.raises(EngineFailed, match="torch float32"):
            child.ask(Job(model="m", engine="torch", dtype="float32", cells=(Cell(1, 8),)))


def test_what_can_not_be_measured_is_told_and_left_out() -> None:
    told: list[str] = []
    wanted = device.Wanted(engines=("llama:q3_nonsense",))
    plan = device.Plan((SMALL,), (), (Cell(1, 8),), (), 0.0)
    with pytest.raises(EngineMissing):
        device.profile(wanted, plan, told.append)
    assert any("q3_nonsense" in text for text in told)


def test_quick_measures_the_usual_precision_of_each_engine() -> None:
    wanted = device.Wanted(engines=("torch", "llama", "onnx:float32"))
    found = [(kind.engine, kind.dtype) for kind in device.precisions(wanted, "usual")]
    assert found == [("torch", "float32"), ("llama", "q8_0"), ("onnx", "float32")]
    everything = [kind.dtype for kind in device.precisions(device.Wanted(("onnx",)), "all")]
    assert everything == ["int8", "float32"]


def test_each_plan_measures_the_reference_passes_and_fits_to_none_of_them() -> None:
    for plan in (device.FULL, device.QUICK):
        assert device.PROBE_FORM in plan.held_out and device.PROBE_FORM not in plan.fitted
        assert set(device.PROBE) <= set(plan.checked)
        assert not {f.name for f in plan.fitted} & {f.name for f in plan.held_out}
