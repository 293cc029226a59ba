"""The attacks work on what is plain, and find nothing in what is sealed."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator

import numpy as np
import pytest

from outrider.privacy.leak import invert
from outrider.privacy.leak.fingerprint import accuracy, common, filled
from outrider.privacy.leak.invert import Map
from outrider.privacy.leak.replica import Replica

needs_torch = pytest.mark.skipif(
    importlib.util.find_spec("torch") is None, reason="the adversary computes with torch"
)
SECRET = (812, 93, 1500, 4000, 7)


@pytest.fixture(scope="module")
def replica() -> Iterator[Replica]:
    with Replica("bundled:draft", 1, 1) as found:
        yield found


@needs_torch
def test_candidates_find_every_token(replica: Replica) -> None:
    seen = replica.read(0, SECRET)
    for view in (invert.hidden_view, invert.kv_view(0), invert.sorted_kv(0)):
        assert invert.match(replica, view(seen), view) == SECRET


@needs_torch
def test_only_sorting_looks_past_a_permutation(replica: Replica) -> None:
    order = np.random.default_rng(3).permutation(256)
    seen = replica.read(0, SECRET).hidden[:3]
    plain = invert.match(replica, seen[:, order], invert.hidden_view)
    assert invert.recovered(plain, SECRET[:3]) < 0.5
    permuted = np.sort(seen[:, order], -1)
    found = invert.match(replica, permuted, invert.sorted_hidden, most=None)
    assert found == SECRET[:3]


@needs_torch
def test_noise_gives_nothing_away(replica: Replica) -> None:
    view = invert.kv_view(0)
    noise = np.random.default_rng(4).normal(size=view(replica.read(0, SECRET)).shape)
    found = invert.match(replica, noise[:2].astype(np.float32), view)
    assert invert.recovered(found, SECRET[:2]) == 0


@needs_torch
def test_a_candidate_is_computed_in_its_context(replica: Replica) -> None:
    whole = replica.read(0, SECRET)
    replica.read(0, SECRET[:4])
    guessed = replica.guess(4, (SECRET[4], 5))
    np.testing.assert_allclose(guessed.hidden[0], whole.hidden[4], atol=1e-4)
    np.testing.assert_allclose(guessed.kv[:, :, :, 0], whole.kv[:, :, :, 4], atol=1e-4)
    assert np.abs(guessed.hidden[1] - whole.hidden[4]).max() > 0.01


def test_a_linear_map_is_learnt_from_other_tokens() -> None:
    random = np.random.default_rng(5)
    table = random.normal(size=(64, 16)).astype(np.float32)
    mixed = table @ random.normal(size=(16, 16)).astype(np.float32) + 3.0
    learnt = Map.learn(mixed[:48].astype(np.float32), range(48), table)
    assert invert.recovered(learnt.invert(mixed[48:].astype(np.float32)), range(48, 64)) > 0.8


# --- fingerprints ------------------------------------------------------------------------------


def cases(prompts: int = 12, runs: int = 3) -> tuple[np.ndarray, np.ndarray]:
    return np.tile(np.arange(prompts), runs), np.repeat(np.arange(runs), prompts)


def test_sizes_that_follow_the_prompt_are_recognised() -> None:
    labels, runs = cases()
    random = np.random.default_rng(6)
    telling = labels[:, None] * 100.0 + random.normal(size=(len(labels), 1))
    noise = random.normal(size=(len(labels), 30))
    found = accuracy(np.concatenate([noise, telling], 1), labels, runs)
    assert found.best == max(found.nearest, found.trees) > 0.9


def test_trees_find_what_no_distance_shows() -> None:
    labels, runs = cases(2, 8)
    random = np.random.default_rng(7)
    sign = random.choice([-1.0, 1.0], len(labels))
    telling = np.where(labels == 0, sign * 5, random.uniform(-1, 1, len(labels)))
    assert accuracy(telling[:, None], labels, runs).trees > 0.8


def test_equal_sizes_tell_nothing() -> None:
    labels, runs = cases(20, 3)
    constant = accuracy(np.full((60, 8), 53.0), labels, runs)
    assert constant.best <= 1 / 20
    noise = np.random.default_rng(8).normal(size=(60, 8))
    assert accuracy(noise, labels, runs).best < 0.25


def test_one_run_is_not_enough() -> None:
    with pytest.raises(ValueError, match="another"):
        accuracy(np.zeros((3, 1)), np.arange(3), np.zeros(3, dtype=np.intp))


def test_the_number_is_withheld_or_shown() -> None:
    rows = [[1.0, 2.0, 3.0], [4.0, 5.0]]
    assert common(rows, 8).tolist() == [[1, 2], [4, 5]]
    assert common(rows, 1).tolist() == [[1], [4]]
    assert filled(rows, 4).tolist() == [[1, 2, 3, 0], [4, 5, 0, 0]]
