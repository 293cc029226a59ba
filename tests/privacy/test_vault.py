"""The vault: who may open it, what is refused, and what erasing it is worth."""

from __future__ import annotations

import os
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest

from outrider.errors import NotFound, SealBroken, SealError
from outrider.privacy import chunked, keys, vault
from outrider.privacy.identity import Identity
from outrider.privacy.keys import FileKeys, Keys, MemoryKeys, RingKeys
from outrider.privacy.kv_object import KvIdentity, token_hash
from outrider.privacy.vault import Cost

QUICK = Cost(1, 1, 64)
WORDS = "correct horse battery"


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "vault"


def test_keys_are_for_one_purpose_and_stay_the_same(place: Path) -> None:
    secrets = MemoryKeys()
    made = vault.make(place, secrets)
    again = vault.unlock(place, secrets)
    assert made.key("kv") == again.key("kv") != again.key("journals")
    assert len(made.key("kv")) == 32
    assert stat.S_IMODE(place.stat().st_mode) == 0o600
    assert all(secret not in place.read_bytes() for secret in secrets.secrets.values())
    assert repr(made._master) not in repr(made) and repr(made._wrap) not in repr(made)
    with pytest.raises(SealError, match="already"):
        vault.make(place, secrets)


def test_another_machines_keys_do_not_open_it(place: Path) -> None:
    vault.make(place, MemoryKeys())
    with pytest.raises(SealError, match="key of the vault is gone"):
        vault.unlock(place, MemoryKeys())
    other = MemoryKeys()
    other.put(vault.WRAP, os.urandom(32))
    with pytest.raises(SealBroken, match="can not be unlocked"):
        vault.unlock(place, other)


def test_a_passphrase(place: Path) -> None:
    secrets = MemoryKeys()
    made = vault.make(place, secrets, WORDS, QUICK)
    assert vault.WRAP not in secrets.secrets
    assert vault.unlock(place, secrets, lambda: WORDS).key("a") == made.key("a")
    assert vault.read(place).cost == QUICK
    with pytest.raises(SealBroken, match="can not be unlocked"):
        vault.unlock(place, secrets, lambda: WORDS + "!")
    with pytest.raises(SealError, match="needs its passphrase") as caught:
        vault.unlock(place, secrets)
    assert "OUTRIDER_VAULT_PASSPHRASE" in caught.value.todo
    with pytest.raises(SealError, match="at least"):
        made.rewrap(secrets, "short")


def test_another_wrap_keeps_what_is_sealed(place: Path) -> None:
    secrets = MemoryKeys()
    made = vault.make(place, secrets, WORDS, QUICK)
    made.rewrap(secrets, None)
    opened = vault.unlock(place, secrets)
    assert (opened.key("kv"), opened.kind) == (made.key("kv"), "memory")
    opened.rewrap(secrets, WORDS[::-1], QUICK)
    assert vault.unlock(place, secrets, lambda: WORDS[::-1]).key("kv") == made.key("kv")
    with pytest.raises(SealBroken):
        vault.unlock(place, secrets, lambda: WORDS)


def test_trying_passphrases_costs_what_was_measured() -> None:
    assert vault.measure(QUICK) < vault.measure(Cost(3, 1, 16384))


def test_every_flipped_bit_and_every_cut_is_refused(place: Path) -> None:
    secrets = MemoryKeys()
    vault.make(place, secrets)
    sound = place.read_bytes()
    for at in range(len(sound)):
        place.write_bytes(sound[:at] + bytes([sound[at] ^ 1]) + sound[at + 1 :])
        with pytest.raises(SealError):
            vault.unlock(place, secrets)
        place.write_bytes(sound[:at])
        with pytest.raises(SealError):
            vault.unlock(place, secrets)
    place.write_bytes(sound)
    vault.unlock(place, secrets)


def rewritten(place: Path, **changes: object) -> None:
    """As somebody would who can write the file, and knows no key."""
    file, head = vault._read(place)
    said = msgspec.msgpack.encode(msgspec.structs.replace(head, **changes))
    place.write_bytes(msgspec.msgpack.encode(msgspec.structs.replace(file, head=said)))


@pytest.mark.parametrize(
    "cost",
    [Cost(0), Cost(3, 4, 1 << 30), Cost(1 << 20), Cost(3, 0), Cost(1, 4, 8)],
)
def test_a_file_that_asks_for_all_memory_is_not_obeyed(place: Path, cost: Cost) -> None:
    vault.make(place, MemoryKeys(), WORDS, QUICK)
    rewritten(place, cost=cost)
    with pytest.raises(SealError, match="can not be used"):
        vault.unlock(place, MemoryKeys(), lambda: WORDS)


def test_a_newer_format_is_named(place: Path) -> None:
    vault.make(place, MemoryKeys())
    rewritten(place, format=2)
    with pytest.raises(SealError, match="another release"):
        vault.unlock(place, MemoryKeys())


# --- epochs ------------------------------------------------------------------------------------


def kv(epoch: int) -> bytes:
    identity = KvIdentity(
        "home", b"s" * 16, "m", "c", (0, 2), (0, 64), token_hash((1, 2)), 0, 1, epoch, "disk"
    )
    return identity.context()


def test_what_is_of_an_older_epoch_is_refused(place: Path) -> None:
    secrets = MemoryKeys()
    made = vault.make(place, secrets)
    sealed = chunked.seal(made.key("kv"), kv(made.epoch), b"keys and values" * 2000)
    assert chunked.open_all(made.key("kv"), kv(made.epoch), sealed)
    made.rise()
    opened = vault.unlock(place, secrets)
    assert opened.epoch == 2
    for key, context in ((opened.key("kv"), kv(1)), (opened.key("kv"), kv(2))):
        with pytest.raises(SealBroken):
            chunked.open_all(key, context, sealed)


