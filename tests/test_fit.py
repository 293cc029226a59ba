"""`fit` measures what it says: on engines whose agreement is known, and on the bundled pair."""

from __future__ import annotations

import itertools
import json

import pytest

from outrider import fit
from outrider.cli import app
from outrider.engine import EngineSpec
from outrider.engines.fake import FakeEngine, vocabulary
from outrider.errors import ConfigError
from outrider.protocol.sampling import GREEDY, Sampling
from outrider.protocol.vocabulary import Vocabulary


def model(name: str, agreement: float = 1.0, words: Vocabulary | None = None) -> fit.Model:
    engine = FakeEngine(EngineSpec(model=name, engine="fake", max_rows=32), agreement=agreement)
    return fit.Model(engine, words or vocabulary(), lambda text: tuple(text.encode()))


def ticks() -> fit.Clock:
    """Each look at the clock is two milliseconds later."""
    counter = itertools.count()
    return lambda: next(counter) * 0.002


def compare(small: fit.Model, large: fit.Model) -> fit.Fit:
    return fit.compare(small, large, tokens=40, clock=ticks())


def test_twins_agree_on_everything() -> None:
    found = compare(model("a"), model("b"))
    assert found.acceptance_rate == 1.0
    assert [run.rate for run in found.agreements] == [1.0] * 4
    assert found.overlap.same_digest
    for run in found.agreements:
        # Forty places in passes of nine tokens make five passes, the last one short.
        assert run.acceptance_length["8"] == 8.0
    for one in (found.draft_step_ms, found.target_step_ms):
        assert one == pytest.approx(2.0)


@pytest.mark.parametrize("agreement", [0.25, 0.75])
def test_known_agreement_is_found(agreement: float) -> None:
    found = compare(model("a", agreement), model("b"))
    assert found.acceptance_rate == pytest.approx(agreement, abs=0.12)
    assert found.verdict == ("poor" if agreement < fit.USABLE else "usable")


def test_both_ways_of_sampling_are_coupled() -> None:
    """Strangers agree by chance alone: without the shared noise sampled twins would not either."""
    found = compare(model("a", 0.0), model("b"))
    assert found.acceptance_rate is not None and found.acceptance_rate < 0.2


def test_all_of_the_targets_answer_is_followed_in_several_passes() -> None:
    """Chains longer than a pass holds are cut; every place is still compared once."""
    small, large = model("a"), model("b")
    sampling = Sampling(GREEDY, 0, 0, 100)
    prompt = tuple(b"x" * 100)
    said = fit.answer(large, prompt, sampling, 50, ticks())
    assert fit.follow(small, prompt, said, sampling, ticks()) == list(said)
    assert small.engine.statistics().slots_open == large.engine.statistics().slots_open == 0


@pytest.mark.parametrize(
    ("matches", "depth", "length"),
    [
        ([True] * 10, 4, 5.0),
        ([False] * 10, 4, 1.0),
        ([True, False] * 5, 4, 2.0),
        ([True, True, False], 1, 1.5),
        ([], 4, 1.0),
    ],
)
def test_acceptance_length(matches: list[bool], depth: int, length: float) -> None:
    assert fit.acceptance_length(matches, depth) == length


def other(tokens: tuple[bytes, ...]) -> Vocabulary:
    return Vocabulary(tokens, special=frozenset(), bos=None, end=())


def test_foreign_vocabularies_are_refused_with_figures() -> None:
    table = vocabulary().tokens
    swapped = other((*table[:128], *reversed(table[128:256])))
    found = compare(model("a", words=swapped), model("b"))
    assert (found.verdict, found.agreements, found.acceptance_rate) == ("unusable", (), None)
    assert found.overlap.same_ids == pytest.approx(128 / 257)
    assert found.overlap.same_bytes == pytest.approx(256 / 257)
    assert "--draft ngram" in found.advice[-1]


def test_a_draft_that_is_no_faster_is_not_good() -> None:
    shared = fit.overlap(vocabulary(), vocabulary())
    runs = compare(model("a"), model("b")).agreements
    assert fit.judge(shared, runs, 0.9, 2.0, 20.0)[0] == "good"
    verdict, advice = fit.judge(shared, runs, 0.9, 20.0, 20.0)
    assert verdict == "usable"
    assert any("no faster" in sentence for sentence in advice)


def test_lengths_that_can_not_be_measured() -> None:
    spec = EngineSpec(model="x", engine="fake")
    with pytest.raises(ConfigError):
        fit.measure(spec, spec, tokens=7)


def test_the_verb(capsys: pytest.CaptureFixture[str]) -> None:
    engines = ("--draft-engine", "fake", "--target-engine", "fake", "--tokens", "8")
    assert app.run(("fit", "a", "b", *engines, "--json")) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["schema"], found["draft"], found["acceptance_rate"]) == (1, "a", 1.0)
    assert app.run(("fit", "a", "b", *engines)) == 0
    out = capsys.readouterr().out
    assert "a drafts for b" in out and "verdict: " in out


def test_the_bundled_pair() -> None:
    pytest.importorskip("torch", reason="the target needs torch")
    specs = [
        EngineSpec(model=f"bundled:{name}", engine="torch", numerics="plain", threads=1)
        for name in ("draft", "target")
    ]
    found = fit.measure(*specs, tokens=8)
    assert found.overlap.same_digest
    assert found.acceptance_rate is not None and found.acceptance_rate >= 0.3
