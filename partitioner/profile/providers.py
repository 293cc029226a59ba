"""Execution providers of onnxruntime: which options each gets, and what it really takes.

`get_available_providers` names what a library was built with, and a session falls back to the
CPU without a word. So placement is looked at twice: strictly, where any node left to the CPU
fails the session (`session.disable_cpu_ep_fallback`), and with the fallback, where the session
tells the provider of each node (`session.record_ep_graph_assignment_info`), or, where the
library is too old for that, the profile of one run does.

Options: onnxruntime.ai/docs/execution-providers, one page each; ryzenai.docs.amd.com for VitisAI.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from outrider.errors import EngineMissing, ModelCorrupt

CPU = "CPUExecutionProvider"
STRICT = "session.disable_cpu_ep_fallback"
RECORD = "session.record_ep_graph_assignment_info"


@dataclass(frozen=True, slots=True)
class Option:
    """One setting of a provider; values are strings, as the library takes them."""

    name: str
    value: str
    why: str


@dataclass(frozen=True, slots=True)
class Sheet:
    """A provider and its options. `static`: it wants shapes that are known beforehand."""

    name: str
    library_name: str
    hardware: str
    options: tuple[Option, ...]
    static: bool = False

    def settings(self) -> dict[str, str]:
        """As `InferenceSession(provider_options=[...])` takes them."""
        return {option.name: option.value for option in self.options}


SHEETS: tuple[Sheet, ...] = (
    Sheet(
        "qnn",
        "QNNExecutionProvider",
        "Qualcomm Hexagon NPU",
        (
            Option("backend_type", "htp", "the NPU; gpu and cpu are other back ends"),
            Option("htp_performance_mode", "burst", "a pass is short and waited for"),
            Option("htp_graph_finalization_optimization_mode", "3", "compiled once, run often"),
            Option("enable_htp_fp16_precision", "1", "what stays float runs as float16"),
        ),
        static=True,
    ),
    Sheet(
        "openvino",
        "OpenVINOExecutionProvider",
        "Intel CPU, GPU and NPU",
        (
            Option("device_type", "AUTO:NPU,GPU,CPU", "the first of them that is there"),
            Option("num_streams", "1", "latency of one pass, not throughput"),
            Option("disable_dynamic_shapes", "False", "prompts come in any length"),
        ),
    ),
    Sheet(
        "coreml",
        "CoreMLExecutionProvider",
        "Apple Neural Engine and GPU",
        (
            Option("ModelFormat", "MLProgram", "knows more operators than NeuralNetwork"),
            Option("MLComputeUnits", "ALL", "neural engine, GPU and CPU"),
            Option("RequireStaticInputShapes", "1", "with dynamic shapes it runs on the CPU"),
            Option("EnableOnSubgraphs", "0", "bodies of loops are too small to pay"),
        ),
        static=True,
    ),
    Sheet(
        "vitisai",
        "VitisAIExecutionProvider",
        "AMD XDNA NPU (Ryzen AI)",
        (Option("cache_key", "outrider", "compilation takes minutes: the result is kept by name"),),
        static=True,
    ),
    Sheet(
        "tensorrt",
        "TensorrtExecutionProvider",
        "NVIDIA GPU, compiled",
        (
            Option("device_id", "0", "the first GPU"),
            Option("trt_fp16_enable", "1", "twice the rate of float32 and half the bytes"),
            Option("trt_engine_cache_enable", "1", "an engine takes minutes to build"),
            Option("trt_timing_cache_enable", "1", "the next build of a like model is shorter"),
        ),
    ),
    Sheet(
        "cuda",
        "CUDAExecutionProvider",
        "NVIDIA GPU",
        (
            Option("device_id", "0", "the first GPU"),
            Option("arena_extend_strategy", "kSameAsRequested", "memory is planned, not doubled"),
            Option("use_tf32", "0", "scores keep float32"),
            Option("do_copy_in_default_stream", "1", "copies keep their order with passes"),
        ),
    ),
    Sheet(
        "dml",
        "DmlExecutionProvider",
        "any DirectX 12 GPU",
        (
            Option("device_id", "0", "the first adapter"),
            Option("performance_preference", "high_performance", "not the integrated one"),
        ),
    ),
    Sheet("cpu", CPU, "any CPU", ()),
)


@dataclass(frozen=True, slots=True)
class Placement:
    """Where the nodes of a graph are, after the library's basic optimisations."""

    provider: str
    state: str
    """`absent`: not in this build; `failed`: in it, but does not run here; `partial`; `full`."""
    share: float
    """Nodes placed on the provider over all nodes."""
    nodes: int
    left: Mapping[str, int]
    """Operators that other providers took, and how many of each."""
    detail: str = ""


def placements(model: Path) -> tuple[Placement, ...]:
    """Of each provider. Raises EngineMissing without onnxruntime, ModelCorrupt."""
    return tuple(placement(model, sheet) for sheet in SHEETS)


