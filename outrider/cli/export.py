"""`outrider export`: layers of a model as ONNX files that a phone's runtime loads."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from outrider.cli import console
from outrider.cli.servers import missing
from outrider.errors import ConfigError

if TYPE_CHECKING:
    from outrider.engine import LayerRange
    from outrider.models.onnx_notes import Precision
    from outrider.models.source import ModelFiles


def export(
    model: str,
    /,
    *,
    layers: str = ":",
    target: Literal["cpu", "npu"] = "cpu",
    output: Annotated[Path, Parameter(alias="-o")] = Path("stage.onnx"),
    dtype: Literal["float32", "int8", "int4"] | None = None,
    chunk: int | None = None,
    context: int | None = None,
    calibrate: Sequence[Path] = (),
    outliers: float | None = None,
    json: bool = False,
) -> int:
    """Write layers of a model as ONNX, with the KV cache in and out; docs/stages.md tells how a
    phone loads them.

    Args:
        model: A folder with config.json and safetensors, or bundled:target.
        layers: A:B, decoder layers A up to B; the first brings the embedding, the last the head.
            0:12-head and 0:12-embedding leave one out.
        target: cpu: rows and caches of any size. npu: fixed sizes, INT8 products.
        output: The file to write; npu writes FILE, FILE's .decode twin and a .data beside it.
        dtype: cpu only: of the weights. float32 keeps them as they are stored.
        chunk: npu only: rows of the prefill graph, 32 where none is given.
        context: npu only: tokens that fit, 256 where none is given.
        calibrate: npu only: text files whose activations set the scales.
        outliers: npu only: share of each product's input channels that stay in float, 0.05 where
            none is given.
        json: Print one JSON object.
    """
    try:
        from outrider.engines.stages import parse
        from outrider.models.source import resolve
        from outrider.models.stage_export import config_of
    except ModuleNotFoundError as error:
        raise missing("onnx", error) from None
    files = resolve(model)
    wanted = parse(layers, config_of(files).layers)
    _check_output(output)
    given = {"chunk": chunk, "context": context, "outliers": outliers}
    if target == "npu":
        if dtype is not None:
            raise _foreign("dtype", "cpu")
        found = _npu(files, wanted, output, calibrate, given)
    else:
        named = {**given, "calibrate": calibrate or None}
        for name in (name for name, value in named.items() if value is not None):
            raise _foreign(name, "npu")
        found = _cpu(files, wanted, output, dtype or "float32")
    console.as_json(found) if json else console.out(_page(found))
    return 0


def _foreign(name: str, target: str) -> ConfigError:
    return ConfigError(
        f"--{name} is for --target {target}", effect="no file was written", todo="leave it away"
    )


def _check_output(output: Path) -> None:
    if output.suffix != ".onnx" or not output.parent.is_dir():
        raise ConfigError(
            f"{output} can not be written",
            why="the name must end in .onnx, in a folder that is there",
            effect="no file was written",
            todo="-o stage.onnx",
        )


# --- targets -----------------------------------------------------------------------------------


def _cpu(files: ModelFiles, layers: LayerRange, output: Path, dtype: str) -> dict[str, Any]:
    from outrider.engines.onnx.files import PRECISIONS
    from outrider.models.stage_export import export_stage

    precision: Precision = PRECISIONS[dtype]
    notes = export_stage(files, layers, output, precision)
    return _described(notes, [output, output.with_name(output.name + ".data")])


def _npu(
    files: ModelFiles,
    layers: LayerRange,
    output: Path,
    texts: Sequence[Path],
    given: dict[str, Any],
) -> dict[str, Any]:
    try:
        from outrider.engines.onnx.calibrate import STANDARD, calibrate, standard_text
    except ModuleNotFoundError as error:
        raise missing("onnx", error) from None
    from outrider.models import npu_export as npu
    from outrider.models.npu_graph import OUTLIERS, Scheme
    from outrider.models.stage_export import config_of

    sizes = {"chunk": given["chunk"] or npu.CHUNK, "context": given["context"] or npu.CAPACITY}
    npu.check_sizes(config_of(files), layers, **sizes)
    share = OUTLIERS if given["outliers"] is None else _share(given["outliers"])
    console.note(f"calibrating on {', '.join(map(str, texts)) or ', '.join(STANDARD)}")
    ranges = calibrate(files, [_text(path) for path in texts] or standard_text())
    notes = npu.export_chunks(files, layers, output, Scheme(ranges, outliers=share), **sizes)
    places = npu.files_at(output)
    found = _described(notes, [places.prefill, places.decode, places.data])
    return found | {"chunk": notes.chunk, "int8_flop_share": npu.flops_of(output).int8_share}


def _share(value: float) -> float:
    if not 0 <= value <= 1:
        raise ConfigError(f"--outliers {value} is no share", todo="a number from 0 to 1")
    return value


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{path} can not be read as text",
            why=type(error).__name__,
            effect="no file was written",
        ) from error


# --- what was written --------------------------------------------------------------------------


def _described(notes: Any, files: Sequence[Path]) -> dict[str, Any]:
    import onnx

    from outrider.engines.stages import show

    graph = onnx.load(files[0], load_external_data=False).graph
    written = [path for path in files if path.is_file()]
    return {
        "model": notes.model,
        "layers": show(notes.layers, notes.model_layers),
        "of_layers": notes.model_layers,
        "embedding": notes.embedding,
        "head": notes.head,
        "target": notes.target,
        "precision": notes.precision,
        "context": notes.context,
        "weights_digest": notes.weights,
        "files": [{"file": str(path), "bytes": path.stat().st_size} for path in written],
        "inputs": [_port(value) for value in graph.input],
        "outputs": [_port(value) for value in graph.output],
    }


def _port(value: Any) -> dict[str, Any]:
    import onnx

    tensor = value.type.tensor_type
    sizes = [d.dim_param or d.dim_value for d in tensor.shape.dim]
    kind = onnx.TensorProto.DataType.Name(tensor.elem_type).lower()
    return {"name": value.name, "type": "float32" if kind == "float" else kind, "shape": sizes}


def _page(found: dict[str, Any]) -> str:
    ends = [name for name in ("embedding", "head") if found[name]]
    what = f"layers {found['layers']} of {found['of_layers']}"
    lines = [f"{found['model']}: {' and '.join([what, *ends])}, {found['precision']}"]
    lines += [f"  wrote {f['file']}, {_bytes(f['bytes'])}" for f in found["files"]]
    if found["target"] == "npu":
        share = f"{found['int8_flop_share']:.1%} of a chunk's operations are INT8 products"
        lines += [
            f"  chunks of {found['chunk']} rows, {found['context']} tokens of context; {share}"
        ]
    return "\n".join([*lines, "", _ports(found)])


def _bytes(count: int) -> str:
    return f"{count / 2**20:.1f} MiB" if count >= 2**20 else f"{count / 2**10:.0f} KiB"


def _ports(found: dict[str, Any]) -> str:
    """One line a tensor; of the caches the first layer's, and how many more there are."""
    rows = [("", "NAME", "TYPE", "SHAPE")]
    for side in ("inputs", "outputs"):
        ports = found[side]
        caches = [port for port in ports if port["name"].startswith(("past.", "present."))]
        for port in ports:
            if port not in caches[2:]:
                shape = "[" + ", ".join(map(str, port["shape"])) + "]"
                rows.append((side[:-1], port["name"], port["type"], shape))
        if caches[2:]:
            rows.append(("", f"... {len(caches) - 2} more", "", "of the other layers"))
    return console.table(rows)
