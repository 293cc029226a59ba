# Made from ../_async by scripts/sdk; change it there.
"""The client of the daemon."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Unpack

import httpx2

from outrider.protocol import events as daemon
from outrider.protocol import recording
from outrider.protocol.status import CloudStatus, LoadedModel, ModelCard, RequestState, Status
from outrider.sdk import models, question, wire
from outrider.sdk._sync import pause
from outrider.sdk._sync.caller import Caller
from outrider.sdk._sync.stream import Stream, Terms, rest
from outrider.sdk.answer import Answer
from outrider.sdk.errors import mirrored
from outrider.sdk.find import find
from outrider.sdk.limits import Retry, Timeouts
from outrider.sdk.models import Objective, Planned
from outrider.sdk.question import Messages, Options, Prompt, Trace

_TIMEOUTS, _RETRY = Timeouts(), Retry()


class Client:
    """Asks one daemon. Close it, or use it as a context.

    `url` and `api_key` default to OUTRIDER_HOST and OUTRIDER_API_KEY, then to the
    running daemon's `daemon.json`, then to http://127.0.0.1:11711. `timeouts` are in
    seconds, `retry` says how often the start of a request is tried again. All methods
    raise errors of `outrider.errors` that are OpenAI's too (`outrider.sdk.errors`);
    `DaemonUnreachable` when nothing answers.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        api_key: str | None = None,
        timeouts: Timeouts = _TIMEOUTS,
        retry: Retry = _RETRY,
        transport: httpx2.BaseTransport | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._place = find(url, api_key)
        self._timeouts = timeouts
        self._clock = clock
        self._http = httpx2.Client(
            base_url=self._place.url,
            headers=wire.headers(self._place),
            timeout=wire.timeouts(timeouts),
            transport=transport,
            # A proxy of the environment is no way to this very machine.
            trust_env=not self._place.loopback,
            # Reading the authorities takes a tenth of a second, and plain HTTP needs none.
            verify=self._place.url.startswith("https://"),
        )
        self._caller = Caller(self._http, self._place, retry)

    @property
    def url(self) -> str:
        """The daemon's address."""
        return self._place.url

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Hang up everything."""
        self._http.close()

    # --- answers ---------------------------------------------------------------------------

    def complete(self, prompt: Prompt, **options: Unpack[Options]) -> Answer:
        """Go on from a text, or from token ids of the target. Options: see `Options`.

        Raises InvalidRequest, ContextExceeded, NotFound (a model that is not there), Overloaded
        (`retry_after_s`), CloudUnreachable, LinkLost, TimedOut, AccessDenied.
        """
        with self._ask(question.of_prompt(prompt, options), options) as stream:
            return stream.answer()

    def chat(self, messages: Messages, **options: Unpack[Options]) -> Answer:
        """Answer a message, or a conversation; rendered with the target's chat template.
        Raises what `complete` raises."""
        with self._ask(question.of_messages(messages, options), options) as stream:
            return stream.answer()

    def stream(self, prompt: Prompt, **options: Unpack[Options]) -> Stream:
        """Typed events of a completion. `retract` is on unless given: provisional tokens come
        while the cloud is away, and the committed ones replace them. With `trace="events"` the
        daemon's decisions, hints, commits and joules of this answer come between the tokens."""
        options.setdefault("retract", True)
        return self._ask(question.of_prompt(prompt, options), options)

    def stream_chat(self, messages: Messages, **options: Unpack[Options]) -> Stream:
        """Typed events of a chat turn, as `stream`."""
        options.setdefault("retract", True)
        return self._ask(question.of_messages(messages, options), options)

    def resume(
        self, request: str, positions: Sequence[int] = (0,), *, trace: Trace = "tokens"
    ) -> Stream:
        """The rest of a running or just ended request, from a position (in tokens) per choice
        on. Raises NotFound for one that ended long ago."""
        terms = self._terms(len(positions), trace)
        return Stream(self._caller, rest(self._http, request, tuple(positions), terms), terms)

    def cancel(self, request: str) -> RequestState:
        """End a running request; one that has ended stays as it is. Raises NotFound."""
        path = f"/outrider/v1/requests/{request}"
        found = self._caller.send(self._http.build_request("DELETE", path), whole=True)
        return wire.decode(found, RequestState)

    # --- the daemon's word -----------------------------------------------------------------

    def status(self) -> Status:
        """What the daemon does now."""
        return wire.decode(self._caller.get("/outrider/v1/status"), Status)

    def links(self) -> tuple[CloudStatus, ...]:
        """The clouds, in the order they are tried: state, round trip in ms, model."""
        return (self.status()).clouds

    def requests(self) -> tuple[RequestState, ...]:
        """Running and just ended requests."""
        found = wire.decode(self._caller.get("/outrider/v1/requests"), models.Requests)
        return found.requests

    def models(self) -> tuple[ModelCard, ...]:
        """Models that can be asked for by name."""
        return wire.decode(self._caller.get("/v1/models"), models.Listing).cards()

    def use_model(self, model: str) -> LoadedModel | None:
        """Draft with another model from the next answer on; those under way keep theirs.

        `model` is a name of `outrider ls`, a path at the daemon, `bundled:draft`, `ngram` or
        `none`; None for the last two. Raises NotFound, ModelError: the old one then stays.
        """
        found = self._caller.post("/outrider/v1/models/use", {"model": model})
        return wire.decode(found, models.Used).loaded

    def plan(
        self,
        model: str,
        *,
        devices: Sequence[str] = (),
        what_if: str = "",
        objective: Objective = "latency",
    ) -> Planned:
        """Where the layers of a model would run, and why; nothing is loaded or moved.

        `model` is `shape:NAME`, `bundled:target` or a name from `models()` that the daemon's
        machine holds; `devices` are names of the catalogue or `local`, the daemon's own; `what_if`
        asks again with changes, as `rtt=80ms,bw=20M,power=10W`. Seconds, joules and bytes as in
        `partitioner.plan.Plan`. Raises InvalidRequest, NotFound, Unplannable.
        """
        body: dict[str, object] = {"model": model, "what_if": what_if, "objective": objective}
        found = self._caller.post("/outrider/v1/plan", {**body, "devices": list(devices)})
        return wire.decode(found, Planned)

    def tokenize(self, text: str, *, model: str = "") -> tuple[int, ...]:
        """The target's token ids of a text, as a prompt would be read."""
        body: dict[str, object] = {"model": model, "prompt": text}
        return wire.decode(self._caller.post("/tokenize", body), models.Tokens).tokens

    def detokenize(self, tokens: Sequence[int], *, model: str = "") -> str:
        """The text of the target's token ids."""
        body: dict[str, object] = {"model": model, "tokens": list(tokens)}
        return wire.decode(self._caller.post("/detokenize", body), models.Prompted).prompt

    def events(self) -> Iterator[daemon.Event]:
        """The daemon's events of all requests as they happen (`protocol/events.py`), until the
        loop is left. Numbers, states and reasons: no text, no token ids."""
        headers = {"accept": "text/event-stream"}
        request = self._http.build_request("GET", "/outrider/v1/events", headers=headers)
        response = self._caller.send(request)
        try:
            for sent in httpx2.EventSource(response):
                yield wire.daemon_event(sent.data)
        except httpx2.TransportError as error:
            raise mirrored(wire.lost(error, self._place)) from None
        finally:
            response.close()

    def replay(self, path: str | Path, *, speed: float | None = None) -> Iterator[daemon.Event]:
        """The events of a record that `outrider top --record` wrote; no daemon is needed.

        `speed` 1 takes as long as it took then, 2 half as long, None no time at all. Raises
        NotFound, InvalidRequest for a file that is no record.
        """
        before: float | None = None
        for event in recording.read(Path(path)):
            if speed and before is not None:
                pause.pause(max(0.0, event.t_ms - before) / 1e3 / speed)
            before = event.t_ms
            yield event

    # --- how it is asked -------------------------------------------------------------------

    def _terms(self, choices: int, trace: Trace) -> Terms:
        return Terms(self._timeouts, choices, trace, self._clock)

    def _ask(self, body: dict[str, object], options: Options) -> Stream:
        asked = question.watched(body, self._timeouts)
        request = self._http.build_request(
            "POST",
            "/outrider/v1/generate",
            content=wire.encode(asked),
            headers={"content-type": "application/json"},
            timeout=wire.timeouts(self._timeouts, stream=True),
        )
        choices = options.get("n") or 1
        terms = self._terms(choices, options.get("trace", "tokens"))
        return Stream(self._caller, request, terms)
