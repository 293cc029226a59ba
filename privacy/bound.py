"""What a session's keys are bound to, as each side makes it of what it knows itself. No I/O."""

from __future__ import annotations

import hashlib

import msgspec

from outrider.errors import HandshakeRefused, SealBroken
from outrider.privacy.handshake import Binding
from outrider.protocol.messages import ModelDescription, Open


def bind(opening: Open, model: ModelDescription, authorization: str) -> Binding:
    """`model`: as it is known here. `authorization`: of the call's metadata, as it was sent or as
    it came; the tenant follows from it, so that nobody puts another in its place."""
    return Binding(
        f"{opening.model} {_described(opening, model)}",
        opening.numeric_class,
        _mark(b"tenant", authorization.encode()) if authorization else "",
        opening.session,
        opening.fence,
    )


def check(told: Binding, ours: Binding) -> None:
    """Verifier: whether the device bound its keys to what the verifier sees. Raises
    HandshakeRefused for another model, SealBroken for anything else."""
    if told.model != ours.model:
        raise HandshakeRefused(
            "model description",
            ours=ours.model,
            theirs=told.model,
            todo="ask again; the device looks anew what the cloud serves",
        )
    names = (n for n in ours.__struct_fields__ if getattr(ours, n) != getattr(told, n))
    if (wrong := ", ".join(names)) != "":
        raise SealBroken(
            "the keys of the sealed channel were made for something else",
            why=f"not the same: {wrong}",
            effect="no session was opened",
            todo="whatever stands between must pass the call's metadata on as it came",
        )


def _described(opening: Open, model: ModelDescription) -> str:
    """What prompts are made with; nothing once tokens are committed, since the prompt stands."""
    if any(choice.committed for choice in opening.choices):
        return ""
    parts = (
        model.vocabulary_digest,
        model.tokenizer_digest,
        model.chat_template,
        model.bos,
        model.eos,
        model.end_ids,
    )
    return _mark(b"model", msgspec.msgpack.encode(parts))


def _mark(purpose: bytes, data: bytes) -> str:
    return hashlib.sha256(b"outrider bound v1 " + purpose + b"\x00" + data).hexdigest()
