"""Flags of a split model, on both servers."""

from __future__ import annotations

import pytest

from outrider.engine import EngineSpec
from outrider.engines import registry
from outrider.errors import ConfigError
from outrider.options import Address, CloudOptions, EdgeOptions
from outrider.stages.engine import OPTIONS

HOME, AWAY = Address("127.0.0.1", 11713), Address("10.0.0.7", 11713)


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ({"layers": "0:3,3:6"}, "need --workers"),
        ({"activations": "int8"}, "need --workers"),
        ({"workers": (HOME,), "engine": "torch"}, "--engine torch computes here"),
        ({"workers": (AWAY,)}, "beyond loopback needs TLS"),
        ({"workers": (HOME, HOME)}, "names a device twice"),
    ],
)
def test_a_cloud_that_can_not_be_split_so_is_refused(wrong: dict[str, object], why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        CloudOptions(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("wrong", [{"split": "bundled:target"}, {"workers": (HOME,)}])
def test_an_edge_needs_model_and_workers(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="--split and --workers go together"):
        EdgeOptions(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({}, "needs workers"),
        ({"worker": "127.0.0.1:1"}, "no option 'worker'"),
        ({"workers": "127.0.0.1:1", "activations": "zip"}, "no code 'zip'"),
        ({"workers": "127.0.0.1:1", "chunk": "0"}, "micro-batch of '0' rows"),
        ({"workers": "127.0.0.1:1", "layers": "0:2,3:6"}, "does not spell the whole model"),
    ],
)
def test_a_split_engine_told_wrong_is_refused_before_anything_is_loaded(
    options: dict[str, str], why: str
) -> None:
    spec = EngineSpec("bundled:target", "split", options=tuple(options.items()))
    with pytest.raises(ConfigError, match=why):
        registry.build(spec)
    assert set(options) <= set(OPTIONS) or "no option" in why


def test_workers_that_do_not_answer_are_named() -> None:
    from outrider.errors import PlanError

    spec = EngineSpec("bundled:target", "split", options=(("workers", "127.0.0.1:9"),))
    with pytest.raises(PlanError, match="no worker can hold layers") as caught:
        registry.build(spec)
    assert "127.0.0.1:9" in caught.value.why
