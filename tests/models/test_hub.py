"""Pulling from a hub: what comes, what is refused, and what a cut leaves."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("huggingface_hub")
pytest.importorskip("transformers")

import huggingface_hub.file_download as downloads
import huggingface_hub.utils._http as requests

from outrider.errors import (
    AccessDenied,
    ConfigError,
    DiskFull,
    HubError,
    InvalidRequest,
    ModelChanged,
    ModelCorrupt,
    ModelUnsupported,
    NotFound,
    Offline,
    OutriderError,
    Overloaded,
)
from outrider.models import pins
from outrider.models.hub import Hub
from outrider.models.pull import Pull, default_name, is_place
from outrider.models.shelf import Shelf
from outrider.models.source import resolve
from outrider.models.wanted import Wanted, select
from outrider.testing.hub import StandInHub
from tests.models.hub_models import write_all

LLAMA, QWEN, GGUF = "tiny/Llama-Tiny", "tiny/Qwen3-Tiny", "tiny/Llama-Tiny-GGUF"
NEVER = ("pytorch_model.bin", "run.py")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("repos")
    write_all(root)
    return root


@pytest.fixture
def hub(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandInHub]:
    class NoSleep:
        @staticmethod
        def sleep(seconds: float) -> None:
            return

    for module in (downloads, requests):
        monkeypatch.setattr(module, "time", NoSleep)
    # What a cut may lose; the library's own pieces are larger than these models.
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 10_000)
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "OUTRIDER_OFFLINE", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.setenv("OUTRIDER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("OUTRIDER_MODELS", str(tmp_path / "models"))
    with StandInHub() as standing:
        standing.add(LLAMA, made / "llama")
        standing.add(QWEN, made / "qwen3")
        standing.add(GGUF, made / "gguf", licence="llama3.2")
        monkeypatch.setenv("HF_ENDPOINT", standing.url)
        yield standing


@pytest.fixture
def notes() -> list[str]:
    return []


@pytest.fixture
def work(hub: StandInHub, notes: list[str]) -> Pull:
    return Pull(Shelf(), Hub(), now=lambda: 1000.0, note=notes.append, room=lambda path: 1 << 40)


def pull(work: Pull, text: str, name: str = "", **changes: Any) -> Any:
    return work.fetch(Wanted.parse(text), name, **changes)


# --- what comes --------------------------------------------------------------------------------


def test_a_folder_of_safetensors(work: Pull, hub: StandInHub, notes: list[str], made: Path) -> None:
    entry = pull(work, LLAMA)
    assert (entry.name, entry.kind, entry.quantisation) == ("llama-tiny", "safetensors", "bfloat16")
    assert (entry.repo, entry.commit) == (LLAMA, hub.repos[LLAMA].main)
    assert entry.licence == "apache-2.0" and "licence: apache-2.0" in notes
    assert entry.digest == resolve(str(made / "llama")).digest
    fetched = {asked.path.rpartition("/")[2] for asked in hub.asked if "resolve" in asked.path}
    assert "model.safetensors" in fetched and "LICENSE" in fetched
    assert not fetched & set(NEVER)
    assert resolve("llama-tiny").folder == entry.folder


def test_shards_come_by_their_index(work: Pull, made: Path) -> None:
    entry = pull(work, QWEN)
    assert sum(f.name.endswith(".safetensors") for f in entry.files) > 1
    assert resolve("qwen3-tiny").digest == resolve(str(made / "qwen3")).digest


def test_one_quantisation_of_many(work: Pull, hub: StandInHub) -> None:
    entry = pull(work, f"{GGUF}:q8_0")
    assert (entry.name, entry.quantisation) == ("llama-tiny:q8_0", "Q8_0")
    assert [file.name for file in entry.files] == ["tiny-llama-Q8_0.gguf"]
    assert not hub.fetched("tiny-llama-F16.gguf")
    by_file = pull(work, f"{GGUF}:tiny-llama-F16.gguf")
    assert by_file.name == "llama-tiny:f16"


def test_a_choice_that_was_not_made_is_asked_for(work: Pull) -> None:
    with pytest.raises(ModelUnsupported, match=r"Q8_0 \(\d+ KiB\)") as caught:
        pull(work, GGUF)
    assert f"{GGUF}:Q8_0" in caught.value.todo
    with pytest.raises(NotFound, match="Q4_K_M"):
        pull(work, f"{GGUF}:Q4_K_M")


def test_the_tiny_models_run(work: Pull) -> None:
    """What was pulled is what an engine computes, by its name alone."""
    from outrider.engine import EngineSpec, Span
    from outrider.engines import registry

    pull(work, QWEN)
    engine = registry.build(EngineSpec(model="qwen3-tiny", threads=1))
    slot = engine.open()
    assert engine.extend([Span(slot, 0, (5, 6, 7), 2)])[0].ids
    engine.shutdown()
    assert work.shelf.used("qwen3-tiny") is not None


# --- where it goes on --------------------------------------------------------------------------


def test_a_cut_in_the_middle_goes_on_from_there(work: Pull, hub: StandInHub) -> None:
    hub.faults.cut_after["model.safetensors"] = [50_000, 60_000]
    pull(work, LLAMA)
    ranges = [a.range for a in hub.fetched("model.safetensors") if "/store/" in a.path]
    assert ranges == ["", "bytes=50000-", "bytes=110000-"]


def test_a_cut_that_ended_the_process_goes_on_with_the_next(work: Pull, hub: StandInHub) -> None:
    hub.faults.cut_after["model.safetensors"] = [70_000] + [0] * 6
    with pytest.raises(HubError, match="broke"):
        pull(work, LLAMA)
    assert not work.shelf.names(), "half a model has no name"
    hub.asked.clear()
    hub.faults.cut_after.clear()
    pull(work, LLAMA)
    ranges = [a.range for a in hub.fetched("model.safetensors") if "/store/" in a.path]
    assert ranges == ["bytes=70000-"]
    assert not hub.fetched("config.json"), "what was whole is not fetched again"


def test_no_token_reaches_the_storage(
    work: Pull, hub: StandInHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", hub.token)
    pull(work, LLAMA)
    asked = hub.fetched("model.safetensors")
    assert [a.authorized for a in asked] == [True, False]


# --- what is refused ---------------------------------------------------------------------------


def test_other_bytes_than_listed_are_thrown_away(work: Pull, hub: StandInHub) -> None:
    for name in ("config.json", "model.safetensors"):
        hub.faults.forged = {name}
        with pytest.raises(ModelCorrupt, match=name):
            pull(work, LLAMA)
        assert not list(work.shelf.root.rglob(f"{name}*")), "it is not kept to go on with"
    assert not work.shelf.names()


def test_gated(work: Pull, hub: StandInHub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.repos[LLAMA].gated = "manual"
    with pytest.raises(AccessDenied, match="HF_TOKEN is not set") as caught:
        pull(work, LLAMA)
    assert f"{hub.url}/{LLAMA}" in caught.value.todo and "accept" in caught.value.todo
    assert not hub.fetched("model.safetensors"), "nothing was begun"
    monkeypatch.setenv("HF_TOKEN", hub.token)
    with pytest.raises(AccessDenied, match="not agreed"):
        pull(work, LLAMA)
    agreed: list[str] = []

    def agree(repo: str, licence: str) -> bool:
        agreed.append(licence)
        return True

    willing = Pull(
        work.shelf,
        work.hub,
        work.now,
        room=work.room,
        agree=agree,
    )
    assert pull(willing, LLAMA).name == "llama-tiny" and agreed == ["apache-2.0"]
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(AccessDenied, match="token"):
        pull(willing, LLAMA)


@pytest.mark.parametrize(
    ("text", "kind", "said"),
    [
        ("tiny/Absent", NotFound, "was not found"),
        (f"{LLAMA}@no-such-branch", NotFound, "no revision no-such-branch"),
    ],
)
def test_what_is_not_there(work: Pull, text: str, kind: type[OutriderError], said: str) -> None:
    with pytest.raises(kind, match=said):
        pull(work, text)


def test_too_many_requests_say_when_to_come_back(work: Pull, hub: StandInHub) -> None:
    hub.faults.status, hub.faults.retry_after = 429, "17"
    with pytest.raises(Overloaded, match="17 s") as caught:
        pull(work, LLAMA)
    assert caught.value.retry_after_s == 17.0
    hub.faults.status = 500
    with pytest.raises(HubError, match="answered 500"):
        pull(work, LLAMA)


def test_nobody_there(work: Pull, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(HubError, match="ConnectError"):
        pull(work, LLAMA)


def test_a_disk_without_room(
    work: Pull, hub: StandInHub, monkeypatch: pytest.MonkeyPatch, notes: list[str]
) -> None:
    tight = Pull(work.shelf, work.hub, work.now, notes.append, room=lambda path: 1 << 20)
    with pytest.raises(DiskFull, match="are free"):
        pull(tight, LLAMA)
    assert not hub.fetched("model.safetensors")

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(downloads, "http_get", full)
    with pytest.raises(DiskFull, match="the disk is full"):
        pull(work, LLAMA)


def test_offline_asks_nothing(work: Pull, hub: StandInHub, monkeypatch: pytest.MonkeyPatch) -> None:
    for switch in ("OUTRIDER_OFFLINE", "HF_HUB_OFFLINE"):
        monkeypatch.setenv(switch, "1")
        with pytest.raises(Offline, match=switch):
            pull(work, LLAMA)
        monkeypatch.delenv(switch)
    assert not hub.asked


def test_pickles_and_foreign_architectures_are_refused_before_the_weights(
    work: Pull, hub: StandInHub, made: Path, tmp_path: Path
) -> None:
    pickles = tmp_path / "pickles"
    pickles.mkdir()
    (pickles / "config.json").write_text("{}")
    (pickles / "pytorch_model.bin").write_bytes(b"x")
    hub.add("tiny/Pickles", pickles)
    with pytest.raises(ModelUnsupported, match="pickles"):
        pull(work, "tiny/Pickles")
    other = shutil.copytree(made / "llama", tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "model_type": "mamba"}))
    hub.add("tiny/Mamba", other)
    with pytest.raises(ModelUnsupported, match="mamba"):
        pull(work, "tiny/Mamba")
    assert not hub.fetched("model.safetensors")


def test_a_file_that_would_fool_a_loader_gets_no_name(
    work: Pull, hub: StandInHub, made: Path, tmp_path: Path
) -> None:
    bad = shutil.copytree(made / "llama", tmp_path / "bad")
    with (bad / "model.safetensors").open("r+b") as stream:
        stream.truncate(100_000)
    hub.add("tiny/Bad", bad)
    with pytest.raises(ModelCorrupt):
        pull(work, "tiny/Bad")
    assert not work.shelf.names()


@pytest.mark.parametrize("name", ["../evil.gguf", "a/../../evil-Q8_0.gguf", "evil\\x.gguf"])
def test_files_with_odd_names_are_not_chosen(name: str) -> None:
    with pytest.raises(ModelUnsupported):
        select(Wanted("a/b"), {name: 5})


def test_an_index_can_not_name_foreign_files(
    work: Pull, hub: StandInHub, made: Path, tmp_path: Path
) -> None:
    bad = shutil.copytree(made / "qwen3", tmp_path / "odd")
    index = json.loads((bad / "model.safetensors.index.json").read_text())
    index["weight_map"]["x"] = "../../secret.safetensors"
    (bad / "model.safetensors.index.json").write_text(json.dumps(index))
    hub.add("tiny/Odd", bad)
    with pytest.raises(ModelCorrupt, match="does not hold"):
        pull(work, "tiny/Odd")


# --- pins --------------------------------------------------------------------------------------


@pytest.fixture
def moved(hub: StandInHub, made: Path, tmp_path: Path) -> Callable[[], str]:
    """The repository gets a commit with other weights."""

    def move() -> str:
        other = shutil.copytree(made / "llama", tmp_path / "moved")
        data = bytearray((other / "model.safetensors").read_bytes())
        data[-1] ^= 1
        (other / "model.safetensors").write_bytes(data)
        return hub.add(LLAMA, other)

    return move


def test_a_moved_repository_is_refused_until_it_is_wanted(
    work: Pull, hub: StandInHub, moved: Callable[[], str]
) -> None:
    old = pull(work, LLAMA)
    new = moved()
    hub.asked.clear()
    with pytest.raises(ModelChanged, match=r"model\.safetensors changed") as caught:
        pull(work, LLAMA)
    assert f"{LLAMA}@{old.commit}" in caught.value.todo and "--update" in caught.value.todo
    assert not hub.fetched("model.safetensors") and resolve("llama-tiny").digest == old.digest
    assert pull(work, f"{LLAMA}@{old.commit}").digest == old.digest
    taken = pull(work, LLAMA, update=True)
    assert (taken.commit, taken.digest != old.digest) == (new, True)
    assert len(hub.fetched("model.safetensors")) == 2, "from the hub, and from its storage"
    lock = pins.read(work.shelf.root).repos[LLAMA]["main"]["model.safetensors"]
    assert lock.commit == new and len(lock.sha256) == 64


def test_pins_outlive_the_model(work: Pull, moved: Callable[[], str]) -> None:
    pull(work, LLAMA)
    work.shelf.remove("llama-tiny")
    assert not list(work.shelf.root.rglob("*.safetensors"))
    moved()
    with pytest.raises(ModelChanged):
        pull(work, LLAMA)


def test_one_commit_with_other_bytes_is_a_forgery(work: Pull, hub: StandInHub) -> None:
    pull(work, LLAMA)
    hub.faults.listed["model.safetensors"] = "0" * 64
    with pytest.raises(ModelCorrupt, match="do not trust this hub"):
        pull(work, LLAMA, update=True)


def test_a_changed_file_is_not_loaded(work: Pull) -> None:
    entry = pull(work, LLAMA)
    weights = entry.folder / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(ModelChanged, match="another SHA-256"):
        resolve("llama-tiny")
    pull(work, LLAMA)
    assert resolve("llama-tiny").digest == entry.digest, "a pull mends it"


def test_a_broken_lock_stops_a_pull(work: Pull) -> None:
    work.shelf.root.mkdir(parents=True)
    (work.shelf.root / pins.FILE).write_text("{")
    with pytest.raises(OutriderError, match="can not be read"):
        pull(work, LLAMA)


# --- names -------------------------------------------------------------------------------------


def test_in_place_and_removal(work: Pull, made: Path) -> None:
    entry = work.register(str(made / "llama"), "mine")
    assert entry.origin == "place" and Path(entry.path) == (made / "llama").resolve()
    assert resolve("mine").weights[0].is_file() and not (work.shelf.root / "hub").exists()
    work.shelf.remove("mine")
    assert (made / "llama" / "model.safetensors").is_file(), "it was only forgotten"
    file = work.register(str(made / "gguf" / "tiny-llama-Q8_0.gguf"))
    assert file.name == "tiny-llama-q8_0" and resolve(file.name).kind == "gguf"


def test_quantisations_of_one_commit_are_removed_one_by_one(work: Pull) -> None:
    for quant in ("Q8_0", "F16"):
        pull(work, f"{GGUF}:{quant}")
    work.shelf.remove("llama-tiny:q8_0")
    assert resolve("llama-tiny:f16").path.is_file()
    work.shelf.remove("llama-tiny:f16")
    assert not list(work.shelf.root.rglob("*.gguf"))


def test_the_nearest_name_stands_in_the_error(work: Pull) -> None:
    pull(work, LLAMA)
    with pytest.raises(NotFound, match="did you mean llama-tiny"):
        resolve("lama-tiny")
    with pytest.raises(NotFound, match=r"outrider pull qwen3:0\.6b"):
        resolve("qwen3:0.6")


def test_a_name_wins_over_a_folder_of_the_working_directory(
    work: Pull, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = pull(work, LLAMA)
    (tmp_path / "llama-tiny").mkdir()
    monkeypatch.chdir(tmp_path)
    assert resolve("llama-tiny").folder == entry.folder


def test_a_name_is_not_taken_from_another_model(work: Pull, made: Path) -> None:
    pull(work, LLAMA, "one")
    with pytest.raises(ConfigError, match="another model"):
        pull(work, QWEN, "one")
    with pytest.raises(ConfigError, match="another model"):
        work.register(str(made / "qwen2"), "one")


@pytest.mark.parametrize("text", ["", "x", "a/b/c", "a/b@", "a/b:", "a/../b", "a/b:../c", "a b/c"])
def test_malformed_wishes(text: str) -> None:
    if text in ("a/b@", "a/b:"):
        with pytest.raises(InvalidRequest):
            Wanted.parse(text)
        return
    with pytest.raises(InvalidRequest, match="names no model"):
        Wanted.parse(text)


@pytest.mark.parametrize("name", ["Big", "a/b", "bundled:x", "none", "x.gguf", "a:b:c", "", "-a"])
def test_what_can_be_no_name(work: Pull, name: str, made: Path) -> None:
    if not name:
        assert default_name("Qwen/Qwen3-0.6B-GGUF", "Q8_0") == "qwen3-0.6b:q8_0"
        return
    with pytest.raises(ConfigError, match="can not be a model's name"):
        work.register(str(made / "llama"), name)


def test_paths_and_repositories_are_told_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    assert all(map(is_place, ("./x", "/x", "~/x", "x.gguf", "a/b.gguf", "here")))
    assert not any(map(is_place, ("a/b", "a/b:c.gguf", "qwen3:0.6b", "there")))
