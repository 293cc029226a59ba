"""Random questions to the planner: seeded, small enough for brute force, of every kind."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from outrider.partitioner.device import DeviceKind, DeviceProfile, LinkProfile, Rate
from outrider.partitioner.graph import ModelGraph, Unit, chain
from outrider.partitioner.plan import Constraints, Objective, Problem, Workload

HIDDEN = 1024


def graph(layers: int, weight: int = 20_000_000, *, tied: bool = False) -> ModelGraph:
    """Equal layers between an embedding and a head."""
    units = (
        Unit("embedding", "embedding", 0, 0, weight * 2, 0, HIDDEN, read_bytes=2 * HIDDEN),
        *(
            Unit(f"layers.{i}", "decoder", weight, 4 * HIDDEN, weight, 512, HIDDEN)
            for i in range(layers)
        ),
        Unit("head", "head", weight * 2, 0, weight * 2, 0, 0),
    )
    return ModelGraph("tiny", units, chain(layers + 2), "float16", 4096, 32000, tied=tied)


def uneven(model: ModelGraph, random: np.random.Generator) -> ModelGraph:
    """The same with layers of different sizes."""
    units = tuple(
        replace(unit, flops=unit.flops * factor, weight_bytes=int(unit.weight_bytes * factor))
        for unit, factor in zip(model.units, random.uniform(0.5, 2, len(model.units)), strict=True)
    )
    return replace(model, units=units)


def device(name: str, speed: float, memory: int, **fields: object) -> DeviceProfile:
    """Bytes per second, bytes; fifty operations per byte."""
    rate = Rate("torch", "float16", speed * 50, speed, pass_s=1e-4, layer_s=1e-5)
    made = DeviceProfile(name, "laptop", memory, (rate,), busy_w=20.0, idle_w=2.0)
    return replace(made, **fields)  # type: ignore[arg-type]


def link(a: str, b: str, rtt_s: float = 0.01, speed: float = 1e7) -> LinkProfile:
    return LinkProfile(a, b, rtt_s, speed, speed)


def small(seed: int, objective: Objective = "latency") -> Problem:
    """2 to 12 layers, 1 to 5 devices; sometimes unequal layers, missing links, any constraint."""
    random = np.random.default_rng(seed)
    layers, count = int(random.integers(2, 13)), int(random.integers(1, 6))
    two = bool(random.random() < 0.3)
    model = graph(layers, tied=bool(random.random() < 0.3))
    model = uneven(model, random) if seed % 2 else model
    count = min(count, 3) if two else count
    devices = tuple(_device(i, model, random, two=two) for i in range(count))
    links = tuple(
        _link(a, b, random)
        for a in range(count)
        for b in range(a + 1, count)
        if random.random() < 0.85
    )
    load = Workload(
        prompt_tokens=int(random.integers(1, 600)),
        sequences=int(random.choice([1, 4, 32])),
        rows=4.0,
        tokens_per_pass=float(random.uniform(1, 4)),
    )
    limits = _limits(random, layers, count, two=two)
    return Problem(model, devices, links, "d0", load, objective, limits)


def _device(i: int, model: ModelGraph, random: np.random.Generator, *, two: bool) -> DeviceProfile:
    speed = float(10 ** random.uniform(9, 11.5))
    rates = [
        Rate(
            "torch", "float16", speed * 50, speed,
            pass_s=float(random.uniform(0, 1e-3)), layer_s=float(random.uniform(0, 1e-4)),
        )
    ]  # fmt: skip
    if two:
        rates.append(
            Rate(
                "torch", "int8", speed * 40, speed * float(random.uniform(0.9, 1.1)),
                weight_scale=0.53125, rows=((1, 1.0), (8, 1.5)),
            )
        )  # fmt: skip
    return DeviceProfile(
        f"d{i}",
        "laptop",
        int(model.weight_bytes * random.uniform(0.15, 1.6)),
        tuple(rates),
        slowdown=float(random.choice([1, 1, 2])),
        idle_w=float(random.uniform(0, 10)),
        busy_w=float(random.uniform(1, 100)),
        dollars_per_hour=float(random.uniform(0, 2)),
    )


def _link(a: int, b: int, random: np.random.Generator) -> LinkProfile:
    up, down = (float(10 ** random.uniform(5.5, 9)) for _ in range(2))
    return LinkProfile(
        f"d{a}",
        f"d{b}",
        float(10 ** random.uniform(-4, -1)),
        up,
        down,
        joules_per_byte=float(random.choice([0, 1e-7])),
    )


def _limits(random: np.random.Generator, layers: int, count: int, *, two: bool) -> Constraints:
    limits, last = Constraints(), layers + 1
    chance = random.random(8)
    if chance[0] < 0.2:
        stay = ((0, last), (0,), (int(random.integers(0, layers)),))[int(random.integers(3))]
        limits = replace(limits, stay=stay)
    if chance[1] < 0.1:
        limits = replace(limits, max_devices=int(random.integers(1, count + 1)))
    if chance[2] < 0.1 and not (limits.max_devices == 1 and limits.stay):
        limits = replace(limits, include=(f"d{count - 1}",))
    if chance[3] < 0.1:
        limits = replace(limits, max_watts=(("d0", float(random.uniform(11, 50))),))
    if two and chance[4] < 0.4:
        most = float(random.integers(0, layers))
        limits = replace(limits, dtype_loss=(("int8", 1.0),), max_loss=most)
    if chance[5] < 0.15:
        limits = replace(limits, max_ttft_s=float(10 ** random.uniform(-2, 0.5)))
    if chance[6] < 0.1:
        limits = replace(limits, max_tpot_s=float(10 ** random.uniform(-3, -1)))
    if chance[7] < 0.1:
        limits = replace(limits, max_joules_per_token=float(10 ** random.uniform(-1.5, 0.5)))
    return limits


# --- fleets ------------------------------------------------------------------------------------

KINDS: dict[DeviceKind, tuple[float, float, float, float, float, float]] = {
    "phone": (6, 50e9, 2e12, 5, 1, 0.0),
    "laptop": (16, 90e9, 5e12, 25, 6, 0.02),
    "jetson": (28, 200e9, 20e12, 35, 8, 0.05),
    "desktop": (24, 900e9, 70e12, 280, 30, 0.2),
    "server": (80, 2000e9, 300e12, 350, 60, 2.0),
}
"""GiB, bytes/s, FLOP/s, watts busy and idle, dollars per hour: rounded figures of their kind."""
CHANCES = (0.2, 0.25, 0.2, 0.25, 0.1)
SITES = 3
GIB = 1 << 30


def llama(layers: int) -> ModelGraph:
    """Layers of Llama 3 70B's shape; 80 of them are the whole model."""
    hidden, inner, kv, vocabulary = 8192, 28672, 1024, 128256
    layer = 2 * (2 * hidden * hidden + 2 * hidden * kv + 3 * hidden * inner)
    ends = 2 * vocabulary * hidden
    units = (
        Unit("embedding", "embedding", 0, 0, ends, 0, hidden, read_bytes=2 * hidden),
        *(
            Unit(f"layers.{i}", "decoder", layer, 4 * hidden, layer, 4 * kv, hidden)
            for i in range(layers)
        ),
        Unit("head", "head", ends, 0, ends, 0, 0),
    )
    name = f"llama-shaped-{layers}"
    return ModelGraph(name, units, chain(layers + 2), "bfloat16", 8192, vocabulary)


