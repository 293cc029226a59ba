"""The file of API keys: `NAME KEY` a line, `#` begins a comment."""

from __future__ import annotations

from pathlib import Path

from outrider.errors import ConfigError

LEAST = 16
"""Characters; shorter keys can be guessed."""


def read_keys(path: Path) -> frozenset[str]:
    """The keys. Raises ConfigError for a file that can not be read, or holds none."""
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise _refused(path, "it can not be read", str(getattr(error, "strerror", ""))) from None
    pairs = [line.split() for line in lines if line.strip() and not line.lstrip().startswith("#")]
    if not pairs or any(len(pair) != 2 for pair in pairs):
        raise _refused(path, "a line is not NAME KEY" if pairs else "it holds no key")
    if any(len(key) < LEAST for _, key in pairs):
        raise _refused(path, f"a key is shorter than {LEAST} characters")
    return frozenset(key for _, key in pairs)


def _refused(path: Path, why: str, detail: str = "") -> ConfigError:
    return ConfigError(
        f"the key file {path} can not be used",
        why=f"{why} ({detail})" if detail else why,
        effect="the daemon did not start",
        todo="write one NAME KEY pair a line",
    )
