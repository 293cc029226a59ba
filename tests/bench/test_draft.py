"""`bench draft`: the figures are there, and arithmetic and bookkeeping are right."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

pytest.importorskip("llama_cpp", reason="the llama extra is not installed")
pytest.importorskip("onnxruntime", reason="the onnx extra is not installed")

from contextlib import ExitStack

from bench import draft


@pytest.fixture
def ids() -> tuple[int, ...]:
    return draft.prompt()


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name, value in (("TRIALS", 1), ("QUICK_ROUNDS", 2), ("CONTROL_ROUNDS", 1), ("TURN", 4)):
        monkeypatch.setattr(draft, name, value)
    monkeypatch.setattr(draft, "STEPS", 8)
    yield


def test_a_run_gives_every_figure_and_its_interval() -> None:
    found = draft.run(quick=True)
    figures = found["figures"]
    assert isinstance(figures, dict)
    for name in draft.BARS:
        assert 0 < figures[f"{name}_low"] <= figures[name] <= figures[f"{name}_high"]
    assert figures["onnx_llama_same_choice"] >= 0.98
    assert figures["onnx_int8_same_choice"] >= 0.9
    controls = found["controls"]
    assert isinstance(controls, dict)
    assert {f"control_{name}" for name in draft.BARS} <= controls.keys()
    assert isinstance(found["cells"], list)
    assert len(found["cells"]) == 5


def test_the_arms_say_the_same(ids: tuple[int, ...]) -> None:
    """A loop that decodes something else would be no baseline."""
    engine, own = draft.EngineArm("llama", "f16", 1, ids), draft.OwnLoop("f16", 1, ids)
    for _ in range(3):
        engine.decode()
        own.decode()
        assert engine._said == own._said
    assert len(own._said) == 4
    engine.close()
    own.close()


def test_the_control_computes_more_and_says_the_same(ids: tuple[int, ...]) -> None:
    arm = draft.EngineArm("onnx", "float32", 1, ids)
    arm.decode()
    said = list(arm._said)
    before = arm.engine.statistics().rows
    arm._said.clear()
    draft.Slowed("slow", arm).decode()
    assert arm._said == said
    assert arm.engine.statistics().rows - before == draft.SLOWED * draft.TURN
    arm.close()


def test_a_figure_is_speed_over_speed() -> None:
    assert draft.speed([1.0, 2.0, 1.0], [2.0, 4.0, 2.0]).median == 2.0


def test_losers_are_closed_and_the_winner_at_the_end() -> None:
    class Arm:
        def __init__(self, name: str) -> None:
            self.name = name
            self.closed = 0

        def decode(self) -> None:
            """As fast as the other."""

        def close(self) -> None:
            self.closed += 1

    arms = [Arm("a"), Arm("b")]
    with ExitStack() as stack:
        best = draft.kept(arms, stack)
        assert [arm.closed for arm in arms] == [int(arm is not best) for arm in arms]
    assert [arm.closed for arm in arms] == [1, 1]
