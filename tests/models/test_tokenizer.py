"""Text to ids and back; tokenizers rebuilt from a lone GGUF agree with llama.cpp's own."""

from __future__ import annotations

import ctypes
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st

from outrider.errors import InvalidRequest, ModelCorrupt, ModelUnsupported
from outrider.models import tokenizer, vocabulary
from outrider.models.source import resolve
from outrider.models.tokenizer import Tokenizer, Utf8Stream

TEXTS = (
    "def f(x):\n    return x + 1\n",
    "hello  world, it's 12345.67 o'clock\t\n\n  !",
    "\u00e9t\u00e9 \u65e5\u672c\u8a9e \U0001f600\u200d\U0001f680 na\u00efve",
    "",
    " ",
    "\x00\x01",
)


@pytest.fixture(scope="module")
def bundled() -> Tokenizer:
    return tokenizer.load(resolve("bundled:target"))


def test_text_comes_back(bundled: Tokenizer) -> None:
    for text in TEXTS:
        assert bundled.decode(bundled.encode(text)) == text
        assert bundled.decode_bytes(bundled.encode(text)) == text.encode()


@given(st.text(max_size=40))
def test_any_text_comes_back(text: str) -> None:
    assert _once().decode(_once().encode(text, "plain")) == text


def _once(known: list[Tokenizer] = []) -> Tokenizer:  # noqa: B006  A cache.
    if not known:
        known.append(tokenizer.load(resolve("bundled:target")))
    return known[0]


def test_names_of_special_tokens(bundled: Tokenizer) -> None:
    assert bundled.encode("<|endoftext|>") == (0,)
    assert bundled.encode("<|endoftext|>", "keep") == (0,)
    plain = bundled.encode("<|endoftext|>", "plain")
    assert 0 not in plain and bundled.decode(plain) == "<|endoftext|>"
    assert bundled.decode((0, *plain, 0)) == "<|endoftext|>"


def test_half_a_surrogate_is_refused(bundled: Tokenizer) -> None:
    with pytest.raises(InvalidRequest):
        bundled.encode("a\ud800b")


def test_ids_beyond_the_vocabulary_give_nothing(bundled: Tokenizer) -> None:
    assert bundled.decode((10**6, -1)) == ""


@pytest.mark.parametrize("data", [b"", b"{}", b"[]", b"\xff", b'{"model": {"type": "BPE"}}'])
def test_bad_tokenizers(bundled: Tokenizer, data: bytes) -> None:
    with pytest.raises(ModelCorrupt):
        Tokenizer(data, bundled.vocabulary)


def test_a_tokenizer_that_would_truncate_does_not(bundled: Tokenizer) -> None:
    root = json.loads(bundled.source)
    cut = {"max_length": 3, "stride": 0, "strategy": "LongestFirst", "direction": "Right"}
    root["truncation"] = cut
    found = Tokenizer(json.dumps(root).encode(), bundled.vocabulary)
    assert len(found.encode("a b c d e f g h")) > 3


# --- UTF-8 -------------------------------------------------------------------------------------


@given(st.text(), st.lists(st.integers(1, 5)))
def test_a_stream_never_breaks_a_character(text: str, sizes: list[int]) -> None:
    data, stream, parts, at = text.encode("utf-8", "replace"), Utf8Stream(), [], 0
    for size in [*sizes, len(data)]:
        part = stream.feed(data[at : at + size])
        assert "\ufffd" not in part or "\ufffd" in data.decode()
        parts.append(part)
        at += size
    assert "".join(parts) + stream.flush() == data.decode()


@given(st.lists(st.binary(max_size=6)))
def test_a_stream_says_what_decoding_the_whole_says(parts: list[bytes]) -> None:
    stream = Utf8Stream()
    text = "".join([stream.feed(part) for part in parts]) + stream.flush()
    assert text == b"".join(parts).decode("utf-8", "replace")


def test_an_unfinished_character_waits() -> None:
    stream = Utf8Stream()
    assert stream.feed("\u20ac".encode()[:2]) == ""
    assert stream.pending == "\u20ac".encode()[:2]
    assert stream.flush() == "\ufffd"
    assert stream.feed(b"a") == "a"


# --- from a lone GGUF --------------------------------------------------------------------------


