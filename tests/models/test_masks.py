"""Every way of picking keeps to a constraint: rows in any grouping, trees, and the torch twin."""

from __future__ import annotations

from random import Random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from outrider.engine import EngineSpec, Span
from outrider.engines import registry
from outrider.engines.base import BaseEngine
from outrider.engines.fake import END, SIZE, vocabulary
from outrider.engines.ngram import NgramEngine
from outrider.engines.slots import Slot, pick
from outrider.errors import EngineFailed, InvalidRequest, LocalProtocolError, UnsupportedParameter
from outrider.models import grammar
from outrider.models.grammar import Guide
from outrider.protocol.constraint import Constraint
from outrider.protocol.sampling import GREEDY, Sampling, SamplingParams, choose, masked, prepare

pytest.importorskip("llguidance", reason="masks need llguidance")

LETTERS = vocabulary()
REGEX = Constraint("regex", "[a-z]{2,4}(, ?[a-z]{2,4}){3,9}[.]")
PROMPT = tuple(b"words: ")
SAMPLINGS = (
    GREEDY,
    SamplingParams(),
    SamplingParams(temperature=0.7, top_p=0.9),
    SamplingParams(temperature=1.2, top_k=9, min_p=0.05),
    SamplingParams(
        temperature=0.8,
        repetition_penalty=1.3,
        frequency_penalty=0.5,
        logit_bias=((ord("("), 100.0), (ord("a"), 3.0)),
    ),
)


def grammar_of(constraint: Constraint = REGEX) -> grammar.Grammar:
    return grammar.grammars(LETTERS.digest, lambda: LETTERS).compile(constraint)


def slot(sampling: Sampling, tokens: tuple[int, ...]) -> Slot:
    return Slot(0, sampling, list(tokens), guide=Guide(grammar_of()))


def spoken(engine: BaseEngine, sampling: Sampling, most: int = 60) -> list[int]:
    """One row at a time."""
    number, rows, answer = engine.open(sampling), PROMPT, list[int]()
    while len(answer) < most and END not in answer:
        span = Span(number, engine.length(number), rows, len(rows) - 1)
        answer.append(engine.extend([span])[0].ids[0])
        rows = (answer[-1],)
    engine.close(number)
    return answer


def built(name: str, **options: str) -> BaseEngine:
    found = registry.build(EngineSpec(name, name, options=tuple(options.items())))
    assert isinstance(found, BaseEngine)
    return found


@pytest.mark.parametrize("params", SAMPLINGS)
def test_rows_of_a_pass_say_what_one_row_at_a_time_does(params: SamplingParams) -> None:
    """Behind the prompt, in the middle, with hints that hold and that are forbidden."""
    engine = built("fake")
    sampling = Sampling(params, 5, 0, len(PROMPT), REGEX)
    answer = spoken(engine, sampling)
    assert END in answer and 0 < len(bytes(answer[:-1]).split(b",")) <= 10
    number = engine.open(sampling)
    whole = (*PROMPT, *answer[:-1])
    assert engine.extend([Span(number, 0, whole, len(PROMPT) - 1)])[0].ids == tuple(answer)
    draw = Random(1)
    for _ in range(20):
        base = draw.randrange(1, len(whole))
        rows = [*whole[base : base + 5], *(draw.randrange(SIZE) for _ in range(3))]
        engine.extend([Span(number, 1, whole[1:], len(whole) - 2)])
        got = engine.extend([Span(number, base, tuple(rows))])[0].ids
        at = max(0, len(PROMPT) - 1 - base)
        known = answer[base + at - len(PROMPT) + 1 :][: len(whole[base : base + 5]) - at]
        assert list(got[at : at + len(known)]) == known


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from(SAMPLINGS), st.sampled_from(["smooth", "holes"]))
def test_the_torch_twin_chooses_alike(seed: int, params: SamplingParams, kind: str) -> None:
    torch = pytest.importorskip("torch")
    from outrider.engines.torch.sampling import pick_spans

    draw = np.random.default_rng(seed)
    sampling = Sampling(params, seed, 1, 3, REGEX)
    free = Sampling(params, seed, 2, 3)
    tokens, tail = tuple(b"ab:abc, de"), tuple(b", fg!")
    spans = [Span(0, len(tokens), tail), Span(1, 3, (7, 8))]
    scores = draw.normal(0, 4, (7, SIZE))
    if kind == "holes":
        scores[:, ::3] = -np.inf
    slots = [slot(sampling, tokens), Slot(1, free, [1, 2, 3])]
    want = [pick(spans[0], slots[0], scores[:5]), pick(spans[1], slots[1], scores[5:])]
    got = pick_spans(spans, slots, torch.from_numpy(scores))
    assert [p.ids for p in got] == [p.ids for p in want]
    children = [Span(0, len(tokens), tail, want="children", top_n=4)]
    assert (
        pick_spans(children, slots[:1], torch.from_numpy(scores[:5]))[0].children
        == pick(children[0], slots[0], scores[:5]).children
    )


