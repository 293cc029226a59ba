"""GGUF files of our own making: numbers, names, parity with transformers, the cache."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

pytest.importorskip("gguf", reason="the llama extra is not installed")

from gguf.quants import Q8_0

from outrider.errors import ModelUnsupported, NotFound
from outrider.models import vocabulary
from outrider.models.check import check_gguf
from outrider.models.gguf import QUANTS, cached, q8_0, rotated
from outrider.models.source import resolve

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
LINEAR = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "llama-tied": ("Llama", {"tie_word_embeddings": True}),
    "llama-biased": ("Llama", {"attention_bias": True, "mlp_bias": True}),
    "llama-linear": ("Llama", {"rope_parameters": LINEAR}),
    "llama-llama3": ("Llama", {"rope_parameters": LLAMA3}),
    "mistral": ("Mistral", {"sliding_window": None}),
    "qwen2": ("Qwen2", {}),
    "qwen3": ("Qwen3", {}),
}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("OUTRIDER_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def tokenizer_json() -> str:
    """256 bytes, one merge, an end token; two of the model's rows stay padding."""
    vocab = {character: i for i, character in enumerate(vocabulary.alphabet())}
    vocab["ab"] = 256
    byte_level = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": True,
    }
    end = {"id": 257, "content": "<|endoftext|>", "special": True, "normalized": False}
    flags = {"single_word": False, "lstrip": False, "rstrip": False}
    model = {"type": "BPE", "vocab": vocab, "merges": [["a", "b"]]}
    return json.dumps(
        {
            "version": "1.0",
            "added_tokens": [end | flags],
            "pre_tokenizer": byte_level,
            "decoder": byte_level,
            "model": model,
        }
    )


def random_model(folder: Path, family: str, settings: dict[str, Any]) -> Any:
    """A small random model in a folder, and itself."""
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    torch.manual_seed(3)
    config = getattr(transformers, f"{family}Config")(
        **{
            "vocab_size": 260,
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "max_position_embeddings": 256,
            "tie_word_embeddings": False,
            "bos_token_id": 257,
            "eos_token_id": 257,
            "pad_token_id": None,
            **settings,
        }
    )
    model = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            spread = 0.3 if "norm" not in name else 0.1
            weight.copy_(torch.randn_like(weight) * spread + ("norm" in name))
    model.save_pretrained(folder)
    (folder / "tokenizer.json").write_text(tokenizer_json())
    return model


# --- numbers -----------------------------------------------------------------------------------


def test_q8_0_agrees_with_the_reference() -> None:
    random = np.random.default_rng(1)
    values = random.normal(0, 2, (40, 96)).astype(np.float32)
    values[0] = 0
    values[1, :32] = np.arange(-16, 16) * 0.5
    assert (q8_0(values) == Q8_0.quantize(values)).all()
    assert abs(Q8_0.dequantize(q8_0(values)) - values).max() < np.abs(values).max() / 200


def test_rows_are_reordered_within_each_head() -> None:
    rows = np.arange(16)[:, None]
    assert rotated(rows, 2)[:8, 0].tolist() == [0, 4, 1, 5, 2, 6, 3, 7]
    assert rotated(rows, 2)[8:, 0].tolist() == [8, 12, 9, 13, 10, 14, 11, 15]


# --- parity ------------------------------------------------------------------------------------


def llama_scores(folder: Path, quant: str, tokens: tuple[int, ...]) -> NDArray[np.float32]:
    pytest.importorskip("llama_cpp", reason="the llama extra is not installed")
    from outrider.engine import EngineSpec, Span
    from outrider.engines.llama import build

    options = (("quant", quant), ("kv", "f32"))
    spec = EngineSpec(
        str(folder), "llama", device="cpu", context=128, max_slots=1, threads=1, options=options
    )
    engine = build(spec)
    slot = engine.open()
    found = engine.extend([Span(slot, 0, tokens, want="scores")])[0].scores
    engine.close(slot)
    engine.shutdown()
    assert found is not None
    return found


TOKENS = tuple((i * 37 + 11) % 256 for i in range(100))


