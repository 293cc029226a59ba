"""What an answer's text must match, as data. Who computes masks from it reads it the same way.

A constraint is part of the pure function that an answer is: drafter and committer mask by the
same one, so that a draft can be accepted, and the text does not depend on who drafted.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Literal, get_args

from outrider.errors import InvalidRequest

Kind = Literal["json_object", "json_schema", "regex", "lark"]
KINDS: tuple[Kind, ...] = get_args(Kind)
"""In the order of their numbers on the wire, which begin with 1."""
MAX_BYTES = 64 << 10
"""Of a constraint's text in UTF-8."""
PARAM = "response_format"
"""The field of a request that errors about constraints name."""


@dataclass(frozen=True, slots=True)
class Constraint:
    """A grammar for the whole answer, from its first token to an end token.

    Raises InvalidRequest for an unknown kind, and for a text that is too long, or missing.
    """

    kind: Kind
    text: str = ""
    """`json_schema`: the schema as JSON; `regex`: of llguidance's dialect (no look-around, no
    back references); `lark`: llguidance's grammar language; `json_object`: empty."""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise refused(f"there is no constraint of kind {self.kind!r}", f"one of {KINDS}")
        try:
            size = len(self.text.encode())
        except UnicodeEncodeError:
            raise refused("a constraint is no text", "it holds half a surrogate pair") from None
        if size > MAX_BYTES:
            raise refused(
                f"a constraint of {size} bytes is too long", f"at most {MAX_BYTES} are taken"
            )
        if (self.kind == "json_object") != (not self.text):
            raise refused(
                f"a constraint of kind {self.kind} comes {'with' if self.text else 'without'} text",
                "json_object has none, every other kind has one",
            )


def refused(what: str, why: str) -> InvalidRequest:
    """An error about a constraint, before anything was done for the request."""
    return InvalidRequest(
        what,
        param=PARAM,
        why=why,
        effect="the request was not started",
        todo="change the schema or grammar; docs/constraints.md says what is taken",
    )


def constrained_class(numeric_class: str, masks: str) -> str:
    """The numeric class of a session with a constraint: its text depends on `masks` too, the
    name and version of what computes them. Empty when the class is not known."""
    if not numeric_class:
        return ""
    return hashlib.sha256(f"outrider constrained 1\n{numeric_class}\n{masks}".encode()).hexdigest()
