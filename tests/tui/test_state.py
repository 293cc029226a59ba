"""Events to what screens show: plain, bounded, and without Textual."""

from __future__ import annotations

import subprocess
import sys
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from outrider.protocol import events
from outrider.tui.glyphs import ASCII, UNICODE
from outrider.tui.graph import area, bar, quantile, spark
from outrider.tui.ride import CODES, POSITIONS
from outrider.tui.state import DECISIONS, LOGS, MARKS, RIDES, SAMPLES, State
from outrider.tui.waterfall import LANES, Span, by_lane, cells, recent, spans, totals

PID = 7


def gauge(t_ms: float, **changes: object) -> events.Gauge:
    known: dict[str, object] = {
        "version": "1", "listen": "here", "pid": PID, "uptime_s": 1.0, "placement": "auto",
        "model": "target", "drafter": "small",
    }  # fmt: skip
    return events.Gauge(**(known | changes), t_ms=t_ms, at=t_ms / 1e3, source="edge-7")  # type: ignore[arg-type]


def link(state: str = "connected", **changes: object) -> events.LinkGauge:
    return events.LinkGauge("c:1", state, **changes)  # type: ignore[arg-type]


def started(t_ms: float = 1000.0, request: str = "r") -> events.RequestStarted:
    return events.RequestStarted(
        request=request, placement="draft", prompt_tokens=9, choices=1, t_ms=t_ms, at=t_ms / 1e3
    )


def hint(t_ms: float, tokens: int = 4, draft_ms: float = 8.0) -> events.HintSent:
    return events.HintSent(
        request="r", choice=0, base=0, tokens=tokens, draft_ms=draft_ms, t_ms=t_ms
    )


def commit(
    t_ms: float, position: int, tokens: int, hint_rows: int = 0, from_hints: int = 0
) -> events.CommitReceived:
    return events.CommitReceived(
        request="r",
        choice=0,
        position=position,
        tokens=tokens,
        hint_rows=hint_rows,
        from_hints=from_hints,
        step_ms=30.0,
        rows=1 + hint_rows,
        t_ms=t_ms,
    )


def done(t_ms: float, **changes: object) -> events.RequestDone:
    known: dict[str, object] = {
        "finish_reason": "stop", "completion_tokens": 7, "ttft_ms": 80.0, "total_ms": 400.0,
        "passes": 3, "hint_rows": 5, "accepted": 3, "stale": 1, "sent": 6, "mixed": False,
        "exact": True, "bytes_up": 100, "bytes_down": 200, "queue_ms": 5.0, "prefill_ms": 15.0,
    }  # fmt: skip
    return events.RequestDone(request="r", t_ms=t_ms, **(known | changes))  # type: ignore[arg-type]


def seen(*found: events.Event) -> State:
    state = State()
    for event in found:
        state.apply(event)
    return state


def sources(state: State) -> list[str]:
    names = {code: name for name, code in CODES.items()}
    return [names[code] for code in state.rides["r"].choices[0]]


