"""Answers that are kept to a constraint: one text whoever drafts and whatever breaks, and a clear
refusal where it can not be kept."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import msgspec
import pytest

from outrider.cloud import server
from outrider.edge.journal import Opened, Plain, read
from outrider.edge.service import GenerateRequest
from outrider.engine import EngineSpec, Picked, Span
from outrider.engines import registry
from outrider.engines.fake import SIZE, FakeEngine, vocabulary
from outrider.errors import HandshakeRefused, InvalidRequest, UnsupportedParameter
from outrider.models import grammar
from outrider.options import Address
from outrider.protocol.constraint import Constraint, constrained_class
from outrider.protocol.messages import ModelDescription
from outrider.protocol.status import Placement
from outrider.protocol.stream import Forked, Started
from outrider.testing.proxy import ShapingProxy
from tests.support import DRAFT, GREEDY, Answered, Screen, ask, cloud, edge, expected, run, until

pytest.importorskip("llguidance", reason="masks need llguidance")

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "pattern": "^[a-z]{3,8}$"},
        "tags": {"type": "array", "items": {"enum": ["red", "green"]}, "maxItems": 3},
        "near": {
            "type": "object",
            "properties": {"x": {"type": "integer", "minimum": -9, "maximum": 99}},
            "required": ["x"],
            "additionalProperties": False,
        },
    },
    "required": ["name", "tags", "near"],
    "additionalProperties": False,
    "x-guidance": {"whitespace_flexible": False},
}
OBJECT = Constraint("json_schema", json.dumps(SCHEMA))
CALL = Constraint("lark", 'start: "call(" /[a-z]{4,12}/ ("," /[0-9]{1,4}/)* ")"')
WORDS = Constraint("regex", "([a-z]{2,9} ){6,12}end")


def valid(text: str) -> bool:
    found = json.loads(text)
    return (
        set(found) == {"name", "tags", "near"}
        and re.fullmatch("[a-z]{3,8}", found["name"]) is not None
        and len(found["tags"]) <= 3
        and set(found["tags"]) <= {"red", "green"}
        and -9 <= found["near"]["x"] <= 99
    )


class Hostile(FakeEngine):
    """A drafter that says anything, and by turns what the constraint forbids."""

    def _picked(self, span: Span) -> Picked:
        found = super()._picked(span)
        chance = Random(f"{span.base} {span.tokens}")
        return replace(found, ids=tuple(chance.randrange(SIZE) for _ in found.ids))


def asked(constraint: Constraint = OBJECT, **changes: Any) -> GenerateRequest:
    return ask(constraint=constraint, **changes)


def check(found: Answered, request: GenerateRequest) -> None:
    found.check()
    for choice in range(request.n):
        assert found.ids(choice) == expected(request, choice)
        assert found.done(choice).finish_reason == "stop"


def test_one_text_whoever_drafts_under_every_sampling(tmp_path: Path) -> None:
    requests = [
        asked(OBJECT, sampling=GREEDY),
        asked(OBJECT, n=2, top_logprobs=2),
        asked(CALL),
        asked(WORDS, sampling=GREEDY),
    ]
    accepted = dict.fromkeys(("draft", "hostile", "ngram"), 0)

    async def work() -> None:
        async with cloud(tmp_path, trigger="wait:5") as c:
            for name, build in DRAFTERS.items():
                spec = replace(DRAFT, engine="ngram") if name == "ngram" else DRAFT
                async with edge(c.address, draft=spec, build=build) as e:
                    await e.daemon.link.check(e.daemon.link.peers[0])
                    for request in requests:
                        placement: Placement = "cloud" if name == "none" else "draft"
                        found = await e.answer(replace(request, placement=placement))
                        check(found, request)
                        if name in accepted:
                            done = found.done().speculation
                            accepted[name] += done.num_accepted_draft_tokens
                        if request.constraint is OBJECT:
                            assert valid(found.text())

    run(work())
    assert accepted["draft"] > 0
    assert accepted["ngram"] > 0, "what is left no choice about is proposed"


def ngram_engine() -> Any:
    found = vocabulary()
    options = (("size", str(SIZE)), ("digest", found.digest))
    engine = registry.build(EngineSpec("ngram", "ngram", max_slots=32, options=options))
    engine.spell(lambda: found)  # type: ignore[attr-defined]
    return engine


def hostile() -> Hostile:
    return Hostile(DRAFT)


DRAFTERS: dict[str, Any] = {"none": None, "draft": None, "hostile": hostile, "ngram": ngram_engine}


def test_logprobs_stay_unprocessed_and_the_class_names_the_masks(tmp_path: Path) -> None:
    async def work() -> None:
        async with cloud(tmp_path) as c, edge(c.address) as e:
            plain: ModelDescription = next(iter(c.running.cloud.hosts.values())).description
            free = await e.answer(ask(top_logprobs=3, max_tokens=1))
            kept = await e.answer(asked(top_logprobs=3))
        wanted = constrained_class(plain.numeric_class, grammar.masks())
        assert kept.of(Started)[0].numeric_class == wanted != plain.numeric_class
        assert kept.tokens()[0].top_logprobs == free.tokens()[0].top_logprobs
        assert kept.tokens()[0].id == ord("{")
        assert kept.tokens()[0].logprob not in [
            best.logprob for best in kept.tokens()[0].top_logprobs
        ]

    run(work())


def test_a_cut_link_and_a_lost_cloud_change_nothing(tmp_path: Path) -> None:
    async def work() -> None:
        async with (
            cloud(tmp_path) as c,
            ShapingProxy("127.0.0.1", c.address.port) as proxy,
            edge(Address("127.0.0.1", proxy.port), patience_s=60.0, hint_depth=4) as e,
        ):
            for forget in (False, True):
                request, found, struck = asked(WORDS, n=2), Answered(), False
                async for event in e.daemon.generate(request):
                    found.events.append(event)
                    if not struck and len(found.tokens()) >= 9:
                        struck = True
                        proxy.cut()
                        if forget:
                            await until(
                                lambda: not any(s.attached for s in c.verifier.sessions.values())
                            )
                            await c.forget()
                        await proxy.restore()
                assert struck
                check(found, request)
                assert found.done().exact and not found.done().class_changed_at

    run(work())


def test_a_journal_brings_the_constraint_back(tmp_path: Path) -> None:
    request = asked(WORDS)
    kept: dict[str, Any] = {"journal": "disk", "journal_dir": tmp_path / "journals"}

    async def work() -> None:
        async with cloud(tmp_path) as c:
            async with edge(c.address, **kept) as e:
                async for _ in _until_tokens(e, request, 5):
                    pass
                path = next((tmp_path / "journals").glob("*.journal"))
                opened = next(read(path, Plain()))
                assert getattr(opened, "constraint", None) == WORDS
                data = path.read_bytes()
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(data)
            async with edge(c.address, **kept) as e:
                await e.daemon.link.check(e.daemon.link.peers[0])
                await e.daemon.restore()
                number = next(iter(e.daemon.running))
                found = Answered([event async for event in e.daemon.attach(number, [0])])
        check(found, request)

    run(work())


async def _until_tokens(e: Any, request: GenerateRequest, count: int) -> AsyncIterator[object]:
    """Read so many tokens, and leave the answer as a crash would."""
    found = Answered()
    async for event in e.daemon.generate(request):
        found.events.append(event)
        yield event
        if len(found.tokens()) >= count:
            return


def test_the_small_model_alone_and_a_forked_answer_keep_to_it(tmp_path: Path) -> None:
    async def work() -> None:
        async with cloud(tmp_path) as c:
            proxy = ShapingProxy("127.0.0.1", c.address.port)
            async with (
                proxy,
                edge(Address("127.0.0.1", proxy.port), fallback="local", patience_s=0.3) as e,
            ):
                alone = await e.answer(asked(placement="edge"))
                assert valid(alone.text())
                found = Answered()
                async for event in e.daemon.generate(asked(retract=False)):
                    found.events.append(event)
                    if len(found.tokens()) == 4:
                        proxy.cut()
            await c.forget()
        assert found.of(Forked) and valid(found.text())

    run(work())


def test_what_is_shown_meanwhile_keeps_to_it(tmp_path: Path) -> None:
    async def work() -> None:
        async with (
            cloud(tmp_path) as c,
            ShapingProxy("127.0.0.1", c.address.port) as proxy,
            edge(Address("127.0.0.1", proxy.port), fallback="local", patience_s=5.0) as e,
        ):
            found, screen, healed = Answered(), Screen(), False
            shown: list[int] = []
            async for event in e.daemon.generate(asked(retract=True)):
                found.events.append(event)
                screen.show(event)
                if len(found.tokens()) == 4 and not screen.provisional:
                    proxy.cut()
                elif not healed and screen.provisional > 10:
                    healed = True
                    shown = list(screen.tokens)
                    await proxy.restore()
        letters = vocabulary()
        guide = grammar.Guide(grammar.grammars(letters.digest, vocabulary).compile(OBJECT))
        masks = guide.masks([], [shown[:i] for i in range(len(shown))])
        assert len(shown) > 10
        assert all(mask[token] for mask, token in zip(masks, shown, strict=True))

    run(work())


# --- refusals ----------------------------------------------------------------------------------


REFUSED = (
    (Constraint("json_schema", "{"), "not JSON"),
    (Constraint("json_schema", '{"type":"string","pattern":"(?=a)b"}'), "look-around"),
    (Constraint("json_schema", '{"$ref":"http://127.0.0.1/x"}'), "does not fetch"),
    (Constraint("regex", "(a"), "unclosed group"),
    (Constraint("lark", "start: foo"), "unknown name"),
    (Constraint("json_schema", '{"not":' * 70 + "{}" + "}" * 70), "64 levels"),
)


def test_what_can_not_be_compiled_is_refused_before_anything_begins(tmp_path: Path) -> None:
    async def work() -> None:
        async with cloud(tmp_path) as c, edge(c.address) as e:
            for constraint, says in REFUSED:
                with pytest.raises(InvalidRequest) as caught:
                    await e.answer(asked(constraint))
                error = caught.value
                assert error.param == "response_format" and says in str(vars(error))
            assert not c.opened() and not e.daemon.running

    run(work())


def test_a_cloud_refuses_what_it_can_not_compile_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another release of llguidance there: the device takes its word, typed."""
    monkeypatch.setattr("outrider.edge.daemon._check_constraint", _passes)

    async def work() -> None:
        async with cloud(tmp_path) as c, edge(c.address, draft=None) as e:
            with pytest.raises(InvalidRequest) as caught:
                await e.answer(asked(Constraint("regex", "(a")))
            assert caught.value.param == "response_format" and "unclosed" in caught.value.why

    run(work())


