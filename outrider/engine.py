"""The one interface for drafting and for verifying.

An engine holds *slots*, each one sequence with its KV cache. A *pass* appends
rows (tokens) to several slots at once and returns, for each row asked for, the
token that the model chooses after it under the slot's `Sampling`. Drafting is
`extend` by one token k times; verifying is `extend` by 1 + k tokens once, then a
lower `base` in the next span, which drops what was not accepted.

Engines are synchronous and belong to one thread; `outrider.worker` gives them an
asynchronous face in a thread or a child process of their own. What engines can
not all do is data in `EngineInfo`, never a flag in a signature.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from outrider.protocol.sampling import Sampling, TokenLogprobs

Numerics = Literal["exact", "plain"]
"""`exact`: results do not depend on how rows were grouped; `plain`: the engine's fastest."""


@dataclass(frozen=True, slots=True)
class RowRule:
    """How rows must be grouped so that each row's scores are bit-equal in any company."""

    minimum: int = 1
    """Least rows in a pass (torch) or in a slot (llama.cpp); the adapter pads."""
    multiple: int = 1
    """Rows are padded to a multiple of this."""
    uniform: bool = False
    """Every slot of one pass has the same number of rows."""

    def padded(self, rows: int) -> int:
        """Rows that are really computed for `rows` wanted ones."""
        least = max(rows, self.minimum)
        return -(-least // self.multiple) * self.multiple


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What an engine is and what it can do. Strings are short names for people."""

    engine: str
    model: str
    device: str
    dtype: str
    vocabulary_digest: str
    vocabulary_size: int
    """Ids that can be chosen; padding rows of the head are never chosen."""
    context: int
    """Most tokens in a slot."""
    max_slots: int
    max_rows: int
    """Most rows in one pass."""
    exact: bool
    """Measured by the probe at load: rows are bit-equal in any company under `row_rule`."""
    row_rule: RowRule
    numeric_class: str
    """Hex digest of weights, dtype, engine and version, instruction set, row rule, sampler."""
    rewind: Literal["trim", "replay"] = "trim"
    trees: bool = False
    scores: bool = False
    """Full scores can be asked for."""
    kv: Literal["none", "slot", "range"] = "none"
    """What `export_kv` gives: nothing, an opaque whole slot, or any range in canonical layout."""
    masks: str = ""
    """Name and version of what keeps slots to a constraint; empty: none are taken."""


Want = Literal["ids", "logprobs", "children", "scores"]
"""What comes back beside the chosen ids."""


@dataclass(frozen=True, slots=True)
class Span:
    """Rows for one slot in one pass.

    The slot is first cut to `base` tokens, then `tokens` are appended. Rows before
    `first` (a prefill's body) give nothing back. With `parents`, the tokens are a
    tree: `parents[i]` is the index in `tokens` of row i's parent, or None for the
    last token below `base`. After a tree, one path is kept with `Engine.keep`.
    """

    slot: int
    base: int
    tokens: tuple[int, ...]
    first: int = 0
    parents: tuple[int | None, ...] | None = None
    want: Want = "ids"
    top_n: int = 0
    """`logprobs`: of the best n beside the chosen one; `children`: how many ids per row."""


@dataclass(frozen=True, slots=True)
class Picked:
    """What a span gave, one entry per row from `first` on."""

    ids: tuple[int, ...]
    logprobs: tuple[TokenLogprobs, ...] | None = None
    children: tuple[tuple[int, ...], ...] | None = None
    """`want="children"`: the best ids under score plus noise, best first."""
    scores: NDArray[np.float32] | None = None
    """`want="scores"`: unprocessed scores, shape [rows, vocabulary_size]."""
    proposes: tuple[bool, ...] | None = None
    """From drafters without a model: False where the id is a filler and not worth sending."""


@dataclass(frozen=True, slots=True)
class KvSegment:
    """Keys and values of a token range; `layout` says how `data` is to be read.

    `canonical`: array [layer, 2, kv_head, token, head_dim] in `dtype`, keys after
    RoPE in Hugging Face order. `opaque:<engine>`: the engine's own slot state.
    """

    layout: str
    dtype: str
    start: int
    stop: int
    tokens: tuple[int, ...]
    """The token ids of [0, stop), which the importing slot takes over."""
    data: bytes
    shape: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Note:
    """Something that an engine decided by itself; the fields are those of `events.Decision`."""

    number: int
    """Counts from 1 since load."""
    what: Literal["placement"]
    old: str
    new: str
    reason: str
    binding: str = ""
    runner_up: str = ""
    predicted_gain: float | None = None


@dataclass(frozen=True, slots=True)
class EngineStatistics:
    """Counters since load."""

    slots_open: int
    passes: int
    rows: int
    """Rows asked for."""
    padded_rows: int
    """Rows computed to fulfil the row rule, beyond those asked for."""
    recheck_mismatches: int
    """Re-checks of a pass that were not bit-equal; above 0, `info.exact` is False."""
    notes: tuple[Note, ...] = ()
    """The latest, oldest first. Each changes `info`, which tells that there is one."""


class Engine(Protocol):
    """Errors: `EngineFull` from `open`, `EngineFailed` from a pass, `InvalidRequest` for ids
    out of range, `ContextExceeded` for spans beyond the context; a failed call changes no slot."""

    @property
    def info(self) -> EngineInfo: ...

    def open(self, sampling: Sampling | None = None) -> int:
        """A new empty slot; without `sampling` its picks are greedy."""
        ...

    def submit(self, spans: Sequence[Span]) -> int:
        """Start one pass over the spans, each slot at most once; returns a ticket for `collect`."""
        ...

    def collect(self, ticket: int) -> list[Picked]:
        """Wait for a pass; results in the order of its spans. Tickets are collected in order."""
        ...

    def extend(self, spans: Sequence[Span]) -> list[Picked]:
        """`submit` and `collect` in one."""
        ...

    def keep(self, slot: int, base: int, path: Sequence[int]) -> None:
        """After a tree span at `base`: keep only the rows `path` (indices, root first)."""
        ...

    def rewind(self, slot: int, length: int) -> None:
        """Forget tokens beyond `length`."""
        ...

    def length(self, slot: int) -> int:
        """Tokens in the slot."""
        ...

    def close(self, slot: int) -> None:
        """Free the slot; closing twice is an error."""
        ...

    def export_kv(self, slot: int, start: int, stop: int) -> KvSegment: ...

    def import_kv(self, slot: int, segment: KvSegment) -> None:
        """Take a segment over into an empty slot, or one that ends where it starts."""
        ...

    def statistics(self) -> EngineStatistics: ...

    def check_integrity(self) -> None:
        """Raise AssertionError when bookkeeping disagrees with itself."""
        ...

    def shutdown(self) -> None:
        """Free everything; the engine is not used afterwards."""
        ...


# --- stages ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class LayerRange:
    """Decoder layers [start, stop), with the embedding before or the head after them."""

    start: int
    stop: int
    embedding: bool
    head: bool


@dataclass(frozen=True, slots=True)
class StageSpan:
    """Rows for one slot of a stage. The slot is first cut to `base` tokens.

    `tokens` are given to a stage with the embedding or the head (which samples);
    `hidden` [rows, hidden_size], float32, to a stage without the embedding.
    """

    slot: int
    base: int
    rows: int
    tokens: tuple[int, ...] = ()
    hidden: NDArray[np.float32] | None = None
    first: int = 0
    """With the head: rows before this one give nothing back."""
    want: Want = "ids"
    top_n: int = 0


@dataclass(frozen=True, slots=True)
class StageInfo:
    engine: str
    model: str
    device: str
    dtype: str
    layers: LayerRange
    model_layers: int
    """Decoder layers of the whole model."""
    hidden_size: int
    vocabulary_digest: str
    vocabulary_size: int
    context: int
    max_slots: int
    max_rows: int
    exact: bool
    row_rule: RowRule
    weights_digest: str
    """Of the whole model, so that stages of different models are never joined."""
    numeric_class: str
    """As in `EngineInfo`, of this stage alone; equal for equal engines whatever the layers."""
    memory_bytes: int
    """Weights and KV that it claims."""


class Stage(Protocol):
    """A contiguous range of layers as an engine with hidden states in or out.

    The caller numbers the slots, so that all stages of a model agree on them.
    Errors as in `Engine`; a failed call changes no slot.
    """

    @property
    def info(self) -> StageInfo: ...

    def open(self, slot: int, sampling: Sampling | None = None) -> None:
        """A new empty slot; `sampling` matters to the stage with the head."""
        ...

    def run(self, spans: Sequence[StageSpan]) -> list[NDArray[np.float32] | Picked]:
        """One pass. Hidden states [rows, hidden_size], or what was picked behind the head."""
        ...

    def rewind(self, slot: int, length: int) -> None: ...

    def close(self, slot: int) -> None: ...

    def shutdown(self) -> None: ...


@dataclass(frozen=True, slots=True)
class EngineSpec:
    """Which engine to build on which model; JSON-able, so that a child process can build it."""

    model: str
    """A folder with config.json and safetensors, a .gguf or .onnx file, or `bundled:target`,
    `bundled:draft`; for the engines without a model (`ngram`, `fake`) a name for people."""
    engine: str = "auto"
    """auto, torch, llama, onnx, ngram, fake."""
    device: str = "auto"
    dtype: str = "auto"
    numerics: Numerics = "exact"
    context: int | None = None
    """Tokens per slot; None takes what the model was made for."""
    max_slots: int = 16
    max_rows: int = 512
    threads: int | None = None
    """CPU threads; None leaves it to the engine."""
    options: tuple[tuple[str, str], ...] = ()
    """Engine-specific settings by name; unknown names are a ConfigError."""
