"""Stage messages to bytes and back; with `codec` the only importer of the generated code.

As there: what comes in is checked for size, range and form (RemoteProtocolError, and
HandshakeRefused for a version that can not be read), what goes out for numbers that do not
fit (LocalProtocolError). Activations stay bytes here: whoever computes decodes them.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from outrider.engine import LayerRange, Picked, RowRule, StageInfo, StageSpan, Want
from outrider.errors import InvalidRequest, LocalProtocolError
from outrider.protocol import faults, logprobs
from outrider.protocol import wire_pb2 as pb
from outrider.protocol.activations import CODECS
from outrider.protocol.codec import (
    MAX_NAME,
    params_from_wire,
    params_to_wire,
    parsed,
    serialized,
)
from outrider.protocol.logprobs import NO_ID
from outrider.protocol.messages import VERSION
from outrider.protocol.sampling import Sampling, TokenLogprobs
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
from outrider.protocol.stages import (
    PIPELINE_BYTES,
    Attach,
    Attached,
    Beat,
    Broken,
    CloseSlot,
    Detach,
    Failed,
    Forward,
    Hop,
    HostedModel,
    LoadedStage,
    NextStage,
    OpenSlot,
    Pass,
    Passed,
    RewindSlot,
    StageDown,
    StageHost,
    StageLoad,
    StageOp,
    StageUp,
)

MAX_STAGES = 64
"""Of a chain."""
MAX_LAYERS = 65535
MAX_SLOTS = 65535
MAX_SPANS = 4096
"""Of a pass."""
MAX_ROWS = 65535
MAX_CONTEXT = 1 << 24
MAX_TOP = 1024
"""Children or logprobs of a row."""
MAX_ACTIVATIONS = 60 << 20
"""Bytes of a pass's activations."""
MAX_ERROR = 64 << 10

WANTS: tuple[Want, ...] = get_args(Want)
_SPAN = struct.Struct("<IIIIBxH")
_HOP = struct.Struct("<QII")


# --- describe ----------------------------------------------------------------------------------


def encode_query(version: int = VERSION) -> bytes:
    return serialized(pb.StageQuery(version=version))


def decode_query(data: bytes) -> None:
    """Worker: raises HandshakeRefused for a version that it can not read."""
    check_version(parsed(pb.StageQuery, data).version, worker=False)


def encode_host(host: StageHost) -> bytes:
    return fitting(lambda: serialized(_host_to_wire(host)))


def _host_to_wire(host: StageHost) -> pb.StageHost:
    return pb.StageHost(
        version=host.version,
        name=host.name,
        kind=host.kind,
        memory=host.memory_bytes,
        claimed=host.claimed_bytes,
        speed=host.speed,
        engines=list(host.engines),
        models=[pb.HostedModel(name=m.name, digest=m.digest, layers=m.layers) for m in host.models],
        loaded=[_loaded_to_wire(each) for each in host.loaded],
        first_layer=host.first_layer,
        stop_layer=host.stop_layer,
        draining=int(host.draining),
        accepts=host.accepts_bytes,
    )


def _loaded_to_wire(stage: LoadedStage) -> pb.LoadedStage:
    return pb.LoadedStage(
        digest=stage.digest,
        layers=_layers_to_wire(stage.layers),
        memory=stage.memory_bytes,
        busy=int(stage.busy),
    )


def decode_host(data: bytes) -> StageHost:
    wire = parsed(pb.StageHost, data)
    check_version(wire.version, worker=True)
    check_names(wire.name, wire.kind, *wire.engines, *(m.name + m.digest for m in wire.models))
    longest = max(len(wire.models), len(wire.loaded), len(wire.engines))
    need(longest <= MAX_LISTED, "a worker lists too much")
    need(0.0 < wire.speed < float("inf"), "a worker's speed is out of range")
    return StageHost(
        name=wire.name,
        kind=wire.kind,
        memory_bytes=wire.memory,
        claimed_bytes=wire.claimed,
        speed=wire.speed,
        engines=tuple(wire.engines),
        models=tuple(HostedModel(m.name, m.digest, m.layers) for m in wire.models),
        loaded=tuple(_loaded_from_wire(each) for each in wire.loaded),
        first_layer=wire.first_layer,
        stop_layer=wire.stop_layer,
        draining=flag(wire.draining),
        accepts_bytes=wire.accepts,
        version=wire.version,
    )


def _loaded_from_wire(wire: Any) -> LoadedStage:
    check_names(wire.digest)
    return LoadedStage(wire.digest, _layers_from_wire(wire.layers), wire.memory, flag(wire.busy))