async def _passes(job: Any) -> None:
    """In place of the device's own look."""


def test_a_cloud_without_masks_is_refused_by_name_and_others_serve(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def work() -> None:
        async with cloud(tmp_path) as c, edge(c.address) as e:
            host = next(iter(c.running.cloud.hosts.values()))
            host.description = replace(host.description, masks="")
            with pytest.raises(HandshakeRefused) as caught:
                await e.answer(asked())
            assert "masks" in caught.value.what and not c.opened()
            free = ask()
            assert (await e.answer(free)).ids() == expected(free)

    run(work())


def test_a_cloud_that_passes_the_field_over_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An earlier release: it answers as if nothing had been asked for."""
    made = server.new_session

    def forgetful(tenant: str, opening: Any, *more: Any) -> Any:
        return made(tenant, replace(opening, constraint=None), *more)

    monkeypatch.setattr(server, "new_session", forgetful)
    opened = server.Cloud._opened
    monkeypatch.setattr(
        server.Cloud,
        "_opened",
        lambda self, o, h, **more: opened(self, replace(o, constraint=None), h, **more),
    )

    async def work() -> None:
        async with cloud(tmp_path) as c, edge(c.address, patience_s=1.0) as e:
            with pytest.raises(HandshakeRefused) as caught:
                await e.answer(asked())
            assert "masks" in caught.value.what
            await asyncio.wait_for(c.forget(), 10)

    run(work())


def test_without_llguidance_here_it_is_refused_with_the_line_that_helps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grammar, "masks", lambda: "")

    async def work() -> None:
        async with cloud(tmp_path) as c, edge(c.address) as e:
            for placement in ("auto", "edge"):
                with pytest.raises(UnsupportedParameter) as caught:
                    await e.answer(asked(placement=placement))
                assert 'pip install "outrider[edge]"' in caught.value.todo
            assert not c.opened()

    run(work())


def test_a_journal_of_the_format_before_is_read() -> None:
    old = Opened(1, "r", bytes(16), "t", "", (1,), GREEDY, bytes(16), 1, 9, ())
    fields = msgspec.msgpack.decode(msgspec.msgpack.encode(old))
    data = msgspec.msgpack.encode(fields[:-1])
    assert msgspec.msgpack.decode(data, type=Opened).constraint is None
