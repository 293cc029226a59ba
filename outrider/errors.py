"""Every error a caller can meet, drawn as one tree.

OutriderError               500  a failure that no code foresaw
├── InvalidRequest              400  the caller's fault; nothing was changed
│   ├── UnsupportedParameter         the field would change the answer and is not supported
│   ├── ContextExceeded              prompt (and wanted tokens) do not fit the model
│   └── NotFound                404  unknown model, request, route
├── ConfigError                      a setting that can not work (bad value, unsafe bind)
│   └── PortInUse                    another process listens there
├── ModelError                       a model file that can not be used
│   ├── ModelCorrupt                 truncated, out of bounds, wrong digest
│   ├── ModelUnsupported             well formed, but not for this engine
│   └── ModelChanged                 another one than was pinned
├── HubError                    502  the model hub can not be reached, or gave no proper answer
│   └── Offline                 503  the network is switched off by a setting
├── DiskFull                    507  no room for a model's files
├── EngineError                 500  the engine, not the request
│   ├── EngineMissing                its library is not installed
│   ├── EngineFull              429  no slot, or no memory for one
│   └── EngineFailed                 the library failed, or gave no finite scores
├── ProtocolError                    the wire between edge and cloud
│   ├── LocalProtocolError           our own bug
│   ├── RemoteProtocolError          the peer's bug
│   └── HandshakeRefused             versions or digests differ; both values are named
├── LinkError                   503  the link between edge and cloud
│   ├── CloudUnreachable             nothing answered
│   ├── LinkLost                     it answered, then went silent
│   └── StageLost                    a device that holds layers went away
├── Overloaded                  429  try again after `retry_after_s`
├── AccessDenied                401  no key, wrong key, wrong host
├── PlanError                   400  no sensible answer to where a model should run
│   ├── InvalidProfile               a graph, device or link that makes no sense
│   └── Unplannable                  no placement keeps all constraints; names the nearest that do
├── SealError                        what is sealed can not be used as it is
│   ├── SealBroken                   changed, cut, swapped, or of another key
│   └── PeerUntrusted                not the device or verifier that was paired with
├── JournalError                     the disk journal can not be kept (disk full, I/O error)
└── DaemonUnreachable                the SDK or CLI found no edge daemon
    └── TimedOut                504  no token came within the time that the caller gave

An error says what happened, why, what follows, and what to do. No error text
ever holds prompt text or generated text.
"""

from __future__ import annotations

from typing import ClassVar


class OutriderError(Exception):
    """Base of all; `str()` is what, why, effect and remedy on separate lines."""

    code: ClassVar[str] = "internal"
    http_status: ClassVar[int] = 500
    exit_code: ClassVar[int] = 1
    grpc_status: ClassVar[str] = "INTERNAL"

    def __init__(self, what: str, *, why: str = "", effect: str = "", todo: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.why = why
        self.effect = effect
        self.todo = todo

    def __str__(self) -> str:
        named = (("why", self.why), ("effect", self.effect), ("try", self.todo))
        return "\n".join([self.what, *(f"  {name}: {text}" for name, text in named if text)])

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (type(self), self.__dict__))


def _rebuild(kind: type[OutriderError], fields: dict[str, str]) -> OutriderError:
    error = kind.__new__(kind)
    Exception.__init__(error, fields["what"])
    error.__dict__.update(fields)
    return error


class InvalidRequest(OutriderError):
    code = "invalid_request"
    http_status = 400
    exit_code = 2
    grpc_status = "INVALID_ARGUMENT"

    def __init__(
        self, what: str, *, param: str = "", why: str = "", effect: str = "", todo: str = ""
    ) -> None:
        super().__init__(what, why=why, effect=effect, todo=todo)
        self.param = param


class UnsupportedParameter(InvalidRequest):
    code = "unsupported_parameter"


class ContextExceeded(InvalidRequest):
    code = "context_length_exceeded"


class NotFound(InvalidRequest):
    code = "not_found"
    http_status = 404
    exit_code = 3
    grpc_status = "NOT_FOUND"


class ConfigError(OutriderError):
    code = "config"
    exit_code = 2
    grpc_status = "FAILED_PRECONDITION"


class PortInUse(ConfigError):
    code = "port_in_use"


class ModelError(OutriderError):
    code = "model"
    exit_code = 3
    grpc_status = "FAILED_PRECONDITION"


class ModelCorrupt(ModelError):
    code = "model_corrupt"


class ModelUnsupported(ModelError):
    code = "model_unsupported"


class ModelChanged(ModelError):
    code = "model_changed"


class HubError(OutriderError):
    code = "hub"
    http_status = 502
    exit_code = 5
    grpc_status = "UNAVAILABLE"


class Offline(HubError):
    code = "offline"
    http_status = 503


