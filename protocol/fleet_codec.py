"""Messages about fleets to bytes and back; checks as `stage_codec`."""

from __future__ import annotations

import math
from typing import Any

from outrider.protocol import wire_pb2 as pb
from outrider.protocol.codec import parsed, serialized
from outrider.protocol.fleet import (
    MAX_CHUNK,
    MAX_PROBE,
    JoinReply,
    JoinRequest,
    MeasuredLink,
    MeasureLink,
    ProbeData,
    PushDone,
    PushDown,
    PushedFile,
    PushOffer,
    PushUp,
    PushWant,
)
from outrider.protocol.stage_checks import (
    MAX_AUTHORITY,
    MAX_LISTED,
    bad,
    check_names,
    check_ticket,
    check_version,
    fitting,
    flag,
    need,
)
from outrider.protocol.stages import HostedModel

MAX_FILES = 4096
MAX_SIZE = 1 << 50
DIGEST_BYTES = 32

# --- joining -----------------------------------------------------------------------------------


def encode_join(request: JoinRequest) -> bytes:
    return fitting(
        lambda: serialized(
            pb.JoinRequest(
                version=request.version,
                name=request.name,
                kind=request.kind,
                address=request.address,
                key=request.key,
                digests=list(request.digests),
                accepts=request.accepts_bytes,
                leaving=int(request.leaving),
            )
        )
    )


def decode_join(data: bytes) -> JoinRequest:
    wire = parsed(pb.JoinRequest, data)
    check_version(wire.version, worker=False)
    check_names(wire.name, wire.kind, wire.address, wire.key, *wire.digests)
    need(len(wire.digests) <= MAX_LISTED, "a worker lists too much")
    need(wire.name and wire.address, "a worker joins with a name and an address")
    return JoinRequest(
        name=wire.name,
        kind=wire.kind,
        address=wire.address,
        key=wire.key,
        digests=tuple(wire.digests),
        accepts_bytes=wire.accepts,
        leaving=flag(wire.leaving),
        version=wire.version,
    )


def encode_joined(reply: JoinReply) -> bytes:
    models = [pb.HostedModel(name=m.name, digest=m.digest, layers=m.layers) for m in reply.models]
    return fitting(
        lambda: serialized(
            pb.JoinReply(
                version=reply.version,
                lease_ms=reply.lease_ms,
                address=reply.address,
                models=models,
            )
        )
    )


def decode_joined(data: bytes) -> JoinReply:
    wire = parsed(pb.JoinReply, data)
    check_version(wire.version, worker=True)
    check_names(wire.address, *(model.name + model.digest for model in wire.models))
    need(len(wire.models) <= MAX_LISTED, "a coordinator lists too much")
    need(100 <= wire.lease_ms <= 3_600_000, "a lease is out of range")
    models = tuple(HostedModel(m.name, m.digest, m.layers) for m in wire.models)
    return JoinReply(wire.lease_ms, wire.address, models, wire.version)


# --- weights -----------------------------------------------------------------------------------


def encode_push(message: PushUp) -> bytes:
    if isinstance(message, bytes):
        return serialized(pb.PushUp(chunk=message))
    files = [pb.PushedFile(name=f.name, size=f.size, digest=f.digest) for f in message.files]
    offer = pb.PushOffer(
        version=message.version, digest=message.digest, name=message.name, files=files
    )
    return serialized(pb.PushUp(offer=offer))


def decode_push(data: bytes) -> PushUp:
    wire = parsed(pb.PushUp, data)
    match wire.WhichOneof("kind"):
        case "offer":
            return _offer(wire.offer)
        case "chunk":
            need(0 < len(wire.chunk) <= MAX_CHUNK, "a message of weights has an impossible length")
            chunk: bytes = wire.chunk
            return chunk
        case _:
            raise bad("a push is of a kind that this version does not know")


def _offer(wire: Any) -> PushOffer:
    check_version(wire.version, worker=False)
    check_names(wire.digest, wire.name, *(file.name for file in wire.files))
    need(1 <= len(wire.files) <= MAX_FILES, "a push offers no files, or too many")
    names = {file.name for file in wire.files}
    need(len(names) == len(wire.files), "a push names a file twice")
    for file in wire.files:
        need(len(file.digest) == DIGEST_BYTES, "a file's digest has another length")
        need(1 <= file.size <= MAX_SIZE, "a file's size is out of range")
    files = tuple(PushedFile(f.name, f.size, f.digest) for f in wire.files)
    return PushOffer(wire.digest, wire.name, files, wire.version)


def encode_pushed(message: PushDown) -> bytes:
    match message:
        case PushWant():
            want = pb.PushWant(index=message.index, offset=message.offset)
            return serialized(pb.PushDown(want=want))
        case PushDone():
            return serialized(pb.PushDown(done=pb.PushDone(bytes=message.size)))


def decode_pushed(data: bytes) -> PushDown:
    wire = parsed(pb.PushDown, data)
    match wire.WhichOneof("kind"):
        case "want":
            return PushWant(wire.want.index, wire.want.offset)
        case "done":
            return PushDone(wire.done.bytes)
        case _:
            raise bad("an answer to a push is of a kind that this version does not know")


# --- links -------------------------------------------------------------------------------------


def encode_measure(message: MeasureLink) -> bytes:
    return serialized(
        pb.MeasureLink(
            version=message.version,
            ticket=message.ticket,
            address=message.address,
            authority=message.authority,
        )
    )


def decode_measure(data: bytes) -> MeasureLink:
    wire = parsed(pb.MeasureLink, data)
    check_version(wire.version, worker=False)
    check_ticket(wire.ticket)
    check_names(wire.address)
    need(len(wire.authority) <= MAX_AUTHORITY, "an authority's certificate is too long")
    return MeasureLink(wire.ticket, wire.address, wire.authority, wire.version)


def encode_measured(message: MeasuredLink) -> bytes:
    return fitting(
        lambda: serialized(
            pb.MeasuredLink(
                rtt_us=message.rtt_us,
                up=message.up_bytes_per_s,
                down=message.down_bytes_per_s,
                bytes=message.size,
            )
        )
    )


def decode_measured(data: bytes) -> MeasuredLink:
    wire = parsed(pb.MeasuredLink, data)
    rates = (wire.up, wire.down)
    need(all(rate >= 0 and math.isfinite(rate) for rate in rates), "a rate is out of range")
    return MeasuredLink(wire.rtt_us, wire.up, wire.down, wire.bytes)


def encode_probe(message: ProbeData) -> bytes:
    return fitting(lambda: serialized(pb.ProbeData(count=message.count, data=message.data)))


def decode_probe(data: bytes) -> ProbeData:
    wire = parsed(pb.ProbeData, data)
    need(max(wire.count, len(wire.data)) <= MAX_PROBE, "a probe's message is too long")
    return ProbeData(wire.count, wire.data)
