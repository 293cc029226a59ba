"""An engine on a budget gives the same text as one with all its weights in memory."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from unittest.mock import patch

import pytest

pytest.importorskip("torch", reason="needs the extra `torch`")

import numpy as np

from outrider.engine import EngineSpec, Span
from outrider.engines import registry
from outrider.engines.torch.blobs import Buffer
from outrider.engines.torch.engine import TorchEngine
from outrider.engines.torch.offload import parse_size
from outrider.engines.torch.tiered import TieredEngine
from outrider.errors import ConfigError, Unplannable
from outrider.partitioner.offload import OffloadPolicy

CONTEXT = 192
PROMPTS = (tuple(range(5, 60)), tuple(range(100, 199)), (7, 8, 9))
POLICIES = {
    "all streamed, read when asked": OffloadPolicy((), (), 1, "ram", 4),
    "all streamed, read ahead": OffloadPolicy((), (), 2, "ram", 4),
    "some resident": OffloadPolicy((2, 3, 7), (), 3, "ram", 4),
    "pinned": OffloadPolicy((1,), (2, 7), 2, "ram", 4),
    "KV on disk": OffloadPolicy((), (), 2, "disk", 4),
    "only KV on disk": OffloadPolicy(tuple(range(8)), (), 1, "disk", 4),
}


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path_factory.getbasetemp() / "blob-cache"
    monkeypatch.setenv("OUTRIDER_CACHE", str(folder))


def spec(*options: tuple[str, str], slots: int = 4) -> EngineSpec:
    return EngineSpec(
        "bundled:target", "torch", "cpu", context=CONTEXT, max_slots=slots, options=options
    )


@pytest.fixture(scope="module")
def plain() -> Iterator[TorchEngine]:
    engine = registry.build(spec())
    assert isinstance(engine, TorchEngine)
    yield engine
    engine.shutdown()


def tiered(policy: OffloadPolicy, memory: str = "20M") -> TieredEngine:
    """Below 22 MB the weights are kept as they are stored, in float16, and widened when used."""
    with patch("outrider.engines.torch.tiered.choose", lambda *_: policy):
        engine = registry.build(spec(("memory", memory)))
    assert isinstance(engine, TieredEngine)
    return engine


def ride(engine: TorchEngine, prompts: Sequence[tuple[int, ...]]) -> list[list[int]]:
    """Greedy answers in one company, with hints that fail and rewinds over pages and blocks."""
    slots = [engine.open() for _ in prompts]
    picked = engine.extend([Span(s, 0, p, len(p) - 1) for s, p in zip(slots, prompts, strict=True)])
    answers = [[found.ids[0]] for found in picked]
    for turn in range(24):
        wrong = (1, 2, 3, 4, 5, 6, 7) if turn % 5 == 2 else ()
        spans = [
            Span(s, len(p) + turn, (a[-1], *wrong))
            for s, p, a in zip(slots, prompts, answers, strict=True)
        ]
        for answer, found in zip(answers, engine.extend(spans), strict=True):
            answer.append(found.ids[0])
    for slot in slots:
        engine.close(slot)
    return answers


@pytest.mark.parametrize("name", POLICIES)
def test_the_text_is_the_same_wherever_weights_and_kv_lie(name: str, plain: TorchEngine) -> None:
    engine = tiered(POLICIES[name])
    assert engine.info.exact
    # Twice: slots are used again, and what lay in them before must not show.
    for prompts in (PROMPTS, PROMPTS[::-1]):
        assert ride(engine, prompts) == ride(plain, prompts)
    engine.check_integrity()
    engine.shutdown()


def test_weights_that_fit_as_they_are_computed_with_are_not_widened(plain: TorchEngine) -> None:
    wide = tiered(POLICIES["some resident"], "64M")
    narrow = tiered(POLICIES["some resident"])
    assert wide.traffic().weights_bound > 1.9 * narrow.traffic().weights_bound
    assert ride(wide, PROMPTS) == ride(narrow, PROMPTS) == ride(plain, PROMPTS)
    wide.shutdown()
    narrow.shutdown()


@pytest.mark.parametrize("name", ["all streamed, read ahead", "KV on disk"])
def test_each_layer_is_read_once_a_pass(name: str) -> None:
    engine = tiered(POLICIES[name])
    before = engine.traffic()
    ride(engine, PROMPTS)
    after = engine.traffic()
    passes = after.passes - before.passes
    read = after.weights_read - before.weights_read
    assert passes == 25
    # At either moment some units of the next pass may have been read ahead.
    assert (passes - 1) * after.weights_bound < read < (passes + 1) * after.weights_bound
    assert (after.kv_read > 0) == (engine.policy.kv == "disk")
    engine.shutdown()


def test_kv_leaves_and_enters_wherever_it_lies(plain: TorchEngine) -> None:
    engine = tiered(POLICIES["KV on disk"])
    prompt = PROMPTS[1]
    here, there = engine.open(), plain.open()
    for each, slot in ((engine, here), (plain, there)):
        each.extend([Span(slot, 0, prompt, len(prompt) - 1)])
    segment = engine.export_kv(here, 3, 90)
    other = plain.export_kv(there, 3, 90)
    a, b = (np.frombuffer(part.data, dtype=np.float32) for part in (segment, other))
    assert np.abs(a - b).max() < 1e-4
    fresh = engine.open()
    engine.import_kv(fresh, engine.export_kv(here, 0, 90))
    picked = [
        engine.extend([Span(slot, 90, prompt[90:], len(prompt) - 91)])[0].ids
        for slot in (here, fresh)
    ]
    assert picked[0] == picked[1]
    plain.close(there)
    engine.shutdown()


def test_what_lies_on_disk_is_no_plain_kv_and_has_no_name(tmp_path: Path) -> None:
    engine = tiered(POLICIES["KV on disk"])
    slot = engine.open()
    engine.extend([Span(slot, 0, PROMPTS[1], len(PROMPTS[1]) - 1)])
    plain_bytes = engine.export_kv(slot, 0, 4).data[:64]
    disk = engine._disk
    assert disk is not None
    assert not disk.scratch.file.path.exists()
    size = os.fstat(disk.scratch.file._file).st_size
    buffer = Buffer(size)
    disk.scratch.file.read(buffer, 0, size // 4096 * 4096)
    assert plain_bytes not in bytes(buffer.view)
    engine.shutdown()


def test_too_small_a_budget_is_refused_with_the_size_that_would_do() -> None:
    with pytest.raises(Unplannable, match="memory"):
        registry.build(spec(("memory", "1M")))


@pytest.mark.parametrize(
    ("text", "size"), [("64M", 64 << 20), ("1.5G", 3 << 29), ("2GiB", 2 << 30), ("4096", 4096)]
)
def test_sizes_are_read_as_people_write_them(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "M", "-4M", "nan", "many", "1e400G"])
def test_what_is_no_size_is_an_error(text: str) -> None:
    with pytest.raises(ConfigError, match="no size"):
        parse_size(text)


def test_an_unknown_policy_is_an_error() -> None:
    with pytest.raises(ConfigError, match="offload policy"):
        registry.build(spec(("memory", "64M"), ("offload", "magic")))
