"""How this device's journals are sealed: with its vault, if it has one."""

from __future__ import annotations

import os
from pathlib import Path

from outrider.edge.journal import PlainSeals, Seals
from outrider.errors import SealError
from outrider.options import EdgeOptions
from outrider.privacy import keys, vault
from outrider.privacy.journal_seal import JournalSeals
from outrider.privacy.vault import Ask

REGISTER = "register"
"""Beside the journals: the keys of those that are not done."""


def seals(options: EdgeOptions) -> Seals:
    """Plain without a vault, and where nothing is kept on disk.

    Raises SealError where the vault can not be unlocked, or was taken away.
    """
    if options.journal != "disk" or options.journal_dir is None:
        return PlainSeals()
    place, secrets = vault.place(), keys.here()
    if not vault.exists(place):
        if secrets.get(vault.FLOOR) is not None:
            raise _taken_away()
        return PlainSeals()
    opened = vault.unlock(place, secrets, passphrase())
    return JournalSeals.open(register(options.journal_dir), opened, secrets)


def register(journals: Path) -> Path:
    return journals / REGISTER


def passphrase() -> Ask | None:
    """From OUTRIDER_VAULT_PASSPHRASE; None where nobody said it."""
    said = os.environ.get("OUTRIDER_VAULT_PASSPHRASE")
    return None if said is None else lambda: said


def _taken_away() -> SealError:
    return SealError(
        "the vault of this device is gone",
        why="there was one, and journals must not be written in the clear unasked",
        effect="the edge was not started",
        todo="restore its file; outrider vault erase gives it up for good",
    )
