"""`outrider completion`."""

from __future__ import annotations

from typing import Literal

from outrider.cli import console

WHERE = {
    "bash": "~/.local/share/bash-completion/completions/outrider",
    "zsh": "a file _outrider in a folder of $fpath",
    "fish": "~/.config/fish/completions/outrider.fish",
}


def completion(shell: Literal["bash", "zsh", "fish"]) -> int:
    """Print the script that completes verbs and flags.

    Args:
        shell: Which shell reads it.
    """
    from outrider.cli.app import make

    console.out(make().generate_completion(shell=shell))
    console.note(f"keep it: outrider completion {shell} > {WHERE[shell]}")
    return 0
