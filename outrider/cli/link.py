"""`outrider link`: clouds by name, in the settings."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from cyclopts import App

from outrider import paths
from outrider.cli import console, pairing
from outrider.cli.servers import missing
from outrider.config.layers import Layers
from outrider.errors import NotFound
from outrider.options import CLOUD_PORT, Address, CloudLink

if TYPE_CHECKING:
    from outrider.cli.dial import Tried

app = App(name="link", help="Clouds by name: add, pair, list, remove, test.")
app.command(pairing.invite)


@app.command
def add(
    name: str,
    url: str,
    *,
    ca: Path | None = None,
    cert: Path | None = None,
    key: Path | None = None,
    api_key_ref: str = "",
    priority: int = 100,
    pair: bool = False,
    code: str = "",
    device: str = "",
    json: bool = False,
) -> int:
    """Write a cloud into config.toml; the edge then looks there.

    Args:
        name: What people call it.
        url: HOST:PORT of its gRPC; with --pair, where `outrider link invite` waits.
        ca: TLS, checked against this authority (PEM); required beyond loopback.
        cert: The device's own certificate (PEM).
        key: Its key.
        api_key_ref: Where the key for this cloud is found: env:VARIABLE or file:PATH.
        priority: Lower ones are tried first.
        pair: Trust each other by a code: certificates are made, kept and renewed by themselves.
        code: What `outrider link invite` shows; without it you are asked.
        device: What the cloud calls this device; by default the machine's name.
        json: Print one JSON object.
    """
    from outrider.config import edit

    place = paths.config_file()
    if pair:
        edit.check_name(place, name)
        link, found = pairing.pair(name, _bare(url), code, device)
        link = replace(link, api_key_ref=api_key_ref, priority=priority)
        console.note(f"paired with {fingerprint_of(found.identity)}, as tenant {found.tenant}")
    else:
        link = CloudLink(
            _address(url), name, _whole(ca), _whole(cert), _whole(key), api_key_ref, priority
        )
    edit.add_link(place, name, _fields(link))
    if json:
        console.as_json({"link": name, **_fields(link), "path": str(place)})
        return 0
    console.out(f"{name}: {link.url}, written to {place}")
    console.note(f"outrider link test {name} tries it; outrider config reload tells the daemon")
    return 0


def fingerprint_of(public: bytes) -> str:
    from outrider.privacy.identity import fingerprint

    return fingerprint(public)


def _bare(url: str) -> str:
    return url.removeprefix("grpcs://").removeprefix("grpc://")


def _address(url: str) -> Address:
    return Address.parse(_bare(url), CLOUD_PORT)


def _whole(path: Path | None) -> Path | None:
    """From here, wherever the file of settings lies."""
    return None if path is None else path.expanduser().absolute()


def _fields(link: CloudLink) -> dict[str, object]:
    """What a file says of it: what is not default, as text."""
    fields: dict[str, object] = {"url": str(link.url)}
    for name in ("ca", "cert", "key"):
        if (path := getattr(link, name)) is not None:
            fields[name] = str(path)
    if link.api_key_ref:
        fields["api_key_ref"] = link.api_key_ref
    if link.paired:
        fields["paired"] = link.paired
    if link.priority != 100:
        fields["priority"] = link.priority
    return fields


@app.command
def ls(*, json: bool = False) -> int:
    """Clouds by name, in the order in which they are tried.

    Args:
        json: Print one JSON object.
    """
    links = Layers.load().links()
    if json:
        console.as_json({"links": [{"name": link.name, **_fields(link)} for link in links]})
        return 0
    rows = [("NAME", "ADDRESS", "TLS", "KEY", "PRIORITY")]
    for link in links:
        tls = "paired" if link.paired else "mutual" if link.cert else "yes" if link.ca else "no"
        rows.append((link.name, str(link.url), tls, link.api_key_ref or "none", str(link.priority)))
    console.out(console.table(rows) if links else "no links; outrider link add NAME HOST:PORT")
    return 0


@app.command
def rm(name: str, *, json: bool = False) -> int:
    """Take a cloud out of config.toml.

    Args:
        name: As `link ls` shows it.
        json: Print one JSON object.
    """
    from outrider.config import edit

    edit.remove_link(paths.config_file(), name)
    # What a pairing left; the device's own key stays.
    shutil.rmtree(paths.state_dir() / "links" / name, ignore_errors=True)
    if json:
        console.as_json({"removed": name})
        return 0
    console.out(f"{name} is removed")
    console.note("outrider config reload tells the daemon")
    return 0


@app.command
def test(name: str, *, deadline: float = 2.0, json: bool = False) -> int:
    """Dial a cloud: name, port, TLS, handshake, round trip, versions, models, certificates.

    Args:
        name: As `link ls` shows it, or HOST:PORT on loopback.
        deadline: Seconds that each step may take.
        json: Print one JSON object.
    """
    try:
        from outrider.cli.dial import dial
    except ModuleNotFoundError as error:
        raise missing("edge", error) from None
    link = _named(name)
    tried = dial(link, deadline)
    if json:
        console.as_json(tried)
        return 0
    _show(link, tried)
    return 0


def _named(name: str) -> CloudLink:
    """A link of the settings, else an address. Raises NotFound."""
    links = {link.name: link for link in Layers.load().links()}
    if name in links:
        return links[name]
    if ":" in name:
        return CloudLink(_address(name), name)
    raise NotFound(
        f"there is no link {name!r}",
        effect="nothing was dialled",
        todo="outrider link ls, or name HOST:PORT",
    )


def _show(link: CloudLink, tried: Tried) -> None:
    rows = [
        ("link", f"{link.name} at {link.url}"),
        ("reached", f"{tried.ip}, connected in {tried.connect_ms:.1f} ms"),
        ("tls", _tls(tried)),
        ("round trip", f"{tried.rtt_ms:.1f} ms (least {tried.rtt_least_ms:.1f}, of {tried.calls})"),
        ("protocol", f"version {tried.version}"),
        *(("model", _model(model)) for model in tried.models),
    ]
    for label, text in rows:
        console.out(f"{console.bold(label.ljust(10))} {text}")
    for problem in tried.warnings:
        console.warn(problem)


def _tls(tried: Tried) -> str:
    if tried.certificate is None:
        return "none, on loopback"
    days = tried.certificate.days_left
    return f"{tried.certificate.subject}, until {tried.certificate.until} ({days:.0f} days)"


def _model(model: dict[str, object]) -> str:
    exact = "exact" if model["exact"] else "not exact"
    return (
        f"{model['name']}, {model['engine']} {model['dtype']}, {exact}, context {model['context']}"
    )
