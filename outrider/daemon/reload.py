"""New settings for a running server: what it takes at once, what waits, what is refused."""

from __future__ import annotations

import asyncio
import dataclasses
import signal
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import msgspec

from outrider.daemon.notify import READY, Notifier
from outrider.errors import ConfigError
from outrider.protocol import events
from outrider.protocol.faults import to_parts

T = TypeVar("T")


class Reloaded(msgspec.Struct, frozen=True):
    """What came of reading the settings anew. With an `error` all stays as it was."""

    changed: tuple[str, ...] = ()
    restart: tuple[str, ...] = ()
    """Changed too, and in force after the next start."""
    error: dict[str, str] | None = None
    """`code`, `what`, `why`, `effect`, `todo`."""


@dataclass(slots=True)
class Reloader(Generic[T]):
    """Holds the settings that are in force. `apply` gets old and new; it raises ConfigError."""

    options: T
    live: frozenset[str]
    apply: Callable[[T, T], None]
    publish: Callable[[events.Event], None]

    def reload(self) -> Reloaded:
        """Read again, take what can be taken. Never raises for what a file says."""
        options: Any = self.options
        if options.reread is None:
            return Reloaded()
        try:
            return self._take(options.reread())
        except ConfigError as error:
            what = f"settings were not taken: {error.what}"
            self.publish(events.Trouble(code=error.code, what=what))
            return Reloaded(error=to_parts(error))

    def _take(self, read: Any) -> Reloaded:
        names = [each.name for each in dataclasses.fields(read) if each.compare]
        differ = [n for n in names if getattr(read, n) != getattr(self.options, n)]
        changed = tuple(name for name in differ if name in self.live)
        options: Any = self.options
        new: T = dataclasses.replace(options, **{name: getattr(read, name) for name in changed})
        if changed:
            self.apply(self.options, new)
            self.options = new
        restart = tuple(name for name in differ if name not in self.live)
        found = Reloaded(changed, restart)
        self.publish(events.Remark(said=said(found)))
        return found


def on_hangup(reloader: Reloader[Any], manager: Notifier) -> None:
    """SIGHUP reads the settings anew; the service manager hears when that begins and ends."""

    def reload() -> None:
        manager.reloading()
        reloader.reload()
        manager.tell(READY)

    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, reload)


def said(found: Reloaded) -> str:
    """For people."""
    parts = [f"took {', '.join(found.changed)}"] if found.changed else []
    if found.restart:
        parts.append(f"{', '.join(found.restart)} after a restart")
    return f"settings read anew: {'; '.join(parts) or 'nothing changed'}"
