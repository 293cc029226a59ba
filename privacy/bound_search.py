"""Regular expressions of other people, run where they can do no harm.

A pattern can backtrack for longer than anybody waits, and Python's `re` can not be stopped in
its own process. So patterns run in a child with a limit of CPU time and of memory; texts reach it
through a pipe alone. `python -I -S` on this file is that child.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Sequence

CPU_S = 1
"""Seconds of one request's patterns over all of its texts."""
WAIT_S = 10.0
"""The same by the clock, on a machine that has much else to do."""
MEMORY = 512 << 20
MOST_CHARACTERS = 1 << 20
"""Of all texts of a request together."""

Found = tuple[str, int, int]
"""(name, start, stop)"""


def search(patterns: Sequence[tuple[str, str]], texts: Sequence[str]) -> list[list[Found]]:
    """Where the patterns match, text by text. Raises InvalidRequest where they take too long."""
    if sum(map(len, texts)) > MOST_CHARACTERS:
        raise _stopped(f"the texts have more than {MOST_CHARACTERS} characters")
    asked = json.dumps([list(map(list, patterns)), list(texts)]).encode()
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-S", __file__],
            input=asked,
            capture_output=True,
            timeout=WAIT_S,
            env={},
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise _stopped("a pattern took too long") from None
    except OSError as error:
        raise _stopped(f"no process could be started: {error.strerror}") from None
    if done.returncode:
        raise _stopped("a pattern took too long, or too much memory")
    return [[(name, start, stop) for name, start, stop in one] for one in json.loads(done.stdout)]


def _stopped(why: str) -> Exception:
    from outrider.errors import InvalidRequest

    return InvalidRequest(
        "the prompt could not be looked through for patterns",
        param="outrider.redact",
        why=why,
        effect="the request was not started, and nothing was sent",
        todo="write a pattern without repeats inside of repeats, or a shorter prompt",
    )


def main() -> None:
    """The child: bounded first, then the patterns."""
    import resource

    resource.setrlimit(resource.RLIMIT_CPU, (CPU_S, CPU_S))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    patterns, texts = json.loads(sys.stdin.buffer.read())
    found = [
        [
            (name, *match.span())
            for name, pattern in patterns
            for match in re.finditer(pattern, text)
            if match.end() > match.start()
        ]
        for text in texts
    ]
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    main()
