"""Sessions sealed inside TLS: who is let in, what is seen between, and what a liar gets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from outrider.cloud.server import Stream
from outrider.edge import channel
from outrider.edge.channel import Keys
from outrider.errors import ConfigError, HandshakeRefused, PeerUntrusted
from outrider.options import Address, CloudLink, CloudOptions, EdgeOptions
from outrider.privacy import frames, route
from outrider.privacy.handshake import Pace
from outrider.privacy.identity import Identity
from outrider.protocol import codec, events
from outrider.protocol.account import EVERY, Account
from outrider.protocol.messages import Commit
from tests.sealing import Paired
from tests.support import ask, cloud, edge, expected, run


@pytest.fixture
def paired(tmp_path: Path) -> Paired:
    return Paired.make(tmp_path)


def test_a_sealed_session_gives_the_same_text(tmp_path: Path, paired: Paired) -> None:
    async def main() -> None:
        async with (
            cloud(tmp_path, channel="required", **paired.cloud) as c,
            edge(c.address, **paired.edge) as e,
        ):
            request = ask(max_tokens=80, n=2)
            found = await e.answer(request)
            found.check()
            assert [found.ids(choice) for choice in (0, 1)] == [
                expected(request, choice) for choice in (0, 1)
            ]
            assert found.done().exact
            (said,) = e.daemon.status().clouds
            assert (said.channel, said.attestation) == ("sealed", "none")
            assert not e.kinds(events.Trouble)

    run(main())


def test_nothing_of_a_sealed_session_is_seen_between(
    tmp_path: Path, paired: Paired, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[bytes] = []

    async def main() -> None:
        async with cloud(tmp_path, **paired.cloud) as c, edge(c.address, **paired.edge) as e:
            _tap(e.daemon.link.peers[0], seen)
            request = ask("a canary in the mine", max_tokens=40)
            assert (await e.answer(request)).ids() == expected(request)
            everything = b"".join(seen)
            assert len(seen) > 4
            prompt = codec.pack_ids(tuple(b"a canary"))
            assert prompt not in everything and paired.device.public not in everything

    run(main())


def _tap(peer: Any, seen: list[bytes]) -> None:
    """Whatever the device writes on the stream, as gRPC gets it."""
    inner = peer.channel.stream_stream

    def tapped(path: str) -> Any:
        method = inner(path)

        def call(**given: Any) -> Any:
            made = method(**given)
            write = made.write

            async def noted(data: bytes) -> None:
                seen.append(data)
                await write(data)

            made.write = noted
            return made

        return call

    peer.channel.stream_stream = tapped


# --- who is let in -----------------------------------------------------------------------------


def test_a_device_that_was_not_paired_is_refused(tmp_path: Path, paired: Paired) -> None:
    async def main() -> None:
        paired.let_in(Identity.generate().public)
        async with cloud(tmp_path, **paired.cloud) as c, edge(c.address, **paired.edge) as e:
            with pytest.raises(PeerUntrusted):
                await e.answer(ask())
            # Paired meanwhile, and revoked again: the next session goes by the file as it is.
            paired.let_in(paired.device.public)
            request = ask(max_tokens=8)
            assert (await e.answer(request)).ids() == expected(request)
            paired.let_in(Identity.generate().public, Identity.generate().public)
            with pytest.raises(PeerUntrusted):
                await e.answer(ask())

    run(main())


def test_another_verifier_than_the_pinned_one_gets_nothing(tmp_path: Path, paired: Paired) -> None:
    async def main() -> None:
        other = {**paired.edge, "channel_pin": Identity.generate().public.hex()}
        async with cloud(tmp_path, **paired.cloud) as c, edge(c.address, **other) as e:
            with pytest.raises(PeerUntrusted, match="not who it must be"):
                await e.answer(ask())
            assert not c.opened()

    run(main())


def test_nobody_falls_back_to_a_plain_session(tmp_path: Path, paired: Paired) -> None:
    async def main() -> None:
        async with cloud(tmp_path) as c, edge(c.address, **paired.edge) as e:
            with pytest.raises(HandshakeRefused, match="channel"):
                await e.answer(ask())
            assert not c.opened()
        async with cloud(tmp_path, channel="required", **paired.cloud) as c, edge(c.address) as e:
            with pytest.raises(HandshakeRefused, match="channel"):
                await e.answer(ask())
            assert not c.opened()

    run(main())


def test_what_prompts_are_made_with_is_bound(tmp_path: Path, paired: Paired) -> None:
    """Whoever ends TLS could hand out a chat template of its own."""

    async def main() -> None:
        async with cloud(tmp_path, **paired.cloud) as c, edge(c.address, **paired.edge) as e:
            peer = e.daemon.link.peers[0]
            await e.daemon.link.check(peer)
            peer.models = tuple(replace(m, chat_template="obey me") for m in peer.models)
            with pytest.raises(HandshakeRefused, match="model description"):
                await e.answer(ask())
            assert not c.opened() and not peer.known
            request = ask(max_tokens=8)
            assert (await e.answer(request)).ids() == expected(request)

    run(main())


# --- keys that change ----------------------------------------------------------------------------


def test_keys_change_along_a_long_session(
    tmp_path: Path, paired: Paired, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        async with cloud(tmp_path, **paired.cloud) as c, edge(c.address, **paired.edge) as e:
            pace = Pace(frames=3, seconds=1e9)
            door = c.running.cloud.door
            c.running.cloud.door = replace(door, pace=pace)
            (peer,) = e.daemon.link.peers
            assert peer.sealing is not None
            peer.sealing = replace(peer.sealing, pace=pace)
            phases: set[int] = set()
            secrets: set[bytes] = set()
            _watch_frames(monkeypatch, phases, secrets)
            request = ask(max_tokens=100)
            assert (await e.answer(request)).ids() == expected(request)
            assert phases == {0, 1} and len(secrets) > 6

    run(main())


def _watch_frames(monkeypatch: pytest.MonkeyPatch, phases: set[int], secrets: set[bytes]) -> None:
    seal = frames.Sender.seal

    def seen(self: Any, kind: int, data: bytes, now: float) -> bytes:
        frame = seal(self, kind, data, now)
        phases.add(frame[1])
        secrets.add(self._key.secret)
        return frame

    monkeypatch.setattr(frames.Sender, "seal", seen)


def test_every_connection_has_keys_of_its_own(
    tmp_path: Path, paired: Paired, monkeypatch: pytest.MonkeyPatch
) -> None:
    secrets: set[bytes] = set()
    counts: list[int] = []

    async def main() -> None:
        async with cloud(tmp_path, **paired.cloud) as c, edge(c.address, **paired.edge) as e:
            _watch_frames(monkeypatch, set(), secrets)
            for _ in range(3):
                await e.answer(ask(max_tokens=8))
                counts.append(len(secrets))

    run(main())
    # One each way, each time.
    assert counts == [2, 4, 6]


# --- a cloud that lies ---------------------------------------------------------------------------


def test_a_wrong_account_ends_the_session_and_not_the_answer(
    tmp_path: Path, paired: Paired, monkeypatch: pytest.MonkeyPatch
) -> None:
    stamp, lies = Account.stamp, [2]

    def lying(self: Account, commit: Commit, committed: Sequence[int]) -> Commit:
        made = stamp(self, commit, committed)
        if made.check and lies[0]:
            lies[0] -= 1
            return replace(made, check=bytes(32))
        return made

    async def main() -> None:
        monkeypatch.setattr(Account, "stamp", lying)
        async with cloud(tmp_path, **paired.cloud) as c, edge(c.address, **paired.edge) as e:
            request = ask(max_tokens=120)
            found = await e.answer(request)
            found.check()
            assert found.ids() == expected(request)
            assert lies == [0] and len(c.opened()) == 3
            troubles = e.kinds(events.Trouble)
            assert [t.code for t in troubles] == ["seal_broken"] * 2
            assert "account" in troubles[0].what

    run(main())


def test_a_cloud_that_sends_other_tokens_than_it_keeps_is_found_out(
    tmp_path: Path, paired: Paired, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One changed token, and the next account of all that was committed tells."""
    write = Stream._write
    changed: list[int] = []

    async def other(self: Stream, message: Any) -> None:
        if isinstance(message, Commit) and not changed and message.position > 2:
            changed.append(message.position)
            message = replace(message, tokens=(message.tokens[0] ^ 1, *message.tokens[1:]))
        await write(self, message)

    async def main() -> None:
        monkeypatch.setattr(Stream, "_write", other)
        async with cloud(tmp_path, **paired.cloud) as c, edge(c.address, **paired.edge) as e:
            found = await e.answer(ask(max_tokens=120))
            found.check()
            assert changed and [t.code for t in e.kinds(events.Trouble)] == ["seal_broken"]

    run(main())


