"""The cloud's share of joules: all that a pass took, no more and no less."""

from __future__ import annotations

import pytest

from outrider.cloud.scheduler import Plan, Work
from outrider.cloud.session import Session, finished
from outrider.partitioner.power import constants
from outrider.protocol.messages import EnergyKind, Reason
from tests.cloud.making import Bench, bench, session
from tests.support import run

WATTS = constants.cloud_w("cpu")


def work(made: Session, rows: int) -> Work:
    tokens = tuple(range(1, rows + 1))
    return Work(made.choices[0], 0, tokens, tokens[1:], wants=True)


def charged(*rows: int, step_s: float) -> list[Session]:
    """Sessions after one pass with so many rows of each; two rows take 10 ms, ten 18."""

    made: list[Session] = []

    async def case() -> None:
        async with bench() as b:
            made.extend(_charged(b, rows, step_s))

    run(case())
    return made


def _charged(b: Bench, rows: tuple[int, ...], step_s: float) -> list[Session]:
    b.verifier.scheduler.cost.note(2, 10.0)
    b.verifier.scheduler.cost.note(10, 18.0)
    made = [session() for _ in rows]
    works = tuple(work(one, count) for one, count in zip(made, rows, strict=True))
    b.verifier._charge(Plan(works, (), None), step_s)
    return made


def joules(made: Session) -> float:
    return made.choices[0].joules


def test_what_hints_add_is_paid_by_who_sent_them() -> None:
    plain, hinting = charged(1, 9, step_s=0.018)
    assert joules(plain) == pytest.approx(WATTS * 0.005)
    assert joules(hinting) == pytest.approx(WATTS * 0.013)


def test_a_pass_without_hints_is_shared_alike() -> None:
    assert {round(joules(one) / WATTS, 6) for one in charged(1, 1, 1, 1, step_s=0.02)} == {0.005}


@pytest.mark.parametrize("rows", [(1,), (5,), (1, 64), (3, 3, 9), (1, 1)])
@pytest.mark.parametrize("step_s", [0.001, 0.018, 0.5])
def test_shares_add_up(rows: tuple[int, ...], step_s: float) -> None:
    made = charged(*rows, step_s=step_s)
    assert sum(map(joules, made)) == pytest.approx(WATTS * step_s)


def test_the_end_tells_it_as_an_estimate() -> None:
    (made,) = charged(1, step_s=0.1)
    message = finished(made.choices[0], Reason.LENGTH)
    assert message.energy_kind is EnergyKind.ESTIMATED
    assert message.energy_uj == pytest.approx(WATTS * 0.1 * 1e6, abs=1)
    untouched = finished(session().choices[0], Reason.LENGTH)
    assert (untouched.energy_kind, untouched.energy_uj) == (EnergyKind.NONE, 0)
