"""`litellm`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from .talk import HI, MODEL

pytestmark = pytest.mark.filterwarnings("ignore")


def test_completion(url: str, library: Callable[[str], Any]) -> None:
    completion = library("litellm").completion
    asked = {
        "model": f"openai/{MODEL}",
        "api_base": f"{url}/v1",
        "api_key": "none",
        "messages": HI,
        "max_tokens": 9,
        "temperature": 0,
    }
    said = completion(**asked).choices[0].message.content
    assert len(said) == 9
    parts = completion(**asked, stream=True)
    assert "".join(part.choices[0].delta.content or "" for part in parts) == said