def test_the_model_needs_no_textual() -> None:
    program = (
        "import sys, outrider.tui.state, outrider.tui.waterfall; print('textual' in sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert found.stdout.strip() == "False", found.stderr


# --- gauges ------------------------------------------------------------------------------------


def test_rates_come_from_two_gauges() -> None:
    state = seen(
        gauge(1000.0, tokens=10, links=(link(rtt_ms=20.0, bytes_up=100, bytes_down=0),)),
        gauge(1500.0, tokens=30, links=(link(rtt_ms=20.0, bytes_up=200, bytes_down=50),)),
    )
    assert state.speed() == pytest.approx(40.0)
    view = state.link
    assert view is not None
    assert view.up_per_s == pytest.approx(200.0)
    assert view.down_per_s == pytest.approx(100.0)


def test_one_gauge_tells_no_rate() -> None:
    assert seen(gauge(1000.0, tokens=500)).speed() is None


def test_another_daemon_starts_from_nothing() -> None:
    state = seen(gauge(1000.0, tokens=500), gauge(1500.0, tokens=3, pid=8))
    assert state.speed() is None


def test_silence_is_filled_so_that_time_stays_time() -> None:
    state = seen(gauge(0.0), gauge(2000.0, tokens=40))
    assert list(state.curves.speed) == [20.0] * 4


def test_acceptance_of_an_interval_counts_what_was_verified_in_it() -> None:
    state = seen(
        gauge(0.0, hint_rows=100, accepted=90),
        gauge(500.0, hint_rows=110, accepted=95),
        gauge(1000.0, hint_rows=110, accepted=95),
    )
    assert list(state.curves.acceptance) == [0.5, 0.0]


def test_outages_are_counted_and_timed() -> None:
    state = seen(
        gauge(0.0, links=(link(rtt_ms=20.0),)),
        events.LinkChanged(cloud="c:1", state="lost", t_ms=1000.0),
        gauge(1500.0, links=(link("unreachable"),)),
        gauge(3000.0, links=(link(rtt_ms=20.0),)),
        gauge(4000.0, links=(link(rtt_ms=20.0),)),
    )
    view = state.links["c:1"]
    assert view.losses == 1
    assert view.uptime(4000.0) == pytest.approx(0.5)
    assert state.rtt(0.5) == 20.0


def test_minutes_left_follow_the_discharge_that_was_watched() -> None:
    state = seen(
        gauge(0.0, battery=0.9, charging=True),
        gauge(1000.0, battery=0.6, charging=False),
        gauge(61_000.0, battery=0.5, charging=False),
    )
    assert state.minutes_left() == pytest.approx(5.0)
    state.apply(gauge(62_000.0, battery=0.5, charging=True))
    assert state.minutes_left() is None


def test_layers_of_a_split_target_are_read_from_its_device() -> None:
    state = seen(gauge(0.0, links=(link(device="jetson=0:5 desk:11713=5:12"),)))
    assert [(s.device, s.start, s.stop) for s in state.stages()] == [
        ("jetson", 0, 5),
        ("desk:11713", 5, 12),
    ]
    assert seen(gauge(0.0, links=(link(device="cpu"),))).stages() == ()


# --- requests ----------------------------------------------------------------------------------


def test_tokens_are_named_by_who_made_them() -> None:
    state = seen(
        started(),
        commit(1100.0, 0, 1),
        commit(1200.0, 1, 3, hint_rows=2, from_hints=2),
        commit(1300.0, 4, 2, hint_rows=3, from_hints=1),
    )
    assert sources(state) == ["cloud", "accepted", "accepted", "bonus", "accepted", "corrected"]
    assert state.acceptance() == pytest.approx(3 / 5)
    assert state.length() == pytest.approx(2.5)
    assert state.histogram() == [0, 1, 1]


def test_commits_take_the_place_of_what_was_provisional() -> None:
    def local(position: int, *, provisional: bool) -> events.LocalTokens:
        return events.LocalTokens(
            request="r", choice=0, position=position, tokens=3, provisional=provisional
        )

    state = seen(started(), commit(1100.0, 0, 1), local(1, provisional=True))
    assert sources(state) == ["cloud", "provisional", "provisional", "provisional"]
    assert (state.rides["r"].phase, state.rides["r"].tokens) == ("provisional", 1)
    state.apply(commit(1200.0, 1, 1))
    assert sources(state) == ["cloud", "cloud"]
    state.apply(local(2, provisional=False))
    assert sources(state)[2:] == ["edge"] * 3 and state.rides["r"].tokens == 5


def test_a_request_that_was_missed_at_its_start_is_taken_up() -> None:
    state = seen(commit(1100.0, 5, 2))
    assert len(sources(state)) == 7
    assert state.rides["r"].tokens == 7


def test_a_measured_decision_takes_the_place_of_the_one_that_was_made() -> None:
    def decided(phase: Literal["made", "measured"], number: int = 3) -> events.Decision:
        return events.Decision(
            request="r", what="placement", old="cloud", new="draft", reason="cheaper",
            phase=phase, number=number, observed_gain=0.2 if phase == "measured" else None,
            source="edge-7",
        )  # fmt: skip

    state = seen(started(), decided("made"), decided("made", 4), decided("measured"))
    assert [(d.number, d.phase) for d in state.decisions] == [(3, "measured"), (4, "made")]
    assert state.rides["r"].placement == "draft"


def test_a_remark_fades() -> None:
    state = seen(events.Remark(said="the charger is pulled", t_ms=100.0), gauge(200.0))
    assert state.story() == "the charger is pulled"
    state.apply(gauge(60_000.0))
    assert state.story() == ""


# --- bounds ------------------------------------------------------------------------------------


def test_memory_is_bounded() -> None:
    state = State()
    for number in range(3 * RIDES):
        state.apply(started(request=f"r{number}"))
    for number in range(2 * DECISIONS):
        state.apply(
            events.Decision(request="", what="trigger", old="a", new="b", reason="", number=number)
        )
    for number in range(2 * LOGS):
        state.apply(commit(float(number), number, 1))
    assert len(state.rides) <= RIDES and len(state.decisions) == DECISIONS
    assert len(state.logs) == LOGS and len(state.marks) == MARKS
    state.apply(commit(1e6, 10**9, 1))
    assert len(state.rides["r"].choices[0]) <= POSITIONS


def test_curves_are_bounded_and_move_in_pairs() -> None:
    state = State()
    for number in range(2 * SAMPLES):
        before = len(state.curves.speed)
        state.apply(gauge(500.0 * number, tokens=number))
        assert len(state.curves.speed) % 2 != before % 2 or not number
        assert len(state.curves.speed) <= SAMPLES


POSSIBLE = st.one_of(
    st.builds(started, st.floats(0, 1e6)),
    st.builds(hint, st.floats(0, 1e6), st.integers(0, 8)),
    st.builds(commit, st.floats(0, 1e6), st.integers(0, 50), st.integers(0, 9),
              st.integers(0, 8), st.integers(0, 8)),
    st.builds(done, st.floats(0, 1e6)),
    st.builds(gauge, st.floats(0, 1e6), tokens=st.integers(0, 99)),
)  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(st.lists(POSSIBLE, max_size=30))
def test_any_order_of_events_can_be_shown(found: list[events.Event]) -> None:
    state = seen(*found)
    for ride in state.newest:
        assert sum(ride.sources().values()) == sum(map(len, ride.choices))
        assert all(value >= 0 for value in totals(spans(ride, 20.0)).values())
    assert state.speed() is None or state.speed() >= 0  # type: ignore[operator]


# --- the waterfall -----------------------------------------------------------------------------


def test_the_waterfall_places_each_part_on_the_daemons_clock() -> None:
    state = seen(started(1000.0), hint(1040.0), commit(1100.0, 0, 5, 4, 4), done(1100.0))
    found = spans(state.rides["r"], 20.0)
    assert Span("draft", 32.0, 40.0) in found
    assert Span("uplink", 40.0, 50.0) in found
    assert Span("queue", 50.0, 60.0) in found
    assert Span("verify", 60.0, 90.0) in found
    assert Span("downlink", 90.0, 100.0) in found
    assert Span("queue", 10.0, 15.0) in found and Span("prefill", 15.0, 30.0) in found
    assert totals(found)["queue"] == pytest.approx(15.0)


def test_overlaps_count_once() -> None:
    assert totals([Span("draft", 0.0, 10.0), Span("draft", 5.0, 12.0)])["draft"] == 12.0


def test_cells_show_what_is_short_and_nothing_outside() -> None:
    found = [Span("draft", 50.0, 50.1), Span("verify", -20.0, 10.0), Span("draft", 200.0, 300.0)]
    lanes = by_lane(found)
    assert cells(lanes["draft"], 10, 100.0) == bytes([0] * 5 + [1] + [0] * 4)
    assert cells(lanes["verify"], 10, 100.0) == bytes([1] + [0] * 9)


def test_the_timeline_shows_the_latest_window() -> None:
    state = seen(started(), hint(1040.0), commit(1100.0, 0, 5, 4, 4), hint(9000.0))
    lanes = {span.lane for span in recent(state.marks, 9100.0, 20.0, 500.0)}
    assert lanes == {"draft", "uplink"}
    assert set(lanes) <= set(LANES)


# --- curves ------------------------------------------------------------------------------------


@pytest.mark.parametrize("glyphs", [UNICODE, ASCII], ids=["unicode", "ascii"])
def test_curves_fill_their_cells(glyphs: object) -> None:
    rows = area([0.0, 5.0, 10.0], 8, 3, glyphs)  # type: ignore[arg-type]
    assert [len(row) for row in rows] == [8, 8, 8]
    assert rows[0].strip() and not rows[0][:-2].strip()
    assert area([], 4, 2, glyphs) == ["    ", "    "]  # type: ignore[arg-type]


def test_something_is_never_drawn_as_nothing() -> None:
    assert spark([0.0, 0.001, 1.0], ASCII)[1] != " "
    assert bar(2.0, 4, ASCII) == ("####", "") and bar(-1.0, 4, ASCII) == ("", "....")
    assert quantile([], 0.5) is None and quantile([3.0, 1.0, 2.0], 0.5) == 2.0
