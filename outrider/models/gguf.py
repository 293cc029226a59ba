"""From config.json, safetensors and tokenizer.json to one GGUF file, kept in the cache.

Written: F32, F16 and Q8_0 (blocks of 32 with one F16 scale; vectors stay F32), for
Llama and Mistral (architecture `llama`, rows of q and k reordered to llama.cpp's
rotation of neighbours), Qwen2 and Qwen3. The name of a cached file holds the digest
of its source, so an old one is never taken for a new one.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import gguf
import numpy as np
from numpy.typing import NDArray

from outrider.errors import ModelCorrupt, ModelUnsupported, NotFound
from outrider.models import tokenizer, vocabulary
from outrider.models.check import check_gguf, check_safetensors
from outrider.models.config import ModelConfig, inverse_frequencies, load_config
from outrider.models.source import ModelFiles, cache_dir, file_digest, resolve, write_atomically
from outrider.models.weights import Weights, expected

Quant = Literal["f32", "f16", "q8_0"]
QUANTS: tuple[Quant, ...] = ("f32", "f16", "q8_0")

FORMAT = 1
"""Changes whenever the same source would give other bytes."""

_TYPES = {
    "f32": gguf.GGMLQuantizationType.F32,
    "f16": gguf.GGMLQuantizationType.F16,
    "q8_0": gguf.GGMLQuantizationType.Q8_0,
}
_FILE_TYPES = {
    "f32": gguf.LlamaFileType.ALL_F32,
    "f16": gguf.LlamaFileType.MOSTLY_F16,
    "q8_0": gguf.LlamaFileType.MOSTLY_Q8_0,
}
_ARCHITECTURES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}

_OUTER = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
}
_INNER = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_LAYER = re.compile(r"model\.layers\.(\d{1,5})\.(.+)")

Array = NDArray[Any]


def cached(files: ModelFiles, quant: Quant) -> ModelFiles:
    """The GGUF of a safetensors model, made at first use and verified at each later one.

    Raises ModelUnsupported, ModelCorrupt, NotFound (no tokenizer.json), OSError
    (no room for the file).
    """
    path = cache_dir() / "gguf" / f"{_stem(files.name)}-{quant}-{source_digest(files, quant)}.gguf"
    note = path.with_suffix(".sha256")
    if not _matches(path, note):
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        note.unlink(missing_ok=True)
        draft = path.with_name(f"{path.name}.{os.getpid()}.part")
        try:
            write(files, quant, draft)
            draft.replace(path)
        finally:
            draft.unlink(missing_ok=True)
        write_atomically(note, file_digest(path).encode("ascii"))
    return resolve(str(path))


def _stem(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.")[:60] or "model"


def _matches(path: Path, note: Path) -> bool:
    try:
        return path.is_file() and note.read_text(encoding="ascii") == file_digest(path)
    except (OSError, ValueError):
        return False


def source_digest(files: ModelFiles, quant: Quant) -> str:
    """24 hex digits of SHA-256 over source, tokenizer, precision and format."""
    pinned = _tokenizer_json(files)
    parts = ("outrider gguf", FORMAT, quant, files.digest, file_digest(pinned))
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:24]


def _tokenizer_json(files: ModelFiles) -> Path:
    if files.tokenizer_json is None:
        raise NotFound(
            f"{files.name} has no tokenizer.json",
            param="model",
            why="a GGUF file holds the vocabulary, and there is none to put in",
            effect="no GGUF was made",
            todo="copy the model's tokenizer.json beside its weights",
        )
    return files.tokenizer_json


def write(files: ModelFiles, quant: Quant, path: Path) -> None:
    """Write the GGUF of a safetensors model; tensors pass through memory one by one."""
    if files.kind != "safetensors" or files.config is None:
        raise ModelUnsupported(
            f"{files.name} is {files.kind}, not safetensors",
            effect="no GGUF was made",
            todo="name a folder with config.json and safetensors",
        )
    config = load_config(files.config)
    _refuse(config)
    sources = list(_sources(files, config))
    writer = gguf.GGUFWriter(path, _ARCHITECTURES[config.family])
    _put_shape(writer, files.name, config, quant)
    _put_vocabulary(writer, files, config)
    for source in sources:
        _announce(writer, source, quant)
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for source in sources:
            writer.write_tensor_data(_encoded(source, quant))
    finally:
        writer.close()
    check_gguf(path)


def _refuse(config: ModelConfig) -> None:
    """What llama.cpp's graph of the family does not compute."""
    what = ""
    if config.family == "qwen3" and config.qkv_bias:
        what = "Qwen3 with attention biases"
    if config.family in ("qwen2", "qwen3") and config.rope_scaling and not _linear(config):
        what = f"{config.family} with llama3 rotary scaling"
    if config.rope_order:
        what = "a model with permuted rotary pairs"
    if what:
        raise ModelUnsupported(
            f"{what} has no GGUF form",
            effect="no GGUF was made",
            todo="serve the model with the torch engine",
        )


