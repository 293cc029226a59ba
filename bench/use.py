"""`bench use`: what it is like to live with it.

Four parts, each a bench of its own, too (`python -m bench.use_NAME`): real clients unmodified,
answers kept to a schema with drafts on, the idle daemon and a newcomer's path, and what the
screen costs. Their figures, controls and cells stand here under their own names.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any

from bench import harness, use_clients, use_idle, use_schema, use_top
from bench.harness import note

PARTS: Mapping[str, Callable[..., Mapping[str, Any]]] = {
    "clients": use_clients.run,
    "schema": use_schema.run,
    "idle": use_idle.run,
    "top": use_top.run,
}


def run(*, quick: bool) -> dict[str, Any]:
    """One after the other, so that no part is measured beside another."""
    found = {}
    for name, part in PARTS.items():
        note(name)
        found[name] = part(quick=quick)
    return joined(found)


def joined(found: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """One object of several; cells say of which part they are."""
    return {
        "cases": sum(part["cases"] for part in found.values()),
        "figures": {
            key: value for part in found.values() for key, value in part["figures"].items()
        },
        "controls": {
            f"{name}: {key}": value
            for name, part in found.items()
            for key, value in part.get("controls", {}).items()
        },
        "cells": _named(found, "cells"),
        "losing": _named(found, "losing"),
        "models": {key: v for part in found.values() for key, v in part.get("models", {}).items()},
    }


def _named(found: Mapping[str, Mapping[str, Any]], key: str) -> list[dict[str, Any]]:
    return [{"part": name, **cell} for name, part in found.items() for cell in part.get(key, ())]


if __name__ == "__main__":
    sys.exit(harness.main("use", run))
