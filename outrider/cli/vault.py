"""`outrider vault`: what this device writes is sealed with it, and unreadable when it is erased."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from cyclopts import App

from outrider import paths
from outrider.cli import background, console
from outrider.cli.servers import missing
from outrider.config.layers import Layers
from outrider.errors import ConfigError, InvalidRequest, JournalError

if TYPE_CHECKING:
    from outrider.privacy.journal_seal import JournalSeals
    from outrider.privacy.vault import Vault

app = App(name="vault", help="Seals what this device keeps on disk: init, status, rotate, erase.")
VARIABLE = "OUTRIDER_VAULT_PASSPHRASE"


@app.command
def init(*, passphrase: bool = False, json: bool = False) -> int:
    """Make the vault; disk journals (--journal disk) are sealed with it from the next start on.

    Args:
        passphrase: Ask for one at each start of the daemon, instead of keeping the key in the
            keyring, or in a file of this user alone.
        json: Print one JSON object.
    """
    _needed()
    from outrider.privacy import keys, vault

    _check_stopped("make the vault")
    secrets = keys.here()
    said = _new_passphrase() if passphrase else None
    made = vault.make(vault.place(), secrets, said)
    sealed = _seal_journals(made)
    if json:
        console.as_json({"path": str(made.path), "kept_in": made.kind, "journals_sealed": sealed})
        return 0
    console.out(f"{made.path}: a vault, its key kept by {_kept(made.kind)}")
    if sealed:
        console.note(f"{sealed} journals that lay there are sealed now")
    if made.kind == "file":
        console.note("whoever copies the whole state folder has both; a passphrase, or a keyring")
        console.note('(pip install "outrider[keyring]") keeps them apart')
    return 0


@app.command
def status(*, json: bool = False) -> int:
    """Whether there is a vault, where its key is kept, and what a guess of it costs.

    Args:
        json: Print one JSON object.
    """
    _needed()
    from outrider.privacy import vault

    if not vault.exists(vault.place()):
        console.as_json({"vault": False}) if json else console.out("no vault; outrider vault init")
        return 0
    head = vault.read(vault.place())
    try_s = vault.measure(head.cost) if head.cost is not None else None
    if json:
        said = {"vault": True, "kept_in": head.kind, "epoch": head.epoch, "try_s": try_s}
        console.as_json(said)
        return 0
    console.out(f"{vault.place()}: epoch {head.epoch}, its key kept by {_kept(head.kind)}")
    if head.cost is not None and try_s is not None:
        cost = head.cost
        console.out(
            f"one guess of the passphrase takes {try_s:.2f} s and {cost.memory_kib // 1024} MiB "
            f"here (Argon2id, {cost.iterations} iterations, {cost.lanes} lanes)"
        )
    return 0


@app.command
def rotate(*, yes: bool = False, json: bool = False) -> int:
    """The next epoch: nothing that was sealed before is taken any more.

    Args:
        yes: Do not ask.
        json: Print one JSON object.
    """
    _needed()
    from outrider.privacy import vault

    _check_stopped("rotate the vault")
    opened = _open()
    _agree("journals and KV that were sealed before can not be gone on with; rotate?", yes=yes)
    epoch = opened.rise()
    _give_up(opened)
    assert vault.exists(opened.path)
    console.as_json({"epoch": epoch}) if json else console.out(f"epoch {epoch}")
    return 0


@app.command
def erase(*, yes: bool = False, json: bool = False) -> int:
    """Delete the key of the vault: whatever it sealed can be read by nobody any more.

    Args:
        yes: Do not ask.
        json: Print one JSON object.
    """
    _needed()
    from outrider.privacy import keys, vault
    from outrider.privacy.journal_seal import FLOOR

    _check_stopped("erase the vault")
    _agree("what was sealed can not be read by anybody any more; erase?", yes=yes)
    secrets = keys.here()
    found = vault.erase(vault.place(), secrets)
    secrets.remove(FLOOR)
    for left in _left():
        left.unlink(missing_ok=True)
    console.as_json({"erased": found}) if json else console.out(
        "the vault is erased" if found else "there was no vault"
    )
    return 0


# --- parts -------------------------------------------------------------------------------------


def _needed() -> None:
    """Raises MissingExtra."""
    try:
        import outrider.privacy.vault  # noqa: F401
    except ModuleNotFoundError as error:
        raise missing("edge", error) from None


def _kept(kind: str) -> str:
    named = {"keyring": "the keyring", "file": "a file of this user", "passphrase": "a passphrase"}
    return named.get(kind, kind)


def _check_stopped(what: str) -> None:
    """A running daemon holds keys of the old state. Raises ConfigError."""
    if background.running("edge") is not None:
        raise ConfigError(
            f"the daemon runs: it is no time to {what}",
            why="it would go on with the keys that it holds",
            effect="nothing was changed",
            todo="outrider down, then again",
        )


def _agree(question: str, *, yes: bool) -> None:
    if not yes and not console.agreed(question):
        raise InvalidRequest("nothing was changed")


def _new_passphrase() -> str:
    said = os.environ.get(VARIABLE)
    if said is not None:
        return said
    first = console.secret("passphrase: ", VARIABLE)
    if console.secret("again: ", VARIABLE) != first:
        raise InvalidRequest("the two are not the same", effect="nothing was written")
    return first


def _open() -> Vault:
    from outrider.privacy import keys, vault

    def ask() -> str:
        said = os.environ.get(VARIABLE)
        return console.secret("passphrase: ", VARIABLE) if said is None else said

    return vault.unlock(vault.place(), keys.here(), ask)


def _journals() -> Path:
    """Where the daemon's settings put them."""
    said = Layers.load().section("edge")["journal_dir"].value
    return said if isinstance(said, Path) else paths.state_dir() / "journals"


def _seals(opened: Vault) -> JournalSeals:
    from outrider.edge.seals import register
    from outrider.privacy.journal_seal import JournalSeals

    return JournalSeals.open(register(_journals()), opened, opened.keys)


def _left() -> list[Path]:
    """Sealed journals that nobody can read any more, and their register."""
    folder = _journals()
    return [*folder.glob("*.journal*"), folder / "register"] if folder.is_dir() else []


def _give_up(opened: Vault) -> None:
    for left in _left():
        left.unlink(missing_ok=True)
    from outrider.privacy.journal_seal import FLOOR

    opened.keys.remove(FLOOR)


def _seal_journals(opened: Vault) -> int:
    """Those that a daemon left in the clear; how many."""
    from outrider.edge import journal

    folder, made, seals = _journals(), 0, _seals(opened)
    for path in sorted(folder.glob("*.journal")) if folder.is_dir() else []:
        try:
            records = list(journal.read(path, journal.Plain()))
        except JournalError:
            continue
        scratch = path.with_suffix(".journal.new")
        sealed = journal.DiskJournal(scratch, seals.new(scratch))
        for record in records:
            sealed.write(record)
        sealed.take_place(path)
        sealed.close(outcome="kept")
        made += 1
    return made
