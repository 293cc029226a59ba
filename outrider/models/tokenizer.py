"""Text to ids and back, over the `tokenizers` library.

A model brings a tokenizer.json, or is a GGUF that holds tokens and merges; from
the latter a tokenizer.json is built here. Supported in a lone GGUF: tokenizer
model `gpt2` with the pre-tokenizers in `_PRE`, and `llama` (SentencePiece BPE,
byte fallback). For any other, lay the model's tokenizer.json beside the file.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Literal

import tokenizers

from outrider.errors import InvalidRequest, ModelCorrupt, ModelUnsupported
from outrider.models import vocabulary as vocabularies
from outrider.models.check.gguf import Gguf, check_gguf
from outrider.models.source import ModelFiles
from outrider.protocol.vocabulary import Vocabulary

Special = Literal["add", "keep", "plain"]
"""`add`: names of special tokens become those, and what the tokenizer puts around a text
(a begin token) is added: for prompts. `keep`: the first alone: for rendered chat templates.
`plain`: names of special tokens are text like any other."""


class Tokenizer:
    """One model's tokenizer. Raises ModelCorrupt when the bytes are none."""

    def __init__(self, data: bytes, vocabulary: Vocabulary) -> None:
        self._parsing = _built(data)
        self._plain = _built(data)
        self._plain.encode_special_tokens = True
        self.vocabulary = vocabulary
        self.source = data
        """The tokenizer.json, for a device that lacks it."""

    def encode(self, text: str, special: Special = "add") -> tuple[int, ...]:
        """Token ids of a text. Raises InvalidRequest for text that is no Unicode."""
        worker = self._plain if special == "plain" else self._parsing
        try:
            text.encode()
        except UnicodeEncodeError:
            raise InvalidRequest(
                "the text holds half of a surrogate pair",
                param="prompt",
                why="it can not be written as UTF-8",
                effect="the request was not started",
                todo="send valid Unicode",
            ) from None
        return tuple(worker.encode(text, add_special_tokens=special == "add").ids)

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The bytes of ids; special tokens and ids beyond the vocabulary give none."""
        size = len(self.vocabulary)
        return self.vocabulary.text(i for i in ids if 0 <= i < size)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids; bytes that are no UTF-8 become replacement characters."""
        return self.decode_bytes(ids).decode("utf-8", "replace")


class Utf8Stream:
    """Bytes in, whole characters out: a character split over tokens waits for its rest."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, data: bytes) -> str:
        """The text that is now certain; bytes that can never be UTF-8 become U+FFFD."""
        return self._decoder.decode(data)

    def flush(self) -> str:
        """The end: an unfinished character becomes U+FFFD. The stream can be used again."""
        return self._decoder.decode(b"", final=True)

    @property
    def pending(self) -> bytes:
        """Bytes of an unfinished character."""
        return self._decoder.getstate()[0]


def load(files: ModelFiles) -> Tokenizer:
    """A model's tokenizer. Raises NotFound, ModelCorrupt, ModelUnsupported.

    A tokenizer.json beside a GGUF is used only when it spells the GGUF's vocabulary.
    """
    vocabulary = vocabularies.load(files)
    return Tokenizer(source_of(files, vocabulary), vocabulary)


def source_of(files: ModelFiles, vocabulary: Vocabulary) -> bytes:
    """The bytes of the model's tokenizer.json, built from the GGUF where there is none."""
    if files.tokenizer_json is not None:
        data = vocabularies.read_limited(files.tokenizer_json)
        if files.kind != "gguf":
            return data
        beside = vocabularies.from_tokenizer_bytes(data, {})
        if beside.digest == vocabulary.digest:
            return data
    return from_gguf(files.path)


def _built(data: bytes) -> tokenizers.Tokenizer:
    if len(data) > vocabularies.MAX_TOKENIZER:
        raise _corrupt(f"it has {len(data)} bytes")
    try:
        found = tokenizers.Tokenizer.from_buffer(data)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException:  # noqa: BLE001  The library raises bare exceptions, and its panics are none.
        raise _corrupt("the tokenizers library can not read it") from None
    found.no_truncation()
    found.no_padding()
    return found