def test_a_tree_follows_each_path_by_itself() -> None:
    sampling = Sampling(SamplingParams(), 3, 0, 0, REGEX)
    tokens = tuple(b"ab")
    scores = np.random.default_rng(4).normal(0, 3, (6, SIZE))
    span = Span(0, 2, tuple(b",c. d!"), parents=(None, 0, None, 0, 3, 1))
    found = pick(span, slot(sampling, tokens), scores).ids
    for row, path in enumerate((b",", b",c", b".", b", ", b", d", b",c!")):
        mask = Guide(grammar_of()).masks(tokens, [path])[0]
        place = len(tokens) + len(path)
        want = choose(prepare(scores[row], sampling, None, mask), sampling, place)
        assert found[row] == want


def test_the_mask_comes_after_the_bias_and_before_the_cuts() -> None:
    """A forbidden id takes no part in top-k and top-p, whatever its bias."""
    scores = np.zeros(SIZE)
    scores[ord("b")] = 2.0
    params = SamplingParams(top_k=1, logit_bias=((ord("("), 1000.0),))
    sampling = Sampling(params, 1, 0, 0, REGEX)
    assert pick(Span(0, 0, (ord("a"),)), slot(sampling, ()), scores[None]).ids == (ord("b"),)


def test_nothing_left_is_an_error_and_no_choice() -> None:
    with pytest.raises(EngineFailed, match="constraint"):
        masked(np.array([0.0, -np.inf]), np.array([False, True]))


def test_a_slot_is_not_opened_without_what_keeps_it() -> None:
    sampling = Sampling(GREEDY, 1, 0, 0, REGEX)
    with pytest.raises(LocalProtocolError):
        Slot(0, sampling)
    engine = built("ngram", size=str(SIZE), digest=LETTERS.digest)
    with pytest.raises(UnsupportedParameter) as caught:
        engine.open(sampling)
    assert caught.value.param == "response_format"
    fake = built("fake")
    with pytest.raises(InvalidRequest):
        fake.open(Sampling(GREEDY, 1, 0, 0, Constraint("regex", "(")))
    assert fake.statistics().slots_open == 0
    fake.check_integrity()


def test_an_ngram_drafter_proposes_what_is_allowed_and_what_is_forced() -> None:
    engine = built("ngram", size=str(SIZE), digest=LETTERS.digest)
    assert isinstance(engine, NgramEngine)
    engine.spell(lambda: LETTERS)
    number = engine.open(Sampling(GREEDY, 1, 0, 8, Constraint("regex", 'ab(cd|"x")ef')))
    picked = engine.extend([Span(number, 0, tuple(b"abzz abz") + tuple(b"abc"), 7)])[0]
    assert picked.proposes == (True, True, False, True)
    assert [picked.ids[i] for i in (0, 1, 3)] == [ord("a"), ord("b"), ord("d")]


ENGINES: dict[str, tuple[str, dict[str, Any]]] = {
    "torch": ("bundled:draft", {"numerics": "plain"}),
    "onnx": ("bundled:draft", {"numerics": "plain"}),
    "llama": ("bundled:draft", {"numerics": "plain"}),
}


@pytest.mark.parametrize("name", ENGINES)
def test_every_engine_keeps_to_it_and_reads_its_tables_alike(name: str) -> None:
    """Greedy as well, where a step has a shorter way."""
    if name not in registry.installed():
        pytest.skip(f"engine {name} is not installed")
    model, more = ENGINES[name]
    try:
        engine = registry.build(EngineSpec(model, name, max_slots=4, context=256, **more))
    except Exception as error:  # noqa: BLE001
        pytest.skip(f"{model} does not come for {name}: {type(error).__name__}")
    assert engine.info.masks == grammar.masks()
    from outrider.models import source
    from outrider.models import vocabulary as vocabularies

    words = vocabularies.load(source.resolve(model))
    constraint = Constraint("regex", "(def|class) [a-z]{1,6}[(][)]: (pass|return [0-9])")
    for params in (GREEDY, SamplingParams(temperature=1.0)):
        number, text = engine.open(Sampling(params, 3, 0, 4, constraint)), b""
        rows: tuple[int, ...] = (5, 6, 7, 8)
        for _ in range(40):
            found = engine.extend([Span(number, engine.length(number), rows, len(rows) - 1)])[0]
            rows = found.ids
            if rows[0] in words.end:
                break
            text += words.tokens[rows[0]]
        import re

        assert re.fullmatch(rb"(def|class) [a-z]{1,6}[(][)]: (pass|return [0-9])", text)
        engine.close(number)
    engine.shutdown()
