"""Attacks that turn what a host sees back into tokens.

`Map` learns, on other text, a linear map from hidden states to embeddings and takes the nearest
one. `match` knows the weights: it tries every candidate after the prefix recovered so far and
keeps the one whose states come closest, so that it goes on exactly where the states are exact
(SipIt, arXiv 2510.15511; PIA, 2503.09022; for KV "Shadow in the Cache", 2508.09442). A `View`
says what of the states is compared; `sorted_view` looks past any permutation (2505.18332).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from outrider.privacy.leak.replica import Floats, Replica, States

FIRST, PART = 32, 480
"""Candidates computed after the prefix: the likeliest, and while none fits, more at a time."""
NEAREST = FIRST + PART
EXACT = 1e-3
"""A candidate this near (relative) is taken at once: the next best is far away."""
RIDGE = 1e-3

View = Callable[[States], Floats]
"""Numbers to compare, [rows, n], of states."""


def hidden_view(states: States) -> Floats:
    return states.hidden


def kv_view(first: int) -> View:
    """Keys and values of layers [first, ...), as they lie."""

    def view(states: States) -> Floats:
        part = states.kv[first:]
        return np.moveaxis(part, 3, 0).reshape(part.shape[3], -1)

    return view


def sorted_hidden(states: States) -> Floats:
    """A permutation changes nothing here."""
    return np.sort(states.hidden, -1)


def sorted_kv(first: int) -> View:
    """Of each layer the keys and the values of a token, each sorted: whatever order heads and
    dimensions stand in, these are the same."""

    def view(states: States) -> Floats:
        part = np.moveaxis(states.kv[first:], 3, 0)
        rows, layers, both = part.shape[:3]
        return np.sort(part.reshape(rows, layers, both, -1), -1).reshape(rows, -1)

    return view


# --- candidate matching ------------------------------------------------------------------------


def match(
    replica: Replica, seen: Floats, view: View, most: int | None = NEAREST
) -> tuple[int, ...]:
    """The tokens behind `seen` [tokens, n], one after the other, from the first.

    All of the vocabulary is looked at without its context first, which orders the candidates;
    the nearest are then computed after the prefix, `most` of them (None: all). A wrong token
    stays in the prefix, and the attack goes on from there.
    """
    alone = view(replica.alone())
    found: list[int] = []
    for base, target in enumerate(seen):
        order = np.argsort(np.linalg.norm(alone - target, axis=-1))[:most]
        token = _nearest(replica, base, target, view, order.tolist())
        found.append(token)
        replica.read(base, (token,))
    return tuple(found)


def _nearest(replica: Replica, base: int, target: Floats, view: View, likely: Sequence[int]) -> int:
    best, token, at = np.inf, likely[0], 0
    size = float(np.linalg.norm(target)) or 1.0
    while at < len(likely) and best >= EXACT:
        part = likely[at : at + (PART if at else FIRST)]
        away = np.linalg.norm(view(replica.guess(base, part)) - target, axis=-1) / size
        place = int(away.argmin())
        if away[place] < best:
            best, token = float(away[place]), part[place]
        at += len(part)
    return token


# --- nearest embedding -------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Map:
    """From states to embeddings: centre, then one linear map; the nearest by cosine."""

    centre: NDArray[np.float64]
    matrix: NDArray[np.float64]
    table: Floats

    @classmethod
    def learn(cls, states: Floats, tokens: Sequence[int], table: Floats) -> Map:
        """Ridge regression of the tokens' embeddings on `states` [rows, n]; `table`
        [vocabulary, hidden_size]."""
        rows = states.astype(np.float64)
        centre = rows.mean(0)
        rows = rows - centre
        goal = _unit(table)[np.asarray(tokens)]
        gram = rows.T @ rows
        gram += RIDGE * float(np.trace(gram)) / len(gram) * np.eye(len(gram))
        return cls(centre, np.linalg.solve(gram, rows.T @ goal), table)

    def invert(self, states: Floats) -> tuple[int, ...]:
        """The token whose embedding is nearest, row by row."""
        guessed = (states.astype(np.float64) - self.centre) @ self.matrix
        return tuple((guessed @ _unit(self.table).T).argmax(-1).tolist())


def _unit(rows: Floats) -> NDArray[np.float64]:
    wide = rows.astype(np.float64)
    size = np.linalg.norm(wide, axis=-1, keepdims=True)
    found: NDArray[np.float64] = wide / np.maximum(size, 1e-12)
    return found


def recovered(found: Sequence[int], secret: Sequence[int]) -> float:
    """Share of the tokens that came back at their place."""
    return sum(a == b for a, b in zip(found, secret, strict=True)) / len(secret)
