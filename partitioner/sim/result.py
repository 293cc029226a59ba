"""What came of a simulated run, answer by answer and summed up. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from outrider.partitioner.signals import Placement


@dataclass(frozen=True, slots=True)
class Served:
    """One answer. Seconds from the ask."""

    ask: int
    """Its number in the trace."""
    device: int
    at_s: float
    placement: Placement
    """Where most of it was said."""
    prompt: int
    tokens: int
    ttft_s: float
    latency_s: float
    queue_s: float = 0.0
    passes: int = 0
    """Target passes that held rows of it and chose a token."""
    hint_rows: int = 0
    accepted: int = 0
    device_j: float = 0.0
    radio_j: float = 0.0
    cloud_j: float = 0.0
    changes: int = 0
    refused: int = 0

    @property
    def tpot_s(self) -> float:
        """From the first token to the last, a token."""
        return (self.latency_s - self.ttft_s) / max(1, self.tokens - 1)

    @property
    def joules(self) -> float:
        return self.device_j + self.radio_j + self.cloud_j


@dataclass(slots=True)
class CloudUse:
    """One cloud over the whole run."""

    passes: int = 0
    rows: int = 0
    hint_rows: int = 0
    accepted: int = 0
    committed: int = 0
    busy_s: float = 0.0
    most_seated: int = 0


@dataclass(slots=True)
class Outcome:
    """A run of one policy over one trace."""

    trace: str
    policy: str
    mode: str
    """`exact` or `fleet`."""
    devices: int
    seconds: float
    """Of simulated time, to the last token."""
    served: list[Served] = field(default_factory=list)
    unserved: int = 0
    """Answers that were not over when the run was ended."""
    clouds: list[CloudUse] = field(default_factory=list)
    dollars_per_hour: float = 0.0
    """Of one cloud."""
    events: int = 0


@dataclass(frozen=True, slots=True)
class Slo:
    """What an answer has to keep to."""

    ttft_ms: float = 1000.0
    tpot_ms: float = 60.0

    def kept(self, one: Served) -> bool:
        return one.ttft_s * 1e3 <= self.ttft_ms and one.tpot_s * 1e3 <= self.tpot_ms


@dataclass(frozen=True, slots=True)
class Summary:
    """One line of a comparison."""

    policy: str
    mode: str
    answers: int
    unserved: int
    tokens: int
    tokens_per_s: float
    slo_attainment: float
    """Share of all asked answers that kept the SLO; what is not served did not."""
    ttft_p50_ms: float
    ttft_p95_ms: float
    tpot_p50_ms: float
    tpot_p95_ms: float
    latency_p50_s: float
    latency_p95_s: float
    passes_per_token: float
    """Of the answers that a cloud committed: passes with rows of an answer, over its tokens."""
    hint_yield: float
    """Accepted over verified hint rows."""
    rows_per_pass: float
    cloud_busy: float
    """Share of the clouds' time."""
    joules: float
    joules_per_token: float
    device_j: float
    radio_j: float
    cloud_j: float
    dollars: float
    """For all clouds over the whole time, busy or not."""
    dollars_per_mtoken: float
    shares: dict[str, float]
    """Of answers, by placement."""
    changes: int


def summarise(found: Outcome, slo: Slo) -> Summary:
    served = found.served
    tokens = sum(one.tokens for one in served)
    by_cloud = [one for one in served if one.placement != "edge"]
    rows = sum(use.rows for use in found.clouds)
    passes = sum(use.passes for use in found.clouds)
    dollars = found.dollars_per_hour * len(found.clouds) * found.seconds / 3600.0
    joules = sum(one.joules for one in served)
    asked = len(served) + found.unserved
    seconds = max(found.seconds, 1e-9)
    return Summary(
        policy=found.policy,
        mode=found.mode,
        answers=len(served),
        unserved=found.unserved,
        tokens=tokens,
        tokens_per_s=tokens / seconds,
        slo_attainment=sum(slo.kept(one) for one in served) / max(1, asked),
        ttft_p50_ms=quantile((one.ttft_s for one in served), 0.5) * 1e3,
        ttft_p95_ms=quantile((one.ttft_s for one in served), 0.95) * 1e3,
        tpot_p50_ms=quantile((one.tpot_s for one in served), 0.5) * 1e3,
        tpot_p95_ms=quantile((one.tpot_s for one in served), 0.95) * 1e3,
        latency_p50_s=quantile((one.latency_s for one in served), 0.5),
        latency_p95_s=quantile((one.latency_s for one in served), 0.95),
        passes_per_token=sum(one.passes for one in by_cloud)
        / max(1, sum(one.tokens for one in by_cloud)),
        hint_yield=sum(one.accepted for one in served)
        / max(1, sum(one.hint_rows for one in served)),
        rows_per_pass=rows / max(1, passes),
        cloud_busy=sum(use.busy_s for use in found.clouds) / seconds / max(1, len(found.clouds)),
        joules=joules,
        joules_per_token=joules / max(1, tokens),
        device_j=sum(one.device_j for one in served),
        radio_j=sum(one.radio_j for one in served),
        cloud_j=sum(one.cloud_j for one in served),
        dollars=dollars,
        dollars_per_mtoken=dollars / max(1, tokens) * 1e6,
        shares=shares(served),
        changes=sum(one.changes for one in served),
    )


def shares(served: Sequence[Served]) -> dict[str, float]:
    counts: dict[str, int] = {}
    for one in served:
        counts[one.placement] = counts.get(one.placement, 0) + 1
    return {name: counts[name] / len(served) for name in sorted(counts)}


def quantile(values: Iterable[float], share: float) -> float:
    """Linear between order statistics; 0 of nothing."""
    found = list(values)
    return float(np.quantile(found, share)) if found else 0.0
