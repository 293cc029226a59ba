"""What `outrider pull` was asked for, and which files of a repository that means."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from outrider.errors import InvalidRequest, ModelUnsupported, NotFound
from outrider.models.shelf import readable

REPO = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,127}")
FILE = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._+/-]{0,250}")
SPLIT = re.compile(r"(?P<stem>.+)-\d{5}-of-\d{5}\.gguf")
QUANT = re.compile(
    r"(?i)(?:^|[-._])((?:UD-)?(?:I?Q\d\w*|TQ\d\w*|MXFP4\w*|BF16|F16|F32|FP16|FP32))$"
)
MAIN = "main"

CONFIG = "config.json"
INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
BESIDE = (
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
)
"""Small files that a folder of safetensors is read with."""
LICENCES = re.compile(r"(?i)(LICEN[CS]E|NOTICE|USE_POLICY)([._-].*)?")
MOST_TEXT = 1 << 20
"""Bytes of a licence's text."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """REPO[:FILE][@REVISION] on a hub. `part` is a file's name or a quantisation; or empty."""

    repo: str
    part: str = ""
    revision: str = MAIN

    @classmethod
    def parse(cls, text: str) -> Wanted:
        """Raises InvalidRequest."""
        rest, at, revision = text.removeprefix("hf:").partition("@")
        repo, colon, part = rest.partition(":")
        if not REPO.fullmatch(repo) or ".." in repo or "--" in repo:
            raise _malformed(text, "a repository is OWNER/NAME")
        if at and not (REVISION.fullmatch(revision) and ".." not in revision):
            raise _malformed(text, "after @ comes a branch, a tag or a commit")
        if colon and not (FILE.fullmatch(part) and ".." not in part):
            raise _malformed(text, "after : comes a file's name, or a quantisation such as Q8_0")
        return cls(repo, part, revision or MAIN)

    def __str__(self) -> str:
        part = f":{self.part}" if self.part else ""
        return f"{self.repo}{part}" + ("" if self.revision == MAIN else f"@{self.revision}")


def _malformed(text: str, why: str) -> InvalidRequest:
    return InvalidRequest(
        f"{text!r} names no model on a hub",
        param="model",
        why=why,
        effect="nothing was pulled",
        todo="write OWNER/NAME, OWNER/NAME:Q8_0 or OWNER/NAME@REVISION; ./FOLDER or a file's path"
        " for what lies here; outrider models --presets lists short names",
    )


@dataclass(frozen=True, slots=True)
class Selected:
    """The files that make one model, by their path in the repository."""

    kind: Literal["safetensors", "gguf"]
    first: tuple[str, ...]
    """Small ones, fetched and looked at before the rest."""
    weights: tuple[str, ...]
    quantisation: str = ""
    """Of a GGUF, by its name."""

    @property
    def files(self) -> tuple[str, ...]:
        return (*self.first, *self.weights)


def select(wanted: Wanted, sizes: dict[str, int]) -> Selected:
    """What to fetch of a repository that holds these paths with these sizes in bytes.

    Pickles, programs and what no loader here reads are never among it. Raises NotFound,
    ModelUnsupported with what there is to choose from.
    """
    names = tuple(sorted(name for name in sizes if FILE.fullmatch(name) and ".." not in name))
    groups = _gguf_groups(names)
    if wanted.part:
        return _gguf(wanted, groups, sizes, names)
    if _has_safetensors(names):
        return _safetensors(wanted, names, sizes)
    if groups:
        return _gguf(wanted, groups, sizes, names)
    raise ModelUnsupported(
        f"{wanted.repo} holds no model that can be read here",
        why=_why_not(names),
        effect="nothing was pulled",
        todo="pull a repository with config.json and safetensors, or with GGUF files",
    )


def _why_not(names: Sequence[str]) -> str:
    if any(name.endswith((".bin", ".pt", ".pth", ".pkl", ".ckpt")) for name in names):
        return "its weights are pickles, which can run programs when they are loaded"
    return "it has neither config.json with safetensors, nor a GGUF file"


# --- safetensors -------------------------------------------------------------------------------


def _has_safetensors(names: Iterable[str]) -> bool:
    there = set(names)
    return CONFIG in there and any(_at_top(n) and n.endswith(".safetensors") for n in there)


def _at_top(name: str) -> bool:
    return "/" not in name


def _safetensors(wanted: Wanted, names: Sequence[str], sizes: dict[str, int]) -> Selected:
    there = set(names)
    beside = [name for name in BESIDE if name in there]
    licences = [n for n in names if LICENCES.fullmatch(n) and sizes[n] <= MOST_TEXT]
    if INDEX in there:
        # The index says which shards there are; it is read before any of them is fetched.
        shards = tuple(n for n in names if re.fullmatch(r"model-\d{5}-of-\d{5}\.safetensors", n))
        return Selected("safetensors", (CONFIG, INDEX, *beside, *licences), shards)
    found = [n for n in names if _at_top(n) and n.endswith(".safetensors")]
    weights = [SINGLE] if SINGLE in there else found
    if len(weights) != 1:
        raise ModelUnsupported(
            f"{wanted.repo} holds {len(weights)} safetensors files and no index",
            why="which of them make the model is not said",
            effect="nothing was pulled",
            todo="pull another repository of the model",
        )
    return Selected("safetensors", (CONFIG, *beside, *licences), tuple(weights))


# --- GGUF --------------------------------------------------------------------------------------


def _gguf_groups(names: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Stem to the file, or to all parts of a split one; projectors of images are left out."""
    groups: dict[str, list[str]] = {}
    for name in names:
        if name.endswith(".gguf") and not name.rpartition("/")[2].startswith("mmproj"):
            split = SPLIT.fullmatch(name)
            groups.setdefault(split["stem"] if split else name[: -len(".gguf")], []).append(name)
    return {stem: tuple(sorted(parts)) for stem, parts in groups.items()}


