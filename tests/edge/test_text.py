"""Text pieces: whatever tokens the bytes came in, all that is shown is the text up to the stop."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from outrider.edge.text import TextStream
from outrider.engines.fake import END, vocabulary
from outrider.protocol.messages import Reason
from outrider.protocol.stops import Cutter
from outrider.protocol.vocabulary import Vocabulary

BYTES = vocabulary()
PIECES = Vocabulary(
    (b"a", b"ab", b"b", "é".encode(), "é".encode()[:1], "é".encode()[1:], b"</", b"s>", b"<", b"X"),
    special=frozenset({9}),
    bos=None,
    end=(9,),
)


def shown(words: Vocabulary, tokens: list[int], stop: list[bytes]) -> list[str]:
    """What a client gets, piece by piece, from tokens that the committer's cutter lets through."""
    cutter, stream = Cutter(words, stop, len(tokens)), TextStream(words, stop)
    pieces = []
    for token in tokens:
        pieces.append(stream.feed(token))
        if cutter.feed(token) is not None:
            break
    return [*pieces, stream.end()]


def test_a_character_split_over_tokens_is_shown_whole() -> None:
    pieces = shown(BYTES, list("a€b".encode()), [])
    assert pieces == ["a", "", "", "€", "b", ""]


def test_a_character_that_never_ends_becomes_one_mark() -> None:
    assert shown(BYTES, list("a€".encode()[:-1]), []) == ["a", "", "", "\ufffd"]


def test_a_stop_string_over_tokens_is_never_shown() -> None:
    pieces = shown(BYTES, list(b"one</s>two"), [b"</s>"])
    assert "".join(pieces) == "one"
    assert all("<" not in piece for piece in pieces)


def test_what_only_began_like_a_stop_string_is_shown_late_and_whole() -> None:
    pieces = shown(BYTES, list(b"a</b"), [b"</s>"])
    assert pieces == ["a", "", "", "</b", ""]


def test_what_was_held_back_is_shown_at_the_end() -> None:
    assert "".join(shown(BYTES, list(b"a</"), [b"</s>"])) == "a</"


def test_an_end_token_gives_no_text() -> None:
    assert shown(BYTES, [97, END], []) == ["a", "", ""]


def test_the_first_of_several_stops_cuts() -> None:
    assert "".join(shown(BYTES, list(b"abcdef"), [b"ef", b"cd"])) == "ab"


def test_a_copy_runs_ahead_without_moving_the_original() -> None:
    stream = TextStream(BYTES, [b"stop"])
    assert "".join(stream.feed(token) for token in b"go st") == "go "
    twin = stream.copy()
    assert "".join(twin.feed(token) for token in b"ay") == "stay"
    assert "".join(stream.feed(token) for token in b"op") + stream.end() == ""


def test_a_copy_keeps_half_a_character() -> None:
    first, second = "é".encode()
    stream = TextStream(BYTES, [])
    stream.feed(first)
    twin = stream.copy()
    assert (twin.feed(second), stream.feed(second)) == ("é", "é")


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.integers(0, 9), min_size=1, max_size=30),
    st.lists(st.sampled_from([b"</s>", b"ab", b"ba", b"<", "é".encode(), b"aab"]), max_size=3),
)
def test_joined_pieces_are_the_whole_text_cut_at_the_stop(
    tokens: list[int], stop: list[bytes]
) -> None:
    kept = tokens[: tokens.index(9)] if 9 in tokens else tokens
    whole = PIECES.text(kept)
    cuts = [at for each in stop if (at := whole.find(each)) >= 0]
    # Of stops that end with the same token, the one that begins first cuts.
    expected = _first_to_end(whole, kept, stop) if cuts else whole
    assert "".join(shown(PIECES, tokens, stop)) == expected.decode("utf-8", "replace")


def _first_to_end(whole: bytes, tokens: list[int], stop: list[bytes]) -> bytes:
    for count in range(1, len(tokens) + 1):
        so_far = PIECES.text(tokens[:count])
        found = [at for each in stop if (at := so_far.find(each)) >= 0]
        if found:
            return so_far[: min(found)]
    return whole


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.integers(0, 9), min_size=1, max_size=30),
    st.lists(st.sampled_from([b"</s>", b"ab", b"<"]), max_size=2),
    st.lists(st.integers(1, 8), min_size=1, max_size=30),
)
def test_the_cut_does_not_depend_on_how_tokens_were_committed(
    tokens: list[int], stop: list[bytes], sizes: list[int]
) -> None:
    alone = Cutter(PIECES, stop, 20)
    together = alone.copy()
    count, reason = alone.cut(tokens)
    done, found = 0, None
    for size in sizes * 30:
        part = tokens[done : done + size]
        if not part or found is not None:
            break
        taken, found = together.cut(part)
        done += taken
    assert (done, found) == (count, reason)


def test_the_cutter_says_why() -> None:
    def reason(tokens: list[int], stop: list[bytes], most: int) -> tuple[int, Reason | None]:
        return Cutter(PIECES, stop, most).cut(tokens)

    assert reason([0, 9, 0], [], 10) == (2, Reason.STOP)
    assert reason([0, 1, 2], [b"aab"], 10) == (2, Reason.STOP)
    assert reason([0, 1, 2], [], 2) == (2, Reason.LENGTH)
    assert reason([0, 1], [], 10) == (2, None)
    assert reason([0, 1], [b"aab"], 2) == (2, Reason.STOP), "a stop at the last token is a stop"
