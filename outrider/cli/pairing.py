"""`outrider link invite`, and the device's side of `outrider link add --pair`."""

from __future__ import annotations

import asyncio
import importlib
import platform
import re
import sys
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from outrider import paths
from outrider.cli import console
from outrider.cli.servers import missing
from outrider.config.layers import Layers
from outrider.errors import ConfigError
from outrider.options import CLOUD_PORT, Address, CloudLink

if TYPE_CHECKING:
    from outrider.privacy.pairing import Hello, Paired
    from outrider.privacy.pairing_port import Port

PAIR_PORT = 11715


def invite(
    *,
    listen: str = "",
    cloud: str = "",
    tenant: str = "home",
    json: bool = False,
) -> int:
    """Let one device pair with the cloud of this machine.

    Shows a code of eight digits, good for two minutes and one attempt; a wrong one makes the next,
    three times. The cloud itself runs with the flag --paired, before or after.

    Args:
        listen: HOST:PORT at which the device pairs; by default the cloud's host, port 11715.
        cloud: HOST:PORT at which the device will find the cloud; by default as its settings say.
        tenant: Whose sessions the device opens.
        json: Print one JSON object a line: the code, then the device.
    """
    try:
        import outrider.privacy.pairing_port  # noqa: F401
    except ModuleNotFoundError as error:
        raise missing("cloud", error) from None
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,40}", tenant):
        raise ConfigError(f"{tenant!r} can not name a tenant", todo="letters, digits, hyphens")
    serving = Layers.load().section("cloud")["listen"].value
    assert isinstance(serving, Address)
    place = Address.parse(listen, PAIR_PORT) if listen else Address(serving.host, PAIR_PORT)
    told = cloud or (f":{serving.port}" if _anywhere(serving) else str(serving))
    paired = asyncio.run(_invite(place, told, tenant, json=json))
    _welcomed(paired, json=json)
    return 0


def _anywhere(address: Address) -> bool:
    return address.host in ("0.0.0.0", "::")


async def _invite(listen: Address, told: str, tenant: str, *, json: bool) -> Paired:
    from outrider.cloud.guests import Guests
    from outrider.privacy.devices import Device
    from outrider.privacy.pairing_port import Port

    guests = Guests.here(_now)

    def issue(hello: Hello) -> tuple[bytes, str]:
        pem = guests.authority.device(hello.identity, hello.request, _now())
        guests.devices.add(Device(hello.name, hello.identity.hex(), tenant, _now()))
        return pem, tenant

    def tell(code: str | None) -> None:
        if code is not None:
            _show(Address(listen.host, port.port), code, json=json)

    port = Port(guests.identity, guests.authority.pem, told, issue, time.monotonic, tell, _now())
    async with AsyncExitStack() as stack:
        await port.serve(listen, stack)
        return await _device(port)


async def _device(port: Port) -> Paired:
    """Raises AccessDenied when the time of the code that is shown ran out."""
    from outrider.privacy.pairing import LIFE_S, over

    while not port.done.done():
        left = port.invitation.now + LIFE_S - time.monotonic()
        if left <= 0:
            raise over(f"its code was good for {LIFE_S:.0f} s")
        await asyncio.wait((port.done,), timeout=left)
    return port.done.result()


def _show(place: Address, code: str, *, json: bool) -> None:
    from outrider.privacy.pairing import LIFE_S, shown

    host = platform.node() if _anywhere(place) else place.host
    address = Address(host, place.port)
    if json:
        console.as_json({"code": code, "address": str(address), "seconds": LIFE_S})
        return
    console.out(f"on the device:  outrider link add NAME {address} --pair")
    console.out(f"code:           {console.bold(shown(code))}")
    console.note(f"good for {LIFE_S:.0f} s and one attempt; a wrong one makes the next")
    if sys.stderr.isatty():
        _draw(f"outrider link add cloud {address} --pair --code {code}")


def _draw(text: str) -> None:
    """As a QR code, where the package that draws them is installed."""
    try:
        segno = importlib.import_module("segno")
    except ModuleNotFoundError:
        return
    segno.make(text, error="l").terminal(out=sys.stderr, compact=True)


def _welcomed(paired: Paired, *, json: bool) -> None:
    from outrider.privacy.identity import fingerprint

    who = fingerprint(paired.identity)
    if json:
        console.as_json({"device": paired.name, "fingerprint": who, "tenant": paired.tenant})
        return
    console.out(f"{paired.name} ({who}) is paired, as tenant {paired.tenant}")
    console.note("outrider identity devices lists them; outrider identity revoke ends one")


# --- the device --------------------------------------------------------------------------------


def pair(name: str, url: str, code: str, device: str) -> tuple[CloudLink, Paired]:
    """Pair, and keep what the link needs. Raises PeerUntrusted, AccessDenied, CloudUnreachable."""
    try:
        from outrider.privacy import keys, pairing
        from outrider.privacy.certificates import Wanted
        from outrider.privacy.pairing_port import join
    except ModuleNotFoundError as error:
        raise missing("edge", error) from None
    place = Address.parse(url, PAIR_PORT)
    typed = pairing.typed(code or _ask())
    identity, wanted = keys.identity(keys.here(), "device"), Wanted.make()
    found = asyncio.run(join(place, identity, _named(device), typed, wanted))
    folder = paths.state_dir() / "links" / name
    leaf = wanted.granted(found.certificate)
    ca, cert = folder / "ca.pem", folder / "device.pem"
    paths.write_atomically(ca, found.authority)
    paths.write_atomically(cert, leaf.both)
    return _link(name, place, found, ca, cert), found


def _link(name: str, place: Address, found: Paired, ca: Path, cert: Path) -> CloudLink:
    said = found.address
    # A cloud that serves everywhere is where its invitation was found.
    port = Address.parse(said, CLOUD_PORT).port
    address = Address(place.host, port) if said.startswith(":") or not said else None
    return CloudLink(
        address or Address.parse(said, CLOUD_PORT),
        name,
        ca,
        cert,
        cert,
        paired=found.identity.hex(),
    )


def _ask() -> str:
    """The code from a person. Raises InvalidRequest where nobody can be asked."""
    return console.asked("code that `outrider link invite` shows: ", "--code CODE")


def _named(device: str) -> str:
    return device or re.sub(r"[^A-Za-z0-9._-]", "-", platform.node()).lstrip("-._")[:40] or "device"


def _now() -> float:
    return time.clock_gettime(time.CLOCK_REALTIME)
