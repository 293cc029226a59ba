"""`outrider pull`, `ls`, `rm` and `show`: the models of this machine."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec
from cyclopts import Parameter

from outrider.cli import console
from outrider.cli.servers import missing
from outrider.errors import ConfigError, InvalidRequest, NotFound, OutriderError
from outrider.models.shelf import readable

if TYPE_CHECKING:
    from outrider.models.anatomy import Anatomy
    from outrider.models.pull import Pull
    from outrider.models.shelf import Entry, Shelf
    from outrider.models.verdicts import Verdict
    from outrider.models.wanted import Wanted

YES = Annotated[bool, Parameter(alias="-y")]


def pull(
    *models: str,
    pair: str = "",
    only: Literal["both", "draft", "target"] = "both",
    name: str = "",
    update: bool = False,
    yes: YES = False,
    fit: Literal["auto", "vocabulary", "none"] = "auto",
    json: bool = False,
) -> int:
    """Fetch a model from the Hugging Face hub, or give one that lies here a name.

    OWNER/NAME:Q8_0 is one quantisation, OWNER/NAME@REVISION a branch, tag or commit; short names
    and pairs are those of outrider models --presets.

    HF_TOKEN opens gated models, HF_ENDPOINT names another hub, OUTRIDER_OFFLINE=1 forbids the
    network. What was cut is gone on with by the same command.

    Args:
        models: OWNER/NAME, a short name, ./FOLDER or FILE.gguf. Repeat for more.
        pair: A draft and its target at once, by name.
        only: Of a pair, one half: the device needs the draft, the cloud the target.
        name: What to call it; by default the repository's own name.
        update: Take another version than the one that was pinned by the first pull.
        yes: Agree to the licence of a gated model without being asked.
        fit: After a pair: auto measures it where memory allows, vocabulary only compares, none.
        json: Print one JSON object.
    """
    wanted = _wanted(models, pair, only)
    if name and len(wanted) != 1:
        raise InvalidRequest("--name is for one model", effect="nothing was pulled")
    with _pull(yes=yes) as work:
        entries = [_one(work, text, name, update=update) for text in wanted]
    verdict = _fit(pair, fit) if pair and only == "both" and fit != "none" else None
    if json:
        console.as_json({"models": entries, "fit": verdict})
        return 0
    for entry in entries:
        console.out(entry.name)
    if verdict is not None:
        console.note(_verdict(verdict))
    return 0


def _wanted(models: Sequence[str], pair: str, only: str) -> list[str]:
    """What to pull, as it was written or by the pair's short names."""
    from outrider.models import presets

    if bool(models) == bool(pair):
        raise InvalidRequest(
            "name a model, or a pair with --pair",
            effect="nothing was pulled",
            todo="outrider models --presets lists what there is",
        )
    if not pair:
        return list(models)
    found = presets.pair(pair)
    return [
        name
        for half, name in (("draft", found.draft), ("target", found.target))
        if only in ("both", half)
    ]


def _one(work: Pull, text: str, name: str, *, update: bool) -> Entry:
    from outrider.models import presets
    from outrider.models.pull import is_place
    from outrider.models.wanted import Wanted

    if is_place(text):
        return work.register(text, name)
    known = presets.models().get(text.lower())
    if known is not None:
        return work.fetch(Wanted.parse(known.spec), name or text.lower(), update=update)
    if "/" not in text:
        raise _no_such(work.shelf, text)
    wanted = Wanted.parse(text)
    return work.fetch(wanted, name or _short(wanted), update=update)


def _short(wanted: Wanted) -> str:
    """The short name of a repository that has one, so that pairs find it."""
    from outrider.models import presets

    asked = (wanted.repo.lower(), wanted.part.lower())
    known = presets.models().items()
    return next((n for n, k in known if (k.repo.lower(), k.part.lower()) == asked), "")


def _no_such(shelf: Shelf, text: str) -> NotFound:
    from outrider.models import presets

    near = shelf.near(text, tuple(presets.models()))
    return NotFound(
        f"{text!r} is no short name, no folder and no repository",
        param="model",
        effect="nothing was pulled",
        todo=(f"did you mean {near}? " if near else "")
        + "a repository is OWNER/NAME; outrider models --presets lists short names",
    )


@contextmanager
def _pull(*, yes: bool) -> Iterator[Pull]:
    try:
        from outrider.models.hub import Hub
        from outrider.models.pull import Pull
        from outrider.models.shelf import Shelf
    except ModuleNotFoundError as error:
        raise missing("edge", error) from None
    with Bars() as bars:
        yield Pull(
            Shelf(),
            Hub(),
            now=time.time,  # noqa: TID251  When it was added is a date.
            note=bars.note,
            meter=bars,
            agree=lambda repo, licence: yes or _agreed(bars, repo, licence),
        )


