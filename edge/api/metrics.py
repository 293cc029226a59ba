"""Prometheus counters of one daemon: vLLM's names for speculation, OpenTelemetry's for times.

Names: vLLM `vllm:spec_decode_*`; OpenTelemetry GenAI semantic conventions
(`gen_ai.server.*`, in seconds) as Prometheus writes them.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from typing import cast

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from outrider.edge.service import EdgeService
from outrider.protocol.energy import PowerStatus
from outrider.protocol.status import CloudStatus
from outrider.protocol.stream import Done, Started, StreamEvent, Token

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_FAST = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_SLOW = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)


class Metrics:
    """A registry of its own, so that several daemons can live in one process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        model = ("model_name",)
        self._drafts = self._counter("vllm:spec_decode_num_drafts", "Passes with a hint row", model)
        self._drafted = self._counter(
            "vllm:spec_decode_num_draft_tokens", "Hint rows verified", model
        )
        self._accepted = self._counter(
            "vllm:spec_decode_num_accepted_tokens", "Hint rows accepted", model
        )
        self._stale = self._counter(
            "outrider_stale_draft_tokens", "Hint tokens dropped unverified", model
        )
        self._sent = self._counter("outrider_sent_draft_tokens", "Hint tokens sent", model)
        self._tokens = self._counter(
            "outrider_tokens", "Committed tokens by who produced them", (*model, "source")
        )
        self._ended = self._counter("outrider_answers", "Answers by how they ended", ("reason",))
        self._mixed = self._counter("outrider_mixed_answers", "Answers that forked", model)
        self._up = self._counter("outrider_link_sent_bytes", "Payload bytes to the cloud", ())
        self._down = self._counter("outrider_link_received_bytes", "And from it", ())
        self._requests = self._counter(
            "outrider_http_requests", "Requests by route and status", ("route", "status")
        )
        self._decisions = self._counter(
            "outrider_decisions", "Changes of placement, by what was switched", ("what",)
        )
        self._decided: dict[str, int] = {}
        self._times(model)
        self._gauges()

    def _counter(self, name: str, text: str, labels: tuple[str, ...]) -> Counter:
        return Counter(name, text, labels, registry=self.registry)

    def _times(self, model: tuple[str, ...]) -> None:
        def histogram(name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(
                f"gen_ai_server_{name}_seconds",
                text,
                model,
                registry=self.registry,
                buckets=buckets,
            )

        self._ttft = histogram("time_to_first_token", "Request to first token", _SLOW)
        self._tpot = histogram("time_per_output_token", "Mean gap after the first token", _FAST)
        self._whole = histogram("request_duration", "Request to last token", _SLOW)

    def _gauges(self) -> None:
        def gauge(name: str, text: str) -> Gauge:
            return Gauge(name, text, registry=self.registry)

        self._running = gauge("outrider_requests_running", "Answers being made")
        self._queued = gauge("outrider_requests_queued", "Requests waiting for a place")
        self._lag = gauge("outrider_loop_lag_p99_seconds", "Event loop lag, 99th percentile")
        self._connected = gauge("outrider_clouds_connected", "Clouds that answer")
        self._link_gauges()
        self._power_gauges()

    def _link_gauges(self) -> None:
        """Of live traffic; what it does not tell is not on the page."""
        names = {
            "rtt_ms": ("rtt_seconds", "Round trip", 1e-3),
            "jitter_ms": ("jitter_seconds", "Mean distance from the round trip's median", 1e-3),
            "up_bytes_per_s": ("up_bytes_per_second", "Bandwidth to the cloud", 1.0),
            "down_bytes_per_s": ("down_bytes_per_second", "And from it", 1.0),
            "loss": ("loss_ratio", "Of segments", 1.0),
        }
        self._links = {
            field: (Gauge(f"outrider_link_{name}", text, ("cloud",), registry=self.registry), unit)
            for field, (name, text, unit) in names.items()
        }

    def _set_links(self, clouds: Sequence[CloudStatus]) -> None:
        for field, (gauge, unit) in self._links.items():
            gauge.clear()
            for cloud in clouds:
                value = getattr(cloud, field)
                if value is not None:
                    gauge.labels(cloud.address).set(value * unit)

    def _power_gauges(self) -> None:
        def gauge(name: str, text: str, labels: tuple[str, ...] = ()) -> Gauge:
            return Gauge(f"outrider_{name}", text, labels, registry=self.registry)

        placed = ("placement", "kind")
        self._watts = gauge("power_watts", "Drawn now, by source", ("source", "kind", "scope"))
        self._battery = gauge("battery_ratio", "Charge left, 0 to 1", ("supply",))
        self._heat = gauge("temperature_celsius", "By zone", ("zone",))
        self._limit = gauge("temperature_limit_celsius", "Where a zone throttles", ("zone",))
        self._level = gauge("power_draft_level", "What power leaves: 2 free, 1 shallow, 0 off")
        self._per_token = gauge("joules_per_token", "Device, radio and cloud", placed)
        self._joules = gauge("energy_joules", "Of all requests that ended", placed)
        self._wasted = gauge("energy_wasted_joules", "Drafts sent and not accepted", placed)

    def request(self, route: str, status: int) -> None:
        """One HTTP request was answered."""
        self._requests.labels(route, str(status)).inc()

    async def counted(
        self, source: AsyncIterator[StreamEvent]
    ) -> AsyncGenerator[StreamEvent, None]:
        """The same events, counted on their way."""
        models: dict[int, str] = {}
        async with aclosing(cast(AsyncGenerator[StreamEvent, None], source)) as events:
            async for event in events:
                self._take(event, models)
                yield event

    def _take(self, event: StreamEvent, models: dict[int, str]) -> None:
        if isinstance(event, Started):
            models[event.choice] = event.model
        elif isinstance(event, Token):
            self._tokens.labels(models.get(event.choice, ""), event.source).inc()
        elif isinstance(event, Done):
            self._ended.labels(event.finish_reason).inc()
            if event.choice in models:
                self._done(event, models[event.choice])

    def _done(self, done: Done, model: str) -> None:
        self._drafts.labels(model).inc(done.speculation.num_spec_steps)
        self._drafted.labels(model).inc(done.speculation.num_draft_tokens)
        self._accepted.labels(model).inc(done.speculation.num_accepted_draft_tokens)
        self._stale.labels(model).inc(done.speculation.stale_draft_tokens)
        self._sent.labels(model).inc(done.speculation.sent_draft_tokens)
        self._up.inc(done.bytes_up)
        self._down.inc(done.bytes_down)
        if done.mixed_from is not None:
            self._mixed.labels(model).inc()
        if done.finish_reason in ("stop", "length"):
            self._took(done, model)

    def _took(self, done: Done, model: str) -> None:
        """Times of answers that came to their end."""
        self._ttft.labels(model).observe(done.ttft_ms / 1000.0)
        self._whole.labels(model).observe(done.total_ms / 1000.0)
        if done.completion_tokens > 1:
            gap = (done.total_ms - done.ttft_ms) / (done.completion_tokens - 1)
            self._tpot.labels(model).observe(gap / 1000.0)

    def text(self, service: EdgeService) -> bytes:
        """The page for Prometheus; gauges are read from the service now."""
        status = service.status()
        self._running.set(status.requests_running)
        self._queued.set(status.requests_queued)
        self._lag.set(status.loop_lag_p99_ms / 1000.0)
        self._connected.set(sum(cloud.state == "connected" for cloud in status.clouds))
        self._set_links(status.clouds)
        self._count_decisions(status.decisions)
        if status.power is not None:
            self._set_power(status.power)
        return generate_latest(self.registry)

    def _count_decisions(self, decisions: dict[str, int]) -> None:
        """The daemon counts them itself; what is new since the last page is added here."""
        for what, count in decisions.items():
            self._decisions.labels(what).inc(max(0, count - self._decided.get(what, 0)))
        self._decided = dict(decisions)

    def _set_power(self, power: PowerStatus) -> None:
        """Sources, zones and placements that are gone must not stay on the page."""
        labelled = (self._watts, self._battery, self._heat, self._limit)
        for group in (*labelled, self._per_token, self._joules, self._wasted):
            group.clear()
        for draw in power.draws:
            if draw.watts is not None:
                self._watts.labels(draw.source, draw.kind, draw.scope).set(draw.watts)
        if power.battery is not None:
            self._battery.labels(power.supply).set(power.battery)
        for heat in power.heats:
            self._heat.labels(heat.zone).set(heat.celsius)
            if heat.limit_c is not None:
                self._limit.labels(heat.zone).set(heat.limit_c)
        self._level.set(("off", "shallow", "free").index(power.draft))
        for found in power.placements:
            named = (found.placement, found.kind)
            self._per_token.labels(*named).set(found.joules_per_token)
            self._joules.labels(*named).set(found.joules)
            self._wasted.labels(*named).set(found.wasted_j)
