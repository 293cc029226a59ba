"""Make a request fit the model that will answer it: grammar and markers of its calls, the tokens
of a hole, and the check that what is asked for can be kept at all."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from outrider.edge.api import grammar, infill
from outrider.edge.api.calls import Listening
from outrider.edge.api.fields import refuse
from outrider.edge.api.parse import ALIASES, Asked
from outrider.edge.api.tools import Tools
from outrider.edge.service import EdgeService, GenerateRequest
from outrider.models.calls import form_of
from outrider.models.served import Served
from outrider.protocol.constraint import Constraint


async def fit(asked: Asked, service: EdgeService) -> Asked:
    """Raises InvalidRequest naming the field, and what finding the model raises."""
    asked = replace(asked, requests=tuple(unaliased(r, service) for r in asked.requests))
    if asked.tools is None and asked.constrained is None and not asked.suffix:
        return asked
    served = await service.served(asked.requests[0])
    if asked.suffix:
        # The whole vocabulary is looked through: not for the event loop.
        filled = await asyncio.to_thread(_filled, asked, served)
        asked = replace(asked, requests=filled)
    if asked.constrained is not None:
        constraint, param = asked.constrained
        await asyncio.to_thread(grammar.check, constraint, served.vocabulary, param)
        asked = _constrained(asked, constraint)
    return asked if asked.tools is None else await _with_tools(asked, asked.tools, served)


def unaliased(request: GenerateRequest, service: EdgeService) -> GenerateRequest:
    """An alias is the default model, and a placement; a model of that name comes first."""
    alias = next((name for name in ALIASES if name == request.model), None)
    if alias is None or any(card.id == alias for card in service.models()):
        return request
    if request.placement not in ("auto", alias):
        raise refuse("outrider.placement", f"absent, or {alias}, which the model's name asks for")
    return replace(request, model="", placement=alias)


async def _with_tools(asked: Asked, tools: Tools, served: Served) -> Asked:
    form, vocabulary = form_of(served.chat_template), served.vocabulary
    content = asked.constrained[0] if asked.constrained is not None else None
    whole = grammar.of_tools(tools, form, vocabulary, content)
    await asyncio.to_thread(grammar.check_tools, tools, vocabulary)
    await asyncio.to_thread(grammar.check, whole, vocabulary, "tools")
    special = grammar.special(vocabulary, form)
    streams = asked.streamed and not asked.whole_calls
    listening = Listening(form, tools.names, special, streams=streams)
    shown = tuple(function.raw for function in tools.functions)
    requests = tuple(replace(request, tools=shown) for request in asked.requests)
    return _constrained(replace(asked, requests=requests, listening=listening), whole)


def _filled(asked: Asked, served: Served) -> tuple[GenerateRequest, ...]:
    return tuple(
        replace(request, prompt=infill.fill(request.prompt, asked.suffix, served))
        for request in asked.requests
        if isinstance(request.prompt, str)
    )


def _constrained(asked: Asked, constraint: Constraint) -> Asked:
    requests = tuple(replace(request, constraint=constraint) for request in asked.requests)
    return replace(asked, requests=requests)
