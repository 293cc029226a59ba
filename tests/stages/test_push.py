"""Weights on their way to a worker that lacks them: what is kept, what is refused, what goes on."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from outrider.engine import EngineSpec, LayerRange
from outrider.errors import (
    ConfigError,
    DiskFull,
    EngineFull,
    ModelCorrupt,
    NotFound,
    RemoteProtocolError,
)
from outrider.models.check import check_safetensors
from outrider.models.source import resolve
from outrider.protocol.fleet import PushedFile, PushWant
from outrider.protocol.stages import StageLoad
from outrider.stages.channel import Credentials
from outrider.stages.parcel import Parcel, ParcelFile
from outrider.stages.push import push
from outrider.stages.store import SPARE, Reception, WeightStore
from outrider.stages.worker_at import WorkerAt
from tests.stages.town import Town, shelf, town

FIRST = LayerRange(0, 1, True, False)
LAST = LayerRange(5, 6, False, True)
GIB = 1 << 30


@pytest.fixture(scope="module")
def parcel() -> Parcel:
    return Parcel.of(resolve("bundled:target"))


@pytest.fixture
def place() -> Iterator[Town]:
    with town() as made:
        yield made


def store(folder: Path, limit: int = GIB, **changed: Any) -> WeightStore:
    return WeightStore(folder, limit, **{"free": lambda: 100 * GIB, **changed})


def offered(kept: WeightStore, parcel: Parcel, *layers: LayerRange, tenant: str = "a") -> Reception:
    return kept.receive(tenant, parcel.offer(parcel.contents(layers)))


def feed(reception: Reception, contents: tuple[ParcelFile, ...], most: int = 1 << 60) -> int:
    """What the coordinator would send, up to so many bytes; how many went."""
    sent = 0
    while isinstance(want := reception.next(), PushWant):
        for data in contents[want.index].read(want.offset):
            if sent + len(data) > most:
                return sent
            reception.add(data)
            sent += len(data)
    assert want == "done"
    return sent


def objects(kept: WeightStore) -> list[str]:
    return sorted(path.name for path in (kept.root / "objects").iterdir())


# --- what arrives ------------------------------------------------------------------------------


def test_a_worker_is_sent_the_layers_that_it_is_asked_for_and_nothing_twice(
    place: Town, parcel: Parcel, tmp_path: Path
) -> None:
    kept = store(tmp_path)
    address, worker = place.worker(shelf(models={}, store=kept))
    to = WorkerAt(address)
    sent = push(parcel, [FIRST], to, Credentials())
    assert sent == sum(file.size for file in parcel.contents([FIRST]))
    digest = parcel.files.digest
    folder = kept.view("anybody", digest, FIRST)
    assert folder is not None and kept.view("anybody", digest, LAST) is None
    names = {e.name for path in folder.glob("*.safetensors") for e in check_safetensors(path)}
    assert "model.embed_tokens.weight" in names
    assert all(n.startswith(("model.layers.0.", "model.embed_tokens")) for n in names)
    assert resolve(str(folder)).digest == digest
    assert push(parcel, [FIRST], to, Credentials()) == 0
    more = push(parcel, [FIRST, LAST], to, Credentials())
    assert 0 < more < sent
    load = StageLoad(b"p" * 16, 0, b"t" * 32, FIRST, weights_digest=digest)
    found = worker.shelf.choose(load, "anybody")
    assert found.path == str(folder) and found.hosted.layers == 6
    with pytest.raises(NotFound):
        worker.shelf.choose(load, "somebody else")


def test_a_stage_of_what_was_sent_is_the_stage_of_the_files(parcel: Parcel, tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="stages of the bundled model need torch")
    from outrider.engines.stages import build_stage

    kept = store(tmp_path)
    feed(offered(kept, parcel, LAST), parcel.contents([LAST]))
    spec = EngineSpec(
        str(kept.view("a", parcel.files.digest, LAST)), "torch", "cpu", "float32", context=32,
        max_slots=1, max_rows=8, threads=1,
    )  # fmt: skip
    part = build_stage(spec, LAST).info
    whole = build_stage(replace(spec, model="bundled:target"), LAST).info
    same = ("weights_digest", "numeric_class", "vocabulary_digest", "memory_bytes")
    for name in same:
        assert getattr(part, name) == getattr(whole, name), name


def test_a_worker_that_takes_none_says_how_it_would(place: Town, parcel: Parcel) -> None:
    address, _ = place.worker(shelf())
    with pytest.raises(ConfigError, match="takes no weights") as refused:
        push(parcel, [FIRST], WorkerAt(address), Credentials())
    assert "--accept-weights" in refused.value.todo


# --- what is refused ---------------------------------------------------------------------------


def test_another_content_than_was_named_is_thrown_away(parcel: Parcel, tmp_path: Path) -> None:
    kept, contents = store(tmp_path), parcel.contents([FIRST])
    offer = parcel.offer(contents)
    files = (*offer.files[:-1], replace(offer.files[-1], digest=b"\1" * 32))
    reception = kept.receive("a", replace(offer, files=files))
    with pytest.raises(ModelCorrupt, match="was not taken") as refused:
        feed(reception, contents)
    assert "SHA-256" in refused.value.why
    reception.end()
    assert ("01" * 32) not in objects(kept)
    assert not list((kept.root / "incoming").iterdir())
    assert kept.view("a", offer.digest, FIRST) is None


def test_tensors_that_are_not_the_configs_are_refused_before_any_loader(
    parcel: Parcel, tmp_path: Path
) -> None:
    kept = store(tmp_path)
    contents = parcel.contents([LayerRange(0, 2, False, False)])
    # Layer 1's bytes under layer 0's name, with their true digest.
    swapped = (*contents[:-2], replace(contents[-1], name=contents[-2].name))
    files = tuple(
        PushedFile(f.name, f.size, hashlib.sha256(b"".join(f.read())).digest()) for f in swapped
    )
    offer = replace(parcel.offer(contents), files=files)
    with pytest.raises(ModelCorrupt, match="unit-00000"):
        feed(kept.receive("a", offer), swapped)
    assert len(objects(kept)) == len(files) - 1


@pytest.mark.parametrize("name", ["../escape", "unit-1.safetensors", "weights.bin"])
def test_names_that_are_no_part_of_a_model_are_refused(
    name: str, parcel: Parcel, tmp_path: Path
) -> None:
    offer = parcel.offer(parcel.contents([FIRST]))
    files = (*offer.files[:-1], replace(offer.files[-1], name=name))
    with pytest.raises(RemoteProtocolError, match="no part of a model"):
        store(tmp_path).receive("a", replace(offer, files=files))


def test_more_than_the_worker_takes_is_refused_before_a_byte(
    parcel: Parcel, tmp_path: Path
) -> None:
    with pytest.raises(EngineFull, match="more than this worker takes") as refused:
        offered(store(tmp_path, limit=1 << 20), parcel, FIRST)
    assert "--accept-weights" in refused.value.todo


def test_more_bytes_than_a_file_has_are_not_written(parcel: Parcel, tmp_path: Path) -> None:
    kept = store(tmp_path)
    reception = offered(kept, parcel, FIRST)
    assert reception.next() == PushWant(0, 0)
    with pytest.raises(RemoteProtocolError, match="more of a file"):
        reception.add(b"x" * (reception.offer.files[0].size + 1))
    assert kept.used() == 0


def test_a_full_disk_is_named_before_it_is_full(parcel: Parcel, tmp_path: Path) -> None:
    room = [SPARE + 100]
    with pytest.raises(DiskFull, match="no room"):
        offered(store(tmp_path, free=lambda: room[0]), parcel, FIRST)
    room[0] = 100 * GIB
    kept = store(tmp_path, free=lambda: room[0])
    reception = offered(kept, parcel, FIRST)
    reception.next()
    room[0] = SPARE
    with pytest.raises(DiskFull):
        reception.add(b"{")


# --- what goes on ------------------------------------------------------------------------------


def test_an_interrupted_push_goes_on_where_it_ended(parcel: Parcel, tmp_path: Path) -> None:
    kept, contents = store(tmp_path), parcel.contents([FIRST])
    total = sum(file.size for file in contents)
    first = offered(kept, parcel, FIRST)
    went = feed(first, contents, most=total // 2)
    assert 0 < went < total
    first.end()
    again = offered(store(tmp_path), parcel, FIRST)
    assert feed(again, contents) == total - went
    assert store(tmp_path).view("a", parcel.files.digest, FIRST) is not None


def test_what_another_push_left_is_asked_for_anew_where_it_was_bad(
    parcel: Parcel, tmp_path: Path
) -> None:
    kept, contents = store(tmp_path), parcel.contents([FIRST])
    bad = parcel.offer(contents).files[0].digest.hex()
    (kept.root / "incoming" / f"{bad}.part").write_bytes(b"junk")
    assert feed(offered(kept, parcel, FIRST), contents) > sum(file.size for file in contents) - 4
    assert kept.view("a", parcel.files.digest, FIRST) is not None


def test_two_coordinators_bring_each_file_once_and_do_not_speak_for_each_other(
    parcel: Parcel, tmp_path: Path
) -> None:
    kept, contents = store(tmp_path), parcel.contents([FIRST])
    a, b = offered(kept, parcel, FIRST), offered(kept, parcel, FIRST, tenant="b")
    assert a.next() == PushWant(0, 0)
    assert b.next() == "wait"
    a.add(b"".join(contents[0].read()))
    wants = [a.next(), b.next()]
    assert all(isinstance(want, PushWant) for want in wants)
    assert wants[0] != wants[1]
    digest = parcel.files.digest
    for reception, want in ((b, wants[1]), (a, wants[0])):
        assert isinstance(want, PushWant)
        for data in contents[want.index].read():
            reception.add(data)
    feed(a, contents)
    assert kept.view("a", digest, FIRST) is not None
    assert kept.view("b", digest, FIRST) is None
    assert feed(b, contents) == 0
    assert kept.view("b", digest, FIRST) is not None


def test_the_oldest_give_way_but_never_what_is_loaded(parcel: Parcel, tmp_path: Path) -> None:
    size = sum(file.size for file in parcel.contents([FIRST]))
    used: list[str] = []
    kept = store(tmp_path, limit=size + 1000, in_use=lambda: used)
    first = offered(kept, parcel, FIRST)
    feed(first, parcel.contents([FIRST]))
    first.end()
    view = kept.view("a", parcel.files.digest, FIRST)
    used.append(str(view))
    with pytest.raises(EngineFull, match="in use"):
        offered(kept, parcel, LAST)
    used.clear()
    feed(offered(kept, parcel, LAST), parcel.contents([LAST]))
    assert kept.view("a", parcel.files.digest, LAST) is not None
    assert kept.view("a", parcel.files.digest, FIRST) is None
    assert kept.used() <= size + 1000
