"""`langchain-openai`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from .talk import CITY, MODEL, WEATHER

pytestmark = pytest.mark.filterwarnings("ignore")


def test_chat_openai(url: str, library: Callable[[str], Any]) -> None:
    kind = library("langchain_openai").ChatOpenAI
    chat = kind(base_url=f"{url}/v1", api_key="none", model=MODEL, max_tokens=200, seed=1)
    short = chat.bind(max_tokens=9)
    assert len(short.invoke("hi").content) == 9
    parts = list(short.stream("hi", stream_usage=True))
    assert "".join(part.content for part in parts) == short.invoke("hi").content
    found = chat.bind_tools([WEATHER], tool_choice="required", parallel_tool_calls=False)
    (call,) = found.invoke("hi").tool_calls
    assert call["name"] == "weather" and call["args"]["city"] in ("Ulm", "Rom")
    shaped = chat.with_structured_output({"title": "found", **CITY})
    assert shaped.invoke("hi")["city"] in ("Ulm", "Rom")