def test_the_account_says_which_commits_carry_it() -> None:
    opening = codec.decode_up(_open_bytes(), 8)
    ours, theirs = Account(opening), Account(opening)  # type: ignore[arg-type]
    kept = [1, 2, 3]
    for number in range(3, 3 + 2 * EVERY):
        kept.append(number)
        commit = theirs.stamp(Commit(1, 0, number, (number,)), kept)
        assert bool(commit.check) == ((number - 2) % EVERY == 0)
        ours.follow(commit)
    for bad in (Commit(1, 0, len(kept), (5,), check=bytes(32)), Commit(1, 0, 90, (5,))):
        with pytest.raises(Exception, match="sealed stream|does not follow"):
            replace(ours).follow(bad)


def _open_bytes() -> bytes:
    from outrider.protocol.messages import ChoiceOpen, Open
    from outrider.protocol.sampling import SamplingParams

    choices = (ChoiceOpen(0, (1, 2, 3)), ChoiceOpen(1))
    return codec.encode_up(Open(bytes(16), 2, (1,), choices, SamplingParams(), 1, 99), 8)


# --- options, and what a router sees -------------------------------------------------------------


def test_what_can_not_be_sealed_is_not_started(tmp_path: Path, paired: Paired) -> None:
    edges: tuple[dict[str, Any], ...] = (
        {"channel": "on"},
        {"channel_pin": paired.verifier.public.hex()},
        {"channel": "on", "channel_identity": tmp_path / "device.pem"},
        {"channel_router_key": tmp_path / "devices"},
    )
    for bad in edges:
        with pytest.raises(ConfigError):
            EdgeOptions(**bad)
    clouds: tuple[dict[str, Any], ...] = (
        {"channel": "required"},
        {"channel_identity": tmp_path / "verifier.pem"},
        {"channel_devices": tmp_path / "devices"},
    )
    for bad in clouds:
        with pytest.raises(ConfigError):
            CloudOptions(**bad)
    for pin in ("ab" * 31, str(tmp_path / "none"), str(tmp_path / "devices")):
        with pytest.raises(ConfigError):
            channel.keys(EdgeOptions(**{**paired.edge, "channel_pin": pin}))


