"""llama.cpp behind typed calls: one model, one context, one reusable batch.

The low-level API of llama-cpp-python alone is used. Whatever goes wrong inside is
a typed error here; llama.cpp's own log is silenced, its last errors kept as reasons.
"""

from __future__ import annotations

import ctypes
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import llama_cpp.llama_cpp
import numpy as np
from numpy.typing import NDArray

from outrider.errors import ConfigError, EngineFailed, ModelUnsupported

lib: Any = llama_cpp.llama_cpp
"""Untyped on purpose: its declarations wrap plain numbers in ctypes."""

_logits_address: Any = lib._lib["llama_get_logits"]
"""The function once more, for its plain address: a typed pointer costs as much as a small layer."""
_logits_address.argtypes, _logits_address.restype = [ctypes.c_void_p], ctypes.c_void_p

KV_F16, KV_F32 = lib.GGML_TYPE_F16, lib.GGML_TYPE_F32
_ERROR = 4
_errors: deque[str] = deque(maxlen=3)


def _listen(level: int, text: bytes, _: Any) -> None:
    if level == _ERROR and text:
        _errors.append(text.decode("utf-8", "replace").strip())


_listener = lib.llama_log_callback(_listen)
"""Must outlive every call."""


def start() -> None:
    """Load the backends and silence them; may be called again."""
    lib.llama_log_set(_listener, ctypes.c_void_p(0))
    lib.llama_backend_init()


def version() -> str:
    """The library and the instruction sets it uses, as in `numeric_class`."""
    return f"llama-cpp-python {llama_cpp.__version__} {lib.llama_print_system_info().decode()}"


def offloads() -> bool:
    """Whether this build can run layers on a GPU."""
    return bool(lib.llama_supports_gpu_offload())


def _reason() -> str:
    text = "; ".join(_errors) or "the library gave no reason"
    _errors.clear()
    return text[:400]


@dataclass(frozen=True, slots=True)
class Settings:
    """How a context is made. Sizes count tokens."""

    sequence: int
    """Tokens of one sequence."""
    sequences: int
    rows: int
    """Most rows of one decode, which is never cut by their number."""
    threads: int
    flash: bool
    unified: bool
    gpu: bool
    kv_type: int = KV_F16


class Model:
    """A loaded model. The file has been checked before."""

    def __init__(self, path: Path, settings: Settings) -> None:
        params = lib.llama_model_default_params()
        params.n_gpu_layers = -1 if settings.gpu else 0
        self._pointer = lib.llama_model_load_from_file(str(path).encode(), params)
        if not self._pointer:
            raise ModelUnsupported(
                f"llama.cpp can not load {path.name}",
                why=_reason(),
                effect="no model was loaded",
                todo="convert the model with a current tool, or use the torch engine",
            )
        try:
            self._refuse_odd(path.name)
            self.context = Context(self._pointer, settings, path.name)
        except BaseException:
            lib.llama_model_free(self._pointer)
            raise

    def _refuse_odd(self, name: str) -> None:
        odd = lib.llama_model_is_recurrent(self._pointer) or lib.llama_model_is_hybrid(
            self._pointer
        )
        if odd or not lib.llama_model_has_decoder(self._pointer):
            raise ModelUnsupported(
                f"{name} is not a plain decoder",
                why="recurrent and hybrid models can not forget single tokens",
                effect="no model was loaded",
                todo="use a transformer decoder",
            )

    @property
    def trained_context(self) -> int:
        return int(lib.llama_model_n_ctx_train(self._pointer))

    def close(self) -> None:
        """Free context and model; closing again does nothing."""
        self.context.close()
        if self._pointer:
            lib.llama_model_free(self._pointer)
            self._pointer = None