def _layers_to_wire(layers: LayerRange) -> pb.LayerSpan:
    return pb.LayerSpan(
        start=layers.start,
        stop=layers.stop,
        embedding=int(layers.embedding),
        head=int(layers.head),
    )


def _layers_from_wire(wire: Any) -> LayerRange:
    need(wire.start <= wire.stop <= MAX_LAYERS, "a range of layers is out of order")
    return LayerRange(wire.start, wire.stop, flag(wire.embedding), flag(wire.head))


# --- load --------------------------------------------------------------------------------------


def encode_load(load: StageLoad) -> bytes:
    return fitting(lambda: serialized(_load_to_wire(load)))


def _load_to_wire(load: StageLoad) -> pb.StageLoad:
    return pb.StageLoad(
        version=load.version,
        pipeline=load.pipeline,
        index=load.index,
        ticket=load.ticket,
        layers=_layers_to_wire(load.layers),
        model=load.model,
        weights_digest=load.weights_digest,
        engine=load.engine,
        device=load.device,
        dtype=load.dtype,
        numerics=int(load.numerics == "plain"),
        max_slots=load.max_slots,
        max_rows=load.max_rows,
        context=load.context or 0,
        options=[text for pair in load.options for text in pair],
    )


def decode_load(data: bytes) -> StageLoad:
    wire = parsed(pb.StageLoad, data)
    check_version(wire.version, worker=False)
    _check_load(wire)
    return StageLoad(
        pipeline=wire.pipeline,
        index=wire.index,
        ticket=wire.ticket,
        layers=_layers_from_wire(wire.layers),
        model=wire.model,
        weights_digest=wire.weights_digest,
        engine=wire.engine,
        device=wire.device,
        dtype=wire.dtype,
        numerics="plain" if flag(wire.numerics) else "exact",
        max_slots=wire.max_slots,
        max_rows=wire.max_rows,
        context=wire.context or None,
        options=tuple(zip(wire.options[::2], wire.options[1::2], strict=True)),
        version=wire.version,
    )


def _check_load(wire: Any) -> None:
    _check_place(wire)
    check_ticket(wire.ticket)
    check_names(
        wire.model, wire.weights_digest, wire.engine, wire.device, wire.dtype, *wire.options
    )
    sound = (
        1 <= wire.max_slots <= MAX_SLOTS
        and 1 <= wire.max_rows <= MAX_ROWS
        and wire.context <= MAX_CONTEXT
        and len(wire.options) <= MAX_LISTED
        and len(wire.options) % 2 == 0
    )
    need(sound, "a load has a field that is out of range")


def _check_place(wire: Any) -> None:
    need(len(wire.pipeline) == PIPELINE_BYTES, "a pipeline's id has another length")
    need(wire.index < MAX_STAGES, f"a chain has at most {MAX_STAGES} stages")


def encode_loaded(info: StageInfo) -> bytes:
    return fitting(lambda: serialized(_loaded_stage_to_wire(info)))


def _loaded_stage_to_wire(info: StageInfo) -> pb.StageLoaded:
    return pb.StageLoaded(
        version=VERSION,
        engine=info.engine,
        model=info.model,
        device=info.device,
        dtype=info.dtype,
        layers=_layers_to_wire(info.layers),
        model_layers=info.model_layers,
        hidden_size=info.hidden_size,
        vocabulary_digest=info.vocabulary_digest,
        vocabulary_size=info.vocabulary_size,
        context=info.context,
        max_slots=info.max_slots,
        max_rows=info.max_rows,
        exact=int(info.exact),
        least_rows=info.row_rule.minimum,
        row_multiple=info.row_rule.multiple,
        uniform=int(info.row_rule.uniform),
        weights_digest=info.weights_digest,
        numeric_class=info.numeric_class,
        memory=info.memory_bytes,
    )


def decode_loaded(data: bytes) -> StageInfo:
    wire = parsed(pb.StageLoaded, data)
    check_version(wire.version, worker=True)
    _check_loaded(wire)
    return StageInfo(
        engine=wire.engine,
        model=wire.model,
        device=wire.device,
        dtype=wire.dtype,
        layers=_layers_from_wire(wire.layers),
        model_layers=wire.model_layers,
        hidden_size=wire.hidden_size,
        vocabulary_digest=wire.vocabulary_digest,
        vocabulary_size=wire.vocabulary_size,
        context=wire.context,
        max_slots=wire.max_slots,
        max_rows=wire.max_rows,
        exact=flag(wire.exact),
        row_rule=RowRule(wire.least_rows, wire.row_multiple, flag(wire.uniform)),
        weights_digest=wire.weights_digest,
        numeric_class=wire.numeric_class,
        memory_bytes=wire.memory,
    )


