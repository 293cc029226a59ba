"""The Hugging Face hub, or whatever HF_ENDPOINT names that speaks as it does.

huggingface_hub asks and fetches; here lie what it may fetch, where it goes on, and what its
failures mean for a user. Every file has a `.part` beside its place that outlives the process,
so that the same command goes on where the last one was cut.

Sources: huggingface_hub 2.4 (`file_download.http_get`, `hf_raise_for_status`); the hub's
`X-Error-Code` headers.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol, cast

from outrider.errors import (
    AccessDenied,
    DiskFull,
    EngineMissing,
    HubError,
    ModelCorrupt,
    NotFound,
    Offline,
    OutriderError,
    Overloaded,
)
from outrider.models.pins import Offered

if TYPE_CHECKING:
    import httpx2
    from huggingface_hub import HfApi

ENDPOINT = "https://huggingface.co"
OFFLINE = ("OUTRIDER_OFFLINE", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
LISTING_S = 20.0
"""A hub that takes longer to list a repository is not there."""
LARGEST = 50 << 30
"""Bytes of one file that the hub gives in the plain way."""
CHUNK = 1 << 20
_FULL = (28, 122)
"""errno of a full disk, and of a full quota."""


class Meter(Protocol):
    """Is told how a file's bytes come in."""

    def begin(self, name: str, total: int, there: int) -> None:
        """`there` bytes of `total` came before."""
        ...

    def came(self, count: int) -> None:
        """Negative when a file has to be fetched from its start again."""
        ...


@dataclass(frozen=True, slots=True)
class Listing:
    """One repository at one commit."""

    repo: str
    commit: str
    gated: bool
    licence: str
    files: tuple[Offered, ...]

    def sizes(self) -> dict[str, int]:
        return {file.name: file.size for file in self.files}

    def file(self, name: str) -> Offered:
        return next(file for file in self.files if file.name == name)


def offline() -> str:
    """The variable that switches the network off; empty when none does."""
    values = {name: os.environ.get(name, "").strip().lower() for name in OFFLINE}
    return next(
        (n for n, text in values.items() if text not in ("", "0", "false", "no", "off")), ""
    )


def check_online(what: str) -> None:
    """Raises Offline."""
    switch = offline()
    if switch:
        raise Offline(
            f"{what} was not fetched",
            why=f"{switch} is set, so nothing is asked of the network",
            effect="only what lies here can be used",
            todo=f"unset {switch}, or bring the files and register them: outrider pull ./FOLDER",
        )


