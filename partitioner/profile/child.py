"""The measuring process from outside: started, asked, ended."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import msgspec

from outrider.errors import EngineFailed
from outrider.partitioner.profile.worker import Answer, Job

ANSWER_S = 600.0
"""A measurement that takes longer hangs."""


@dataclass(slots=True)
class Child:
    """A context manager. `ask` raises EngineFailed when the process died."""

    process: subprocess.Popen[bytes]

    @classmethod
    def start(cls, threads: int = 1) -> Self:
        environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
        return cls(
            subprocess.Popen(
                [sys.executable, "-m", "outrider.partitioner.profile.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=environment,
            )
        )

    @property
    def pid(self) -> int:
        return self.process.pid

    def ask(self, job: Job) -> Answer:
        assert self.process.stdin is not None and self.process.stdout is not None
        try:
            self.process.stdin.write(msgspec.json.encode(job) + b"\n")
            self.process.stdin.flush()
        except OSError:
            raise self._died(job) from None
        line = self.process.stdout.readline()
        if not line:
            raise self._died(job)
        return msgspec.json.decode(line, type=Answer)

    def _died(self, job: Job) -> EngineFailed:
        return EngineFailed(
            f"the process that measured {job.engine} {job.dtype} died",
            why=f"exit status {self.process.wait()}",
            effect="that engine has no rate",
            todo="outrider doctor tells which engines work here",
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                stream.close()
        if kind is not None:
            self.process.kill()
        self.process.wait()
