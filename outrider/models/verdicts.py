"""What is known of pairs on this machine: verdicts, kept by the digests that they are about."""

from __future__ import annotations

from pathlib import Path

import msgspec

from outrider import paths
from outrider.models.shelf import Shelf

SCHEMA = 1


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """Of one pair. It holds for these very weights and no others."""

    schema: int = SCHEMA
    draft: str
    target: str
    draft_digest: str
    target_digest: str
    how: str
    """`vocabulary`: only compared; `measured`: by outrider fit, on this machine."""
    verdict: str
    """good, usable, poor, unusable; `unmeasured` where only vocabularies were compared."""
    acceptance_rate: float | None = None
    draft_step_ms: float | None = None
    target_step_ms: float | None = None
    advice: tuple[str, ...] = ()


def keep(shelf: Shelf, verdict: Verdict) -> None:
    """A comparison does not replace a measurement of the same weights."""
    place = _place(shelf, verdict)
    if verdict.how == "vocabulary" and place.is_file():
        return
    data = msgspec.json.format(msgspec.json.encode(verdict), indent=1)
    paths.write_atomically(place, data + b"\n")


def _place(shelf: Shelf, verdict: Verdict) -> Path:
    name = f"{verdict.draft_digest[:16]}-{verdict.target_digest[:16]}.json"
    return shelf.root / "fits" / name


def kept(shelf: Shelf) -> tuple[Verdict, ...]:
    """All that can be read, and whose models have not changed since."""
    known = {entry.name: entry.digest for entry in shelf.entries()}
    found = []
    for path in sorted((shelf.root / "fits").glob("*.json")):
        try:
            verdict = msgspec.json.decode(path.read_bytes(), type=Verdict)
        except (OSError, msgspec.DecodeError):
            continue
        digests = (verdict.draft_digest, verdict.target_digest)
        names = (verdict.draft, verdict.target)
        if all(known.get(n, d) == d for n, d in zip(names, digests, strict=True)):
            found.append(verdict)
    return tuple(found)
