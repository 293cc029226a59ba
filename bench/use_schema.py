"""Part of `bench use`: answers kept to a JSON schema, or to the form of a tool's call, with drafts.

200 cases, drawn from a seed: objects of enums, constants, booleans, integers and numbers with
bounds, strings with patterns and lengths, arrays, objects in objects and alternatives; every
fifth is a call of a tool between its marks (a lark grammar around a schema). All can end within
their tokens: whatever may repeat has a bound, and white space is off. An answer that is cut by
`max_tokens` is no JSON and counts as not valid.

Every case goes the real way: device, proxy, gRPC, a cloud in a process of its own, its engine in a
child; 16 at a time, first with the bundled draft on the device, then without any drafts. Half are
greedy, half sampled. The answers of the first arm are checked against their schema by a checker
of the bench's own, and token by token with the second.

Controls: the same with a target that forgets the masks (validity must fall), with a drafter that
does (accepted drafts must fall, the text must stay), and with one that means harm (as well).
"""

from __future__ import annotations

import asyncio
import json
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random
from typing import Any
from unittest.mock import patch

import numpy as np

from bench import harness
from bench.prompts import SNIPPETS
from bench.support import (
    TARGET,
    CloudSetup,
    Device,
    model_digest,
    start_cloud,
    start_device,
    start_small,
)
from outrider.cloud import main as cloud_main
from outrider.cloud import server
from outrider.edge.daemon import Small
from outrider.edge.drafter import Drafter, Lane
from outrider.edge.service import GenerateRequest
from outrider.engines import registry
from outrider.models import grammar, served
from outrider.models.grammar import Guide
from outrider.options import Address
from outrider.protocol.constraint import Constraint
from outrider.protocol.sampling import SamplingParams, masked
from outrider.protocol.stream import Done, Token
from outrider.protocol.vocabulary import Vocabulary
from outrider.testing.link import Link
from outrider.testing.supervisor import Supervisor

CASES = 200
QUICK_CASES = 24
CONTROL_CASES = 32
QUICK_CONTROL_CASES = 8
AT_ONCE = 16
MAX_TOKENS = 400
SAMPLINGS = (
    SamplingParams(temperature=0.0),
    SamplingParams(temperature=0.8, top_p=0.95),
)
SETUP = CloudSetup(hint_rows="all", ahead=12)
COMPACT = {"whitespace_flexible": False}
OPENING, CLOSING = "<tool_call>\n", "\n</tool_call>"
LARGE = 128_000
"""Ids of the synthetic vocabulary."""
WALKS = 12
Schema = dict[str, Any]


# --- schemas -----------------------------------------------------------------------------------


def schema(draw: Random, depth: int = 0) -> Schema:
    """An object of two to five properties; inner ones have less."""
    count = draw.randint(2, 5 - depth)
    properties = {f"{word(draw)}_{i}": value(draw, depth) for i in range(count)}
    needed = [key for key in properties if draw.random() < 0.8]
    return {
        "type": "object",
        "properties": properties,
        "required": needed,
        "additionalProperties": False,
    }


def word(draw: Random) -> str:
    return draw.choice(["name", "size", "kind", "path", "level", "unit", "owner", "state"])


def value(draw: Random, depth: int) -> Schema:
    kinds = [_enum, _const, _truth, _whole, _number, _pattern, _length, _array, _either]
    inner = draw.randrange(len(kinds) + 1)
    if inner == len(kinds) and depth < 2:
        return schema(draw, depth + 1)
    return kinds[inner % len(kinds)](draw)


def _enum(draw: Random) -> Schema:
    return {"enum": draw.sample(["red", "green", "", 'a"b', 3, 2.5, None, True, "über"], 3)}


def _const(draw: Random) -> Schema:
    return {"const": draw.choice(["v1", 42, False, None])}


def _truth(draw: Random) -> Schema:
    return {"type": draw.choice(["boolean", "null"])}


def _whole(draw: Random) -> Schema:
    low = draw.randint(-1000, 100)
    return {"type": "integer", "minimum": low, "maximum": low + draw.randint(0, 5000)}


def _number(draw: Random) -> Schema:
    step = draw.choice([0.5, 0.25, 0.01])
    return {"type": "number", "minimum": 0, "maximum": draw.randint(1, 90), "multipleOf": step}


def _pattern(draw: Random) -> Schema:
    patterns = ["^[a-z]{2,6}-[0-9]{3}$", "^#[0-9a-f]{6}$", "^v[0-9]{1,2}([.][0-9]{1,2}){2}$"]
    return {"type": "string", "pattern": draw.choice(patterns)}


