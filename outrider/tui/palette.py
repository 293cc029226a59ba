"""What ctrl+p finds: every key's action by name, and the themes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, cast

from textual.command import DiscoveryHit, Hit, Hits, Provider

from outrider.tui.commands import WORDS

if TYPE_CHECKING:
    from outrider.tui.app import Top

HELP = {
    "pause": "hold the screen still, or go on",
    "policy": "limits and rules in force",
    "record": "write events to a file, or stop",
    "copy": "copy as an `outrider plan` command",
    "help": "all keys",
    "quit": "leave; the daemon goes on",
}


class Commands(Provider):
    """The words of `:`, found by parts of them."""

    def _words(self) -> Iterable[str]:
        return (word for word in WORDS if not word.endswith(" "))

    def _run(self, word: str) -> None:
        cast("Top", self.app).obey(word)

    async def discover(self) -> Hits:
        for word in self._words():
            yield DiscoveryHit(word, lambda word=word: self._run(word), help=HELP.get(word))

    async def search(self, query: str) -> Hits:
        matcher = self.matcher(query)
        for word in self._words():
            score = matcher.match(word)
            if score > 0:
                yield Hit(
                    score,
                    matcher.highlight(word),
                    lambda word=word: self._run(word),
                    help=HELP.get(word),
                )