def _corrupt(why: str) -> ModelCorrupt:
    return ModelCorrupt(
        "tokenizer.json can not be used",
        why=why,
        effect="no text can be tokenised",
        todo="fetch the model's tokenizer.json again",
    )


# --- from a lone GGUF --------------------------------------------------------------------------

_GPT2 = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
_BYTES = _GPT2 | {"use_regex": False}
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{digits}"
    r"| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _split(digits: str) -> dict[str, object]:
    pattern = {"Regex": _WORDS.format(digits=digits)}
    split = {"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": False}
    return {"type": "Sequence", "pretokenizers": [split, _BYTES]}


_DIGITS = {
    "type": "Sequence",
    "pretokenizers": [{"type": "Digits", "individual_digits": True}, _GPT2],
}

_PRE: Mapping[str, Mapping[str, object]] = MappingProxyType(
    {
        **dict.fromkeys(("gpt-2", "gpt2", "phi-2", "mpt", "olmo", "jais"), _GPT2),
        **dict.fromkeys(("llama-bpe", "llama3", "llama-v3", "dbrx", "smaug-bpe"), _split("{1,3}")),
        **dict.fromkeys(("qwen2", "deepseek-r1-qwen"), _split("")),
        **dict.fromkeys(("smollm", "starcoder", "refact", "command-r", "codeshell"), _DIGITS),
    }
)
"""tokenizer.ggml.pre to a pre-tokenizer of the library."""
_WHOLE_FIRST = frozenset({"llama-bpe", "llama3", "llama-v3"})
"""Words that are tokens are taken whole, before any merge."""


def pre_name(root: Mapping[str, object]) -> str | None:
    """tokenizer.ggml.pre for a parsed tokenizer.json; None when it has no such name here."""
    found = root.get("pre_tokenizer")
    return next((name for name, known in _PRE.items() if _alike(known, found)), None)


def _alike(known: object, found: object) -> bool:
    """Equal, but for fields that do not change ids (`trim_offsets`)."""
    if isinstance(known, Mapping) and isinstance(found, Mapping):
        names = (set(known) | set(found)) - {"trim_offsets"}
        return all(_alike(known.get(name), found.get(name)) for name in names)
    if isinstance(known, list) and isinstance(found, list):
        return len(known) == len(found) and all(map(_alike, known, found))
    return known == found


def from_gguf(path: Path) -> bytes:
    """A tokenizer.json from a GGUF's metadata; the file is checked first."""
    header = check_gguf(path)
    if header.text("tokenizer.ggml.model") == "gpt2":
        root = _byte_level(path.name, header)
    elif header.text("tokenizer.ggml.model") == "llama":
        root = _sentencepiece(path.name, header)
    else:
        raise _no_way(path.name, f"its tokenizer is {header.text('tokenizer.ggml.model')!r}")
    return json.dumps(root, ensure_ascii=False).encode()


def _no_way(name: str, why: str) -> ModelUnsupported:
    return ModelUnsupported(
        f"no tokenizer can be built from {name}",
        why=why,
        effect="no text can be tokenised",
        todo="lay the model's tokenizer.json beside the file",
    )


def _byte_level(name: str, header: Gguf) -> dict[str, object]:
    pre = header.text("tokenizer.ggml.pre")
    if pre is None or pre not in _PRE:
        raise _no_way(name, f"its pre-tokenizer is {pre!r}")
    pieces, added = _tables(name, header)
    merges = [_merge(name, pair) for pair in header.strings("tokenizer.ggml.merges")]
    model = _bpe(pieces, merges) | {"ignore_merges": pre in _WHOLE_FIRST}
    return _root(header, model, added, _PRE[pre], normalizer=None, decoder=_GPT2)


def _merge(name: str, pair: bytes) -> tuple[str, str]:
    left, found, right = pair.decode("utf-8", "replace").partition(" ")
    if not (left and found and right):
        raise ModelCorrupt(f"{name} is corrupt", why="a merge is no pair of tokens")
    return left, right


def _bpe(pieces: dict[str, int], merges: list[tuple[str, str]]) -> dict[str, object]:
    """Merges of what is no token can never apply, and the library would refuse them."""
    known = [pair for pair in merges if {*pair, "".join(pair)} <= pieces.keys()]
    return {"type": "BPE", "vocab": pieces, "merges": known}


