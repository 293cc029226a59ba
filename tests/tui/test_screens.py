"""Every screen of a recorded session, at 80x24 and 140x40, as it stands in docs/screens."""

from __future__ import annotations

import os

import pytest

pytest.importorskip("textual", reason="the screens need the extra tui")

from tests.tui.screens import FOLDER, SHOTS, SIZES, Shot, alone, draw, pieces

WRITES = os.environ.get("OUTRIDER_SCREENS") == "write"


@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
@pytest.mark.parametrize("shot", SHOTS, ids=lambda shot: shot.name)
def test_screens_are_those_of_the_documents(shot: Shot, size: tuple[int, int]) -> None:
    place = FOLDER / f"{shot.name}-{size[0]}x{size[1]}.svg"
    svg, _ = draw(shot, size)
    if WRITES:
        FOLDER.mkdir(exist_ok=True)
        place.write_text(svg)
    known = pieces(place.read_text())
    assert known, "the picture can not be read"
    assert pieces(svg) == known


def test_a_change_on_the_screen_is_seen() -> None:
    svg, _ = draw(SHOTS[0], SIZES[0])
    assert pieces(svg) != pieces(svg.replace("speed", "spool"))
    assert pieces(svg) != pieces(svg.replace("fill: #56d364", "fill: #ff0000"))


def test_pictures_fetch_nothing() -> None:
    for place in FOLDER.glob("*.svg"):
        assert "url(" not in place.read_text().replace("url(#", "")


@pytest.mark.parametrize("shot", SHOTS, ids=lambda shot: shot.name)
def test_ascii_is_ascii(shot: Shot) -> None:
    _, text = draw(shot, SIZES[0], ascii=True)
    assert text.isascii(), [line for line in text.splitlines() if not line.isascii()]
    assert len(text.splitlines()) >= 22


@pytest.mark.parametrize("theme", ["light", "ansi"])
def test_themes_change_colours_and_no_words(theme: str) -> None:
    dark, words = draw(SHOTS[0], SIZES[0])
    other, same = alone(SHOTS[0], SIZES[0], theme=theme)
    assert same == words
    assert {colour for colour, _, _ in pieces(dark)} != {colour for colour, _, _ in pieces(other)}


def test_nothing_is_told_by_colour_alone() -> None:
    """Sources, states and the chosen row have signs of their own."""
    from outrider.tui.glyphs import ASCII, UNICODE

    for glyphs in (UNICODE, ASCII):
        assert len(set(glyphs.sources)) == len(glyphs.sources)
        assert len({glyphs.good, glyphs.bad, glyphs.waiting}) == 3
        assert len(set(glyphs.shades)) == len(glyphs.shades)
    _, text = draw(SHOTS[0], SIZES[0])
    assert "[1 Overview]" in text and "connected" in text


@pytest.mark.parametrize("size", [(200, 60), (60, 16)])
def test_sizes_are_filled_and_not_exceeded(size: tuple[int, int]) -> None:
    _, text = alone(SHOTS[0], size)
    lines = text.splitlines()
    assert len(lines) <= size[1] and max(map(len, lines)) <= size[0]
