"""One engine, loaded and asked for one token, in a process of its own: `doctor` starts it.

A native library that was built for another processor dies with a signal; here it
takes nobody with it. Prints one JSON object.
"""

from __future__ import annotations

import sys
import time

import msgspec

from outrider.engine import EngineSpec, Span
from outrider.engines import registry
from outrider.errors import OutriderError


def probe(name: str) -> dict[str, object]:
    """Load the bundled draft (or what stands for it) and choose one token."""
    began = time.perf_counter()
    model = name if name in ("fake", "ngram") else "bundled:draft"
    engine = registry.build(
        EngineSpec(model=model, engine=name, context=64, max_slots=1, threads=1)
    )
    slot = engine.open()
    engine.extend([Span(slot, 0, (1, 2, 3), first=2)])
    info = engine.info
    engine.shutdown()
    return {
        "ok": True,
        "device": info.device,
        "dtype": info.dtype,
        "exact": info.exact,
        "seconds": round(time.perf_counter() - began, 2),
    }


def main() -> int:
    """Exit status 0 when the engine works."""
    try:
        found = probe(sys.argv[1])
    except OutriderError as error:
        found = {"ok": False, "what": error.what, "why": error.why, "todo": error.todo}
    sys.stdout.write(msgspec.json.encode(found).decode() + "\n")
    return 0 if found["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())
