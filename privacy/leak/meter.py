"""The leakage meter: for each thing that may leave the device, how much of a text comes back.

Nothing is assumed: every reading runs an attack on the very bytes or numbers that a host would
have, and compares what it found with the text. 1 is all of it; chance is 1 / vocabulary.
"""

from __future__ import annotations

import os
import sysconfig
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import numpy as np

from outrider.engine import EngineSpec, KvSegment
from outrider.errors import ConfigError
from outrider.models import served
from outrider.models.source import resolve
from outrider.models.tokenizer import Tokenizer
from outrider.privacy import chunked
from outrider.privacy.kv_object import KvIdentity, token_hash
from outrider.privacy.leak import invert
from outrider.privacy.leak.invert import Map, View
from outrider.privacy.leak.replica import Floats, Replica, States
from outrider.privacy.shield import KEY, Shield, shield_of
from outrider.protocol import activations, codec

TEXTS = (
    "password = 'tr0ub4dor&3'  # ask Ms Ferguson, Zurich\n",
    'def diagnosis(patient):\n    """Mr Okafor: type 2, since March."""\n',
    "Offer to Brightwater: 4.2 M, not a cent more, signed on Friday.",
)
"""Of no model's training text: what somebody would not like to be read."""
FEW = 4
"""Tokens of each text where an attack is expected to fail."""
OTHER_FILES, OTHER_TOKENS = 48, 192
"""Text that the adversary learns on: the standard library's, so many files, so much of each."""


class Reading(msgspec.Struct, frozen=True):
    """One attack on one thing that leaves."""

    mode: str
    """A name for programs: `tokens`, `hidden@3`, `kv`, `kv permuted`, `kv sealed`."""
    leaves: str
    """The same for people."""
    attack: str
    recovered: float
    """Share of the tokens that came back, each at its place."""
    tokens: int
    """How many were tried."""
    chance: float
    protects: bool
    """Whether it is meant to keep the text from who holds it; permutations are not."""


@dataclass(frozen=True, slots=True)
class Case:
    """One secret text in front of an adversary with the first layers of the model."""

    replica: Replica
    secret: tuple[int, ...]
    states: States
    shield: Shield
    model: str


Attack = Callable[[Case], Sequence[int]]


def measure(
    model: str = "bundled:target",
    depths: Sequence[int] = (1, 3),
    texts: Sequence[str] = TEXTS,
    most: int = 16,
    note: Callable[[str], None] = lambda text: None,
) -> tuple[Reading, ...]:
    """Every mode, on the first `most` tokens of each text. Takes a minute; needs torch.

    `depths`: after how many layers hidden states are looked at; KV is that of the first two.
    Raises ModelError, and ConfigError without text to learn on.
    """
    tokenizer = served.load(EngineSpec(model, "torch")).tokenizer
    secrets = [tokenizer.encode(text, "plain")[:most] for text in texts]
    other = other_texts(tokenizer)
    readings: list[Reading] = [_tokens(secrets)]
    for depth in depths:
        note(f"hidden states behind layer {depth}")
        readings += _hidden(model, depth, secrets, other)
    note("keys and values")
    return (*readings, *_kv(model, secrets))


def other_texts(tokenizer: Tokenizer) -> list[tuple[int, ...]]:
    """What the adversary learns on. Raises ConfigError where Python came without its sources."""
    files = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))[:OTHER_FILES]
    texts = [path.read_text("utf-8", errors="ignore")[1000:5000] for path in files]
    found = [tokenizer.encode(text, "plain")[:OTHER_TOKENS] for text in texts if text]
    if not found:
        raise ConfigError(
            "there is no text for the attacks to learn on",
            why="this Python came without the sources of its standard library",
            effect="nothing was measured",
        )
    return found


# --- modes -------------------------------------------------------------------------------------


def _tokens(secrets: Sequence[tuple[int, ...]]) -> Reading:
    shares = [invert.recovered(codec.unpack_ids(codec.pack_ids(s)), s) for s in secrets]
    return Reading(
        "tokens",
        "token ids (placements cloud and draft)",
        "read them",
        float(np.mean(shares)),
        sum(map(len, secrets)),
        0.0,
        protects=False,
    )


def _hidden(
    model: str, depth: int, secrets: Sequence[tuple[int, ...]], other: Sequence[tuple[int, ...]]
) -> Iterator[Reading]:
    with Replica(model, depth, 1) as replica:
        rows = np.concatenate([replica.read(0, text).hidden for text in other])
        learnt = Map.learn(rows, [i for text in other for i in text], replica.embeddings())
        cases = list(_cases(model, replica, secrets))
        name, said = f"hidden@{depth}", f"hidden states behind layer {depth}"
        yield _read(cases, name, said, "nearest embedding", lambda c: _mapped(c, learnt))
        yield _read(
            cases, name, said, "candidates", lambda c: _matched(c, c.states, invert.hidden_view)
        )
        name, said = f"{name} permuted", f"{said}, permuted"
        yield _read(
            cases, name, said, "candidates", lambda c: _tried(c, _shown(c), invert.hidden_view)
        )
        yield _read(
            cases,
            name,
            said,
            "candidates, sorted",
            lambda c: _thorough(c, _shown(c), invert.sorted_hidden),
        )


