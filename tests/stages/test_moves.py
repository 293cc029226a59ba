"""A split model that moves without need: away from devices that go, to ones that come."""

from __future__ import annotations

from dataclasses import dataclass, field

from outrider.engine import Span
from outrider.errors import PlanError
from outrider.stages.engine import SplitEngine
from outrider.stages.replan import Chosen, Layout
from outrider.stages.scout import Offer, Scout
from tests.stages.tiny import TinyFleet, dealt

PROMPT = tuple(range(1, 20))


def said(engine: SplitEngine, between: object = lambda step: None, steps: int = 8) -> list[int]:
    slot = engine.open()
    ids = [*engine.extend([Span(slot, 0, PROMPT, len(PROMPT) - 1)])[0].ids]
    for step in range(steps):
        between(step)  # type: ignore[operator]
        ids += engine.extend([Span(slot, len(PROMPT) + step, (ids[-1],))])[0].ids
    engine.close(slot)
    return ids


def made(fleet: TinyFleet) -> SplitEngine:
    return SplitEngine(fleet, None, clock=lambda: 0.0)


def devices(engine: SplitEngine) -> list[str]:
    return [placed.device for placed in engine.layout]


ALONE = said(made(TinyFleet({"z": 6})))


def test_a_device_that_is_shutting_down_is_left_before_it_goes() -> None:
    fleet = TinyFleet({"a": 3, "b": 3, "c": 3})
    engine = made(fleet)

    def go(step: int) -> None:
        if step == 3:
            fleet.chains[-1].leaving = ("b",)
            fleet.fits.pop("b")

    assert devices(engine) == ["a", "b", "c"]
    assert said(engine, go) == ALONE
    assert devices(engine) == ["a", "c"] and fleet.chains[0].closed
    [note] = engine.statistics().notes
    assert "b is shutting down" in note.reason and "computed again" in note.reason


def test_a_device_that_nobody_can_stand_in_for_is_used_to_its_end() -> None:
    fleet = TinyFleet({"a": 3, "b": 3})
    engine = made(fleet)

    def go(step: int) -> None:
        fleet.chains[-1].leaving = ("b",)

    assert said(engine, go) == ALONE
    assert devices(engine) == ["a", "b"] and len(fleet.chains) == 1
    [note] = engine.statistics().notes
    assert note.old == note.new and "shutting down, but" in note.reason


@dataclass
class Looks:
    """A fleet that compares."""

    chosen: Layout
    gain: float
    fails: bool = False
    asked: list[Layout] = field(default_factory=list)

    def beside(self, layout: Layout) -> tuple[Chosen, float]:
        self.asked.append(layout)
        if self.fails:
            raise PlanError("nobody answers")
        return Chosen(self.chosen, binding="memory of a"), self.gain


def scouted(engine: SplitEngine, looks: Looks) -> tuple[Scout, list[int]]:
    stamp = [0]
    scout = Scout(looks, lambda: stamp[0], lambda: engine.layout)
    engine.follow(scout)
    return scout, stamp


def test_who_comes_is_moved_to_where_that_pays_and_the_text_is_the_same() -> None:
    fleet = TinyFleet({"a": 3, "b": 3})
    engine = made(fleet)
    fleet.fits["c"] = 6
    looks = Looks(dealt({"c": 6}), 0.4)
    scout, stamp = scouted(engine, looks)

    def come(step: int) -> None:
        scout.look()
        if step == 3:
            assert not looks.asked
            stamp[0] += 1

    assert said(engine, come) == ALONE
    assert devices(engine) == ["c"] and len(looks.asked) == 1
    [note] = engine.statistics().notes
    assert note.predicted_gain == 0.4 and "40 % less" in note.reason
    assert note.binding == "memory of a"


def test_who_comes_and_gains_little_is_told_and_left_out() -> None:
    fleet = TinyFleet({"a": 3, "b": 3})
    engine = made(fleet)
    scout, stamp = scouted(engine, Looks(dealt({"c": 6}), 0.05))
    stamp[0] += 1
    scout.look()
    before = engine.info
    assert said(engine) == ALONE
    assert devices(engine) == ["a", "b"] and len(fleet.chains) == 1
    [note] = engine.statistics().notes
    assert note.old == note.new and "5 % less there, and 10% pay" in note.reason
    assert engine.info is not before and engine.info == before


def test_nobody_moves_for_speed_into_another_numeric_class() -> None:
    fleet = TinyFleet({"a": 3, "b": 3}, changed={"c": {"numeric_class": "other"}})
    engine = made(fleet)
    was = engine.info.numeric_class
    scout, stamp = scouted(engine, Looks(dealt({"c": 6}), 0.9))
    stamp[0] += 1
    scout.look()
    assert said(engine) == ALONE
    assert devices(engine) == ["a", "b"] and engine.info.numeric_class == was
    assert "another numeric class" in engine.statistics().notes[0].reason


def test_a_move_to_one_that_went_meanwhile_ends_on_who_is_left() -> None:
    fleet = TinyFleet({"a": 3, "b": 3})
    engine = made(fleet)
    fleet.gone.add("c")
    scout, stamp = scouted(engine, Looks(dealt({"c": 6}), 0.9))
    stamp[0] += 1
    scout.look()
    assert said(engine) == ALONE
    assert devices(engine) == ["a", "b"]
    assert "c went away" in engine.statistics().notes[-1].reason


def test_a_scout_offers_each_change_once_and_nothing_that_is_old() -> None:
    at = [dealt({"a": 6})]
    looks, stamp = Looks(dealt({"b": 6}), 0.5), [0]
    scout = Scout(looks, lambda: stamp[0], lambda: at[0])
    scout.look()
    assert scout.take() is None
    stamp[0] = 1
    scout.look()
    assert scout.take() == Offer(Chosen(looks.chosen, "memory of a"), 0.5)
    scout.look()
    assert scout.take() is None
    at[0] = looks.chosen
    stamp[0] = 2
    scout.look()
    assert scout.take() is None
    looks.fails, stamp[0] = True, 3
    scout.look()
    assert scout.take() is None
