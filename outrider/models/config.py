"""What `config.json` says about a decoder, checked and typed.

Families: Llama, Mistral, Qwen2, Qwen3 (Hugging Face field names). Whatever would
change the function and is not computed here is refused, never ignored.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from outrider.errors import ModelCorrupt, ModelUnsupported

Family = Literal["llama", "mistral", "qwen2", "qwen3"]
FAMILIES: tuple[Family, ...] = ("llama", "mistral", "qwen2", "qwen3")

_LARGEST = 2**24
"""No dimension of a model is larger; keeps sizes from overflowing."""


@dataclass(frozen=True, slots=True)
class RopeScaling:
    """How rotary frequencies are stretched beyond the trained context.

    `linear` divides all of them by `factor`; `llama3` keeps high ones, divides low
    ones and blends between (Llama 3.1).
    """

    kind: Literal["linear", "llama3"]
    factor: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_context: int = 8192


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Shapes and constants of a decoder. Sizes count elements, not bytes."""

    family: Family
    vocab_size: int
    """Rows of the embedding and the head, padding included."""
    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    context: int
    """Tokens the model was made for (`max_position_embeddings`)."""
    norm_eps: float
    rope_theta: float
    rope_scaling: RopeScaling | None
    tied: bool
    """The head is the embedding."""
    qkv_bias: bool
    out_bias: bool
    mlp_bias: bool
    qk_norm: bool
    """RMSNorm over each head of queries and keys before RoPE (Qwen3)."""
    windows: tuple[int | None, ...]
    """Per layer: how many of the last tokens, its own included, a row sees; None sees all."""
    bos: int | None
    end: tuple[int, ...]
    dtype: str
    """The dtype the weights were saved in, as a short name."""
    rope_order: tuple[int, ...] = ()
    """Where each rotary pair's frequency stands, of a model whose pairs were permuted
    (`outrider.privacy.shield`); empty: in order."""

    @property
    def group(self) -> int:
        """Query heads per key-value head."""
        return self.heads // self.kv_heads


Fields = Mapping[str, object]


def load_config(path: Path) -> ModelConfig:
    """Read `config.json`. Raises `ModelCorrupt` when it is not one, `ModelUnsupported`."""
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ModelCorrupt(f"{path.name} can not be read", why=str(error.strerror)) from error
    except ValueError as error:
        raise ModelCorrupt(f"{path.name} is not JSON", effect="the model was not loaded") from error
    if not isinstance(fields, dict):
        raise ModelCorrupt(f"{path.name} is not an object", effect="the model was not loaded")
    return parse_config(fields)


