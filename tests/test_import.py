"""`import outrider` is light, and its public names do not change by accident."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import outrider

HEAVY = {"grpc", "llama_cpp", "numpy", "onnxruntime", "textual", "torch", "transformers", "zmq"}
PINNED = Path(__file__).with_name("public_names.txt")


def loaded_by(statement: str) -> set[str]:
    """Top-level modules that a fresh interpreter has after the statement."""
    code = f"import sys\n{statement}\nprint(*{{m.partition('.')[0] for m in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_import_loads_nothing_heavy() -> None:
    assert not loaded_by("import outrider") & HEAVY


def test_the_public_names_need_only_the_base_packages() -> None:
    assert not loaded_by("from outrider import *") & HEAVY


def test_the_probe_would_see_a_heavy_import() -> None:
    assert "numpy" in loaded_by("import numpy")


def test_public_names_are_sorted_and_pinned() -> None:
    assert list(outrider.__all__) == sorted(outrider.__all__)
    assert outrider.__all__ == PINNED.read_text().split()


def test_public_names_exist() -> None:
    assert not [name for name in outrider.__all__ if not hasattr(outrider, name)]
