"""What the adapter adds to the contract: groups, room, exactness, moving KV."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from outrider.engine import EngineSpec, RowRule, Span
from outrider.engines import onnx
from outrider.engines.onnx import engine as adapter
from outrider.engines.onnx import probe
from outrider.engines.onnx.engine import OnnxEngine
from outrider.errors import ConfigError, ContextExceeded, LocalProtocolError
from outrider.protocol.sampling import GREEDY, Sampling, SamplingParams

SPEC = EngineSpec(
    model="bundled:draft", engine="onnx", device="cpu", context=64, max_slots=12, threads=1
)
PROMPT = (10, 45, 88, 120, 33, 7, 99)


@pytest.fixture(scope="module")
def exact() -> Iterator[OnnxEngine]:
    built = onnx.build(SPEC)
    yield built
    built.shutdown()


@pytest.fixture(scope="module")
def plain() -> Iterator[OnnxEngine]:
    built = onnx.build(replace(SPEC, numerics="plain"))
    yield built
    built.shutdown()


def continuation(engine: OnnxEngine, slot: int, count: int) -> list[int]:
    answer = list(engine.extend([Span(slot, 0, PROMPT, len(PROMPT) - 1)])[0].ids)
    while len(answer) < count:
        base = len(PROMPT) + len(answer) - 1
        answer += engine.extend([Span(slot, base, (answer[-1],))])[0].ids
    return answer


def test_plain_drafts_in_int8_and_exact_computes_in_float32(
    exact: OnnxEngine, plain: OnnxEngine
) -> None:
    assert (plain.info.dtype, plain.info.exact) == ("int8", False)
    assert (exact.info.dtype, exact.info.exact) == ("float32", True)
    assert exact.info.numeric_class != plain.info.numeric_class


def test_a_class_is_the_same_at_every_load(exact: OnnxEngine) -> None:
    again = onnx.build(SPEC)
    assert again.info == exact.info
    again.shutdown()


def test_slots_far_apart_do_not_touch_each_other(plain: OnnxEngine) -> None:
    """Idle slots between two rows are computed along; their KV must stay what it was."""
    slots = [plain.open() for _ in range(12)]
    expected = continuation(plain, slots[0], 8)
    for slot in slots:
        plain.extend([Span(slot, 0, PROMPT, len(PROMPT) - 1)])
    kept = plain.export_kv(slots[2], 0, len(PROMPT))
    for step in range(7):
        rows = [Span(s, len(PROMPT) + step, (expected[step],)) for s in (11, 0, 4, 1)]
        picked = plain.extend(rows)
        assert [p.ids[0] for p in picked] == [expected[step + 1]] * 4
    assert plain.export_kv(slots[2], 0, len(PROMPT)) == kept
    for slot in slots:
        plain.close(slot)


def test_the_last_place_of_a_slot_can_be_used(exact: OnnxEngine) -> None:
    """Padding rows find room behind the context."""
    slot, other = exact.open(), exact.open()
    exact.extend([Span(slot, 0, tuple([7] * 63), 62), Span(other, 0, (1,))])
    picked = exact.extend([Span(slot, 63, (9,)), Span(other, 1, (2,))])
    assert exact.length(slot) == 64
    again = exact.extend([Span(slot, 62, (7, 9), 1)])
    assert again[0].ids == picked[0].ids
    with pytest.raises(ContextExceeded):
        exact.extend([Span(slot, 64, (9,))])
    exact.close(slot)
    exact.close(other)


def test_a_bias_is_not_lost_on_the_greedy_path(plain: OnnxEngine) -> None:
    free = plain.open(Sampling(GREEDY, seed=0))
    first = plain.extend([Span(free, 0, PROMPT, len(PROMPT) - 1)])[0].ids[0]
    params = SamplingParams(temperature=0.0, logit_bias=((first, -50.0),))
    strict = plain.open(Sampling(params, seed=0))
    assert plain.extend([Span(strict, 0, PROMPT, len(PROMPT) - 1)])[0].ids[0] != first
    plain.close(free)
    plain.close(strict)


def test_padding_is_counted() -> None:
    engine = onnx.build(SPEC)
    assert engine.info.row_rule.minimum > 1
    slot = engine.open()
    engine.extend([Span(slot, 0, (5,))])
    found = engine.statistics()
    assert (found.rows, found.padded_rows) == (1, engine.info.row_rule.padded(1) - 1)
    engine.close(slot)


def test_the_probe_tells_a_rule_that_does_not_hold(plain: OnnxEngine) -> None:
    """Scores that lean on the number of rows, by a thousandth, are found out."""
    exact32 = onnx.build(replace(SPEC, dtype="float32", numerics="plain"))
    decoder = exact32._decoder
    assert probe.holds(decoder, 12, RowRule(minimum=2))
    scores = decoder.run
    decoder.run = lambda call: scores(call) + len(call.ids[0]) * 1e-3  # type: ignore[method-assign]
    assert not probe.holds(decoder, 12, RowRule(minimum=2))
    exact32.shutdown()


def test_exact_ends_with_the_first_mismatch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapter, "RECHECK_EVERY", 2)
    engine = onnx.build(SPEC)
    slot = engine.open()
    for at in range(6):
        engine.extend([Span(slot, at, (at + 3,))])
    assert engine.info.exact
    assert engine.statistics().recheck_mismatches == 0
    scores = engine._decoder.run
    monkeypatch.setattr(engine._decoder, "run", lambda call: scores(call) + len(call.ids[0]) * 1e-3)
    for at in range(6, 9):
        engine.extend([Span(slot, at, (at + 3,))])
    assert not engine.info.exact
    assert engine.statistics().recheck_mismatches == 1
    engine.close(slot)


def test_kv_has_the_canonical_layout_and_goes_on_in_the_middle(plain: OnnxEngine) -> None:
    slot, other = plain.open(), plain.open()
    expected = continuation(plain, slot, 9)
    length = plain.length(slot)
    start = plain.export_kv(slot, 0, 4)
    rest = plain.export_kv(slot, 4, length)
    assert start.shape == (2, 2, 2, 4, 64)
    assert not np.allclose(np.frombuffer(rest.data, dtype=np.float32), 0)
    plain.import_kv(other, start)
    plain.import_kv(other, rest)
    picked = plain.extend([Span(other, length - 1, (expected[-2],))])[0]
    assert picked.ids[0] == expected[-1]
    plain.close(slot)
    plain.close(other)


def test_kv_that_does_not_fit_is_refused(plain: OnnxEngine) -> None:
    slot, other = plain.open(), plain.open()
    continuation(plain, slot, 3)
    segment = plain.export_kv(slot, 0, 5)
    for wrong in (
        replace(segment, layout="opaque:llama"),
        replace(segment, dtype="int8"),
        replace(segment, shape=(2, 2, 2, 5, 32)),
        replace(segment, data=segment.data[:-4]),
        replace(segment, start=1, tokens=segment.tokens),
        replace(segment, tokens=segment.tokens[:-1]),
        replace(segment, tokens=(-1, *segment.tokens[1:])),
        replace(segment, tokens=(*segment.tokens[:-1], 10**6)),
    ):
        with pytest.raises(LocalProtocolError):
            plain.import_kv(other, wrong)
    assert plain.length(other) == 0
    with pytest.raises(LocalProtocolError):
        plain.export_kv(slot, 0, 60)
    plain.close(slot)
    plain.close(other)


@pytest.mark.parametrize(
    "change",
    [
        {"dtype": "float7"},
        {"device": "abacus"},
        {"device": "cuda"},
        {"options": (("speed", "9"),)},
    ],
)
def test_settings_that_can_not_work_are_refused(change: dict[str, object]) -> None:
    if change.get("device") == "cuda":
        pytest.importorskip("onnxruntime")
        from outrider.engines.onnx import provider

        if provider.runs(provider.CANDIDATES[0]):
            pytest.skip("CUDA runs here")
    with pytest.raises(ConfigError):
        onnx.build(replace(SPEC, **change))  # type: ignore[arg-type]
