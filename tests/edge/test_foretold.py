"""Predictions as drafts: the text stays the target's, and drafts of it are free and counted."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from outrider.edge.drafter import Lane
from outrider.edge.foretold import Foretold
from outrider.protocol.sampling import GREEDY as PLAIN
from outrider.protocol.sampling import Sampling
from tests.support import GREEDY, SAMPLED, ask, cloud, edge, expected, run


def lane(*tokens: int, text: tuple[int, ...]) -> Lane:
    made = Lane(Sampling(PLAIN, 0), list(tokens), lambda: None, foretold=Foretold(text))
    made.depth = 4
    made.foretell()
    return made


def test_it_follows_the_text() -> None:
    found = Foretold(range(10))
    assert found.ahead((), 3) == (0, 1, 2)
    assert found.ahead((0, 1), 2) == (2, 3)
    assert found.ahead((0, 7), 2) == ()
    found.follow(0)
    assert found.ahead((), 2) == (1, 2)


def test_behind_a_change_it_is_taken_up_again() -> None:
    found = Foretold((1, 2, 3, 4, 5, 6, 7, 8))
    for token in (1, 2, 99):
        found.follow(token)
    assert found.ahead((), 4) == ()
    for token in (4, 5, 6):
        found.follow(token)
    assert found.ahead((), 4) == (7, 8)


def test_of_several_places_the_next_one_is_taken() -> None:
    run_, found = (5, 6, 7), Foretold((5, 6, 7, 1, 0, 0, 5, 6, 7, 2, 0, 5, 6, 7, 3))
    for token in (5, 6, 7, 1, 99, *run_):
        found.follow(token)
    assert found.ahead((), 1) == (2,)


@given(st.lists(st.integers(0, 3), max_size=40), st.lists(st.integers(0, 3), max_size=40))
def test_whatever_is_foretold_stands_in_the_text(text: list[int], said: list[int]) -> None:
    found = Foretold(text)
    for token in said:
        found.follow(token)
        ahead = found.ahead((), 5)
        assert any(tuple(text[i : i + len(ahead)]) == ahead for i in range(len(text) + 1))


def test_a_lane_counts_what_held() -> None:
    made = lane(text=(1, 2, 3, 4, 5, 6))
    assert made.chain == [1, 2, 3, 4]
    made.commit((1, 2))
    made.foretell()
    assert (made.chain, made.foretold_right) == ([3, 4, 5, 6], 2)
    made.commit((9,))
    assert (made.chain, made.foretold_right, made.foretold_wrong) == ([], 2, 4)


def test_what_was_foretold_is_never_the_models_own() -> None:
    made = lane(text=(1, 2))
    made.chain.append(3)
    made.speak()
    assert (made.chain, made.foretold) == ([], None)


def predicted(placement: Any, sampling: Any, text: str) -> Any:
    request = ask(sampling=sampling, max_tokens=60, placement=placement)
    return replace(request, prediction=text)


def test_one_text_with_and_without_a_drafter(tmp_path: Path) -> None:
    async def main() -> None:
        async with cloud(tmp_path) as c:
            for small in (True, False):
                options: dict[str, Any] = {} if small else {"draft": None}
                async with edge(c.address, **options) as e:
                    for sampling in (GREEDY, SAMPLED):
                        plain = ask(sampling=sampling, max_tokens=60)
                        text = bytes(expected(plain, 0)).decode()
                        changed = text[:20] + "#" + text[21:]
                        last = await e.answer(predicted("auto", sampling, changed))
                        for prediction in (text, changed, "nothing like it"):
                            request = predicted("auto", sampling, prediction)
                            last = await asyncio.wait_for(e.answer(request), 30)
                            assert last.ids() == expected(plain, 0)
                        assert last.done().speculation.accepted_predicted_tokens == 0
                        request = predicted("auto", sampling, text)
                        counts = (await e.answer(request)).done().speculation
                        assert counts.accepted_predicted_tokens > 0

    run(main())


def test_logprobs_are_the_targets_whoever_foretold(tmp_path: Path) -> None:
    async def main() -> None:
        async with cloud(tmp_path) as c, edge(c.address) as e:
            base = ask(sampling=SAMPLED, max_tokens=40, top_logprobs=3)
            text = bytes(expected(base, 0)).decode()
            told = [
                [(token.id, token.logprob, token.top_logprobs) for token in found.tokens()]
                for request in (
                    replace(base, placement="cloud"),
                    replace(base, placement="draft"),
                    replace(base, prediction=text),
                )
                for found in [await e.answer(request)]
            ]
            assert told[0] == told[1] == told[2]

    run(main())


def test_a_pinned_cloud_gets_no_drafts(tmp_path: Path) -> None:
    async def main() -> None:
        async with cloud(tmp_path) as c, edge(c.address) as e:
            text = bytes(expected(ask(sampling=GREEDY, max_tokens=60), 0)).decode()
            found = await e.answer(predicted("cloud", GREEDY, text))
            counts = found.done().speculation
            assert (counts.sent_draft_tokens, counts.predicted_tokens) == (0, 0)

    run(main())
