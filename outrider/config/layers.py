"""All sources of settings, in their order, and the options that they make."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar

from outrider.config import values
from outrider.config.file import ConfigFile
from outrider.config.keys import LINK, SECRET, SECTIONS, Key, keys
from outrider.config.values import Wrong
from outrider.errors import ConfigError
from outrider.options import CloudLink, EdgeOptions

T = TypeVar("T")
PREFIX = "OUTRIDER_"
DEFAULT, FLAG = "default", "flag"


@dataclass(frozen=True, slots=True)
class Found:
    """One key's value, and where it is from: `default`, `flag`, a variable, FILE:LINE."""

    value: object
    origin: str


@dataclass(frozen=True, slots=True)
class Layers:
    """What file and environment say. Read it with `load`, which checks all of it."""

    file: ConfigFile
    environment: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def load(cls, path: Path | None = None, environment: Mapping[str, str] | None = None) -> Layers:
        """Raises ConfigError for the first thing that is wrong in file or environment."""
        given = os.environ if environment is None else environment
        layers = cls(ConfigFile.read(path), given)
        for trouble in layers.troubles():
            raise trouble
        return layers

    # --- reading ---------------------------------------------------------------------------

    def section(self, name: str) -> dict[str, Found]:
        """All keys of a section. Raises ConfigError."""
        return {key.name: self.find(key) for key in keys(name).values()}

    def find(self, key: Key) -> Found:
        """Raises ConfigError for a value of the wrong kind."""
        if text := self.environment.get(key.variable, ""):
            try:
                return Found(values.of_text(key, text), key.variable)
            except Wrong as error:
                raise _wrong(key.variable, key, text, error) from None
        table = self.file.values.get(key.section, {})
        if isinstance(table, dict) and key.name in table:
            return self._of_file(key, key.dotted, table[key.name])
        return Found(key.default, DEFAULT)

    def _of_file(self, key: Key, dotted: str, raw: object) -> Found:
        place = self.file.at(dotted)
        try:
            return Found(values.of_file(key, raw, self.file.path.parent), place)
        except Wrong as error:
            raise _wrong(f"{place}: {dotted}", key, raw, error) from None

    def links(self) -> tuple[CloudLink, ...]:
        """Clouds by name, best first. Raises ConfigError."""
        found = [self.link(name) for name in self.link_names()]
        return tuple(sorted(found, key=lambda link: (link.priority, link.name)))

    def link_names(self) -> list[str]:
        table = self.file.values.get(LINK, {})
        return list(table) if isinstance(table, dict) else []

    def link(self, name: str) -> CloudLink:
        """Raises ConfigError: not there, no `url`, or what it says can not work."""
        fields = self.link_fields(name)
        if fields["url"].value is None:
            raise ConfigError(
                f"{self.file.at(f'link.{name}')}: link {name!r} has no url",
                effect="no setting was taken",
                todo=f"outrider link add {name} HOST:PORT",
            )
        made: dict[str, Any] = {key: found.value for key, found in fields.items()}
        return CloudLink(name=name, **made)

    def link_fields(self, name: str) -> dict[str, Found]:
        """Of one link; `url` is None where none is said."""
        table = self.file.values[LINK][name]
        found = {}
        for key in keys(LINK).values():
            variable = f"{PREFIX}LINK__{name.upper().replace('-', '_')}__{key.name.upper()}"
            if text := self.environment.get(variable, ""):
                found[key.name] = Found(values.of_text(key, text), variable)
            elif isinstance(table, dict) and key.name in table:
                found[key.name] = self._of_file(key, f"link.{name}.{key.name}", table[key.name])
            else:
                found[key.name] = Found(key.default, DEFAULT)
        return found

    # --- checking --------------------------------------------------------------------------

    def troubles(self) -> Iterator[ConfigError]:
        """Everything that is wrong: unknown names first, then values."""
        yield from self._unknown_sections()
        yield from self._unknown_variables()
        for name in SECTIONS:
            table = self.file.values.get(name, {})
            yield from self._unknown_keys(name, table, keys(name))
            yield from self._wrong_values(list(keys(name).values()))
        for name in self.link_names():
            yield from self._unknown_keys(f"link.{name}", self.file.values[LINK][name], keys(LINK))
            try:
                self.link(name)
            except ConfigError as error:
                yield error

    def _unknown_sections(self) -> Iterator[ConfigError]:
        known = ("schema", LINK, *SECTIONS)
        for name in self.file.values:
            if name not in known:
                yield self._unknown(name, name, known)

    def _unknown_keys(
        self, section: str, table: object, known: Mapping[str, Key]
    ) -> Iterator[ConfigError]:
        if not isinstance(table, dict):
            yield ConfigError(
                f"{self.file.at(section)}: {section} is no section",
                effect="no setting was taken",
                todo=f"write [{section}] above its keys",
            )
            return
        for name in table:
            if name in SECRET and section in SECTIONS:
                yield self._secret(section, name)
            elif name not in known:
                yield self._unknown(f"{section}.{name}", name, known)

    def _unknown(self, dotted: str, name: str, known: Collection[str]) -> ConfigError:
        close = get_close_matches(name, known, 1, 0.5)
        return ConfigError(
            f"{self.file.at(dotted)}: there is no key {dotted!r}",
            effect="no setting was taken",
            todo=f"did you mean {close[0]!r}?" if close else "outrider config schema lists them",
        )

    def _secret(self, section: str, name: str) -> ConfigError:
        return ConfigError(
            f"{self.file.at(f'{section}.{name}')}: {section}.{name} is a secret",
            why="a key has no business in a file of settings",
            effect="no setting was taken",
            todo=f"set {SECRET[name]}, or a link with api_key_ref = file:PATH",
        )

    def _unknown_variables(self) -> Iterator[ConfigError]:
        """Those of the nested form; other names may be anybody's."""
        for variable in self.environment:
            section, nested, name = variable.removeprefix(PREFIX).partition("__")
            if not nested or not variable.startswith(PREFIX) or section.lower() == LINK:
                continue
            if section.lower() not in SECTIONS:
                yield _no_variable(variable, SECTIONS, section.lower())
            elif name.lower() not in keys(section.lower()):
                yield _no_variable(variable, keys(section.lower()), name.lower())

    def _wrong_values(self, known: Collection[Key]) -> Iterator[ConfigError]:
        for key in known:
            try:
                self.find(key)
            except ConfigError as error:
                yield error

    # --- options ---------------------------------------------------------------------------

    def settle(
        self, kind: type[T], section: str, flags: Mapping[str, Any], given: Collection[str]
    ) -> T:
        """Options of a server. `flags` are values by field, `given` the flags that were typed.

        Raises ConfigError, which names where the values are from.
        """
        found = {}
        for name, each in self.section(section).items():
            typed = keys(section)[name].flag in given
            found[name] = Found(flags.get(name, each.value), FLAG) if typed else each
        made = {name: value for name, value in flags.items() if name not in found}
        made |= {name: each.value for name, each in found.items()}
        if kind is EdgeOptions:
            made |= self._clouds(found["clouds"])
        try:
            return kind(**made)
        except ConfigError as error:
            raise _traced(error, found, section) from None

    def _clouds(self, found: Found) -> dict[str, Any]:
        """The usual cloud is not looked for where links name others; `--cloud NAME` is a link."""
        links = self.links()
        said: Any = found.value
        named = {link.name: link for link in links}
        chosen = tuple(named[each.host] for each in said if each.host in named)
        if chosen:
            rest = tuple(each for each in said if each.host not in named)
            return {"links": chosen, "clouds": rest}
        return {"links": links, "clouds": () if links and found.origin == DEFAULT else found.value}


