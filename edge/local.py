"""A committer on this device: `outrider cloud --workers ...` as a child, one more peer.

It drives the stages of a split model on other devices and speaks the session protocol on
loopback, so answers move between it and the clouds at a commit, with the journal, like
between any two clouds. It is started by its command line: the edge imports nothing of the
cloud. It ends with this process, however that ends.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import outrider
from outrider.edge.link import Link
from outrider.options import Address, EdgeOptions
from outrider.protocol import bus, events

TETHER = Path(outrider.__file__).parent / "testing" / "tether.py"
"""A program that the child runs in first: the kernel then ends it with this process."""
COMMAND = (sys.executable, "-c", "from outrider.cli import main; main()", "cloud")
LOOK_S = 0.05
"""Between two looks for the file that says that it serves."""
PAUSE_S = (0.5, 10.0)
"""First and longest pause before one that ended is started again; doubled each time."""
DRAIN_S = 0.2
STOP_S = 5.0
"""What it has to end in, before it is killed."""


@dataclass(slots=True)
class LocalCommitter:
    """`await run()` in a task; cancelling that ends the child."""

    options: EdgeOptions
    link: Link
    publish: Callable[[events.Event], None]
    directory: Path
    """Where its events socket lies."""
    command: tuple[str, ...] = COMMAND
    process: asyncio.subprocess.Process | None = field(default=None, init=False)

    async def run(self) -> None:
        """Keep one running until cancelled; one that served starts the pauses anew."""
        pause = PAUSE_S[0]
        while True:
            served = await self._life()
            pause = PAUSE_S[0] if served else min(PAUSE_S[1], pause * 2)
            status = self.process.returncode if self.process is not None else None
            self.publish(
                events.Trouble(
                    code="stage_lost",
                    what=f"the committer of the split model ended with status {status}",
                )
            )
            await asyncio.sleep(pause)

    async def _life(self) -> bool:
        """From start to end of one child; whether it served."""
        with tempfile.TemporaryDirectory(prefix="outrider-") as folder:
            note = Path(folder) / "ready.json"
            self.process = await self._spawn(note)
            try:
                ready = await self._ready(self.process, note)
                if ready is None:
                    return False
                await self._serve(self.process, ready["address"], ready["events"])
                return True
            finally:
                await self._end(self.process)

    async def _spawn(self, note: Path) -> asyncio.subprocess.Process:
        options = self.options
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-I", "-S", str(TETHER), str(os.getpid()), "0"),
            *self.command,
            *("--listen", "127.0.0.1:0", "--ready-file", str(note)),
            *("--model", options.split, "--workers", ",".join(map(str, options.workers))),
            *(("--workers-ca", str(options.workers_ca)) if options.workers_ca else ()),
            *self._joining(),
            *("--max-slots", str(options.max_running), "--drain", str(DRAIN_S)),
            *("--runtime-dir", str(self.directory)),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
        )

    def _joining(self) -> Iterator[str]:
        """Where workers join, if they may."""
        options = self.options
        if options.joins:
            yield from ("--join-listen", str(options.join_listen))
            given = {"keys": options.join_keys, "cert": options.join_cert, "key": options.join_key}
            for name, path in given.items():
                yield from (f"--join-{name}", str(path)) if path else ()

    async def _ready(
        self, process: asyncio.subprocess.Process, note: Path
    ) -> dict[str, str] | None:
        """What it says once it serves; None when it ended before."""
        while not note.exists():
            if process.returncode is not None:
                return None
            await asyncio.sleep(LOOK_S)
        found: dict[str, str] = json.loads(note.read_text())
        return found

    async def _serve(self, process: asyncio.subprocess.Process, address: str, heard: str) -> None:
        """A peer until it ends; what it decides is told as the device's own."""
        home = self.options.workers_here
        peer = self.link.add(Address.parse(address, 0), "split", home=home)
        telling = asyncio.create_task(self._tell(heard))
        try:
            checking = asyncio.create_task(self.link.check(peer))
            await process.wait()
            checking.cancel()
        finally:
            telling.cancel()
            await self.link.drop(peer)

    async def _tell(self, address: str) -> None:
        async for event in bus.subscribe(address):
            if isinstance(event, events.Decision | events.Trouble):
                self.publish(event)

    async def _end(self, process: asyncio.subprocess.Process) -> None:
        if process.returncode is not None:
            return
        with suppress(ProcessLookupError):
            process.terminate()
        try:
            await asyncio.wait_for(process.wait(), STOP_S)
        except TimeoutError:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()
