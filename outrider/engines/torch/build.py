"""From an `EngineSpec` to a loaded engine; nothing is allocated before the files were checked."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from outrider.engine import EngineSpec
from outrider.engines.torch import tiered
from outrider.engines.torch.cache import Cache, capacity
from outrider.engines.torch.decoder import Decoder
from outrider.engines.torch.device import choose_device, choose_dtype
from outrider.engines.torch.engine import Identity, TorchEngine
from outrider.engines.torch.linear import Kind, kinds
from outrider.engines.torch.offload import budget_of
from outrider.engines.torch.probe import SLOTS
from outrider.engines.torch.settle import settle
from outrider.errors import ConfigError, EngineFull, ModelUnsupported
from outrider.models import vocabulary
from outrider.models.config import ModelConfig, load_config
from outrider.models.source import ModelFiles, resolve
from outrider.models.weights import Weights, expected

OPTIONS = ("memory", "accelerator", "offload")
"""Bytes of RAM and of the accelerator for weights and KV, and how they are used."""


def build(spec: EngineSpec) -> TorchEngine:
    """Raises ModelCorrupt, ModelUnsupported, ConfigError, EngineFull (no memory)."""
    files, config = files_of(spec)
    if spec.threads is not None:
        torch.set_num_threads(spec.threads)
    device = choose_device(spec.device)
    dtype = choose_dtype(spec.dtype, device)
    weights = Weights(files, config)
    digest, size = vocabulary.ids_of(files, config.vocab_size)
    context = context_of(spec, config)
    if (budget := budget_of(spec)) is not None:
        with torch.inference_mode(), memory_errors():
            found = (digest, size)
            return tiered.build(spec, budget, files, config, found, context, device, dtype)

    def load(kind: Kind) -> Decoder:
        return Decoder(config, weights, device, dtype, kind, capacity(context))

    with torch.inference_mode(), memory_errors():
        cache = Cache(config, max(spec.max_slots + 1, SLOTS), context, device, dtype)
        ways = kinds(device, dtype)
        runner, finding = settle(load, ways, spec.numerics, cache, size, parameters(config))
    identity = Identity(files.name, files.digest, digest)
    return TorchEngine(spec, identity, runner, finding)


def files_of(spec: EngineSpec) -> tuple[ModelFiles, ModelConfig]:
    """The model that a spec names; its options are looked at too."""
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
    return files, load_config(files.config)


def parameters(config: ModelConfig) -> int:
    """Numbers in the whole model's weights."""
    return sum(math.prod(shape) for shape in expected(config).values())


def context_of(spec: EngineSpec, config: ModelConfig) -> int:
    wanted = spec.context or config.context
    if not 1 <= wanted <= config.context:
        raise ConfigError(
            f"a context of {wanted} tokens is not possible",
            why=f"the model was made for {config.context}",
            effect="the model was not loaded",
            todo=f"ask for at most {config.context}",
        )
    return wanted


@contextmanager
def memory_errors() -> Iterator[None]:
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
