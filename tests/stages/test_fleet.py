"""Who joins a fleet: workers that are named, and, if asked for, those that announce themselves."""

from __future__ import annotations

import pytest

from outrider.engine import EngineSpec
from outrider.engines import registry
from outrider.errors import ConfigError, LinkError, OutriderError, PlanError
from outrider.models.source import resolve
from outrider.protocol.stages import HostedModel, StageHost
from outrider.stages import fleet as fleets
from outrider.stages.channel import Credentials
from outrider.stages.fleet import WorkerFleet
from outrider.stages.worker_at import WorkerAt

TARGET = EngineSpec("bundled:target", context=64, max_slots=2)


def fleet_of(*addresses: str) -> WorkerFleet:
    return WorkerFleet.make(TARGET, addresses, Credentials(), "fp32", lambda: 0.0)


@pytest.fixture
def answering(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Addresses at which a worker with the bundled target answers."""
    alive: set[str] = set()
    target = resolve("bundled:target")

    def look(worker: WorkerAt, credentials: Credentials) -> StageHost:
        if worker.address not in alive:
            raise LinkError("nobody there")
        return host(worker.address, target.digest)

    monkeypatch.setattr(fleets, "look", look)
    return alive


def host(name: str, digest: str) -> StageHost:
    return StageHost(
        name=name,
        kind="laptop",
        memory_bytes=0,
        claimed_bytes=0,
        speed=1.0,
        engines=("torch",),
        models=(HostedModel("target", digest, 6),),
    )


def test_workers_that_announce_themselves_join_at_the_next_plan(answering: set[str]) -> None:
    fleet = fleet_of("mdns")
    announced: list[WorkerAt] = []
    fleet.find = lambda: announced
    with pytest.raises(PlanError, match="no worker") as caught:
        fleet.plan()
    assert "none announced itself" in caught.value.why
    announced.append(WorkerAt("10.0.0.7:11713"))
    answering.add("10.0.0.7:11713")
    assert [placed.device for placed in fleet.plan().layout] == ["10.0.0.7:11713"]
    announced.append(WorkerAt("10.0.0.7:11713"))
    fleet.plan()
    assert len(fleet.workers) == 1


def test_nobody_is_looked_for_unless_asked(answering: set[str]) -> None:
    answering.add("127.0.0.1:1")
    fleet = fleet_of("127.0.0.1:1")
    assert fleet.find is None
    assert [placed.device for placed in fleet.plan().layout] == ["127.0.0.1:1"]


def test_ranges_are_not_dealt_to_workers_without_names() -> None:
    options = (("workers", "mdns:11713"), ("layers", "0:3,3:6"))
    spec = EngineSpec("bundled:target", engine="split", options=options)
    with pytest.raises(ConfigError, match="name none"):
        registry.build(spec)


def test_a_fleet_that_can_not_look_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> tuple[WorkerAt, ...]:
        raise OutriderError("no multicast")

    fleet = fleet_of("mdns")
    fleet.find = missing
    with pytest.raises(OutriderError, match="no multicast"):
        fleet.plan()
