"""ONNX Runtime: the drafter on a device, stages, and small targets."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from pathlib import Path
from typing import Protocol

import onnxruntime as ort

from outrider.engine import EngineInfo, EngineSpec, RowRule
from outrider.engines.numeric import joined_class
from outrider.engines.onnx import probe
from outrider.engines.onnx.decoder import Decoder
from outrider.engines.onnx.engine import OnnxEngine
from outrider.engines.onnx.files import Found, find
from outrider.engines.onnx.provider import Provider, choose
from outrider.errors import ConfigError, ModelUnsupported
from outrider.protocol import sampling

SMALL = 64 << 20
"""Bytes of a file below which one thread is the fastest: threads meet at every node."""


def build(spec: EngineSpec) -> OnnxEngine:
    """dtype: float32 (weights as stored, computed in float32), int8, int4. No options."""
    if spec.options:
        raise ConfigError(f"the onnx engine has no option {spec.options[0][0]!r}")
    found = find(spec.model, _dtype(spec))
    provider = choose(spec.device)
    decoder = _decoder(spec, found, provider)
    if not decoder.notes.whole:
        raise ModelUnsupported(
            f"{found.name} holds layers {decoder.notes.first} to {decoder.notes.stop} alone",
            effect="no engine was built",
            todo="name the whole model",
        )
    rule = probe.rule_of(decoder, spec.max_slots) if spec.numerics == "exact" else None
    return OnnxEngine(_info(spec, found, provider, decoder, rule), decoder)


def _dtype(spec: EngineSpec) -> str:
    if spec.dtype != "auto":
        return spec.dtype
    return "float32" if spec.numerics == "exact" else "int8"


def _decoder(spec: EngineSpec, found: Found, provider: Provider) -> Decoder:
    threads = spec.threads or threads_for(found.path)
    return Decoder(
        found.path, provider, threads=threads, slots=spec.max_slots, context=spec.context
    )


def threads_for(path: Path) -> int:
    size = sum(part.stat().st_size for part in path.parent.glob(path.name + "*"))
    return 1 if size < SMALL else os.cpu_count() or 1


def _info(
    spec: EngineSpec, found: Found, provider: Provider, decoder: Decoder, rule: RowRule | None
) -> EngineInfo:
    notes = decoder.notes
    ids = min(len(found.vocabulary), notes.vocab_size)
    return EngineInfo(
        engine="onnx",
        model=found.name,
        device=provider.name,
        dtype="float32" if notes.precision == "stored" else notes.precision,
        vocabulary_digest=found.vocabulary.digest,
        vocabulary_size=ids,
        context=decoder.context,
        max_slots=spec.max_slots,
        max_rows=spec.max_rows,
        exact=rule is not None,
        row_rule=rule or RowRule(),
        numeric_class=_numeric_class(decoder, provider, rule, ids),
        scores=True,
        kv="range",
    )


def _numeric_class(decoder: Decoder, provider: Provider, rule: RowRule | None, ids: int) -> str:
    stem = class_stem(decoder.notes, provider, rule)
    return joined_class([stem], probe.fingerprint(decoder, rule or RowRule(), ids))


class HasWeights(Protocol):
    """Notes of a whole model or of a stage."""

    @property
    def weights(self) -> str: ...

    @property
    def precision(self) -> str: ...


def class_stem(notes: HasWeights, provider: Provider, rule: RowRule | None) -> str:
    """What fixes the numerics of the whole model and of any range of its layers alike: all of
    a numeric class but the hash of the probe's scores. Rows that are bit-equal in any company
    have the same bits under every rule that makes them so, and the rule is not a part of it."""
    parts = {
        "onnx": 1,
        "weights": notes.weights,
        "precision": notes.precision,
        "engine": f"onnxruntime {ort.__version__} {provider.library_name}",
        "instructions": instructions(),
        "rows": "plain" if rule is None else "exact",
        "sampling": sampling.VERSION,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def instructions() -> str:
    """The processor's family and the vector extensions that kernels are chosen by."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
    except OSError:
        return platform.machine()
    flags = set(text.replace(":", " ").split()) & _EXTENSIONS
    return " ".join([platform.machine(), *sorted(flags)])


_EXTENSIONS = frozenset(
    "avx avx2 fma f16c avx_vnni avx512f avx512_vnni avx512_bf16 avx512_fp16 amx_tile amx_int8 "
    "amx_bf16 asimd asimdhp asimddp i8mm bf16 sve sve2".split()
)
