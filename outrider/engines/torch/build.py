"""From an `EngineSpec` to a loaded engine; nothing is allocated before the files were checked."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from outrider.engine import EngineSpec
from outrider.engines.torch.cache import Cache, capacity
from outrider.engines.torch.decoder import Decoder
from outrider.engines.torch.device import choose_device, choose_dtype
from outrider.engines.torch.engine import Identity, TorchEngine
from outrider.engines.torch.linear import Kind, kinds
from outrider.engines.torch.probe import SLOTS
from outrider.engines.torch.settle import settle
from outrider.errors import ConfigError, EngineFull, ModelCorrupt, ModelUnsupported
from outrider.models import vocabulary
from outrider.models.config import ModelConfig, load_config
from outrider.models.source import ModelFiles, resolve
from outrider.models.weights import Weights, expected

OPTIONS: tuple[str, ...] = ()


def build(spec: EngineSpec) -> TorchEngine:
    """Raises ModelCorrupt, ModelUnsupported, ConfigError, EngineFull (no memory)."""
    for name, _ in spec.options:
        if name not in OPTIONS:
            raise ConfigError(f"the torch engine has no option {name!r}")
    files = resolve(spec.model)
    if files.kind != "safetensors" or files.config is None:
        raise ModelUnsupported(
            f"the torch engine does not read {files.kind} files",
            effect="the model was not loaded",
            todo="name a folder with config.json and safetensors, or take another engine",
        )
    if spec.threads is not None:
        torch.set_num_threads(spec.threads)
    device = choose_device(spec.device)
    dtype = choose_dtype(spec.dtype, device)
    config = load_config(files.config)
    weights = Weights(files, config)
    digest, size = _vocabulary(files, config)
    context = _context(spec, config)

    def load(kind: Kind) -> Decoder:
        return Decoder(config, weights, device, dtype, kind, capacity(context))

    with torch.inference_mode(), _memory_errors():
        cache = Cache(config, max(spec.max_slots + 1, SLOTS), context, device, dtype)
        parameters = sum(math.prod(shape) for shape in expected(config).values())
        ways = kinds(device, dtype)
        runner, finding = settle(load, ways, spec.numerics, cache, size, parameters)
    identity = Identity(files.name, files.digest, digest)
    return TorchEngine(spec, identity, runner, finding)


def _context(spec: EngineSpec, config: ModelConfig) -> int:
    wanted = spec.context or config.context
    if not 1 <= wanted <= config.context:
        raise ConfigError(
            f"a context of {wanted} tokens is not possible",
            why=f"the model was made for {config.context}",
            effect="the model was not loaded",
            todo=f"ask for at most {config.context}",
        )
    return wanted


def _vocabulary(files: ModelFiles, config: ModelConfig) -> tuple[str, int]:
    """Digest and number of ids that can be chosen."""
    if files.tokenizer_json is None:
        note = f"no tokenizer, {config.vocab_size} ids"
        return hashlib.sha256(note.encode()).hexdigest(), config.vocab_size
    found = vocabulary.load(files)
    if len(found) > config.vocab_size:
        raise ModelCorrupt(
            f"the tokenizer has {len(found)} ids, the model {config.vocab_size}",
            effect="the model was not loaded",
        )
    return found.digest, len(found)


@contextmanager
def _memory_errors() -> Iterator[None]:
    """An allocation that fails while loading, as ours."""
    try:
        yield
    except (MemoryError, torch.OutOfMemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "alloc" not in str(error).lower():
            raise
        raise EngineFull(
            "there is not enough memory for the model and its slots",
            effect="the model was not loaded",
            todo="use fewer slots, a shorter context, a smaller dtype or a smaller model",
        ) from error
