"""Clouds, and committers of this house: how far, how steady, how safe."""

from __future__ import annotations

from collections.abc import Sequence

from outrider.tui import words
from outrider.tui.graph import spark
from outrider.tui.look import Part
from outrider.tui.state import LinkView
from outrider.tui.widgets.rows import Column, Row, Rows


class LinkTable(Rows):
    TITLE = "links"
    EMPTY = "no cloud is known yet"
    COLUMNS = (
        Column("state", 12),
        Column("cloud", 0),
        Column("RTT", 7, right=True),
        Column("jitter", 7, right=True),
        Column("loss", 6, right=True),
        Column("there", 5, right=True),
        Column("cuts", 4, right=True),
        Column("certificate", 11, rank=1),
        Column("band up", 9, right=True, rank=2),
        Column("band down", 9, right=True, rank=3),
        Column("last minute", 24, rank=4),
    )
    LEAST = 12

    def rows(self) -> Sequence[Row]:
        return [Row(name, self._cells(view)) for name, view in self.state.links.items()]

    def _cells(self, view: LinkView) -> tuple[Part, ...]:
        now, g = view.now, self.look.glyphs
        sign, style = {
            "connected": (g.good, "$good"), "connecting": (g.waiting, "$warn"),
        }.get(now.state, (g.bad, "$bad"))  # fmt: skip
        trend = list(view.rtt)[-48:]
        thinned = [max(trend[at : at + 2]) for at in range(0, len(trend), 2)]
        return (
            (f"{sign} {now.state}", f"{style} bold"),
            (now.cloud, "$head"),
            (words.ms(now.rtt_ms), "$head"),
            (words.ms(now.jitter_ms), "$head"),
            (words.percent(now.loss), "$head"),
            (words.share(view.uptime(self.state.t_ms)), "$head"),
            (str(view.losses), "$bad bold" if view.losses else "$faint"),
            certificate(view, self.state.at),
            (words.rate(now.up_bytes_per_s), "$uplink"),
            (words.rate(now.down_bytes_per_s), "$downlink"),
            (spark(thinned, g).rjust(24), "$cloud"),
        )


def certificate(view: LinkView, at: float) -> Part:
    """How long it is good for."""
    now = view.now
    if not now.tls:
        return "loopback", "$faint"
    if now.cert_expires is None:
        return "TLS", "$good"
    left = now.cert_expires - at
    if left <= 0:
        return "expired", "$bad bold"
    return words.span(left), "$bad bold" if left < 7 * 86400 else "$good"