def _check_loaded(wire: Any) -> None:
    check_names(
        wire.engine,
        wire.model,
        wire.device,
        wire.dtype,
        wire.vocabulary_digest,
        wire.weights_digest,
        wire.numeric_class,
    )
    sound = (
        1 <= wire.model_layers <= MAX_LAYERS
        and 1 <= wire.hidden_size <= 65535
        and wire.vocabulary_size >= 1
        and 1 <= wire.context <= MAX_CONTEXT
        and 1 <= wire.max_slots <= MAX_SLOTS
        and 1 <= wire.max_rows <= MAX_ROWS
        and 1 <= wire.least_rows <= MAX_ROWS
        and 1 <= wire.row_multiple <= MAX_ROWS
    )
    need(sound, "a loaded stage has a field that is out of range")


# --- what goes through the stages --------------------------------------------------------------


def encode_op(op: StageOp) -> bytes:
    return fitting(lambda: serialized(_op_to_wire(op)))


def _op_to_wire(op: StageOp) -> pb.StageOp:
    match op:
        case Pass():
            return pb.StageOp(work=_pass_to_wire(op))
        case OpenSlot():
            sampling = None if op.sampling is None else _sampling_to_wire(op.sampling)
            return pb.StageOp(open=pb.OpenSlot(slot=op.slot, sampling=sampling))
        case RewindSlot():
            return pb.StageOp(rewind=pb.RewindSlot(slot=op.slot, length=op.length))
        case CloseSlot():
            return pb.StageOp(close=pb.CloseSlot(slot=op.slot))


def decode_op(data: bytes) -> StageOp:
    wire = parsed(pb.StageOp, data)
    match wire.WhichOneof("kind"):
        case "work":
            return _pass_from_wire(wire.work)
        case "open":
            given = wire.open.HasField("sampling")
            sampling = _sampling_from_wire(wire.open.sampling) if given else None
            return OpenSlot(_slot(wire.open.slot), sampling)
        case "rewind":
            return RewindSlot(_slot(wire.rewind.slot), wire.rewind.length)
        case "close":
            return CloseSlot(_slot(wire.close.slot))
        case _:
            raise bad("an order to a stage is of a kind that this version does not know")


def _slot(number: int) -> int:
    need(number <= MAX_SLOTS, "a slot's number is out of range")
    return number


def _sampling_to_wire(sampling: Sampling) -> pb.StageSampling:
    if sampling.constraint is not None:
        raise LocalProtocolError("the last stage of a chain knows of no constraints")
    return pb.StageSampling(
        params=params_to_wire(sampling.params),
        seed=sampling.seed.to_bytes(16, "little"),
        choice=sampling.choice,
        prompt_length=sampling.prompt_length,
    )


def _sampling_from_wire(wire: Any) -> Sampling:
    need(len(wire.seed) == 16, "a seed has another length")
    try:
        params = params_from_wire(wire.params)
    except InvalidRequest as refused:
        raise bad(f"a slot's sampling is out of range: {refused.param}") from None
    return Sampling(params, int.from_bytes(wire.seed, "little"), wire.choice, wire.prompt_length)


def _pass_to_wire(message: Pass) -> pb.Pass:
    for span in message.spans:
        if len(span.tokens) != span.rows or span.hidden is not None:
            raise LocalProtocolError("spans carry a token for each row, and no hidden states")
    tokens = [token for span in message.spans for token in span.tokens]
    return pb.Pass(
        number=message.number,
        spans=b"".join(map(_span_to_bytes, message.spans)),
        tokens=struct.pack(f"<{len(tokens)}I", *tokens),
        activations=message.activations,
        trail=_trail_to_bytes(message.trail),
    )


def _span_to_bytes(span: StageSpan) -> bytes:
    want = WANTS.index(span.want)
    return _SPAN.pack(span.slot, span.base, span.rows, span.first, want, span.top_n)


def _pass_from_wire(wire: Any) -> Pass:
    count, left = divmod(len(wire.spans), _SPAN.size)
    need(left == 0 and 1 <= count <= MAX_SPANS, "the spans of a pass have an impossible length")
    need(len(wire.activations) <= MAX_ACTIVATIONS, "a pass brings too many activations")
    need(len(wire.tokens) % 4 == 0, "the tokens of a pass have an impossible length")
    need(wire.number >= 1, "passes are counted from 1")
    tokens = struct.unpack(f"<{len(wire.tokens) // 4}I", wire.tokens)
    spans = _spans_from_bytes(wire.spans, tokens)
    return Pass(wire.number, spans, wire.activations, _trail_from_bytes(wire.trail))


