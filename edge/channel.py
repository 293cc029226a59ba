"""The device's side of the sealed channel: whose keys, and one stream that is sealed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from outrider.errors import ConfigError
from outrider.options import CloudLink, EdgeOptions
from outrider.privacy import bound, channel_files, route
from outrider.privacy.handshake import PACE, Initiator, Pace
from outrider.privacy.identity import Identity
from outrider.privacy.lane import Lane, in_the_clear
from outrider.protocol import codec
from outrider.protocol.account import Account
from outrider.protocol.messages import (
    Accept,
    Commit,
    Down,
    Finish,
    Hello,
    ModelDescription,
    Open,
    Up,
)

Metadata = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Keys:
    """For the sessions on one cloud: who we are, and who must answer."""

    identity: Identity
    pinned: bytes
    router: bytes | None = None
    """Shared with a router that may see which prompts begin alike."""
    pace: Pace = PACE

    def header(self, opening: Open) -> Metadata:
        """What a router may see; nothing without its key."""
        if self.router is None:
            return ()
        return route.header(self.router, opening.model, opening.prompt)


def keys(options: EdgeOptions, link: CloudLink | None = None) -> Keys | None:
    """Of a cloud; None where its sessions are not sealed. Raises ConfigError, SealError."""
    pin = options.channel_pin if link is None else link.pin
    where = "--channel-pin" if link is None else f"pin of link {link.name}"
    if options.channel == "off" or (options.channel == "auto" and not pin):
        return None
    if not pin or options.channel_identity is None:
        raise ConfigError(
            f"the channel can not be sealed: there is no {'--channel-identity' if pin else where}",
            why="who answers must be known, or whoever stands between could answer",
            effect="nothing was sent",
            todo="pair with the cloud, or name the device's key and the cloud's",
        )
    router = options.channel_router_key
    return Keys(
        channel_files.identity(options.channel_identity, "--channel-identity"),
        channel_files.pin(pin, where),
        None if router is None else channel_files.route_key(router, "--channel-router-key"),
    )


class Greeting:
    """A session's handshake, and the open in its last message."""

    def __init__(self, keys: Keys) -> None:
        self._shake = Initiator(keys.identity, keys.pinned, keys.pace)

    def hello(self) -> Hello:
        return Hello(self._shake.hello())

    def finish(
        self,
        answer: Down,
        opening: Open,
        model: ModelDescription,
        authorization: str,
        clock: Callable[[], float],
    ) -> tuple[Finish, Sealed]:
        """Raises PeerUntrusted, SealBroken, RemoteProtocolError; then nothing was told."""
        if not isinstance(answer, Accept):
            raise in_the_clear(answer)
        binding = bound.bind(opening, model, authorization)
        payload = codec.encode_up(opening, opening.slots)
        data, channel = self._shake.finish(answer.data, binding, payload, clock())
        return Finish(data), Sealed(Lane(channel, clock), Account(opening), opening)


@dataclass(frozen=True, slots=True)
class Sealed:
    """One stream after its handshake."""

    lane: Lane
    account: Account
    opening: Open

    def seal(self, data: bytes) -> bytes:
        """An encoded message as it is sent."""
        message: Up = self.lane.seal(data)
        return codec.encode_up(message, self.opening.slots)

    def open(self, outer: Down) -> Down:
        """What came in a frame. Raises SealBroken, RemoteProtocolError."""
        data = self.lane.open(outer)
        message = codec.decode_down(data, self.opening.slots, self.opening.top_logprobs)
        if isinstance(message, Commit):
            self.account.follow(message)
        return message


def attested(models: Sequence[ModelDescription]) -> Literal["none", "unverified"]:
    """What is known of the machine that a cloud runs on. Nothing that a cloud may say of it can
    be checked here yet, so that whatever it says is `unverified`."""
    claims = {model.attestation for model in models}
    return "unverified" if claims - {"none"} else "none"