def test_auto_seals_where_the_cloud_is_pinned(tmp_path: Path, paired: Paired) -> None:
    assert channel.keys(EdgeOptions()) is None
    found = channel.keys(EdgeOptions(**paired.edge))
    assert isinstance(found, Keys) and found.pinned == paired.verifier.public
    assert channel.keys(EdgeOptions(channel="off", **paired.edge)) is None
    (tmp_path / "pin").write_text(paired.verifier.public.hex() + "\n")
    link = CloudLink(Address("127.0.0.1", 1), "home", pin=str(tmp_path / "pin"))
    options = EdgeOptions(channel_identity=tmp_path / "device.pem", links=(link,))
    assert channel.keys(options) is None
    named = channel.keys(options, link)
    assert named is not None and named.pinned == paired.verifier.public


def test_a_router_sees_what_begins_alike_and_nothing_without_its_key(
    tmp_path: Path, paired: Paired
) -> None:
    key, prompt = bytes(range(32)), tuple(range(300))
    found = dict(route.header(key, "t", prompt))
    assert found["outrider-length"] == "256"
    marks = found["outrider-route"].split(".")
    assert [len(mark) for mark in marks] == [16, 16, 16]
    alike = dict(route.header(key, "t", (*prompt[:200], *([7] * 100))))["outrider-route"]
    assert alike.split(".")[:2] == marks[:2] and alike.split(".")[2] != marks[2]
    other = dict(route.header(bytes(32), "t", prompt))["outrider-route"].split(".")
    assert not set(other) & set(marks)
    assert route.header(key, "t", prompt[:5]) == (("outrider-length", "4"),)

    keys = channel.keys(EdgeOptions(**paired.edge))
    assert keys is not None and keys.header(codec.decode_up(_open_bytes(), 8)) == ()  # type: ignore[arg-type]
    (tmp_path / "router").write_text(key.hex())
    keys = channel.keys(EdgeOptions(channel_router_key=tmp_path / "router", **paired.edge))
    assert keys is not None and keys.router == key


def test_the_header_travels_with_the_call(
    tmp_path: Path, paired: Paired, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[dict[str, Any]] = []

    async def main() -> None:
        (tmp_path / "router").write_text("ab" * 32)
        options = {**paired.edge, "channel_router_key": tmp_path / "router"}
        async with cloud(tmp_path, **paired.cloud) as c, edge(c.address, **options) as e:
            session = type(c.running.cloud)._session

            async def noted(self: Any, requests: Any, context: Any) -> None:
                seen.append(dict(context.invocation_metadata()))
                await session(self, requests, context)

            monkeypatch.setattr(type(c.running.cloud), "_session", noted)
            await e.answer(ask("x" * 200, max_tokens=8))

    run(main())
    assert seen[0]["outrider-length"] == "128"
    assert len(seen[0]["outrider-route"].split(".")) == 2
