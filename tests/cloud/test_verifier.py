"""The committer: whatever hints, company and failures there are, the text is the engine's own."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence

import pytest

from outrider.cloud import verifier as verifiers
from outrider.cloud.scheduler import Trigger
from outrider.cloud.session import Session
from outrider.engine import Span
from outrider.engines.fake import FakeEngine
from outrider.errors import EngineFailed, InvalidRequest
from outrider.protocol import events
from outrider.protocol.messages import Hint, Reason
from outrider.protocol.sampling import SamplingParams
from tests.cloud.making import PROMPT, Bench, Direct, Told, bench, session
from tests.support import GREEDY, SAMPLED, fake, plain, run, until


def own(made: Session, choice: int = 0) -> tuple[tuple[int, ...], Reason]:
    opening = made.open
    return plain(
        fake(),
        opening.prompt,
        opening.max_tokens,
        sampling=opening.sampling,
        seed=opening.seed,
        choice=choice,
        stop=opening.stop,
    )


def check(made: Session, told: Told) -> None:
    assert told.error is None
    for choice in made.choices:
        assert (told.ids(choice), told.reason(choice)) == own(made, choice)


async def drafting(b: Bench, made: Session, truth: Sequence[int], kind: str, seed: int) -> None:
    """A device's hints of one kind, until the session has ended."""
    rng = random.Random(seed)
    choice = made.choices[0]
    while made.key in b.verifier.sessions and kind != "silent":
        end = len(choice.committed)
        right = list(truth[end : end + 6])
        garbage = [rng.randrange(257) for _ in range(6)]
        tokens, base, seen = right, end, end
        if kind == "bad":
            tokens = garbage
        elif kind == "partial":
            tokens = right[: rng.randrange(4)] + garbage[:2]
        elif kind == "hostile":
            seen = rng.randrange(end + 1)
            base = seen + rng.choice((0, 0, 1, 7, 500))
            tokens = rng.choice((garbage, right, list(truth[:6]), []))
        choice.hear(Hint(1, 0, seen, base, tuple(tokens)), 0.0)
        b.verifier.wake()
        await asyncio.sleep(0)


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_many_sessions_say_what_the_engine_alone_says_whatever_hints_come(
    sampling: SamplingParams,
) -> None:
    async def main() -> None:
        kinds = ("good", "bad", "partial", "hostile", "silent") * 3
        async with bench() as b:
            sessions = [
                session(PROMPT + (n,), seed=n, sampling=sampling, max_tokens=40)
                for n, _ in enumerate(kinds)
            ]
            b.add(*sessions)
            devices = [
                asyncio.create_task(drafting(b, made, own(made)[0], kind, n))
                for n, (made, kind) in enumerate(zip(sessions, kinds, strict=True))
            ]
            told = await asyncio.gather(*(b.finish(made) for made in sessions))
            await asyncio.gather(*devices)
            for made, each in zip(sessions, told, strict=True):
                check(made, each)
            assert b.verifier.counts.accepted > 0
            assert max(len(spans) for spans in b.direct.passes) == len(kinds)

    run(main())


def test_hints_that_hold_save_passes_and_are_counted() -> None:
    async def main() -> None:
        async with bench() as b:
            made = session(max_tokens=48)
            truth, _ = own(made)
            b.hear(made, 0, truth[:48])
            b.add(made)
            told = await b.finish(made)
            check(made, told)
            assert len(told.commits) < 20
            assert sum(c.from_hints for c in told.commits) == b.verifier.counts.accepted > 28
            assert all(c.from_hints <= c.hint_rows for c in told.commits)

    run(main())


def test_a_device_that_stops_to_draft_keeps_its_share_of_a_shared_target() -> None:
    """Others run meanwhile, so a pass without it is no wait that times out: it counts all the
    same as one that brought no hint."""

    async def main() -> None:
        async with bench(trigger=Trigger("auto")) as b:
            resting, other = session(max_tokens=40), session(max_tokens=40, seed=8)
            truth, _ = own(resting)
            b.verifier.scheduler.cost.note(2, 50.0)
            for made in (resting, other):
                b.add(made)
            b.hear(resting, 0, truth[:2])
            resting.choices[0].lag_s = 0.01
            told = await asyncio.gather(b.finish(resting), b.finish(other))
            check(resting, told[0])
            alone = [spans for spans in b.direct.passes if len(spans) == 1]
            assert len(alone) < 10, "it would be left out of every second pass"

    run(main())


