"""What is taken out of a text, and that exactly it comes back, however the stream is cut."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from outrider.errors import InvalidRequest
from outrider.privacy import bound_search
from outrider.privacy.redact import Restorer, Rules, Vault, iban, luhn

ALL = Rules.parse(["all"])
KEY = "sk-" + "abcDEF0123456789" * 2
SECRETS = {
    "email": "ann.o'x@example.com mail ann@mail.example.org",
    "key": f"export TOKEN={KEY}",
    "card": "card 4111 1111 1111 1111 please",
    "iban": "to GB82 WEST 1234 5698 7654 32 by Friday",
    "phone": "call +41 44 668 18 00 or (415) 555-2671",
}


def once(text: str, rules: Rules = ALL) -> tuple[str, Vault]:
    vault = Vault(rules)
    return vault.redact([text])[0], vault


def test_each_kind_is_found_and_named() -> None:
    assert once(SECRETS["email"])[0] == "ann.o'[EMAIL_1] mail [EMAIL_2]"
    assert once(SECRETS["key"])[0] == "export TOKEN=[KEY_1]"
    assert once(SECRETS["card"])[0] == "card [CARD_1] please"
    assert once(SECRETS["iban"])[0] == "to [IBAN_1] by Friday"
    assert once(SECRETS["phone"])[0] == "call [PHONE_1] or [PHONE_2]"


@pytest.mark.parametrize(
    "key",
    [
        "ghp_" + "a1B2" * 9,
        "AKIAIOSFODNN7EXAMPLE",
        "AIza" + "x" * 35,
        "xoxb-123456789012-abcdef",
        "sk_live_4eC39HqLyjWDarjtT1zdp7dc",
        "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.dozjgNryP4J3jVmNHl0w5N_X",
        "wJalrXUtnFEMI/K7MDENG/bPxRfiCYzEXAMPLEKEY",
    ],
)
def test_keys_of_many_houses(key: str) -> None:
    assert once(f'key = "{key}"')[0] == 'key = "[KEY_1]"'


@pytest.mark.parametrize(
    "text",
    [
        "4111 1111 1111 1112",
        "0000 0000 0000 0000",
        "GB82 WEST 1234 5698 7654 33",
        "user@localhost, @decorator, a @ b",
        "version 1.2.3, 2024-01-31 10:20:30, 3.14159265358979",
        "def compute_average_of_all_values(values): return sum(values)",
        "from outrider.engines.torch.decoder import ModelConfigurationWithDefaults",
        "https://docs.example.org/a/very/long/path/without/a/secret/in/it",
        "0x7fffffff 1234567890",
    ],
)
def test_what_is_none_stays(text: str) -> None:
    assert once(text) == (text, once(text)[1])
    assert not once(text)[1].values


def test_check_digits() -> None:
    assert luhn("4242424242424242") and not luhn("4242424242424241")
    assert iban("DE89370400440532013000") and not iban("DE88370400440532013000")


def test_one_value_has_one_placeholder_and_none_that_stands_there() -> None:
    vault = Vault(ALL)
    texts = vault.redact(["[EMAIL_1] a@b.ch c@d.ch", "again c@d.ch"])
    assert texts == ["[EMAIL_1] [EMAIL_2] [EMAIL_3]", "again [EMAIL_3]"]
    assert vault.counts() == {"email": 2}
    assert vault.restore("[EMAIL_1] [EMAIL_2] [EMAIL_4] [EMAIL_3") == (
        "[EMAIL_1] a@b.ch [EMAIL_4] [EMAIL_3"
    )


def test_what_a_value_holds_is_not_restored_again() -> None:
    vault = Vault(Rules.parse([r"word=<[^>]*>"]))
    text = "<[WORD_2]> <b>"
    (redacted,) = vault.redact([text])
    assert vault.restore(redacted) == text


_pieces = st.one_of(
    st.sampled_from(
        [*SECRETS.values(), KEY, "[EMAIL_1]", "[EMAIL_", "[", "]", "[CARD_12]", "a@b.ch"]
    ),
    st.text(max_size=12),
)
_texts = st.lists(_pieces, max_size=8).map("".join)


@settings(max_examples=150, deadline=None)
@given(_texts)
def test_restored_is_what_it_was(text: str) -> None:
    redacted, vault = once(text)
    assert vault.restore(redacted) == text
    assert not [value for value in vault.values.values() if value not in text]


@settings(max_examples=150, deadline=None)
@given(_texts, st.lists(st.integers(1, 5), max_size=80))
def test_a_stream_gives_what_the_whole_does(text: str, cuts: list[int]) -> None:
    redacted, vault = once(text)
    stream, at, said = vault.restorer(), 0, []
    for size in cuts:
        said.append(stream.feed(redacted[at : at + size]))
        at += size
    said += [stream.feed(redacted[at:]), stream.end()]
    assert "".join(said) == vault.restore(redacted) == text


def test_little_is_held_back() -> None:
    stream = Restorer({"[EMAIL_1]": "a@b.ch"})
    assert stream.feed("x[EM") == "x"
    assert stream.held
    twin = stream.copy()
    assert stream.feed("AIL_1]!") == "a@b.ch!"
    assert twin.feed("X") == "[EMX"
    assert not stream.held


def test_patterns_of_ones_own() -> None:
    rules = Rules.parse([r"ticket=PROJ-\d+", "email"])
    redacted, vault = once("PROJ-12, PROJ-12 and PROJ-7 of a@b.ch", rules)
    assert redacted == "[TICKET_1], [TICKET_1] and [TICKET_2] of [EMAIL_1]"
    assert vault.counts() == {"email": 1, "ticket": 2}


def test_a_pattern_that_never_ends_is_stopped() -> None:
    with pytest.raises(InvalidRequest, match="took too long"):
        once("a" * 40 + "!", Rules.parse([r"evil=(a+)+$"]))


def test_a_text_too_long_for_patterns_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bound_search, "MOST_CHARACTERS", 10)
    with pytest.raises(InvalidRequest, match="more than 10"):
        once("a" * 11, Rules.parse(["a=b"]))


@pytest.mark.parametrize(
    "word", ["emails", "x=(", "x=", "X=a", "email=a", "x=" + "a" * 513, "x=a*", "1=a"]
)
def test_rules_that_are_none_are_refused(word: str) -> None:
    with pytest.raises(InvalidRequest, match="redact"):
        Rules.parse([word])


def test_rules_add_up() -> None:
    both = Rules.parse(["email"]) | Rules.parse(["card", "x=a", "x=a"])
    assert both == Rules(("email", "card"), (("x", "a"),))
    assert Rules.parse(["phone,email"]).kinds == ("email", "phone")
    assert not Rules.parse([])
