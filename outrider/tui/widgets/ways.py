"""Every placement with its cost: the chosen one, the runner-up, and why others can not be."""

from __future__ import annotations

from collections.abc import Sequence

from outrider.protocol import events
from outrider.protocol.status import ScoreStatus
from outrider.tui import words
from outrider.tui.look import Line
from outrider.tui.widgets.panel import Panel

HEAD = f"  {'placement':<10}{'a token':>10}{'energy':>10}{'cost':>10}{'against':>9}  "


class Ways(Panel):
    TITLE = "why here"

    def draw(self, width: int, height: int) -> Sequence[Line]:
        plan = self.state.plan
        if plan is None:
            said = words.wrap("placements are scored with the first answer", width, height)
            return [[(text, "$faint")] for text in said]
        g = self.look.glyphs
        scores = sorted(plan.scores, key=lambda score: _order(score, plan))
        lines: list[Line] = [[(HEAD, "$faint")]]
        lines += [self._row(score, plan, scores, width) for score in scores]
        room = max(1, height - len(lines) - 1)
        lines += [[(t, "$foreground")] for t in words.wrap(plan.reason, width, room, g.ellipsis)]
        margin = words.signed(plan.margin)
        second = f"runner-up {plan.runner_up}, {margin}; kept out: {plan.binding}"
        return [*lines, [(words.fit(second, width, g.ellipsis), "$faint")]][:height]

    def _row(
        self, score: ScoreStatus, plan: events.PlanMade, scores: Sequence[ScoreStatus], width: int
    ) -> Line:
        chosen = _is(score, plan)
        base = next((s.total for s in scores if _is(s, plan)), None)
        mark = self.look.glyphs.cursor if chosen else " "
        against = None if chosen or not base or score.total is None else score.total / base - 1.0
        energy = words.NOTHING if score.joules is None else f"{score.joules * 1e3:.0f} mJ"
        style = "$cloud bold" if chosen else "$faint" if score.why else "$head"
        figures = (
            f"{mark} {score.placement:<10}{words.ms(score.ms):>10}{energy:>10}"
            f"{words.number(score.total):>10}{words.signed(against):>9}  "
        )
        why = words.fit(score.why, max(1, width - len(figures)), self.look.glyphs.ellipsis)
        return [(figures, style), (why, "$warn" if score.why else "")]


def _is(score: ScoreStatus, plan: events.PlanMade) -> bool:
    return score.placement == plan.placement and score.peer in ("", plan.peer)


def _order(score: ScoreStatus, plan: events.PlanMade) -> tuple[bool, bool, float]:
    """The chosen one first, then what is possible by its cost."""
    return (not _is(score, plan), bool(score.why), score.total or float("inf"))