def _spans_from_bytes(data: bytes, tokens: Sequence[int]) -> tuple[StageSpan, ...]:
    spans, at = [], 0
    for slot, base, rows, first, want, top_n in _SPAN.iter_unpack(data):
        sound = (
            slot <= MAX_SLOTS
            and base + rows <= MAX_CONTEXT
            and 1 <= rows
            and at + rows <= min(len(tokens), MAX_ROWS)
            and first <= rows
            and want < len(WANTS)
            and top_n <= MAX_TOP
        )
        need(sound, "a span of a pass has a field that is out of range")
        part = tuple(tokens[at : at + rows])
        spans.append(StageSpan(slot, base, rows, part, None, first, WANTS[want], top_n))
        at += rows
    need(at == len(tokens), "a pass has tokens that no span names")
    need(len({span.slot for span in spans}) == len(spans), "a slot stands twice in a pass")
    return tuple(spans)


def _trail_to_bytes(trail: Sequence[Hop]) -> bytes:
    return b"".join(_HOP.pack(hop.compute_us, hop.bytes_in, hop.bytes_out) for hop in trail)


def _trail_from_bytes(data: bytes) -> tuple[Hop, ...]:
    count, left = divmod(len(data), _HOP.size)
    need(left == 0 and count <= MAX_STAGES, "the trail of a pass has an impossible length")
    return tuple(Hop(*parts) for parts in _HOP.iter_unpack(data))


# --- the coordinator's stream ------------------------------------------------------------------


def encode_up(message: StageUp) -> bytes:
    return fitting(lambda: serialized(_up_to_wire(message)))


def _up_to_wire(message: StageUp) -> pb.StageUp:
    match message:
        case Attach():
            return pb.StageUp(attach=_attach_to_wire(message))
        case Detach():
            return pb.StageUp(detach=pb.Detach())
        case Beat():
            return pb.StageUp(beat=_beat_to_wire(message))


def _attach_to_wire(message: Attach) -> pb.Attach:
    after = message.next
    wire = None
    if after is not None:
        wire = pb.NextStage(address=after.address, ticket=after.ticket, authority=after.authority)
    return pb.Attach(
        version=message.version,
        pipeline=message.pipeline,
        index=message.index,
        codec=1 + CODECS.index(message.codec),
        next=wire,
    )


def _beat_to_wire(beat: Beat) -> pb.Beat:
    return pb.Beat(sent_us=beat.sent_us, echo_us=beat.echo_us, leaving=int(beat.leaving))


def decode_up(data: bytes) -> StageUp:
    wire = parsed(pb.StageUp, data)
    match wire.WhichOneof("kind"):
        case "attach":
            return _attach_from_wire(wire.attach)
        case "detach":
            return Detach()
        case "beat":
            return _beat_from_wire(wire.beat)
        case _:
            raise bad("a coordinator's message is of a kind that this version does not know")


def _attach_from_wire(wire: Any) -> Attach:
    check_version(wire.version, worker=False)
    _check_place(wire)
    need(1 <= wire.codec <= len(CODECS), "activations are in a code that this version lacks")
    after = _next_from_wire(wire.next) if wire.HasField("next") else None
    return Attach(wire.pipeline, wire.index, CODECS[wire.codec - 1], after, wire.version)


def _next_from_wire(wire: Any) -> NextStage:
    check_names(wire.address)
    check_ticket(wire.ticket)
    need(len(wire.authority) <= MAX_AUTHORITY, "an authority's certificate is too long")
    return NextStage(wire.address, wire.ticket, wire.authority)


def _beat_from_wire(wire: Any) -> Beat:
    return Beat(wire.sent_us, wire.echo_us, flag(wire.leaving))


def encode_down(message: StageDown) -> bytes:
    return fitting(lambda: serialized(_down_to_wire(message)))


def _down_to_wire(message: StageDown) -> pb.StageDown:
    match message:
        case Passed():
            return pb.StageDown(passed=_passed_to_wire(message))
        case Forward():
            return pb.StageDown(forward=message.op)
        case Failed():
            error = faults.pack(message.error)
            return pb.StageDown(failed=pb.Failed(number=message.number, error=error))
        case Attached():
            return pb.StageDown(
                attached=pb.Attached(direct=int(message.direct), why=message.why[:MAX_NAME])
            )
        case Broken():
            return pb.StageDown(broken=faults.pack(message.error))
        case Beat():
            return pb.StageDown(beat=_beat_to_wire(message))


