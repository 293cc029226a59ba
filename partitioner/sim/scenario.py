"""A fleet to begin with: three kinds of devices and a cloud's accelerator, all estimates.

Speeds are data sheets' times the usual shares of them that are reached (memory three
quarters, arithmetic less than half); watts are those of the power constants. Who has
measured better passes a profile (`outrider profile`) or calibrates (`bench sim`).
"""

from __future__ import annotations

import math

from outrider.errors import Unplannable
from outrider.models import graph as graphs
from outrider.partitioner.device import DeviceKind, DeviceProfile, Rate
from outrider.partitioner.graph import ModelGraph
from outrider.partitioner.power import constants
from outrider.partitioner.sim.agreement import Agreement
from outrider.partitioner.sim.setup import Gear, World, cloud_of, gear_of

TARGET = "shape:qwen2.5-32b"
DRAFT = "shape:qwen2.5-0.5b"
GIB = 1 << 30
ACCELERATOR_BYTES = 80_000_000_000
DOLLARS_PER_HOUR = 3.0
"""Of one accelerator of 80 GB, as clouds rent it by the hour."""


TOGETHER = 0.85
"""Of their speed that accelerators keep when they hold a model together."""
ROOM = 0.85
"""Of their memory for weights; the rest is KV and working space."""


def needed(target: ModelGraph) -> int:
    """Accelerators that hold a model."""
    return max(1, math.ceil(target.weight_bytes / (ACCELERATOR_BYTES * ROOM)))


def accelerators(count: int = 1) -> DeviceProfile:
    """With 80 GB of HBM3 each: 3.35 TB/s, 990 TFLOP/s in bfloat16."""
    speed = count * (TOGETHER if count > 1 else 1.0)
    flops, moved = 990e12 * 0.45 * speed, 3.35e12 * 0.75 * speed
    rate = Rate("torch", "bfloat16", flops, moved, pass_s=1e-3, source="estimated")
    return DeviceProfile(
        f"{count} x accelerator",
        "cloud",
        count * ACCELERATOR_BYTES,
        (rate,),
        busy_w=count * constants.cloud_w("cuda:0"),
        dollars_per_hour=count * DOLLARS_PER_HOUR,
    )


def _device(
    kind: DeviceKind, flops: float, moved: float, base_w: float, busy_w: float
) -> DeviceProfile:
    rate = Rate(
        "llama", "q8_0", flops * 0.4, moved * 0.75, pass_s=2e-4, bytes_per_weight=1.0625,
        source="estimated",
    )  # fmt: skip
    return DeviceProfile(kind, kind, 8 * GIB, (rate,), idle_w=base_w, busy_w=busy_w)


def gears(draft: str = DRAFT) -> tuple[Gear, ...]:
    """laptop, phone, jetson, each drafting with a model. Raises NotFound, ModelError."""
    graph = graphs.read(draft)
    laptop = _device("laptop", 0.8e12, 68e9, 5.0, constants.busy_w("laptop"))
    phone = _device("phone", 0.3e12, 51e9, 0.8, constants.busy_w("phone"))
    jetson = _device("jetson", 2.5e12, 102e9, 6.0, constants.busy_w("jetson"))
    return (
        gear_of("laptop", graph, laptop, laptop.rates[0], battery_wh=55.0),
        gear_of("phone", graph, phone, phone.rates[0], radio="cellular", battery_wh=17.0),
        gear_of("jetson", graph, jetson, jetson.rates[0], radio="ethernet"),
    )


def world(
    target: str = TARGET,
    draft: str = DRAFT,
    *,
    gpus: int | None = None,
    slots: int = 64,
    agreement: Agreement | None = None,
) -> World:
    """`gpus` accelerators in all, in clouds of as many as the target needs; None is one cloud.

    Raises NotFound or ModelError for models that can not be read, Unplannable for too few.
    """
    graph = graphs.read(target)
    each = needed(graph)
    if gpus is not None and gpus < each:
        raise Unplannable(
            f"{graph.name} does not fit {gpus} accelerators",
            constraint=f"{graph.weight_bytes / 1e9:.0f} GB of weights in"
            f" {ROOM:.0%} of {ACCELERATOR_BYTES / 1e9:.0f} GB an accelerator",
            nearest=f"{each} accelerators",
        )
    device = accelerators(each)
    return World(
        gears(draft),
        cloud_of(graph, device, device.rates[0], slots=slots),
        1 if gpus is None else gpus // each,
        agreement or Agreement(),
    )
