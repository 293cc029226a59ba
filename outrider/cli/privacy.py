"""`outrider privacy`: what leaves the device in each mode, and how much of a text it gives away."""

from __future__ import annotations

from typing import TYPE_CHECKING

from outrider.cli import console
from outrider.cli.servers import missing

if TYPE_CHECKING:
    from collections.abc import Sequence

    from outrider.privacy.leak.meter import Reading

ADVICE = """\
Splitting layers, permuting and quantising keep no text from who holds the numbers.
Sealed data is for who stores or relays it: a cloud that verifies must see the tokens.
To keep a text: --share nothing. To keep names and keys out of it: --redact all."""


def privacy(model: str = "bundled:target", /, *, json: bool = False, tokens: int = 12) -> int:
    """Attack what would leave the device, mode by mode, and show how much of a text came back.

    Args:
        model: Whose states are attacked: a folder with config.json and safetensors, or
            bundled:target.
        json: Print one JSON object.
        tokens: Of each of the three texts that are attacked.
    """
    try:
        from outrider.privacy.leak import meter

        found = meter.measure(model, most=max(1, tokens), note=console.note)
    except ModuleNotFoundError as error:
        raise missing("torch", error) from None
    if json:
        console.as_json({"model": model, "readings": found})
    else:
        console.out(_page(found))
    return 0


def _page(found: Sequence[Reading]) -> str:
    rows = [("WHAT LEAVES", "ATTACK", "TEXT RECOVERED")]
    rows += [(one.leaves, one.attack, f"{one.recovered:.0%}") for one in found]
    rows += [("nothing (placement edge)", "-", "-")]
    return "\n".join([console.table(rows), "", ADVICE])