def decode_down(data: bytes) -> StageDown:
    wire = parsed(pb.StageDown, data)
    match wire.WhichOneof("kind"):
        case "passed":
            return _passed_from_wire(wire.passed)
        case "forward":
            return Forward(wire.forward)
        case "failed":
            return Failed(wire.failed.number, faults.unpack(_bounded(wire.failed.error)))
        case "attached":
            check_names(wire.attached.why)
            return Attached(flag(wire.attached.direct), wire.attached.why)
        case "broken":
            return Broken(faults.unpack(_bounded(wire.broken)))
        case "beat":
            return _beat_from_wire(wire.beat)
        case _:
            raise bad("a worker's message is of a kind that this version does not know")


def _bounded(error: bytes) -> bytes:
    need(len(error) <= MAX_ERROR, "an error is too long")
    return error


# --- picks -------------------------------------------------------------------------------------


def _passed_to_wire(message: Passed) -> pb.Passed:
    return pb.Passed(
        number=message.number,
        picked=[_picked_to_wire(picked) for picked in message.picked],
        trail=_trail_to_bytes(message.trail),
    )


def _passed_from_wire(wire: Any) -> Passed:
    need(len(wire.picked) <= MAX_SPANS, "a pass gives too many picks")
    picked = tuple(_picked_from_wire(each) for each in wire.picked)
    return Passed(wire.number, picked, _trail_from_bytes(wire.trail))


def _picked_to_wire(picked: Picked) -> pb.StagePicked:
    wire = pb.StagePicked(ids=np.asarray(picked.ids, "<u4").tobytes())
    if picked.logprobs is not None:
        top = max((len(row.top) for row in picked.logprobs), default=0)
        wire.logprobs = 1 + top
        wire.logprob_rows = b"".join(logprobs.pack(row, top, "d") for row in picked.logprobs)
    if picked.children is not None:
        most = max(map(len, picked.children), default=0)
        wire.children = 1 + most
        filled = [(*row, *[NO_ID] * (most - len(row))) for row in picked.children]
        wire.child_ids = np.asarray(filled, "<u4").tobytes()
    if picked.scores is not None:
        wire.scores = 1 + picked.scores.shape[1]
        wire.score_rows = picked.scores.astype("<f4").tobytes()
    return wire


def _picked_from_wire(wire: Any) -> Picked:
    ids = _array(wire.ids, "<u4", 1)[:, 0]
    rows = len(ids)
    return Picked(
        ids=tuple(ids.tolist()),
        logprobs=_logprobs_from_bytes(wire.logprob_rows, rows, wire.logprobs - 1)
        if wire.logprobs
        else None,
        children=_children_from_bytes(wire.child_ids, rows, wire.children - 1)
        if wire.children
        else None,
        scores=_scores_from_bytes(wire.score_rows, rows, wire.scores - 1) if wire.scores else None,
    )


def _array(data: bytes, dtype: str, width: int) -> NDArray[Any]:
    """[rows, width]"""
    size = np.dtype(dtype).itemsize * width
    need(size > 0 and len(data) % size == 0, "what was picked has an impossible length")
    return np.frombuffer(data, dtype).reshape(-1, width)


def _logprobs_from_bytes(data: bytes, rows: int, top: int) -> tuple[TokenLogprobs, ...]:
    size = logprobs.size(top, "d")
    need(top <= MAX_TOP and len(data) == rows * size, "logprobs have an impossible length")
    found = tuple(logprobs.unpack(data, at, top, "d") for at in range(0, len(data), size))
    need(logprobs.sound(found), "a logprob is no number, or above 0")
    return found


def _children_from_bytes(data: bytes, rows: int, most: int) -> tuple[tuple[int, ...], ...]:
    need(most <= MAX_TOP and len(data) == 4 * rows * most, "children have an impossible length")
    flat = np.frombuffer(data, "<u4").reshape(rows, most).tolist()
    return tuple(tuple(i for i in row if i != NO_ID) for row in flat)


def _scores_from_bytes(data: bytes, rows: int, width: int) -> NDArray[np.float32]:
    need(len(data) == 4 * rows * width, "scores have an impossible length")
    return np.frombuffer(data, "<f4").astype(np.float32).reshape(rows, width)


# --- relay -------------------------------------------------------------------------------------


def encode_reached(index: int) -> bytes:
    return serialized(pb.RelayReply(index=index))


def decode_reached(data: bytes) -> int:
    """Which stage a relay reached."""
    found: int = parsed(pb.RelayReply, data).index
    return found