def _linear(config: ModelConfig) -> bool:
    return config.rope_scaling is not None and config.rope_scaling.kind == "linear"


# --- metadata ----------------------------------------------------------------------------------


def _put_shape(writer: gguf.GGUFWriter, name: str, config: ModelConfig, quant: Quant) -> None:
    writer.add_name(name)
    writer.add_file_type(_FILE_TYPES[quant])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_context_length(_context(config))
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.heads)
    writer.add_head_count_kv(config.kv_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_layer_norm_rms_eps(config.norm_eps)
    writer.add_vocab_size(config.vocab_size)
    if config.rope_scaling is not None and _linear(config):
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(config.rope_scaling.factor)


def _context(config: ModelConfig) -> int:
    """Sliding windows are not computed, so the context ends where they would begin to matter."""
    return min([config.context, *(window for window in config.windows if window is not None)])


def _put_vocabulary(writer: gguf.GGUFWriter, files: ModelFiles, config: ModelConfig) -> None:
    data = vocabulary.read_limited(_tokenizer_json(files))
    table = _table(data, config.vocab_size)
    writer.add_tokenizer_model(table.model)
    if table.pre is not None:
        writer.add_tokenizer_pre(table.pre)
    writer.add_token_list(table.tokens)
    writer.add_token_types(table.types)
    if table.scores is not None:
        writer.add_token_scores(table.scores)
        writer.add_add_space_prefix(table.prefixed)
    if table.merges is not None:
        writer.add_token_merges(table.merges)
    found = vocabulary.load(files)
    writer.add_add_bos_token(table.begins == found.bos and found.bos is not None)
    if found.bos is not None:
        writer.add_bos_token_id(found.bos)
    ends = vocabulary.declared_ends(vocabulary.settings(files))
    for put, end in zip(
        (writer.add_eos_token_id, writer.add_eot_token_id, writer.add_eom_token_id),
        ends,
        strict=False,
    ):
        put(end)


@dataclass(frozen=True, slots=True)
class _Table:
    """A tokenizer in GGUF's terms."""

    model: str
    pre: str | None
    tokens: list[str]
    types: list[int]
    merges: list[str] | None
    scores: list[float] | None
    prefixed: bool
    begins: int | None
    """The id put before a text."""


_NORMAL, _UNKNOWN, _CONTROL, _USER, _UNUSED, _BYTE = 1, 2, 3, 4, 5, 6


def _table(data: bytes, size: int) -> _Table:
    root: dict[str, Any] = json.loads(data)
    byte_level = vocabulary.is_byte_level(root)
    tokens, types = [f"[PAD{i}]" for i in range(size)], [_UNUSED] * size
    for text, number, kind in vocabulary.entries(root):
        if not 0 <= number < size:
            raise ModelCorrupt(
                f"the tokenizer has id {number}, the model {size} rows",
                effect="no GGUF was made",
                todo="use the tokenizer.json that belongs to the model",
            )
        tokens[number] = text
        types[number] = _type(text, kind, "bytes" if byte_level else "pieces")
    merges = _merges(root)
    return _Table(
        model="gpt2" if byte_level else "llama",
        pre=tokenizer.pre_name(root) if byte_level else None,
        tokens=tokens,
        types=types,
        merges=[" ".join(pair) for pair in merges] if byte_level else None,
        scores=None if byte_level else _scores(tokens, merges),
        prefixed='"Prepend"' in json.dumps(root.get("normalizer")),
        begins=_begins(root),
    )


def _type(text: str, kind: vocabulary.EntryKind, style: Literal["bytes", "pieces"]) -> int:
    if kind == "special":
        return _UNKNOWN if text == "<unk>" else _CONTROL
    if kind == "added":
        return _USER
    if style == "pieces" and re.fullmatch(r"<0x[0-9A-Fa-f]{2}>", text):
        return _BYTE
    return _NORMAL


def _merges(root: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Pairs, however the file writes them."""
    found = root["model"].get("merges")
    if not isinstance(found, list):
        raise ModelUnsupported(
            "the tokenizer has no merges",
            why="only BPE tokenizers can be written to GGUF",
            effect="no GGUF was made",
        )
    pairs = [tuple(m.split(" ")) if isinstance(m, str) else tuple(m) for m in found]
    if not all(len(pair) == 2 for pair in pairs):
        raise ModelCorrupt("a merge in tokenizer.json is no pair", effect="no GGUF was made")
    return [(str(left), str(right)) for left, right in pairs]


def _scores(tokens: list[str], merges: list[tuple[str, str]]) -> list[float]:
    """The earlier a merge, the better its piece; what no merge makes comes last."""
    rank: dict[str, int] = {}
    for i, (left, right) in enumerate(merges):
        rank.setdefault(left + right, i)
    return [-float(rank.get(token, len(merges))) for token in tokens]


def _begins(root: Mapping[str, Any]) -> int | None:
    """The first special id of the post-processor's single template."""
    text = json.dumps(root.get("post_processor"))
    ids = re.search(r'"single": \[\{"SpecialToken": \{"id": ("(?:[^"\\]|\\.)*")', text)
    if ids is None:
        return None
    name = json.loads(ids[1])
    return next((n for t, n, k in vocabulary.entries(root) if t == name and k == "special"), None)


# --- tensors -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Source:
    """Where one tensor's numbers are, and under which name they go."""

    name: str
    path: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    heads: int | None = None
    """Reorder the rows of this many heads."""
    values: Array | None = None
    """Instead of a file."""

    def array(self) -> Array:
        """float32, in Hugging Face's order of axes."""
        values = self.values if self.values is not None else self._read()
        return values if self.heads is None else rotated(values, self.heads)

    def _read(self) -> Array:
        form = {"F32": "<f4", "F16": "<f2", "BF16": "<u2"}[self.dtype]
        raw = np.memmap(self.path, form, "r", self.start, self.shape)
        if self.dtype == "BF16":
            return (raw.astype(np.uint32) << 16).view(np.float32)
        return raw.astype(np.float32)


def rotated(values: Array, heads: int) -> Array:
    """Rows of each head from halves (Hugging Face) to neighbours (llama.cpp's `llama`)."""
    half = values.shape[0] // heads // 2
    split = values.reshape(heads, 2, half, *values.shape[1:])
    return split.swapaxes(1, 2).reshape(values.shape)


def _sources(files: ModelFiles, config: ModelConfig) -> Iterator[_Source]:
    """What the decoder needs, and nothing else that may lie in the files."""
    Weights(files, config)
    if config.rope_scaling is not None and config.rope_scaling.kind == "llama3":
        yield _frequencies(config)
    wanted = expected(config)
    for path in files.weights:
        for tensor in check_safetensors(path):
            if tensor.name in wanted:
                name = _renamed(tensor.name)
                heads = _heads(name, config)
                yield _Source(name, path, tensor.dtype, tensor.shape, tensor.start, heads)


def _frequencies(config: ModelConfig) -> _Source:
    """Llama 3.1 scaling: what each base frequency is divided by."""
    half = config.head_dim // 2
    plain = config.rope_theta ** -(np.arange(half) / half)
    factors = (plain / np.array(inverse_frequencies(config))).astype(np.float32)
    return _Source("rope_freqs.weight", Path(), "F32", (half,), 0, values=factors)


def _renamed(name: str) -> str:
    """GGUF's name for one of Hugging Face's."""
    stem, _, kind = name.rpartition(".")
    layer = _LAYER.fullmatch(stem)
    return f"blk.{layer[1]}.{_INNER[layer[2]]}.{kind}" if layer else f"{_OUTER[stem]}.{kind}"


def _heads(name: str, config: ModelConfig) -> int | None:
    if _ARCHITECTURES[config.family] != "llama":
        return None
    kinds = {"attn_q": config.heads, "attn_k": config.kv_heads}
    return kinds.get(name.split(".")[-2])


def _stored(source: _Source, quant: Quant) -> gguf.GGMLQuantizationType:
    """Vectors stay F32; rows that do not fill blocks of 32 are F16."""
    if len(source.shape) < 2:
        return _TYPES["f32"]
    if quant == "q8_0" and source.shape[-1] % 32:
        return _TYPES["f16"]
    return _TYPES[quant]


def _announce(writer: gguf.GGUFWriter, source: _Source, quant: Quant) -> None:
    kind = _stored(source, quant)
    block, size = gguf.GGML_QUANT_SIZES[kind]
    rows = int(np.prod(source.shape[:-1], dtype=np.int64))
    row_bytes = source.shape[-1] // block * size
    if kind == _TYPES["q8_0"]:
        shape = (*source.shape[:-1], row_bytes)
        form: np.dtype[Any] = np.dtype(np.uint8)
    else:
        shape = source.shape
        form = np.dtype(np.float16 if kind == _TYPES["f16"] else np.float32)
    writer.add_tensor_info(source.name, shape, form, rows * row_bytes, raw_dtype=kind)


def _encoded(source: _Source, quant: Quant) -> Array:
    values = source.array()
    kind = _stored(source, quant)
    if kind == _TYPES["q8_0"]:
        coded = q8_0(values)
    else:
        with np.errstate(over="ignore"):
            coded = values.astype(np.float16 if kind == _TYPES["f16"] else np.float32)
    fits = np.abs(values).max(initial=0.0) <= 127 * 65504.0  # The largest Q8_0; false for NaN.
    if not fits or not np.isfinite(coded).all():
        raise ModelUnsupported(
            f"the weights of {source.name} do not fit {kind.name}",
            why="some are not finite, or beyond the largest number of that type",
            effect="no GGUF was made",
            todo="choose quant=f32",
        )
    return np.ascontiguousarray(coded)


def q8_0(values: Array) -> NDArray[np.uint8]:
    """ggml's Q8_0: per 32 values an F16 scale d = max|x| / 127, then 32 signed bytes.

    `values`: [..., n] with n a multiple of 32; gives bytes [..., n / 32 * 34]. Rounds
    half away from zero, with the scale before its own rounding to F16, as the
    reference in ggml-quants.c.
    """
    blocks = np.ascontiguousarray(values, dtype=np.float32).reshape(-1, 32)
    scale = np.abs(blocks).max(axis=1, keepdims=True) / np.float32(127)
    with np.errstate(divide="ignore"):
        inverse = np.where(scale == 0, np.float32(0), np.float32(1) / scale)
    product = blocks * inverse
    rounded = np.trunc(product + np.copysign(np.float32(0.5), product)).astype(np.int8)
    with np.errstate(over="ignore"):
        head = scale.astype(np.float16).view(np.uint8)
    coded = np.concatenate([head, rounded.view(np.uint8)], axis=1)
    return coded.reshape(*values.shape[:-1], values.shape[-1] // 32 * 34)
