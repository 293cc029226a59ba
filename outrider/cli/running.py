"""`outrider ps` and `stop`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from outrider.cli import console
from outrider.cli.where import HERE, Where
from outrider.errors import NotFound

if TYPE_CHECKING:
    from outrider.protocol.status import RequestState, Status


def ps(*, all: bool = False, json: bool = False, where: Where = HERE) -> int:
    """Requests that run, and models that are loaded.

    Args:
        all: Also requests that ended a while ago.
        json: Print one JSON object.
    """
    with where.client() as client:
        found, status = client.requests(), client.status()
    shown = [one for one in found if all or one.state != "done"]
    models = _models(status)
    if json:
        console.as_json({"requests": shown, "models": models})
        return 0
    console.out(_requests(shown) if shown else "no request runs")
    rows = [("MODEL", "ROLE", "WHERE", "STATE")]
    rows += [(one["model"], one["role"], one["where"], one["state"]) for one in models]
    console.out(f"\n{console.table(rows)}" if models else "no model is loaded")
    return 0


def _requests(shown: list[RequestState]) -> str:
    rows = [("REQUEST", "MODEL", "PLACEMENT", "STATE", "TOKENS")]
    rows += [
        (one.id, one.model, one.placement, one.state, ", ".join(map(str, one.committed)))
        for one in shown
    ]
    return console.table(rows)


def _models(status: Status) -> list[dict[str, Any]]:
    """What this daemon holds, and what each connected cloud serves by default."""
    found = [
        {"model": one.model, "role": one.role, "where": "this device", "state": one.state}
        for one in status.loaded
    ]
    for cloud in status.clouds:
        if cloud.model and cloud.state == "connected":
            told = {"model": cloud.model, "role": "target", "where": cloud.address}
            found.append({**told, "state": "served"})
    return found


def stop(name: str, *, json: bool = False, where: Where = HERE) -> int:
    """Cancel a request, or all requests of a model; what was committed stays the caller's.

    Args:
        name: A request of `outrider ps`, or a model.
        json: Print one JSON object.
    """
    with where.client() as client:
        running = [one for one in client.requests() if one.state != "done"]
        known = {card.id for card in client.models()}
        chosen = [one.id for one in running if name in (one.id, one.model)]
        for request in chosen:
            client.cancel(request)
    if not chosen and name not in known:
        raise NotFound(
            f"no request or model {name!r} runs",
            effect="nothing was cancelled",
            todo="outrider ps lists them",
        )
    if json:
        console.as_json({"cancelled": chosen})
    else:
        console.out("\n".join(f"cancelled {one}" for one in chosen) or f"{name}: nothing runs")
    return 0