def _kv(model: str, secrets: Sequence[tuple[int, ...]]) -> Iterator[Reading]:
    plain, top = invert.kv_view(0), invert.kv_view(1)
    with Replica(model, 2, 1) as replica:
        cases = list(_cases(model, replica, secrets))
        yield _read(
            cases, "kv", "keys and values", "candidates", lambda c: _matched(c, c.states, plain)
        )
        yield _read(
            cases,
            "kv@1",
            "keys and values of layer 1 alone",
            "candidates",
            lambda c: _matched(c, c.states, top),
        )
        for bits in ("int8", "int4"):
            yield _read(
                cases,
                f"kv {bits}",
                f"keys and values in {bits}",
                "candidates",
                lambda c, bits=bits: _tried(c, _coarse(c, bits), plain),  # type: ignore[misc]
            )
        name, said = "kv permuted", "keys and values, permuted (shield)"
        yield _read(cases, name, said, "candidates", lambda c: _tried(c, _turned(c), plain))
        yield _read(
            cases,
            name,
            said,
            "candidates, sorted",
            lambda c: _matched(c, _turned(c), invert.sorted_kv(0)),
        )
        found = _read(
            cases,
            "kv sealed",
            "keys and values, sealed",
            "candidates, sorted",
            lambda c: _tried(c, _sealed(c), invert.sorted_kv(0)),
        )
        yield msgspec.structs.replace(found, protects=True)


def _cases(
    model: str,
    replica: Replica,
    secrets: Sequence[tuple[int, ...]],
) -> Iterator[Case]:
    shield = shield_of(resolve(model), os.urandom(KEY))
    for secret in secrets:
        yield Case(replica, secret, replica.read(0, secret), shield, model)


def _read(cases: Sequence[Case], mode: str, leaves: str, attack: str, run: Attack) -> Reading:
    found = [run(case) for case in cases]
    pairs = zip(found, cases, strict=True)
    shares = [invert.recovered(said, case.secret[: len(said)]) for said, case in pairs]
    return Reading(
        mode,
        leaves,
        attack,
        float(np.mean(shares)),
        sum(map(len, found)),
        1.0 / cases[0].replica.size,
        protects=False,
    )


def _mapped(case: Case, learnt: Map) -> Sequence[int]:
    return learnt.invert(case.states.hidden)


def _matched(case: Case, seen: States, view: View) -> Sequence[int]:
    return invert.match(case.replica, view(seen), view)


def _tried(case: Case, seen: States, view: View) -> Sequence[int]:
    """The same on the first few tokens, where each costs a look at the whole vocabulary."""
    return invert.match(case.replica, view(seen)[:FEW], view)


def _thorough(case: Case, seen: States, view: View) -> Sequence[int]:
    """All of the vocabulary after the prefix: deep states, sorted, say little without it."""
    return invert.match(case.replica, view(seen)[: 2 * FEW], view, most=None)


# --- what the host has -------------------------------------------------------------------------


def _shown(case: Case) -> States:
    return replace(case.states, hidden=case.shield.hide(case.states.hidden))


def _segment(case: Case) -> KvSegment:
    kv = case.states.kv
    count = kv.shape[3]
    return KvSegment("canonical", "float32", 0, count, case.secret, kv.tobytes(), kv.shape)


def _turned(case: Case) -> States:
    return _states(case, case.shield.permute(_segment(case)).data)


def _states(case: Case, data: bytes) -> States:
    kv = np.frombuffer(data, np.float32).reshape(case.states.kv.shape)
    return replace(case.states, kv=kv)


def _coarse(case: Case, bits: activations.ActivationCodec) -> States:
    """What is left of each token's head after quantisation."""
    kv = case.states.kv
    rows = kv.reshape(-1, kv.shape[-1])
    back = activations.decode(activations.encode(rows, bits), bits, *rows.shape)
    return replace(case.states, kv=back.reshape(kv.shape))


def _sealed(case: Case) -> States:
    """The sealed object's bytes, read as if they were the numbers."""
    segment = _segment(case)
    identity = KvIdentity(
        tenant="meter",
        session=os.urandom(16),
        model_digest=resolve(case.model).digest,
        numeric_class="",
        layers=(0, case.replica.layers),
        tokens=(0, segment.stop),
        token_hash=token_hash(case.secret),
        index=0,
        count=1,
        epoch=0,
        purpose="wire",
    )
    sealed = chunked.seal(os.urandom(chunked.KEY), identity.context(), segment.data)
    body = bytes(sealed[chunked.HEAD : chunked.HEAD + len(segment.data)])
    # Of random bits few floats are near 1, and some are none: halves are tamer than words.
    numbers: Floats = np.frombuffer(body, np.int16)[: len(segment.data) // 4].astype(np.float32)
    scale = float(np.abs(case.states.kv).mean() / np.abs(numbers).mean())
    return _states(case, (numbers * scale).astype(np.float32).tobytes())
