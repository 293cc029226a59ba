"""An inflated model computes what the small one does, and costs what its shape says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("torch")

from outrider.engine import EngineSpec
from outrider.engines import registry
from outrider.errors import ConfigError
from outrider.models.config import load_config
from outrider.models.source import BUNDLED, resolve
from outrider.models.weights import Weights
from outrider.testing import inflate as inflating
from outrider.testing.inflate import Inflated, Sizes, check_inflated, inflate, inflated, spread

DRAFT = BUNDLED / "draft"
PROMPTS = [tuple(range(5, 30)), (100, 50, 7)]


def small(target: Path) -> Inflated:
    return inflate(DRAFT, target, hidden=1024, layers=5, intermediate=900, kv_heads=3)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Inflated:
    return small(tmp_path_factory.mktemp("inflated") / "model")


def test_tokens_scores_and_memory(made: Inflated) -> None:
    check = check_inflated(DRAFT, made.folder, PROMPTS, steps=12)
    assert check.agreeing == check.tokens == 24
    assert check.worst_difference < 1e-3
    assert check.holds


def test_a_model_that_speaks_up_is_noticed(made: Inflated, tmp_path: Path) -> None:
    """The control: an added layer whose output is not zero."""
    from safetensors.torch import load_file, save_file

    for name in ("config.json", "tokenizer.json"):
        (tmp_path / name).write_bytes((made.folder / name).read_bytes())
    tensors = load_file(made.folder / "model.safetensors")
    tensors["model.layers.1.mlp.down_proj.weight"].uniform_(-0.5, 0.5)
    save_file(tensors, tmp_path / "model.safetensors")
    assert not check_inflated(DRAFT, tmp_path, PROMPTS, steps=12).holds


def test_the_shape_is_the_one_asked_for(made: Inflated) -> None:
    config = load_config(made.folder / "config.json")
    assert (config.hidden_size, config.layers, config.intermediate_size) == (1024, 5, 900)
    assert (config.kv_heads, config.heads, config.head_dim) == (3, 6, 64)


def test_only_what_writes_into_the_hidden_state_is_zero(made: Inflated) -> None:
    files = resolve(str(made.folder))
    weights = Weights(files, load_config(made.folder / "config.json"))
    added = "model.layers.1."
    for name in ("self_attn.o_proj", "mlp.down_proj"):
        assert not weights.tensor(f"{added}{name}.weight").any()
    for name in ("self_attn.q_proj", "self_attn.v_proj", "mlp.gate_proj", "mlp.up_proj"):
        assert bool((weights.tensor(f"{added}{name}.weight") != 0).float().mean() > 0.99)
    assert not weights.tensor("model.embed_tokens.weight")[:, 256:].any()


def test_the_same_arguments_give_the_same_file(made: Inflated, tmp_path: Path) -> None:
    assert small(tmp_path / "again").digest == made.digest


def test_it_is_exact_among_its_own(made: Inflated) -> None:
    spec = EngineSpec(model=str(made.folder), engine="torch", device="cpu", context=128, threads=1)
    engine = registry.build(spec)
    assert engine.info.exact
    engine.shutdown()


@pytest.mark.parametrize(
    ("hidden", "layers", "kv_heads"), [(512, 5, 3), (1000, 5, 3), (1024, 1, 3), (1024, 5, 1)]
)
def test_sizes_that_can_not_work(hidden: int, layers: int, kv_heads: int, tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        inflate(DRAFT, tmp_path, hidden=hidden, layers=layers, kv_heads=kv_heads)


def test_old_layers_stand_apart() -> None:
    assert spread(6, 10) == [0, 1, 3, 5, 6, 8]
    assert spread(2, 2) == [0, 1]


class StepClock:
    """Every step takes 10 ms."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 0.005
        return self.now


def test_a_kept_model_is_used_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OUTRIDER_CACHE", str(tmp_path))
    sizes = Sizes(hidden=256, intermediate=704, kv_heads=2)
    asked = {"step_ms": 10.0, "sizes": sizes, "clock": StepClock()}
    first = inflated("bundled:draft", **asked)  # type: ignore[arg-type]
    layers = load_config(first / "config.json").layers
    # A step of the two-layer model "takes" 5 ms; the head counts as well.
    assert layers == 2 + round(5 / (5 * (1 - 4096 * 256 / 2_490_000) / 2))
    stamp = (first / "model.safetensors").stat().st_mtime_ns
    assert inflated("bundled:draft", **asked) == first  # type: ignore[arg-type]
    assert (first / "model.safetensors").stat().st_mtime_ns == stamp
    note = json.loads((first / "inflated.json").read_text())
    (first / "inflated.json").write_text(json.dumps(note | {"digest": "0" * 64}))
    inflated("bundled:draft", **asked)  # type: ignore[arg-type]
    assert (first / "model.safetensors").stat().st_mtime_ns != stamp


def test_the_command_line_writes_a_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inflating, "SIZES", Sizes(hidden=256, intermediate=704, kv_heads=2))
    assert inflating.main(["bundled:draft", str(tmp_path / "m"), "--layers", "3"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["layers"] == 3 and load_config(tmp_path / "m" / "config.json").layers == 3
