"""From a model's files to its `Vocabulary`: the bytes behind each id.

Two families are read. Byte-level BPE (GPT-2 and after) writes each byte as one
printable character. SentencePiece-like vocabularies (Llama 2, Gemma) write a
space as U+2581 and have byte tokens `<0xNN>`. GGUF and tokenizer.json of one
model give the same digest.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np

from outrider.errors import ModelCorrupt, ModelUnsupported, NotFound
from outrider.models.check.gguf import Gguf, check_gguf
from outrider.models.source import ModelFiles
from outrider.protocol.vocabulary import Vocabulary

MAX_TOKENIZER = 64 << 20
"""Bytes of a tokenizer.json; the largest known ones have about 35 MiB."""
MAX_TOKENS = 1 << 21

_SPACE = "\u2581"
_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_NORMAL, _UNKNOWN, _CONTROL, _USER, _UNUSED = 1, 2, 3, 4, 5

_ENDS = frozenset(
    {
        "</s>",
        "<EOT>",
        "<end_of_turn>",
        "<eos>",
        "<|end|>",
        "<|end_of_text|>",
        "<|endoftext|>",
        "<|eom_id|>",
        "<|eot_id|>",
        "<|im_end|>",
        "<\uff5cend\u2581of\u2581sentence\uff5c>",
    }
)
"""Special tokens that end an answer or a turn wherever they exist, as in llama.cpp."""

_CONTROL_NAMES = frozenset({"<pad>", "<mask>", "<2mass>", "[@BOS@]"})


def load(files: ModelFiles) -> Vocabulary:
    """The vocabulary of a model: of a GGUF its own, else that of its tokenizer.json.

    Raises NotFound, ModelCorrupt, ModelUnsupported.
    """
    if files.kind == "gguf":
        return from_gguf(files.path)
    if files.tokenizer_json is None:
        raise NotFound(
            f"{files.name} has no tokenizer.json",
            param="model",
            why=f"none lies in {files.folder}",
            effect="no model was loaded",
            todo="copy the model's tokenizer.json beside its weights",
        )
    return from_tokenizer_json(files.tokenizer_json, settings(files))


def ids_of(files: ModelFiles, rows: int) -> tuple[str, int]:
    """Digest and number of the ids that can be chosen; `rows`: of the model's embedding.

    A model without a tokenizer has its rows' numbers. Raises ModelCorrupt, ModelUnsupported.
    """
    if files.tokenizer_json is None and files.kind != "gguf":
        note = f"no tokenizer, {rows} ids"
        return hashlib.sha256(note.encode()).hexdigest(), rows
    found = load(files)
    if len(found) > rows:
        raise ModelCorrupt(
            f"the tokenizer has {len(found)} ids, the model {rows}",
            effect="the model was not loaded",
        )
    return found.digest, len(found)


def settings(files: ModelFiles) -> dict[str, object]:
    """config.json with generation_config.json over it; empty where neither exists."""
    merged: dict[str, object] = {}
    for path in (files.config, files.sibling("generation_config.json")):
        if path is not None:
            merged |= _object(read_limited(path), path.name)
    return merged


def from_tokenizer_json(path: Path, config: Mapping[str, object]) -> Vocabulary:
    """`config` gives `bos_token_id` and `eos_token_id` (a number or a list)."""
    return from_tokenizer_bytes(read_limited(path), config)


def read_limited(path: Path) -> bytes:
    """A file's bytes, unless it is larger than any tokenizer.json should be."""
    size = path.stat().st_size
    if size > MAX_TOKENIZER:
        raise _corrupt(path.name, f"it has {size} bytes, at most {MAX_TOKENIZER} are read")
    return path.read_bytes()


def from_tokenizer_bytes(data: bytes, config: Mapping[str, object]) -> Vocabulary:
    """The same from the bytes of a tokenizer.json."""
    root = _object(data, "tokenizer.json")
    spell = _byte_level if is_byte_level(root) else _sentencepiece
    table: dict[int, bytes] = {}
    special: set[int] = set()
    for text, number, kind in entries(root):
        special.discard(number)
        if kind == "special":
            special.add(number)
            table[number] = text.encode()
        else:
            spelled = spell(text) if kind == "plain" else text.replace(_SPACE, " ").encode()
            table[number] = spelled
    return _vocabulary("tokenizer.json", table, special, config)


