"""`llama-index-llms-openai-like`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from .talk import MODEL

pytestmark = pytest.mark.filterwarnings("ignore")


def test_openai_like(url: str, library: Callable[[str], Any]) -> None:
    kind = library("llama_index.llms.openai_like").OpenAILike
    asked = {"model": MODEL, "api_base": f"{url}/v1", "api_key": "none", "max_tokens": 9}
    plain = kind(**asked, temperature=0)
    assert len(plain.complete("hi").text) == 9
    assert [part.text for part in plain.stream_complete("hi")][-1] == plain.complete("hi").text
    chat = kind(**asked, is_chat_model=True, temperature=0)
    turn = library("llama_index.core.llms").ChatMessage(role="user", content="hi")
    said = chat.chat([turn]).message.content
    assert len(said) == 9
    assert [part.message.content for part in chat.stream_chat([turn])][-1] == said