def test_choices_of_one_session_differ_and_each_is_its_own() -> None:
    async def main() -> None:
        async with bench() as b:
            made = session(choices=4)
            b.add(made)
            told = await b.finish(made)
            check(made, told)
            assert len({told.ids(n) for n in range(4)}) == 4

    run(main())


def test_a_stop_string_across_tokens_ends_at_the_token_that_completes_it() -> None:
    async def main() -> None:
        async with bench() as b:
            whole, _ = own(session(max_tokens=40))
            stop = bytes(whole[20:24])
            made = session(max_tokens=40, stop=(stop,))
            truth = own(made)[0]
            b.hear(made, 0, whole[:40])  # hints run on past the stop
            b.add(made)
            told = await b.finish(made)
            check(made, told)
            assert told.reason() is Reason.STOP
            assert bytes(told.ids()).endswith(stop) and told.ids() == truth

    run(main())


def test_what_the_target_said_past_the_end_is_counted_as_discarded() -> None:
    async def main() -> None:
        async with bench() as b:
            whole, _ = own(session(max_tokens=40))
            made = session(max_tokens=40, stop=(bytes(whole[5:7]),))
            b.hear(made, 0, whole[:12])
            b.add(made)
            told = await b.finish(made)
            check(made, told)
            # The prompt's pass gives one token, the next one 7 that were hints and one more;
            # the stop string is complete with the sixth of these.
            assert [len(commit.tokens) for commit in told.commits] == [1, 6]
            assert told.finished[0].discarded == 2

    run(main())


def test_an_end_id_ends_the_answer() -> None:
    async def main() -> None:
        async with bench() as b:
            certain = SamplingParams(temperature=0.0, logit_bias=((256, 100.0),))
            made = session(sampling=certain)
            b.add(made)
            told = await b.finish(made)
            assert told.ids() == (256,) and told.reason() is Reason.STOP

    run(main())


def test_max_tokens_ends_the_answer() -> None:
    async def main() -> None:
        async with bench() as b:
            made = session(max_tokens=1)
            b.add(made)
            told = await b.finish(made)
            check(made, told)
            assert len(told.ids()) == 1 and told.reason() is Reason.LENGTH

    run(main())


def test_logprobs_are_the_same_with_and_without_hints() -> None:
    async def main() -> None:
        async with bench() as b:
            bare, hinted = (session(max_tokens=20, top_logprobs=3) for _ in range(2))
            b.hear(hinted, 0, own(hinted)[0])
            b.add(bare, hinted)
            first, second = await asyncio.gather(b.finish(bare), b.finish(hinted))
            assert b.verifier.counts.accepted > 0
            assert first.logprobs() == second.logprobs()
            assert len(first.logprobs()) == 20
            assert all(len(found.top) == 3 and found.chosen <= 0.0 for found in first.logprobs())

    run(main())


def test_a_resumed_answer_goes_on_with_the_same_text() -> None:
    async def main() -> None:
        async with bench() as b:
            truth, reason = own(session(max_tokens=30))
            made = session(max_tokens=30, committed=truth[:11])
            b.add(made)
            await b.ended(made)
            assert tuple(made.choices[0].committed) == truth
            assert made.choices[0].ledger.finished is reason

    run(main())


# --- flow --------------------------------------------------------------------------------------


def test_the_committer_stops_a_window_ahead_of_what_was_seen() -> None:
    async def main() -> None:
        async with bench(ahead=16) as b:
            made = session(max_tokens=60)
            choice = made.choices[0]
            b.add(made)
            await until(lambda: len(choice.committed) == 16)
            passes = len(b.direct.passes)
            for _ in range(50):
                b.verifier.wake()
                await asyncio.sleep(0)
            assert (len(choice.committed), len(b.direct.passes)) == (16, passes)
            b.hear(made, 10, ())
            await until(lambda: len(choice.committed) == 26)
            b.verifier.drop(made, "closed")

    run(main())


def test_a_prefill_in_chunks_runs_beside_decodes() -> None:
    async def main() -> None:
        async with bench() as b:
            short = session(max_tokens=60)
            b.add(short)
            await until(lambda: len(short.choices[0].committed) > 2)
            long = session(PROMPT * 20, max_tokens=5)
            b.add(long)
            told = await asyncio.gather(b.finish(short), b.finish(long))
            check(short, told[0])
            check(long, told[1])
            together = [s for s in b.direct.passes if len(s) == 2 and len(s[1].tokens) > 1]
            assert len(together) >= 2

    run(main())