class DiskFull(OutriderError):
    code = "disk_full"
    http_status = 507
    exit_code = 7
    grpc_status = "RESOURCE_EXHAUSTED"


class EngineError(OutriderError):
    code = "engine"


class EngineMissing(EngineError):
    code = "engine_missing"
    exit_code = 3

    def __init__(self, engine: str, extra: str) -> None:
        super().__init__(
            f"engine {engine!r} is not installed",
            why="its library could not be imported",
            effect="no model was loaded",
            todo=f'pip install "outrider[{extra}]"',
        )


class EngineFull(EngineError):
    code = "engine_full"
    http_status = 429
    exit_code = 7
    grpc_status = "RESOURCE_EXHAUSTED"


class EngineFailed(EngineError):
    code = "engine_failed"


class ProtocolError(OutriderError):
    code = "protocol"
    grpc_status = "INVALID_ARGUMENT"


class LocalProtocolError(ProtocolError):
    code = "protocol_local"
    grpc_status = "INTERNAL"


class RemoteProtocolError(ProtocolError):
    code = "protocol_remote"


class HandshakeRefused(ProtocolError):
    code = "handshake_refused"
    exit_code = 5
    grpc_status = "FAILED_PRECONDITION"

    def __init__(self, field: str, *, ours: str, theirs: str, todo: str = "") -> None:
        super().__init__(
            f"handshake refused: {field} differs",
            why=f"edge has {theirs}, cloud has {ours}",
            effect="no session was opened",
            todo=todo,
        )


class LinkError(OutriderError):
    code = "link"
    http_status = 503
    exit_code = 5
    grpc_status = "UNAVAILABLE"


class CloudUnreachable(LinkError):
    code = "cloud_unreachable"


class LinkLost(LinkError):
    code = "link_lost"


class Overloaded(OutriderError):
    code = "overloaded"
    http_status = 429
    exit_code = 7
    grpc_status = "RESOURCE_EXHAUSTED"

    def __init__(
        self, what: str, *, retry_after_s: float, why: str = "", effect: str = "", todo: str = ""
    ) -> None:
        super().__init__(what, why=why, effect=effect, todo=todo)
        self.retry_after_s = retry_after_s


class AccessDenied(OutriderError):
    code = "access_denied"
    http_status = 401
    exit_code = 6
    grpc_status = "UNAUTHENTICATED"


class PlanError(OutriderError):
    code = "plan"
    http_status = 400
    exit_code = 2
    grpc_status = "FAILED_PRECONDITION"


class InvalidProfile(PlanError):
    """A graph, device or link that makes no sense: disconnected, NaN, zero bandwidth."""

    code = "invalid_profile"


class Unplannable(PlanError):
    """No placement keeps all constraints."""

    code = "unplannable"

    def __init__(self, what: str, *, constraint: str, nearest: str, todo: str = "") -> None:
        super().__init__(
            what,
            why=f"the constraint that can not be met: {constraint}",
            effect="nothing was placed",
            todo=todo or f"the nearest that can be met: {nearest}",
        )
        self.constraint = constraint
        self.nearest = nearest


class StageLost(LinkError):
    """A device that holds layers went away; the split is planned anew without it."""

    code = "stage_lost"

    def __init__(
        self, what: str, *, device: str = "", why: str = "", effect: str = "", todo: str = ""
    ) -> None:
        super().__init__(what, why=why, effect=effect, todo=todo)
        self.device = device


class SealError(OutriderError):
    """What is sealed, or keeps secrets, can not be used as it is."""

    code = "seal"
    exit_code = 6
    grpc_status = "FAILED_PRECONDITION"


class SealBroken(SealError):
    """Changed, cut, swapped, or sealed under another key or as another object."""

    code = "seal_broken"
    grpc_status = "DATA_LOSS"


class PeerUntrusted(SealError):
    """Not the device or verifier that was paired with."""

    code = "peer_untrusted"
    http_status = 502
    grpc_status = "UNAUTHENTICATED"


class JournalError(OutriderError):
    code = "journal"
    exit_code = 7
    grpc_status = "RESOURCE_EXHAUSTED"


class DaemonUnreachable(OutriderError):
    code = "daemon_unreachable"
    http_status = 503
    exit_code = 4


class TimedOut(DaemonUnreachable):
    """The daemon is there, or was; the caller does not wait any longer."""

    code = "timed_out"
    http_status = 504


def by_code(code: str) -> type[OutriderError]:
    """The class that carries `code`; `OutriderError` for an unknown one."""
    pending = [OutriderError]
    while pending:
        kind = pending.pop()
        if kind.code == code and kind.__module__ == __name__:
            return kind
        pending.extend(kind.__subclasses__())
    return OutriderError
