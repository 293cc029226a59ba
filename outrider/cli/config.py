"""`outrider config`."""

from __future__ import annotations

from typing import Any

import msgspec
from cyclopts import App

from outrider import paths
from outrider.cli import console
from outrider.cli.where import HERE, Where
from outrider.config.keys import LINK, SECTIONS, Key
from outrider.config.layers import DEFAULT, Found, Layers
from outrider.config.template import toml
from outrider.config.values import plain
from outrider.errors import ConfigError

app = App(name="config", help="Settings: write the file, show what is in force and from where.")


@app.command
def init(*, force: bool = False, json: bool = False) -> int:
    """Write config.toml with every key, what it means, and its default.

    Args:
        force: Write over a file that is there.
        json: Print one JSON object.
    """
    from outrider.config.template import template

    path = paths.config_file()
    if path.exists() and not force:
        raise ConfigError(
            f"{path} is there already",
            effect="nothing was written",
            todo="change it with `outrider config set KEY VALUE`, or write a new one with --force",
        )
    paths.write_atomically(path, template().encode())
    if json:
        console.as_json({"path": str(path)})
    else:
        console.out(str(path))
        console.note("all keys stand there with their defaults, commented out")
    return 0


@app.command
def path(*, json: bool = False) -> int:
    """Where config.toml is looked for.

    Args:
        json: Print one JSON object.
    """
    place = paths.config_file()
    if json:
        console.as_json({"path": str(place), "there": place.exists()})
    else:
        console.out(str(place))
    return 0


@app.command
def schema(*, json: bool = False) -> int:
    """JSON Schema of config.toml, for editors.

    Args:
        json: It is JSON in any case.
    """
    from outrider.config.schema import schema as made

    found = msgspec.json.encode(made())
    console.out((found if json else msgspec.json.format(found)).decode())
    return 0


@app.command
def show(*, origin: bool = False, changed: bool = False, json: bool = False) -> int:
    """Settings in force: flag before environment before file before default.

    Args:
        origin: Tell of each where it is from.
        changed: Leave the defaults away.
        json: Print one JSON object.
    """
    layers = Layers.load()
    found = {name: layers.section(name) for name in SECTIONS}
    found |= {f"{LINK}.{name}": layers.link_fields(name) for name in layers.link_names()}
    if changed:
        found = {name: _changed(fields) for name, fields in found.items()}
    if json:
        told = {name: _as_json(fields, origin=origin) for name, fields in found.items()}
        console.as_json({"path": str(layers.file.path), "settings": told})
        return 0
    console.out(
        "\n\n".join(_page(name, each, origin=origin) for name, each in found.items() if each)
    )
    return 0


def _changed(fields: dict[str, Found]) -> dict[str, Found]:
    return {name: each for name, each in fields.items() if each.origin != DEFAULT}


def _as_json(fields: dict[str, Found], *, origin: bool) -> dict[str, Any]:
    if not origin:
        return {name: plain(each.value) for name, each in fields.items()}
    return {n: {"value": plain(e.value), "origin": e.origin} for n, e in fields.items()}


def _page(section: str, fields: dict[str, Found], *, origin: bool) -> str:
    lines = []
    for name, each in fields.items():
        unset = each.value is None
        text = f"# {name} is not set" if unset else f"{name} = {toml(plain(each.value))}"
        lines.append(f"{text:44}  # {each.origin}" if origin and not unset else text)
    return "\n".join([console.bold(f"[{section}]"), *lines])


@app.command(name="set")
def put(key: str, value: str, *, json: bool = False) -> int:
    """Set one key in config.toml; comments stay.

    Args:
        key: Such as edge.patience_s or link.home.url.
        value: Lists have commas between.
        json: Print one JSON object.
    """
    from outrider.config import edit

    place = paths.config_file()
    done = edit.put(place, key, value)
    _tell(key, done, json=json)
    return 0


@app.command
def unset(key: str, *, json: bool = False) -> int:
    """Take one key out of config.toml, back to its default.

    Args:
        key: Such as edge.patience_s.
        json: Print one JSON object.
    """
    from outrider.config import edit

    found, _ = edit.key_of(key)
    if not edit.take_away(paths.config_file(), key):
        console.note(f"{key} did not stand there")
    _tell(key, found, json=json)
    return 0


def _tell(dotted: str, key: Key, *, json: bool) -> None:
    """What holds now, and when a running server takes it."""
    layers = Layers.load()
    section, _, name = dotted.rpartition(".")
    link = section.partition(".")[2]
    each = layers.link_fields(link)[name] if link else layers.find(key)
    if json:
        fields = {"key": dotted, "value": plain(each.value), "origin": each.origin}
        console.as_json({**fields, "live": key.live})
    else:
        shown = "not set" if each.value is None else toml(plain(each.value))
        console.out(f"{dotted} = {shown}  # {each.origin}")
    if key.section in SECTIONS:
        _warn_of_contradictions(layers, key.section)
    when = "outrider config reload" if key.live else "a restart"
    console.note(f"a running server takes it after {when}")


def _warn_of_contradictions(layers: Layers, section: str) -> None:
    """Keys that only work together are set one after the other."""
    try:
        layers.settle(SECTIONS[section], section, {}, ())
    except ConfigError as error:
        console.warn(f"as it is, it would not start: {error}")


@app.command
def reload(*, json: bool = False, where: Where = HERE) -> int:
    """Give the running daemon what changed in config.toml.

    Args:
        json: Print one JSON object.
    """
    from outrider.cli import control

    found = control.reload(where)
    if json:
        console.as_json(found)
    elif found.error is None:
        console.out(_said(found.changed, found.restart))
    if found.error is not None:
        console.complain(_error(found.error))
        return ConfigError.exit_code
    return 0


def _said(changed: tuple[str, ...], restart: tuple[str, ...]) -> str:
    lines = [f"in force now: {', '.join(changed)}"] if changed else []
    lines += [f"after a restart: {', '.join(restart)}"] if restart else []
    return "\n".join(lines) or "nothing changed"


def _error(parts: dict[str, str]) -> ConfigError:
    why, todo = parts.get("why", ""), parts.get("todo", "")
    effect = "the daemon keeps the settings that it had"
    return ConfigError(parts.get("what", ""), why=why, effect=effect, todo=todo)
