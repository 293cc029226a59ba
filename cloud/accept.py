"""The acceptance rule: a draft token is accepted iff it equals the target's choice. Pure."""

from __future__ import annotations

from collections.abc import Sequence


def accepted(hints: Sequence[int], chosen: Sequence[int]) -> int:
    """How many hint rows held.

    `chosen[0]` is the target's choice after the last committed token, `chosen[i]`
    its choice after hint i - 1; so `chosen[: accepted + 1]` is what the target alone
    would have said next, whatever the hints were.
    """
    count = 0
    while count < len(hints) and hints[count] == chosen[count]:
        count += 1
    return count
