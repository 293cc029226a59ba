"""The models as strips of layers: which device holds which, by colour, sign and number."""

from __future__ import annotations

from collections.abc import Sequence

from outrider.tui import words
from outrider.tui.look import Line, Part
from outrider.tui.state import Stage
from outrider.tui.widgets.panel import Panel

TINTS = ("$cloud", "$accepted", "$power", "$provisional")
LABEL = 8


class Strip(Panel):
    TITLE = "where the layers are"

    def draw(self, width: int, height: int) -> Sequence[Line]:
        state = self.state
        gauge = state.gauge
        if gauge is None:
            return [[("waiting for the daemon", "$faint")]]
        stages = state.stages()
        lines: list[Line] = [self._title("target", gauge.model or "not known yet", "decides")]
        lines += self._split(stages, width) if stages else self._whole(width)
        if height > 6:
            lines.append([])
        lines.append(self._title("draft", gauge.drafter or "none", "rides ahead"))
        lines.append(self._draft(width))
        return lines

    def _title(self, role: str, name: str, does: str) -> Line:
        return [(role.ljust(LABEL), "$faint"), (name, "$head bold"), (f"  {does}", "$faint")]

    def _split(self, stages: Sequence[Stage], width: int) -> list[Line]:
        """One cell or more a layer; below it the devices with their signs."""
        g = self.look.glyphs
        layers = stages[-1].stop
        devices = list(dict.fromkeys(stage.device for stage in stages))
        room = max(layers, width - LABEL - 12)
        strip: list[Part] = [("".ljust(LABEL), "")]
        for stage in stages:
            number = devices.index(stage.device)
            first, last = (round(at / layers * room) for at in (stage.start, stage.stop))
            sign = g.shades[number % len(g.shades)]
            strip.append((sign * (last - first), TINTS[number % len(TINTS)]))
        strip.append((f" {layers} layers", "$faint"))
        names: list[Part] = [("".ljust(LABEL), "")]
        for stage in stages:
            number = devices.index(stage.device)
            tint = TINTS[number % len(TINTS)]
            names.append((f"{g.shades[number % len(g.shades)]} ", tint))
            names.append((f"{stage.device} {stage.start}-{stage.stop - 1}  ", "$head"))
        return [strip, names]

    def _whole(self, width: int) -> list[Line]:
        """All layers on one device: the cloud's."""
        view = self.state.link
        if view is None:
            return [[("".ljust(LABEL), ""), ("no cloud is known yet", "$faint")]]
        g, now = self.look.glyphs, view.now
        there = now.state == "connected"
        room = max(8, width - LABEL - 12)
        sign = g.shades[0] if there else g.empty
        kind = "cloud" if now.kind == "cloud" else "this house"
        where = f"{kind} {now.cloud}" + (f", {now.device}" if now.device else "")
        state = "" if there else f"  {now.state}"
        return [
            [("".ljust(LABEL), ""), (sign * room, "$cloud" if there else "$bad"),
             (" all layers", "$faint")],
            [("".ljust(LABEL), ""), (f"{g.shades[0]} ", "$cloud"), (where, "$head"),
             (state, "$bad bold")],
        ]  # fmt: skip

    def _draft(self, width: int) -> Line:
        gauge, g = self.state.gauge, self.look.glyphs
        assert gauge is not None
        if not gauge.drafter:
            return [("".ljust(LABEL), ""), ("this device has no draft model", "$faint")]
        plan = self.state.plan
        rests = plan is not None and plan.placement == "cloud"
        room = max(4, (width - LABEL - 12) // 4)
        memory = words.number(gauge.rss_mb, "MB", 0)
        said = "rests" if rests else "drafts"
        return [
            ("".ljust(LABEL), ""),
            ((g.empty if rests else g.shades[1]) * room, "$edge"),
            (f" {g.shades[1]} ", "$edge"),
            (f"this device, {gauge.drafter_device or 'cpu'}", "$head"),
            (f", daemon {memory}, {said}", "$faint"),
        ]
