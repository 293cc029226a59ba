"""The demo's target: the bundled one, inflated so that a step takes as long as a real model's."""

from __future__ import annotations

import os

MODEL = "outrider-target"


def made(step_ms: float) -> str:
    """The path of a target with steps of about `step_ms`; 0 takes the bundled one as it is."""
    if step_ms == 0:
        return "bundled:target"
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    from outrider.testing.inflate import inflated

    return str(inflated(step_ms=step_ms))
