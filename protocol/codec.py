"""Messages to bytes and back; the only importer of the generated code.

Everything that comes in is checked here for size, range and form, so that what
leaves this file as a message is well formed: RemoteProtocolError otherwise, and
HandshakeRefused for a version that can not be read. What goes out is checked too:
LocalProtocolError for a number that does not fit its field.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from google.protobuf.message import DecodeError, Message

from outrider.errors import (
    HandshakeRefused,
    InvalidRequest,
    LocalProtocolError,
    RemoteProtocolError,
)
from outrider.protocol import logprobs as logprob_rows
from outrider.protocol import wire_pb2 as pb
from outrider.protocol.constraint import KINDS, MAX_BYTES, Constraint
from outrider.protocol.messages import (
    SLOT_CLASSES,
    VERSION,
    Accept,
    ChoiceOpen,
    Close,
    CloseReason,
    Commit,
    Down,
    EnergyKind,
    Finish,
    Finished,
    Frame,
    Heartbeat,
    Hello,
    Hint,
    ModelDescription,
    Open,
    Opened,
    Reason,
    Up,
)
from outrider.protocol.sampling import SamplingParams, TokenLogprobs

MAX_PROMPT = 1 << 20
"""Tokens in a prompt or a choice, whatever the model's context."""
MAX_CHOICES = 64
MAX_STOPS = 16
MAX_STOP_BYTES = 1024
MAX_TOP_LOGPROBS = 20
MAX_NAME = 256
MAX_MODELS = 256
MAX_TEMPLATE = 1 << 20
"""Bytes of a chat template."""
MAX_TOKENIZER = 64 << 20
"""Bytes of a tokenizer.json."""
MAX_HEARTBEAT_MS = 600_000
MIN_OPEN = 1024
CHECK = 32
"""Bytes of the hash that a checked commit carries behind the others."""
OLDEST_VERSION = max(1, VERSION - 1)
"""The version before this one is read."""

_E = TypeVar("_E", Reason, CloseReason, EnergyKind)

_CHECKED = b"\x01"
"""Before a check: what it is, and no commit of another class has that size."""
_HINT_HEAD = struct.Struct("<IIIBB")
_COMMIT_HEAD = struct.Struct("<IIIHBBBBB")


def _bad(what: str) -> RemoteProtocolError:
    return RemoteProtocolError(what, effect="the message was dropped and the session ends")


def _flag(value: int) -> bool:
    if value > 1:
        raise _bad("a flag is neither 0 nor 1")
    return value == 1


def check_version(theirs: int) -> None:
    """Cloud: whether an edge's version can be read. Raises HandshakeRefused."""
    _refuse_version(theirs, edge=theirs, cloud=VERSION)


def _refuse_version(peer: int, *, edge: int, cloud: int) -> None:
    if not OLDEST_VERSION <= peer <= VERSION:
        raise HandshakeRefused(
            "protocol version",
            ours=str(cloud),
            theirs=str(edge),
            todo="run the same release of outrider on both sides",
        )


# --- ids ---------------------------------------------------------------------------------------


def pack_ids(ids: Sequence[int]) -> bytes:
    return struct.pack(f"<{len(ids)}I", *ids)


def unpack_ids(data: bytes) -> tuple[int, ...]:
    if len(data) % 4 or len(data) > 4 * MAX_PROMPT:
        raise _bad("a list of token ids has an impossible length")
    return struct.unpack(f"<{len(data) // 4}I", data)


# --- hint and commit: fixed width --------------------------------------------------------------


def hint_size(slots: int) -> int:
    return _HINT_HEAD.size + 4 * slots


def commit_size(slots: int, top_logprobs: int | None) -> int:
    """Bytes of a commit; the class with logprobs is larger."""
    each = 4 if top_logprobs is None else 4 + logprob_rows.size(top_logprobs, "f")
    return _COMMIT_HEAD.size + each * slots