def _length(draw: Random) -> Schema:
    least = draw.randint(0, 3)
    return {"type": "string", "minLength": least, "maxLength": least + draw.randint(1, 6)}


def _array(draw: Random) -> Schema:
    least = draw.randint(0, 2)
    items = draw.choice([_enum, _whole, _truth, _pattern])(draw)
    return {"type": "array", "items": items, "minItems": least, "maxItems": least + 2}


def _either(draw: Random) -> Schema:
    return {"anyOf": [{"type": "null"}, draw.choice([_whole, _pattern])(draw)]}


@dataclass(frozen=True, slots=True)
class Case:
    """One answer to ask for."""

    number: int
    schema: Schema
    tool: bool

    @property
    def constraint(self) -> Constraint:
        written = {**self.schema, "x-guidance": COMPACT}
        if not self.tool:
            return Constraint("json_schema", json.dumps(written))
        marks = (json.dumps(OPENING), json.dumps(CLOSING))
        body = f"call: %json {json.dumps(written)}"
        return Constraint("lark", f"start: {marks[0]} call {marks[1]}\n{body}")

    def request(self, placement: str) -> GenerateRequest:
        draw = Random(f"prompt {self.number}")
        return GenerateRequest(
            prompt=f"{draw.choice(SNIPPETS)}\n\nDATA = ",
            model=TARGET,
            sampling=SAMPLINGS[self.number % 2],
            max_tokens=MAX_TOKENS,
            seed=self.number,
            constraint=self.constraint,
            placement="draft" if placement == "draft" else "cloud",
        )

    def valid(self, text: str) -> bool:
        if self.tool:
            if not (text.startswith(OPENING) and text.endswith(CLOSING)):
                return False
            text = text[len(OPENING) : -len(CLOSING)]
        try:
            return fits(json.loads(text), self.schema)
        except ValueError:
            return False


def cases(count: int, seed: int) -> list[Case]:
    return [_case(number, seed) for number in range(count)]


def _case(number: int, seed: int) -> Case:
    draw = Random(f"{seed} {number}")
    if number % 5:
        return Case(number, schema(draw), tool=False)
    call = {
        "type": "object",
        "properties": {"name": {"enum": ["search", "open"]}, "arguments": schema(draw, 1)},
        "required": ["name", "arguments"],
        "additionalProperties": False,
    }
    return Case(number, call, tool=True)


# --- the checker -------------------------------------------------------------------------------


def fits(found: object, wanted: Schema) -> bool:
    """Whether a JSON value is what the schema says; of the keywords that are drawn here."""
    if "anyOf" in wanted:
        return any(fits(found, each) for each in wanted["anyOf"])
    if "enum" in wanted or "const" in wanted:
        among = wanted.get("enum", [wanted.get("const")])
        return any(type(found) is type(each) and found == each for each in among)
    return _CHECKS[wanted["type"]](found, wanted)


def _fits_object(found: Any, wanted: Schema) -> bool:
    return (
        isinstance(found, dict)
        and set(wanted["required"]) <= set(found) <= set(wanted["properties"])
        and all(fits(item, wanted["properties"][key]) for key, item in found.items())
    )


def _fits_array(found: Any, wanted: Schema) -> bool:
    return (
        isinstance(found, list)
        and wanted["minItems"] <= len(found) <= wanted["maxItems"]
        and all(fits(item, wanted["items"]) for item in found)
    )


def _fits_string(found: Any, wanted: Schema) -> bool:
    if not isinstance(found, str):
        return False
    if "pattern" in wanted:
        return re.search(wanted["pattern"].replace("$", r"\Z"), found) is not None
    return bool(wanted["minLength"] <= len(found) <= wanted["maxLength"])


def _fits_number(found: Any, wanted: Schema) -> bool:
    if isinstance(found, bool) or not isinstance(found, int | float):
        return False
    if wanted["type"] == "integer" and found != int(found):
        return False
    steps = found / wanted.get("multipleOf", 1)
    return bool(
        wanted["minimum"] <= found <= wanted["maximum"] and abs(steps - round(steps)) < 1e-6
    )


_CHECKS: dict[str, Callable[[Any, Schema], bool]] = {
    "object": _fits_object,
    "array": _fits_array,
    "string": _fits_string,
    "number": _fits_number,
    "integer": _fits_number,
    "boolean": lambda found, wanted: isinstance(found, bool),
    "null": lambda found, wanted: found is None,
}


# --- asking ------------------------------------------------------------------------------------