class Context:
    """KV of all sequences, and decodes over them."""

    def __init__(self, model: Any, settings: Settings, name: str) -> None:
        if settings.sequences > lib.llama_max_parallel_sequences():
            raise ConfigError(
                f"llama.cpp holds at most {lib.llama_max_parallel_sequences()} slots",
                todo="lower max_slots",
            )
        self._pointer = lib.llama_init_from_model(model, _parameters(settings))
        if not self._pointer:
            raise EngineFailed(
                f"llama.cpp can not make a context for {name}",
                why=_reason(),
                effect="no model was loaded",
                todo="lower context or max_slots: their product sets the memory for KV",
            )
        self._memory = lib.llama_get_memory(self._pointer)
        self.size = int(lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(model)))
        self.rows = int(lib.llama_n_ubatch(self._pointer))
        """Most rows of one decode: what was asked for, or all cells where those are fewer."""
        if lib.llama_n_ctx_seq(self._pointer) < settings.sequence:
            self.close()
            raise EngineFailed(f"llama.cpp made a smaller context for {name} than was asked for")
        self._batch = Batch(self.rows, settings.sequences)
        self._row = Row()
        self._address: int | None = 0
        self._view = np.empty((0, self.size), dtype=np.float32)
        """The last scores, and where they lie: a view costs more to make than to keep."""

    def decode(self, rows: Rows, tokens: list[int], positions: list[int]) -> NDArray[np.float32]:
        """Append rows; the scores of those wanted, [wanted, size], valid until the next call.

        Raises EngineFailed; the KV of the sequences is then undefined beyond the rows' start.
        """
        return self._decoded(self._batch.filled(rows, tokens, positions), rows.count)

    def step(self, sequence: int, token: int, position: int) -> NDArray[np.float32]:
        """`decode` of one row: its scores, [size]."""
        batch = self._row.filled(sequence, token, position)
        scores: NDArray[np.float32] = self._decoded(batch, 1)[0]
        return scores

    def _decoded(self, batch: Any, count: int) -> NDArray[np.float32]:
        code = lib.llama_decode(self._pointer, batch)
        if code != 0:
            raise EngineFailed(
                "llama.cpp could not run the pass",
                why=f"code {code}: {_reason()}",
                effect="no token was chosen",
            )
        address = _logits_address(self._pointer)
        if address != self._address or count != len(self._view):
            self._view = self._viewed(address, count)
            self._address = address
        return self._view

    def _viewed(self, address: int | None, count: int) -> NDArray[np.float32]:
        """llama.cpp's own memory, which may move from one decode to the next."""
        if not address:
            raise EngineFailed("llama.cpp gave no scores", effect="no token was chosen")
        pointer = ctypes.cast(address, ctypes.POINTER(ctypes.c_float))
        return np.ctypeslib.as_array(pointer, shape=(count, self.size))

    def cut(self, sequence: int, length: int) -> None:
        """Forget a sequence's tokens from `length` on."""
        if not lib.llama_memory_seq_rm(self._memory, sequence, length, -1):
            raise EngineFailed("llama.cpp could not forget tokens", effect="the slot is unusable")

    def length(self, sequence: int) -> int:
        """Tokens that the KV holds."""
        return int(lib.llama_memory_seq_pos_max(self._memory, sequence)) + 1

    def save(self, sequence: int) -> bytes:
        """llama.cpp's own state of one sequence."""
        size = int(lib.llama_state_seq_get_size(self._pointer, sequence))
        room = (ctypes.c_uint8 * size)()
        written = int(lib.llama_state_seq_get_data(self._pointer, room, size, sequence))
        if not 0 < written <= size:
            raise EngineFailed("llama.cpp could not export a slot", why=_reason())
        return bytes(memoryview(room)[:written])

    def restore(self, sequence: int, data: bytes) -> None:
        """Put a saved state in. Its parser is native: the caller has authenticated the bytes."""
        room = (ctypes.c_uint8 * len(data)).from_buffer_copy(data)
        read = int(lib.llama_state_seq_set_data(self._pointer, room, len(data), sequence))
        if read != len(data):
            self.cut(sequence, 0)
            raise EngineFailed(
                "llama.cpp could not import a slot", why=_reason(), effect="the slot is empty"
            )

    def close(self) -> None:
        if self._pointer:
            lib.llama_free(self._pointer)
            self._pointer = None


