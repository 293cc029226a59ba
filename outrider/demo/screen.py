"""How the demo looks: rich on a terminal, plain text elsewhere, an SVG on request."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from rich.console import Console
from rich.markup import escape
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from outrider.demo.story import MODES, Cut, Figures, Mode, Ride
from outrider.protocol import trace
from outrider.protocol.stream import Done, Forked, Provisional, Retract, Token

STYLES = {
    "accepted": "bold green",
    "bonus": "cyan",
    "corrected": "yellow",
    "cloud": "blue",
    "edge": "magenta",
}
LEGEND = (
    ("accepted", "a draft of the device, verified by the cloud"),
    ("bonus", "the cloud, after all drafts held"),
    ("corrected", "the cloud, against the draft"),
    ("cloud", "the cloud, without a draft"),
    ("edge", "the small model alone, not verified"),
)
PROVISIONAL = "italic magenta underline"


class Screen:
    """Writes to a console; with `record` it can be saved as an SVG."""

    def __init__(self, console: Console) -> None:
        self.console = console

    def opening(self, rtt_ms: float, step_ms: float, model: str) -> None:
        self.console.rule("[bold]outrider demo[/]: a device drafts, the cloud decides, one text")
        self.console.print(
            f"Two processes over gRPC on this machine. The link is emulated: {rtt_ms:g} ms round "
            f"trip.\nThe target is [bold]{escape(model)}[/], inflated: its layers and neurons are "
            "padded with ones that\nchange nothing, so that a step takes as long as a real "
            f"model's (aimed at {step_ms:g} ms or more).\nThe pair was trained on Python and "
            "writes plausible code, not correct code.\n",
            highlight=False,
        )

    def legend(self) -> None:
        self.console.print("Who wrote a token:")
        for source, meaning in LEGEND:
            line = Text("  ")
            line.append(f"{source:10}", STYLES[source])
            line.append(meaning)
            self.console.print(line)
        self.console.print()

    def answer(self, prompt: str, ride: Ride, mode: Mode) -> None:
        """An answer in the colours of who wrote it."""
        body = Text(prompt, "dim")
        for token in ride.tokens:
            body.append(token.text, STYLES[token.source])
        per_token = ride.done.speculation.passes / max(1, len(ride.tokens))
        title = f"placement {mode}: {len(ride.tokens)} tokens, {per_token:.2f} passes a token"
        self.console.print(Panel(body, title=title, title_align="left", border_style="dim"))

    def table(self, figures: Mapping[Mode, Figures]) -> None:
        table = Table(title="the same prompts, in turn", title_justify="left")
        for name, justify in (
            ("placement", "left"),
            ("tokens\n/ s", "right"),
            ("ms\n/ token", "right"),
            ("acceptance\nlength", "right"),
            ("drafts\naccepted", "right"),
            ("passes\n/ token", "right"),
            ("bytes up\n/ token", "right"),
        ):
            table.add_column(name, justify=justify)  # type: ignore[arg-type]
        for mode in MODES:
            table.add_row(mode, *_cells(figures[mode], mode))
        self.console.print(table)

    def identity(self, *, identical: bool) -> None:
        verdict = "[bold green]yes[/]" if identical else "[bold red]NO[/]"
        self.console.print(f"every answer with drafts equals the cloud's alone: {verdict}\n")

    def cut(self, cut: Cut, patience_s: float) -> None:
        self.console.rule("the link is cut in the middle of an answer")
        verdict = "[bold green]yes[/]" if cut.identical else "[bold red]NO[/]"
        self.console.print(
            f"\n{cut.committed_before} tokens were committed, then the link was gone. "
            f"{cut.local_tokens} provisional tokens of the device followed,\n"
            f"{cut.retracted} of them were taken back when the cloud returned. "
            f"Lost {cut.lost}, doubled {cut.doubled}.\n"
            f"the final text equals the cloud's alone: {verdict}",
            highlight=False,
        )
        if cut.fork_from is not None:
            self.console.print(
                f"\nA plain OpenAI client can not take text back. After {patience_s:g} s it got a "
                f"[magenta]mixed[/] answer:\nthe cloud's up to token {cut.fork_from}, the small "
                "model's from there on, and named so.",
                highlight=False,
            )


def _cells(figures: Figures, mode: Mode) -> Iterable[str]:
    yield f"{figures.tokens_per_s:.1f}"
    yield f"{figures.tpot_ms:.1f}"
    if mode == "edge":
        yield from ("-", "-", "0", "0")
        return
    drafts = mode == "draft"
    yield f"{figures.acceptance_length:.2f}" if drafts else "-"
    yield f"{figures.accepted_share:.0%}" if drafts else "-"
    yield f"{figures.passes_per_token:.2f}"
    yield f"{figures.bytes_up_per_token:.0f}"


class Typist:
    """Writes an answer as it comes; provisional text is struck out when it is taken back."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def begin(self, prompt: str) -> None:
        self._console.print(Text(prompt, "dim"), end="")

    def __call__(self, event: trace.Event) -> None:
        match event:
            case Token():
                self._write(event.text, STYLES[event.source])
            case Provisional():
                self._write(event.text, PROVISIONAL)
            case Retract():
                self._write("\u27e8taken back\u27e9", "bold red")
            case Forked():
                self._write("\u27e8the small model goes on\u27e9", "bold magenta")
            case Done():
                self._console.print()

    def _write(self, text: str, style: str) -> None:
        self._console.print(Text(text, style), end="", soft_wrap=True)
