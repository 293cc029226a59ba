"""A model as units with their costs, from headers alone: no weight is ever loaded.

Sources: `config.json` with safetensors headers, GGUF headers, the ONNX files that this
project exports, a `config.json` alone (sizes from shapes and dtype), and `shape:NAME` for
well-known models that need not lie on this machine (`shapes.json` holds the dimensions that
their publishers state in config.json).

Multiply-adds count twice. Norms, rotations and activations are left out: they are below one
per cent of a layer's products from a hidden size of 256 on.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from outrider.errors import ModelCorrupt, ModelUnsupported, NotFound
from outrider.models import onnx_header, onnx_notes
from outrider.models.check import check_gguf, check_safetensors
from outrider.models.check.gguf import Gguf, GgufTensor
from outrider.models.config import ModelConfig, load_config, parse_config
from outrider.models.source import ModelFiles, resolve
from outrider.models.weights import expected
from outrider.partitioner.graph import KV_ITEM, ModelGraph, Unit, chain

SHAPES = Path(__file__).with_name("shapes.json")
PREFIX = "shape:"

_ITEMS = {"float32": 4, "float16": 2, "bfloat16": 2, "float64": 8}
_NAMES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_VALUES = {"float32": 1, "float16": 10, "bfloat16": 16, "int8": 2}
"""dtype to ONNX's TensorProto.DataType."""


@dataclass(frozen=True, slots=True)
class Shape:
    """What the units' costs follow from. Sizes count elements."""

    name: str
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    context: int
    windows: tuple[int | None, ...]
    tied: bool


@dataclass(frozen=True, slots=True)
class Sizes:
    """Of one unit's weights."""

    stored: int = 0
    """Bytes."""
    matrices: int = 0
    """Numbers in matrices, each of which a row meets once."""


def read(model: str) -> ModelGraph:
    """The graph of a model: what `resolve` takes, a config.json, or `shape:NAME`.

    Raises NotFound, ModelCorrupt, ModelUnsupported.
    """
    if model.startswith(PREFIX):
        return _known(model)
    bare = _bare_config(model)
    if bare is not None:
        return from_config(load_config(bare), bare.resolve().parent.name)
    files = resolve(model)
    readers: Mapping[str, Callable[[ModelFiles], ModelGraph]] = {
        "safetensors": _safetensors,
        "gguf": _gguf,
        "onnx": _onnx,
    }
    return readers[files.kind](files)


def known() -> tuple[str, ...]:
    """Names for `shape:NAME`."""
    return tuple(sorted(json.loads(SHAPES.read_text(encoding="utf-8"))))


def _known(model: str) -> ModelGraph:
    name = model.removeprefix(PREFIX)
    fields = json.loads(SHAPES.read_text(encoding="utf-8")).get(name)
    if fields is None:
        raise NotFound(
            f"no shape {name!r} is known",
            param="model",
            effect="no graph was made",
            todo=f"one of {', '.join(known())}, or a folder with the model's config.json",
        )
    return from_config(parse_config(fields), name)


def _bare_config(model: str) -> Path | None:
    """The config.json of a model without weights; None where there are weights to look at."""
    path = Path(model).expanduser()
    if path.name == "config.json" and path.is_file():
        return path
    holds = path.is_dir() and (path / "config.json").is_file()
    weights = (".safetensors", ".gguf", ".onnx")
    if holds and not any(entry.suffix in weights for entry in path.iterdir()):
        return path / "config.json"
    return None


# --- config.json and safetensors ---------------------------------------------------------------


def from_config(config: ModelConfig, name: str) -> ModelGraph:
    """Sizes from shapes and the dtype that the config states."""
    dtype = config.dtype.removeprefix("torch.")
    if dtype not in _ITEMS:
        raise ModelUnsupported(
            f"weights of dtype {dtype!r} have no known size",
            effect="no graph was made",
            todo=f"state one of {', '.join(_ITEMS)} in config.json",
        )
    stored = {
        tensor: (math.prod(shape) * _ITEMS[dtype], math.prod(shape) if len(shape) == 2 else 0)
        for tensor, shape in expected(config).items()
    }
    return _from_tensors(config, name, stored, dtype)


