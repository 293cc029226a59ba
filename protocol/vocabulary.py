"""A vocabulary as both sides must agree on it: id to bytes, and the special ids."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Padding rows are not part of it: `len(tokens)` ids, each with its bytes.

    Special tokens carry the bytes of their name (`<|endoftext|>`), but give no
    text. `digest` is SHA-256 over the table and the special ids, so that the GGUF
    and the `tokenizer.json` of one model agree.
    """

    tokens: tuple[bytes, ...]
    special: frozenset[int]
    bos: int | None
    end: tuple[int, ...]
    """Ids that end an answer, ascending."""
    digest: str = field(init=False, compare=False)
    """Hex SHA-256; written here from the other fields."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "digest", _digest(self.tokens, self.special))

    def __len__(self) -> int:
        return len(self.tokens)

    def text(self, ids: Iterable[int]) -> bytes:
        """The bytes that a run of ids stands for; may end inside a UTF-8 character."""
        return b"".join(self.tokens[i] for i in ids if i not in self.special)


def _digest(tokens: tuple[bytes, ...], special: frozenset[int]) -> str:
    state = hashlib.sha256(b"outrider vocabulary 1\0")
    for number, token in enumerate(tokens):
        kind = b"s" if number in special else b"t"
        state.update(kind + len(token).to_bytes(4, "little") + token)
    return state.hexdigest()