def pack_hint(hint: Hint, slots: int) -> bytes:
    if len(hint.tokens) > slots:
        raise LocalProtocolError(f"a hint of {len(hint.tokens)} tokens in a class of {slots}")
    head = _HINT_HEAD.pack(hint.fence, hint.seen, hint.base, hint.choice, len(hint.tokens))
    return (head + pack_ids(hint.tokens)).ljust(hint_size(slots), b"\0")


def unpack_hint(data: bytes, slots: int) -> Hint:
    if len(data) != hint_size(slots):
        raise _bad(f"a hint has {len(data)} bytes, its class {hint_size(slots)}")
    fence, seen, base, choice, count = _HINT_HEAD.unpack_from(data)
    if count > slots or base < seen:
        raise _bad("a hint claims more tokens than its class, or starts before what was seen")
    tokens = struct.unpack_from(f"<{count}I", data, _HINT_HEAD.size)
    return Hint(fence=fence, choice=choice, seen=seen, base=base, tokens=tokens)


def pack_commit(commit: Commit, slots: int, top_logprobs: int | None) -> bytes:
    if not 1 <= len(commit.tokens) <= slots:
        raise LocalProtocolError(f"a commit of {len(commit.tokens)} tokens in a class of {slots}")
    head = _COMMIT_HEAD.pack(
        commit.fence,
        commit.position,
        min(commit.step_us, 2**32 - 1),
        min(commit.rows, 65535),
        commit.choice,
        len(commit.tokens),
        commit.hint_rows,
        commit.from_hints,
        min(commit.wish, 255),
    )
    body = head + pack_ids(commit.tokens).ljust(4 * slots, b"\0")
    if top_logprobs is not None:
        found = commit.logprobs or (_UNKNOWN,) * len(commit.tokens)
        if len(found) != len(commit.tokens):
            raise LocalProtocolError("a commit has logprobs for some of its tokens")
        body += b"".join(logprob_rows.pack(item, top_logprobs, "f") for item in found)
    if len(commit.check) not in (0, CHECK):
        raise LocalProtocolError(f"a commit's check has {len(commit.check)} bytes")
    mark = _CHECKED if commit.check else b""
    return body.ljust(commit_size(slots, top_logprobs), b"\0") + mark + commit.check


_UNKNOWN = TokenLogprobs(math.nan, ())
"""Stands in a commit of the class with logprobs that has none: tokens sent again."""


def unpack_commit(data: bytes, slots: int, top_logprobs: int | None) -> Commit:
    size = commit_size(slots, top_logprobs)
    if len(data) not in (size, size + 1 + CHECK):
        raise _bad(f"a commit has {len(data)} bytes, its class another size")
    if data[size : size + 1] not in (b"", _CHECKED):
        raise _bad("a commit's check is of a kind that this version does not know")
    fence, position, step_us, rows, choice, count, hint_rows, from_hints, wish = (
        _COMMIT_HEAD.unpack_from(data)
    )
    if not 1 <= count <= slots or from_hints > min(hint_rows, count):
        raise _bad("a commit's counts contradict each other")
    tokens = struct.unpack_from(f"<{count}I", data, _COMMIT_HEAD.size)
    found = None if top_logprobs is None else _unpack_logprobs(data, slots, count, top_logprobs)
    return Commit(
        fence,
        choice,
        position,
        tokens,
        hint_rows,
        from_hints,
        wish,
        rows,
        step_us,
        found,
        data[size + 1 :],
    )


def _unpack_logprobs(
    data: bytes, slots: int, count: int, top_n: int
) -> tuple[TokenLogprobs, ...] | None:
    """One per token, or None when the first says that none are known."""
    size = logprob_rows.size(top_n, "f")
    start = _COMMIT_HEAD.size + 4 * slots
    found = tuple(logprob_rows.unpack(data, start + i * size, top_n, "f") for i in range(count))
    if math.isnan(found[0].chosen):
        return None
    if not logprob_rows.sound(found):
        raise _bad("a logprob is no number, or above 0")
    return found


# --- up ----------------------------------------------------------------------------------------


