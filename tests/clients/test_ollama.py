"""The `ollama` package."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from .talk import CITY, HI, MODEL, WEATHER

pytestmark = pytest.mark.filterwarnings("ignore")


def test_client(url: str, library: Callable[[str], Any]) -> None:
    ollama = library("ollama")
    client = ollama.Client(host=url)
    assert [model.model for model in client.list().models] == [MODEL]
    assert [model.model for model in client.ps().models] == [MODEL]
    assert "tools" in client.show(MODEL).capabilities
    options = {"num_predict": 9, "temperature": 0}
    said = client.chat(model=MODEL, messages=HI, options=options)
    assert (len(said.message.content), said.done_reason, said.eval_count) == (9, "length", 9)
    parts = list(client.chat(model=MODEL, messages=HI, options=options, stream=True))
    assert "".join(part.message.content for part in parts) == said.message.content
    assert parts[-1].done and not parts[0].done
    text = client.generate(model=MODEL, prompt="hi", options=options, keep_alive="5m")
    assert len(text.response) == 9
    pieces = client.generate(model=MODEL, prompt="hi", options=options, stream=True)
    assert "".join(piece.response for piece in pieces) == text.response
    shaped = client.chat(model=MODEL, messages=HI, format=CITY, options={"num_predict": 200})
    assert '"city"' in shaped.message.content
    with pytest.raises(ollama.ResponseError, match=r"options\.num_predict"):
        client.chat(model=MODEL, messages=HI, options={"num_predict": 0})
    with pytest.raises(ollama.ResponseError) as missing:
        client.chat(model="none", messages=HI)
    assert missing.value.status_code == 404
    client.chat(model=MODEL, messages=HI, tools=[WEATHER], options=options)
