"""The house: what is shipped is what lies in the tree, and the set-up stays as promised."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import pytest

import outrider

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("cloud", "edge", "partitioner", "privacy", "protocol")
MOST_WHEEL_BYTES = 30 * 1024 * 1024
# Import names that differ from the name of the distribution.
DISTRIBUTIONS = {
    "google": "protobuf",
    "grpc": "grpcio",
    "grpc_health": "grpcio-health-checking",
    "llama_cpp": "llama-cpp-python",
    "prometheus_client": "prometheus-client",
    "sse_starlette": "sse-starlette",
    "yaml": "pyyaml",
    "zmq": "pyzmq",
}
# Asked for by name in one place, which says so when they are missing.
OPTIONAL = {"openai"}


def project() -> dict[str, Any]:
    """The table of that name in pyproject.toml."""
    return dict(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"])


def is_source(path: Path) -> bool:
    return path.is_file() and "__pycache__" not in path.parts and path.suffix != ".pyc"


def below(folder: Path) -> Iterator[Path]:
    """Files in real folders; what a link points to is counted where it lies."""
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            yield from below(path)
        elif not path.is_dir() and is_source(path):
            yield path


def shipped_by_tree() -> set[str]:
    """The names that a wheel of this tree must hold."""
    root = {str(p.relative_to(ROOT)) for p in below(ROOT / "outrider")}
    return root | {
        str(Path("outrider", p.relative_to(ROOT))) for f in FOLDERS for p in below(ROOT / f)
    }


def copy_tree(target: Path) -> None:
    """Everything a build reads, so that no old build folder has a say."""
    ignore = shutil.ignore_patterns("__pycache__", "*.egg-info", "build", "dist", ".*")
    shutil.copytree(ROOT, target, ignore=ignore, symlinks=True)


def build(tree: Path, kind: str) -> Path:
    """Build with the installed setuptools; the one file that came out."""
    code = f"import sys; from setuptools import build_meta as b; b.build_{kind}(sys.argv[1])"
    out = tree / "out"
    out.mkdir(exist_ok=True)
    command = [sys.executable, "-W", "ignore", "-c", code, str(out)]
    done = subprocess.run(command, cwd=tree, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = out.glob("*.whl" if kind == "wheel" else "*.tar.gz")
    return built


def names_in(wheel: Path) -> set[str]:
    names = zipfile.ZipFile(wheel).namelist()
    return {n for n in names if not n.endswith("/") and ".dist-info/" not in n}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tree = tmp_path_factory.mktemp("wheel") / "tree"
    copy_tree(tree)
    return build(tree, "wheel")


def test_the_wheel_holds_the_tree(wheel: Path) -> None:
    assert names_in(wheel) == shipped_by_tree()


def test_the_wheel_is_small(wheel: Path) -> None:
    assert wheel.stat().st_size <= MOST_WHEEL_BYTES


def test_a_wheel_made_from_the_sdist_holds_the_same(wheel: Path, tmp_path: Path) -> None:
    copy_tree(tmp_path / "tree")
    archive = build(tmp_path / "tree", "sdist")
    shutil.unpack_archive(archive, tmp_path / "unpacked", filter="data")
    (tree,) = (tmp_path / "unpacked").iterdir()
    assert names_in(build(tree, "wheel")) == names_in(wheel)
    assert (tree / "tests" / Path(__file__).name).is_file()


def test_links_lead_to_the_five_folders() -> None:
    links = {p.name: str(p.readlink()) for p in (ROOT / "outrider").iterdir() if p.is_symlink()}
    assert links == {name: f"../{name}" for name in FOLDERS}


def test_one_version() -> None:
    assert outrider.__version__ == project()["version"]


def test_no_cuda_package_without_a_gpu() -> None:
    if Path("/proc/driver/nvidia/version").exists() or shutil.which("nvidia-smi"):
        pytest.skip("this machine has an NVIDIA GPU")
    names = {(d.metadata["Name"] or "").lower() for d in distributions()}
    assert not {n for n in names if n.startswith("nvidia-")}


def normal(requirement: str) -> str:
    return re.split(r"[\s\[<>=!~;]", requirement, maxsplit=1)[0].lower().replace("_", "-")


def declared() -> set[str]:
    """Distributions that an installation for users can bring."""
    table = project()
    extras = {
        k: v
        for k, v in table["optional-dependencies"].items()
        if k not in ("clients", "dev", "docs")
    }
    lines = [*table["dependencies"], *(line for extra in extras.values() for line in extra)]
    return {normal(line) for line in lines}


def imported(file: Path) -> set[str]:
    """Top names of the absolute imports in a file."""
    nodes = list(ast.walk(ast.parse(file.read_text())))
    plain = {a.name for n in nodes if isinstance(n, ast.Import) for a in n.names}
    named = {n.module for n in nodes if isinstance(n, ast.ImportFrom) and n.module and not n.level}
    return {name.partition(".")[0] for name in plain | named}


def test_every_import_is_declared() -> None:
    files = [p for f in ("outrider", *FOLDERS) for p in below(ROOT / f) if p.suffix == ".py"]
    names = set().union(*(imported(f) for f in files))
    foreign = names - sys.stdlib_module_names - {"outrider", "__future__"} - OPTIONAL
    wanted = {DISTRIBUTIONS.get(n, n).lower().replace("_", "-") for n in foreign}
    assert wanted - declared() == set()


def test_every_requirement_is_pinned() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = {normal(line) for line in lines if not line.startswith("#")}
    assert all("==" in line for line in lines if not line.startswith("#"))
    assert "torch==2.13.0" in lines
    assert declared() - pins - {"outrider", "ray", "vllm"} == set()
