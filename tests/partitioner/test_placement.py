"""The placement policy: what it takes, when it changes, and that it says why."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from outrider.partitioner.acceptance import DEPTHS
from outrider.partitioner.bandit import FIRST_PAUSE_S, PROBE_TOKENS, SHARE, Budget
from outrider.partitioner.book import Book, Habit
from outrider.partitioner.placement import (
    NO_HANDOFF,
    Objective,
    Pilot,
    Rules,
    Verdict,
    Wants,
    alone,
    scores,
)
from outrider.partitioner.power.state import SHALLOW, Bounds
from outrider.partitioner.signals import Bias, Energy, PeerSignals, Signals

KNOWN = Bias(1.0, 0.01, 50.0)
CLOUD = PeerSignals(
    "cloud",
    step=((1.0, 50.0), (8.0, 65.0)),
    rtt_ms=20.0,
    plain=KNOWN,
    drafted=KNOWN,
    wish=5,
    numeric_class="a",
)
HOUSE = replace(CLOUD, name="house", kind="split", rtt_ms=0.1, step=((1.0, 30.0), (8.0, 40.0)))
DRAFT = ((1.0, 6.0), (8.0, 48.0))
LOW = Bounds(draft="off", compute="avoid", reason="battery 18 % < floor 20 %")


def rates(value: float) -> tuple[float, ...]:
    return (value,) * DEPTHS


def signals(now: float = 100.0, holds: float = 0.7, **changes: Any) -> Signals:
    known = rates(holds)
    base = Signals(now, known, known, known, 100.0, DRAFT, peers=(CLOUD,), energy=Energy())
    return replace(base, **changes)


def pilot(placement: Any = "draft", **changes: Any) -> Pilot:
    fields: dict[str, Any] = {"wants": Wants(), "placement": placement, "peer": "cloud"}
    fields |= {"rules": Rules(probes=False)}
    return Pilot(**{**fields, **changes})


def later(
    one: Pilot, start: Signals, looks: int = 12, wants: Wants | None = None
) -> tuple[Verdict, list[Verdict]]:
    """Looks a second and eight tokens apart; the last verdict, and those that changed something."""
    found = []
    for number in range(looks):
        asked = replace(wants or Wants(), committed=(wants or Wants()).committed + 8 * (number + 1))
        found.append(one.decide(replace(start, at_s=start.at_s + number), asked))
    return found[-1], [verdict for verdict in found if verdict.changed]


# --- what it takes -----------------------------------------------------------------------------


def test_drafts_that_hold_are_drafted_and_those_that_do_not_are_not() -> None:
    good, _ = later(pilot("cloud"), signals(holds=0.8))
    assert good.placement == "draft" and good.depth > 0
    bad, changed = later(pilot("draft"), signals(holds=0.05))
    assert bad.placement == "cloud" and bad.depth == 0
    assert "drafting does not pay" in changed[0].reason and "5% of first drafts hold" in bad.reason


def test_the_same_drafts_do_not_pay_far_away() -> None:
    far = replace(CLOUD, rtt_ms=400.0)
    verdict, _ = later(pilot("draft"), signals(holds=0.6, peers=(far,)))
    assert verdict.placement == "cloud"


def test_what_a_joule_is_worth_decides_where_drafts_bring_little() -> None:
    for worth, wanted in ((0.0, "draft"), (400.0, "cloud")):
        one = pilot("draft", objective=Objective(ms_per_joule=worth))
        assert later(one, signals(holds=0.6))[0].placement == wanted


def test_counted_joules_stand_for_the_estimate() -> None:
    energy = Energy(per_token=(("draft", 9.0),))
    found = scores(signals(energy=energy), Wants(), Objective())
    assert next(s.joules for s in found if s.placement == "draft") == 9.0


def test_dollars_are_priced_in() -> None:
    dear = replace(CLOUD, dollars_per_hour=36.0)
    plain = next(
        s
        for s in scores(signals(peers=(dear,)), Wants(), Objective(0.0, ms_per_dollar=1000.0))
        if s.placement == "cloud"
    )
    assert plain.dollars == pytest.approx(36.0 * 0.05 / 3600.0)
    assert plain.total == pytest.approx(plain.ms + 1000.0 * plain.dollars)


def test_the_house_is_taken_where_it_is_faster_than_the_move_costs() -> None:
    both = signals(peers=(CLOUD, HOUSE))
    assert later(pilot("cloud"), both)[0].peer == "house"
    nearly_done = Wants(prompt=2000, committed=500, remaining=4)
    assert later(pilot("draft"), both, wants=nearly_done)[0].peer == "cloud"


# --- what it may not ---------------------------------------------------------------------------


def score(name: str, given: Signals, wants: Wants | None = None) -> Any:
    found = scores(given, wants or Wants(), Objective())
    return next(s for s in found if s.placement == name)


def test_handoff_is_scored_and_named_as_not_there() -> None:
    found = score("handoff", signals())
    assert not found.possible and found.why == NO_HANDOFF and math.isfinite(found.total)


def test_the_small_model_answers_only_where_that_was_asked_for_and_only_from_the_start() -> None:
    assert "not asked for" in score("edge", signals()).why
    allowed = Wants(small_allowed=True)
    assert score("edge", signals(), allowed).possible
    assert "start an answer" in score("edge", signals(), replace(allowed, committed=3)).why
    assert "exact" in score("edge", signals(), replace(allowed, exact_required=True)).why


@pytest.mark.parametrize(
    ("share", "open_to"),
    [("tokens", {"cloud", "draft", "split"}), ("hidden", {"split"}), ("nothing", set[str]())],
)
def test_what_may_leave_the_device(share: Any, open_to: set[str]) -> None:
    found = scores(signals(peers=(CLOUD, HOUSE)), Wants(share=share), Objective())
    names = {s.placement for s in found if s.possible} - {"edge"}
    assert names == open_to


def test_another_class_is_no_place_for_what_must_be_exact() -> None:
    other = replace(HOUSE, numeric_class="b")
    exact = Wants(numeric_class="a", exact_required=True)
    given = signals(peers=(CLOUD, other))
    assert "another numeric class" in score("split", given, exact).why
    assert score("split", given, replace(exact, exact_required=False)).possible
    verdict, _ = later(pilot("draft"), given, wants=exact)
    assert verdict.peer == "cloud" and "another numeric class" in verdict.binding


def test_a_committer_that_refused_is_not_asked_again() -> None:
    given = signals(peers=(CLOUD, HOUSE))
    assert "refused" in score("split", given, Wants(barred=("house",))).why


def test_a_watt_cap_keeps_drafting_out() -> None:
    capped = signals(bounds=Bounds(watt_cap=5.0))
    assert score("draft", capped).why == "drafting draws 7.0 W > cap 5.0 W"
    assert score("draft", signals(bounds=Bounds(watt_cap=9.0))).possible


def test_shallow_bounds_the_depth_and_nothing_else() -> None:
    verdict, _ = later(pilot("draft"), signals(holds=0.9, bounds=Bounds(draft="shallow")))
    assert verdict.placement == "draft" and verdict.depth == SHALLOW


def test_pinned_stays_pinned() -> None:
    one = pilot("draft", wants=Wants(pinned="draft"))
    verdict, changed = later(one, signals(holds=0.0, bounds=LOW), wants=Wants(pinned="draft"))
    assert verdict.placement == "draft" and not changed and "asked for" in verdict.reason


# --- when it changes ---------------------------------------------------------------------------


def test_a_constraint_acts_at_once_and_names_itself() -> None:
    one = pilot("draft")
    one.decide(signals(), Wants(committed=1))
    verdict = one.decide(signals(at_s=100.1, bounds=LOW), Wants(committed=2))
    assert verdict.changed and verdict.placement == "cloud" and verdict.depth == 0
    assert verdict.reason == verdict.cause == "battery 18 % < floor 20 %"
    assert verdict.binding == "draft: battery 18 % < floor 20 %"


def test_a_cloud_that_goes_away_is_left_for_the_house_at_once() -> None:
    gone = replace(CLOUD, reachable=False, why="the cloud went silent")
    one = pilot("draft")
    one.decide(signals(peers=(CLOUD, HOUSE)), Wants(committed=1, remaining=4))
    verdict = one.decide(signals(peers=(gone, HOUSE)), Wants(committed=2, remaining=4))
    assert (verdict.placement, verdict.peer) == ("split", "house")
    assert verdict.reason == "the cloud went silent" and verdict.cause == "a committer came or went"


def test_nothing_possible_changes_nothing() -> None:
    gone = replace(CLOUD, reachable=False, why="the cloud went silent")
    verdict = pilot("draft").decide(signals(peers=(gone,)), Wants(committed=9))
    assert not verdict.changed and verdict.placement == "draft"


def test_a_change_needs_a_margin() -> None:
    ratio = score("draft", signals(holds=0.7)).total / score("cloud", signals()).total
    near = replace(CLOUD, drafted=replace(KNOWN, ratio=0.96 / ratio))
    far = replace(CLOUD, drafted=replace(KNOWN, ratio=0.90 / ratio))
    assert later(pilot("cloud"), signals(peers=(near,)))[0].placement == "cloud"
    assert later(pilot("cloud"), signals(peers=(far,)))[0].placement == "draft"
    assert later(pilot("draft"), signals(peers=(near,)))[0].placement == "draft"


def test_a_change_needs_a_dwell_and_looks_that_agree() -> None:
    one = pilot("cloud", since_s=99.0)
    seen = [
        one.decide(signals(now=100.0 + t, holds=0.9), Wants(committed=8 * (t + 1)))
        for t in range(8)
    ]
    first = next(t for t, verdict in enumerate(seen) if verdict.changed)
    assert 100.0 + first - 99.0 >= Rules().dwell_s
    wavering = pilot("cloud")
    for t in range(30):
        holds = 0.9 if t % 3 else 0.1
        assert not wavering.decide(signals(100.0 + t, holds), Wants(committed=8 * t + 8)).changed


def test_each_change_back_takes_longer_until_the_world_shifts() -> None:
    one, at, dwells = pilot("cloud"), 100.0, []
    for turn in range(6):
        holds = 0.1 if turn % 2 else 0.9
        while not one.decide(signals(at, holds), Wants(committed=int(at * 20))).changed:
            at += 1.0
            assert at < 1000.0
        dwells.append(one.dwell_s)
    assert dwells[-1] == Rules().longest_dwell_s and dwells == sorted(dwells)
    far = (replace(CLOUD, rtt_ms=200.0),)
    while not one.decide(signals(at, 0.9, peers=far), Wants(committed=int(at * 20))).changed:
        at += 1.0
        if at > 1200.0:
            break
    near = (replace(CLOUD, rtt_ms=8.0),)
    while one.placement == "cloud":
        one.decide(signals(at, 0.9, peers=near), Wants(committed=int(at * 20)))
        at += 1.0
        assert at < 1400.0
    assert one.dwell_s == Rules().dwell_s


def test_the_next_answer_begins_where_the_one_before_ran() -> None:
    one = pilot("draft")
    later(one, signals(holds=0.05))
    begun = Pilot.of(one.habit(), Wants(), Budget(), Objective(), Rules())
    assert (begun.placement, begun.since_s) == ("cloud", one.since_s)
    assert begun.decide(signals(at_s=one.since_s + 1.0, holds=0.9), Wants()).placement == "cloud"


def test_before_anything_was_measured_drafts_are_tried() -> None:
    nothing = Signals(0.0, rates(0.6), rates(0.6), rates(0.6), 1.0, (), peers=(
        PeerSignals("cloud", rtt_ms=500.0),
    ))  # fmt: skip
    begun = Pilot.of(Habit("draft"), Wants(), Budget(), Objective(), Rules())
    assert begun.decide(nothing, Wants()).placement == "draft"


# --- what it says ------------------------------------------------------------------------------


def test_a_change_tells_gain_runner_up_margin_and_the_measurement_that_moved() -> None:
    one = pilot("draft")
    one.decide(signals(), Wants(committed=1))
    far = signals(now=200.0, holds=0.6, peers=(replace(CLOUD, rtt_ms=300.0),))
    verdict, changed = later(one, far, wants=Wants(committed=100))
    made = changed[0]
    assert made.cause == "round trip 20 -> 300 ms"
    assert made.gain is not None and made.gain == pytest.approx(
        1 - made.score().total / next(s.total for s in made.scores if s.placement == "draft")
    )
    assert made.runner_up == "draft" and made.margin is not None and verdict.runner_up == "draft"


# --- trying ------------------------------------------------------------------------------------


def test_probes_stay_within_their_budget_and_get_rarer() -> None:
    book = Book()
    unsure = replace(CLOUD, drafted=Bias(1.4, 0.5, 0.5))
    one = pilot("cloud", rules=Rules(), budget=book.budget)
    at, committed, probing, begun = 100.0, 0, 0, []
    for _ in range(4000):
        at, committed = at + 0.2, committed + 4
        book.budget.tokens += 4
        before = one.probe
        verdict = one.decide(signals(at, 0.35, peers=(unsure,)), Wants(committed=committed))
        probing += 4 * verdict.probing
        if one.probe is not None and before is None:
            begun.append(at)
    assert len(begun) > 2
    assert probing <= SHARE * committed + PROBE_TOKENS + 4 * len(begun)
    gaps = [b - a for a, b in zip(begun, begun[1:], strict=False)]
    assert gaps[-1] > gaps[0] >= FIRST_PAUSE_S
    assert one.placement == "cloud" and one.changes == 0


def test_a_probe_that_goes_well_stays() -> None:
    unsure = replace(CLOUD, drafted=Bias(2.4, 0.9, 0.5))
    one = pilot("cloud", rules=Rules())
    committed = 40
    first = one.decide(signals(holds=0.8, peers=(unsure,)), Wants(committed=committed))
    assert first.probing and first.placement == "draft" and not first.changed
    for t in range(10):
        committed += 4
        one.decide(signals(101.0 + t, 0.8), Wants(committed=committed))
    assert one.placement == "draft" and one.changes == 1 and not one.budget.busy


def test_only_one_answer_probes_at_a_time_and_an_end_counts() -> None:
    budget = Budget()
    unsure = replace(CLOUD, drafted=Bias(2.4, 0.9, 0.5))
    first, second = (pilot("cloud", rules=Rules(), budget=budget) for _ in range(2))
    given = signals(holds=0.8, peers=(unsure,))
    assert first.decide(given, Wants(committed=40)).probing
    assert not second.decide(given, Wants(committed=40)).probing
    first.end(101.0, 50)
    assert not budget.busy and budget.spent == 10


def test_a_shift_lets_the_next_probe_come_soon() -> None:
    budget = Budget(pause_s=200.0, next_s=300.0)
    budget.hasten(100.0)
    assert budget.next_s <= 100.0 + FIRST_PAUSE_S
    one = pilot("cloud")
    assert not one.decide(signals(), Wants(committed=8)).shifted
    moved = (replace(CLOUD, rtt_ms=90.0),)
    assert one.decide(signals(101.0, peers=moved), Wants(committed=16)).shifted
    assert not one.decide(signals(102.0, peers=moved), Wants(committed=24)).shifted


# --- always ------------------------------------------------------------------------------------

BOUNDS = st.builds(
    Bounds,
    draft=st.sampled_from(["free", "shallow", "off"]),
    compute=st.sampled_from(["free", "avoid"]),
    watt_cap=st.none() | st.floats(0.0, 20.0),
)
PEERS = st.builds(
    PeerSignals,
    name=st.sampled_from(["one", "two"]),
    kind=st.sampled_from(["cloud", "split"]),
    reachable=st.booleans(),
    numeric_class=st.sampled_from(["", "a", "b"]),
    step=st.lists(st.floats(0.1, 500.0), max_size=4).map(
        lambda found: tuple((float(i + 1), ms) for i, ms in enumerate(sorted(found)))
    ),
    rows=st.floats(1.0, 40.0),
    wait_ms=st.floats(0.0, 50.0),
    rtt_ms=st.none() | st.floats(0.0, 1000.0),
)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(PEERS, max_size=3, unique_by=lambda peer: peer.name),
    BOUNDS,
    st.floats(0.0, 1.0),
    st.sampled_from(["cloud", "draft", "split"]),
    st.booleans(),
    st.integers(0, 300),
)
def test_what_is_chosen_is_possible_wherever_anything_is(
    peers: list[PeerSignals],
    bounds: Bounds,
    holds: float,
    placement: Any,
    exact: bool,  # noqa: FBT001
    committed: int,
) -> None:
    given_ = signals(holds=holds, peers=tuple(peers), bounds=bounds)
    wants = Wants(numeric_class="a", exact_required=exact, committed=committed)
    verdict = pilot(placement, peer="one").decide(given_, wants)
    if any(s.possible for s in verdict.scores):
        assert verdict.score().possible
    draft = next((s for s in verdict.scores if s.placement == "draft"), None)
    plain = next((s for s in verdict.scores if s.placement == "cloud"), None)
    if draft is not None and plain is not None:
        assert draft.ms <= plain.ms + 1e-6, "hints can only shorten the stream"
    if bounds.draft == "off":
        assert verdict.depth == 0


# --- the objective, the link, and the small model ----------------------------------------------


def test_an_objective_weighs_time_against_joules() -> None:
    joules = []
    for name in ("latency", "balanced", "energy"):
        given = signals(holds=0.6, energy=Energy(draft_w=15.0))
        found, _ = later(pilot("draft", objective=Objective.named(name)), given)
        joules.append(found.score().joules)
        assert found.placement == ("cloud" if name == "energy" else "draft")
    assert joules[0] >= joules[1] > joules[2]
    assert Objective.named("balanced") == Objective()


def test_a_link_of_which_nothing_is_known_is_priced_as_before() -> None:
    plenty = replace(CLOUD, up_bytes_per_s=1e9, down_bytes_per_s=1e9, loss=0.0)
    unknown = scores(signals(), Wants(), Objective())
    known = scores(signals(peers=(plenty,)), Wants(), Objective())
    for before, told in zip(unknown, known, strict=True):
        assert told.total == pytest.approx(before.total, rel=1e-4)


def test_bandwidth_and_loss_are_priced_where_something_waits_for_them() -> None:
    def total(name: str, **link: Any) -> float:
        found = scores(
            signals(peers=(replace(CLOUD, **link),)), Wants(committed=1), Objective(), "cloud"
        )
        return next(s.total for s in found if s.placement == name)

    assert total("draft", up_bytes_per_s=1e3) > total("draft")
    assert total("draft", loss=0.05) > total("draft")
    assert total("cloud", loss=0.05) == total("cloud"), "a stream runs on behind a lost segment"
    assert total("cloud", down_bytes_per_s=5e2) > 2 * total("cloud"), "a message a token"
    thin = total("draft", down_bytes_per_s=5e2)
    assert thin < 0.8 * total("cloud", down_bytes_per_s=5e2), "one message brings several tokens"


def test_an_upload_counts_against_a_move() -> None:
    def moved(rate: float | None) -> float:
        house = replace(HOUSE, up_bytes_per_s=rate)
        found = scores(
            signals(peers=(CLOUD, house)), Wants(prompt=4000, committed=8), Objective(), "cloud"
        )
        return next(s.ms for s in found if s.placement == "split")

    assert moved(20e3) - moved(None) == pytest.approx(1e3 * 16_398 / 20e3 / 256, rel=0.1)


def test_a_radio_that_falls_asleep_between_messages_costs_less() -> None:
    tail = Energy(stream_w=1.0, tail_s=0.02, wake_j=0.0)
    assert score("cloud", signals(energy=tail), Wants(committed=1)).joules == pytest.approx(0.02)
    awake = Energy(stream_w=1.0)
    assert score("cloud", signals(energy=awake), Wants(committed=1)).joules == pytest.approx(0.05)
    first = score("cloud", signals(energy=tail)).joules
    assert first == pytest.approx(0.02 + 0.02 / 256), "the last tail is paid by every answer"


def test_the_small_model_is_taken_where_it_may_and_saves_enough() -> None:
    given, rules = signals(holds=0.1), Rules()
    assert alone(given, Wants(), Objective(), rules) is None, "nobody allowed it"
    allowed = Wants(small_allowed=True)
    found = alone(given, allowed, Objective(), rules)
    assert found is not None and (found.placement, found.runner_up) == ("edge", "cloud")
    assert found.gain is not None and found.gain > rules.margin and found.margin is not None
    slow = replace(given, draft=((1.0, 49.0), (8.0, 392.0)))
    assert alone(slow, allowed, Objective(), rules) is None, "it saves too little"
    assert alone(replace(given, bounds=LOW), allowed, Objective(), rules) is None
    gone = replace(CLOUD, reachable=False, why="the cloud went silent")
    nowhere = replace(given, bounds=LOW, peers=(gone,))
    assert alone(nowhere, allowed, Objective(), rules) is not None, "there is no elsewhere"


def test_a_split_model_whose_ends_lie_elsewhere_gets_nothing_hidden() -> None:
    away = replace(HOUSE, home=False)
    found = score("split", signals(peers=(CLOUD, away)), Wants(share="hidden"))
    assert "embedding and head" in found.why
    assert score("split", signals(peers=(CLOUD, away))).possible


def test_an_operators_wish_moves_an_answer_and_can_be_taken_back() -> None:
    one = pilot("draft", rules=Rules(probes=False, dwell_s=1.0))
    one.decide(signals(), Wants(committed=1))
    wished = Wants(committed=2, wished="cloud")
    verdict = one.decide(signals(now=100.1, bounds=LOW), wished)
    assert verdict.changed and verdict.placement == "cloud"
    assert (verdict.reason, verdict.cause) == ("cloud was asked for", "an operator's pin")
    kept = one.decide(signals(now=100.2, holds=0.9), replace(wished, committed=60))
    assert not kept.changed and kept.placement == "cloud"
    assert later(one, signals(now=200.0, holds=0.9))[0].placement == "draft"
    gone = replace(CLOUD, reachable=False, why="the cloud went silent")
    lost = one.decide(signals(now=300.0, peers=(gone, HOUSE)), replace(wished, committed=200))
    assert lost.placement == "split", "a wish that can not be is not kept to"