EntryKind = Literal["plain", "added", "special"]


def entries(root: Mapping[str, object]) -> Iterator[tuple[str, int, EntryKind]]:
    """(text, id, kind) of a parsed tokenizer.json: the model's own, then the added ones."""
    model, added = root.get("model"), root.get("added_tokens") or []
    if not isinstance(model, dict) or not isinstance(added, list):
        raise _corrupt("tokenizer.json", "it has no model, or its added_tokens are no list")
    for text, number in _pieces(model):
        yield text, number, "plain"
    for item in added:
        yield _added(item)


def _vocabulary(
    name: str, table: dict[int, bytes], special: set[int], config: Mapping[str, object]
) -> Vocabulary:
    size = max(table, default=-1) + 1
    if not 0 < size <= MAX_TOKENS or min(table) < 0:
        raise _corrupt(name, f"its ids run from {min(table, default=0)} to {size - 1}")
    holes = set(range(size)) - set(table)
    tokens = tuple(table.get(number, b"") for number in range(size))
    return _finished(
        tokens, special | holes, _ids(config.get("bos_token_id")), declared_ends(config)
    )


def declared_ends(config: Mapping[str, object]) -> tuple[int, ...]:
    """End ids as the model's configuration lists them."""
    return _ids(config.get("eos_token_id"))


def _ids(found: object) -> tuple[int, ...]:
    """A number, a list of numbers, or nothing."""
    items = found if isinstance(found, list) else [found]
    return tuple(item for item in items if type(item) is int)


def _finished(
    tokens: tuple[bytes, ...], special: Iterable[int], bos: tuple[int, ...], ends: tuple[int, ...]
) -> Vocabulary:
    marked = frozenset(special)
    named = {number for number in marked if tokens[number].decode("utf-8", "replace") in _ENDS}
    known = {number for number in ends if 0 <= number < len(tokens)} | named
    start = bos[0] if bos and 0 <= bos[0] < len(tokens) else None
    return Vocabulary(tokens, special=marked, bos=start, end=tuple(sorted(known)))


def _object(data: bytes, name: str) -> dict[str, object]:
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        raise _corrupt(name, "it is not JSON") from None
    if not isinstance(found, dict):
        raise _corrupt(name, "it is not a JSON object")
    return found


def _corrupt(name: str, why: str) -> ModelCorrupt:
    return ModelCorrupt(
        f"{name} is corrupt",
        why=why,
        effect="the vocabulary was not read",
        todo="fetch the model's files again",
    )


def _pieces(model: Mapping[str, object]) -> Iterable[tuple[str, int]]:
    """(text, id) of the model proper: a map for BPE, a list of (text, score) for Unigram."""
    vocab = model.get("vocab")
    if isinstance(vocab, dict) and all(type(number) is int for number in vocab.values()):
        return vocab.items()
    if isinstance(vocab, list) and all(_is_scored(item) for item in vocab):
        return [(item[0], number) for number, item in enumerate(vocab)]
    raise _corrupt("tokenizer.json", "its vocab is neither a map to ids nor a list of pairs")


def _is_scored(item: object) -> bool:
    return isinstance(item, list) and bool(item) and isinstance(item[0], str)


def _added(item: object) -> tuple[str, int, EntryKind]:
    fields = item if isinstance(item, dict) else {}
    number, text = fields.get("id"), fields.get("content")
    if type(number) is not int or not isinstance(text, str):
        raise _corrupt("tokenizer.json", "an added token has no id or no content")
    special = fields.get("special") is True or looks_special(text)
    return text, number, "special" if special else "added"


def looks_special(text: str) -> bool:
    """Control tokens that some tokenizers forget to mark; converters to GGUF mark them so too."""
    return (
        text in _CONTROL_NAMES
        or (text.startswith("<|") and text.endswith("|>"))
        or (text.startswith("<\uff5c") and text.endswith("\uff5c>"))
        or (text.startswith("<unused") and text.endswith(">"))
    )


# --- spelling ----------------------------------------------------------------------------------


