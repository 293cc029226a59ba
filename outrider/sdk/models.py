"""Bodies that the daemon sends as OpenAI words them, and as lists."""

from __future__ import annotations

import msgspec

from outrider.protocol.status import ModelCard, RequestState


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
