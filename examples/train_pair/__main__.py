"""Trains a pair: `python -m examples.train_pair --out FOLDER [--quick]`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from examples.train_pair.corpus import Root, environment_roots, held_out_names
from examples.train_pair.numerics import pick_device, pick_dtype
from examples.train_pair.recipe import FULL, QUICK, Place, cook
from examples.train_pair.train import Report

HELD_OUT = Path(__file__).parents[2] / "outrider" / "bundled" / "held_out.json"


@contextmanager
def bar(name: str, steps: int) -> Iterator[Report]:
    """A progress bar on stderr; the report moves it."""
    columns = (
        TextColumn("{task.description:8}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]:.3f}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(name, total=steps, loss=float("nan"))
        yield lambda step, loss: progress.update(task, completed=step, loss=loss)


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="train_pair", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for all that is written")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, under a minute")
    parser.add_argument(
        "--corpus", type=Path, action="append", help="folder of Python files (repeatable)"
    )
    parser.add_argument("--held-out", type=Path, default=HELD_OUT, help="list of held-out files")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 ...")
    parser.add_argument("--dtype", choices=("auto", "float32", "bfloat16"), default="auto")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(argv)


def roots_of(folders: list[Path] | None) -> tuple[Root, ...]:
    """The named folders, else the running environment."""
    if not folders:
        return environment_roots()
    return tuple(Root(f"{index}-{f.name}", f.resolve()) for index, f in enumerate(folders))


def main(argv: list[str]) -> None:
    args = parse(argv)
    device = pick_device(args.device)
    place = Place(
        out=args.out,
        roots=roots_of(args.corpus),
        held_out=held_out_names(args.held_out),
        device=device,
        dtype=pick_dtype(args.dtype, device),
        seed=args.seed,
    )
    cook(QUICK if args.quick else FULL, place, bar)
    sys.stdout.write((args.out / "figures.json").read_text())


if __name__ == "__main__":
    main(sys.argv[1:])
