"""Errors over the wire: the same class, words and numbers on the far side."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from outrider import errors
from outrider.errors import OutriderError
from outrider.protocol import faults


def kinds(base: type[OutriderError] = OutriderError) -> list[type[OutriderError]]:
    """The drawn tree: what other modules derive from it travels as what it is derived from."""
    drawn = [below for below in base.__subclasses__() if below.__module__ == errors.__name__]
    return [base, *(kind for below in drawn for kind in kinds(below))]


def made(kind: type[OutriderError]) -> OutriderError:
    if issubclass(kind, errors.EngineMissing):
        return kind("torch", "torch")
    if issubclass(kind, errors.HandshakeRefused):
        return kind("numeric class", ours="a", theirs="b", todo="update")
    if issubclass(kind, errors.Overloaded):
        return kind("full", retry_after_s=2.5, why="many", effect="none", todo="wait")
    if issubclass(kind, errors.InvalidRequest):
        return kind("bad", param="top_p", why="it is", effect="none", todo="fix it")
    if issubclass(kind, errors.Unplannable):
        return kind("no", constraint="memory >= 2 GiB", nearest="1 GiB", todo="add a device")
    if issubclass(kind, errors.StageLost):
        return kind("gone", device="phone", why="silent", effect="none", todo="plan anew")
    return kind("bad", why="it is", effect="none", todo="fix it")


@pytest.mark.parametrize("kind", kinds(), ids=lambda kind: kind.__name__)
def test_every_error_comes_back_as_itself(kind: type[OutriderError]) -> None:
    error = made(kind)
    again = faults.unpack(faults.pack(error))
    assert type(again) is kind
    assert str(again) == str(error)
    assert vars(again) == vars(error)


def test_codes_are_unique_and_every_status_is_grpcs() -> None:
    grpc = pytest.importorskip("grpc", reason="the cloud extra is not installed")
    codes = [kind.code for kind in kinds()]
    assert len(set(codes)) == len(codes)
    assert all(hasattr(grpc.StatusCode, kind.grpc_status) for kind in kinds())


def test_the_names_in_the_metadata() -> None:
    parts = msgspec.msgpack.decode(faults.pack(made(errors.Overloaded)))
    assert parts.keys() == {"code", "what", "why", "effect", "todo", "retry_after_s"}
    assert faults.METADATA == "outrider-error-bin"


@given(st.binary(max_size=80))
def test_garbage_becomes_a_plain_error(data: bytes) -> None:
    assert isinstance(faults.unpack(data), OutriderError)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=9),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=5,
)


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "code": st.sampled_from([kind.code for kind in kinds()]) | JSON,
            "what": JSON,
            "why": JSON,
            "param": JSON,
            "retry_after_s": JSON,
        },
    )
)
def test_any_map_becomes_an_error_with_sound_fields(parts: dict[str, Any]) -> None:
    error = faults.unpack(msgspec.msgpack.encode(parts))
    assert all(isinstance(text, str) for text in (error.what, error.why, str(error)))
    if isinstance(error, errors.Overloaded):
        assert math.isfinite(error.retry_after_s) and error.retry_after_s >= 0


@pytest.mark.parametrize("wait", [math.nan, math.inf, -1.0, -1, 1e300, 2**64 - 1, "1", None, []])
def test_a_time_that_can_not_be_meant_is_replaced(wait: Any) -> None:
    error = faults.from_parts({"code": "overloaded", "retry_after_s": wait})
    assert isinstance(error, errors.Overloaded)
    assert error.retry_after_s == faults.RETRY_S