@dataclass(slots=True)
class Said:
    """One answer."""

    case: Case
    ids: list[int] = field(default_factory=list)
    text: str = ""
    done: Done | None = None

    @property
    def valid(self) -> bool:
        return self.done is not None and self.case.valid(self.text)

    @property
    def cut(self) -> bool:
        return self.done is None or self.done.finish_reason != "stop"

    @property
    def accepted(self) -> int:
        return self.done.speculation.num_accepted_draft_tokens if self.done is not None else 0


async def ask(device: Device, case: Case, placement: str) -> Said:
    said = Said(case)
    async with aclosing(device.daemon.generate(case.request(placement))) as events:  # type: ignore[type-var]
        async for event in events:
            if isinstance(event, Token):
                said.ids.append(event.id)
                said.text += event.text
            elif isinstance(event, Done):
                said.done = event
    return said


async def ask_all(device: Device, wanted: Sequence[Case], placement: str) -> list[Said]:
    """So many at a time, as they end."""
    free = asyncio.Semaphore(AT_ONCE)

    async def one(case: Case) -> Said:
        async with free:
            return await ask(device, case, placement)

    return list(await asyncio.gather(*(one(case) for case in wanted)))


def share(found: Sequence[Said], good: Callable[[Said], bool]) -> float:
    return sum(map(good, found)) / len(found)


def same(found: Sequence[Said], other: Sequence[Said]) -> float:
    return sum(a.ids == b.ids for a, b in zip(found, other, strict=True)) / len(found)


# --- controls ----------------------------------------------------------------------------------


async def forgetful_cloud(folder: Path, stack: AsyncExitStack) -> Address:
    """A cloud that says it keeps a constraint, and does not."""
    made = server.new_session

    def free(tenant: str, opening: Any, *more: Any) -> Any:
        return made(tenant, replace(opening, constraint=None), *more)

    stack.enter_context(patch.object(server, "new_session", free))
    setup = replace(SETUP, runtime_dir=str(folder))
    running = await cloud_main.start(setup.options(), stack)
    return Address.parse(running.address, 0)


def forgetful_drafter(stack: AsyncExitStack) -> None:
    opened = Drafter.open

    def free(self: Drafter, sampling: Any, *more: Any) -> Lane:
        return opened(self, replace(sampling, constraint=None), *more)

    stack.enter_context(patch.object(Drafter, "open", free))


async def controls(
    bed: Bed, wanted: Sequence[Case], alone: Sequence[Said], drafted: Sequence[Said]
) -> dict[str, float]:
    """Each repeats the first cases with one part spoilt."""
    async with AsyncExitStack() as stack:
        cloud = await forgetful_cloud(bed.folder, stack)
        device = await bed.device(cloud, None, stack)
        unmasked = await ask_all(device, wanted, "cloud")
    async with AsyncExitStack() as stack:
        forgetful_drafter(stack)
        device = await bed.device(bed.cloud, await bed.small("", stack), stack)
        blind = await ask_all(device, wanted, "draft")
    async with AsyncExitStack() as stack:
        device = await bed.device(bed.cloud, await bed.small("hostile:", stack), stack)
        harmed = await ask_all(device, wanted, "draft")
    honest = sum(said.accepted for said in drafted)
    return {
        "valid_share_of_a_target_without_masks": share(unmasked, lambda said: said.valid),
        "identical_share_of_a_target_without_masks": same(unmasked, alone),
        "accepted_of_a_drafter_without_masks_over_masked": _over(blind, honest),
        "identical_share_of_a_drafter_without_masks": same(blind, alone),
        "accepted_of_a_hostile_drafter_over_honest": _over(harmed, honest),
        "identical_share_of_a_hostile_drafter": same(harmed, alone),
    }


def _over(found: Sequence[Said], honest: int) -> float:
    return sum(said.accepted for said in found) / max(1, honest)


# --- what a mask costs -------------------------------------------------------------------------


def large(vocabulary: Vocabulary, size: int) -> Vocabulary:
    """With pairs of tokens as further ones: the trie of a large vocabulary, and its long words."""
    draw, words = Random(1), list(vocabulary.tokens)
    seen, parts = set(words), [w for w in words if len(w) > 1]
    while len(words) < size:
        word = draw.choice(parts) + draw.choice(parts)
        if word not in seen:
            seen.add(word)
            words.append(word)
    return Vocabulary(tuple(words), vocabulary.special, None, vocabulary.end)


