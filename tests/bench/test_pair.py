"""The parts of `bench pair`: its text, its contamination measure and its controls."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="needs outrider[torch]")
pytest.importorskip("tokenizers", reason="needs outrider[edge]")

from bench import pair  # noqa: E402
from examples.train_pair import agreement  # noqa: E402
from examples.train_pair.corpus import Source  # noqa: E402
from examples.train_pair.model import read_model  # noqa: E402


def file(path: str, words: int, word: str) -> Source:
    return Source("stdlib", path, " ".join(f"{word}{i}" for i in range(words)), path)


HELD = pair.HeldOut(
    measured=(file("a.py", 149, "a"), file("b.py", 149, "b")),
    shared=(file("aifc.py", 149, "c"),),
    left_out=(file("encodings/koi8_u.py", 149, "d"),),
    changed=(),
)


def test_held_out_files_are_the_running_standard_librarys() -> None:
    held = pair.held_out_files(pair.BUNDLED / "held_out.json")
    paths = {source.path for source in held.every}
    assert len(paths) == len(held.every)
    assert paths <= {e["file"] for e in json.loads((pair.BUNDLED / "held_out.json").read_text())}
    assert (
        not paths & {source.path for source in held.measured} & (pair.SHARED | pair.LEFT_OUT).keys()
    )


def test_changed_held_out_file_is_named(tmp_path: Path) -> None:
    names = [{"file": "uu.py", "sha256": "0" * 64}, {"file": "absent.py", "sha256": "0" * 64}]
    (tmp_path / "held_out.json").write_text(json.dumps(names))
    assert pair.held_out_files(tmp_path / "held_out.json").changed == ("uu.py", "absent.py")


def test_unlike_corpus_is_clean_and_the_planted_file_is_seen() -> None:
    shares = pair.contamination(HELD, [file("x.py", 500, "x")])
    assert (shares.measured, shares.every) == (0.0, 0.0)
    assert shares.planted == pytest.approx(0.5)


def test_a_passage_of_a_held_out_file_counts_by_its_shingles() -> None:
    passage = " ".join(HELD.measured[0].text.split()[20:90])
    shares = pair.contamination(HELD, [replace(file("x.py", 9, "x"), text=f"x1 {passage} x2")])
    assert shares.files["a.py"] == pytest.approx(21 / 100)
    assert shares.measured == pytest.approx(21 / 200)
    assert shares.every == pytest.approx(21 / 400)


def test_interval_holds_the_mean_and_narrows_to_it() -> None:
    values = torch.rand(40 * pair.CONTEXT, generator=torch.Generator().manual_seed(0))
    low, high = pair.interval(values.double(), 1)
    assert low < float(values.mean()) < high < low + 0.02


def test_control_draft_falls_far_below_the_real_one() -> None:
    target, draft = (read_model(pair.BUNDLED / name) for name in ("target", "draft"))
    ids = torch.randint(4096, (257,), generator=torch.Generator().manual_seed(0))
    twin = pair.shuffled_draft(draft, 1)
    good, bad = (
        agreement.summary(agreement.measure(target, d, ids, 256, 0)) for d in (draft, twin)
    )
    assert good.mean_overlap > 0.5
    assert bad.mean_overlap < 0.5 * good.mean_overlap


def test_digest_is_that_of_the_weights() -> None:
    data = (pair.BUNDLED / "draft" / "model.safetensors").read_bytes()
    assert pair.digest(pair.BUNDLED / "draft") == hashlib.sha256(data).hexdigest()
