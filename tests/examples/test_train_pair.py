"""The training recipe, end to end on a small corpus made here."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

torch = pytest.importorskip("torch", reason="needs outrider[torch]")
pytest.importorskip("tokenizers", reason="needs outrider[edge]")

from safetensors.torch import load_file  # noqa: E402

from examples.train_pair import agreement, corpus, recipe  # noqa: E402
from examples.train_pair.distil import draft_from  # noqa: E402
from examples.train_pair.model import Decoder, read_model, write_model  # noqa: E402
from examples.train_pair.optimizer import orthogonalize  # noqa: E402
from examples.train_pair.plot import loss_plot  # noqa: E402
from examples.train_pair.shingles import Lexicon, rolling  # noqa: E402
from examples.train_pair.stream import Stream, encode  # noqa: E402
from examples.train_pair.tokenizer import train_tokenizer  # noqa: E402
from examples.train_pair.train import Report, Run, next_token_loss, train  # noqa: E402

VERBS = ("load", "store", "merge", "split", "check", "count", "order", "print")
NOUNS = ("node", "edge", "value", "record", "buffer", "window", "matrix", "letter")

SIZES = replace(
    recipe.QUICK,
    target=replace(recipe.QUICK.target, steps=30, batch=4, context=32, save_every=10),
    draft=replace(recipe.QUICK.draft, steps=20, batch=4, context=32, save_every=10),
    most_files=None,
)


def source(seed: int) -> str:
    """A made-up module; equal seeds give equal text."""
    pick = random.Random(seed)
    lines = []
    for _ in range(12):
        verb, noun, other = pick.choice(VERBS), pick.choice(NOUNS), pick.choice(NOUNS)
        lines += [
            f"def {verb}_{noun}_{pick.randrange(999)}({other}, size={pick.randrange(99)}):",
            f"    if {other} is None:",
            f"        raise ValueError('{noun} {pick.randrange(9999)}')",
            f"    return {other}.{verb}({pick.randrange(99)}, size)",
            "",
        ]
    return "\n".join(lines)


@pytest.fixture
def root(tmp_path: Path) -> corpus.Root:
    folder = tmp_path / "sources"
    folder.mkdir()
    for index in range(12):
        (folder / f"module_{index}.py").write_text(source(index))
    return corpus.Root("made", folder)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def place(root: corpus.Root, out: Path) -> recipe.Place:
    return recipe.Place(
        out=out,
        roots=(root,),
        held_out=("module_3.py",),
        device=torch.device("cpu"),
        dtype=torch.float32,
        seed=1,
    )


@contextmanager
def no_bar(_name: str, _steps: int) -> Iterator[Report]:
    yield lambda step, loss: None


def test_recipe_trains_a_pair_that_transformers_loads(root: corpus.Root, tmp_path: Path) -> None:
    out = tmp_path / "out"
    outcome = recipe.cook(SIZES, place(root, out), no_bar)
    assert outcome.target_losses[-1] < 0.85 * outcome.target_losses[0]
    assert outcome.draft_losses[-1] < outcome.draft_losses[0]
    assert outcome.figures.target_loss < 6.0  # ln 512 is 6.24, the loss of knowing nothing
    assert outcome.figures.mean_overlap > 0.8
    ElementTree.fromstring((out / "loss.svg").read_text())
    held = json.loads((out / "held_out.json").read_text())
    assert [entry["file"] for entry in held] == ["module_3.py"]
    assert "module_3.py" not in (out / "corpus.txt").read_text()

    transformers = pytest.importorskip("transformers", reason="needs outrider[dev]")
    ids = torch.randint(512, (2, 20), generator=torch.Generator().manual_seed(0))
    for name in ("target", "draft"):
        theirs = transformers.LlamaForCausalLM.from_pretrained(out / name, dtype=torch.float32)
        with torch.no_grad():
            gap = (theirs(ids).logits - read_model(out / name)(ids)).abs().max()
        assert gap < 1e-4
    words = transformers.PreTrainedTokenizerFast(tokenizer_file=str(out / "target/tokenizer.json"))
    assert words.decode(words.encode("def f(x):\n\treturn 'ü'")) == "def f(x):\n\treturn 'ü'"


def test_resumed_training_gives_the_same_weights(root: corpus.Root, tmp_path: Path) -> None:
    material = recipe.prepare(SIZES, place(root, tmp_path))
    stream = Stream(material.train_ids, 4, 32, seed=1)

    def learn(name: str, *stops: int | None) -> tuple[list[float], dict[str, Any]]:
        losses: list[float] = []
        model = Decoder(SIZES.shape)
        for stop in stops:
            torch.manual_seed(5)
            model = Decoder(SIZES.shape)
            file = tmp_path / f"{name}.safetensors"
            run = Run(SIZES.target, file, torch.device("cpu"), torch.float32, stop)
            losses = train(model, next_token_loss, stream, run, lambda step, loss: None)
        return losses, model.state_dict()

    whole_losses, whole = learn("whole", None)
    resumed_losses, resumed = learn("resumed", 7, 16, None)
    assert resumed_losses == whole_losses
    assert len(whole_losses) == SIZES.target.steps
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_checkpoint_of_other_settings_is_refused(root: corpus.Root, tmp_path: Path) -> None:
    material = recipe.prepare(SIZES, place(root, tmp_path))
    stream = Stream(material.train_ids, 4, 32, seed=1)
    file = tmp_path / "one.safetensors"
    run = Run(SIZES.target, file, torch.device("cpu"), torch.float32, 2)
    train(Decoder(SIZES.shape), next_token_loss, stream, run, lambda step, loss: None)
    other = replace(run, schedule=replace(SIZES.target, muon_lr=0.5))
    with pytest.raises(ValueError, match="other settings"):
        train(Decoder(SIZES.shape), next_token_loss, stream, other, lambda step, loss: None)


def test_changed_corpus_is_refused_on_resume(root: corpus.Root, tmp_path: Path) -> None:
    recipe.prepare(SIZES, place(root, tmp_path))
    (root.folder / "module_5.py").write_text(source(77))
    with pytest.raises(ValueError, match="other files"):
        recipe.prepare(SIZES, place(root, tmp_path))


def test_near_duplicates_of_held_out_files_are_dropped(root: corpus.Root) -> None:
    held = (root.folder / "module_3.py").read_text()
    (root.folder / "copy.py").write_text(held)
    (root.folder / "restyled.py").write_text(held.replace("'", '"').replace("    ", "  "))
    (root.folder / "embedded.py").write_text(source(50) + held + source(51) + source(52))
    (root.folder / "unlike.py").write_text(source(60))
    found = corpus.collect([root], ["module_3.py"], None)
    assert [s.path for s in found.held_out] == ["module_3.py"]
    names = {s.path for s in found.sources}
    assert names == {f"module_{i}.py" for i in range(12) if i != 3} | {"unlike.py"}
    assert {r.line.split("/")[1] for r in found.rejected} == {"restyled.py", "embedded.py"}


def test_manifest_is_found_again_and_changed_files_are_named(
    root: corpus.Root, tmp_path: Path
) -> None:
    found = corpus.collect([root], ["module_3.py"], None)
    corpus.write_manifest(found, tmp_path)
    (root.folder / "module_7.py").write_text("changed = True\n" * 40)
    read = corpus.read_manifest(tmp_path / "corpus.txt", [root])
    assert len(read.sources) == 10
    assert [line.split("/")[1] for line in read.missing] == ["module_7.py"]


@pytest.mark.parametrize("length", [1, 2, 3, 8, 50])
def test_rolling_hash_equals_each_window_hashed_alone(length: int) -> None:
    words = Lexicon().words(source(1))
    rolled = rolling(words, length)
    assert len(rolled) == len(words) - length + 1
    alone = [rolling(words[i : i + length], length)[0] for i in range(len(rolled))]
    assert rolled.tolist() == [int(value) for value in alone]
    assert len(set(rolled.tolist())) == len(
        {tuple(words[i : i + length]) for i in range(len(rolled))}
    )


def test_short_text_has_no_shingles() -> None:
    assert len(Lexicon().shingles("x = 1", 8)) == 0


def test_draft_starts_as_the_targets_named_layers() -> None:
    target = Decoder(SIZES.shape)
    draft = draft_from(target, (0, 2))
    ours, theirs = draft.state_dict(), target.state_dict()
    name = "self_attn.q_proj.weight"
    assert torch.equal(ours[f"model.layers.1.{name}"], theirs[f"model.layers.2.{name}"])
    assert torch.equal(ours["model.embed_tokens.weight"], theirs["model.embed_tokens.weight"])
    assert not any(key.startswith("model.layers.2.") for key in ours)


def test_agreement_of_a_model_with_itself_is_whole_and_with_another_is_not() -> None:
    target, other = Decoder(SIZES.shape).eval(), Decoder(SIZES.shape).eval()
    torch.nn.init.normal_(other.model.embed_tokens.weight, std=1.0)
    ids = torch.randint(512, (200,), generator=torch.Generator().manual_seed(3))
    same = agreement.summary(agreement.measure(target, target, ids, 32, seed=0))
    assert (same.tokens, same.greedy_agreement, same.gumbel_match) == (192, 1.0, 1.0)
    assert same.mean_overlap == pytest.approx(1.0, abs=1e-5)
    far = agreement.summary(agreement.measure(target, other, ids, 32, seed=0))
    assert far.mean_overlap < 0.9
    assert far.gumbel_match < 0.9


def test_tokenizer_gives_every_text_back(root: corpus.Root) -> None:
    words = train_tokenizer([source(i) for i in range(5)], 300)
    text = "naïve\t\r\n\x00 🐎 def"
    assert words.decode(words.encode(text).ids) == text
    assert words.token_to_id("<|endoftext|>") == 0
    assert encode(words, ["a", "b"]).tolist().count(0) == 2


def test_orthogonalized_matrix_has_singular_values_near_one() -> None:
    matrix = torch.randn(24, 40, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(orthogonalize(matrix, torch.float32))
    assert values.min() > 0.5
    assert values.max() < 1.5


def test_written_model_is_read_back_in_half_precision(tmp_path: Path) -> None:
    model = Decoder(SIZES.shape)
    write_model(model, tmp_path)
    assert load_file(tmp_path / "model.safetensors")["model.norm.weight"].dtype == torch.float16
    again = read_model(tmp_path).state_dict()
    for name, value in model.state_dict().items():
        assert torch.equal(value.half().float(), again[name])


def test_plot_names_every_curve_even_if_flat_or_empty() -> None:
    svg = loss_plot({"target": [3.0, 3.0], "draft <b>": [5.0, 1.0], "none": []})
    ElementTree.fromstring(svg)
    assert "draft &lt;b&gt;: " in svg
    assert svg.count("<polyline") == 2