def encode_up(message: Up, slots: int) -> bytes:
    """Bytes of an edge's message; `slots` is the session's class."""
    try:
        return _encode_up(message, slots)
    except (struct.error, ValueError, OverflowError):
        raise _misfit(message) from None


def _misfit(message: Up | Down) -> LocalProtocolError:
    return LocalProtocolError(f"a number of a {type(message).__name__} does not fit its field")


def _encode_up(message: Up, slots: int) -> bytes:
    match message:
        case Hint():
            return serialized(pb.Up(hint=pack_hint(message, slots)))
        case Open():
            return serialized(pb.Up(open=_padded(_open_to_wire(message))))
        case Close():
            return serialized(pb.Up(close=pb.Close(reason=int(message.reason))))
        case Heartbeat():
            return serialized(pb.Up(heartbeat=_beat_to_wire(message)))
        case Hello():
            return serialized(pb.Up(hello=message.data))
        case Finish():
            return serialized(pb.Up(finish=message.data))
        case Frame():
            return serialized(pb.Up(frame=message.data))


def decode_up(data: bytes, slots: int) -> Up:
    """An edge's message; `slots` is the class named in its open, 8 before that."""
    wire = parsed(pb.Up, data)
    match wire.WhichOneof("kind"):
        case "hint":
            return unpack_hint(wire.hint, slots)
        case "open":
            return _open_from_wire(wire.open)
        case "close":
            return Close(_enum(CloseReason, wire.close.reason))
        case "heartbeat":
            return Heartbeat(wire.heartbeat.sent_us, wire.heartbeat.echo_us)
        case "hello":
            return Hello(wire.hello)
        case "finish":
            return Finish(wire.finish)
        case "frame":
            return Frame(wire.frame)
        case _:
            raise _bad("a message of a kind that this version does not know")


def serialized(message: Message) -> bytes:
    """The same message always gives the same bytes."""
    return message.SerializeToString(deterministic=True)


def parsed(kind: Callable[[], Any], data: bytes) -> Any:
    """A message of the generated code. Raises RemoteProtocolError."""
    wire = kind()
    try:
        wire.ParseFromString(data)
    except DecodeError:
        raise _bad("a message can not be parsed") from None
    return wire


def _enum(kind: type[_E], value: int) -> _E:
    try:
        return kind(value)
    except ValueError:
        raise _bad(f"{value} is no {kind.__name__}") from None


def _beat_to_wire(beat: Heartbeat) -> pb.Heartbeat:
    return pb.Heartbeat(sent_us=beat.sent_us, echo_us=beat.echo_us)


def _open_to_wire(message: Open) -> pb.Open:
    return pb.Open(
        version=message.version,
        session=message.session,
        fence=message.fence,
        model=message.model,
        vocabulary_digest=message.vocabulary_digest,
        numeric_class=message.numeric_class,
        exact_required=int(message.exact_required),
        slots=message.slots,
        prompt=pack_ids(message.prompt),
        choices=[
            pb.ChoiceOpen(choice=each.choice, committed=pack_ids(each.committed))
            for each in message.choices
        ],
        sampling=params_to_wire(message.sampling),
        seed=message.seed.to_bytes(16, "little"),
        max_tokens=message.max_tokens,
        stop=list(message.stop),
        logprobs=0 if message.top_logprobs is None else 1 + message.top_logprobs,
        constraint=constraint_to_wire(message.constraint),
    )


def constraint_to_wire(constraint: Constraint | None) -> pb.Constraint | None:
    if constraint is None:
        return None
    return pb.Constraint(kind=1 + KINDS.index(constraint.kind), text=constraint.text.encode())


def constraint_from_wire(wire: pb.Constraint) -> Constraint:
    if not 1 <= wire.kind <= len(KINDS) or len(wire.text) > MAX_BYTES:
        raise _bad("a constraint is of a kind that this release does not know, or too long")
    try:
        return Constraint(KINDS[wire.kind - 1], wire.text.decode())
    except (UnicodeDecodeError, InvalidRequest):
        raise _bad("a constraint's text is missing, superfluous or not UTF-8") from None


