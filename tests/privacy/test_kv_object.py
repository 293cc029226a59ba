"""A piece of KV opens as what it is, and as nothing else."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from outrider.errors import SealBroken
from outrider.privacy import chunked
from outrider.privacy.kv_object import KvIdentity, token_hash

KEY = bytes(range(32))
PIECE = KvIdentity(
    tenant="home",
    session=b"s" * 16,
    model_digest="m",
    numeric_class="c",
    layers=(0, 6),
    tokens=(64, 128),
    token_hash=token_hash((1, 2, 3)),
    index=1,
    count=4,
    epoch=2,
    purpose="wire",
)
OTHERS: dict[str, Any] = {
    "tenant": "away",
    "session": b"t" * 16,
    "model_digest": "n",
    "numeric_class": "d",
    "layers": (0, 5),
    "tokens": (0, 128),
    "token_hash": token_hash((1, 2, 4)),
    "index": 2,
    "count": 5,
    "epoch": 1,
    "purpose": "disk",
    "codec": "int8",
}


def test_every_field_is_bound() -> None:
    assert set(OTHERS) == set(KvIdentity.__struct_fields__)
    sealed = chunked.seal(KEY, PIECE.context(), b"keys and values")
    assert chunked.open_all(KEY, PIECE.context(), sealed) == b"keys and values"
    for field, other in OTHERS.items():
        swapped = msgspec.structs.replace(PIECE, **{field: other})
        with pytest.raises(SealBroken):
            chunked.open_all(KEY, swapped.context(), sealed)


def test_contexts_do_not_run_into_each_other() -> None:
    one = msgspec.structs.replace(PIECE, tenant="ab", model_digest="c")
    two = msgspec.structs.replace(PIECE, tenant="a", model_digest="bc")
    assert one.context() != two.context()


def test_the_hash_tells_lists_of_ids_apart() -> None:
    lists = [(), (0,), (0, 0), (1,), (256,), (1, 0), (2**31,)]
    assert len({token_hash(ids) for ids in lists}) == len(lists)
