"""The cloud on its port: what it refuses and how, and who holds a session's lease."""

from __future__ import annotations

import asyncio
import hashlib
import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from outrider.cloud.main import start
from outrider.cloud.server import HEARTBEAT_MS, LINGER_S, LOST_AFTER, MAX_MESSAGE, OPTIONS
from outrider.engines.fake import vocabulary
from outrider.errors import (
    ContextExceeded,
    HandshakeRefused,
    InvalidRequest,
    LinkLost,
    NotFound,
    OutriderError,
    Overloaded,
    PortInUse,
    RemoteProtocolError,
)
from outrider.options import NamedModel
from outrider.protocol import events
from outrider.protocol import wire_pb2 as pb
from outrider.protocol.messages import ChoiceOpen, Close, Heartbeat, Hint, Reason
from outrider.protocol.sampling import SamplingParams
from tests.cloud.client import Client, Refused, Stream, connect, opening
from tests.support import CloudUnderTest, cloud, cloud_options, fake, plain, until


@dataclass
class Place:
    """One cloud for all tests here; each finds it without sessions."""

    runner: asyncio.Runner
    cloud: CloudUnderTest
    client: Client

    def run(self, work: Any) -> Any:
        return self.runner.run(asyncio.wait_for(work, 60))


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    tmp = tmp_path_factory.mktemp("cloud")
    models = (NamedModel("t", "fake"), NamedModel("u", "other"))
    with asyncio.Runner() as runner:
        opened = cloud(tmp, models=models, context=512, session_ttl_s=2.0)
        running = runner.run(opened.__aenter__())

        async def make() -> Client:
            return connect(running.address)

        client = runner.run(make())
        yield Place(runner, running, client)
        runner.run(client.channel.close())
        runner.run(opened.__aexit__(None, None, None))


@pytest.fixture
def at(house: Place) -> Iterator[Place]:
    house.cloud.published.clear()
    yield house
    house.run(house.cloud.settled())


def own(stream: Stream, choice: int = 0) -> tuple[int, ...]:
    found = stream.open
    return plain(
        fake(),
        found.prompt,
        found.max_tokens,
        sampling=found.sampling,
        seed=found.seed,
        choice=choice,
        stop=found.stop,
    )[0]


def test_a_stream_ends_with_the_edges_half_of_it(at: Place) -> None:
    """And not when the time for that is over."""

    async def main() -> None:
        stream = await at.client.open(opening(max_tokens=3))
        lease = next(iter(at.cloud.running.cloud.streams.values()))
        await stream.to_the_end()
        async with asyncio.timeout(LINGER_S / 2):
            await lease.ended.wait()

    at.run(main())


async def whole(client: Client, session: int = 99) -> None:
    """The cloud is well: it answers a session to its end."""
    stream = await client.open(opening(session, max_tokens=5))
    await stream.to_the_end()
    assert stream.ids() == own(stream)


# --- a session ---------------------------------------------------------------------------------


def test_a_session_is_answered_with_the_targets_own_text(at: Place) -> None:
    async def main() -> None:
        stream = await at.client.open(opening(choices=(ChoiceOpen(0), ChoiceOpen(1))))
        await stream.to_the_end()
        assert [stream.ids(n) for n in (0, 1)] == [own(stream, n) for n in (0, 1)]
        assert stream.finished[0].reason is Reason.LENGTH
        assert stream.opened is not None
        assert stream.opened.vocabulary_digest == vocabulary().digest
        assert (stream.opened.exact, stream.opened.ahead, stream.opened.context) == (True, 16, 512)

    at.run(main())


def test_events_tell_of_a_session_without_its_text(at: Place) -> None:
    async def main() -> None:
        stream = await at.client.open(opening(prompt=tuple(b"canary"), max_tokens=5))
        await stream.to_the_end()
        await at.cloud.settled()
        told = [x for x in at.cloud.published if not isinstance(x, events.Stepped)]
        kinds = [type(event).__name__ for event in told]
        assert kinds == ["SessionOpened", "SessionClosed"]
        assert "canary" not in repr(at.cloud.published)

    at.run(main())


def test_a_close_frees_the_session_at_once(at: Place) -> None:
    async def main() -> None:
        stream = await at.client.open(opening())
        await stream.until(16)
        await stream.send(Close())
        await at.cloud.settled()

    at.run(main())


