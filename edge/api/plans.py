"""`/outrider/v1/plan`: where the layers of a model would run, asked over HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, cast

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from outrider.edge.api.body import read
from outrider.edge.api.context import Context
from outrider.edge.api.fields import Fields, refuse
from outrider.errors import ConfigError, InvalidRequest
from outrider.partitioner.plan import Objective

OBJECTIVES: tuple[Objective, ...] = ("latency", "throughput", "energy", "cost")
ROOTS = ("shape:", "bundled:")
"""What may be planned over HTTP: a caller must not make the daemon read files by their path."""
MOST_DEVICES = 16


class Plans:
    """One plan at a time, in a thread: a search keeps a core busy for a while."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._turn = asyncio.Lock()

    def routes(self) -> list[Route]:
        return [Route("/outrider/v1/plan", self.plan, methods=["POST"])]

    async def plan(self, request: Request) -> Response:
        """`model`, `devices`, `objective`, `what_if` as `outrider plan` takes them; the answer is
        what `outrider plan --json` prints."""
        body = await read(request, self._context.settings.max_body_bytes)
        model, devices, objective, what_if = _asked(body)
        try:
            async with self._turn:
                found = await asyncio.to_thread(_solve, model, devices, objective, what_if)
        except ConfigError as error:
            raise InvalidRequest(
                error.what.replace("--what-if", "what_if"),
                param="what_if",
                why=error.why,
                effect=error.effect,
                todo=error.todo.replace("--what-if", "what_if"),
            ) from None
        return Response(msgspec.json.encode(found), media_type="application/json")


def _asked(body: Mapping[str, Any]) -> tuple[str, tuple[str, ...], Objective, str]:
    fields = Fields(body)
    model = fields.text("model") or ""
    if not model.startswith(ROOTS):
        raise refuse(
            "model",
            "shape:NAME or bundled:NAME",
            "`outrider plan PATH` plans for files",
        )
    devices = body.get("devices") or []
    if not isinstance(devices, list) or len(devices) > MOST_DEVICES:
        raise refuse("devices", f"a list of at most {MOST_DEVICES} names")
    names = tuple(str(name) for name in devices)
    if any(name.endswith(".json") or "/" in name or "," in name for name in names):
        raise refuse("devices", "names of the catalogue, or local")
    objective = fields.choice("objective", OBJECTIVES) or "latency"
    return model, names, cast(Objective, objective), fields.text("what_if") or ""


def _solve(
    model: str, devices: tuple[str, ...], objective: Objective, what_if: str
) -> dict[str, Any]:
    """Raises NotFound, ConfigError, PlanError."""
    from outrider.models import graph as graphs
    from outrider.partitioner import scenario
    from outrider.partitioner.differences import differences
    from outrider.partitioner.solve import choose

    changes = scenario.changes(what_if)
    problem = scenario.problem(graphs.read(model), devices, objective)
    first = choose.solve(problem, "auto")
    if not changes:
        return {"schema": 1, "plan": first}
    other = scenario.changed(problem, changes)
    second = choose.solve(other, "auto")
    told = differences(first, second)
    return {
        "schema": 1,
        "plan": first,
        "what_if": {"asked": what_if, "plan": second, "changes": told},
    }
