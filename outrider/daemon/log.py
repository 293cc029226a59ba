"""The structured log of a server: one JSON object a line, made of its events.

Events hold no prompt, no text, no token ids (`protocol/events.py`), and what libraries log is
cut to its first line, without the text of exceptions: a log can be shown to anybody.
"""

from __future__ import annotations

import logging
import logging.handlers
import os
import sys
import traceback
from collections.abc import MutableMapping
from dataclasses import dataclass
from io import TextIOWrapper
from pathlib import Path
from typing import Any, TextIO

import msgspec
import structlog

from outrider.options import LogLevel
from outrider.protocol import events
from outrider.protocol.bus import Bus

KEPT_BYTES = 5 << 20
KEPT_FILES = 3
"""Older ones beside the newest."""
OURS = "outrider"
DETAIL = (
    events.CommitReceived,
    events.Gauge,
    events.HintSent,
    events.Lag,
    events.LocalTokens,
    events.Stepped,
)
"""Logged at level debug: they come many times a second."""
ALARMS = (events.Fallback, events.Shed, events.Trouble)
STAMPS = ("v", "t_ms", "source", "at", "type")

Fields = MutableMapping[str, Any]


class PrivateFile(logging.handlers.RotatingFileHandler):
    """Readable by the user alone; it begins anew at `KEPT_BYTES`."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        super().__init__(path, maxBytes=KEPT_BYTES, backupCount=KEPT_FILES, encoding="utf-8")

    def _open(self) -> TextIOWrapper:
        descriptor = os.open(self.baseFilename, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        return open(descriptor, "a", encoding="utf-8")


@dataclass(frozen=True, slots=True)
class Log:
    """`place` is what the server's card says of it: a file, `journal:UNIT`, or empty."""

    place: str = ""

    @classmethod
    def start(
        cls, file: Path | None, level: LogLevel, role: str, stream: TextIO | None = None
    ) -> Log:
        """To a file; to journald under systemd; else nowhere. Raises ConfigError."""
        journal = "JOURNAL_STREAM" in os.environ and file is None
        if file is None and not journal:
            return cls()
        target = logging.StreamHandler(stream or sys.stderr) if file is None else _file(file)
        target.setFormatter(
            structlog.stdlib.ProcessorFormatter(
                processors=[
                    _private,
                    structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                    structlog.processors.JSONRenderer(serializer=_json),
                ],
                foreign_pre_chain=_chain(),
            )
        )
        root = logging.getLogger()
        root.handlers[:] = [target]
        cls.set_level(level)
        for chatty in ("uvicorn", "asyncio"):
            logging.getLogger(chatty).setLevel(logging.WARNING)
        structlog.configure(
            processors=[*_chain(), structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
            logger_factory=structlog.stdlib.LoggerFactory(),
            wrapper_class=structlog.stdlib.BoundLogger,
            cache_logger_on_first_use=False,
        )
        return cls(f"journal:outrider-{role}" if journal else str(file))

    @staticmethod
    def set_level(level: LogLevel) -> None:
        """Of what is logged from now on."""
        logging.getLogger().setLevel(level.upper())

    def close(self) -> None:
        """Nothing is logged from now on."""
        root = logging.getLogger()
        for handler in list(root.handlers) if self.place else []:
            root.removeHandler(handler)
            handler.close()


def _file(path: Path) -> PrivateFile:
    try:
        return PrivateFile(path)
    except OSError as error:
        from outrider.errors import ConfigError

        raise ConfigError(
            f"--log-file {path} can not be written: {error.strerror}",
            effect="nothing was started",
            todo="name another file, or leave --log-file away",
        ) from None


def _chain() -> list[Any]:
    return [
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
    ]


def _json(fields: Fields, **_: Any) -> str:
    first = ("time", "level", "event")
    ordered = {name: fields[name] for name in first if name in fields} | dict(fields)
    return msgspec.json.encode(ordered, enc_hook=lambda value: type(value).__name__).decode()


def _private(_: Any, __: str, fields: Fields) -> Fields:
    """Of exceptions the kind and the places; of foreign words the first line."""
    record = fields.get("_record")
    if record is None:
        return fields
    raised = fields.pop("exc_info", None)
    if isinstance(raised, tuple) and raised[1] is not None:
        fields["error"] = type(raised[1]).__name__
        fields["trace"] = "".join(traceback.format_tb(raised[2]))
    if not record.name.startswith(OURS):
        fields["event"] = str(fields.get("event", "")).partition("\n")[0]
    return fields


class LoggedBus(Bus):
    """Events go to readers and into the log."""

    def __init__(self, directory: Path, name: str) -> None:
        super().__init__(directory, name)
        self._log = structlog.stdlib.get_logger(f"{OURS}.{name.partition('-')[0]}")

    def publish(self, event: events.Event) -> None:
        super().publish(event)
        level = level_of(event)
        if logging.getLogger().isEnabledFor(level):
            fields = msgspec.to_builtins(event)
            told = {name: value for name, value in fields.items() if name not in STAMPS}
            self._log.log(level, fields["type"], **told)


def level_of(event: events.Event) -> int:
    if isinstance(event, DETAIL):
        return logging.DEBUG
    broken = isinstance(event, events.LinkChanged) and event.state in ("unreachable", "lost")
    return logging.WARNING if broken or isinstance(event, ALARMS) else logging.INFO


def bus(directory: Path, name: str, log: Log) -> Bus:
    """With a log, where there is one."""
    return LoggedBus(directory, name) if log.place else Bus(directory, name)
