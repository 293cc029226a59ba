"""The parts of `bench use` in one object."""

from __future__ import annotations

from bench import use


def test_parts_are_joined_under_their_own_names() -> None:
    parts = {
        "clients": {"cases": 2, "figures": {"clients_ok": 1}, "cells": [{"client": "curl"}]},
        "idle": {"cases": 1, "figures": {"idle_rss_mb": 80.0}, "controls": {"red": 1}},
    }
    found = use.joined(parts)
    assert found["cases"] == 3
    assert found["figures"] == {"clients_ok": 1, "idle_rss_mb": 80.0}
    assert found["controls"] == {"idle: red": 1}
    assert found["cells"] == [{"part": "clients", "client": "curl"}]
    assert found["losing"] == []


def test_every_figure_of_the_parts_has_its_place() -> None:
    assert set(use.PARTS) == {"clients", "schema", "idle", "top"}