def placement(model: Path, sheet: Sheet) -> Placement:
    """How much of a model a provider really takes, tried strictly first."""
    ort = _library()
    if sheet.library_name not in ort.get_available_providers():
        return Placement(sheet.name, "absent", 0.0, 0, {}, "not in this build of onnxruntime")
    strict = _session(model, sheet, strict=True)
    found = strict if not isinstance(strict, str) else _session(model, sheet, strict=False)
    if isinstance(found, str):
        return Placement(sheet.name, "failed", 0.0, 0, {}, found)
    return judge(sheet, assigned(found, sheet))


def judge(sheet: Sheet, nodes: Sequence[tuple[str, str]]) -> Placement:
    """From (provider, operator) of each node."""
    mine = sum(provider == sheet.library_name for provider, _ in nodes)
    left = Counter(kind for provider, kind in nodes if provider != sheet.library_name)
    share = mine / len(nodes) if nodes else 0.0
    state = "failed" if not mine else "partial" if left else "full"
    detail = "" if not left else "left to others: " + _listed(left)
    return Placement(sheet.name, state, share, len(nodes), dict(left), detail)


def _listed(kinds: Counter[str]) -> str:
    return ", ".join(f"{kind} x{count}" for kind, count in kinds.most_common(4))


def _library() -> Any:
    try:
        import onnxruntime
    except ImportError:
        raise EngineMissing("onnx", "onnx") from None
    return onnxruntime


def _session(model: Path, sheet: Sheet, *, strict: bool) -> Any:
    """The session, or what the library says against it."""
    ort = _library()
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    options.add_session_config_entry(RECORD, "1")
    chain: list[Any] = [(sheet.library_name, sheet.settings())]
    if sheet.library_name != CPU:
        if strict:
            options.add_session_config_entry(STRICT, "1")
        else:
            chain.append(CPU)
    # The library's errors share no base class.
    try:
        session = ort.InferenceSession(str(model), options, providers=chain)
    except Exception as error:  # noqa: BLE001
        return str(error).splitlines()[0][:200]
    if sheet.library_name not in session.get_providers():
        return "it was not taken into the session: its driver or device is missing"
    return session


def assigned(session: Any, sheet: Sheet) -> list[tuple[str, str]]:
    """(provider, operator) of each node."""
    tell = getattr(session, "get_provider_graph_assignment_info", None)
    if tell is None:
        return profiled_run(session._model_path, sheet)
    return [
        (subgraph.ep_name, node.op_type) for subgraph in tell() for node in subgraph.get_nodes()
    ]


# --- by the profile of a run -------------------------------------------------------------------


def profiled_run(model: str, sheet: Sheet) -> list[tuple[str, str]]:
    """Run the model once on small zeros, and read the profile that the library writes."""
    import tempfile

    ort = _library()
    with tempfile.TemporaryDirectory(prefix="outrider-placement-") as folder:
        options = ort.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = 1
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "run")
        chain: list[Any] = [(sheet.library_name, sheet.settings())]
        session = ort.InferenceSession(
            model, options, providers=chain if sheet.library_name == CPU else [*chain, CPU]
        )
        session.run(None, zeros(session.get_inputs()))
        return parse_profile(Path(session.end_profiling()).read_text(encoding="utf-8"))


def zeros(inputs: Iterable[Any]) -> dict[str, Any]:
    """For every input; open dimensions are 1, those of a cache and of positions 16."""
    import numpy as np

    kinds: dict[str, Any] = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
    kinds |= {"tensor(int64)": np.int64, "tensor(int32)": np.int32, "tensor(uint8)": np.uint8}
    kinds |= {"tensor(int8)": np.int8, "tensor(bool)": np.bool_}
    wide = ("capacity", "positions")
    found = {}
    for port in inputs:
        sizes = [
            size if isinstance(size, int) else 16 if size in wide else 1 for size in port.shape
        ]
        found[port.name] = np.zeros(sizes, kinds.get(port.type, np.float32))
        if port.name == "total":
            found[port.name] += 1
    return found


def parse_profile(text: str) -> list[tuple[str, str]]:
    """(provider, operator) of each node in an onnxruntime profile: Chrome trace events.

    Nodes are told apart by their index, so a loop counts once. A subgraph that a compiling
    provider has fused is one node there; its own operators can not be seen in a profile.
    """
    try:
        events = json.loads(text)
        nodes = {}
        for event in events:
            given = event.get("args") or {}
            if event.get("cat") == "Node" and str(event["name"]).endswith("_kernel_time"):
                key = (given.get("node_index"), event["name"])
                nodes[key] = (str(given["provider"]), str(given["op_name"]))
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ModelCorrupt(
            "the profile that onnxruntime wrote can not be read", effect="placement is unknown"
        ) from None
    return list(nodes.values())