def _agreed(bars: Bars, repo: str, licence: str) -> bool:
    if not sys.stdin.isatty():
        return False
    bars.note(f"{repo} is gated. Its licence: {licence or 'its own'}")
    return _says_yes("Do you agree to it?")


def _says_yes(question: str) -> bool:
    console.note(f"{question} [y/N]")
    try:
        return input().strip().lower() in ("y", "yes")
    except EOFError:
        return False


@dataclass(slots=True)
class Bars:
    """A meter on standard error: bars on a terminal, else a line a file."""

    _progress: Any = None
    _task: Any = None
    _shown: Any = field(default=None)

    def __enter__(self) -> Bars:
        if console.colours(sys.stderr) or sys.stderr.isatty():
            self._progress = _bars()
            self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._progress is not None:
            self._progress.stop()

    def note(self, text: str) -> None:
        if self._progress is None:
            console.note(text)
        else:
            self._progress.console.print(text, markup=False, highlight=False)

    def begin(self, name: str, total: int, there: int) -> None:
        if self._progress is None:
            more = f", {there} bytes of it are here" if there else ""
            console.note(f"  {name}, {readable(total)}{more}")
            return
        self._task = self._progress.add_task(name, total=total, completed=there)

    def came(self, count: int) -> None:
        if self._progress is not None:
            self._progress.advance(self._task, count)


def _bars() -> Any:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(None),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True, no_color=not console.colours(sys.stderr)),
    )


# --- pairs -------------------------------------------------------------------------------------


def _fit(pair: str, how: str) -> Verdict:
    from outrider.models import presets

    try:
        from outrider import fit as fitting
        from outrider.models import pairing
    except ModuleNotFoundError as error:
        raise missing("edge,torch", error) from None
    from outrider.models import verdicts
    from outrider.models.shelf import Shelf

    found = presets.pair(pair)
    shelf = Shelf()
    compared = pairing.compare(found.draft, found.target)
    if how == "vocabulary" or compared.verdict == "unusable" or not pairing.has_room(compared):
        verdicts.keep(shelf, compared)
        return compared
    console.note("measuring the pair: `--fit vocabulary` leaves that out")
    try:
        return fitting.kept(shelf, compared, note=console.note)
    except OutriderError as error:
        verdicts.keep(shelf, compared)
        console.warn(f"the pair could not be measured here: {error}")
        return compared


def _verdict(found: Verdict) -> str:
    lines = [f"{found.draft} for {found.target}: {console.bold(found.verdict)}"]
    return "\n".join([*lines, *(f"  {sentence}" for sentence in found.advice)])


# --- ls ----------------------------------------------------------------------------------------


def ls(*, json: bool = False) -> int:
    """Models of this machine, by name.

    Args:
        json: Print one JSON object.
    """
    from outrider.models.shelf import Shelf

    shelf = Shelf()
    entries = shelf.entries()
    if json:
        rows = [
            {**msgspec.to_builtins(e), "used_at": shelf.used(e.name), "there": _there(e)}
            for e in entries
        ]
        console.as_json({"folder": str(shelf.root), "models": rows})
        return 0
    if not entries:
        console.note(f"no models yet in {shelf.root}; outrider models --presets lists some to pull")
        return 0
    console.out(console.table([HEAD, *(_row(shelf, entry) for entry in entries)]))
    return 0


HEAD = ("NAME", "SIZE", "KIND", "STORED", "DIGEST", "LAST USED", "LICENCE", "FROM")


def _row(shelf: Shelf, entry: Entry) -> tuple[str, ...]:
    origin = entry.repo if entry.origin == "hub" else entry.path
    return (
        entry.name,
        readable(entry.size),
        entry.kind,
        entry.quantisation,
        entry.digest[:12],
        _when(shelf.used(entry.name)),
        entry.licence or "not stated",
        origin if _there(entry) else f"{origin} (gone)",
    )


def _there(entry: Entry) -> bool:
    return Path(entry.path).exists()


def _when(seconds: float | None) -> str:
    if seconds is None:
        return "never"
    return datetime.fromtimestamp(seconds).strftime("%Y-%m-%d %H:%M")


# --- rm ----------------------------------------------------------------------------------------