@dataclass(frozen=True, slots=True)
class Hub:
    """`token` empty: what HF_TOKEN or `hf auth login` left, if anything."""

    endpoint: str = ""
    token: str = ""

    @property
    def url(self) -> str:
        return (self.endpoint or os.environ.get("HF_ENDPOINT") or ENDPOINT).rstrip("/")

    def has_token(self) -> bool:
        return bool(self.token or _library().get_token())

    def listing(self, repo: str, revision: str) -> Listing:
        """What the repository holds. Raises NotFound, AccessDenied, Overloaded, HubError."""
        check_online(repo)
        with self._told(repo, revision):
            info = self._api().model_info(
                repo, revision=revision, files_metadata=True, timeout=LISTING_S
            )
        if not info.sha or info.siblings is None:
            raise _nonsense(self.url, "it named no commit, or no files")
        return Listing(
            repo=repo,
            commit=info.sha,
            gated=bool(info.gated),
            licence=_licence(info),
            files=tuple(_offered(self.url, sibling) for sibling in info.siblings),
        )

    def fetch(self, listing: Listing, file: Offered, part: Path, meter: Meter) -> None:
        """The rest of a file into `part`, checked against what was listed.

        Raises what `listing` raises; DiskFull; ModelCorrupt when other bytes came, after
        `part` was removed; HubError when the connection broke, and `part` stays.
        """
        check_online(file.name)
        if file.size > LARGEST:
            raise _too_large(file)
        part.parent.mkdir(parents=True, exist_ok=True)
        there = _resumable(part, file)
        meter.begin(file.name, file.size, there)
        if there < file.size or not part.exists():
            with self._told(listing.repo, listing.commit, file.name), part.open("ab") as stream:
                self._get(listing, file, cast(BinaryIO, Counted(stream, meter)), there)
        _check_bytes(part, file)

    def _get(self, listing: Listing, file: Offered, stream: BinaryIO, there: int) -> None:
        from huggingface_hub import hf_hub_url
        from huggingface_hub.file_download import http_get
        from huggingface_hub.utils._headers import build_hf_headers

        address = hf_hub_url(listing.repo, file.name, revision=listing.commit, endpoint=self.url)
        headers = build_hf_headers(token=self.token or None, library_name="outrider")
        # A compressed answer would make the byte ranges of what was cut meaningless.
        headers["Accept-Encoding"] = "identity"
        http_get(
            address,
            stream,
            resume_size=there,
            headers=headers,
            expected_size=file.size,
        )

    def _api(self) -> HfApi:
        made: HfApi = _library().HfApi(
            endpoint=self.url, token=self.token or None, library_name="outrider"
        )
        return made

    @contextmanager
    def _told(self, repo: str, revision: str, name: str = "") -> Iterator[None]:
        """Whatever the library raises, as an error that says what to do."""
        library = _library()
        import httpx2

        try:
            yield
        except OutriderError:
            raise
        except library.errors.HfHubHTTPError as error:
            raise self._refused(error, repo, revision, name) from None
        except library.errors.OfflineModeIsEnabled:
            raise Offline(f"{repo} was not fetched", why="the hub's library is offline") from None
        except library.errors.HFValidationError:
            raise NotFound(
                f"{repo} can be no repository", param="model", effect="nothing was pulled"
            ) from None
        except httpx2.HTTPError as error:
            raise self._broke(error, repo) from None
        except OSError as error:
            if error.errno in _FULL:
                raise no_room(name or repo) from None
            raise self._broke(error, repo) from None

    def _broke(self, error: Exception, repo: str) -> HubError:
        return HubError(
            f"the connection to {self.url} broke",
            why=_network(error),
            effect="nothing was registered; what came already is kept",
            todo="the same command goes on from there; check the network, HTTPS_PROXY and"
            " HF_ENDPOINT",
        )

    def _refused(self, error: Any, repo: str, revision: str, name: str) -> OutriderError:
        from huggingface_hub import errors as kinds

        status = error.response.status_code
        if isinstance(error, kinds.GatedRepoError) or status == 403:
            return self.gated(repo)
        if isinstance(error, kinds.RevisionNotFoundError):
            return _absent(
                f"{repo} has no revision {revision}", self.url, "a branch, tag or commit"
            )
        if isinstance(error, kinds.EntryNotFoundError):
            return _absent(f"{repo} has no {name} any more", self.url, "pull it again")
        if isinstance(error, kinds.RepositoryNotFoundError) or status in (401, 404):
            return self._no_repo(repo, status)
        if status == 429:
            return _too_many(self.url, error.response.headers.get("retry-after", ""))
        return HubError(
            f"{self.url} answered {status}",
            why="the hub failed, or something between here and it",
            effect="nothing was registered; what came already is kept",
            todo="try again later",
        )

    def _no_repo(self, repo: str, status: int) -> OutriderError:
        """The hub says the same of what is not there and of what may not be seen."""
        if status == 401 and self.has_token():
            return AccessDenied(
                f"{self.url} does not let this token see {repo}",
                why="HF_TOKEN is wrong or old, or the repository is private or not there",
                effect="nothing was pulled",
                todo=f"check the spelling, and the token at {self.url}/settings/tokens",
            )
        return _absent(
            f"{repo} was not found at {self.url}",
            self.url,
            "check the spelling; a private one needs HF_TOKEN",
        )

    def gated(self, repo: str) -> AccessDenied:
        """Its owner wants to know who takes it."""
        told = (
            "your HF_TOKEN has no access to it yet" if self.has_token() else "HF_TOKEN is not set"
        )
        return AccessDenied(
            f"{repo} is gated: its owner wants its terms accepted first",
            why=told,
            effect="nothing was pulled",
            todo=f"1. accept the terms at {self.url}/{repo}  2. make a token that can read at"
            f" {self.url}/settings/tokens  3. HF_TOKEN=hf_... outrider pull {repo}",
        )