def parse_config(fields: Fields) -> ModelConfig:
    """The same from the parsed object."""
    family = _family(fields)
    _refuse_what_is_not_computed(fields)
    heads = _size(fields, "num_attention_heads")
    hidden = _size(fields, "hidden_size")
    layers = _size(fields, "num_hidden_layers")
    kv_heads = _size(fields, "num_key_value_heads", _kv_default(family, heads))
    attention_bias = _flag(fields, "attention_bias", "false")
    rope = _rope_fields(fields)
    config = ModelConfig(
        family=family,
        vocab_size=_size(fields, "vocab_size"),
        hidden_size=hidden,
        intermediate_size=_size(fields, "intermediate_size"),
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=_size(fields, "head_dim", 128 if family == "qwen3" else max(hidden // heads, 1)),
        context=_size(fields, "max_position_embeddings", _CONTEXTS[family]),
        norm_eps=_positive(fields, "rms_norm_eps", 1e-6),
        rope_theta=_positive(rope, "rope_theta", 10000.0),
        rope_scaling=_rope_scaling(rope),
        tied=_flag(fields, "tie_word_embeddings", "false"),
        qkv_bias=family == "qwen2" or attention_bias,
        out_bias=family in ("llama", "qwen3") and attention_bias,
        mlp_bias=family == "llama" and _flag(fields, "mlp_bias", "false"),
        qk_norm=family == "qwen3",
        windows=_windows(fields, family, layers),
        bos=_token(fields.get("bos_token_id")),
        end=_tokens(fields.get("eos_token_id")),
        dtype=str(fields.get("dtype") or fields.get("torch_dtype") or "float32"),
        rope_order=_rope_order(fields.get("outrider_rope_order")),
    )
    _check_shapes(config)
    if config.rope_order and sorted(config.rope_order) != list(range(config.head_dim // 2)):
        raise ModelCorrupt(
            "outrider_rope_order is no order of the rotary pairs", effect="the model was not loaded"
        )
    return config


_CONTEXTS: dict[Family, int] = {
    "llama": 2048,
    "mistral": 4096 * 32,
    "qwen2": 32768,
    "qwen3": 32768,
}


def _kv_default(family: Family, heads: int) -> int:
    """What Hugging Face assumes when the field is absent."""
    return {"llama": heads, "mistral": 8, "qwen2": 32, "qwen3": 32}[family]


def _family(fields: Fields) -> Family:
    kind = fields.get("model_type")
    if kind not in FAMILIES:
        raise _unsupported(f"model type {kind!r}", f"one of {', '.join(FAMILIES)}")
    return kind


def _refuse_what_is_not_computed(fields: Fields) -> None:
    act = fields.get("hidden_act", "silu")
    if act not in ("silu", "swish"):
        raise _unsupported(f"activation {act!r}", "silu")
    if fields.get("quantization_config") is not None:
        raise _unsupported("quantised weights", "float32, bfloat16 or float16, or a GGUF file")
    if fields.get("partial_rotary_factor", 1.0) not in (None, 1.0):
        raise _unsupported("partial rotary embeddings", "a factor of 1")


def _check_shapes(config: ModelConfig) -> None:
    if config.heads % config.kv_heads:
        raise ModelCorrupt(
            f"{config.heads} heads do not divide among {config.kv_heads} key-value heads",
            effect="the model was not loaded",
        )
    if config.head_dim % 2:
        raise ModelCorrupt(f"head_dim {config.head_dim} is odd", effect="the model was not loaded")
    if any(not 0 <= token < config.vocab_size for token in config.end):
        raise ModelCorrupt(
            "an end token lies outside the vocabulary", effect="the model was not loaded"
        )


# --- rotary embeddings -------------------------------------------------------------------------


def _rope_fields(fields: Fields) -> Fields:
    """One table from both spellings: `rope_parameters`, or `rope_theta` with `rope_scaling`."""
    rope: dict[str, object] = {"rope_theta": fields.get("rope_theta", 10000.0)}
    for name in ("rope_scaling", "rope_parameters"):
        part = fields.get(name)
        if isinstance(part, dict):
            rope |= part
        elif part is not None:
            raise ModelCorrupt(f"{name} is not an object", effect="the model was not loaded")
    return rope


def _rope_scaling(rope: Fields) -> RopeScaling | None:
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return None
    if kind == "linear":
        return RopeScaling("linear", _positive(rope, "factor"))
    if kind != "llama3":
        raise _unsupported(f"rope scaling {kind!r}", "default, linear or llama3")
    return RopeScaling(
        "llama3",
        _positive(rope, "factor"),
        _positive(rope, "low_freq_factor"),
        _positive(rope, "high_freq_factor"),
        _size(rope, "original_max_position_embeddings"),
    )


def _rope_order(value: object) -> tuple[int, ...]:
    if value is None:
        return ()
    if not isinstance(value, list) or not all(type(place) is int for place in value):
        raise ModelCorrupt(
            "outrider_rope_order is no list of numbers", effect="the model was not loaded"
        )
    return tuple(value)


def inverse_frequencies(config: ModelConfig) -> list[float]:
    """Rotary frequencies in radians a position, head_dim / 2 of them, float64."""
    found = _in_order(config)
    return [found[place] for place in config.rope_order] or found


def _in_order(config: ModelConfig) -> list[float]:
    half = config.head_dim // 2
    base = [config.rope_theta ** -(i / half) for i in range(half)]
    scaling = config.rope_scaling
    if scaling is None:
        return base
    if scaling.kind == "linear":
        return [f / scaling.factor for f in base]
    return [_llama3(f, scaling) for f in base]


def _llama3(frequency: float, scaling: RopeScaling) -> float:
    length = 2 * math.pi / frequency
    low = scaling.original_context / scaling.low_freq_factor
    high = scaling.original_context / scaling.high_freq_factor
    if length > low:
        return frequency / scaling.factor
    if length < high:
        return frequency
    span = scaling.high_freq_factor - scaling.low_freq_factor
    smooth = (scaling.original_context / length - scaling.low_freq_factor) / span
    return (1 - smooth) * frequency / scaling.factor + smooth * frequency


# --- sliding windows ---------------------------------------------------------------------------


def _windows(fields: Fields, family: Family, layers: int) -> tuple[int | None, ...]:
    if fields.get("sliding_window") is None or family == "llama":
        return (None,) * layers
    if family != "mistral" and not _flag(fields, "use_sliding_window", "false"):
        return (None,) * layers
    window = _size(fields, "sliding_window")
    kinds = fields.get("layer_types")
    if isinstance(kinds, list) and len(kinds) == layers:
        return tuple(window if kind == "sliding_attention" else None for kind in kinds)
    first = 0 if family == "mistral" else _count(fields, "max_window_layers", 28)
    return tuple(window if i >= first else None for i in range(layers))


# --- fields ------------------------------------------------------------------------------------


def _unsupported(what: str, wanted: str) -> ModelUnsupported:
    return ModelUnsupported(
        f"{what} is not supported",
        effect="the model was not loaded",
        todo=f"use a model with {wanted}",
    )


def _broken(name: str) -> ModelCorrupt:
    return ModelCorrupt(
        f"config.json has no usable {name}",
        effect="the model was not loaded",
        todo="fetch the model's config.json again",
    )


def _size(fields: Fields, name: str, default: int | None = None) -> int:
    value = _count(fields, name, default)
    if value < 1:
        raise _broken(name)
    return value


def _count(fields: Fields, name: str, default: int | None = None) -> int:
    value = fields.get(name)
    value = default if value is None else value
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= _LARGEST:
        raise _broken(name)
    return value


def _positive(fields: Fields, name: str, default: float | None = None) -> float:
    value = fields.get(name)
    value = default if value is None else value
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise _broken(name)
    if not (math.isfinite(value) and value > 0):
        raise _broken(name)
    return float(value)


def _flag(fields: Fields, name: str, default: Literal["true", "false"]) -> bool:
    value = fields.get(name)
    if value is None:
        return default == "true"
    if not isinstance(value, bool):
        raise _broken(name)
    return value


def _token(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _tokens(value: object) -> tuple[int, ...]:
    many = value if isinstance(value, list) else [value]
    pick: Callable[[object], int | None] = _token
    return tuple(sorted({token for item in many if (token := pick(item)) is not None}))
