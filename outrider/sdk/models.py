"""Bodies that the daemon sends as OpenAI words them, and as lists."""

from __future__ import annotations

from typing import Literal

import msgspec

from outrider.partitioner.plan import Plan
from outrider.protocol.status import LoadedModel, ModelCard, RequestState

Objective = Literal["latency", "throughput", "energy", "cost"]


class About(msgspec.Struct, frozen=True):
    """The `outrider` block of a model."""

    role: str = "target"
    vocabulary_digest: str = ""
    numeric_class: str = ""


class Listed(msgspec.Struct, frozen=True):
    """One entry of `/v1/models`."""

    id: str
    created: int = 0
    max_model_len: int = 0
    outrider: About = About()

    def card(self) -> ModelCard:
        return ModelCard(
            id=self.id,
            created=self.created,
            role="draft" if self.outrider.role == "draft" else "target",
            context=self.max_model_len,
            vocabulary_digest=self.outrider.vocabulary_digest,
            numeric_class=self.outrider.numeric_class,
        )


class Listing(msgspec.Struct, frozen=True):
    """`/v1/models`."""

    data: tuple[Listed, ...]

    def cards(self) -> tuple[ModelCard, ...]:
        return tuple(one.card() for one in self.data)


class Requests(msgspec.Struct, frozen=True):
    """`/outrider/v1/requests`."""

    requests: tuple[RequestState, ...]


class Used(msgspec.Struct, frozen=True):
    """`/outrider/v1/models/use`."""

    loaded: LoadedModel | None = None
    """None when no model drafts."""


class WhatIf(msgspec.Struct, frozen=True):
    """The plan after changes."""

    asked: str
    """`rtt=80ms,bw=20M`."""
    plan: Plan
    changes: tuple[str, ...]
    """What is different, a sentence each."""


class Planned(msgspec.Struct, frozen=True):
    """`/outrider/v1/plan`: where the layers of a model would run."""

    plan: Plan
    what_if: WhatIf | None = None
    """None when nothing was asked."""


class Tokens(msgspec.Struct, frozen=True):
    """`/tokenize`."""

    tokens: tuple[int, ...]


class Prompted(msgspec.Struct, frozen=True):
    """`/detokenize`."""

    prompt: str
