"""What was committed on one stream, as a hash that grows with it; both ends keep one. No I/O.

The hash of a choice is SHA-256 over the session, the choice and all its committed tokens, those
that the open named first. Every `EVERY`-th commit of a sealed stream carries the hash of those of
all choices. Which commits do is a matter of their number, which an observer counts anyway.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from outrider.errors import RemoteProtocolError, SealBroken
from outrider.protocol.codec import pack_ids
from outrider.protocol.messages import Commit, Open

EVERY = 16
_NAME = b"outrider committed 1\x00"


class _Text:
    """One choice's hash, up to `length` tokens."""

    def __init__(self, session: bytes, choice: int, committed: Sequence[int]) -> None:
        self.length = 0
        self.hash = hashlib.sha256(_NAME + session + bytes((choice,)))
        self.add(committed)

    def add(self, tokens: Sequence[int]) -> None:
        self.hash.update(pack_ids(tokens))
        self.length += len(tokens)


@dataclass(slots=True)
class Account:
    """Of a stream that began with this open."""

    opening: Open
    commits: int = 0
    _texts: dict[int, _Text] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for each in sorted(self.opening.choices, key=lambda one: one.choice):
            self._texts[each.choice] = _Text(self.opening.session, each.choice, each.committed)

    def digest(self) -> bytes:
        """32 bytes over all choices, by number."""
        parts = (text.hash.digest() for text in self._texts.values())
        return hashlib.sha256(_NAME + b"".join(parts)).digest()

    def stamp(self, commit: Commit, committed: Sequence[int]) -> Commit:
        """Cloud: the commit as it goes out. `committed` are the choice's tokens as they are kept
        here, so that what was sent and what is kept can not drift apart unseen."""
        text = self._texts[commit.choice]
        text.add(committed[text.length : commit.position + len(commit.tokens)])
        self.commits += 1
        return replace(commit, check=self.digest()) if self._due else commit

    def follow(self, commit: Commit) -> None:
        """Edge: take a commit in. Raises RemoteProtocolError for a check that is missing or
        superfluous or a gap, SealBroken for one that is wrong."""
        text = self._texts.get(commit.choice)
        known = -1 if text is None else text.length - commit.position
        if text is None or known < 0:
            raise RemoteProtocolError("a commit does not follow the committed tokens")
        text.add(commit.tokens[known:])
        self.commits += 1
        if bool(commit.check) != self._due:
            raise RemoteProtocolError(f"a sealed stream checks every {EVERY}th commit, no other")
        if commit.check and not hmac.compare_digest(commit.check, self.digest()):
            raise SealBroken(
                "the cloud's account of the answer is not the device's",
                why="its hash of what is committed differs",
                effect="the session ends; what was committed stays",
                todo="the answer goes on over a new session, from the device's own record",
            )

    @property
    def _due(self) -> bool:
        return self.commits % EVERY == 0
