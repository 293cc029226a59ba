"""The `openai` package, bound to the daemon."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from outrider.errors import ConfigError
from outrider.sdk.find import find

if TYPE_CHECKING:
    from openai import OpenAI

NO_KEY = "outrider-needs-no-key"
"""The package insists on a key; a daemon on loopback does not."""


def openai(url: str | None = None, *, api_key: str | None = None, **settings: Any) -> OpenAI:
    """An `openai.OpenAI` that asks the daemon; `settings` go to its constructor.

    The daemon is found as `Client` finds it. Raises ConfigError when the package is
    not installed.
    """
    try:
        from openai import OpenAI
    except ImportError:
        raise ConfigError(
            "the openai package is not installed",
            effect="no client was made",
            todo="pip install openai, or use outrider.Client",
        ) from None
    place = find(url, api_key)
    return OpenAI(base_url=f"{place.url}/v1", api_key=place.api_key or NO_KEY, **settings)