def cost(vocabulary: Vocabulary, wanted: Sequence[Case]) -> dict[str, float]:
    """Of one token: its mask, and the mask laid over the scores; in texts drawn from the masks."""
    began = time.perf_counter()
    grammars = grammar.Grammars(vocabulary)
    built = time.perf_counter() - began
    times, compiled = list[float](), list[float]()
    for case in wanted:
        began = time.perf_counter()
        guide = Guide(grammars.compile(case.constraint))
        compiled.append(time.perf_counter() - began)
        times += _walk(guide, len(vocabulary), grammars.ends, Random(case.number))
    return {
        "us": statistics.median(times) * 1e6,
        "us_p99": float(np.quantile(times, 0.99)) * 1e6,
        "compile_ms": statistics.median(compiled) * 1e3,
        "vocabulary_s": built,
        "tokens": len(times),
    }


def _walk(guide: Guide, size: int, ends: frozenset[int], draw: Random) -> list[float]:
    tokens, times = list[int](), list[float]()
    while len(tokens) < MAX_TOKENS and not (tokens and tokens[-1] in ends):
        scores = np.zeros(size)
        began = time.perf_counter()
        mask = guide.masks(tokens, [()])[0]
        masked(scores, mask)
        times.append(time.perf_counter() - began)
        tokens.append(int(draw.choice(np.flatnonzero(mask))))
    return times


# --- the bench ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Bed:
    """The honest cloud, and what devices are made with."""

    cloud: Address
    folder: Path
    engine: str
    """Of the drafter."""

    async def small(self, how: str, stack: AsyncExitStack) -> Small | None:
        return await start_small(f"{how}{self.engine}", AT_ONCE, stack)

    async def device(self, cloud: Address, small: Small | None, stack: AsyncExitStack) -> Device:
        device = await start_device(cloud, Link(), small, AT_ONCE, stack)
        await device.daemon.link.check(device.daemon.link.peers[0])
        return device


async def measure(wanted: Sequence[Case], spoilt: int) -> dict[str, Any]:
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        supervisor = await stack.enter_async_context(Supervisor())
        setup = replace(SETUP, runtime_dir=str(folder / "cloud"))
        cloud = await start_cloud(supervisor, "cloud", setup)
        engine = "onnx" if "onnx" in registry.installed() else "torch"
        bed = Bed(cloud, folder, engine)
        small = await bed.small("", stack)
        device = await bed.device(cloud, small, stack)
        drafted = await ask_all(device, wanted, "draft")
        alone = await ask_all(device, wanted, "cloud")
        control = await controls(bed, wanted[:spoilt], alone[:spoilt], drafted[:spoilt])
    return {"drafted": drafted, "alone": alone, "controls": control, "engine": engine}


def run(*, quick: bool, seed: int = harness.SEED) -> Mapping[str, Any]:
    wanted = cases(QUICK_CASES if quick else CASES, seed)
    found = asyncio.run(measure(wanted, QUICK_CONTROL_CASES if quick else CONTROL_CASES))
    drafted, alone = found["drafted"], found["alone"]
    words = served.load(SETUP.spec()).vocabulary
    walks = wanted[: WALKS // 3 if quick else WALKS]
    small, big = cost(words, walks), cost(large(words, LARGE), walks)
    return {
        "cases": len(wanted),
        "seed": seed,
        "figures": {
            "schema_valid_share": share(drafted, lambda said: said.valid),
            "schema_accepted_hints": sum(said.accepted for said in drafted),
            "schema_accepted_share": _share_accepted(drafted),
            "schema_identical_share": same(drafted, alone),
            "schema_cut_share": share(drafted, lambda said: said.cut),
            "schema_tokens": sum(len(said.ids) for said in drafted),
            **{f"mask_{key}_4k": figure for key, figure in small.items()},
            **{f"mask_{key}_128k": figure for key, figure in big.items()},
        },
        "controls": found["controls"],
        "cells": [_cell(said) for said in drafted],
        "models": {"target": model_digest(SETUP.spec())},
        "drafter": found["engine"],
        "masks": grammar.masks(),
    }


def _share_accepted(found: Sequence[Said]) -> float:
    rows = sum(said.done.speculation.num_draft_tokens for said in found if said.done is not None)
    return sum(said.accepted for said in found) / max(1, rows)


def _cell(said: Said) -> dict[str, Any]:
    return {
        "case": said.case.number,
        "tool": said.case.tool,
        "tokens": len(said.ids),
        "accepted": said.accepted,
        "valid": said.valid,
        "cut": said.cut,
    }


if __name__ == "__main__":
    sys.exit(harness.main("use_schema", run))
