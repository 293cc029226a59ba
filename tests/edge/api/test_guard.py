"""Who may pass: hosts, origins, keys; and what every response carries."""

from __future__ import annotations

from pathlib import Path

import pytest

from outrider.edge.api.guard import hostname
from outrider.edge.api.keys import read_keys
from outrider.edge.api.server import ApiServer, bind
from outrider.edge.api.settings import ApiSettings
from outrider.errors import ConfigError, PortInUse
from outrider.testing.local_edge import LocalEdge

from .conftest import ask

KEYED = ApiSettings(api_keys=frozenset({"k" * 20, "j" * 20}))
PAGED = ApiSettings(origins=("https://app.example",))


def status(path: str = "/v1/models", settings: ApiSettings | None = None, **headers: str) -> int:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return ask(LocalEdge(), "GET", path, settings=settings, headers=named).status_code


@pytest.mark.parametrize(
    "host",
    ["localhost", "localhost:11711", "127.0.0.1:80", "[::1]:11711", "[::1]", "LOCALHOST:1"],
)
def test_loopback_names_pass(host: str) -> None:
    assert status(host=host) == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "localhost.evil.example",
        "127.0.0.1.evil.example:11711",
        "evil.example@localhost:1:2",
        "",
        "[::2]",
        "0.0.0.0",
        "[",
    ],
)
def test_other_names_do_not(host: str) -> None:
    assert status(host=host) == 403
    assert status("/health", host=host) == 403


def test_configured_hosts_pass() -> None:
    assert status(settings=ApiSettings(hosts=("box.lan",)), host="box.lan:11711") == 200
    assert status(settings=ApiSettings(hosts=("*",)), host="any.example") == 200


def test_hostname_drops_port_and_brackets() -> None:
    assert [hostname(h) for h in ("a:1", "[::1]:2", "a", "")] == ["a", "::1", "a", ""]


def test_pages_of_other_origins_do_not_pass() -> None:
    assert status(origin="https://evil.example", host="localhost:11711") == 403
    assert status(origin="null", host="localhost:11711") == 403
    assert status(origin="", host="localhost:11711") == 403
    assert status(origin="http://localhost:3000", host="localhost:11711") == 403
    assert status(origin="http://localhost:11711", host="localhost:11711") == 200


def test_no_cors_header_unless_configured() -> None:
    own = ask(LocalEdge(), "GET", "/v1/models", headers={"origin": "http://localhost"})
    assert own.status_code == 200
    assert not [name for name in own.headers if name.startswith("access-control")]
    page = {"origin": "https://app.example"}
    allowed = ask(LocalEdge(), "GET", "/v1/models", settings=PAGED, headers=page)
    assert allowed.headers["access-control-allow-origin"] == "https://app.example"


def test_preflight_of_a_configured_page() -> None:
    asked = {"origin": "https://app.example", "access-control-request-method": "POST"}
    path = "/v1/chat/completions"
    answer = ask(LocalEdge(), "OPTIONS", path, settings=PAGED, headers=asked)
    assert answer.status_code == 200
    refused = {**asked, "origin": "https://evil.example"}
    assert ask(LocalEdge(), "OPTIONS", path, settings=PAGED, headers=refused).status_code == 403


def test_keys() -> None:
    assert status(settings=KEYED) == 401
    assert status(settings=KEYED, authorization="Bearer " + "x" * 20) == 401
    assert status(settings=KEYED, authorization="Basic " + "k" * 20) == 401
    assert status(settings=KEYED, authorization="Bearer") == 401
    assert status(settings=KEYED, authorization="Bearer " + "k" * 20) == 200
    assert status(settings=KEYED, authorization="bearer " + "j" * 20) == 200
    assert status("/metrics", settings=KEYED) == 401
    assert status("/outrider/v1/status", settings=KEYED) == 401
    assert status("/health", settings=KEYED) == 200


def test_a_refusal_is_in_the_envelope_and_reads_no_body() -> None:
    answer = ask(LocalEdge(), "POST", "/v1/completions", settings=KEYED, content=b"{")
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    assert answer.json()["error"]["code"] == "invalid_api_key"


def test_every_response_has_a_request_id() -> None:
    own = {"x-request-id": "mine-1"}
    assert ask(LocalEdge(), "GET", "/", headers=own).headers["x-request-id"] == "mine-1"
    forged = {"x-request-id": "a b\tc"}
    assert ask(LocalEdge(), "GET", "/", headers=forged).headers["x-request-id"].startswith("req-")
    assert ask(LocalEdge(), "GET", "/nope").headers["x-request-id"].startswith("req-")
    assert ask(LocalEdge(), "GET", "/", headers={"host": "x"}).headers["x-request-id"]


def test_keys_are_not_in_the_settings_text() -> None:
    assert "kkk" not in repr(KEYED)


def test_key_file(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(f"# devices\n\nlaptop {'a' * 16}\nphone  {'b' * 20}\n")
    assert read_keys(file) == {"a" * 16, "b" * 20}


@pytest.mark.parametrize(
    ("text", "why"),
    [("", "no key"), ("# none\n", "no key"), ("laptop\n", "NAME KEY"), ("a short\n", "shorter")],
)
def test_key_files_that_are_none(tmp_path: Path, text: str, why: str) -> None:
    file = tmp_path / "keys"
    file.write_text(text)
    with pytest.raises(ConfigError, match=why):
        read_keys(file)


def test_a_missing_key_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="can not be read"):
        read_keys(tmp_path / "none")


def test_a_taken_port_is_named() -> None:
    with bind("127.0.0.1", 0) as first:
        first.listen()
        with pytest.raises(PortInUse, match=str(first.getsockname()[1])):
            bind("127.0.0.1", first.getsockname()[1])


def test_a_foreign_address_is_refused() -> None:
    with pytest.raises(ConfigError, match="can not listen"):
        bind("192.0.2.1", 0)


def test_the_url_of_a_server() -> None:
    async def app(scope: object, receive: object, send: object) -> None: ...

    server = ApiServer(app)
    server.address = ("::1", 80)
    assert server.url == "http://[::1]:80"
