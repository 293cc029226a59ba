"""Keys of a paired device and cloud, as files, and options that name them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from outrider.privacy.identity import Identity


@dataclass(frozen=True)
class Paired:
    device: Identity
    verifier: Identity
    folder: Path

    @classmethod
    def make(cls, folder: Path) -> Paired:
        made = cls(Identity.generate(), Identity.generate(), folder)
        (folder / "device.pem").write_bytes(made.device.pem())
        (folder / "verifier.pem").write_bytes(made.verifier.pem())
        made.let_in(made.device.public)
        return made

    def let_in(self, *publics: bytes) -> None:
        lines = [f"device{i} {public.hex()}\n" for i, public in enumerate(publics)]
        (self.folder / "devices").write_text("# who may\n" + "".join(lines))

    @property
    def cloud(self) -> dict[str, Any]:
        return {
            "channel_identity": self.folder / "verifier.pem",
            "channel_devices": self.folder / "devices",
        }

    @property
    def edge(self) -> dict[str, Any]:
        return {
            "channel_identity": self.folder / "device.pem",
            "channel_pin": self.verifier.public.hex(),
        }
