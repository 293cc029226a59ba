"""Workers on the local network, announced and found by mDNS (RFC 6762, 6763); only if asked for.

An announcement is a hint where to look, never a reason to trust: whoever finds a worker
still calls it with TLS and a key. It says a name, a kind and a port, nothing of models.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from outrider.errors import EngineMissing
from outrider.options import Address

if TYPE_CHECKING:
    from zeroconf.asyncio import AsyncServiceInfo

TYPE = "_outrider-stage._tcp.local."
VERSION = "1"
RESOLVE_MS = 1000


@dataclass(frozen=True, slots=True)
class Found:
    """A worker that announced itself."""

    name: str
    kind: str
    address: str
    """HOST:PORT"""


async def announce(
    name: str, kind: str, address: str, interfaces: Sequence[str] | None = None
) -> Callable[[], Awaitable[None]]:
    """Announce a worker at HOST:PORT; the returned function takes it back.

    `interfaces`: addresses of those to speak on, None for all. Raises EngineMissing without
    zeroconf.
    """
    network = _network(interfaces)
    told = _info(name, kind, Address.parse(address, 0))
    await network.async_register_service(told, allow_name_change=True)

    async def end() -> None:
        await network.async_unregister_all_services()
        await network.async_close()

    return end


async def find(seconds: float, interfaces: Sequence[str] | None = None) -> tuple[Found, ...]:
    """Workers that answer within so many seconds, by name. Raises EngineMissing."""
    network = _network(interfaces)
    from zeroconf import ServiceStateChange, Zeroconf
    from zeroconf.asyncio import AsyncServiceBrowser

    names: set[str] = set()

    def heard(zeroconf: Zeroconf, service_type: str, name: str, state_change: object) -> None:
        if state_change is ServiceStateChange.Removed:
            names.discard(name)
        else:
            names.add(name)

    browser = AsyncServiceBrowser(network.zeroconf, TYPE, handlers=[heard])
    try:
        await asyncio.sleep(seconds)
        found = [await _resolved(network, name) for name in sorted(names)]
    finally:
        await browser.async_cancel()
        await network.async_close()
    return tuple(each for each in found if each is not None)


def _network(interfaces: Sequence[str] | None) -> Any:
    try:
        from zeroconf import InterfaceChoice
        from zeroconf.asyncio import AsyncZeroconf
    except ModuleNotFoundError:
        raise EngineMissing("zeroconf", "mdns") from None
    return AsyncZeroconf(interfaces=list(interfaces) if interfaces else InterfaceChoice.All)


def _info(name: str, kind: str, address: Address) -> AsyncServiceInfo:
    from zeroconf.asyncio import AsyncServiceInfo

    # A dot would begin another label.
    label = name.replace(".", "-")[:50]
    return AsyncServiceInfo(
        TYPE,
        f"{label}.{TYPE}",
        addresses=[ipaddress.ip_address(each).packed for each in _addresses(address.host)],
        port=address.port,
        properties={"name": name, "kind": kind, "version": VERSION},
        server=f"{label}.local.",
    )


def _addresses(host: str) -> list[str]:
    """Where others reach it: a wildcard stands for every address of this machine."""
    try:
        wildcard = ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return [str(found[4][0]) for found in socket.getaddrinfo(host, 0, socket.AF_INET)]
    return _own_addresses() if wildcard else [host]


def _own_addresses() -> list[str]:
    import psutil

    every = [each for found in psutil.net_if_addrs().values() for each in found]
    plain = [each.address for each in every if each.family == socket.AF_INET]
    return [each for each in plain if not ipaddress.ip_address(each).is_loopback] or plain


async def _resolved(network: Any, name: str) -> Found | None:
    """None for one that has gone, or that says what no worker says."""
    from zeroconf.asyncio import AsyncServiceInfo

    info = AsyncServiceInfo(TYPE, name)
    if not await info.async_request(network.zeroconf, RESOLVE_MS):
        return None
    told = {
        key.decode(errors="replace"): (value or b"").decode(errors="replace")
        for key, value in info.properties.items()
    }
    addresses = info.parsed_addresses()
    if told.get("version") != VERSION or not addresses or info.port is None:
        return None
    return Found(
        told.get("name", "")[:64], told.get("kind", "")[:16], str(Address(addresses[0], info.port))
    )
