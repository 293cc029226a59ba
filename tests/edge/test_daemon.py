"""The daemon over a real cloud: one text whatever the placement, and nothing left behind."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from outrider.engine import EngineSpec
from outrider.engines.fake import FakeEngine, vocabulary
from outrider.errors import (
    CloudUnreachable,
    ContextExceeded,
    HandshakeRefused,
    InvalidRequest,
    NotFound,
    OutriderError,
    Overloaded,
)
from outrider.options import Address
from outrider.protocol import events
from outrider.protocol.stream import Done, Forked, Started, Token, Waiting
from tests.support import (
    DRAFT,
    GREEDY,
    SAMPLED,
    Answered,
    EdgeUnderTest,
    ask,
    cloud,
    edge,
    expected,
    run,
    until,
)

NOBODY = Address("127.0.0.1", 9)
"""A port of loopback at which nothing listens."""


# --- one text ----------------------------------------------------------------------------------


def test_one_text_for_every_placement_and_sampling(tmp_path: Path) -> None:
    async def main() -> None:
        async with cloud(tmp_path) as c, edge(c.address) as e:
            for sampling in (GREEDY, SAMPLED):
                request = ask(sampling=sampling, n=3, max_tokens=40)
                for placement in ("cloud", "draft", "auto"):
                    request = ask(sampling=sampling, n=3, max_tokens=40, placement=placement)
                    found = await e.answer(request)
                    found.check()
                    for choice in range(3):
                        assert found.ids(choice) == expected(request, choice)
                        done = found.done(choice)
                        assert (done.exact, done.mixed_from) == (True, None)
                        assert done.finish_reason == "length" and done.completion_tokens == 40
                        assert done.prefill_ms > 0.0, "the cloud's account came"
            assert e.kinds(events.HintSent), "drafts were sent"

    run(main())


def test_what_is_said_comes_in_order(tmp_path: Path) -> None:
    async def main() -> None:
        async with cloud(tmp_path) as c, edge(c.address) as e:
            found = await e.answer(ask(n=2, max_tokens=10, seed=99))
            kinds = [type(event) for event in found.events]
            assert kinds[:2] == [Started, Started] and kinds[-2:] == [Done, Done]
            for started in found.of(Started):
                assert (started.model, started.placement, started.seed) == ("t", "draft", "99")
                assert started.exact and started.prompt_tokens == len("The rider goes ahead")
                assert started.numeric_class == c.verifier.engine.info.numeric_class

    run(main())


def test_a_seed_that_was_not_given_is_returned_and_makes_the_text_again(tmp_path: Path) -> None:
    async def main() -> None:
        async with cloud(tmp_path) as c, edge(c.address) as e:
            first = await e.answer(ask(seed=None, max_tokens=30))
            other = await e.answer(ask(seed=None, max_tokens=30))
            seeds = [int(each.of(Started)[0].seed) for each in (first, other)]
            assert seeds[0] != seeds[1] and max(seeds) > 2**64
            assert first.ids() != other.ids()
            again = await e.answer(ask(seed=seeds[0], max_tokens=30))
            assert again.ids() == first.ids() == expected(ask(seed=seeds[0], max_tokens=30))

    run(main())


def test_stop_strings_cut_the_text_and_the_tokens_thrown_away_are_reported(
    tmp_path: Path,
) -> None:
    async def main() -> None:
        async with cloud(tmp_path) as c, edge(c.address) as e:
            whole = bytes(expected(ask(max_tokens=40))).decode("latin-1")
            stop = whole[20:23]
            request = ask(max_tokens=40, stop=(stop,))
            found = await e.answer(request)
            assert found.ids() == expected(request)
            assert found.done().finish_reason == "stop"
            assert stop not in found.text() and whole.startswith(found.text())

    run(main())


def test_logprobs_come_with_every_token(tmp_path: Path) -> None:
    async def main() -> None:
        async with cloud(tmp_path) as c, edge(c.address) as e:
            found = await e.answer(ask(max_tokens=12, top_logprobs=2, sampling=GREEDY))
            assert found.ids() == expected(ask(max_tokens=12, sampling=GREEDY))
            for token in found.tokens():
                assert token.logprob is not None and token.logprob <= 0.0
                assert len(token.top_logprobs) == 2
                assert token.top_logprobs[0].id == token.id, "greedy takes the best"

    run(main())


@pytest.mark.parametrize(
    "draft",
    [
        None,
        EngineSpec(model="draft", engine="fake", options=(("world", "another"),)),
        EngineSpec(model="draft", engine="fake", context=64),
        EngineSpec(
            model="ngram",
            engine="ngram",
            options=(("size", "257"), ("digest", vocabulary().digest)),
        ),
    ],
    ids=["none", "never right", "a short context", "n-gram"],
)
def test_a_drafter_that_helps_little_or_not_at_all_changes_nothing(
    tmp_path: Path, draft: EngineSpec | None
) -> None:
    async def main() -> None:
        async with cloud(tmp_path) as c, edge(c.address, draft=draft) as e:
            request = ask(max_tokens=90)
            found = await e.answer(request)
            assert found.ids() == expected(request)
            assert found.done().exact

    run(main())


def test_hints_stop_where_the_drafts_context_ends_and_the_answer_goes_on(tmp_path: Path) -> None:
    short = EngineSpec(model="draft", engine="fake", context=50)

    async def main() -> None:
        async with cloud(tmp_path) as c, edge(c.address, draft=short, hint_depth=4) as e:
            request = ask(max_tokens=80)
            found = await e.answer(request)
            assert found.ids() == expected(request)
            sent = [hint.base + hint.tokens for hint in e.kinds(events.HintSent)]
            assert sent and max(sent) + len("The rider goes ahead") <= 50

    run(main())


def test_a_drafter_that_fails_costs_hints_alone(tmp_path: Path) -> None:
    class Broken(FakeEngine):
        def _pass(self, spans: Any) -> Any:
            raise RuntimeError("the library gave up")

    async def main() -> None:
        build = lambda: Broken(DRAFT)  # noqa: E731
        async with cloud(tmp_path) as c, edge(c.address, build=build) as e:
            found = await e.answer(ask(max_tokens=30, placement="draft"))
            assert found.ids() == expected(ask(max_tokens=30))
            assert not e.kinds(events.HintSent)

    run(main())


# --- placement ---------------------------------------------------------------------------------


def test_a_draft_of_another_vocabulary_is_refused_by_name_and_auto_takes_the_cloud(
    tmp_path: Path,
) -> None:
    class Foreign(FakeEngine):
        @property
        def info(self) -> Any:
            from dataclasses import replace

            return replace(super().info, vocabulary_digest="feedfacefeed")

    async def main() -> None:
        build = lambda: Foreign(DRAFT)  # noqa: E731
        async with cloud(tmp_path) as c, edge(c.address, build=build) as e:
            with pytest.raises(InvalidRequest, match="no draft model") as found:
                await e.answer(ask(placement="draft"))
            assert "feedfacefeed" in found.value.why
            answer = await e.answer(ask(max_tokens=20))
            assert answer.of(Started)[0].placement == "cloud"
            assert answer.ids() == expected(ask(max_tokens=20))

    run(main())


def test_the_small_model_answers_alone_where_it_is_asked_and_says_so(tmp_path: Path) -> None:
    async def main() -> None:
        async with edge(NOBODY) as e:
            found = await e.answer(ask(placement="edge", n=2, max_tokens=20))
            found.check()
            for choice in (0, 1):
                done = found.done(choice)
                assert (done.exact, done.mixed_from, done.completion_tokens) == (False, 0, 20)
                assert {token.source for token in found.tokens(choice)} == {"edge"}
            assert found.of(Started)[0].model == "d"

    run(main())


@pytest.mark.parametrize(
    ("changes", "kind", "words"),
    [
        ({"placement": "edge", "exact_required": True}, InvalidRequest, "not the target's"),
        ({"model": "nobody"}, NotFound, "no such model"),
        ({"max_tokens": 5000}, ContextExceeded, "4096"),
        ({"prompt": "x" * 5000}, ContextExceeded, "5000"),
        ({"prompt": (1, 999)}, InvalidRequest, "0 to 256"),
        ({"prompt": ""}, InvalidRequest, "empty"),
    ],
)
def test_what_can_not_be_done_is_refused_before_the_first_event(
    tmp_path: Path, changes: dict[str, Any], kind: type[OutriderError], words: str
) -> None:
    async def main() -> None:
        async with cloud(tmp_path) as c, edge(c.address) as e:
            with pytest.raises(kind, match=words):
                await e.answer(ask(**changes))
            assert not e.daemon.running and not c.opened()

    run(main())


# --- queue and hang-up -------------------------------------------------------------------------


async def _first(e: EdgeUnderTest, count: int, **changes: Any) -> Any:
    """A request that was read up to its first `count` tokens."""
    answer = e.daemon.generate(ask(max_tokens=2000, **changes))
    seen = 0
    async for event in answer:
        seen += isinstance(event, Token)
        if seen == count:
            return answer
    raise AssertionError("it ended early")


def test_over_the_queue_limit_a_request_is_told_when_to_come_back(tmp_path: Path) -> None:
    async def main() -> None:
        limits: dict[str, Any] = {"max_running": 1, "max_queue": 1}
        async with cloud(tmp_path) as c, edge(c.address, **limits) as e:
            running = await _first(e, 3)
            waiting = asyncio.create_task(e.answer(ask(max_tokens=5)))
            await until(lambda: e.daemon.status().requests_queued == 1)
            with pytest.raises(Overloaded) as found:
                await e.answer(ask(max_tokens=5))
            assert found.value.retry_after_s > 0
            assert len(e.kinds(events.Shed)) == 1
            await running.aclose()
            assert (await waiting).ids() == expected(ask(max_tokens=5))

    run(main())


@pytest.mark.parametrize("placement", ["cloud", "draft"])
def test_a_hang_up_frees_the_cloud_and_the_drafter_at_once(tmp_path: Path, placement: str) -> None:
    async def main() -> None:
        async with cloud(tmp_path, session_ttl_s=600.0) as c, edge(c.address) as e:
            answer = await _first(e, 20, placement=placement, n=2)
            await answer.aclose()
            await c.settled()
            small = e.daemon.small
            assert small is not None and not small.drafter.lanes
            async with asyncio.timeout(10):
                while (await small.drafter.engine.statistics()).slots_open:
                    await asyncio.sleep(0.005)
            assert not e.daemon.running
            closed = [x for x in c.published if isinstance(x, events.SessionClosed)]
            assert [each.reason for each in closed] == ["closed"]

    run(main())


def test_hang_ups_one_after_the_other_leave_nothing(tmp_path: Path) -> None:
    async def main() -> None:
        async with cloud(tmp_path, session_ttl_s=600.0) as c, edge(c.address) as e:
            for count in range(1, 12):
                await (await _first(e, count)).aclose()
            await c.settled()
            assert (await e.answer(ask(max_tokens=10))).ids() == expected(ask(max_tokens=10))

    run(main())


def test_many_answers_at_a_time_share_cloud_and_drafter(tmp_path: Path) -> None:
    async def main() -> None:
        async with cloud(tmp_path) as c, edge(c.address) as e:
            requests = [ask(f"rider {n}", seed=n, max_tokens=25) for n in range(12)]
            found = await asyncio.gather(*(e.answer(request) for request in requests))
            for request, each in zip(requests, found, strict=True):
                each.check()
                assert each.ids() == expected(request)

    run(main())


def test_an_answer_can_be_read_again_from_a_position(tmp_path: Path) -> None:
    async def main() -> None:
        async with cloud(tmp_path) as c, edge(c.address) as e:
            found = await e.answer(ask(max_tokens=20))
            again = Answered([x async for x in e.daemon.attach(found.of(Started)[0].request, [5])])
            assert [token.position for token in again.tokens()] == list(range(5, 20))
            assert again.ids() == found.ids()[5:]
            assert again.done() == found.done()
            with pytest.raises(NotFound):
                _ = [x async for x in e.daemon.attach("nothing", [0])]

    run(main())


# --- clouds ------------------------------------------------------------------------------------


def test_without_a_cloud_it_answers_locally_labelled_and_with_the_cloud_once_it_is_there(
    tmp_path: Path,
) -> None:
    async def main() -> None:
        async with cloud(tmp_path) as first:
            place = first.address
        async with edge(place, watching=True) as e:
            found = await e.answer(ask(max_tokens=15))
            assert found.of(Started)[0].placement == "edge"
            assert (found.done().exact, found.done().mixed_from) == (False, 0)
            refusals: tuple[dict[str, Any], ...] = ({"fallback": "wait"}, {"exact_required": True})
            for refusing in refusals:
                with pytest.raises(CloudUnreachable):
                    await e.answer(ask(max_tokens=15, **refusing))
            async with cloud(tmp_path, listen=place) as second:
                await until(lambda: e.daemon.link.connected() is not None)
                found = await e.answer(ask(max_tokens=15))
                assert found.of(Started)[0].placement == "draft"
                assert found.ids() == expected(ask(max_tokens=15)) and found.done().exact
                assert len(second.opened()) == 1

    run(main())


def test_clouds_are_tried_in_order(tmp_path: Path) -> None:
    async def main() -> None:
        async with (
            cloud(tmp_path / "1") as first,
            cloud(tmp_path / "2") as second,
            edge(NOBODY, first.address, second.address) as e,
        ):
            assert (await e.answer(ask(max_tokens=8))).ids() == expected(ask(max_tokens=8))
            assert (len(first.opened()), len(second.opened())) == (1, 0)

    run(main())


def test_a_cloud_that_does_not_serve_the_model_is_passed_over(tmp_path: Path) -> None:
    from outrider.options import NamedModel

    async def main() -> None:
        other = {"models": (NamedModel("other", "other"),)}
        async with (
            cloud(tmp_path / "1", **other) as first,
            cloud(tmp_path / "2") as second,
            edge(first.address, second.address) as e,
        ):
            for peer in e.daemon.link.peers:
                assert await e.daemon.link.check(peer)
            assert (await e.answer(ask(model="t", max_tokens=8))).ids() == expected(
                ask(max_tokens=8)
            )
            assert (len(first.opened()), len(second.opened())) == (0, 1)

    run(main())


async def _moved(
    tmp_path: Path, other: str, **changes: Any
) -> tuple[Answered, OutriderError | None, str]:
    """An answer whose cloud is killed in the middle, with a second cloud at hand."""
    from outrider.options import NamedModel

    second_model = {"models": (NamedModel("t", other),)}
    found, error = Answered(), None
    async with cloud(tmp_path / "2", **second_model) as second:
        async with cloud(tmp_path / "1") as first:
            async with edge(first.address, second.address) as e:
                for peer in e.daemon.link.peers:
                    await e.daemon.link.check(peer)
                try:
                    async for event in e.daemon.generate(ask(max_tokens=120, **changes)):
                        found.events.append(event)
                        if len(found.tokens()) == 20:
                            await first.running.server.stop(None)
                            first.verifier.sessions.clear()
                            found.events.append(Waiting(reason="struck"))
                except OutriderError as refused:
                    error = refused
            # The struck cloud is not looked at any more.
            first.verifier.engine._child.kill()  # type: ignore[attr-defined]
            await until(lambda: not first.verifier.engine.alive)
        return found, error, second.verifier.engine.info.numeric_class


def test_when_its_cloud_is_killed_an_answer_goes_on_at_the_next_with_the_same_text(
    tmp_path: Path,
) -> None:
    async def main() -> None:
        found, error, _ = await _moved(tmp_path, "fake")
        assert error is None
        found.check()
        assert found.ids() == expected(ask(max_tokens=120))
        assert found.done().exact and found.done().class_changed_at == ()

    run(main())


def test_going_on_under_another_class_is_labelled(tmp_path: Path) -> None:
    async def main() -> None:
        found, error, _ = await _moved(tmp_path, "fake-of-another-class")
        assert error is None
        found.check()
        [changed] = found.done().class_changed_at
        assert 20 <= changed < 120
        assert not found.done().exact
        assert found.ids()[:changed] == expected(ask(max_tokens=120))[:changed]
        assert len(found.ids()) == 120

    run(main())


def test_another_class_is_refused_where_exactness_is_required(tmp_path: Path) -> None:
    async def main() -> None:
        found, error, theirs = await _moved(tmp_path, "fake-of-another-class", exact_required=True)
        assert isinstance(error, HandshakeRefused) and theirs in error.why
        assert found.ids() == expected(ask(max_tokens=120))[: len(found.ids())]
        assert not found.of(Forked)

    run(main())