def rm(*names: str, yes: YES = False, json: bool = False) -> int:
    """Remove models. One that was registered in place is only forgotten: its files stay.

    Args:
        names: As outrider ls shows them.
        yes: Do not ask.
        json: Print one JSON object.
    """
    from outrider.models.shelf import Shelf

    if not names:
        raise InvalidRequest("name a model", effect="nothing was removed", todo="outrider ls")
    shelf = Shelf()
    gone: dict[str, str] = {}
    for entry in [shelf.get(name) for name in names]:
        if not yes and not _confirmed(entry):
            console.note(f"{entry.name} stays")
            continue
        shelf.remove(entry.name)
        gone[entry.name] = "removed" if entry.origin == "hub" else "forgotten"
        if not json:
            console.out(f"{entry.name} was {gone[entry.name]}")
    if json:
        console.as_json({"models": gone})
    return 0


def _confirmed(entry: Entry) -> bool:
    if not sys.stdin.isatty():
        raise ConfigError(
            f"removing {entry.name} was not confirmed",
            why="there is no terminal to ask at",
            effect="nothing was removed",
            todo=f"outrider rm {entry.name} --yes",
        )
    if entry.origin == "hub":
        return _says_yes(f"Delete {entry.name}, {readable(entry.size)}?")
    return _says_yes(f"Forget {entry.name}? Its files stay in {entry.folder}.")


# --- show --------------------------------------------------------------------------------------


def show(name: str, /, *, json: bool = False) -> int:
    """What a model is: shape, memory, vocabulary, licence, files, and what would run it.

    Args:
        name: As outrider ls shows it, bundled:target, or a path.
        json: Print one JSON object.
    """
    try:
        from outrider.engines import registry
        from outrider.models import anatomy, source
        from outrider.models.shelf import Shelf
    except ModuleNotFoundError as error:
        raise missing("edge", error) from None
    shelf = Shelf()
    entry = shelf.get(name) if shelf.has(name) else None
    files = source.resolve(name)
    found = anatomy.read(files)
    installed = [engine for engine in found.engines if engine in registry.installed()]
    verdicts = _verdicts(shelf, name)
    if json:
        fields = {"name": name, "entry": entry, "digest": files.digest, "anatomy": found}
        console.as_json({**fields, "installed": installed, "fits": verdicts})
        return 0
    console.out(_page(name, entry, found, installed))
    for path in files.weights:
        console.out(f"{'':13} {path.name}, {readable(path.stat().st_size)}")
    for verdict in verdicts:
        console.out(f"{console.bold('pair'.ljust(13))} {_verdict(verdict)}")
    return 0


def _verdicts(shelf: Shelf, name: str) -> list[Verdict]:
    from outrider.models import verdicts

    return [v for v in verdicts.kept(shelf) if name in (v.draft, v.target)]


def _page(name: str, entry: Entry | None, found: Anatomy, installed: Sequence[str]) -> str:
    from outrider.models import source

    files = source.resolve(name)
    need = found.need
    count = "unknown" if found.parameters is None else _millions(found.parameters)
    rows = [
        ("model", name),
        ("architecture", f"{found.architecture}, {count} parameters, {found.stored}"),
        ("shape", f"{found.layers} layers, width {found.hidden}, heads {found.heads or 'unknown'}"),
        ("context", f"{found.context} tokens"),
        ("vocabulary", f"{found.vocabulary[:12]}, {found.tokens} tokens"),
        ("chat", f"template: {found.template}; ends: {', '.join(found.ends) or 'none'}"),
        (
            "memory",
            f"{readable(need.weights)} weights, {need.kv_token / 1024:.1f} KiB a token,"
            f" {readable(need.kv_context)} for a whole context{_of_machine(need.machine)}",
        ),
        ("engine", _engines(found.engines, installed)),
        ("licence", (entry.licence if entry else "") or "not stated"),
        ("digest", files.digest),
        ("from", _origin(entry, files.path)),
    ]
    return "\n".join(f"{console.bold(head.ljust(13))} {text}" for head, text in rows)


def _millions(count: int) -> str:
    return f"{count / 1e9:.2f} B" if count >= 1e9 else f"{count / 1e6:.1f} M"


def _of_machine(total: int | None) -> str:
    return "" if total is None else f"; this machine has {readable(total)}"


def _engines(possible: Sequence[str], installed: Sequence[str]) -> str:
    if not installed:
        return f'none is installed: pip install "outrider[{possible[0]}]"'
    others = [f"{name} (not installed)" for name in possible if name not in installed]
    return ", ".join([*installed, *others])


def _origin(entry: Entry | None, path: Path) -> str:
    if entry is None or entry.origin == "place":
        return str(path)
    return f"{entry.repo}@{entry.commit[:12]}, in {entry.folder}"
