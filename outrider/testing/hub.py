"""A stand-in for the Hugging Face hub on loopback, for tests: its API and file routes, its faults.

It serves what lies in a folder, as `/api/models/REPO/revision/REV?blobs=true` and
`/REPO/resolve/REV/FILE`. Large files go by a redirect to another origin, as the hub's storage
does, with byte ranges. Faults are set by the test: a cut after so many bytes, other bytes, a
gate, a limit on requests, a failure. It is no hub: it knows no accounts and no git.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

LARGE = ("safetensors", "gguf", "bin", "onnx")
"""Endings of what is stored apart and listed with its SHA-256."""
_API = re.compile(r"/api/models/(?P<repo>[^/]+/[^/]+)(?:/revision/(?P<revision>.+))?")
_RESOLVE = re.compile(r"/(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<file>.+)")
_STORE = re.compile(r"/store/(?P<repo>[^/]+/[^/]+)/(?P<commit>[0-9a-f]{40})/(?P<file>.+)")


@dataclass(slots=True)
class Repo:
    """One repository: commits to folders, and what its page says."""

    commits: dict[str, Path] = field(default_factory=dict)
    """In order; the last is `main`."""
    licence: str = "apache-2.0"
    gated: str = ""
    """`auto` or `manual`: then files need the token."""

    @property
    def main(self) -> str:
        return list(self.commits)[-1]

    def commit(self, revision: str) -> str | None:
        if revision in ("", "main"):
            return self.main
        return revision if revision in self.commits else None


@dataclass(slots=True)
class Faults:
    """What goes wrong; each holds until it is taken back."""

    cut_after: dict[str, list[int]] = field(default_factory=dict)
    """File to bytes after which the connection is dropped, one a request, then no more."""
    forged: set[str] = field(default_factory=set)
    """Files whose bytes are others than listed."""
    listed: dict[str, str] = field(default_factory=dict)
    """File to a SHA-256 that the listing claims."""
    status: int = 0
    """Answer every request so."""
    retry_after: str = ""


@dataclass(frozen=True, slots=True)
class Asked:
    """One request that came."""

    method: str
    path: str
    range: str
    authorized: bool


class StandInHub:
    """`with StandInHub() as hub:`; point HF_ENDPOINT at `hub.url`."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.faults = Faults()
        self.asked: list[Asked] = []
        self.token = "hf_stand_in"
        hub = self

        class Handler(_Handler):
            pass

        Handler.hub = hub
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))

    def __enter__(self) -> StandInHub:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    @property
    def store(self) -> str:
        """Another origin, as the hub's storage is: no token may reach it."""
        return f"http://localhost:{self._server.server_address[1]}"

    def add(self, repo: str, folder: Path, **said: Any) -> str:
        """A commit of a repository; its id follows from the bytes."""
        lines = [f"{p.name} {_sha256(p)}" for p in sorted(folder.rglob("*")) if p.is_file()]
        commit = hashlib.sha1("\n".join(lines).encode(), usedforsecurity=False).hexdigest()
        known = self.repos.setdefault(repo, Repo())
        known.commits.pop(commit, None)
        known.commits[commit] = folder
        for name, value in said.items():
            setattr(known, name, value)
        return commit

    def fetched(self, name: str) -> list[Asked]:
        """Requests for the bytes of a file."""
        return [a for a in self.asked if a.method == "GET" and a.path.endswith(f"/{name}")]