def fleet(
    seed: int, layers: int = 80, count: int = 16, room: float = 2.0,
    objective: Objective = "latency", load: Workload | None = None,
) -> Problem:  # fmt: skip
    """Unlike devices at three sites; a LAN at each, wide-area links between them.

    Home is a laptop. Memory is half to all of its kind's, scaled up where all devices together
    would hold less than `room` times the weights."""
    random = np.random.default_rng(seed)
    model = llama(layers)
    kinds: list[DeviceKind] = ["laptop"]
    kinds += [list(KINDS)[i] for i in random.choice(len(KINDS), count - 1, p=CHANCES)]
    memory = np.array([KINDS[kind][0] for kind in kinds]) * GIB * random.uniform(0.5, 1, count)
    memory *= max(1.0, room * model.weight_bytes / memory.sum())
    sites = [0, *random.integers(0, SITES, count - 1).tolist()]
    devices = tuple(
        _of_kind(f"{kind}{i}", kind, int(size), random)
        for i, (kind, size) in enumerate(zip(kinds, memory, strict=True))
    )
    apart = random.uniform(0.010, 0.080, (SITES, SITES))
    links = tuple(
        _between(
            devices[a].name,
            devices[b].name,
            random,
            None if near else float(apart[sites[a], sites[b]]),
        )
        for a in range(count)
        for b in range(a + 1, count)
        for near in (sites[a] == sites[b],)
    )
    return Problem(
        model, devices, links, devices[0].name, load or Workload(), objective, Constraints()
    )


def _of_kind(
    name: str, kind: DeviceKind, memory: int, random: np.random.Generator
) -> DeviceProfile:
    _, speed, flops, busy, idle, dollars = KINDS[kind]
    factor = float(random.uniform(0.6, 1.2))
    rate = Rate(
        "torch",
        "bfloat16",
        flops * factor,
        speed * factor,
        pass_s=float(random.uniform(1e-4, 2e-3)),
        layer_s=float(random.uniform(1e-5, 2e-4)),
    )
    return DeviceProfile(
        name, kind, memory, (rate,), idle_w=idle, busy_w=busy, dollars_per_hour=dollars
    )


def _between(a: str, b: str, random: np.random.Generator, far_s: float | None) -> LinkProfile:
    """A LAN of 10 MB/s to 1 GB/s, or a wide-area link of 1 to 30 MB/s up."""
    if far_s is None:
        speed = float(10 ** random.uniform(7, 9))
        return LinkProfile(
            a, b, float(random.uniform(3e-4, 4e-3)), speed, speed, joules_per_byte=2e-8
        )
    up = float(10 ** random.uniform(6, 7.5))
    rtt_s = float(far_s * random.uniform(0.9, 1.1))
    return LinkProfile(a, b, rtt_s, up, up * float(random.uniform(1, 4)), joules_per_byte=2e-7)


def with_useless(seed: int) -> tuple[Problem, str]:
    """A fleet of a few devices and one more that can only harm, and that one's name: every pass
    through it takes a second; or it has no room for the model, and every way to it takes most of
    a second."""
    random = np.random.default_rng(seed)
    objective: Objective = "latency" if seed % 2 else "throughput"
    load = Workload(sequences=int(random.choice([1, 4, 16])))
    layers, count = int(random.integers(8, 33)), int(random.integers(2, 6))
    problem = fleet(seed, layers, count, 2.0, objective, load)
    slow = bool(random.random() < 0.5)
    room = 64 * GIB if slow else int(0.4 * problem.graph.weight_bytes)
    useless = device("useless", 1e7 if slow else 1e11, room)
    rate = replace(useless.rates[0], dtype="bfloat16", pass_s=1.0 if slow else 1e-4)
    far = (0.002, 1e8) if slow else (1.5, 2e4)
    links = tuple(link(other.name, "useless", *far) for other in problem.devices)
    return replace(
        problem,
        devices=(*problem.devices, replace(useless, rates=(rate,))),
        links=problem.links + links,
    ), "useless"
