"""What a model is, from headers alone: what `outrider show` tells, and who could run it."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Mapping

import msgspec

from outrider.errors import ModelCorrupt
from outrider.models import graph, template
from outrider.models.check import check_gguf, check_safetensors
from outrider.models.config import load_config
from outrider.models.source import ModelFiles
from outrider.models.vocabulary import load as load_vocabulary
from outrider.models.wanted import quantisation

_DTYPES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}
_MARKS = (
    ("<|im_start|>", "chatml"),
    ("<|start_header_id|>", "llama 3"),
    ("<start_of_turn>", "gemma"),
    ("[INST]", "mistral"),
    ("<|user|>", "phi or zephyr"),
)
"""What a template writes around a turn, and the family that does so."""


class Need(msgspec.Struct, frozen=True):
    """Bytes of memory, of one answer at a time."""

    weights: int
    kv_token: int
    """Keys and values of one token, at two bytes a number."""
    kv_context: int
    """The same for a whole context."""
    machine: int | None
    """What this machine has in all; None where the system does not say."""


class Anatomy(msgspec.Struct, frozen=True):
    """A model as its files describe it."""

    architecture: str
    parameters: int | None
    """Numbers in its tensors; None for ONNX, whose initialisers hold constants too."""
    layers: int
    hidden: int
    heads: str
    """Query and key-value heads: `16/8`; empty where the files do not say."""
    context: int
    stored: str
    vocabulary: str
    tokens: int
    template: str
    ends: tuple[str, ...]
    """Ids that end an answer, with their text: `151645 <|im_end|>`."""
    engines: tuple[str, ...]
    """Those that can compute it, best first; whether they are installed is another matter."""
    need: Need


def read(files: ModelFiles) -> Anatomy:
    """Raises NotFound, ModelError."""
    units = graph.read(str(files.path))
    words = load_vocabulary(files)
    facts = _facts(files)
    per_token = sum(unit.kv_bytes for unit in units.units)
    spoken = {number: words.tokens[number].decode("utf-8", "replace") for number in words.end}
    return Anatomy(
        architecture=facts.get("architecture", files.kind),
        parameters=_parameters(files),
        layers=units.decoders,
        hidden=units.units[0].output,
        heads=facts.get("heads", ""),
        context=units.context,
        stored=stored_as(files),
        vocabulary=words.digest,
        tokens=len(words),
        template=template_family(template.load(files).source),
        ends=tuple(f"{number} {text}" for number, text in sorted(spoken.items())),
        engines=engines(files),
        need=Need(units.weight_bytes, per_token, per_token * units.context, memory()),
    )


def _facts(files: ModelFiles) -> Mapping[str, str]:
    if files.kind == "gguf":
        header = check_gguf(files.path)
        arch = header.text("general.architecture") or ""
        heads = header.number(f"{arch}.attention.head_count")
        kv_heads = header.number(f"{arch}.attention.head_count_kv") or heads
        return {"architecture": arch} | ({"heads": f"{heads}/{kv_heads}"} if heads else {})
    if files.config is None or files.kind == "onnx":
        return {}
    config = load_config(files.config)
    return {"architecture": config.family, "heads": f"{config.heads}/{config.kv_heads}"}


def _parameters(files: ModelFiles) -> int | None:
    if files.kind == "onnx":
        return None
    if files.kind == "gguf":
        tensors = [tensor for path in files.weights for tensor in check_gguf(path).tensors]
        return sum(math.prod(tensor.shape) for tensor in tensors)
    entries = [entry for path in files.weights for entry in check_safetensors(path)]
    return sum(math.prod(entry.shape) for entry in entries)


def stored_as(files: ModelFiles) -> str:
    """How most of its bytes are stored: by a GGUF's own name, else by its tensors."""
    kinds: Counter[str] = Counter()
    if files.kind == "gguf":
        named = quantisation(files.path.name.removesuffix(".gguf"))
        if named:
            return named
        for path in files.weights:
            for tensor in check_gguf(path).tensors:
                kinds[tensor.kind] += tensor.size
    elif files.kind == "safetensors":
        for path in files.weights:
            for entry in check_safetensors(path):
                kinds[entry.dtype] += entry.stop - entry.start
    else:
        return "int8" if "int8" in files.path.name else "onnx"
    most = kinds.most_common(1)[0][0] if kinds else ""
    return _DTYPES.get(most, most)


def template_family(source: str | None) -> str:
    """Whose turns a chat template writes; `none` for a model without one."""
    if source is None:
        return "none"
    return next((name for mark, name in _MARKS if mark in source), "its own")


def engines(files: ModelFiles) -> tuple[str, ...]:
    """Engines that can compute it, best first."""
    if files.kind == "gguf":
        return ("llama",)
    if files.kind == "onnx":
        return ("onnx",)
    return ("torch", "onnx", "llama")


def support(files: ModelFiles) -> tuple[str, ...]:
    """The same, after a look whether its architecture is one that they know.

    Raises ModelUnsupported, ModelCorrupt.
    """
    if files.kind == "safetensors":
        assert files.config is not None
        load_config(files.config)
    if files.kind == "gguf" and not check_gguf(files.path).text("general.architecture"):
        raise ModelCorrupt(
            f"{files.path.name} states no architecture",
            effect="the model was not registered",
            todo="make or fetch the file again",
        )
    return engines(files)


def memory() -> int | None:
    """Bytes of this machine; None where the system does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return None