def _safetensors(files: ModelFiles) -> ModelGraph:
    assert files.config is not None
    config = load_config(files.config)
    wanted = expected(config)
    stored: dict[str, tuple[int, int]] = {}
    kinds: Counter[str] = Counter()
    for path in files.weights:
        for entry in check_safetensors(path):
            if entry.name in wanted:
                size, shape = entry.stop - entry.start, entry.shape
                stored[entry.name] = (size, math.prod(shape) if len(shape) == 2 else 0)
                kinds[entry.dtype] += size
    for missing in wanted.keys() - stored.keys():
        raise ModelCorrupt(f"the model has no tensor {missing}", effect="no graph was made")
    dtype = kinds.most_common(1)[0][0]
    return _from_tensors(config, files.name, stored, _NAMES.get(dtype, dtype.lower()))


def _from_tensors(
    config: ModelConfig, name: str, stored: Mapping[str, tuple[int, int]], dtype: str
) -> ModelGraph:
    shape = Shape(
        name=name,
        hidden=config.hidden_size,
        layers=config.layers,
        heads=config.heads,
        kv_heads=config.kv_heads,
        head_dim=config.head_dim,
        vocabulary=config.vocab_size,
        context=config.context,
        windows=config.windows,
        tied=config.tied,
    )
    by_unit = _summed((_unit_of(tensor), size) for tensor, size in stored.items())
    return _graph(shape, by_unit, dtype)


def _unit_of(tensor: str) -> str:
    """Of a Hugging Face name."""
    if tensor.startswith("model.layers."):
        return tensor.split(".")[2]
    return "embedding" if tensor.startswith("model.embed_tokens") else "head"


def _summed(parts: Iterable[tuple[str, tuple[int, int]]]) -> dict[str, Sizes]:
    """By unit: `embedding`, the number of a layer, `head`."""
    found: dict[str, Sizes] = {}
    for unit, (size, matrices) in parts:
        old = found.get(unit, Sizes())
        found[unit] = Sizes(old.stored + size, old.matrices + matrices)
    return found


# --- GGUF --------------------------------------------------------------------------------------


def _gguf(files: ModelFiles) -> ModelGraph:
    headers = [check_gguf(path) for path in files.weights]
    tensors = [tensor for header in headers for tensor in header.tensors]
    shape = _gguf_shape(files.name, headers[0], tensors)
    by_unit = _summed((_gguf_unit(tensor.name), _gguf_sizes(tensor)) for tensor in tensors)
    kinds: Counter[str] = Counter()
    for tensor in tensors:
        kinds[tensor.kind] += tensor.size
    dtype = kinds.most_common(1)[0][0] if kinds else "F32"
    return _graph(shape, by_unit, _NAMES.get(dtype, dtype.lower()))


