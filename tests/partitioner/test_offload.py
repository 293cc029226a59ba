"""The search for where weights and KV lie: what fits, what pays, and what is refused."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from outrider.errors import Unplannable
from outrider.partitioner.graph import ModelGraph, Unit, chain
from outrider.partitioner.offload import (
    OffloadPolicy,
    OffloadWork,
    Tiers,
    layerwise,
    memory_bytes,
    price,
    search,
    streamed_units,
)

MB = 1 << 20


def graph(layers: int = 8, layer: int = 10 * MB, head: int = 12 * MB, kv: int = 1024) -> ModelGraph:
    units = (
        Unit("embedding", "embedding", 0.0, 0.0, head, 0, 8),
        *(Unit(f"{i}", "decoder", 1.0, 0.0, layer, kv, 8) for i in range(layers)),
        Unit("head", "head", 1.0, 0.0, head, 0, 0),
    )
    return ModelGraph("m", units, chain(len(units)), "float32", 4096, 4096)


def tiers(memory: int, accelerator: int = 0) -> Tiers:
    return Tiers(memory, 500e6, 250e6, 0, accelerator, 8e9)


@settings(max_examples=60, deadline=None)
@given(
    layers=st.integers(1, 12),
    layer=st.integers(1, 20),
    kv=st.integers(1, 64),
    memory=st.integers(30, 400),
    sequences=st.integers(1, 12),
)
def test_what_is_found_fits_and_is_no_worse_than_layerwise(
    layers: int, layer: int, kv: int, memory: int, sequences: int
) -> None:
    model = graph(layers, layer * MB, kv=kv * 1024)
    work, room = OffloadWork(sequences, 256), tiers(memory * MB)
    try:
        plain = layerwise(model, room, work)
    except Unplannable:
        plain = None
    try:
        policy, found = search(model, room, work, 0.001)
    except Unplannable:
        assert plain is None
        return
    assert memory_bytes(model, work, policy) == found.memory_bytes <= memory * MB
    assert 1 <= policy.batch <= sequences
    if plain is not None:
        other = price(model, room, work, plain, 0.001)
        assert found.sequences_per_s >= other.sequences_per_s * 0.99


def test_with_room_for_all_nothing_is_read() -> None:
    policy, found = search(graph(), tiers(400 * MB), OffloadWork(4, 128), 0.001)
    assert policy.resident == tuple(range(10))
    assert found.read_bytes == 0
    assert policy.batch == 4


def test_kv_goes_to_disk_where_memory_would_hold_few_answers() -> None:
    model = graph(kv=8 * 1024)
    work = OffloadWork(16, 512)
    policy, found = search(model, tiers(60 * MB), work, 0.0001)
    in_ram = OffloadPolicy(policy.resident, (), policy.staging, "ram", 1)
    assert policy.kv == "disk"
    assert policy.batch > 2
    assert (
        found.sequences_per_s > price(model, tiers(60 * MB), work, in_ram, 0.0001).sequences_per_s
    )


def test_weights_are_read_once_a_pass_and_not_the_embedding() -> None:
    model = graph(layers=3)
    policy = OffloadPolicy((1,), (), 2, "ram", 1)
    assert streamed_units(model, policy) == (2, 3, 4)
    found = price(model, tiers(100 * MB), OffloadWork(1, 64), policy, 0.0)
    assert found.read_bytes == 2 * 10 * MB + 12 * MB
    assert found.pass_s == pytest.approx(found.read_bytes / 500e6)


def test_reading_ahead_hides_the_shorter_of_reading_and_computing() -> None:
    model = graph(layers=3)
    work = OffloadWork(1, 64)
    ahead = price(model, tiers(100 * MB), work, OffloadPolicy((), (), 2, "ram", 1), 0.05)
    after = price(model, tiers(100 * MB), work, OffloadPolicy((), (), 1, "ram", 1), 0.05)
    assert after.pass_s == pytest.approx(ahead.pass_s + 0.05)


def test_an_accelerator_holds_what_it_can_and_ram_the_rest() -> None:
    policy, _ = search(graph(), tiers(60 * MB, accelerator=35 * MB), OffloadWork(1, 64), 0.001)
    assert len(policy.resident) >= 2
    assert policy.pinned
    assert not set(policy.resident) & set(policy.pinned)


def test_too_little_memory_names_what_would_do() -> None:
    with pytest.raises(Unplannable) as caught:
        search(graph(), tiers(5 * MB), OffloadWork(1, 64), 0.001)
    nearest = int(caught.value.nearest.split()[3])
    search(graph(), tiers(nearest), OffloadWork(1, 64), 0.001)
    with pytest.raises(Unplannable):
        search(graph(), tiers(nearest - 4096), OffloadWork(1, 64), 0.001)
