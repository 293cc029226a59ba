"""Where answers run now, why, and what came second."""

from __future__ import annotations

from collections.abc import Sequence

from outrider.tui import words
from outrider.tui.look import Line
from outrider.tui.widgets.panel import Panel


class Verdict(Panel):
    TITLE = "placement"

    def draw(self, width: int, height: int) -> Sequence[Line]:
        plan = self.state.plan
        if plan is None:
            said = words.wrap("decided with the first answer of `auto`", width, height)
            return [[(text, "$faint")] for text in said]
        second = [("; next ", "$faint"), (plan.runner_up, "$head")]
        second += [(f" {words.signed(plan.margin)}", "$faint")] if plan.margin is not None else []
        head: Line = [
            (plan.placement, "$cloud bold"), *(second if plan.runner_up != "none" else []),
        ]  # fmt: skip
        g = self.look.glyphs
        reason = words.wrap(plan.reason, width, max(1, height - 2), g.ellipsis)
        lines: list[Line] = [head, *([(text, "$foreground")] for text in reason)]
        if plan.binding != "none":
            kept_out = words.fit(f"kept out: {plan.binding}", width, g.ellipsis)
            lines.append([(kept_out, "$warn")])
        return lines
