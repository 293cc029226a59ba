"""What a worker answers to calls that are no chain of ours."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import grpc
import grpc.aio
import pytest

from outrider.engine import LayerRange, Picked, StageSpan
from outrider.errors import (
    AccessDenied,
    HandshakeRefused,
    LocalProtocolError,
    ModelCorrupt,
    NotFound,
    OutriderError,
    RemoteProtocolError,
)
from outrider.protocol import stage_codec
from outrider.protocol.stages import (
    Attach,
    Attached,
    Beat,
    CloseSlot,
    Failed,
    OpenSlot,
    Pass,
    Passed,
    StageDown,
    StageLoad,
)
from outrider.stages import server
from outrider.stages.channel import (
    INDEX_KEY,
    LOAD,
    PIPELINE_KEY,
    RELAY,
    RUN,
    TICKET_KEY,
    told,
)
from outrider.stages.seat import MOST_UNDER_WAY
from outrider.stages.server import Worker
from outrider.stages.worker_at import WorkerAt, look
from tests.stages.tiny import LAYERS
from tests.stages.town import PATIENCE_S, Factory, Town, shelf, town, wait_until

WHOLE = LayerRange(0, LAYERS, True, True)
ORDER = StageLoad(b"p" * 16, 0, b"t" * 32, WHOLE)
ATTACH = Attach(ORDER.pipeline, 0)


@pytest.fixture
def place() -> Iterator[Town]:
    with town() as made:
        yield made


class Caller:
    """Raw calls on a worker; every failure is raised as the error that came."""

    def __init__(self, address: str, key: str = "") -> None:
        options = (("grpc.max_send_message_length", -1),)
        self.address = address
        self.channel = grpc.insecure_channel(address, options=options)  # noqa: TID251
        self.metadata = (("authorization", key),) if key else ()

    def load(self, order: StageLoad = ORDER) -> Any:
        call: Any = self.channel.unary_unary(LOAD)
        with typed():
            data = call(stage_codec.encode_load(order), metadata=self.metadata)
            return stage_codec.decode_loaded(data)

    def run(self, *messages: bytes) -> Iterator[StageDown]:
        """What comes down; the stream stays open."""
        call: Any = self.channel.stream_stream(RUN)
        with typed():
            for data in call(still_open(messages), metadata=self.metadata, timeout=PATIENCE_S):
                yield stage_codec.decode_down(data)

    def relay(self, *messages: bytes, **shown: Any) -> Iterator[int]:
        keys = {PIPELINE_KEY: ORDER.pipeline, TICKET_KEY: ORDER.ticket, INDEX_KEY: "0"}
        call: Any = self.channel.stream_stream(RELAY)
        names = {"pipeline": PIPELINE_KEY, "ticket": TICKET_KEY, "index": INDEX_KEY}
        keys |= {names[name]: value for name, value in shown.items()}
        with typed():
            stream = call(still_open(messages), metadata=tuple(keys.items()), timeout=PATIENCE_S)
            for data in stream:
                yield stage_codec.decode_reached(data)


class typed:
    """Turns a failed call into the typed error in its metadata."""

    def __enter__(self) -> None: ...

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if isinstance(error, grpc.RpcError):
            failed: Any = error
            raise told(failed.trailing_metadata()) or error from None


def still_open(messages: tuple[bytes, ...]) -> Iterator[bytes]:
    """A stream that has said all it says and does not end."""
    yield from messages
    threading.Event().wait(PATIENCE_S)


def op(number: int, *tokens: int, base: int = 0) -> bytes:
    spans = (StageSpan(0, base, len(tokens), tokens),)
    return stage_codec.encode_op(Pass(number, spans))


UP = stage_codec.encode_up(ATTACH)
OPEN = stage_codec.encode_op(OpenSlot(0))


def working(place: Town, **options: Any) -> tuple[Caller, Worker]:
    address, worker = place.worker(shelf(**options))
    return Caller(address), worker


# --- the plain way -----------------------------------------------------------------------------


def test_load_attach_and_one_pass(place: Town) -> None:
    caller, worker = working(place)
    info = caller.load()
    assert info.layers == WHOLE and info.weights_digest == "w"
    down = caller.run(UP)
    assert next(down) == Attached(True)
    orders = caller.relay(OPEN, op(1, 5, 6), stage_codec.encode_op(CloseSlot(0)))
    assert next(orders) == 0
    first = next(message for message in down if not isinstance(message, Beat))
    assert isinstance(first, Passed) and first.number == 1 and len(first.picked[0].ids) == 2
    assert len(first.trail) == 1
    wait_until(lambda: not worker.shelf.held[0].post.stage.kv)  # type: ignore[attr-defined]


def test_what_a_worker_says_of_itself(place: Town) -> None:
    address, _ = place.worker(shelf("phone", kind="phone", bounds=(1, 5)))
    host = look(WorkerAt(address))
    assert (host.name, host.kind, host.speed, host.memory_bytes) == ("phone", "phone", 1.0, 0)
    assert host.models[0].name == "tiny" and host.models[0].layers == LAYERS
    assert (host.first_layer, host.stop_layer, host.loaded) == (1, 5, ())


def test_what_is_loaded_shows(place: Town) -> None:
    caller, worker = working(place)
    caller.load()
    (stage,) = worker.shelf.describe().loaded
    assert stage.layers == WHOLE and stage.busy
    assert worker.shelf.describe().claimed_bytes == stage.memory_bytes > 0


# --- loads -------------------------------------------------------------------------------------


def test_a_stage_is_loaded_once(place: Town) -> None:
    caller, worker = working(place)
    caller.load()
    with pytest.raises(RemoteProtocolError, match="loaded already"):
        caller.load()
    caller.load(replace(ORDER, index=1))
    assert len(worker.seats) == 2


def test_a_stage_that_nobody_attaches_to_is_free_again(
    place: Town, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "CLAIM_S", 0.01)
    caller, worker = working(place)
    caller.load()
    wait_until(lambda: not worker.seats and not worker.shelf.held[0].busy)
    with pytest.raises(NotFound):
        next(caller.run(UP))


def test_loading_that_fails_is_told_and_leaves_nothing(place: Town) -> None:
    def broken(spec: Any, layers: Any) -> Any:
        raise ModelCorrupt("a bad file", why="cut short")

    caller, worker = working(place, build=broken)
    with pytest.raises(ModelCorrupt, match="a bad file"):
        caller.load()
    assert not worker.seats and not worker.shelf.held and not worker.shelf.memory.claimed


def test_a_bug_while_loading_tells_its_kind_alone(place: Town) -> None:
    def broken(spec: Any, layers: Any) -> Any:
        raise ZeroDivisionError("secret")

    caller, _ = working(place, build=broken)
    with pytest.raises(OutriderError, match="ZeroDivisionError") as found:
        caller.load()
    assert "secret" not in str(found.value)


def test_files_that_changed_since_the_start(place: Town) -> None:
    caller, worker = working(place, factory=Factory(changed={"weights_digest": "new"}))
    worker.shelf.models["tiny"] = shelf().models["tiny"]
    with pytest.raises(HandshakeRefused, match="weights digest"):
        caller.load()
    assert not worker.shelf.held


def test_a_caller_who_leaves_while_it_loads_leaves_an_idle_stage(
    place: Town, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, began, left = threading.Event(), threading.Event(), threading.Event()
    factory = Factory()
    take = Worker._take

    async def watched(self: Worker, order: StageLoad, tenant: str) -> Any:
        try:
            return await take(self, order, tenant)
        except asyncio.CancelledError:
            left.set()
            raise

    monkeypatch.setattr(Worker, "_take", watched)

    def slow(spec: Any, layers: Any) -> Any:
        began.set()
        assert gate.wait(PATIENCE_S)
        return factory(spec, layers)

    caller, worker = working(place, build=slow)
    call: Any = caller.channel.unary_unary(LOAD)
    future = call.future(stage_codec.encode_load(ORDER))
    assert began.wait(PATIENCE_S)
    future.cancel()
    assert left.wait(PATIENCE_S)
    gate.set()
    wait_until(lambda: bool(worker.shelf.held) and not worker.shelf.held[0].busy)
    assert not worker.seats


def test_idle_stages_do_not_stay_for_ever(place: Town) -> None:
    now = [0.0]
    caller, worker = working(place, clock=lambda: now[0])
    caller.load()
    worker.shelf.give_back(worker.shelf.held[0])
    now[0] = 299.0
    worker.shelf.expire()
    assert worker.shelf.held
    now[0] = 300.0
    worker.shelf.expire()
    assert not worker.shelf.held and worker.shelf.memory.claimed == 0


# --- streams -----------------------------------------------------------------------------------


def test_a_stream_begins_with_attach_and_attaches_once(place: Town) -> None:
    caller, worker = working(place)
    caller.load()
    with pytest.raises(RemoteProtocolError, match="begins with attach"):
        next(caller.run(stage_codec.encode_up(Beat(1))))
    down = caller.run(UP, UP)
    assert next(down) == Attached(True)
    with pytest.raises(RemoteProtocolError, match="attached to once"):
        list(down)
    assert not worker.seats


def test_a_stage_of_somebody_else(place: Town) -> None:
    address, _ = place.worker(shelf(), who=lambda shown: shown)
    Caller(address, "alice").load()
    with pytest.raises(NotFound):
        next(Caller(address, "bob").run(UP))
    assert next(Caller(address, "alice").run(UP)) == Attached(True)
    with pytest.raises(NotFound, match="has a stream already"):
        next(Caller(address, "alice").run(UP))


def test_the_last_stage_needs_the_head(place: Town) -> None:
    caller, worker = working(place)
    caller.load(replace(ORDER, layers=LayerRange(0, 3, True, False)))
    with pytest.raises(RemoteProtocolError, match="must have the head"):
        list(caller.run(UP))
    assert not worker.seats


def test_beats_are_answered(place: Town) -> None:
    caller, _ = working(place)
    caller.load()
    down = caller.run(UP, stage_codec.encode_up(Beat(12345)))
    assert any(isinstance(message, Beat) and message.echo_us == 12345 for message in down)


# --- orders ------------------------------------------------------------------------------------

SHOWN: dict[str, dict[str, Any]] = {
    "another ticket": {"ticket": b"x" * 32},
    "a short ticket": {"ticket": b"t"},
    "no ticket": {"ticket": b""},
}


@pytest.mark.parametrize("name", SHOWN)
def test_orders_need_the_ticket(place: Town, name: str) -> None:
    caller, worker = working(place)
    caller.load()
    with pytest.raises(AccessDenied, match="ticket"):
        next(caller.relay(**SHOWN[name]))
    assert next(iter(worker.seats.values())).relayed is None


@pytest.mark.parametrize(
    "shown", [{"pipeline": b"x" * 16}, {"index": "1"}, {"index": "-1"}, {"index": "9" * 40}]
)
def test_orders_for_no_stage(place: Town, shown: dict[str, Any]) -> None:
    caller, _ = working(place)
    caller.load()
    with pytest.raises(NotFound):
        next(caller.relay(**shown))


def test_orders_come_from_one_stream(place: Town) -> None:
    caller, _ = working(place)
    caller.load()
    orders = caller.relay()
    assert next(orders) == 0
    with pytest.raises(RemoteProtocolError, match="from one stream"):
        next(caller.relay())


def test_orders_before_anybody_attached(place: Town) -> None:
    caller, _ = working(place)
    caller.load()
    with pytest.raises(RemoteProtocolError, match="nobody has attached"):
        list(caller.relay(OPEN))


@pytest.mark.parametrize("noise", [b"\xff\xff\xff", b"", op(1, 2)[:-3]])
def test_garbage_ends_the_stream_of_orders(place: Town, noise: bytes) -> None:
    caller, worker = working(place)
    caller.load()
    down = caller.run(UP)
    assert next(down) == Attached(True)
    with pytest.raises(RemoteProtocolError):
        list(caller.relay(OPEN, noise))
    # Whoever attached decides what follows; the worker itself goes on.
    assert worker.seats and look(WorkerAt(caller.address)).loaded


def test_garbage_activations_fail_the_pass_alone(place: Town) -> None:
    caller, _ = working(place)
    caller.load(replace(ORDER, layers=LayerRange(3, LAYERS, False, True)))
    down = caller.run(UP)
    assert next(down) == Attached(True)
    spans = (StageSpan(0, 0, 1, (1,)),)
    bad = [stage_codec.encode_op(Pass(n, spans, data)) for n, data in ((1, b""), (2, b"\1" * 22))]
    orders = caller.relay(OPEN, *bad)
    assert next(orders) == 0
    found = [next(m for m in down if not isinstance(m, Beat)) for _ in bad]
    for message in found:
        assert isinstance(getattr(message, "error", None), RemoteProtocolError)


def test_a_message_that_is_too_large(place: Town, monkeypatch: pytest.MonkeyPatch) -> None:
    caller, worker = working(place)
    caller.load()
    down = caller.run(UP)
    assert next(down) == Attached(True)
    with pytest.raises(grpc.RpcError) as found:
        list(caller.relay(bytes(65 << 20)))
    failed: Any = found.value
    assert failed.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert worker.seats


def test_a_result_that_can_not_be_sent_fails_its_pass_alone(place: Town) -> None:
    def prepare(stage: Any) -> None:
        run = stage.run
        wrong = [Picked((-1,))]
        stage.run = lambda spans: wrong if spans[0].tokens == (9,) else run(spans)

    caller, _ = working(place, factory=Factory(prepare=prepare))
    caller.load()
    down = caller.run(UP)
    assert next(down) == Attached(True)
    orders = caller.relay(OPEN, op(1, 9), op(2, 5))
    assert next(orders) == 0
    first, second = (next(m for m in down if not isinstance(m, Beat)) for _ in range(2))
    assert isinstance(first, Failed) and isinstance(first.error, LocalProtocolError)
    assert isinstance(second, Passed)


def test_passes_that_wait_are_bounded(place: Town) -> None:
    gate = threading.Event()
    caller, _ = working(place, factory=Factory(prepare=lambda s: setattr(s, "gate", gate)))
    caller.load()
    down = caller.run(UP)
    assert next(down) == Attached(True)
    many = [op(n + 1, 1, base=n) for n in range(MOST_UNDER_WAY + 1)]
    with pytest.raises(RemoteProtocolError, match="passes wait"):
        list(caller.relay(OPEN, *many))
    gate.set()
