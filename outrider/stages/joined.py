"""Whether stages that were loaded make one model."""

from __future__ import annotations

from collections.abc import Sequence

from outrider.engine import LayerRange, StageInfo
from outrider.errors import HandshakeRefused, PlanError, RemoteProtocolError


def check_joined(
    infos: Sequence[StageInfo], asked: Sequence[LayerRange], names: Sequence[str]
) -> None:
    """Whether stages make one model. Raises HandshakeRefused naming what differs, PlanError."""
    first = infos[0]
    for info, layers, name in zip(infos, asked, names, strict=True):
        if info.layers != layers:
            raise RemoteProtocolError(f"worker {name} loaded other layers than it was asked to")
        for what in ("weights_digest", "vocabulary_digest", "hidden_size", "model_layers"):
            ours, theirs = str(getattr(first, what)), str(getattr(info, what))
            if ours != theirs:
                raise HandshakeRefused(
                    what.replace("_", " "),
                    ours=ours,
                    theirs=theirs,
                    todo=f"start {names[0]} and {name} with the same model",
                )
    _check_ranges(asked, first.model_layers)


def _check_ranges(layers: Sequence[LayerRange], count: int) -> None:
    ends = [0, *(part.stop for part in layers)]
    starts = [*(part.start for part in layers), count]
    embeddings = [part.embedding for part in layers]
    heads = [part.head for part in layers]
    rest = [False] * (len(layers) - 1)
    if ends != starts or embeddings != [True, *rest] or heads != [*rest, True]:
        raise PlanError(
            "the stages do not make a whole model",
            why="their layers must follow one another from the first to the last, the embedding "
            "with the first stage and the head with the last",
            effect="the stages were not joined",
        )
