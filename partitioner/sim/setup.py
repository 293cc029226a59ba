"""What a fleet is made of: kinds of devices, clouds, and what lies between. Values only."""

from __future__ import annotations

from dataclasses import dataclass, field

from outrider.errors import InvalidProfile
from outrider.partitioner.cost import stage_s
from outrider.partitioner.device import DeviceProfile, Rate
from outrider.partitioner.graph import ModelGraph
from outrider.partitioner.power.constants import RadioKind
from outrider.partitioner.signals import Knots
from outrider.partitioner.sim.agreement import Agreement

STEP_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 192, 256, 384, 512, 1024)
DRAFT_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


@dataclass(frozen=True, slots=True)
class Gear:
    """A kind of device."""

    name: str
    draft: Knots
    """ms of a drafter's pass by its rows; empty where it has no drafter."""
    burst_ms: float = 0.0
    """Of each visit to the drafter, beside its passes."""
    noise: float = 0.0
    """Standard deviation of the logarithm of a pass."""
    busy_w: float = 15.0
    """Drawn beyond idle while it drafts."""
    base_w: float = 4.0
    """Drawn while it does nothing of ours; what empties a battery."""
    battery_wh: float = 0.0
    charge_w: float = 30.0
    radio: RadioKind = "wifi"


@dataclass(frozen=True, slots=True)
class CloudSetup:
    """One target on one device of a cloud."""

    step: Knots
    """ms of a pass by the rows that are wanted."""
    noise: float = 0.0
    """Standard deviation of the logarithm of a pass."""
    gap_ms: float = 0.3
    """From the end of a pass to the start of the next, when there is work."""
    prefill_noise: float = 0.0
    minimum: int = 1
    multiple: int = 1
    """The engine's row rule."""
    uniform: bool = False
    slots: int = 64
    max_rows: int = 512
    ahead: int = 64
    most_sessions: int = 256
    """More are refused, and come again."""
    ttl_s: float = 30.0
    watts: float = 756.0
    """Drawn in a pass, host and cooling included."""
    dollars_per_hour: float = 3.0


@dataclass(frozen=True, slots=True)
class Overheads:
    """Milliseconds of code and network stacks, beside the link's own round trip."""

    open_ms: float = 4.0
    """From an ask to the cloud's knowing of it."""
    up_ms: float = 0.5
    """A hint, one way."""
    down_ms: float = 0.5
    """A commit, until it is applied."""


@dataclass(frozen=True, slots=True)
class World:
    gears: tuple[Gear, ...]
    cloud: CloudSetup
    clouds: int = 1
    agreement: Agreement = field(default_factory=Agreement)
    overheads: Overheads = field(default_factory=Overheads)
    running: int = 16
    """Answers at a time on a device; more wait there."""

    def gear(self, name: str) -> Gear:
        """Raises InvalidProfile."""
        for gear in self.gears:
            if gear.name == name:
                return gear
        raise InvalidProfile(
            f"the trace has a device of kind {name!r}",
            why=f"known kinds are {', '.join(gear.name for gear in self.gears)}",
            effect="nothing was simulated",
        )


def check(world: World) -> None:
    """Raises InvalidProfile for what makes no sense."""
    curves = [("cloud", world.cloud.step), *((gear.name, gear.draft) for gear in world.gears)]
    for name, knots in curves:
        if any(not (rows > 0 and 0 < ms < 1e9) for rows, ms in knots):
            raise _senseless(name, "a pass takes no time, or no number of milliseconds")
        if any(a[0] >= b[0] for a, b in zip(knots, knots[1:], strict=False)):
            raise _senseless(name, "row counts must rise")
    if not world.cloud.step or world.clouds < 1 or world.cloud.slots < 1:
        raise _senseless("cloud", "there is no pass, no slot, or no cloud")
    if not all(0.0 <= rate <= 1.0 for rate in world.agreement.rates) or not world.agreement.rates:
        raise _senseless("agreement", "acceptance by depth must lie between 0 and 1")


def _senseless(name: str, why: str) -> InvalidProfile:
    return InvalidProfile(f"{name} can not be simulated", why=why, effect="nothing was simulated")


# --- from the planner's cost model ---------------------------------------------------------------


def knots(
    graph: ModelGraph, device: DeviceProfile, rate: Rate, rows: tuple[int, ...], context: float
) -> Knots:
    """ms of a pass of the whole model by its rows, by the planner's cost model."""
    count = len(graph.units)
    return tuple((float(n), stage_s(graph, 0, count, device, rate, n, context) * 1e3) for n in rows)


def gear_of(
    name: str,
    graph: ModelGraph,
    device: DeviceProfile,
    rate: Rate,
    *,
    radio: RadioKind = "wifi",
    battery_wh: float = 0.0,
) -> Gear:
    """A kind of device that drafts with a model."""
    return Gear(
        name,
        knots(graph, device, rate, DRAFT_ROWS, 256.0),
        burst_ms=0.3,
        noise=0.05,
        busy_w=device.busy_w,
        base_w=device.idle_w,
        battery_wh=battery_wh,
        radio=radio,
    )


def cloud_of(
    graph: ModelGraph, device: DeviceProfile, rate: Rate, *, slots: int = 64
) -> CloudSetup:
    """A cloud that serves a model on one device."""
    return CloudSetup(
        knots(graph, device, rate, STEP_ROWS, 512.0),
        noise=0.03,
        slots=slots,
        watts=device.busy_w + device.idle_w,
        dollars_per_hour=device.dollars_per_hour,
    )