@pytest.mark.parametrize("case", FAMILIES)
def test_llama_cpp_agrees_with_transformers(tmp_path: Path, case: str) -> None:
    torch = pytest.importorskip("torch")
    model = random_model(tmp_path, *FAMILIES[case])
    with torch.no_grad():
        expected = model(torch.tensor([TOKENS])).logits[0, :, :258].numpy()
    spread = float(expected.std())
    assert np.abs(llama_scores(tmp_path, "f32", TOKENS) - expected).max() < 2e-3 * spread


@pytest.mark.parametrize(("quant", "tolerance"), [("f32", 2e-3), ("f16", 0.06), ("q8_0", 1.2)])
def test_the_bundled_target_agrees(quant: str, tolerance: float) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    files = resolve("bundled:target")
    transformers.utils.logging.disable_progress_bar()
    model = transformers.AutoModelForCausalLM.from_pretrained(files.folder, dtype=torch.float32)
    with torch.no_grad():
        expected = model(torch.tensor([TOKENS])).logits[0].numpy()
    found = llama_scores(files.folder, quant, TOKENS)
    assert np.abs(found - expected).max() < tolerance
    assert (found.argmax(-1) == expected.argmax(-1)).mean() >= 0.9


def test_what_llama_cpp_does_not_compute_is_refused(tmp_path: Path) -> None:
    random_model(tmp_path, "Qwen2", {"rope_parameters": LLAMA3})
    with pytest.raises(ModelUnsupported):
        cached(resolve(str(tmp_path)), "f16")


def test_sliding_windows_end_the_context(tmp_path: Path) -> None:
    random_model(tmp_path, "Mistral", {"sliding_window": 64})
    header = check_gguf(cached(resolve(str(tmp_path)), "f16").path)
    assert header.number("llama.context_length") == 64


def test_numbers_beyond_f16_are_refused(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    model = random_model(tmp_path, "Llama", {})
    with torch.no_grad():
        model.lm_head.weight[0, 0] = 1e6
    model.save_pretrained(tmp_path)
    with pytest.raises(ModelUnsupported, match="F16"):
        cached(resolve(str(tmp_path)), "f16")
    assert cached(resolve(str(tmp_path)), "f32").kind == "gguf"


# --- vocabulary --------------------------------------------------------------------------------


def test_both_forms_have_one_digest(tmp_path: Path) -> None:
    random_model(tmp_path, "Llama", {})
    for name in ("bundled:target", str(tmp_path)):
        files = resolve(name)
        assert vocabulary.load(cached(files, "f16")) == vocabulary.load(files)
    assert len(vocabulary.load(resolve(str(tmp_path)))) == 258


# --- cache -------------------------------------------------------------------------------------


def changed(path: Path, data: bytes) -> None:
    """Other bytes, and a time stamp that says so even on a coarse clock."""
    stamp = path.stat().st_mtime_ns
    path.write_bytes(data)
    os.utime(path, ns=(stamp + 10**9, stamp + 10**9))


def test_a_cached_file_is_used_again_unless_damaged() -> None:
    files = resolve("bundled:draft")
    first = cached(files, "q8_0").path
    whole, stamp = first.read_bytes(), first.stat().st_mtime_ns
    assert cached(files, "q8_0").path == first
    assert first.stat().st_mtime_ns == stamp
    changed(first, whole[:-1] + b"\x77")
    assert cached(files, "q8_0").path.read_bytes() == whole
    changed(first, whole[:1000])
    assert cached(files, "q8_0").path.read_bytes() == whole
    first.with_suffix(".sha256").unlink()
    assert cached(files, "q8_0").path.read_bytes() == whole
    assert sorted(path.suffix for path in first.parent.iterdir()) == [".gguf", ".sha256"]


def test_each_source_and_precision_has_its_own_file(tmp_path: Path) -> None:
    random_model(tmp_path, "Llama", {})
    files = resolve(str(tmp_path))
    names = {cached(files, quant).path.name for quant in QUANTS}
    assert len(names) == 3
    config = json.loads((tmp_path / "config.json").read_text())
    changed(tmp_path / "config.json", json.dumps(config | {"rms_norm_eps": 1e-3}).encode())
    assert cached(files, "f16").path.name not in names


def test_a_model_without_tokenizer_is_refused(
    tmp_path: Path, safetensors_data: Callable[..., bytes]
) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(safetensors_data())
    with pytest.raises(NotFound, match=r"tokenizer\.json"):
        cached(resolve(str(tmp_path)), "f16")
