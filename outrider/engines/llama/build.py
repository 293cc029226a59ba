"""From an `EngineSpec` to a loaded engine; no native code sees a file that was not checked."""

from __future__ import annotations

import hashlib
import os
import time
from dataclasses import dataclass

from outrider.engine import EngineInfo, EngineSpec, RowRule
from outrider.engines.llama import library
from outrider.engines.llama.engine import LlamaEngine
from outrider.engines.llama.library import Model, Settings
from outrider.engines.llama.plan import SPARE
from outrider.engines.llama.probe import Finding, examine, measure, survey
from outrider.engines.llama.runner import Runner
from outrider.errors import ConfigError, EngineFull, ModelCorrupt, ModelUnsupported
from outrider.models import gguf, vocabulary
from outrider.models.check import check_gguf, check_model
from outrider.models.check.gguf import Gguf
from outrider.models.source import ModelFiles, resolve
from outrider.protocol import sampling

_QUANTS = {
    "auto": "f16",
    "f32": "f32",
    "float32": "f32",
    "f16": "f16",
    "float16": "f16",
    "q8_0": "q8_0",
}
_KV = {"f16": library.KV_F16, "f32": library.KV_F32}


@dataclass(frozen=True, slots=True)
class Options:
    """`quant` (f32, f16, q8_0): what safetensors become. `kv` (f16, f32): the cache's numbers."""

    quant: gguf.Quant
    kv: str


def build(spec: EngineSpec) -> LlamaEngine:
    """Raises ModelCorrupt, ModelUnsupported, NotFound, ConfigError, EngineFull, EngineFailed."""
    options, gpu = _options(spec), _device(spec)
    files = _files(spec, options)
    check_model(files)
    header = check_gguf(files.path)
    words = vocabulary.from_header(files.path.name, header)
    settings = _settings(spec, options, header, gpu)
    library.start()
    model = Model(files.path, settings)
    try:
        if len(words) > model.context.size:
            raise ModelCorrupt(f"{files.path.name} has more tokens than rows for them")
        runner = Runner(model.context, spec.max_slots, model.context.rows, len(words))
        finding = _settle(spec, runner, settings.sequence - SPARE)
    except BaseException:
        model.close()
        raise
    info = _info(spec, files, settings, finding, _Words(words.digest, len(words)))
    return LlamaEngine(info, model, runner)


def _options(spec: EngineSpec) -> Options:
    given = dict(spec.options)
    quant = given.pop("quant", _QUANTS.get(spec.dtype, spec.dtype))
    kv = given.pop("kv", "f16")
    if given:
        raise ConfigError(f"the llama engine has no option {sorted(given)[0]!r}")
    chosen: gguf.Quant | None = next((name for name in gguf.QUANTS if name == quant), None)
    if chosen is None:
        raise ConfigError(
            f"the llama engine does not make {quant!r} weights",
            todo=f"one of {', '.join(gguf.QUANTS)}, or name a GGUF file",
        )
    if kv not in _KV:
        raise ConfigError(f"kv={kv!r} is not known", todo=f"one of {', '.join(_KV)}")
    return Options(chosen, kv)


def _device(spec: EngineSpec) -> bool:
    """Whether layers go to a GPU."""
    kind = spec.device.partition(":")[0]
    if kind not in ("auto", "cpu", "cuda", "gpu", "metal", "mps"):
        raise ConfigError(f"the llama engine knows no device {spec.device!r}", todo="cpu or cuda")
    if kind in ("auto", "cpu"):
        return kind == "auto" and library.offloads()
    if not library.offloads():
        raise ConfigError(
            f"this llama.cpp can not use {spec.device}",
            why="it was built without a GPU backend",
            effect="no model was loaded",
            todo="install llama-cpp-python built for the device, or choose cpu",
        )
    return True


def _files(spec: EngineSpec, options: Options) -> ModelFiles:
    files = resolve(spec.model)
    if files.kind == "safetensors":
        return gguf.cached(files, options.quant)
    if files.kind != "gguf":
        raise ModelUnsupported(
            f"the llama engine does not read {files.kind} files",
            effect="no model was loaded",
            todo="name a GGUF file, or a folder with config.json and safetensors",
        )
    return files


