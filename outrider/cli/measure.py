"""`outrider fit` and `outrider bench`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from outrider.cli import console
from outrider.cli.servers import missing

if TYPE_CHECKING:
    from outrider.fit import Fit


def fit(
    draft: str = "bundled:draft",
    target: str = "bundled:target",
    /,
    *,
    json: bool = False,
    tokens: int = 48,
    draft_engine: str = "auto",
    target_engine: str = "auto",
    device: str = "auto",
    threads: int | None = 1,
) -> int:
    """Measure whether a draft suits a target: vocabulary, agreement, cost. Nothing is deployed.

    Args:
        draft: The small model: a folder, a .gguf or .onnx file, or bundled:draft.
        target: The large one.
        json: Print one JSON object.
        tokens: Tokens of each of the target's sixteen answers.
        draft_engine: auto, torch, llama, onnx.
        target_engine: auto, torch, llama, onnx.
        device: auto, cpu, cuda:N or mps, for both.
        threads: CPU threads of each engine.
    """
    try:
        from outrider import fit as fitting
        from outrider.engine import EngineSpec
    except ModuleNotFoundError as error:
        raise missing("edge,torch", error) from None
    small, large = (
        EngineSpec(model=model, engine=engine, device=device, threads=threads, numerics="plain")
        for model, engine in ((draft, draft_engine), (target, target_engine))
    )
    found = fitting.measure(small, large, tokens=tokens, note=console.note)
    if json:
        console.as_json(found)
    else:
        console.out(_page(found))
    return 0


def _page(found: Fit) -> str:
    shared = found.overlap
    same = "the same" if shared.same_digest else "different"
    rows = [("PROMPTS", "SAMPLING", "ACCEPTED", "TOKENS A PASS AT DEPTH 2, 4, 8")]
    rows += [
        (
            run.kind,
            run.sampling,
            f"{run.rate:.0%}",
            ", ".join(f"{length:.2f}" for length in run.acceptance_length.values()),
        )
        for run in found.agreements
    ]
    vocabulary = (
        f"vocabulary {same}: {shared.draft_size} and {shared.target_size} tokens,"
        f" {shared.same_ids:.1%} of ids and {shared.same_bytes:.1%} of tokens agree"
    )
    measured = ["", console.table(rows)] if found.agreements else []
    verdict = console.bold(f"verdict: {found.verdict}")
    advice = [f"  {sentence}" for sentence in found.advice]
    head = f"{found.draft} drafts for {found.target}"
    return "\n".join([head, vocabulary, *measured, "", verdict, *advice])


def bench(
    name: str | None = None,
    /,
    *,
    json: bool = False,
    quick: bool = False,
    receipt: bool = False,
    seed: int | None = None,
) -> int:
    """Run a bench of the source checkout, or list them.

    Args:
        name: Which one; without it they are listed.
        json: Print one JSON object.
        quick: Under a minute, for a first look.
        receipt: Keep the result of a full run under bench/receipts/.
        seed: Of prompts and sampling.
    """
    from outrider import benches

    if name is None:
        console.as_json({"benches": benches.names()}) if json else console.out(_list())
        return 0
    flags = {"--json": json, "--quick": quick, "--receipt": receipt}
    arguments = [flag for flag, given in flags.items() if given]
    if seed is not None:
        arguments += ["--seed", str(seed)]
    return benches.run(name, arguments)


def _list() -> str:
    from outrider import benches

    return "\n".join(benches.names())