def _library() -> Any:
    """huggingface_hub, without telemetry and quiet. Raises EngineMissing."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    try:
        import huggingface_hub
        import huggingface_hub.errors
        from huggingface_hub.utils.tqdm import disable_progress_bars
    except ModuleNotFoundError:
        raise MissingHub() from None
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    # Ours are fed by `Counted`.
    disable_progress_bars()
    return huggingface_hub


class MissingHub(EngineMissing):
    """huggingface_hub is not installed."""

    def __init__(self) -> None:
        super().__init__("huggingface_hub", "hub")
        self.what = "package 'huggingface_hub' is not installed"
        self.why = "models are fetched with it"
        self.effect = "nothing was pulled"


class Counted:
    """A file that tells a meter what is written to it; cut back, it tells that too."""

    def __init__(self, stream: BinaryIO, meter: Meter) -> None:
        self._stream = stream
        self._meter = meter

    def write(self, data: bytes) -> int:
        self._meter.came(len(data))
        return self._stream.write(data)

    def tell(self) -> int:
        return self._stream.tell()

    def seek(self, place: int) -> int:
        return self._stream.seek(place)

    def truncate(self) -> int:
        self._meter.came(self._stream.tell() - os.fstat(self._stream.fileno()).st_size)
        return self._stream.truncate()


# --- listings ----------------------------------------------------------------------------------


def _offered(url: str, sibling: Any) -> Offered:
    if not isinstance(sibling.size, int) or sibling.size < 0:
        raise _nonsense(url, f"it named no size of {sibling.rfilename}")
    lfs = sibling.lfs
    return Offered(
        name=str(sibling.rfilename),
        size=sibling.size,
        sha256=str(lfs.sha256) if lfs is not None else "",
        git=str(sibling.blob_id or ""),
    )


def _licence(info: Any) -> str:
    """Of the model card: its short name, or the name its owner gave; empty when it says none."""
    card = info.card_data
    named = card.get("license") if card is not None else None
    if named == "other" and card is not None:
        named = card.get("license_name") or named
    tagged = (tag.removeprefix("license:") for tag in info.tags or () if tag.startswith("license:"))
    return str(named or next(tagged, ""))


def _nonsense(url: str, why: str) -> HubError:
    return HubError(
        f"{url} gave no proper answer",
        why=why,
        effect="nothing was pulled",
        todo="check HF_ENDPOINT: it must speak the hub's API",
    )


# --- bytes -------------------------------------------------------------------------------------


def _resumable(part: Path, file: Offered) -> int:
    """Bytes of it that are there; more than there should be are worth nothing."""
    there = part.stat().st_size if part.is_file() else 0
    if there > file.size:
        part.unlink()
        return 0
    return there


def _check_bytes(part: Path, file: Offered) -> None:
    """Raises ModelCorrupt, and removes what is wrong: it can not be gone on with."""
    if file.sha256:
        kind, wanted, found = "SHA-256", file.sha256, _sha256(part)
    elif file.git:
        kind, wanted, found = "git id", file.git, _git_id(part)
    else:
        kind, wanted, found = "size", str(file.size), str(part.stat().st_size)
    if found != wanted:
        part.unlink(missing_ok=True)
        raise ModelCorrupt(
            f"{file.name} did not come as the hub lists it",
            why=f"its {kind} is {found[:16]}, listed is {wanted[:16]}",
            effect="it was thrown away; nothing was registered",
            todo="try again; if it happens again do not trust the hub or the proxy",
        )


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _git_id(path: Path) -> str:
    """SHA-1 as git names a file: not a protection, but what the hub lists for small files."""
    found = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    with path.open("rb") as stream:
        while chunk := stream.read(CHUNK):
            found.update(chunk)
    return found.hexdigest()


# --- errors ------------------------------------------------------------------------------------


def _absent(what: str, url: str, todo: str) -> NotFound:
    return NotFound(
        what, param="model", why=f"{url} says so", effect="nothing was pulled", todo=todo
    )


def _too_many(url: str, after: str) -> Overloaded:
    wait_s = float(after) if after.isdigit() else 300.0
    return Overloaded(
        f"{url} takes no more requests for now",
        retry_after_s=wait_s,
        why="too many came from this address or token",
        effect="nothing was registered; what came already is kept",
        todo=f"try again in {wait_s:.0f} s; with HF_TOKEN the limit is higher",
    )


def _too_large(file: Offered) -> HubError:
    return HubError(
        f"{file.name} has {file.size / 2**30:.0f} GiB",
        why=f"files beyond {LARGEST >> 30} GiB are not given in the plain way",
        effect="nothing was pulled",
        todo="take a repository with smaller shards, or fetch it with `hf download` and register"
        " the folder",
    )


def no_room(name: str) -> DiskFull:
    """The disk filled up in the middle of a file."""
    return DiskFull(
        f"the disk is full: {name} does not fit",
        effect="nothing was registered; what came already is kept",
        todo="make room (outrider ls, outrider rm), or set OUTRIDER_MODELS to another disk;"
        " the same command then goes on",
    )


def _network(error: Exception | httpx2.HTTPError) -> str:
    """The kind, and the system's word; an address with a token in it is never shown."""
    cause = error.__cause__ or error.__context__
    said = getattr(cause, "strerror", None) or getattr(error, "strerror", None)
    return f"{type(error).__name__}{f': {said}' if said else ''}"
