"""A coordinator's side of a push: offers a part of a model, and sends what the worker asks for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any

import grpc

from outrider.engine import LayerRange
from outrider.errors import ModelCorrupt, OutriderError, RemoteProtocolError
from outrider.protocol import fleet_codec
from outrider.protocol.fleet import PushDone, PushOffer, PushWant
from outrider.stages.channel import PUSH, Credentials
from outrider.stages.parcel import Parcel, ParcelFile
from outrider.stages.worker_at import WorkerAt, channel_to, failure

PUSH_S = 6 * 3600.0
"""Bound of one push; a worker that dies is found by gRPC's pings."""


def push(
    parcel: Parcel, layers: Sequence[LayerRange], worker: WorkerAt, credentials: Credentials
) -> int:
    """Send a worker what it lacks of these layers; bytes that went. Blocks.

    Raises StageLost, AccessDenied, ConfigError (it takes none), EngineFull (more than it
    takes), DiskFull, ModelCorrupt (files here changed meanwhile, or there something is wrong).
    """
    contents = parcel.contents(layers)
    try:
        sending = _Sending(contents, parcel.offer(contents))
    except OSError as error:
        raise _changed(error) from None
    with channel_to(worker, worker.keys(credentials)) as channel:
        method: Any = channel.stream_stream(PUSH)
        metadata = worker.keys(credentials).metadata
        call = method(sending.messages(), metadata=metadata, timeout=PUSH_S)
        try:
            return sending.answer(call)
        except grpc.RpcError as error:
            raise sending.broke or failure(error, worker.called) from None
        finally:
            sending.wants.put(None)
            call.cancel()


@dataclass(slots=True)
class _Sending:
    """gRPC takes messages in a thread of its own; answers are read in the caller's."""

    contents: tuple[ParcelFile, ...]
    offer: PushOffer
    wants: SimpleQueue[PushWant | None] = field(default_factory=SimpleQueue)
    broke: OutriderError | None = None
    """What became of files here."""

    def messages(self) -> Iterator[bytes]:
        yield fleet_codec.encode_push(self.offer)
        while (want := self.wants.get()) is not None:
            try:
                for data in self.contents[want.index].read(want.offset):
                    yield fleet_codec.encode_push(data)
            except OSError as error:
                self.broke = _changed(error)
                raise

    def answer(self, call: Any) -> int:
        for data in call:
            match fleet_codec.decode_pushed(data):
                case PushDone(size):
                    return size
                case want:
                    self._check(want)
                    self.wants.put(want)
        raise RemoteProtocolError("the worker ended a push without a word")

    def _check(self, want: PushWant) -> None:
        if want.index >= len(self.contents) or want.offset >= self.contents[want.index].size:
            raise RemoteProtocolError("the worker asks for what was not offered")


def _changed(error: OSError) -> ModelCorrupt:
    return ModelCorrupt(
        "the model's files can not be sent",
        why=error.strerror or str(error),
        effect="the worker has not got them",
        todo="look at the files that --model or --split names",
    )