def quantisation(stem: str) -> str:
    """`Q8_0` of `qwen3-0.6b-q8_0`; empty where the name does not tell."""
    found = QUANT.search(stem.rpartition("/")[2])
    return found[1].upper() if found else ""


def _gguf(
    wanted: Wanted,
    groups: dict[str, tuple[str, ...]],
    sizes: dict[str, int],
    names: Sequence[str],
) -> Selected:
    fitting = [stem for stem in groups if _fits(wanted.part, stem, groups[stem])]
    if len(fitting) == 1:
        stem = fitting[0]
        licences = [n for n in names if LICENCES.fullmatch(n) and sizes[n] <= MOST_TEXT]
        return Selected("gguf", tuple(licences), groups[stem], quantisation(stem))
    if wanted.part and not fitting:
        raise NotFound(
            f"{wanted.repo} holds no {wanted.part}",
            param="model",
            why=_choices(groups, sizes),
            effect="nothing was pulled",
            todo=f"write {wanted.repo}:NAME with one of them",
        )
    raise ModelUnsupported(
        f"{wanted.repo} holds {len(fitting)} GGUF models{' of ' * bool(wanted.part)}{wanted.part}",
        why=_choices({stem: groups[stem] for stem in fitting}, sizes),
        effect="nothing was pulled",
        todo=f"name one: {wanted.repo}:{_suggested(fitting)}",
    )


def _fits(part: str, stem: str, files: Sequence[str]) -> bool:
    """By quantisation, whole name, or the name of the first part; all without a wish."""
    base = stem.rpartition("/")[2].lower()
    wish = part.lower().removesuffix(".gguf")
    whole = {stem.lower(), base, *(file.lower().removesuffix(".gguf") for file in files)}
    return not part or wish in whole or wish == quantisation(stem).lower()


def _choices(groups: dict[str, tuple[str, ...]], sizes: dict[str, int]) -> str:
    if not groups:
        return "it has no GGUF file; leave the part after : away"
    shown = [
        f"{quantisation(stem) or files[0]} ({readable(sum(sizes[f] for f in files))})"
        for stem, files in sorted(groups.items())
    ]
    return "there are " + ", ".join(shown)


def _suggested(stems: Sequence[str]) -> str:
    """Q8_0 where there is one: it is exact, and near the unquantised model."""
    known = {quantisation(stem) or stem for stem in stems}
    return "Q8_0" if "Q8_0" in known else sorted(known)[0]