def test_more_sessions_than_slots_take_turns() -> None:
    async def main() -> None:
        async with bench(slots=2) as b:
            sessions = [session(seed=n, max_tokens=12) for n in range(7)]
            b.add(*sessions)
            told = await asyncio.gather(*(b.finish(made) for made in sessions))
            for made, each in zip(sessions, told, strict=True):
                check(made, each)

    run(main())


def test_a_session_without_its_device_gives_its_slot_to_one_that_waits() -> None:
    async def main() -> None:
        async with bench(slots=1, ahead=8) as b:
            away = session(max_tokens=40)
            b.add(away)
            await until(lambda: len(away.choices[0].committed) == 8)
            away.attached = False
            present = session(max_tokens=10)
            b.add(present)
            check(present, await b.finish(present))
            away.attached = True
            b.verifier.wake()
            check(away, await b.finish(away))

    run(main())


def test_a_session_whose_device_stays_away_expires() -> None:
    async def main() -> None:
        async with bench(ahead=8) as b:
            made = session()
            b.add(made)
            await until(lambda: len(made.choices[0].committed) == 8)
            made.attached = False
            b.verifier.expire(30.0)
            assert made.key in b.verifier.sessions
            b.verifier.clock.now = 31.0  # type: ignore[attr-defined]
            b.verifier.expire(30.0)
            assert made.key not in b.verifier.sessions

    run(main())


def test_a_cancel_frees_the_slots_within_one_step() -> None:
    async def main() -> None:
        async with bench(ahead=8) as b:
            made, other = session(choices=3), session(max_tokens=30)
            freed_at: list[int] = []
            closes = b.direct.close

            async def close(slot: int) -> None:
                freed_at.append(len(b.direct.passes))
                await closes(slot)

            b.direct.close = close  # type: ignore[method-assign]
            b.add(made, other)
            await until(lambda: len(made.choices[0].committed) == 8)
            finishing = asyncio.create_task(b.finish(other))
            passes = len(b.direct.passes)
            b.verifier.drop(made, "closed")
            check(other, await finishing)
            assert len(freed_at) == 3 + 1
            assert all(at <= passes + 1 for at in freed_at[:3])

    run(main())


def test_a_cancel_in_the_middle_of_a_pass_disturbs_nobody() -> None:
    async def main() -> None:
        async with bench(ahead=8) as b:
            gone, other = session(choices=2), session(max_tokens=20)

            def cancel(spans: Sequence[Span]) -> None:
                if len(b.direct.passes) == 3:
                    b.verifier.drop(gone, "closed")

            b.direct.before = cancel
            b.add(gone, other)
            check(other, await b.finish(other))

    run(main())


# --- failures ----------------------------------------------------------------------------------


class Sick(FakeEngine):
    """Has no finite scores where a slot holds the token 1."""

    def _pass(self, spans: Sequence[Span]) -> list:  # type: ignore[type-arg]
        for span in spans:
            if 1 in span.tokens:
                raise EngineFailed("the scores are not finite")
        return super()._pass(spans)


def sick() -> Sick:
    from outrider.engine import EngineSpec

    return Sick(EngineSpec(model="fake", engine="fake", max_slots=64))


def test_a_session_that_fails_harms_itself_alone() -> None:
    async def main() -> None:
        async with bench(engine=sick()) as b:
            bad = session((1, *PROMPT), choices=3)
            good = [session(seed=n, max_tokens=20) for n in range(4)]
            b.add(good[0], good[1], bad, good[2], good[3])
            told = await asyncio.gather(*(b.finish(made) for made in (bad, *good)))
            assert isinstance(told[0].error, EngineFailed) and not told[0].commits
            for made, each in zip(good, told[1:], strict=True):
                check(made, each)

    run(main())


def test_a_sampling_that_the_engine_refuses_ends_its_session_alone() -> None:
    async def main() -> None:
        async with bench() as b:
            good, bad = session(max_tokens=10), session()
            opens = b.direct.open

            async def refusing(sampling: object = None) -> int:
                if sampling is bad.choices[0].sampling:
                    raise InvalidRequest("not with me")
                return await opens(sampling)  # type: ignore[arg-type]

            b.direct.open = refusing  # type: ignore[method-assign]
            b.add(bad, good)
            told = await asyncio.gather(b.finish(bad), b.finish(good))
            assert isinstance(told[0].error, InvalidRequest)
            check(good, told[1])

    run(main())


