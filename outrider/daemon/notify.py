"""sd_notify: a few datagrams that tell the service manager how a process is (systemd's own
protocol, sd_notify(3); any manager that sets NOTIFY_SOCKET is told)."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import MutableMapping
from dataclasses import dataclass

READY, STOPPING, ALIVE = "READY=1", "STOPPING=1", "WATCHDOG=1"


@dataclass(frozen=True, slots=True)
class Notifier:
    """Silent where nobody asked to be told. `watchdog_s`: how often it wants to hear."""

    address: str = ""
    watchdog_s: float | None = None

    @classmethod
    def of(cls, environment: MutableMapping[str, str] = os.environ) -> Notifier:
        """Takes the variables away, so that children do not speak for this process."""
        address = environment.pop("NOTIFY_SOCKET", "")
        microseconds = environment.pop("WATCHDOG_USEC", "")
        whose = environment.pop("WATCHDOG_PID", "") or str(os.getpid())
        ours = microseconds.isdigit() and int(microseconds) > 0 and whose == str(os.getpid())
        return cls(address, int(microseconds) / 1e6 if ours else None)

    def tell(self, *lines: str) -> None:
        """Never fails: who does not listen is not told."""
        if not self.address:
            return
        # A leading @ stands for the zero byte of an abstract socket.
        place = f"\0{self.address[1:]}" if self.address.startswith("@") else self.address
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as out:
            try:
                out.sendto("\n".join(lines).encode(), place)
            except OSError:
                return

    def ready(self, status: str) -> None:
        self.tell(READY, f"STATUS={status}", f"MAINPID={os.getpid()}")

    def reloading(self) -> None:
        self.tell("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self) -> None:
        self.tell(STOPPING)

    async def beat(self) -> None:
        """Twice as often as it wants to hear, from the loop that serves; ends when cancelled."""
        while self.watchdog_s is not None:
            self.tell(ALIVE)
            await asyncio.sleep(self.watchdog_s / 2)