def _gguf_shape(name: str, header: Gguf, tensors: Iterable[GgufTensor]) -> Shape:
    arch = header.text("general.architecture") or ""

    def number(key: str, default: int | None = None) -> int:
        value = header.number(f"{arch}.{key}")
        value = default if value is None else value
        if value is None or value < 1:
            raise ModelCorrupt(f"{name} states no {arch}.{key}", effect="no graph was made")
        return value

    hidden, heads = number("embedding_length"), number("attention.head_count")
    by_name = {tensor.name: tensor for tensor in tensors}
    if "token_embd.weight" not in by_name:
        raise ModelUnsupported(f"{name} is no decoder: it has no token_embd.weight")
    layers = number("block_count")
    window = header.number(f"{arch}.attention.sliding_window") or None
    return Shape(
        name=name,
        hidden=hidden,
        layers=layers,
        heads=heads,
        kv_heads=number("attention.head_count_kv", heads),
        head_dim=number("attention.key_length", max(hidden // heads, 1)),
        vocabulary=by_name["token_embd.weight"].shape[-1],
        context=number("context_length", 2048),
        windows=(window,) * layers,
        tied="output.weight" not in by_name,
    )


def _gguf_unit(tensor: str) -> str:
    if tensor.startswith("blk."):
        return tensor.split(".")[1]
    return "embedding" if tensor.startswith("token_embd") else "head"


def _gguf_sizes(tensor: GgufTensor) -> tuple[int, int]:
    return tensor.size, math.prod(tensor.shape) if len(tensor.shape) == 2 else 0


# --- ONNX --------------------------------------------------------------------------------------


def _onnx(files: ModelFiles) -> ModelGraph:
    header = onnx_header.read(files.path)
    notes = onnx_notes.parse(header.metadata)
    if not notes.whole:
        raise ModelUnsupported(
            f"{files.name} holds layers {notes.first} to {notes.stop} of {notes.layers}",
            why="a graph is drawn of whole models",
            effect="no graph was made",
            todo="name the whole model",
        )
    attention = next((n for n in header.nodes if n.kind == "GroupQueryAttention"), None)
    if attention is None:
        raise ModelUnsupported(f"{files.name} has no attention nodes", effect="no graph was made")
    by_unit = _onnx_units(header, notes.layers)
    shape = Shape(
        name=files.name,
        hidden=notes.hidden_size,
        layers=notes.layers,
        heads=attention.numbers.get("num_heads", notes.kv_heads),
        kv_heads=notes.kv_heads,
        head_dim=notes.head_dim,
        vocabulary=notes.vocab_size,
        context=notes.context,
        windows=_onnx_windows(header),
        tied=by_unit["head"].matrices == 0,
    )
    return _graph(shape, by_unit, _onnx_dtype(header))


def _onnx_units(header: onnx_header.Header, layers: int) -> dict[str, Sizes]:
    """Each weight belongs to the unit that first uses it; norms with a sum begin the halves."""
    parts: list[tuple[str, tuple[int, int]]] = []
    taken: set[str] = set()
    sums = 0
    for node in header.nodes:
        sums += node.kind == "SkipSimplifiedLayerNormalization"
        unit = "head" if sums >= 2 * layers else str(sums // 2)
        for name in node.inputs:
            weight = header.weights.get(name)
            if weight is None or name in taken:
                continue
            taken.add(name)
            owner = "embedding" if node.kind == "Gather" and sums == 0 else unit
            block = node.numbers.get("block_size", 1)
            parts.append((owner, (weight.size, _onnx_matrix(weight, block))))
    return {"head": Sizes(), **_summed(parts)}


def _onnx_matrix(weight: onnx_header.Initializer, block: int) -> int:
    """Numbers of a matrix; packed blocks of `block` numbers stand as [rows, blocks, bytes]."""
    if len(weight.shape) == 2:
        return math.prod(weight.shape)
    if len(weight.shape) == 3:
        return math.prod(weight.shape[:2]) * block
    return 0


def _onnx_windows(header: onnx_header.Header) -> tuple[int | None, ...]:
    sizes = (
        node.numbers.get("local_window_size", -1)
        for node in header.nodes
        if node.kind == "GroupQueryAttention"
    )
    return tuple(size if 0 < size < 1 << 62 else None for size in sizes)


def _onnx_dtype(header: onnx_header.Header) -> str:
    packed = next((node for node in header.nodes if node.kind == "MatMulNBits"), None)
    if packed is not None:
        return f"int{packed.numbers.get('bits', 8)}"
    sizes: Counter[int] = Counter()
    for weight in header.weights.values():
        sizes[weight.dtype] += weight.size
    kind = sizes.most_common(1)[0][0]
    return next((name for name, number in _VALUES.items() if number == kind), "float32")


# --- units -------------------------------------------------------------------------------------


def _graph(shape: Shape, sizes: Mapping[str, Sizes], dtype: str) -> ModelGraph:
    layers = [_decoder(shape, i, sizes.get(str(i), Sizes())) for i in range(shape.layers)]
    units = (_embedding(shape, sizes), *layers, _head(shape, sizes))
    return ModelGraph(
        name=shape.name,
        units=units,
        edges=chain(len(units)),
        dtype=dtype,
        context=shape.context,
        vocabulary=shape.vocabulary,
        tied=shape.tied,
    )


def _embedding(shape: Shape, sizes: Mapping[str, Sizes]) -> Unit:
    stored = sizes.get("embedding", Sizes()).stored
    return Unit(
        name="embedding",
        kind="embedding",
        flops=0.0,
        attention_flops=0.0,
        weight_bytes=stored,
        kv_bytes=0,
        output=shape.hidden,
        read_bytes=stored // shape.vocabulary,
    )


def _decoder(shape: Shape, index: int, sizes: Sizes) -> Unit:
    return Unit(
        name=f"layer.{index}",
        kind="decoder",
        flops=2.0 * sizes.matrices,
        # One product with the keys, one with the values.
        attention_flops=4.0 * shape.heads * shape.head_dim,
        weight_bytes=sizes.stored,
        kv_bytes=2 * shape.kv_heads * shape.head_dim * KV_ITEM,
        output=shape.hidden,
        window=shape.windows[index] if index < len(shape.windows) else None,
    )


def _head(shape: Shape, sizes: Mapping[str, Sizes]) -> Unit:
    """A tied head reads the embedding's table, and needs it too where the embedding is not."""
    own = sizes.get("head", Sizes()).stored
    table = sizes.get("embedding", Sizes()).stored if shape.tied else 0
    return Unit(
        name="head",
        kind="head",
        flops=2.0 * shape.vocabulary * shape.hidden,
        attention_flops=0.0,
        weight_bytes=own + table,
        kv_bytes=0,
        output=0,
    )