# --- refusals ----------------------------------------------------------------------------------

REFUSED: dict[str, tuple[dict[str, Any], type[OutriderError], tuple[str, ...]]] = {
    "vocabulary": (
        {"vocabulary_digest": "feed"},
        HandshakeRefused,
        ("vocabulary digest", "feed", vocabulary().digest),
    ),
    "numeric class": ({"numeric_class": "cafe"}, HandshakeRefused, ("numeric class", "cafe")),
    "unknown model": ({"model": "nobody"}, NotFound, ("it serves: t, u",)),
    "prompt id": ({"prompt": (3, 257)}, InvalidRequest, ("0 to 256",)),
    "committed id": ({"choices": (ChoiceOpen(0, (257,)),)}, InvalidRequest, ("0 to 256",)),
    "bias id": (
        {"sampling": SamplingParams(logit_bias=((999, 1.0),))},
        InvalidRequest,
        ("logit_bias",),
    ),
    "empty prompt": ({"prompt": ()}, InvalidRequest, ("empty",)),
    "too long a prompt": ({"prompt": (65,) * 513}, ContextExceeded, ("512", "513")),
    "too long an answer": ({"max_tokens": 500}, ContextExceeded, ("512",)),
    "too many choices": (
        {"choices": tuple(ChoiceOpen(n) for n in range(17))},
        InvalidRequest,
        ("16",),
    ),
    "a whole answer": (
        {"choices": (ChoiceOpen(0, (65,) * 24),)},
        InvalidRequest,
        ("all its tokens",),
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_an_open_that_can_not_be_served_is_refused_typed_and_changes_nothing(
    at: Place, name: str
) -> None:
    changes, kind, words = REFUSED[name]

    async def main() -> None:
        found = await at.client.refusal(opening(**changes))
        assert type(found.error) is kind
        assert all(word in found.everything for word in words)
        assert not at.cloud.verifier.sessions and not at.cloud.opened()
        await whole(at.client)

    at.run(main())


def test_a_version_from_elsewhere_is_refused_with_both_values(at: Place) -> None:
    async def main() -> None:
        wire = pb.Up(open=pb.Open(version=77, session=b"s" * 16))
        found = await at.client.raw(wire.SerializeToString())
        assert isinstance(found.error, HandshakeRefused)
        assert "77" in found.error.why and "cloud has 1" in found.error.why
        with pytest.raises(Refused) as described:
            await at.client.describe(version=77)
        assert isinstance(described.value.error, HandshakeRefused)

    at.run(main())


def test_exactness_that_is_not_there_is_refused(at: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        engine: Any = at.cloud.verifier.engine
        monkeypatch.setattr(engine, "_info", replace(engine.info, exact=False))
        found = await at.client.refusal(opening(exact_required=True))
        assert isinstance(found.error, HandshakeRefused)
        assert "exactness" in found.error.what
        assert "required" in found.error.why and "best effort" in found.error.why
        stream = await at.client.open(opening(exact_required=False, max_tokens=3))
        assert stream.opened is not None and not stream.opened.exact
        await stream.to_the_end()

    at.run(main())


def test_a_message_over_the_limit_is_refused_and_the_next_one_served(at: Place) -> None:
    async def main() -> None:
        found = await at.client.raw(bytes(MAX_MESSAGE + 1))
        assert found.code is grpc.StatusCode.RESOURCE_EXHAUSTED
        await whole(at.client)

    at.run(main())


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff" * 40,
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x0a\x02\x08",
        pb.Up(open=pb.Open(version=1)).SerializeToString(),
        pb.Up(hint=b"x" * 46).SerializeToString(),
        pb.Up(heartbeat=pb.Heartbeat(sent_us=1)).SerializeToString(),
    ],
    ids=["empty", "noise", "http", "truncated", "bare open", "hint first", "heartbeat first"],
)
def test_garbage_instead_of_an_open_is_the_senders_fault(at: Place, data: bytes) -> None:
    async def main() -> None:
        found = await at.client.raw(data)
        assert isinstance(found.error, RemoteProtocolError)
        assert found.code is grpc.StatusCode.INVALID_ARGUMENT
        await whole(at.client)

    at.run(main())


def test_garbage_in_a_session_ends_its_stream_alone(at: Place) -> None:
    async def main() -> None:
        good, bad = await at.client.open(opening(2)), await at.client.open(opening(3))
        await bad.until(1)
        await bad.call.write(b"\xff\xff\xff")
        with pytest.raises(Refused) as found:
            await bad.listen()
        assert isinstance(found.value.error, RemoteProtocolError)
        await good.to_the_end()
        assert good.ids() == own(good)

    at.run(main())


@pytest.mark.parametrize(
    ("hint", "kind"),
    [
        (Hint(1, 0, 4000, 4000, ()), OutriderError),
        (Hint(1, 0, 0, 0, (257,)), InvalidRequest),
        (Hint(1, 9, 0, 0, ()), RemoteProtocolError),
    ],
    ids=["seen the future", "id beyond the vocabulary", "a choice never opened"],
)
def test_a_hint_that_can_not_be_ends_its_stream(
    at: Place, hint: Hint, kind: type[OutriderError]
) -> None:
    async def main() -> None:
        stream = await at.client.open(opening())
        await stream.send(hint)
        with pytest.raises(Refused) as found:
            await stream.listen()
        assert isinstance(found.value.error, kind)
        await whole(at.client)

    at.run(main())


def test_stale_and_far_hints_are_dropped_without_harm(at: Place) -> None:
    async def main() -> None:
        stream = await at.client.open(opening())
        await stream.until(8)
        for hint in (
            Hint(1, 0, 2, 2, (1, 2, 3)),
            Hint(1, 0, 2, 9, (1, 2)),
            Hint(1, 0, 8, 2**32 - 8, (1,)),
            Hint(0, 0, 8, 8, (1,)),
            Hint(7, 0, 8, 8, (1,)),
        ):
            await stream.send(hint)
        await stream.acknowledge()
        await stream.to_the_end()
        assert stream.ids() == own(stream)

    at.run(main())


def test_garbage_on_the_port_leaves_the_cloud_alive(at: Place) -> None:
    async def main() -> None:
        for data in (b"\0" * 100, b"\x16\x03\x01\x02\x00", struct.pack(">I", 2**31) * 50):
            reader, writer = await asyncio.open_connection("127.0.0.1", at.cloud.address.port)
            writer.write(data)
            await writer.drain()
            writer.close()
        await whole(at.client)

    at.run(main())


def test_a_tenant_over_its_limit_hears_when_to_come_back(
    at: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        limits = replace(at.cloud.running.cloud.limits, sessions_per_tenant=1)
        monkeypatch.setattr(at.cloud.running.cloud, "limits", limits)
        first = await at.client.open(opening(2))
        found = await at.client.refusal(opening(3))
        assert isinstance(found.error, Overloaded) and found.error.retry_after_s > 0
        await first.to_the_end()

    at.run(main())


def test_an_exception_inside_tells_a_client_nothing_of_its_text(
    at: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise ValueError("canary: the prompt was ...")

    async def main() -> None:
        monkeypatch.setattr("outrider.cloud.server.check_open", broken)
        found = await at.client.refusal(opening())
        assert "canary" not in found.everything
        assert type(found.error) is OutriderError and found.code is grpc.StatusCode.INTERNAL
        [trouble] = [e for e in at.cloud.published if isinstance(e, events.Trouble)]
        assert "canary" not in trouble.what and "ValueError" in trouble.what

    at.run(main())


# --- describe and health -----------------------------------------------------------------------


def test_describe_names_all_models_and_their_digests(at: Place) -> None:
    async def main() -> None:
        models = await at.client.describe()
        assert [model.name for model in models] == ["t", "u"]
        assert {model.vocabulary_digest for model in models} == {vocabulary().digest}
        assert models[0].numeric_class != models[1].numeric_class
        assert all(not model.tokenizer_json for model in models)
        [one] = await at.client.describe("u", tokenizer=True)
        assert one.name == "u" and one.end_ids == (256,) and one.vocabulary_size == 257
        assert hashlib.sha256(one.tokenizer_json).hexdigest() == one.tokenizer_digest

    at.run(main())


def test_describe_refuses_what_it_does_not_serve_or_can_not_read(at: Place) -> None:
    async def main() -> None:
        with pytest.raises(Refused) as unknown:
            await at.client.describe("nobody")
        assert isinstance(unknown.value.error, NotFound)
        with pytest.raises(Refused) as garbage:
            await at.client.describe_raw(b"\xff\xff")
        assert isinstance(garbage.value.error, RemoteProtocolError)

    at.run(main())


def test_the_health_service_says_that_it_serves(at: Place) -> None:
    async def main() -> None:
        stub: Any = health_pb2_grpc.HealthStub(at.client.channel)
        answer = await stub.Check(health_pb2.HealthCheckRequest(service="outrider.v1.Outrider"))
        assert answer.status == health_pb2.HealthCheckResponse.SERVING

    at.run(main())


# --- the lease ---------------------------------------------------------------------------------


def test_a_higher_fence_takes_the_session_over_and_the_older_stream_ends(at: Place) -> None:
    async def main() -> None:
        old = await at.client.open(opening())
        await old.until(16)
        new = await at.client.open(opening(fence=2, choices=(ChoiceOpen(0, old.ids()[:5]),)))
        assert new.opened is not None and new.opened.resumed
        with pytest.raises(Refused) as ended:
            await old.listen()
        assert isinstance(ended.value.error, HandshakeRefused)
        assert "edge has 1, cloud has 2" in ended.value.error.why
        await new.to_the_end()
        assert new.ids() == own(new), "what was missed came again, and the rest"
        assert len(at.cloud.opened()) == 2

    at.run(main())


def test_what_was_missed_comes_again_with_its_logprobs(at: Place) -> None:
    async def main() -> None:
        old = await at.client.open(opening(top_logprobs=2))
        await old.until(16)
        taken_over = opening(fence=2, top_logprobs=2, choices=(ChoiceOpen(0, old.ids()[:5]),))
        new = await at.client.open(taken_over)
        await new.to_the_end()
        first = {c.position: c.logprobs for c in old.commits}
        assert all(c.logprobs is not None and len(c.logprobs) == len(c.tokens) for c in new.commits)
        again = new.commits[0]
        assert again.position == 5 and again.logprobs is not None
        single = first.get(5)
        assert single is not None and again.logprobs[0] == single[0]

    at.run(main())


def test_a_choice_that_a_resume_leaves_out_is_over(at: Place) -> None:
    async def main() -> None:
        old = await at.client.open(opening(choices=(ChoiceOpen(0), ChoiceOpen(1))))
        await old.until(4)
        kept = ChoiceOpen(1, old.ids(1)[:2])
        new = await at.client.open(opening(fence=2, choices=(kept,)))
        await new.to_the_end()
        assert {commit.choice for commit in new.commits} == {1}
        assert set(new.finished) == {1}

    at.run(main())


def test_each_takeover_ends_the_one_before(at: Place) -> None:
    async def main() -> None:
        streams = [await at.client.open(opening())]
        await streams[0].until(16)
        for fence in (2, 3, 4):
            streams.append(await at.client.open(opening(fence=fence, choices=(ChoiceOpen(0, ()),))))
        for old in streams[:-1]:
            with pytest.raises(Refused):
                await old.listen()
        await streams[-1].to_the_end()
        assert streams[-1].ids() == own(streams[-1])

    at.run(main())


@pytest.mark.parametrize("fence", [4, 5])
def test_a_lower_or_equal_fence_is_refused_and_the_session_goes_on(at: Place, fence: int) -> None:
    async def main() -> None:
        stream = await at.client.open(opening(fence=5))
        await stream.until(4)
        found = await at.client.refusal(opening(fence=fence))
        assert isinstance(found.error, HandshakeRefused)
        assert "fence" in found.error.what and "cloud has 5" in found.error.why
        await stream.to_the_end()
        assert stream.ids() == own(stream)

    at.run(main())


def test_a_resume_that_contradicts_what_was_committed_starts_anew(at: Place) -> None:
    async def main() -> None:
        first = await at.client.open(opening())
        await first.until(8)
        other = tuple(b"journal from elsewhere")
        new = await at.client.open(opening(fence=2, choices=(ChoiceOpen(0, other),)))
        assert new.opened is not None and not new.opened.resumed
        await new.to_the_end()
        assert new.ids()[: len(other)] == other, "the journal is what was committed"

    at.run(main())


def test_a_resume_of_an_ended_session_tells_its_end_and_leaves_nothing(at: Place) -> None:
    async def main() -> None:
        first = await at.client.open(opening(max_tokens=12))
        await first.until(4)
        first.call.cancel()
        # The last tokens are committed while nobody listens, or never; both are taken up.
        second = await at.client.open(
            opening(max_tokens=12, fence=2, choices=(ChoiceOpen(0, first.ids()),))
        )
        await second.to_the_end()
        assert second.ids() == own(second)

    at.run(main())


def test_one_tenants_session_id_is_not_anothers(at: Place) -> None:
    verifier = at.cloud.verifier

    async def main() -> None:
        stream = await at.client.open(opening())
        await stream.until(2)
        assert {tenant for tenant, _ in verifier.sessions} == {"local"}
        await stream.send(Close())

    at.run(main())


# --- absence -----------------------------------------------------------------------------------


def test_a_session_outlives_its_stream_for_a_while_and_then_expires(at: Place) -> None:
    async def main() -> None:
        stream = await at.client.open(opening())
        await stream.until(16)
        stream.call.cancel()
        [session] = at.cloud.verifier.sessions.values()
        await until(lambda: not session.attached)
        assert (await at.cloud.verifier.engine.statistics()).slots_open == 1
        await at.cloud.settled()
        closed = [e for e in at.cloud.published if isinstance(e, events.SessionClosed)]
        assert [each.reason for each in closed] == ["expired"]

    at.run(main())


def test_a_device_that_answers_heartbeats_is_not_lost_however_long_it_reads_nothing(
    at: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A prefill, a queue or a full window may last; only silence is a loss."""

    async def main() -> None:
        monkeypatch.setattr("outrider.cloud.server.HEARTBEAT_MS", 60)
        stream = await at.client.open(opening())
        await stream.until(16)
        beats = 0
        while beats < 8:
            message = await stream.receive()
            assert isinstance(message, Heartbeat) and message.echo_us == 0
            await stream.send(Heartbeat(1, message.sent_us))
            beats += 1
        await stream.acknowledge()
        await stream.to_the_end()
        assert stream.ids() == own(stream)

    at.run(main())


def test_a_silent_device_is_lost_and_its_session_kept(
    at: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        monkeypatch.setattr("outrider.cloud.server.HEARTBEAT_MS", 60)
        stream = await at.client.open(opening())
        with pytest.raises(Refused) as found:
            while True:
                await stream.receive()
        assert isinstance(found.value.error, LinkLost)
        assert len(at.cloud.verifier.sessions) == 1
        monkeypatch.undo()
        again = await at.client.open(opening(fence=2, choices=(ChoiceOpen(0, stream.ids()),)))
        assert again.opened is not None and again.opened.resumed
        await again.to_the_end()
        assert again.ids() == own(again)

    at.run(main())


def test_an_edges_heartbeat_is_answered_with_its_own_time(at: Place) -> None:
    async def main() -> None:
        stream = await at.client.open(opening())
        await stream.send(Heartbeat(12345))
        while True:
            message = await stream.receive()
            if isinstance(message, Heartbeat) and message.echo_us:
                break
        assert message.echo_us == 12345
        await stream.send(Close())

    at.run(main())


def test_a_black_hole_is_found_within_three_seconds() -> None:
    set_to = dict(OPTIONS)
    assert HEARTBEAT_MS * LOST_AFTER <= 3000
    assert set_to["grpc.keepalive_time_ms"] + set_to["grpc.keepalive_timeout_ms"] <= 3000
    assert set_to["grpc.http2.ping_timeout_ms"] <= 1000
    assert set_to["grpc.http2.max_ping_strikes"] == 0, "edges may ping as often"


# --- starting ----------------------------------------------------------------------------------


def test_a_port_in_use_is_a_clear_error(at: Place, tmp_path: Path) -> None:
    from contextlib import AsyncExitStack

    async def main() -> None:
        options = cloud_options(tmp_path, listen=at.cloud.address)
        async with AsyncExitStack() as stack:
            with pytest.raises(PortInUse, match="can not be bound"):
                await start(options, stack)

    at.run(main())