def _parameters(settings: Settings) -> Any:
    params = lib.llama_context_default_params()
    params.n_ctx = settings.sequence * settings.sequences
    params.n_batch = params.n_ubatch = settings.rows
    params.n_outputs_max = params.n_outputs_max_per_seq = settings.rows
    params.n_seq_max = settings.sequences
    params.n_threads = params.n_threads_batch = settings.threads
    params.flash_attn_type = (
        lib.LLAMA_FLASH_ATTN_TYPE_ENABLED if settings.flash else lib.LLAMA_FLASH_ATTN_TYPE_DISABLED
    )
    params.type_k = params.type_v = settings.kv_type
    params.kv_unified = settings.unified
    params.offload_kqv = params.op_offload = settings.gpu
    return params


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """What one decode's rows are beside tokens and positions; arrays of the same length."""

    sequences: NDArray[np.int64]
    wanted: NDArray[np.int8]
    """Not 0 where scores are asked for."""
    count: int
    """How many those are."""


class Batch:
    """A `llama_batch` over our own memory, filled anew for each decode."""

    def __init__(self, rows: int, sequences: int) -> None:
        self._tokens: Any = (ctypes.c_int32 * rows)()
        self._positions: Any = (ctypes.c_int32 * rows)()
        self._counts = np.ones(rows, dtype=np.int32)
        self._wanted = np.zeros(rows, dtype=np.int8)
        self._names = np.arange(sequences, dtype=np.int32)
        self._pointers = np.zeros(rows, dtype=np.uintp)
        self._base = self._names.ctypes.data
        self._rows: Rows | None = None
        """Whose marks and sequences stand in the arrays: a drafter's passes are all alike."""
        self._raw = lib.llama_batch(
            n_tokens=0,
            token=self._tokens,
            embd=None,
            pos=self._positions,
            n_seq_id=_as(self._counts, ctypes.c_int32),
            seq_id=_as(self._pointers, ctypes.POINTER(ctypes.c_int32)),
            logits=_as(self._wanted, ctypes.c_int8),
        )

    def filled(self, rows: Rows, tokens: list[int], positions: list[int]) -> Any:
        """The structure to pass by value; it points into this object."""
        count = len(tokens)
        if count > len(self._tokens):
            raise EngineFailed(f"{count} rows do not fit a batch of {len(self._tokens)}")
        self._tokens[:count] = tokens
        self._positions[:count] = positions
        if rows is not self._rows:
            self._wanted[:count] = rows.wanted
            self._pointers[:count] = self._base + 4 * rows.sequences
            self._raw.n_tokens = count
            self._rows = rows
        return self._raw


class Row:
    """A `llama_batch` of one row whose scores are asked for."""

    def __init__(self) -> None:
        self._sequence, self._token, self._position = (ctypes.c_int32() for _ in range(3))
        self._raw = lib.llama_batch(
            n_tokens=1,
            token=ctypes.pointer(self._token),
            embd=None,
            pos=ctypes.pointer(self._position),
            n_seq_id=ctypes.pointer(ctypes.c_int32(1)),
            seq_id=ctypes.pointer(ctypes.pointer(self._sequence)),
            logits=ctypes.pointer(ctypes.c_int8(1)),
        )

    def filled(self, sequence: int, token: int, position: int) -> Any:
        """The structure to pass by value; it points into this object."""
        self._sequence.value = sequence
        self._token.value = token
        self._position.value = position
        return self._raw


def _as(array: NDArray[Any], kind: Any) -> Any:
    return ctypes.cast(array.ctypes.data, ctypes.POINTER(kind))
