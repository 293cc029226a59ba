"""Tokens to text that can be shown at once: whole characters, and never part of a stop string."""

from __future__ import annotations

import codecs
from collections.abc import Sequence

from outrider.protocol.vocabulary import Vocabulary


class TextStream:
    """Feed tokens, get text. Bytes that may begin a stop string, or a character that is not
    complete, wait for the next token; the end gives what is left, or cuts before the stop."""

    def __init__(self, vocabulary: Vocabulary, stop: Sequence[bytes]) -> None:
        self._vocabulary = vocabulary
        self._stop = tuple(stop)
        self._pending = b""
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, token: int) -> str:
        """The text that is certain after this token."""
        self._pending += self._vocabulary.text((token,))
        found = self._first_stop()
        if found is not None:
            ready, self._pending = self._pending[:found], self._pending[found:]
        else:
            keep = self._possible_start()
            cut = len(self._pending) - keep
            ready, self._pending = self._pending[:cut], self._pending[cut:]
        return self._decoder.decode(ready)

    def end(self) -> str:
        """What was held back; nothing from a stop string on. An unfinished character is U+FFFD."""
        found = self._first_stop()
        rest = self._pending if found is None else self._pending[:found]
        self._pending = b""
        return self._decoder.decode(rest, final=True)

    def copy(self) -> TextStream:
        """A twin that can run ahead on tokens that are not committed."""
        twin = TextStream(self._vocabulary, self._stop)
        twin._pending = self._pending
        twin._decoder.setstate(self._decoder.getstate())
        return twin

    def _first_stop(self) -> int | None:
        places = [at for each in self._stop if (at := self._pending.find(each)) >= 0]
        return min(places, default=None)

    def _possible_start(self) -> int:
        """Length of the longest end of the pending bytes that a stop string begins with."""
        longest = max((len(each) for each in self._stop), default=1) - 1
        for size in range(min(longest, len(self._pending)), 0, -1):
            if any(each.startswith(self._pending[-size:]) for each in self._stop):
                return size
        return 0
