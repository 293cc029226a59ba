"""Drafts from a text that the answer probably repeats: an edited file, a filled-in form.

No model is asked. The place in the text is kept while the answer follows it; where the answer
leaves it, the text is taken up again behind the last words that both have.
"""

from __future__ import annotations

from collections.abc import Sequence

RUN = 3
"""Tokens that must agree before the text is taken up again."""
PLACES = 64
"""Places of a run that are looked at, those behind the last one first."""
LONGEST = 1 << 16
"""Tokens of a text that are used."""


class Foretold:
    """Tell it the answer's tokens in order; it tells what comes next, if the text knows."""

    def __init__(self, tokens: Sequence[int]) -> None:
        self._tokens = tuple(tokens[:LONGEST])
        self._place: int | None = 0
        """Of the next token, while the answer follows the text."""
        self._last = 0
        self._recent: list[int] = []
        self._runs: dict[tuple[int, ...], list[int]] = {}
        for end in range(RUN, len(self._tokens)):
            self._runs.setdefault(self._tokens[end - RUN : end], []).append(end)

    def follow(self, token: int) -> None:
        """The answer's next token is final."""
        self._recent = [*self._recent, token][-RUN:]
        place = self._place
        if place is not None and place < len(self._tokens) and self._tokens[place] == token:
            self._place = self._last = place + 1
        else:
            self._place = self._found()
            self._last = self._last if self._place is None else self._place

    def _found(self) -> int | None:
        """Behind the same run: the nearest place from the last one on, else the latest before."""
        places = self._runs.get(tuple(self._recent), [])
        ahead = [place for place in places[-PLACES:] if place >= self._last]
        return ahead[0] if ahead else places[-1] if places else None

    def ahead(self, chain: Sequence[int], count: int) -> tuple[int, ...]:
        """Up to `count` tokens behind those of `chain`; none where the chain leaves the text."""
        if self._place is None or count < 1:
            return ()
        begin = self._place + len(chain)
        if self._tokens[self._place : begin] != tuple(chain):
            return ()
        return self._tokens[begin : begin + count]
