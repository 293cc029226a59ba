"""`outrider tenants`: API keys of a cloud, hashed."""

from __future__ import annotations

from pathlib import Path

from cyclopts import App

from outrider import paths
from outrider.cli import console

app = App(name="tenants", help="API keys of this machine's cloud: add, list, revoke.")


def place() -> Path:
    return paths.state_dir() / "cloud" / "tenants"


@app.command
def add(name: str, *, file: Path | None = None, json: bool = False) -> int:
    """Make a key, and keep its hash alone; the key is shown once.

    Args:
        name: Whose key it is.
        file: Of keys; by default the one in the state folder.
        json: Print one JSON object.
    """
    from outrider.cloud import tenants

    path = file or place()
    key = tenants.add(path, name)
    if json:
        console.as_json({"tenant": name, "key": key, "path": str(path)})
        return 0
    console.out(key)
    console.note(f"the key of {name}; it is nowhere else. On the device: OUTRIDER_CLOUD_API_KEY")
    console.note(f"the cloud reads it where it is told: outrider cloud --api-keys {path}")
    return 0


@app.command
def ls(*, file: Path | None = None, json: bool = False) -> int:
    """Tenants, and how their keys are kept.

    Args:
        file: Of keys; by default the one in the state folder.
        json: Print one JSON object.
    """
    from outrider.cloud.tenants import Tenants

    path = file or place()
    found = Tenants.again(path) if path.exists() else Tenants()
    kept = [(name, "in the clear") for _, name in found.digests]
    kept += [(line.name, "hashed") for line in found.hashed.values()]
    if json:
        console.as_json({"tenants": [{"name": n, "kept": how} for n, how in sorted(kept)]})
        return 0
    rows = [("NAME", "KEY"), *sorted(kept)]
    console.out(console.table(rows) if kept else "no tenants; outrider tenants add NAME")
    return 0


@app.command
def revoke(name: str, *, file: Path | None = None, json: bool = False) -> int:
    """Take all keys of a tenant away.

    Args:
        name: As `tenants ls` shows it.
        file: Of keys; by default the one in the state folder.
        json: Print one JSON object.
    """
    from outrider.cloud import tenants

    gone = tenants.revoke(file or place(), name)
    if json:
        console.as_json({"revoked": name, "keys": gone})
        return 0
    console.out(f"{name} is revoked, {gone} {'key' if gone == 1 else 'keys'}")
    console.note("a running cloud knows within a second, and ends what it runs")
    return 0
