"""Prompts with a hole: text before and behind it, in the tokens that a model was trained with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from outrider.errors import UnsupportedParameter
from outrider.models.served import Served


@dataclass(frozen=True, slots=True)
class Hole:
    """Markers of one family: before the prefix, before the suffix, before the answer."""

    before: str
    behind: str
    answer: str
    order: Literal["prefix first", "suffix first"] = "prefix first"


HOLES = (
    Hole("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),  # Qwen, CodeGemma, Granite 4
    Hole("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),  # StarCoder, SmolLM, Granite
    Hole("<fim-prefix>", "<fim-suffix>", "<fim-middle>"),  # SantaCoder
    Hole("<|code_prefix|>", "<|code_suffix|>", "<|code_middle|>"),  # GLM
    Hole("\u2581<PRE>", "\u2581<SUF>", "\u2581<MID>"),  # Code Llama
    Hole("<PRE>", "<SUF>", "<MID>"),
    Hole(
        "<\uff5cfim\u2581begin\uff5c>", "<\uff5cfim\u2581hole\uff5c>", "<\uff5cfim\u2581end\uff5c>"
    ),  # DeepSeek Coder
    Hole("[PREFIX]", "[SUFFIX]", "", "suffix first"),  # Codestral
)


def fill(prefix: str, suffix: str, served: Served) -> tuple[int, ...]:
    """The prompt's ids. Raises InvalidRequest where the model knows no such markers."""
    names = _names(served)
    for hole in HOLES:
        markers = [marker for marker in (hole.before, hole.behind, hole.answer) if marker]
        if all(marker.encode() in names for marker in markers):
            return _filled(hole, prefix, suffix, served, names)
    raise UnsupportedParameter(
        "suffix can not be used with this model",
        param="suffix",
        why="its vocabulary has no tokens that mark a hole in a text",
        effect="the request was not started",
        todo="leave suffix out, or ask a model that was trained to fill holes",
    )


def _names(served: Served) -> dict[bytes, int]:
    """The markers that are tokens of the vocabulary; spelled as text they would be no markers."""
    wanted = {m.encode() for hole in HOLES for m in (hole.before, hole.behind, hole.answer) if m}
    # SentencePiece's sign for a space is one in the table.
    wanted |= {marker.replace("\u2581".encode(), b" ") for marker in wanted}
    found = {token: i for i, token in enumerate(served.vocabulary.tokens) if token in wanted}
    return found | {
        marker.encode(): found[spelled]
        for hole in HOLES
        for marker in (hole.before, hole.behind, hole.answer)
        if marker and (spelled := marker.replace("\u2581", " ").encode()) in found
    }


def _filled(
    hole: Hole, prefix: str, suffix: str, served: Served, names: dict[bytes, int]
) -> tuple[int, ...]:
    def marked(marker: str) -> tuple[int, ...]:
        return (names[marker.encode()],) if marker else ()

    def ids(text: str) -> tuple[int, ...]:
        return served.tokenizer.encode(text, "plain") if text else ()

    begin = served.tokenizer.encode("", "add")
    before = (*marked(hole.before), *ids(prefix))
    behind = (*marked(hole.behind), *ids(suffix))
    if hole.order == "suffix first":
        return (*begin, *behind, *before)
    return (*begin, *before, *behind, *marked(hole.answer))
