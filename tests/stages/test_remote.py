"""Chains over real workers: the same text, every fault typed, and nothing that hangs."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from outrider.engine import LayerRange
from outrider.errors import (
    AccessDenied,
    ConfigError,
    EngineFailed,
    EngineFull,
    HandshakeRefused,
    LocalProtocolError,
    NotFound,
    PlanError,
    RemoteProtocolError,
    StageLost,
)
from outrider.protocol.activations import ActivationCodec
from outrider.stages import channel
from outrider.stages.channel import BEAT_S, SILENCE_S, Credentials
from outrider.stages.emulate import Memory
from outrider.stages.local import LocalChain
from outrider.stages.remote import RemoteChain
from outrider.stages.seat import Identity
from outrider.stages.worker_at import WorkerAt, look
from outrider.testing.link import Link
from tests.certificates import identity
from tests.stages.tiny import LAYERS, WIDTH
from tests.stages.town import (
    BYTES_A_LAYER,
    PATIENCE_S,
    SPEC,
    Factory,
    Town,
    alone,
    ask,
    ranges,
    said,
    shelf,
    town,
    toy,
    wait_until,
)


@pytest.fixture
def place() -> Iterator[Town]:
    with town() as made:
        yield made


def joined(*addresses: str | WorkerAt, bounds: tuple[int, ...] = (), **options: Any) -> RemoteChain:
    """Layers dealt evenly to workers."""
    workers = [WorkerAt(each) if isinstance(each, str) else each for each in addresses]
    count = len(workers)
    parts = bounds or tuple(n * LAYERS // count for n in range(count + 1))
    return RemoteChain.connect(workers, ranges(*parts), SPEC, **options)


# --- the same text -----------------------------------------------------------------------------


@pytest.mark.parametrize("direct", ["auto", "never"])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_a_chain_says_what_the_model_says(place: Town, count: int, direct: Any) -> None:
    found = [place.worker(shelf(f"w{n}")) for n in range(count)]
    chain = joined(*(address for address, _ in found), direct=direct)
    assert chain.direct == (direct == "auto",) * (count - 1)
    assert said(chain) == alone()
    assert said(chain, slot=2) == alone()
    chain.shutdown()
    for _, worker in found:
        assert not worker.seats
        assert not any(held.busy or held.post.stage.kv for held in worker.shelf.held)  # type: ignore[attr-defined]


def test_a_worker_may_hold_several_chunks(place: Town) -> None:
    a, b = (place.worker(shelf(name))[0] for name in "ab")
    chain = joined(a, b, a, b, bounds=(0, 1, 3, 4, 6))
    assert said(chain) == alone()
    chain.shutdown()


def test_all_that_is_picked_comes_back(place: Town) -> None:
    address, _ = place.worker(shelf())
    chain = joined(address)
    local = LocalChain([lambda: toy("l", ranges(0, 6)[0])])
    from outrider.engine import StageSpan
    from outrider.protocol.sampling import Sampling, SamplingParams

    sampling = Sampling(SamplingParams(temperature=0.9), 5, 1, 2)
    wants: list[dict[str, Any]] = [
        {"want": "logprobs", "top_n": 3},
        {"want": "children", "top_n": 4},
    ]
    for slot, want in enumerate(wants):
        found = []
        for each in (chain, local):
            each.open(slot, sampling)
            found.append(each.submit([StageSpan(slot, 0, 4, (5, 6, 7, 8), first=1, **want)]))
        assert found[0].result(PATIENCE_S) == found[1].result(PATIENCE_S)
    for each in (chain, local):
        each.shutdown()


@pytest.mark.parametrize("codec", ["bf16", "int8"])
def test_a_code_loses_the_same_here_and_there(place: Town, codec: ActivationCodec) -> None:
    address, _ = place.worker(shelf())
    first, second = ranges(0, 2, 6)
    local = LocalChain([lambda: toy("l", first), lambda: toy("l", second)], codec=codec)
    chain = joined(address, address, bounds=(0, 2, 6), codec=codec)
    assert said(chain) == said(local)
    for a, b in zip(chain.times(), local.times(), strict=True):
        assert (a.passes, a.rows, a.bytes_in, a.bytes_out) == (
            b.passes, b.rows, b.bytes_in, b.bytes_out,
        )  # fmt: skip
    chain.shutdown()
    local.shutdown()


def test_times_count_bytes_and_name_devices(place: Town) -> None:
    a, b = (place.worker(shelf(name))[0] for name in "ab")
    chain = joined(WorkerAt(a, "phone"), WorkerAt(b, "laptop"))
    chain.open(0)
    ask(chain, 0, 0, (1, 2, 3)).result(PATIENCE_S)
    one, two = chain.times()
    assert (one.device, one.rows, one.bytes_out) == ("phone", 3, 6 + 12 * WIDTH)
    assert (two.device, two.rows, two.bytes_in) == ("laptop", 3, 6 + 12 * WIDTH)
    wait_until(lambda: all(rtt is not None for rtt in chain.rtt_s))
    chain.shutdown()


def test_passes_are_under_way_in_several_stages(place: Town) -> None:
    gate = threading.Event()

    def prepare(stage: Any) -> None:
        if stage.info.layers.head:
            stage.gate = gate

    factory = Factory(prepare=prepare)
    address, _ = place.worker(shelf(factory=factory))
    chain = joined(address, address)
    chain.open(0)
    futures = [ask(chain, 0, n, (n + 1,)) for n in range(4)]
    # Both stages are one device here, which computes one thing at a time.
    wait_until(lambda: any(stage.passes for stage in factory.built))
    assert not any(future.done() for future in futures)
    gate.set()
    assert len({future.result(PATIENCE_S)[0].ids for future in futures}) >= 1
    chain.shutdown()


def test_the_window_bounds_what_is_on_its_way(place: Town) -> None:
    gate = threading.Event()
    factory = Factory(prepare=lambda stage: setattr(stage, "gate", gate))
    address, worker = place.worker(shelf(factory=factory))
    chain = joined(address, window=3)
    chain.open(0)
    futures = [ask(chain, 0, n, (n + 1,)) for n in range(20)]
    wait_until(lambda: next(iter(worker.seats.values()))._under_way == 3)
    assert chain._members[0].under_way == 3
    gate.set()
    for future in futures:
        assert future.result(PATIENCE_S)
    chain.shutdown()


# --- ways around -------------------------------------------------------------------------------


def test_a_worker_that_can_not_reach_the_next_sends_through_the_coordinator(place: Town) -> None:
    a, b, c = (place.worker(shelf(name))[0] for name in "abc")
    nowhere = WorkerAt(b, "b", peer_address="127.0.0.1:1")
    chain = joined(a, nowhere, c)
    assert chain.direct == (False, True)
    assert said(chain) == alone()
    chain.shutdown()


def test_another_worker_at_the_next_ones_address_is_not_taken_for_it(place: Town) -> None:
    a, b, other = (place.worker(shelf(name))[0] for name in "abo")
    chain = joined(a, WorkerAt(b, peer_address=other))
    assert chain.direct == (False,)
    assert said(chain) == alone()
    chain.shutdown()


def test_links_with_delay(place: Town) -> None:
    a, b = (place.worker(shelf(name))[0] for name in "ab")
    far, _ = place.proxy(b, link=Link.of_rtt(20))
    peer, shaped = place.proxy(b, link=Link.of_rtt(30))
    chain = joined(a, WorkerAt(far, "far", peer_address=peer))
    assert chain.direct == (True,)
    assert said(chain, steps=3) == alone()[:4]
    assert shaped.statistics().bytes_up > 100
    chain.shutdown()


# --- loading -----------------------------------------------------------------------------------


def test_a_stage_is_found_loaded_by_the_next_chain(place: Town) -> None:
    factory = Factory()
    address, worker = place.worker(shelf(factory=factory))
    for _ in range(2):
        chain = joined(address)
        assert said(chain) == alone()
        chain.shutdown()
    assert len(factory.built) == 1
    joined(address, address).shutdown()
    assert len(factory.built) == 3


def test_another_model_is_refused_and_nothing_stays_held(place: Town) -> None:
    a, held = place.worker(shelf("a"))
    b, _ = place.worker(shelf("b", Factory("b", {"weights_digest": "x" * 64})))
    with pytest.raises(HandshakeRefused) as found:
        joined(a, b, weights_digest="w")
    assert "x" * 64 in str(found.value) and "has w" in str(found.value)
    assert not held.seats and held.shelf.describe().claimed_bytes == 0
    with pytest.raises(HandshakeRefused, match="weights digest"):
        joined(a, b)
    assert not held.seats


def test_memory_over_the_limit_names_what_is_missing(place: Town) -> None:
    a, held = place.worker(shelf("a"))
    b, _ = place.worker(shelf("b", memory=Memory(2 * BYTES_A_LAYER)))
    with pytest.raises(EngineFull, match="1000 B are missing"):
        joined(a, b)
    assert not held.seats
    chain = joined(a, b, bounds=(0, 4, 6))
    assert said(chain) == alone()
    chain.shutdown()


def test_idle_stages_give_way(place: Town) -> None:
    factory = Factory()
    address, worker = place.worker(shelf(factory=factory, memory=Memory(6 * BYTES_A_LAYER)))
    joined(address, address, bounds=(0, 3, 6)).shutdown()
    joined(address).shutdown()
    assert [stage.down for stage in factory.built] == [True, True, False]
    assert worker.shelf.memory.claimed == 6 * BYTES_A_LAYER


def test_layers_beyond_those_that_a_worker_takes(place: Town) -> None:
    address, _ = place.worker(shelf(bounds=(3, 6)))
    other, _ = place.worker(shelf("other"))
    with pytest.raises(Exception, match="takes layers 3:6, not 0:3"):
        joined(address, other)
    chain = joined(other, address)
    assert said(chain) == alone()
    chain.shutdown()


def test_a_model_that_a_worker_lacks(place: Town) -> None:
    address, _ = place.worker(shelf())
    with pytest.raises(NotFound, match="has no model 'other'"):
        joined(address, model="other")


PARTS: dict[str, tuple[LayerRange, ...]] = {
    "a gap": (LayerRange(0, 2, True, False), LayerRange(3, 6, False, True)),
    "no head": (LayerRange(0, 3, True, False), LayerRange(3, 6, False, False)),
    "two embeddings": (LayerRange(0, 3, True, False), LayerRange(3, 6, True, True)),
    "the wrong end": (LayerRange(3, 6, False, True), LayerRange(0, 3, True, False)),
}


@pytest.mark.parametrize("name", PARTS)
def test_stages_that_make_no_model(place: Town, name: str) -> None:
    address, worker = place.worker(shelf())
    with pytest.raises(PlanError, match="do not make a whole model"):
        RemoteChain.connect([WorkerAt(address)] * 2, PARTS[name], SPEC)
    assert not worker.seats


def test_workers_and_ranges_must_be_as_many() -> None:
    with pytest.raises(PlanError):
        RemoteChain.connect([], [], SPEC)
    with pytest.raises(PlanError):
        RemoteChain.connect([WorkerAt("127.0.0.1:1")], ranges(0, 3, 6), SPEC)


def test_nobody_there() -> None:
    with pytest.raises(StageLost, match="nobody") as found:
        joined(WorkerAt("127.0.0.1:1", "nobody"))
    assert found.value.device == "nobody"
    with pytest.raises(StageLost):
        look(WorkerAt("127.0.0.1:1"))


# --- faults ------------------------------------------------------------------------------------


def test_signs_of_life_find_a_silent_worker_within_three_seconds() -> None:
    assert SILENCE_S + BEAT_S < 3.0
    pings = dict(channel.CHANNEL_OPTIONS)
    assert pings["grpc.keepalive_time_ms"] + pings["grpc.keepalive_timeout_ms"] < 3000


def test_a_pass_that_fails_fails_alone(place: Town) -> None:
    def prepare(stage: Any) -> None:
        if stage.info.layers.head:
            stage.fails = lambda spans: spans[0].tokens == (90, 90)

    a, b = (place.worker(shelf(n, Factory(n, prepare=prepare)))[0] for n in "ab")
    chain = joined(a, b)
    chain.open(0)
    bad, good = ask(chain, 0, 0, (90, 90)), ask(chain, 0, 0, (1, 2))
    with pytest.raises(EngineFailed, match="the toy broke"):
        bad.result(PATIENCE_S)
    assert good.result(PATIENCE_S)
    chain.close(0)
    assert said(chain) == alone()
    chain.shutdown()


def test_a_pass_that_is_too_large_for_a_stage(place: Town) -> None:
    address, _ = place.worker(shelf(factory=Factory(changed={"max_rows": 2})))
    chain = joined(address)
    chain.open(0)
    with pytest.raises(Exception, match="takes 2"):
        ask(chain, 0, 0, (1, 2, 3)).result(PATIENCE_S)
    assert ask(chain, 0, 0, (1, 2)).result(PATIENCE_S)
    chain.shutdown()


def stuck(place: Town, name: str, **options: Any) -> tuple[str, threading.Event, Any]:
    """A worker whose passes wait until the event is set."""
    gate = threading.Event()
    factory = Factory(name, prepare=lambda stage: setattr(stage, "gate", gate))
    address, worker = place.worker(shelf(name, factory), **options)
    return address, gate, worker


@pytest.mark.parametrize("direct", ["auto", "never"])
def test_a_black_hole_before_a_worker_is_found_by_its_silence(place: Town, direct: Any) -> None:
    a, _ = place.worker(shelf("a"))
    b, gate, _ = stuck(place, "b")
    through, proxy = place.proxy(b)
    chain = joined(WorkerAt(a, "a"), WorkerAt(through, "b", peer_address=b), direct=direct)
    chain.open(0)
    futures = [ask(chain, 0, n, (1,)) for n in range(3)]
    place.soon(proxy.black_hole)
    for future in futures:
        with pytest.raises(StageLost, match="worker b was lost") as found:
            future.result(PATIENCE_S)
        assert found.value.device == "b"
    for late in (lambda: chain.open(1), lambda: ask(chain, 0, 3, (1,)).result(PATIENCE_S)):
        with pytest.raises(StageLost):
            late()
    gate.set()
    chain.shutdown()


def test_a_cut_link_between_workers_loses_the_one_behind(place: Town) -> None:
    a, _ = place.worker(shelf("a"))
    b, gate, worker = stuck(place, "b")
    between, proxy = place.proxy(b)
    chain = joined(WorkerAt(a, "a"), WorkerAt(b, "b", peer_address=between))
    assert chain.direct == (True,)
    chain.open(0)
    future = ask(chain, 0, 0, (1,))
    place.soon(proxy.cut)
    with pytest.raises(StageLost) as found:
        future.result(PATIENCE_S)
    assert found.value.device == "b"
    gate.set()
    chain.shutdown()
    wait_until(lambda: not worker.seats)


def test_a_black_hole_between_workers_is_found_too(place: Town) -> None:
    a, _ = place.worker(shelf("a"))
    b, _ = place.worker(shelf("b"))
    between, proxy = place.proxy(b)
    chain = joined(WorkerAt(a, "a"), WorkerAt(b, "b", peer_address=between))
    chain.open(0)
    ask(chain, 0, 0, (1,)).result(PATIENCE_S)
    place.soon(proxy.black_hole)
    with pytest.raises(StageLost) as found:
        ask(chain, 0, 1, (1,)).result(PATIENCE_S)
    assert found.value.device == "b"
    chain.shutdown()


def test_after_a_loss_the_others_are_free_for_the_next_chain(place: Town) -> None:
    a, kept = place.worker(shelf("a", memory=Memory(3 * BYTES_A_LAYER)))
    b, _ = place.worker(shelf("b"))
    c, _ = place.worker(shelf("c"))
    through, proxy = place.proxy(b)
    chain = joined(a, WorkerAt(through, "b"))
    chain.open(0)
    ask(chain, 0, 0, (1,)).result(PATIENCE_S)
    place.soon(proxy.cut)
    wait_until(lambda: chain._lost is not None)
    chain.shutdown()
    again = joined(a, c)
    assert said(again) == alone()
    again.shutdown()
    assert not kept.seats


def test_a_coordinator_that_dies_frees_its_stages(place: Town) -> None:
    address, worker = place.worker(shelf())
    through, proxy = place.proxy(address)
    chain = joined(through)
    chain.open(0)
    ask(chain, 0, 0, (1,)).result(PATIENCE_S)
    place.soon(proxy.reset)
    wait_until(lambda: not worker.seats)
    wait_until(lambda: not worker.shelf.held[0].busy)
    assert not worker.shelf.held[0].post.stage.kv  # type: ignore[attr-defined]
    chain.shutdown()


def test_a_worker_that_drains_says_so_and_takes_nothing_new(place: Town) -> None:
    address, worker = place.worker(shelf("old"))
    chain = joined(WorkerAt(address, "old"))
    assert chain.leaving == ()
    worker.draining = True
    wait_until(lambda: chain.leaving == ("old",))
    assert said(chain) == alone()
    assert look(WorkerAt(address)).draining
    with pytest.raises(StageLost, match="old"):
        joined(WorkerAt(address, "old"))
    chain.shutdown()


def test_shutdown_ends_what_is_under_way(place: Town) -> None:
    address, gate, worker = stuck(place, "w")
    chain = joined(address)
    chain.open(0)
    futures = [ask(chain, 0, n, (1,)) for n in range(3)]
    wait_until(lambda: bool(worker.seats) and next(iter(worker.seats.values()))._under_way == 3)
    orders = next(iter(worker.seats.values()))._orders
    ending = threading.Thread(target=chain.shutdown)
    ending.start()
    for future in futures:
        with pytest.raises(LocalProtocolError, match="shut down"):
            future.result(PATIENCE_S)
    wait_until(lambda: orders.ended)
    gate.set()
    ending.join(PATIENCE_S)
    assert not worker.seats
    # One was computed when the end came; those that waited were dropped.
    assert worker.shelf.held[0].post.stage.passes <= 1
    with pytest.raises(LocalProtocolError):
        chain.open(0)
    chain.shutdown()


# --- peers that speak nonsense -----------------------------------------------------------------


def babbler(place: Town, answers: dict[str, bytes]) -> str:
    """A server of the same methods that gives fixed bytes."""

    async def start() -> int:
        server = grpc.aio.server()

        def unary(name: str) -> Any:
            async def answer(data: bytes, context: Any) -> bytes:
                return answers.get(name, b"")

            return grpc.unary_unary_rpc_method_handler(answer)

        async def stream(requests: Any, context: Any) -> None:
            await anext(requests)
            await context.write(answers.get("Run", b""))
            async for _ in requests:
                pass

        handlers = {name: unary(name) for name in ("Describe", "Load")}
        handlers |= {n: grpc.stream_stream_rpc_method_handler(stream) for n in ("Run", "Relay")}
        server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(channel.SERVICE, handlers),)
        )
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        place._stack.push_async_callback(server.stop, 0.1)
        return port

    return f"127.0.0.1:{place.do(start())}"


def test_a_worker_that_babbles(place: Town) -> None:
    from outrider.protocol import stage_codec
    from tests.stages.tiny import info

    noise = babbler(place, {"Describe": b"\xff\xff", "Load": b"\xff\xff"})
    for call in (lambda: look(WorkerAt(noise)), lambda: joined(noise)):
        with pytest.raises(RemoteProtocolError):
            call()
    loaded = stage_codec.encode_loaded(info("x", ranges(0, 6)[0]))
    for data in (b"\xff\xff", b"", stage_codec.encode_reached(3)):
        with pytest.raises(RemoteProtocolError):
            joined(babbler(place, {"Load": loaded, "Run": data}))


def test_a_result_that_nobody_asked_for(place: Town) -> None:
    from outrider.engine import Picked
    from outrider.protocol import stage_codec
    from outrider.protocol.stages import Attached, Passed
    from tests.stages.tiny import info

    loaded = stage_codec.encode_loaded(info("x", ranges(0, 6)[0]))
    attached = stage_codec.encode_down(Attached(True))
    address = babbler(place, {"Load": loaded, "Run": attached})
    chain = joined(WorkerAt(address, "liar"))
    chain.open(0)
    future = ask(chain, 0, 0, (1,))
    forged = stage_codec.decode_down(stage_codec.encode_down(Passed(1, (Picked((1,)),))))
    with pytest.raises(RemoteProtocolError):
        chain._take(chain._members[0], forged)
    # It gives no signs of life, which is its end.
    with pytest.raises(StageLost) as found:
        future.result(PATIENCE_S)
    assert found.value.device == "liar"
    chain.shutdown()


# --- keys and certificates ---------------------------------------------------------------------


def keyed(shown: str) -> str:
    if shown != "Bearer right":
        raise AccessDenied("the worker does not know this key")
    return "right"


def test_keys(place: Town) -> None:
    address, worker = place.worker(shelf(), who=keyed)
    for wrong in ("", "wrong"):
        with pytest.raises(AccessDenied, match="does not know this key"):
            joined(address, credentials=Credentials(wrong))
        with pytest.raises(AccessDenied):
            look(WorkerAt(address), Credentials(wrong))
    assert not worker.seats and not worker.shelf.held
    chain = joined(address, address, credentials=Credentials("right"))
    assert chain.direct == (True,)
    assert said(chain) == alone()
    chain.shutdown()


def test_keys_stay_with_the_workers_that_they_are_for(place: Town) -> None:
    """From worker to worker a ticket is shown that is good for one stage of one chain."""
    shown: list[str] = []

    def note(value: str) -> str:
        shown.append(value)
        return "x"

    a, b = (place.worker(shelf(name), who=note)[0] for name in "ab")
    chain = joined(a, b, credentials=Credentials("k"))
    assert said(chain) == alone()
    # Load and Run at each of the two; the stream from a to b showed no key.
    assert shown == ["Bearer k"] * 4
    chain.shutdown()


def tls(folder: Path, authority: Any, *, ask_for_one: bool) -> tuple[Any, Identity]:
    own = identity(folder, "worker", authority)
    pair = (own.key.read_bytes(), own.cert.read_bytes())
    roots = authority.cert.read_bytes() if ask_for_one else None
    made = grpc.ssl_server_credentials([pair], roots, require_client_auth=ask_for_one)
    return made, Identity(own.cert.read_bytes(), own.key.read_bytes())


@pytest.mark.parametrize("ask_for_one", [False, True])
def test_tls_from_end_to_end(place: Town, tmp_path: Path, ask_for_one: bool) -> None:  # noqa: FBT001
    authority = identity(tmp_path, "authority")
    own = identity(tmp_path, "coordinator", authority)
    credentials, who = tls(tmp_path, authority, ask_for_one=ask_for_one)
    a, b = (place.worker(shelf(name), credentials=credentials, identity=who)[0] for name in "ab")
    trusted = Credentials(
        "", authority.cert.read_bytes(), own.cert.read_bytes(), own.key.read_bytes()
    )
    chain = joined(a, b, credentials=trusted)
    assert chain.direct == (True,)
    assert said(chain) == alone()
    chain.shutdown()
    stranger = identity(tmp_path, "stranger")
    for wrong in (Credentials("", stranger.cert.read_bytes()), Credentials()):
        with pytest.raises(StageLost):
            joined(a, b, credentials=wrong)


def test_beyond_loopback_nothing_goes_in_the_clear() -> None:
    for call in (lambda: joined("192.0.2.1:5"), lambda: look(WorkerAt("192.0.2.1:5"))):
        with pytest.raises(ConfigError, match="needs TLS"):
            call()


def test_a_worker_does_not_say_who_was_lost(place: Town) -> None:
    from outrider.protocol.stages import Failed

    address, _ = place.worker(shelf())
    chain = joined(address)
    chain.open(0)
    ask(chain, 0, 0, (1,)).result(PATIENCE_S)
    with pytest.raises(RemoteProtocolError):
        chain._take(chain._members[0], Failed(2, StageLost("gone", device="somebody else")))
    chain.shutdown()