def _wrong(where: str, key: Key, raw: object, error: Wrong) -> ConfigError:
    return ConfigError(
        f"{where} is {raw!r}, not {error}",
        why=key.help,
        effect="no setting was taken",
        todo=f"give {key.dotted} {error}",
    )


def _no_variable(variable: str, known: Collection[str], name: str) -> ConfigError:
    close = get_close_matches(name, known, 1, 0.5)
    nearest = variable.replace(name.upper(), close[0].upper(), 1) if close else ""
    return ConfigError(
        f"there is no setting behind {variable}",
        effect="no setting was taken",
        todo=f"did you mean {nearest}?" if close else f"unset {variable}",
    )


def _traced(error: ConfigError, found: Mapping[str, Found], section: str) -> ConfigError:
    """The same, with the places that the values it speaks of are from."""
    told = []
    for name, each in found.items():
        flag = f"--{keys(section)[name].flag.replace('_', '-')}"
        said = str(values.plain(each.value))
        spoken = flag in error.what or (len(said) > 3 and said in error.what)
        if spoken and each.origin not in (DEFAULT, FLAG):
            told.append(f"{name} is from {each.origin}")
    why = "; ".join([*([error.why] if error.why else []), *told])
    made = type(error)(error.what, why=why, effect=error.effect, todo=error.todo)
    return made


def with_reread(options: T, again: Callable[[], T]) -> T:
    """The options, with the way to read them anew."""
    made: Any = options
    renewed: T = dataclasses.replace(made, reread=again)
    return renewed