def test_an_older_vault_that_is_put_back_is_noticed(place: Path) -> None:
    secrets = MemoryKeys()
    made = vault.make(place, secrets)
    older = place.read_bytes()
    made.rise()
    place.write_bytes(older)
    with pytest.raises(SealBroken, match="epoch 1, and must be of 2"):
        vault.unlock(place, secrets)


# --- erasing -----------------------------------------------------------------------------------


def test_erased_is_erased_even_where_a_copy_of_the_file_is_left(place: Path) -> None:
    secrets = MemoryKeys()
    vault.make(place, secrets)
    copy = place.read_bytes()
    assert vault.erase(place, secrets) and not vault.erase(place, secrets)
    assert not place.exists() and not secrets.secrets
    with pytest.raises(NotFound):
        vault.unlock(place, secrets)
    place.write_bytes(copy)
    place.chmod(0o600)
    with pytest.raises(SealError, match="key of the vault is gone"):
        vault.unlock(place, secrets)


def test_erasing_a_link_leaves_what_it_leads_to(place: Path, tmp_path: Path) -> None:
    other = tmp_path / "precious"
    other.write_bytes(b"precious")
    place.symlink_to(other)
    vault.erase(place, MemoryKeys())
    assert other.read_bytes() == b"precious" and not place.is_symlink()


# --- where secrets lie -------------------------------------------------------------------------


def test_files_are_this_users_alone(tmp_path: Path) -> None:
    secrets = FileKeys(tmp_path / "keys")
    assert secrets.get("device") is None
    secrets.put("device", b"secret")
    path = tmp_path / "keys" / "device.key"
    assert secrets.get("device") == b"secret"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    for mode in (0o640, 0o604, 0o620, 0o666):
        path.chmod(mode)
        with pytest.raises(SealError, match="can not be used") as caught:
            secrets.get("device")
        assert f"mode {mode:04o}" in caught.value.why and "chmod 600" in caught.value.todo
    path.chmod(0o600)
    secrets.remove("device")
    secrets.remove("device")
    assert secrets.get("device") is None


def test_a_link_and_a_folder_are_no_secrets(tmp_path: Path) -> None:
    secrets = FileKeys(tmp_path)
    (tmp_path / "other").write_bytes(b"x")
    (tmp_path / "device.key").symlink_to(tmp_path / "other")
    (tmp_path / "verifier.key").mkdir(mode=0o700)
    for name in ("device", "verifier"):
        with pytest.raises(SealError, match="can not be used"):
            secrets.get(name)


@pytest.mark.parametrize("name", ["", "../device", "Device", "a" * 60, "a/b"])
def test_names_of_secrets_lead_nowhere_else(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="names no secret"):
        FileKeys(tmp_path).get(name)


def test_an_identity_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OUTRIDER_STATE", str(tmp_path))
    secrets = FileKeys(tmp_path)
    with ThreadPoolExecutor(4) as threads:
        made = list(threads.map(lambda _: keys.identity(secrets, "device").public, range(8)))
    assert len(set(made)) == 1, "those that begin at once agree"
    first = keys.identity(secrets, "device")
    assert keys.identity(secrets, "device").public == first.public
    assert keys.identity(secrets, "verifier").public != first.public
    secrets.put("device", b"not a key")
    with pytest.raises(SealError, match="no Ed25519 key"):
        keys.identity(secrets, "device")


class Ring:
    """A keyring's backend, as the package `keyring` defines one."""

    priority = 5.0

    def __init__(self) -> None:
        self.kept: dict[tuple[str, str], str] = {}
        self.locked = False

    def get_password(self, service: str, name: str) -> str | None:
        self._look()
        return self.kept.get((service, name))

    def set_password(self, service: str, name: str, text: str) -> None:
        self._look()
        self.kept[service, name] = text

    def delete_password(self, service: str, name: str) -> None:
        self._look()
        del self.kept[service, name]

    def _look(self) -> None:
        if self.locked:
            raise RuntimeError("a secret is in this text")


def test_a_keyring_keeps_bytes_and_its_failures_are_typed(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OUTRIDER_STATE", str(place.parent))
    ring = Ring()
    secrets: Keys = RingKeys(ring)
    made = vault.make(place, secrets)
    assert made.kind == "keyring"
    assert vault.unlock(place, secrets).key("a") == made.key("a")
    assert Identity.from_pem(keys.identity(secrets, "device").pem())
    ring.locked = True
    with pytest.raises(SealError, match="keyring does not answer") as caught:
        vault.unlock(place, secrets)
    assert "a secret" not in str(caught.value)
    ring.locked = False
    ring.kept["outrider", vault.WRAP] = "!no base64"
    with pytest.raises(SealError, match="keyring does not answer"):
        vault.unlock(place, secrets)
    ring.kept["outrider", vault.WRAP] = ""
    vault.erase(place, secrets)
    assert list(ring.kept) == [("outrider", "device")]


def test_where_they_lie_can_be_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OUTRIDER_STATE", str(tmp_path))
    monkeypatch.setattr(RingKeys, "found", staticmethod(lambda: RingKeys(Ring())))
    assert keys.here().kind == "keyring"
    monkeypatch.setenv("OUTRIDER_KEYS", "file")
    found = keys.here()
    assert isinstance(found, FileKeys) and found.folder == tmp_path / "keys"
    monkeypatch.setenv("OUTRIDER_KEYS", "pocket")
    with pytest.raises(SealError, match="pocket"):
        keys.here()
    monkeypatch.setattr(RingKeys, "found", staticmethod(lambda: None))
    monkeypatch.setenv("OUTRIDER_KEYS", "keyring")
    with pytest.raises(SealError, match="no keyring here"):
        keys.here()
