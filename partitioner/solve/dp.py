"""Exact dynamic programming over devices and contiguous shards, for every objective.

Additive objectives (latency, energy, cost) are one search. Throughput is the least
`max(cycle * batch / sequences, busiest device or link)`: the cycle is minimised with a cap on
the busiest, and the cap is searched among the values that it can take, so that this is exact
as well. See `outrider.partitioner.solve.search` for what is searched and why it is exact.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from outrider.partitioner import price
from outrider.partitioner.check import check
from outrider.partitioner.plan import Plan, Problem
from outrider.partitioner.solve import answers, nearest, search, tables
from outrider.partitioner.solve.search import GAIN, Answer, Bounded, Question, Verdict
from outrider.partitioner.solve.tables import Floats, Tables


@dataclass(frozen=True, slots=True)
class Found:
    """The best parts, and the proven relative distance from the best, 0 when it is."""

    parts: tuple[price.Part, ...]
    gap: float


def solve(problem: Problem) -> Plan:
    """The best plan. Raises InvalidProfile; Unplannable, naming the constraint and the nearest."""
    check(problem)
    found = best(problem)
    if found is None:
        raise nearest.explain(problem, lambda other: best(other))
    return answers.make(problem, "dp", found.parts, found.gap)


def best(problem: Problem, widest: int = search.WIDEST) -> Found | None:
    """The best parts of a checked problem, or None when no placement keeps all constraints.

    `widest`: states of a level at which a search that proves nothing more ends, see `search`.
    """
    arrays = tables.build(problem)
    if not len(arrays.owner):
        return None
    question = replace(_question(arrays), widest=widest)
    verdict = _bottleneck(question) if problem.objective == "throughput" else search.solve(question)
    if verdict.answer is None:
        return None
    gap = 0.0 if verdict.answer.cost <= 0 else 1 - verdict.bound / verdict.answer.cost
    return Found(parts(arrays, verdict.answer), max(0.0, gap) if gap > 2 * GAIN else 0.0)


def parts(arrays: Tables, answer: Answer) -> tuple[price.Part, ...]:
    """The stages that an answer means."""
    found, start = [], 0
    for option, stop in answer.chain:
        rate, device = arrays.rates[option], arrays.devices[int(arrays.owner[option])]
        found.append(price.Part(device.name, start, stop, rate.engine, rate.dtype))
        start = stop
    return tuple(found)


def _question(arrays: Tables) -> Question:
    limits, load = arrays.problem.constraints, arrays.problem.workload
    bounded = []
    if limits.max_tpot_s is not None:
        most = limits.max_tpot_s * load.tokens_per_pass
        bounded.append(Bounded(tables.decode(arrays), most * (1 + price.SLACK)))
    if limits.max_joules_per_token is not None:
        most = limits.max_joules_per_token * load.tokens_per_pass * load.batch
        bounded.append(Bounded(tables.joules(arrays), most * (1 + price.SLACK)))
    if limits.max_loss is not None:
        bounded.append(Bounded(tables.losses(arrays), limits.max_loss * (1 + price.SLACK)))
    asked = Question(arrays, tables.objective(arrays, arrays.problem.objective), tuple(bounded))
    if limits.max_ttft_s is None:
        return asked
    most = limits.max_ttft_s * (1 + price.SLACK)
    return replace(asked, prefill=tables.prefill(arrays), max_ttft_s=most)


# --- throughput --------------------------------------------------------------------------------


def _bottleneck(question: Question) -> Verdict:
    """The least `max(cycle / passes under way, busiest)`, seconds.

    Each step asks for a placement that is better than the best so far and keeps its busiest
    device and link within a cap; whether there is one or not halves the caps that are left.
    """
    arrays = question.tables
    load = arrays.problem.workload
    many = load.sequences / load.batch
    # With several passes under way the least cycle is only where to begin.
    quick = question if many == 1 else replace(question, widest=search.NARROWEST)
    free = search.solve(quick)
    if free.answer is None and many > 1:
        free = search.solve(question)
    if free.answer is None:
        return free
    top = _timed(arrays, free.answer, many)
    caps = _caps(arrays, free.bound / many, top.cost)
    low, high = _first_roomy(question, caps), len(caps)
    floor = max(free.bound / many, caps[low] if low < high else 0.0)
    at, step, proven = low, 1, True
    while low < high:
        cap, below = float(caps[at]), top.cost * many * (1 - GAIN)
        verdict = search.solve(replace(question, busiest_s=cap, below=below, enough=cap * many))
        if verdict.answer is None:
            proven &= verdict.bound >= below
        else:
            top = _timed(arrays, verdict.answer, many)
            high = int(np.searchsorted(caps, top.cost * (1 - GAIN)))
        if verdict.answer is None or verdict.answer.cost > cap * many:
            low = at + 1
        at, step = min(low + step, (low + high) // 2), 2 * step
    return Verdict(top, top.cost if proven else floor)


def _timed(arrays: Tables, answer: Answer, many: float) -> Answer:
    """With the interval between passes for its cost; the answer's own is the cycle."""
    taken, before, start = np.zeros(len(arrays.devices)), arrays.home, 0
    sends, busiest = tables.sends(arrays), answer.cost / many
    for option, stop in answer.chain:
        device = int(arrays.owner[option])
        taken[arrays.home if device == arrays.twice else device] += arrays.pass_s[
            option, start, stop
        ]
        busiest = max(busiest, float(sends.hop[start, before, device]))
        before, start = device, stop
    return replace(answer, cost=max(busiest, float(sends.leave[before]), float(taken.max())))


def _caps(arrays: Tables, least: float, most: float) -> Floats:
    """What the busiest device or link can take, from `least` up to below `most`, ascending."""
    sends = tables.sends(arrays)
    values = [arrays.pass_s[arrays.allowed], sends.hop.ravel(), sends.leave, np.array([least])]
    if arrays.twice is not None:
        begin = arrays.pass_s[arrays.owner == arrays.home, 0, :].ravel()
        end = arrays.pass_s[arrays.owner == arrays.twice, :, -1].ravel()
        values.append((begin[:, None] + end[None, :]).ravel())
    every = np.concatenate(values)
    found: Floats = np.unique(every[(every >= least) & (every < most * (1 - GAIN))])
    return found


def _first_roomy(question: Question, caps: Floats) -> int:
    """The first cap under which the devices have room for all units."""
    low, high = 0, len(caps)
    while low < high:
        middle = (low + high) // 2
        if search.roomy(replace(question, busiest_s=float(caps[middle]))):
            high = middle
        else:
            low = middle + 1
    return low