class _Handler(BaseHTTPRequestHandler):
    hub: StandInHub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing is logged."""

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        token = self.headers.get("authorization", "")
        authorized = token == f"Bearer {self.hub.token}"
        self.hub.asked.append(Asked(self.command, path, self.headers.get("range", ""), authorized))
        faults = self.hub.faults
        if faults.status:
            extra = {"Retry-After": faults.retry_after} if faults.retry_after else {}
            self._error(faults.status, "", **extra)
        elif token and not authorized:
            self._error(401, "", **{"X-Error-Message": "Invalid username or password."})
        elif found := _API.fullmatch(path):
            self._api(found["repo"], found["revision"] or "")
        elif found := _RESOLVE.fullmatch(path):
            self._resolve(found["repo"], found["revision"], found["file"], authorized=authorized)
        elif found := _STORE.fullmatch(path):
            folder = self.hub.repos[found["repo"]].commits[found["commit"]]
            self._bytes(folder / found["file"], {})
        else:
            self._error(404, "")

    def _api(self, name: str, revision: str) -> None:
        repo = self.hub.repos.get(name)
        if repo is None:
            self._error(401, "RepoNotFound")
            return
        commit = repo.commit(revision)
        if commit is None:
            self._error(404, "RevisionNotFound")
            return
        folder = repo.commits[commit]
        paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
        card = {"license": repo.licence} if repo.licence else {}
        self._json(
            {
                "_id": "0",
                "id": name,
                "modelId": name,
                "sha": commit,
                "private": False,
                "gated": repo.gated or False,
                "tags": [f"license:{repo.licence}"] if repo.licence else [],
                "cardData": card,
                "siblings": [self._sibling(folder, path) for path in paths],
            }
        )

    def _sibling(self, folder: Path, path: Path) -> dict[str, Any]:
        name = str(path.relative_to(folder))
        found: dict[str, Any] = {
            "rfilename": name,
            "size": path.stat().st_size,
            "blobId": _git_id(path),
        }
        if name.endswith(LARGE):
            digest = self.hub.faults.listed.get(name) or _sha256(path)
            found["lfs"] = {"sha256": digest, "size": path.stat().st_size, "pointerSize": 130}
        return found

    def _resolve(self, name: str, revision: str, file: str, *, authorized: bool) -> None:
        repo = self.hub.repos.get(name)
        if repo is None:
            self._error(401, "RepoNotFound")
            return
        commit = repo.commit(revision)
        if commit is None:
            self._error(404, "RevisionNotFound")
        elif repo.gated and not authorized:
            self._error(401, "GatedRepo", **{"X-Error-Message": f"Access to {name} is restricted."})
        elif not (repo.commits[commit] / file).is_file():
            self._error(404, "EntryNotFound", **{"X-Repo-Commit": commit})
        else:
            self._file(name, commit, repo.commits[commit], file)

    def _file(self, name: str, commit: str, folder: Path, file: str) -> None:
        path = folder / file
        head = {"X-Repo-Commit": commit}
        if not file.endswith(LARGE):
            self._bytes(path, {**head, "ETag": f'"{_git_id(path)}"'})
            return
        self._head(
            302,
            {
                **head,
                "X-Linked-Etag": f'"{_sha256(path)}"',
                "X-Linked-Size": str(path.stat().st_size),
                "Location": f"{self.hub.store}/store/{name}/{commit}/{file}",
                "Content-Length": "0",
            },
        )

    def _bytes(self, path: Path, head: Mapping[str, str]) -> None:
        data = path.read_bytes()
        if path.name in self.hub.faults.forged:
            data = bytes(byte ^ 1 for byte in data)
        start = re.fullmatch(r"bytes=(\d+)-", self.headers.get("range", ""))
        begin = int(start[1]) if start else 0
        span = {"Content-Range": f"bytes {begin}-{len(data) - 1}/{len(data)}"} if start else {}
        rest = data[begin:]
        self._head(206 if start else 200, {**head, **span, "Content-Length": str(len(rest))})
        if self.command == "HEAD":
            return
        cuts = self.hub.faults.cut_after.get(path.name)
        if cuts:
            self.wfile.write(rest[: cuts.pop(0)])
            self.close_connection = True
            return
        self.wfile.write(rest)

    def _json(self, value: Any) -> None:
        data = json.dumps(value).encode()
        self._head(200, {"Content-Type": "application/json", "Content-Length": str(len(data))})
        self.wfile.write(data)

    def _error(self, status: int, code: str, **extra: str) -> None:
        data = json.dumps({"error": "the stand-in says so"}).encode()
        coded = {"X-Error-Code": code} if code else {}
        self._head(status, {**coded, **extra, "Content-Length": str(len(data))})
        if self.command != "HEAD":
            self.wfile.write(data)

    def _head(self, status: int, fields: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in fields.items():
            self.send_header(name, value)
        self.end_headers()


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _git_id(path: Path) -> str:
    data = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()
