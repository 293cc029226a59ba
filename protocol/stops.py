"""Where an answer ends: a pure function of its tokens, the same on both sides."""

from __future__ import annotations

from collections.abc import Sequence

from outrider.protocol.messages import Reason
from outrider.protocol.vocabulary import Vocabulary


class Cutter:
    """Feed the committed tokens of one choice; it says at which one the answer ends.

    An end id ends it, and gives no text. A stop string ends it at the token that
    completes it, matched on the bytes of the answer; the text ends before the
    string. The token that reaches `max_tokens` ends it.
    """

    def __init__(self, vocabulary: Vocabulary, stop: Sequence[bytes], max_tokens: int) -> None:
        self._vocabulary = vocabulary
        self._stop = tuple(stop)
        self._left = max_tokens
        self._tail = b""
        self._keep = max((len(each) - 1 for each in stop), default=0)

    def feed(self, token: int) -> Reason | None:
        """The reason when `token` is the last one."""
        self._left -= 1
        if token in self._vocabulary.end:
            return Reason.STOP
        if self._stop and self._completes(token):
            return Reason.STOP
        return Reason.LENGTH if self._left <= 0 else None

    def _completes(self, token: int) -> bool:
        data = self._tail + self._vocabulary.text((token,))
        self._tail = data[max(0, len(data) - self._keep) :]
        return any(each in data for each in self._stop)

    def copy(self) -> Cutter:
        """A twin that can run ahead on tokens that are not committed."""
        twin = Cutter(self._vocabulary, self._stop, self._left)
        twin._tail = self._tail
        return twin

    def cut(self, tokens: Sequence[int]) -> tuple[int, Reason | None]:
        """How many of `tokens` belong to the answer, and the reason if it ends with them."""
        for count, token in enumerate(tokens, start=1):
            reason = self.feed(token)
            if reason is not None:
                return count, reason
        return len(tokens), None