def trained(kind: str) -> tokenizers.Tokenizer:
    """A small tokenizer trained here, byte-level or SentencePiece-like."""
    from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

    if kind == "pieces":
        found = tokenizers.Tokenizer(
            models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True)
        )
        found.normalizer = normalizers.Sequence(
            [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
        )
        found.decoder = decoders.Sequence(
            [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
        )
        special = ["<unk>", "<s>", "</s>", *[f"<0x{i:02X}>" for i in range(256)]]
    else:
        found = tokenizers.Tokenizer(models.BPE())
        pre = json.dumps({"pre_tokenizer": tokenizer._PRE[kind]})
        found.decoder = decoders.ByteLevel()
        root = json.loads(found.to_str()) | json.loads(pre)
        found = tokenizers.Tokenizer.from_str(json.dumps(root))
        special = ["<|endoftext|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        special_tokens=special,
        show_progress=False,
        initial_alphabet=[] if kind == "pieces" else pre_tokenizers.ByteLevel.alphabet(),
    )
    corpus = [Path(tokenizer.__file__).read_text(), *TEXTS[:3]]
    if kind == "pieces":
        corpus = [word for text in corpus for word in text.split(" ")]
    found.train_from_iterator(corpus, trainer)
    root = json.loads(found.to_str())
    if kind == "pieces":
        root["added_tokens"] = root["added_tokens"][:3]
    return tokenizers.Tokenizer.from_str(json.dumps(root))


def as_gguf(found: tokenizers.Tokenizer, path: Path) -> Path:
    """Its vocabulary in a GGUF without tensors, by the code that writes whole models."""
    gguf = pytest.importorskip("gguf", reason="the llama extra is not installed")
    from outrider.models.gguf import _table

    table = _table(found.to_str().encode(), found.get_vocab_size())
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tokenizer_model(table.model)
    if table.pre is not None:
        writer.add_tokenizer_pre(table.pre)
    writer.add_token_list(table.tokens)
    writer.add_token_types(table.types)
    if table.scores is not None:
        writer.add_token_scores(table.scores)
    if table.merges is not None:
        writer.add_token_merges(table.merges)
    writer.add_add_bos_token(False)
    writer.add_add_space_prefix(table.prefixed)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("kind", ["gpt-2", "llama-bpe", "qwen2", "smollm", "pieces"])
def test_a_rebuilt_tokenizer_agrees(tmp_path: Path, kind: str) -> None:
    original = trained(kind)
    path = as_gguf(original, tmp_path / "a.gguf")
    words = vocabulary.from_gguf(path)
    assert words.digest == vocabulary.from_tokenizer_bytes(original.to_str().encode(), {}).digest
    rebuilt = Tokenizer(tokenizer.from_gguf(path), words)
    theirs = llama_tokenizer(path)
    for text in (*TEXTS, Path(__file__).read_text()):
        ids = tuple(original.encode(text, add_special_tokens=False).ids)
        assert rebuilt.encode(text) == ids
        if text:
            assert theirs(text) == ids


def llama_tokenizer(path: Path) -> Callable[[str], tuple[int, ...]]:
    """llama.cpp's own, on the vocabulary alone."""
    pytest.importorskip("llama_cpp", reason="the llama extra is not installed")
    from outrider.engines.llama import library

    library.start()
    lib = library.lib
    params = lib.llama_model_default_params()
    params.vocab_only = True
    model = lib.llama_model_load_from_file(str(path).encode(), params)
    assert model

    def tokenise(text: str) -> tuple[int, ...]:
        data = text.encode()
        room = (ctypes.c_int32 * (len(data) + 8))()
        words = lib.llama_model_get_vocab(model)
        count = lib.llama_tokenize(words, data, len(data), room, len(room), False, True)
        return tuple(room[:count])

    return tokenise


def test_unknown_pre_tokenizers_are_refused(tmp_path: Path, gguf_data: bytes) -> None:
    path = tmp_path / "a.gguf"
    path.write_bytes(gguf_data)
    with pytest.raises(ModelUnsupported, match="pre-tokenizer|tokenizer"):
        tokenizer.from_gguf(path)


def test_a_tokenizer_json_of_another_model_is_not_used(tmp_path: Path) -> None:
    path = as_gguf(trained("gpt-2"), tmp_path / "a.gguf")
    beside = resolve("bundled:target").tokenizer_json
    assert beside is not None
    (tmp_path / "tokenizer.json").write_bytes(beside.read_bytes())
    found = tokenizer.load(resolve(str(path)))
    assert found.source != beside.read_bytes()
    assert max(found.encode("hello")) < 700
