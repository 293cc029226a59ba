"""`outrider identity`: who this machine is, and which devices its cloud knows."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from types import ModuleType

from cyclopts import App

from outrider.cli import console
from outrider.cli.servers import missing

app = App(name="identity", help="Who this machine is; the devices that its cloud knows.")


@app.default
def identity(*, json: bool = False) -> int:
    """This machine's fingerprints, and where its keys lie.

    Args:
        json: Print one JSON object.
    """
    keys = _keys()
    secrets = keys.here()
    found = {role: secrets.get(role) for role in ("device", "verifier")}
    shown = {role: _fingerprint(pem) for role, pem in found.items()}
    if json:
        console.as_json({"kept_in": secrets.kind, **shown})
        return 0
    for role, who in shown.items():
        console.out(f"{role.ljust(9)} {who or 'none yet: made when it is first needed'}")
    console.out(f"kept in   {'the keyring' if secrets.kind == 'keyring' else keys.folder()}")
    return 0


def _fingerprint(pem: bytes | None) -> str | None:
    from outrider.privacy.identity import Identity

    return None if pem is None else Identity.from_pem(pem).fingerprint


@app.command
def devices(*, json: bool = False) -> int:
    """The devices that were paired with the cloud of this machine.

    Args:
        json: Print one JSON object.
    """
    _keys()
    from outrider.cloud.guests import devices as known

    found = known().now()
    if json:
        console.as_json(
            {
                "devices": [
                    {
                        "name": d.name,
                        "fingerprint": d.fingerprint,
                        "tenant": d.tenant,
                        "paired_at": d.paired_at,
                        "revoked_at": d.revoked_at,
                    }
                    for d in found
                ]
            }
        )
        return 0
    rows = [("NAME", "FINGERPRINT", "TENANT", "PAIRED", "STATE")]
    for d in found:
        state = "paired" if d.revoked_at is None else f"revoked {_day(d.revoked_at)}"
        rows.append((d.name, d.fingerprint, d.tenant, _day(d.paired_at), state))
    console.out(console.table(rows) if found else "no devices; outrider link invite pairs one")
    return 0


@app.command
def revoke(who: str, *, json: bool = False) -> int:
    """Let a device in no more; what it runs ends within a second.

    Args:
        who: Its name or fingerprint.
        json: Print one JSON object.
    """
    _keys()
    from outrider.cloud.guests import devices as known

    ended = known().revoke(who, time.clock_gettime(time.CLOCK_REALTIME))
    if json:
        console.as_json({"revoked": [d.fingerprint for d in ended]})
        return 0
    for d in ended:
        console.out(f"{d.name} ({d.fingerprint}) is revoked")
    return 0


def _day(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).date().isoformat()


def _keys() -> ModuleType:
    """Raises MissingExtra."""
    try:
        from outrider.privacy import keys
    except ModuleNotFoundError as error:
        raise missing("edge", error) from None
    return keys