def test_a_bug_in_a_turn_ends_its_sessions_and_not_the_committer() -> None:
    async def main() -> None:
        async with bench() as b:
            unlucky = session()

            def fail(spans: Sequence[Span]) -> None:
                b.direct.before = lambda spans: None
                raise RuntimeError("canary prompt text")

            b.direct.before = fail
            b.add(unlucky)
            told = await b.finish(unlucky)
            assert isinstance(told.error, EngineFailed)
            assert "canary" not in str(told.error) and "RuntimeError" in str(told.error)
            made = session(max_tokens=10)
            b.add(made)
            check(made, await b.finish(made))
            troubles = [e for e in b.published if isinstance(e, events.Trouble)]
            assert troubles and not any("canary" in each.what for each in troubles)

    run(main())


def die(b: Bench) -> None:
    """The engine's process ends: every call fails from now on."""
    running = b.verifier.engine
    assert isinstance(running, Direct)
    running.alive = False

    def gone(*_: object) -> None:
        raise EngineFailed("the engine's process ended")

    running.before = gone
    for name in ("open", "close"):
        setattr(running, name, _raising)


async def _raising(*_: object) -> int:
    raise EngineFailed("the engine's process ended")


def test_sessions_go_on_with_the_same_text_when_the_engine_dies_in_a_pass() -> None:
    async def main() -> None:
        async with bench() as b:
            sessions = [session(seed=n, max_tokens=40) for n in range(3)]

            def strike(spans: Sequence[Span]) -> None:
                if len(b.direct.passes) == 12:
                    die(b)
                    raise EngineFailed("the engine's process ended")

            b.direct.before = strike
            b.add(*sessions)
            told = await asyncio.gather(*(b.finish(made) for made in sessions))
            assert b.verifier.engine is not b.direct
            for made, each in zip(sessions, told, strict=True):
                check(made, each)

    run(main())


def test_sessions_go_on_when_the_engine_dies_between_passes() -> None:
    async def main() -> None:
        async with bench(ahead=8) as b:
            waits = session(max_tokens=30)
            b.add(waits)
            await until(lambda: len(waits.choices[0].committed) == 8)
            die(b)
            comes = session(max_tokens=10)
            b.add(comes)
            check(comes, await b.finish(comes))
            check(waits, await b.finish(waits))
            assert waits.strikes == 0, "nobody was at work, nobody is to blame"

    run(main())


def test_a_cancel_is_survived_when_the_engine_is_dead() -> None:
    async def main() -> None:
        async with bench(ahead=8) as b:
            made = session()
            b.add(made)
            await until(lambda: len(made.choices[0].committed) == 8)
            die(b)
            b.verifier.drop(made, "closed")
            again = session(max_tokens=10)
            b.add(again)
            check(again, await b.finish(again))

    run(main())


def poisonous() -> Direct:
    """Its process ends in a pass whose rows hold the token 1."""
    direct = Direct(fake())

    def bite(spans: Sequence[Span]) -> None:
        if any(1 in span.tokens for span in spans):
            direct.alive = False
            raise EngineFailed("the engine's process ended")

    direct.before = bite
    return direct


def test_a_poison_session_is_refused_after_two_strikes_and_takes_nobody_along(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def main() -> None:
        made_engines: list[Direct] = []

        async def restart() -> Direct:
            made_engines.append(poisonous())
            return made_engines[-1]

        async with bench(restart=restart) as b:
            b.direct.before = poisonous().before
            b.verifier.engine = first = poisonous()
            poison = session((1, *PROMPT))
            good = [session(seed=n, max_tokens=30) for n in range(3)]
            b.add(good[0], poison, *good[1:])
            told = await asyncio.gather(*(b.finish(made) for made in (poison, *good)))
            assert isinstance(told[0].error, EngineFailed)
            assert not first.alive and len(made_engines) == verifiers.MAX_STRIKES
            for made, each in zip(good, told[1:], strict=True):
                check(made, each)
                assert made.strikes == 0

    run(main())


def test_an_engine_that_does_not_come_back_fails_its_sessions_and_is_tried_again() -> None:
    async def main() -> None:
        tries: list[int] = []

        async def restart() -> Direct:
            tries.append(1)
            if len(tries) == 1:
                raise OSError("no memory")
            return Direct(fake())

        async with bench(restart=restart, ahead=8) as b:
            unlucky = session()
            b.add(unlucky)
            await until(lambda: len(unlucky.choices[0].committed) == 8)
            die(b)
            b.hear(unlucky, 8, ())
            assert isinstance((await b.finish(unlucky)).error, EngineFailed)
            made = session(max_tokens=10)
            b.add(made)
            check(made, await b.finish(made))
            assert len(tries) == 2

    run(main())