def _tables(name: str, header: Gguf) -> tuple[dict[str, int], list[dict[str, object]]]:
    """All tokens by text, and among them the added ones (control, unknown, user-defined).

    Added tokens stand in both: the library gives one that the model lacks a new id.
    """
    vocabulary = vocabularies.from_header(name, header)
    tokens = header.strings("tokenizer.ggml.tokens")
    pieces: dict[str, int] = {}
    added: list[dict[str, object]] = []
    user = vocabularies.user_defined(header)
    for number, spelled in enumerate(vocabulary.tokens):
        special = number in vocabulary.special
        if special and not spelled:
            continue
        text = tokens[number].decode("utf-8", "replace")
        pieces.setdefault(text, number)
        if special or number in user:
            added.append(_added(number, text, "yes" if special else "no"))
    return pieces, added


def _added(number: int, text: str, special: Literal["yes", "no"]) -> dict[str, object]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": number, "content": text, "special": special == "yes", **flags}


def _root(
    header: Gguf,
    model: Mapping[str, object],
    added: list[dict[str, object]],
    pre: Mapping[str, object] | None,
    *,
    normalizer: Mapping[str, object] | None,
    decoder: Mapping[str, object],
) -> dict[str, object]:
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": normalizer,
        "pre_tokenizer": pre,
        "post_processor": _around(header, added),
        "decoder": decoder,
        "model": model,
    }


def _around(header: Gguf, added: list[dict[str, object]]) -> dict[str, object] | None:
    """The begin token before a text, where the GGUF asks for it (SentencePiece does by default)."""
    wanted = header.metadata.get(
        "tokenizer.ggml.add_bos_token", header.text("tokenizer.ggml.model") == "llama"
    )
    number = header.number("tokenizer.ggml.bos_token_id")
    text = next((item["content"] for item in added if item["id"] == number), None)
    if wanted is not True or not isinstance(text, str):
        return None
    begin = {"SpecialToken": {"id": text, "type_id": 0}}
    sequence = [{"Sequence": {"id": name, "type_id": 0}} for name in ("A", "B")]
    return {
        "type": "TemplateProcessing",
        "single": [begin, sequence[0]],
        "pair": [begin, *sequence],
        "special_tokens": {text: {"id": text, "ids": [number], "tokens": [text]}},
    }


def _sentencepiece(name: str, header: Gguf) -> dict[str, object]:
    pieces, added = _tables(name, header)
    scores = header.numbers("tokenizer.ggml.scores")
    if scores is None or len(scores) < len(pieces):
        raise _no_way(name, "its SentencePiece tokens have no scores")
    own = {str(item["content"]) for item in added}
    plain = {text: i for text, i in pieces.items() if text not in own}
    merges = _merges(plain, {text: float(scores[i].item()) for text, i in plain.items()})
    unknown = next((item["content"] for item in added if item["content"] == "<unk>"), None)
    model = _bpe(pieces, merges)
    model |= {"byte_fallback": True, "fuse_unk": True, "unk_token": unknown}
    prefix = header.metadata.get("tokenizer.ggml.add_space_prefix", True) is True
    steps: list[dict[str, object]] = [{"type": "Prepend", "prepend": "\u2581"}] if prefix else []
    steps.append({"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"})
    decoder = {"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "}
    decoders = [decoder, {"type": "ByteFallback"}, {"type": "Fuse"}]
    return _root(
        header,
        model,
        added,
        None,
        normalizer={"type": "Sequence", "normalizers": steps},
        decoder={"type": "Sequence", "decoders": decoders},
    )


def _merges(pieces: Mapping[str, int], scores: Mapping[str, float]) -> list[tuple[str, str]]:
    """Merges that a SentencePiece vocabulary implies: every split of a piece into two pieces,
    the best-scored piece first (as transformers' SentencePieceExtractor)."""
    found = []
    for text, score in scores.items():
        for cut in range(1, len(text)):
            left, right = text[:cut], text[cut:]
            if left in pieces and right in pieces:
                found.append((-score, pieces[text], pieces[left], (left, right)))
    return [pair for *_, pair in sorted(found)]