def _padded(wire: pb.Open) -> pb.Open:
    """Fill to the next power of two, at least `MIN_OPEN`, so that the size tells little."""
    bare = wire.ByteSize()
    goal = max(MIN_OPEN, 1 << (bare + _LEAST_PADDING - 1).bit_length())
    while not _pad(wire, goal - bare):
        goal *= 2
    return wire


_LEAST_PADDING = 4
"""A field number above 15, a length, and one byte."""


def _pad(wire: pb.Open, wanted: int) -> bool:
    """Add `wanted` bytes; False for the few counts at which the length itself grows by one."""
    for width in range(1, 5):
        wire.padding = bytes(max(0, wanted - 2 - width))
        grown = 2 + width + len(wire.padding)
        if wire.padding and grown == wanted and _varint_size(len(wire.padding)) == width:
            return True
    return False


def _varint_size(value: int) -> int:
    return max(1, -(-value.bit_length() // 7))


def params_to_wire(params: SamplingParams) -> pb.SamplingParams:
    return pb.SamplingParams(
        temperature=params.temperature,
        top_k=params.top_k or 0,
        top_p=params.top_p,
        min_p=params.min_p,
        repetition_penalty=params.repetition_penalty,
        presence_penalty=params.presence_penalty,
        frequency_penalty=params.frequency_penalty,
        logit_bias=b"".join(struct.pack("<Id", i, bias) for i, bias in params.logit_bias),
    )


def params_from_wire(wire: pb.SamplingParams) -> SamplingParams:
    if len(wire.logit_bias) % 12 or len(wire.logit_bias) > 12 * 1024:
        raise _bad("logit_bias has an impossible length")
    flat = struct.unpack("<" + "Id" * (len(wire.logit_bias) // 12), wire.logit_bias)
    return SamplingParams(
        temperature=wire.temperature,
        top_k=wire.top_k or None,
        top_p=wire.top_p,
        min_p=wire.min_p,
        repetition_penalty=wire.repetition_penalty,
        presence_penalty=wire.presence_penalty,
        frequency_penalty=wire.frequency_penalty,
        logit_bias=tuple(zip(flat[::2], flat[1::2], strict=True)),
    )


def _open_from_wire(wire: pb.Open) -> Open:
    check_version(wire.version)
    _check_open(wire)
    choices = tuple(ChoiceOpen(c.choice, unpack_ids(c.committed)) for c in wire.choices)
    if sorted(c.choice for c in choices) != sorted({c.choice for c in choices}):
        raise _bad("a choice stands twice in an open")
    if not choices or any(c.choice > 255 for c in choices):
        raise _bad("an open needs choices, numbered below 256")
    try:
        sampling = params_from_wire(wire.sampling)
    except InvalidRequest as refused:
        raise _bad(f"an open's sampling is out of range: {refused.param}") from None
    return Open(
        session=wire.session,
        fence=wire.fence,
        prompt=unpack_ids(wire.prompt),
        choices=choices,
        sampling=sampling,
        seed=int.from_bytes(wire.seed, "little"),
        max_tokens=wire.max_tokens,
        slots=wire.slots,
        model=wire.model,
        vocabulary_digest=wire.vocabulary_digest,
        numeric_class=wire.numeric_class,
        exact_required=_flag(wire.exact_required),
        stop=tuple(wire.stop),
        top_logprobs=wire.logprobs - 1 if wire.logprobs else None,
        version=wire.version,
        constraint=constraint_from_wire(wire.constraint) if wire.HasField("constraint") else None,
    )


def _check_open(wire: pb.Open) -> None:
    sound = (
        len(wire.session) == 16
        and len(wire.seed) == 16
        and wire.slots in SLOT_CLASSES
        and wire.fence >= 1
        and wire.max_tokens >= 1
        and len(wire.choices) <= MAX_CHOICES
        and len(wire.stop) <= MAX_STOPS
        and all(0 < len(stop) <= MAX_STOP_BYTES for stop in wire.stop)
        and wire.logprobs <= 1 + MAX_TOP_LOGPROBS
        and max(len(wire.model), len(wire.vocabulary_digest), len(wire.numeric_class)) <= MAX_NAME
    )
    if not sound:
        raise _bad("an open has a field that is out of range")


# --- down --------------------------------------------------------------------------------------


def encode_down(message: Down, slots: int, top_logprobs: int | None) -> bytes:
    """Bytes of a cloud's message, for the class and logprobs of the session's open."""
    try:
        return _encode_down(message, slots, top_logprobs)
    except (struct.error, ValueError, OverflowError):
        raise _misfit(message) from None


def _encode_down(message: Down, slots: int, top_logprobs: int | None) -> bytes:
    match message:
        case Commit():
            return serialized(pb.Down(commit=pack_commit(message, slots, top_logprobs)))
        case Opened():
            return serialized(pb.Down(opened=_opened_to_wire(message)))
        case Finished():
            return serialized(pb.Down(finished=_finished_to_wire(message)))
        case Heartbeat():
            return serialized(pb.Down(heartbeat=_beat_to_wire(message)))
        case Accept():
            return serialized(pb.Down(accept=message.data))
        case Frame():
            return serialized(pb.Down(frame=message.data))


def decode_down(data: bytes, slots: int, top_logprobs: int | None) -> Down:
    wire = parsed(pb.Down, data)
    match wire.WhichOneof("kind"):
        case "commit":
            return unpack_commit(wire.commit, slots, top_logprobs)
        case "opened":
            return _opened_from_wire(wire.opened)
        case "finished":
            return _finished_from_wire(wire.finished)
        case "heartbeat":
            return Heartbeat(wire.heartbeat.sent_us, wire.heartbeat.echo_us)
        case "accept":
            return Accept(wire.accept)
        case "frame":
            return Frame(wire.frame)
        case _:
            raise _bad("a message of a kind that this version does not know")


def _opened_to_wire(message: Opened) -> pb.Opened:
    return pb.Opened(
        version=message.version,
        fence=message.fence,
        model=message.model,
        model_digest=message.model_digest,
        vocabulary_digest=message.vocabulary_digest,
        numeric_class=message.numeric_class,
        exact=int(message.exact),
        context=message.context,
        ahead=message.ahead,
        heartbeat_ms=message.heartbeat_ms,
        resumed=int(message.resumed),
        masks=message.masks,
    )


def _opened_from_wire(wire: pb.Opened) -> Opened:
    _refuse_version(wire.version, edge=VERSION, cloud=wire.version)
    names = (
        wire.model,
        wire.model_digest,
        wire.vocabulary_digest,
        wire.numeric_class,
        wire.masks,
    )
    sound = (
        wire.fence >= 1
        and wire.context >= 1
        and wire.ahead >= 1
        and 1 <= wire.heartbeat_ms <= MAX_HEARTBEAT_MS
        and max(map(len, names)) <= MAX_NAME
    )
    if not sound:
        raise _bad("an opened has a field that is out of range")
    return Opened(
        fence=wire.fence,
        model=wire.model,
        model_digest=wire.model_digest,
        vocabulary_digest=wire.vocabulary_digest,
        numeric_class=wire.numeric_class,
        exact=_flag(wire.exact),
        context=wire.context,
        ahead=wire.ahead,
        heartbeat_ms=wire.heartbeat_ms,
        resumed=_flag(wire.resumed),
        version=wire.version,
        masks=wire.masks,
    )


def _finished_to_wire(message: Finished) -> pb.Finished:
    return pb.Finished(
        fence=message.fence,
        choice=message.choice,
        reason=int(message.reason),
        tokens=message.tokens,
        discarded=message.discarded,
        queue_us=message.queue_us,
        prefill_us=message.prefill_us,
        energy_uj=message.energy_uj,
        energy_kind=int(message.energy_kind),
    )


def _finished_from_wire(wire: pb.Finished) -> Finished:
    if wire.choice > 255 or wire.fence < 1:
        raise _bad("a finished has a field that is out of range")
    return Finished(
        fence=wire.fence,
        choice=wire.choice,
        reason=_enum(Reason, wire.reason),
        tokens=wire.tokens,
        discarded=wire.discarded,
        queue_us=wire.queue_us,
        prefill_us=wire.prefill_us,
        energy_uj=wire.energy_uj,
        energy_kind=_enum(EnergyKind, wire.energy_kind),
    )


# --- describe ----------------------------------------------------------------------------------


def encode_describe(version: int, model: str, *, with_tokenizer: bool) -> bytes:
    return serialized(
        pb.DescribeRequest(version=version, model=model, tokenizer=int(with_tokenizer))
    )


def decode_describe(data: bytes) -> tuple[int, str, bool]:
    wire = parsed(pb.DescribeRequest, data)
    check_version(wire.version)
    if len(wire.model) > MAX_NAME:
        raise _bad("a model's name is too long")
    return wire.version, wire.model, _flag(wire.tokenizer)


def encode_description(version: int, models: Sequence[ModelDescription]) -> bytes:
    return serialized(
        pb.Description(version=version, models=[_model_to_wire(model) for model in models])
    )


def decode_description(data: bytes) -> tuple[int, tuple[ModelDescription, ...]]:
    wire = parsed(pb.Description, data)
    _refuse_version(wire.version, edge=VERSION, cloud=wire.version)
    if len(wire.models) > MAX_MODELS:
        raise _bad("a description names too many models")
    return wire.version, tuple(_model_from_wire(model) for model in wire.models)


def _model_to_wire(model: ModelDescription) -> pb.ModelDescription:
    return pb.ModelDescription(
        name=model.name,
        model_digest=model.model_digest,
        vocabulary_digest=model.vocabulary_digest,
        numeric_class=model.numeric_class,
        vocabulary_size=model.vocabulary_size,
        context=model.context,
        exact=int(model.exact),
        engine=model.engine,
        device=model.device,
        dtype=model.dtype,
        end_ids=pack_ids(model.end_ids),
        chat_template=model.chat_template,
        tokenizer_digest=model.tokenizer_digest,
        tokenizer_json=model.tokenizer_json,
        created=model.created,
        bos=model.bos,
        eos=model.eos,
        masks=model.masks,
        attestation=model.attestation,
    )


def _model_from_wire(wire: pb.ModelDescription) -> ModelDescription:
    _check_model(wire)
    return ModelDescription(
        name=wire.name,
        model_digest=wire.model_digest,
        vocabulary_digest=wire.vocabulary_digest,
        numeric_class=wire.numeric_class,
        vocabulary_size=wire.vocabulary_size,
        context=wire.context,
        exact=_flag(wire.exact),
        engine=wire.engine,
        device=wire.device,
        dtype=wire.dtype,
        end_ids=unpack_ids(wire.end_ids),
        chat_template=wire.chat_template,
        tokenizer_digest=wire.tokenizer_digest,
        tokenizer_json=wire.tokenizer_json,
        created=wire.created,
        bos=wire.bos,
        eos=wire.eos,
        masks=wire.masks,
        attestation=wire.attestation or "none",
    )


def _check_model(wire: pb.ModelDescription) -> None:
    names = (
        wire.name,
        wire.model_digest,
        wire.vocabulary_digest,
        wire.numeric_class,
        wire.engine,
        wire.device,
        wire.dtype,
        wire.tokenizer_digest,
        wire.bos,
        wire.eos,
        wire.masks,
        wire.attestation,
    )
    sound = (
        max(map(len, names)) <= MAX_NAME
        and wire.context >= 1
        and wire.vocabulary_size >= 1
        and len(wire.end_ids) <= 4 * MAX_NAME
        and len(wire.chat_template) <= MAX_TEMPLATE
        and len(wire.tokenizer_json) <= MAX_TOKENIZER
    )
    if not sound:
        raise _bad("a model's description has a field that is out of range")
