"""What an answer's text must match, as data. Who computes masks from it reads it the same way.

A constraint is part of the pure function that an answer is: drafter and committer mask by the
same one, so that a draft can be accepted, and the text does not depend on who drafted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["json_object", "json_schema", "regex", "lark"]


@dataclass(frozen=True, slots=True)
class Constraint:
    """A grammar for the whole answer, from its first token to an end token."""

    kind: Kind
    text: str = ""
    """`json_schema`: the schema as JSON; `regex`: of llguidance's dialect (no look-around, no
    back references); `lark`: llguidance's grammar language; `json_object`: empty."""
