"""`outrider up` and `down`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from outrider import paths
from outrider.cli import background, console, units
from outrider.cli.background import Role
from outrider.config.keys import SECTIONS
from outrider.config.layers import Layers
from outrider.errors import ConfigError, NotFound, OutriderError

if TYPE_CHECKING:
    from outrider.cli.purge import Piece

ROLES: tuple[Role, ...] = ("cloud", "edge")


def up(
    *,
    edge: bool = False,
    cloud: bool = False,
    pair: str = "",
    install: bool = False,
    timeout: float = 120.0,
    json: bool = False,
) -> int:
    """Start the daemon in the background; its settings are those of config.toml.

    Args:
        edge: The daemon; what is meant when nothing is named.
        cloud: The cloud.
        pair: A pair of models by name: its draft for the daemon, its target for the cloud.
        install: As a systemd user unit, which starts it again at every login.
        timeout: Seconds that it may take to load.
        json: Print one JSON object.
    """
    roles = _roles(edge=edge, cloud=cloud) or ["edge"]
    _check(roles)
    models = _models(pair, roles, install=install)
    if install:
        return _install(roles, json=json)
    started = [
        background.start(role, [*_words(role), *models.get(role, [])], timeout) for role in roles
    ]
    if json:
        told = [{"role": s.role, "already": s.already, **_fields(s.card)} for s in started]
        console.as_json({"servers": told})
        return 0
    for one in started:
        how = "runs already" if one.already else "runs"
        console.out(f"the {one.role} {how} at {one.card.place}, pid {one.card.pid}")
        if one.already and pair:
            console.note(f"the {one.role} keeps the model it has; outrider down first")
    console.note("outrider status, outrider logs -f, outrider down")
    return 0


def _models(pair: str, roles: list[Role], *, install: bool) -> dict[Role, list[str]]:
    """Flags for a pair of models. Raises NotFound for one that a role needs and is not here."""
    if not pair:
        return {}
    from outrider.models import presets, source

    found = presets.pair(pair)
    if install:
        raise ConfigError(
            "a unit takes its models from config.toml, not from --pair",
            effect="nothing was installed",
            todo=f"outrider config set edge.draft {found.draft}; then outrider up --install",
        )
    words: dict[Role, list[str]] = {
        "edge": ["--draft", found.draft],
        "cloud": ["--model", found.target],
    }
    for role in roles:
        try:
            source.resolve(words[role][1])
        except NotFound as error:
            error.todo = f"outrider pull --pair {pair}"
            raise
    return words


def _fields(card: background.Card) -> dict[str, object]:
    return {"pid": card.pid, "address": card.place, "log": card.log}


def _roles(*, edge: bool, cloud: bool) -> list[Role]:
    """In the order in which they start."""
    wanted = {"edge": edge, "cloud": cloud}
    return [role for role in ROLES if wanted[role]]


def _check(roles: list[Role]) -> None:
    """What can not work fails here, and not in the background. Raises ConfigError."""
    layers = Layers.load()
    for role in roles:
        layers.settle(SECTIONS[role], role, {}, ())


def _words(role: Role) -> list[str]:
    """Flags of the server in the background, beside its settings."""
    words = []
    if Layers.load().section(role)["log_file"].value is None:
        words += ["--log-file", str(paths.log_file(role))]
    if role == "cloud":
        words += ["--ready-file", str(paths.card_file("cloud"))]
    return words


def _install(roles: list[Role], *, json: bool) -> int:
    places = [str(units.install(role)) for role in roles]
    if json:
        console.as_json({"units": places})
        return 0
    for role, place in zip(roles, places, strict=True):
        console.out(f"{place}: {units.name(role)} is enabled, and runs")
    console.note("to run it without a login: loginctl enable-linger")
    return 0


def down(
    *,
    edge: bool = False,
    cloud: bool = False,
    purge: bool = False,
    yes: bool = False,
    force: bool = False,
    json: bool = False,
) -> int:
    """Stop the daemon; running answers end first. Nothing runs: that is fine too.

    Args:
        edge: Only the daemon.
        cloud: Only the cloud.
        purge: Then remove all that Outrider wrote here: settings, state, caches, models, units.
        yes: Do not ask before a purge.
        force: Kill what does not end.
        json: Print one JSON object.
    """
    if purge and (edge or cloud):
        raise OutriderError("--purge takes all away: not with --edge or --cloud")
    found = _doomed(yes=yes, json=json) if purge else []
    roles = _roles(edge=edge, cloud=cloud) or list(ROLES)
    stopped = [role for role in reversed(roles) if _stop(role, force=force)]
    if purge:
        found = _purge()
    if json:
        gone = [str(piece.path) for piece in found]
        console.as_json({"stopped": stopped, "removed": gone})
        return 0
    console.out(f"stopped: {', '.join(stopped)}" if stopped else "nothing ran")
    return 0


def _stop(role: Role, *, force: bool) -> bool:
    """Whether it ran."""
    if units.active(role):
        units.manage("stop", units.name(role))
        return True
    found = background.running(role)
    if found is None:
        paths.card_file(role).unlink(missing_ok=True)
        return False
    background.end(found, role, force=force)
    return True


def _doomed(*, yes: bool, json: bool) -> list[Piece]:
    """Show what would go, and ask. Raises InvalidRequest where nobody can be asked."""
    from outrider.cli.purge import pieces

    found = pieces()
    if not json:
        console.out("\n".join(_line(piece) for piece in found) or "there is nothing to remove")
    if found and not yes and not console.agreed("remove all of this?"):
        raise OutriderError("nothing was removed", todo="outrider down stops without removing")
    return found


def _line(piece: Piece) -> str:
    return f"{piece.bytes / 1e6:10.2f} MB  {piece.path}"


def _purge() -> list[Piece]:
    """What is there once all has ended: servers write until they do."""
    from outrider.cli.purge import pieces, remove

    for role in ROLES:
        units.remove(role)
    found = pieces()
    remove(found)
    return found
