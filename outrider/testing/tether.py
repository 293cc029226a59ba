"""A program that ties itself to its parent and then becomes another program.

    python -I -S tether.py PARENT_PID NICE PROGRAM [ARGUMENT ...]

On Linux the kernel then kills it when its parent ends, however the parent ends. This happens in
a program of its own, since code that runs between fork and exec is not safe in a process with
threads. It imports nothing but the standard library, so that it starts fast.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1
NOT_STARTED = 127


def tie() -> None:
    """Asks the kernel for SIGKILL at the parent's end (prctl(2)); kept across exec."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)


def main(argv: list[str]) -> None:
    parent, nice, program = int(argv[0]), int(argv[1]), argv[2:]
    tie()
    if os.getppid() != parent:  # It ended before it could be asked for.
        sys.exit(NOT_STARTED)
    os.nice(nice)
    try:
        os.execvp(program[0], program)
    except OSError as error:
        sys.stderr.write(f"can not start {program[0]}: {error.strerror}\n")
        sys.exit(NOT_STARTED)


if __name__ == "__main__":
    main(sys.argv[1:])