def _settings(spec: EngineSpec, options: Options, header: Gguf, gpu: bool) -> Settings:  # noqa: FBT001  A fact found, not a choice.
    context = _context(spec, header)
    settings = Settings(
        sequence=context + SPARE,
        sequences=spec.max_slots,
        rows=max(spec.max_rows, 4 * spec.max_slots),
        threads=spec.threads or len(_cores()),
        flash=gpu and spec.numerics == "plain",
        unified=False,
        gpu=gpu,
        kv_type=_KV[options.kv],
    )
    if not gpu:
        _check_memory(settings, header)
    return settings


def _cores() -> set[int]:
    """CPUs that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def _context(spec: EngineSpec, header: Gguf) -> int:
    trained = header.number(f"{header.text('general.architecture')}.context_length") or 2048
    wanted = spec.context or trained
    if not 1 <= wanted <= trained:
        raise ConfigError(
            f"a context of {wanted} tokens is not possible",
            why=f"the model was made for {trained}",
            effect="no model was loaded",
            todo=f"ask for at most {trained}",
        )
    return wanted


def _check_memory(settings: Settings, header: Gguf) -> None:
    """llama.cpp takes the KV of all slots at once, and the kernel would kill us for it later."""
    arch = header.text("general.architecture")
    layers = header.number(f"{arch}.block_count") or 0
    heads = header.number(f"{arch}.attention.head_count") or 1
    kv_heads = header.number(f"{arch}.attention.head_count_kv") or heads
    width = (header.number(f"{arch}.embedding_length") or 0) // heads
    head = header.number(f"{arch}.attention.key_length") or width
    item = 4 if settings.kv_type == library.KV_F32 else 2
    needed = settings.sequence * settings.sequences * layers * kv_heads * head * 2 * item
    present = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if needed > present:
        raise EngineFull(
            f"the KV of {settings.sequences} slots needs {needed >> 20} MiB",
            why=f"this machine has {present >> 20} MiB",
            effect="no model was loaded",
            todo="lower max_slots or context",
        )


def _settle(spec: EngineSpec, runner: Runner, context: int) -> Finding:
    """Find the row rule, and what a decode costs."""
    runner.cost = measure(runner, time.perf_counter)
    if spec.numerics == "plain":
        return survey(runner, context)
    return examine(runner, spec.max_slots, context)


@dataclass(frozen=True, slots=True)
class _Words:
    digest: str
    size: int


def _info(
    spec: EngineSpec, files: ModelFiles, settings: Settings, finding: Finding, words: _Words
) -> EngineInfo:
    dtype = _dtype(files)
    return EngineInfo(
        engine="llama",
        model=resolve(spec.model).name,
        device="gpu" if settings.gpu else "cpu",
        dtype=dtype,
        vocabulary_digest=words.digest,
        vocabulary_size=words.size,
        context=settings.sequence - SPARE,
        max_slots=spec.max_slots,
        max_rows=spec.max_rows,
        exact=finding.exact,
        row_rule=finding.rule,
        numeric_class=_numeric_class(files, settings, finding, dtype),
        scores=True,
        kv="slot",
    )


def _dtype(files: ModelFiles) -> str:
    """The type of most weights, by bytes."""
    sizes: dict[str, int] = {}
    for path in files.weights:
        for tensor in check_gguf(path).tensors:
            sizes[tensor.kind] = sizes.get(tensor.kind, 0) + tensor.size
    return max(sizes, key=lambda kind: sizes[kind]).lower() if sizes else "none"


def _numeric_class(files: ModelFiles, settings: Settings, finding: Finding, dtype: str) -> str:
    rule: RowRule = finding.rule
    parts = (
        "outrider llama 1",
        files.digest,
        dtype,
        library.version(),
        f"kv {settings.kv_type} flash {settings.flash} gpu {settings.gpu}",
        f"rule {rule.minimum} {rule.multiple} {rule.uniform}",
        f"sampler {sampling.VERSION}",
        finding.digest,
    )
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()
