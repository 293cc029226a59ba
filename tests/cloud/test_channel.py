"""The sealed channel at the cloud's door: what is refused there, and how."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from outrider.errors import HandshakeRefused, OutriderError, RemoteProtocolError, SealBroken
from outrider.privacy import bound
from outrider.privacy.handshake import Initiator
from outrider.protocol import codec
from outrider.protocol.messages import Finish, Frame, Heartbeat, Hello, Hint, ModelDescription, Open
from tests.cloud.client import SESSION, Client, Refused, connect, opening, refused
from tests.sealing import Paired
from tests.support import cloud, run

NUMBERS = itertools.count(10)


@pytest.fixture
def paired(tmp_path: Path) -> Paired:
    return Paired.make(tmp_path)


async def shake(
    client: Client,
    paired: Paired,
    change: Callable[[Open, ModelDescription, str], tuple[Open, ModelDescription, str]],
    *after: bytes,
) -> Refused:
    """What the cloud says to a device that binds its keys to something else than it opens."""
    call: Any = client.channel.stream_stream(SESSION)()
    shaking = Initiator(paired.device, paired.verifier.public)
    await call.write(codec.encode_up(Hello(shaking.hello()), 8))
    accept: Any = codec.decode_down(await call.read(), 8, None)
    (model,) = await client.describe("t")
    wanted = opening(next(NUMBERS))
    binding = bound.bind(*change(wanted, model, ""))
    data, _ = shaking.finish(accept.data, binding, codec.encode_up(wanted, 8), 0.0)
    await call.write(codec.encode_up(Finish(data), 8))
    for each in after:
        assert isinstance(await _read(call), bytes), "it was opened"
        await call.write(each)
    while isinstance(await _read(call), bytes):
        pass
    return await refused(call)


async def _read(call: Any) -> Any:
    try:
        return await call.read()
    except Exception:  # noqa: BLE001 - how it ended is asked for by the caller
        return None


def told(found: Refused, kind: type[OutriderError]) -> OutriderError:
    assert isinstance(found.error, kind), found.everything
    return found.error


def test_keys_that_were_made_for_something_else(tmp_path: Path, paired: Paired) -> None:
    async def main() -> None:
        async with cloud(tmp_path, **paired.cloud) as c:
            client = connect(c.address)
            changes: dict[str, Any] = {
                "fence": lambda o, m, a: (replace(o, fence=9), m, a),
                "session": lambda o, m, a: (replace(o, session=bytes(16)), m, a),
                "numeric_class": lambda o, m, a: (replace(o, numeric_class="x"), m, a),
                "tenant": lambda o, m, a: (o, m, "Bearer other"),
            }
            for name, change in changes.items():
                error = told(await shake(client, paired, change), SealBroken)
                assert error.why == f"not the same: {name}"

            def template(o: Open, m: ModelDescription, a: str) -> Any:
                return o, replace(m, chat_template="other"), a

            told(await shake(client, paired, template), HandshakeRefused)
            assert not c.opened()
            await client.channel.close()

    run(main())


def test_the_clear_and_the_sealed_do_not_mix(tmp_path: Path, paired: Paired) -> None:
    async def main() -> None:
        async with cloud(tmp_path, **paired.cloud) as c:
            client = connect(c.address)

            def right(o: Open, m: ModelDescription, a: str) -> Any:
                return o, m, a

            for message in (Hint(1, 0, 0, 0, ()), Heartbeat(1), opening(2)):
                clear = codec.encode_up(message, 8)
                error = told(await shake(client, paired, right, clear), RemoteProtocolError)
                assert "in the clear" in error.what
            frame = codec.encode_up(Frame(bytes(40)), 8)
            told(await shake(client, paired, right, frame), SealBroken)
            plain = codec.encode_up(opening(3), 8)
            told(await client.raw(plain, frame), RemoteProtocolError)
            told(await client.raw(frame), RemoteProtocolError)
            told(await client.raw(codec.encode_up(Finish(b""), 8)), RemoteProtocolError)
            hello = codec.encode_up(Hello(Initiator(paired.device, b"").hello()), 8)
            told(await client.raw(hello, plain), RemoteProtocolError)
            told(await client.raw(codec.encode_up(Hello(b"\x02" * 1249), 8)), RemoteProtocolError)
            await client.channel.close()
            await c.forget()

    run(main())