def is_byte_level(root: Mapping[str, object]) -> bool:
    """Whether tokens are written in GPT-2's alphabet of bytes, else as SentencePiece does.

    Raises ModelUnsupported for tokenizers whose tokens spell no bytes (WordPiece).
    """
    model = root.get("model")
    kind = model.get("type") or "BPE" if isinstance(model, dict) else None
    if kind not in ("BPE", "Unigram"):
        raise ModelUnsupported(
            f"a {kind} tokenizer can not be used",
            why="its tokens do not spell bytes",
            effect="the vocabulary was not read",
            todo="use a model with a BPE or Unigram tokenizer",
        )
    return '"ByteLevel"' in json.dumps([root.get("pre_tokenizer"), root.get("decoder")])


def _byte_level(text: str) -> bytes:
    """Each character is a byte; a token outside that alphabet spells itself."""
    table = alphabet()
    try:
        return bytes(table[character] for character in text)
    except KeyError:
        return text.encode()


def _sentencepiece(text: str) -> bytes:
    found = _BYTE.fullmatch(text)
    return bytes([int(found[1], 16)]) if found else text.replace(_SPACE, " ").encode()


@lru_cache(maxsize=1)
def alphabet() -> Mapping[str, int]:
    """GPT-2's character for each byte: printable Latin-1 is itself, the rest from U+0100 on."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    pairs = {chr(byte): byte for byte in printable}
    return pairs | {chr(256 + i): byte for i, byte in enumerate(others)}


# --- GGUF --------------------------------------------------------------------------------------


def from_gguf(path: Path) -> Vocabulary:
    """The vocabulary in a GGUF's metadata; the file is checked first."""
    return from_header(path.name, check_gguf(path))


def from_header(name: str, header: Gguf) -> Vocabulary:
    """The same from a checked header."""
    tokens = header.strings("tokenizer.ggml.tokens")
    kinds = _kinds(name, header, len(tokens))
    padding = [_is_padding(*row) for row in zip(tokens, kinds, range(len(tokens)), strict=True)]
    size = max((number + 1 for number, pad in enumerate(padding) if not pad), default=0)
    if not 0 < size <= MAX_TOKENS:
        raise _corrupt(name, "it holds no vocabulary, or one that is too large")
    spell = gguf_speller(name, header)
    special = {i for i in range(size) if padding[i] or kinds[i] in (_CONTROL, _UNKNOWN)}
    table = tuple(
        b"" if padding[i] else tokens[i] if i in special else spell(tokens[i], kinds[i])
        for i in range(size)
    )
    return _finished(table, special, _key(header, "bos"), _gguf_ends(header))


def user_defined(header: Gguf) -> frozenset[int]:
    """Ids of added tokens that are text."""
    found = header.numbers("tokenizer.ggml.token_type")
    return frozenset() if found is None else frozenset(np.flatnonzero(found == _USER).tolist())


def _kinds(name: str, header: Gguf, count: int) -> list[int]:
    found = header.numbers("tokenizer.ggml.token_type")
    if found is None:
        return [_NORMAL] * count
    if len(found) != count:
        raise _corrupt(name, "it has another number of tokens than of token types")
    return [int(kind) for kind in found]


def _is_padding(token: bytes, kind: int, number: int) -> bool:
    return kind == _UNUSED and token == f"[PAD{number}]".encode()


def gguf_speller(name: str, header: Gguf) -> Callable[[bytes, int], bytes]:
    """(token, type) to the bytes it stands for, by the GGUF's tokenizer model."""
    kind = header.text("tokenizer.ggml.model")
    if kind not in ("gpt2", "llama"):
        raise ModelUnsupported(
            f"{name} has a tokenizer of model {kind!r}",
            why="gpt2 (byte-level BPE) and llama (SentencePiece) are read",
            effect="the vocabulary was not read",
            todo="use a model with one of those",
        )
    spell = _byte_level if kind == "gpt2" else _sentencepiece

    def spelled(token: bytes, kind: int) -> bytes:
        if kind == _USER:
            return token.replace(_SPACE.encode(), b" ")
        try:
            return spell(token.decode("utf-8"))
        except UnicodeDecodeError:
            return token

    return spelled


def _key(header: Gguf, name: str) -> tuple[int, ...]:
    found = header.number(f"tokenizer.ggml.{name}_token_id")
    return () if found is None else (found,)


def _gguf_ends(header: Gguf) -> tuple[int, ...]:
    return (*_key(header, "eos"), *_key(header, "eot"), *_key(header, "eom"))
