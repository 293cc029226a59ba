"""Through the HTTP face: what the service sees, and what the caller gets back."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from typing import Any

import httpx2
import msgspec
import pytest

from outrider.edge.api.app import build
from outrider.edge.redacting import Redacting, redact
from outrider.edge.service import GenerateRequest
from outrider.errors import ConfigError, InvalidRequest
from outrider.options import EdgeOptions
from outrider.privacy.redact import Rules, Vault
from outrider.protocol.constraint import Constraint
from outrider.protocol.stream import (
    Done,
    Provisional,
    Retract,
    Speculation,
    Started,
    StreamEvent,
    Token,
)
from outrider.testing.local_edge import LocalEdge

MAIL = "ann@example.com"


class Echo(LocalEdge):
    """Says again what it was asked, in small pieces."""

    def __init__(self, tail: str = "") -> None:
        super().__init__()
        self.asked: list[GenerateRequest] = []
        self.tail = tail

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[StreamEvent, None]:
        self.asked.append(request)
        async for event in self._say(str(request.prompt)):
            yield event

    async def attach(
        self, request_id: str, positions: Sequence[int]
    ) -> AsyncGenerator[StreamEvent, None]:
        async for event in self._say(str(self.asked[-1].prompt)):
            if not isinstance(event, Token) or event.position >= positions[0]:
                yield event

    async def _say(self, text: str) -> AsyncIterator[StreamEvent]:
        said = text + self.tail
        yield Started(
            request="r1",
            model="target",
            placement="cloud",
            seed="1",
            exact=True,
            numeric_class="c" * 64,
            prompt_tokens=1,
        )
        for position, at in enumerate(range(0, len(said), 3)):
            piece = said[at : at + 3]
            yield Token(position=position, id=position, text=piece, source="cloud", t_ms=1.0)
        yield Done(
            finish_reason="stop",
            completion_tokens=len(said),
            prompt_tokens=1,
            speculation=Speculation(),
            exact=True,
            mixed_from=None,
            class_changed_at=(),
            queue_ms=0.0,
            prefill_ms=0.0,
            total_ms=1.0,
            ttft_ms=1.0,
            rtt_ms=None,
            bytes_up=0,
            bytes_down=0,
        )


def post(service: Echo, rules: Sequence[str], **body: Any) -> httpx2.Response:
    async def run() -> httpx2.Response:
        app = build(Redacting(service, lambda: Rules.parse(rules)))
        transport = httpx2.ASGITransport(app=app)
        async with httpx2.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return await client.post("/v1/completions", json=body)

    return asyncio.run(run())


def test_a_request_asks_for_it_and_is_told() -> None:
    edge = Echo()
    answer = post(edge, (), prompt=f"to {MAIL}", outrider={"redact": ["email"]}).json()
    assert edge.asked[0].prompt == "to [EMAIL_1]"
    assert answer["choices"][0]["text"] == f"to {MAIL}"
    assert answer["outrider"]["redacted"] == {"email": 1}
    assert answer["outrider"]["answers"] == "the redacted prompt"


def test_a_stream_never_shows_a_placeholder() -> None:
    edge = Echo(" [EMAIL_2] [EMA")
    answer = post(edge, ["all"], prompt=f"to {MAIL}", stream=True)
    chunks = [json.loads(line[6:]) for line in answer.text.splitlines() if line[6:7] == "{"]
    text = "".join(choice["text"] for chunk in chunks for choice in chunk["choices"])
    assert text == f"to {MAIL} [EMAIL_2] [EMA"
    assert "[EMAIL_1" not in answer.text
    assert chunks[-1]["outrider"]["redacted"] == {"email": 1}


def test_nothing_changes_where_nothing_is_asked_for() -> None:
    edge = Echo()
    answer = post(edge, (), prompt=f"to {MAIL}").json()
    assert edge.asked[0].prompt == f"to {MAIL}"
    assert "redacted" not in answer["outrider"]


def test_token_ids_are_refused() -> None:
    answer = post(Echo(), ["email"], prompt=[1, 2, 3])
    assert answer.status_code == 400
    assert "token ids can not be redacted" in answer.text


@pytest.mark.parametrize("value", [True, ["mails"], [1], "x=("])
def test_a_wish_that_is_none_is_refused(value: object) -> None:
    answer = post(Echo(), (), prompt="a", outrider={"redact": value})
    assert answer.status_code == 400
    assert "outrider.redact" in answer.text


def test_all_that_leaves_is_redacted() -> None:
    call = {"id": MAIL, "type": "function", "function": {"name": "f", "arguments": MAIL}}
    request = GenerateRequest(
        prompt=(
            {"role": "user", "content": MAIL},
            {"role": "assistant", "content": "", "tool_calls": [call]},
        ),
        prediction=f"Dear {MAIL}",
        stop=(MAIL,),
        tools=({"type": "function", "function": {"description": MAIL}},),
    )
    found = redact(request, Vault(Rules.parse(["email"])))
    ids = [call["id"] for call in found.prompt[1]["tool_calls"]]  # type: ignore[index]
    assert ids == [MAIL]
    kept = msgspec.json.encode([found.prompt, found.prediction, found.stop, found.tools]).decode()
    assert kept.count(MAIL) == 1
    assert kept.count("[EMAIL_1]") == 5


def test_a_form_that_holds_a_value_is_refused() -> None:
    constraint = Constraint("regex", r"ann@example\.com|ann@example.com")
    request = GenerateRequest(prompt="a", constraint=constraint)
    with pytest.raises(InvalidRequest, match="form"):
        redact(request, Vault(Rules.parse(["email"])))


def test_who_comes_back_gets_the_rest_restored() -> None:
    async def run() -> list[str]:
        service = Redacting(Echo(), lambda: Rules.parse(["email"]))
        texts = ["", ""]
        async for event in service.generate(GenerateRequest(prompt=f"to {MAIL} now")):
            texts[0] += event.text if isinstance(event, Token) and event.position < 3 else ""
        async with aclosing(service.attach("r1", [3])) as events:
            async for event in events:
                texts[1] += event.text if isinstance(event, Token) else ""
        return texts

    first, rest = asyncio.run(run())
    assert first + rest == f"to {MAIL} now"
    assert "[" not in first + rest


def test_provisional_text_is_restored_ahead_and_taken_back() -> None:
    class Torn(Echo):
        async def generate(self, request: GenerateRequest) -> AsyncGenerator[StreamEvent, None]:
            spoken = [event async for event in self._say("[EMAIL_1]ok")]
            yield spoken[0]
            for position, text in enumerate(("[EMA", "IL_1] no")):
                yield Provisional(position=position, id=1, text=text, t_ms=1.0)
            yield Retract(position=0)
            yield Provisional(position=0, id=1, text="[EMAIL_1]", t_ms=1.0)
            for event in spoken[1:]:
                yield event

    async def run() -> tuple[str, str]:
        service = Redacting(Torn(), lambda: Rules.parse(["email"]))
        shown = final = ""
        async for event in service.generate(GenerateRequest(prompt=MAIL, retract=True)):
            shown += event.text if isinstance(event, Provisional) else ""
            final += event.text if isinstance(event, Token) else ""
        return shown, final

    shown, final = asyncio.run(run())
    assert shown == f"{MAIL} no{MAIL}"
    assert final == f"{MAIL}ok"


def test_the_daemon_refuses_a_wrong_option() -> None:
    with pytest.raises(ConfigError, match="--redact"):
        EdgeOptions(redact=("mails",))
    assert EdgeOptions(redact=("all", "x=a")).redact == ("all", "x=a")
