"""Well-formed messages for property tests."""

from __future__ import annotations

import struct
from typing import Any

from hypothesis import strategies as st

from outrider.protocol.constraint import Constraint
from outrider.protocol.messages import (
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

U8 = st.integers(0, 2**8 - 1)
U16 = st.integers(0, 2**16 - 1)
U32 = st.integers(0, 2**32 - 1)
U64 = st.integers(0, 2**64 - 1)
FENCES = st.integers(1, 2**32 - 1)
SEALED = st.binary(max_size=60)
NAMES = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
IDS = st.lists(U32, max_size=40).map(tuple)

PARAMS = st.builds(
    SamplingParams,
    temperature=st.just(0.0) | st.floats(1e-6, 100.0),
    top_k=st.none() | st.integers(1, 2**32 - 1),
    top_p=st.floats(0.0, 1.0, exclude_min=True),
    min_p=st.floats(0.0, 1.0),
    repetition_penalty=st.floats(0.01, 100.0),
    presence_penalty=st.floats(-100.0, 100.0),
    frequency_penalty=st.floats(-100.0, 100.0),
    logit_bias=st.dictionaries(U32, st.floats(-1000.0, 1000.0), max_size=4).map(
        lambda pairs: tuple(pairs.items())
    ),
)

CONSTRAINTS = st.just(Constraint("json_object")) | st.builds(
    Constraint,
    st.sampled_from(["json_schema", "regex", "lark"]),
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20),
)

OPENS = st.builds(
    Open,
    session=st.binary(min_size=16, max_size=16),
    fence=FENCES,
    prompt=IDS,
    choices=st.dictionaries(U8, IDS, min_size=1, max_size=4).map(
        lambda pairs: tuple(ChoiceOpen(*pair) for pair in pairs.items())
    ),
    sampling=PARAMS,
    seed=st.integers(0, 2**128 - 1),
    max_tokens=st.integers(1, 2**32 - 1),
    slots=st.sampled_from([8, 16, 32]),
    model=NAMES,
    vocabulary_digest=NAMES,
    numeric_class=NAMES,
    exact_required=st.booleans(),
    stop=st.lists(st.binary(min_size=1, max_size=20), max_size=4).map(tuple),
    top_logprobs=st.none() | st.integers(0, 20),
    constraint=st.none() | CONSTRAINTS,
)


@st.composite
def hints(draw: st.DrawFn, slots: int) -> Hint:
    seen, base = sorted((draw(U32), draw(U32)))
    tokens = tuple(draw(st.lists(U32, max_size=slots)))
    return Hint(draw(FENCES), draw(U8), seen, base, tokens)


def up(slots: int) -> st.SearchStrategy[Up]:
    return st.one_of(
        OPENS,
        hints(slots),
        st.builds(Close, st.sampled_from(CloseReason)),
        st.builds(Heartbeat, U64, U64),
        st.one_of(*(st.builds(kind, SEALED) for kind in (Hello, Finish, Frame))),
    )


def _float32(value: float) -> float:
    found: float = struct.unpack("<f", struct.pack("<f", value))[0]
    return found


LOGPROBS = st.floats(-1000.0, 0.0).map(_float32)


@st.composite
def commits(draw: st.DrawFn, slots: int, top_logprobs: int | None) -> Commit:
    tokens = tuple(draw(st.lists(U32, min_size=1, max_size=slots)))
    hint_rows = draw(U8)
    found = None
    if top_logprobs is not None and draw(st.booleans()):
        pairs = st.tuples(st.integers(0, 2**32 - 2), LOGPROBS)
        top = st.lists(pairs, max_size=top_logprobs).map(tuple)
        found = tuple(TokenLogprobs(draw(LOGPROBS), draw(top)) for _ in tokens)
    return Commit(
        fence=draw(FENCES),
        choice=draw(U8),
        position=draw(U32),
        tokens=tokens,
        hint_rows=hint_rows,
        from_hints=draw(st.integers(0, min(hint_rows, len(tokens)))),
        wish=draw(U8),
        rows=draw(U16),
        step_us=draw(U32),
        logprobs=found,
        check=draw(st.just(b"") | st.binary(min_size=32, max_size=32)),
    )


OPENED: st.SearchStrategy[Opened] = st.builds(
    Opened,
    fence=FENCES,
    model=NAMES,
    model_digest=NAMES,
    vocabulary_digest=NAMES,
    numeric_class=NAMES,
    exact=st.booleans(),
    context=FENCES,
    ahead=FENCES,
    heartbeat_ms=st.integers(1, 600_000),
    resumed=st.booleans(),
    masks=NAMES,
)
FINISHED: st.SearchStrategy[Finished] = st.builds(
    Finished,
    fence=FENCES,
    choice=U8,
    reason=st.sampled_from(Reason),
    tokens=U32,
    discarded=U32,
    queue_us=U64,
    prefill_us=U64,
    energy_uj=U64,
    energy_kind=st.sampled_from(EnergyKind),
)


def down(slots: int, top_logprobs: int | None) -> st.SearchStrategy[Down]:
    beats = st.builds(Heartbeat, U64, U64)
    sealed = st.builds(Accept, SEALED) | st.builds(Frame, SEALED)
    return st.one_of(OPENED, commits(slots, top_logprobs), FINISHED, beats, sealed)


def _description(**fields: Any) -> st.SearchStrategy[ModelDescription]:
    return st.builds(ModelDescription, **fields)


MODELS = _description(
    masks=NAMES,
    attestation=st.just("none") | NAMES.filter(bool),
    name=NAMES,
    model_digest=NAMES,
    vocabulary_digest=NAMES,
    numeric_class=NAMES,
    vocabulary_size=FENCES,
    context=FENCES,
    exact=st.booleans(),
    engine=NAMES,
    device=NAMES,
    dtype=NAMES,
    end_ids=st.lists(U32, max_size=5).map(tuple),
    chat_template=NAMES,
    tokenizer_digest=NAMES,
    created=U64,
    bos=NAMES,
    eos=NAMES,
    tokenizer_json=st.binary(max_size=50),
)
