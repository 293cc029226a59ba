"""`outrider`: the table of verbs, and what every failure looks like."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from difflib import get_close_matches
from types import TracebackType
from typing import Annotated

from cyclopts import App, CycloptsError, Parameter

import outrider
from outrider.cli import console, everywhere
from outrider.errors import DaemonUnreachable, InvalidRequest, OutriderError

USAGE, INTERRUPTED = 2, 130
DEBUG = "OUTRIDER_DEBUG"
"""Set, it shows the trace of a bug."""

QUICKSTART = """\
No daemon runs here. To see it work:        outrider demo
To serve: in one terminal  outrider cloud   and in another  outrider edge
Then ask:                                   outrider run "def fibonacci(n):"
"""

VERBS = {
    "demo": ("show:demo", "A minute that shows it all: two processes, one text, a cut link."),
    "cloud": ("servers:cloud", "Serve target models over gRPC."),
    "edge": ("servers:edge", "Run the daemon: OpenAI's API here, drafts ahead of the cloud."),
    "worker": ("worker:worker", "Hold layers of a model that is split over devices."),
    "run": ("ask:run", "Complete one prompt, streamed to standard output."),
    "chat": ("ask:chat", "Talk to a model, turn by turn."),
    "up": ("up:up", "Start the daemon in the background, or at every login."),
    "down": ("up:down", "Stop it; a purge leaves nothing of Outrider here."),
    "logs": ("logs:logs", "What the daemon logs."),
    "ps": ("running:ps", "Requests that run, and models that are loaded."),
    "stop": ("running:stop", "Cancel a request, or all of a model."),
    "link": ("link:app", "Clouds by name: add, pair, list, remove, test."),
    "identity": ("identity:app", "Who this machine is; the devices that its cloud knows."),
    "tenants": ("tenants:app", "API keys of this machine's cloud: add, list, revoke."),
    "vault": ("vault:app", "Seals what this device keeps on disk: init, status, rotate, erase."),
    "config": ("config:app", "Settings: write the file, show what is in force and from where."),
    "completion": ("completion:completion", "Print what a shell needs to complete the verbs."),
    "status": ("look:status", "What the daemon does now."),
    "top": ("top:top", "Watch it live: where answers run and why, drafts in flight, links."),
    "power": ("power:power", "What the machine draws, what is left, and what tokens cost."),
    "models": ("models:models", "Models that can be asked for; another one in its place; presets."),
    "pull": ("shelf:pull", "Fetch a model from a hub, or give one that lies here a name."),
    "ls": ("shelf:ls", "The models of this machine."),
    "show": ("shelf:show", "What a model is, what it needs, and what would run it."),
    "rm": ("shelf:rm", "Remove models, or forget those that lie elsewhere."),
    "export": ("export:export", "Write layers of a model as ONNX, for a CPU or an NPU."),
    "fit": (
        "measure:fit",
        "Measure whether a draft suits a target, before anything is deployed.",
    ),
    "plan": ("plan:plan", "Plan where the layers of a model run, and say why; nothing is moved."),
    "profile": (
        "profile:profile",
        "Measure this device and its links; recommend hardware for a model.",
    ),
    "sim": ("sim:sim", "Simulate a fleet: SLO, joules and dollars, policy beside policy."),
    "privacy": ("privacy:privacy", "Attack what would leave the device, and show what came back."),
    "doctor": ("health:doctor", "Check the installation, the engines, the ports and the links."),
    "bench": ("measure:bench", "Run a bench of the source checkout."),
    "version": ("look:version", "Versions of Outrider, Python and the engines."),
}
"""Verb to (module:function under `outrider.cli`, what the list of verbs says)."""


def make() -> App:
    """The application; a verb's module is imported when the verb is used."""
    app = App(
        name="outrider",
        help="A small model on the device drafts, the large one in the cloud decides: one text.",
        version=outrider.__version__,
        help_format="plaintext",
        default_parameter=Parameter(negative=""),
        suppress_keyboard_interrupt=False,
        help_epilogue=everywhere.EPILOGUE,
        config=everywhere.note_given,
    )
    for number, (verb, (place, text)) in enumerate(VERBS.items()):
        app.command(f"outrider.cli.{place}", name=verb, help=text, sort_key=number)
    app.default(bare)
    return app


def bare(*words: Annotated[str, Parameter(show=False)]) -> int:
    """Status when a daemon runs, else how to begin."""
    from outrider.cli.look import status

    if words:
        raise _no_verb(words[0])

    try:
        return status()
    except DaemonUnreachable:
        console.out(QUICKSTART, end="")
        return 0


def _no_verb(word: str) -> InvalidRequest:
    close = get_close_matches(word, VERBS, 1)
    todo = f"outrider {close[0]}" if close else "outrider --help lists the verbs"
    return InvalidRequest(f"there is no verb {word!r}", effect="nothing was done", todo=todo)


def main(arguments: Sequence[str] | None = None) -> None:
    """The entry point; leaves with the exit code."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    sys.excepthook = _bug
    sys.exit(run(given))


def run(arguments: Sequence[str]) -> int:
    """The exit code: 0; 1 inside; 2 usage; 3 not found; 4 no daemon; 5 no cloud; 6 access;
    7 no room; 130 interrupted."""
    try:
        with everywhere.taken(arguments) as left:
            return _run(left, arguments)
    except OutriderError as error:
        return _failed(error, arguments)


def _run(given: Sequence[str], arguments: Sequence[str]) -> int:
    try:
        # The parser takes a lone hyphen for a flag; no argument can hold a zero character.
        words = [console.STDIN if word == "-" else word for word in given]
        result = make()(words, exit_on_error=False, print_error=False, result_action="return_value")
    except CycloptsError as error:
        return _usage(error)
    except OutriderError as error:
        return _failed(error, arguments)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # The reader has what it wanted; the interpreter must not complain when it flushes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if os.environ.get(DEBUG):
            raise
        return _failed(_of_system(error), arguments)
    return result if isinstance(result, int) else 0


def _of_system(error: OSError) -> OutriderError:
    return OutriderError(
        f"{error.filename or 'the system'}: {error.strerror or type(error).__name__}",
        why="the system refused it",
        effect="the verb was ended",
        todo="check path and rights; outrider doctor looks at the folders that are needed",
    )


def _usage(error: CycloptsError) -> int:
    verb = " ".join(("outrider", *error.command_chain)) if error.command_chain else "outrider"
    console.complain(OutriderError(str(error).strip(), todo=f"{verb} --help"))
    return USAGE


def _bug(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """A failure of ours, in the form of all others; the interpreter then leaves with 1.

    Its text stays out: it may hold a prompt."""
    if os.environ.get(DEBUG) or console.manner.debug:
        sys.__excepthook__(kind, error, trace)
        return
    places = traceback.extract_tb(trace)
    last = f"{os.path.basename(places[-1].filename)}:{places[-1].lineno}" if places else "unknown"
    console.complain(
        OutriderError(
            f"outrider failed inside: {kind.__name__} at {last}",
            why="a bug, not something you did",
            effect="the verb was ended",
            todo=f"{DEBUG}=1 shows the trace; please report it",
        )
    )


def _failed(error: OutriderError, arguments: Sequence[str]) -> int:
    if "--json" in arguments:
        console.error_object(error)
    console.complain(error)
    return error.exit_code
