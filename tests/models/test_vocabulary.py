"""Bytes behind ids, special ids and ends, from both kinds of files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outrider.errors import ModelCorrupt, ModelError, ModelUnsupported, NotFound
from outrider.models import vocabulary
from outrider.models.source import resolve
from outrider.models.vocabulary import from_gguf, from_tokenizer_bytes

BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}


def spelled(root: dict[str, Any], config: dict[str, object] | None = None) -> Any:
    return from_tokenizer_bytes(json.dumps(root).encode(), config or {})


def byte_level(**vocab: int) -> dict[str, Any]:
    return {"model": {"type": "BPE", "vocab": vocab, "merges": []}, "decoder": BYTE_LEVEL}


def added(number: int, text: str, **more: object) -> dict[str, object]:
    return {"id": number, "content": text, "special": False, **more}


def test_the_bundled_vocabulary() -> None:
    found = vocabulary.load(resolve("bundled:target"))
    assert len(found) == 4096 and found.end == (0,) and found.special == {0}
    assert set(found.tokens) >= {bytes([i]) for i in range(256)}
    assert found.digest == vocabulary.load(resolve("bundled:draft")).digest


def test_byte_level_tokens() -> None:
    root = byte_level(**{"a": 0, "\u0120b": 1, "\u010a": 2, "\u00e2\u0124\u00ac": 3, "\u65e5": 4})
    root["added_tokens"] = [added(5, "<think>"), added(6, "<s>", special=True)]
    found = spelled(root, {"eos_token_id": [6], "bos_token_id": 6})
    assert found.tokens[:4] == (b"a", b" b", b"\n", "\u20ac".encode())
    assert found.tokens[4:] == ("\u65e5".encode(), b"<think>", b"<s>")
    assert found.special == {6} and found.end == (6,) and found.bos == 6


def test_sentencepiece_tokens() -> None:
    model = {
        "type": "BPE",
        "byte_fallback": True,
        "vocab": {"<unk>": 0, "<0x0A>": 1, "\u2581the": 2, "<0xFF>": 3},
    }
    unknown = added(0, "<unk>", special=True)
    root = {"model": model, "added_tokens": [unknown, added(4, "\u2581\u2581")]}
    found = spelled(root)
    assert found.tokens == (b"<unk>", b"\n", b" the", b"\xff", b"  ")
    assert found.special == {0}


def test_unigram_tokens() -> None:
    model = {"type": "Unigram", "vocab": [["<unk>", 0], ["\u2581a", -1.5]]}
    assert spelled({"model": model}).tokens == (b"<unk>", b" a")


def test_names_that_look_special_are() -> None:
    root = byte_level(a=0)
    root["added_tokens"] = [added(1, "<|fim|>"), added(2, "<think>"), added(3, "<|im_end|>")]
    found = spelled(root)
    assert found.special == {1, 3}
    assert found.end == (3,)


def test_holes_are_special_and_empty() -> None:
    found = spelled(byte_level(a=0, b=3))
    assert found.tokens == (b"a", b"", b"", b"b") and found.special == {1, 2}


def test_ends_beyond_the_vocabulary_are_dropped() -> None:
    assert spelled(byte_level(a=0, b=1), {"eos_token_id": [1, 99, "x", True]}).end == (1,)


def test_generation_settings_win(tmp_path: Path) -> None:
    source = resolve("bundled:draft")
    for path in (*source.weights, source.config, source.tokenizer_json):
        assert path is not None
        (tmp_path / path.name).symlink_to(path)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [0, 7]}')
    assert vocabulary.load(resolve(str(tmp_path))).end == (0, 7)
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(NotFound, match=r"tokenizer\.json"):
        vocabulary.load(resolve(str(tmp_path)))


def test_gguf_tokens(tmp_path: Path, gguf_data: bytes) -> None:
    path = tmp_path / "a.gguf"
    path.write_bytes(gguf_data)
    found = from_gguf(path)
    assert found.tokens == (b"a", b" b", b"<|end|>")
    assert found.special == {2} and found.end == (2,)
    path.write_bytes(gguf_data.replace(b"gpt2", b"bert"))
    with pytest.raises(ModelUnsupported):
        from_gguf(path)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"{}",
        b"[" * 100_000,
        b'{"model": {"vocab": 5}}',
        b'{"model": {"vocab": {}}}',
        b'{"model": {"vocab": {"a": -1}}}',
        b'{"model": {"vocab": {"a": 99999999999}}}',
        b'{"model": {"vocab": {"a": 1.5}}}',
        b'{"model": {"vocab": [["a"], 5]}}',
        b'{"model": {"vocab": {"a": 0}}, "added_tokens": [5]}',
        b'{"model": {"vocab": {"a": 0}}, "added_tokens": 5}',
        b'{"model": {"vocab": {"a": 0}}, "added_tokens": [{"id": 1}]}',
    ],
)
def test_bad_tokenizer_files(data: bytes) -> None:
    with pytest.raises(ModelError):
        from_tokenizer_bytes(data, {})


def test_tokenizers_without_bytes_are_refused() -> None:
    with pytest.raises(ModelUnsupported):
        spelled({"model": {"type": "WordPiece", "vocab": {"a": 0}}})


def test_huge_files_are_not_read(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    with path.open("wb") as stream:
        stream.truncate(vocabulary.MAX_TOKENIZER + 1)
    with pytest.raises(ModelCorrupt):
        vocabulary.from_tokenizer_json(path, {})


LEAVES = st.none() | st.integers() | st.text(max_size=5) | st.booleans()
VALUES = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["model", "vocab", "type", "added_tokens", "id", "content", "a"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(VALUES)
def test_any_json_gives_a_vocabulary_or_a_typed_error(value: Any) -> None:
    try:
        spelled(value)
    except ModelError:
        return
