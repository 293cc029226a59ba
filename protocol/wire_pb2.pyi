from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class DescribeRequest(_message.Message):
    __slots__ = ("version", "model", "tokenizer")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    TOKENIZER_FIELD_NUMBER: _ClassVar[int]
    version: int
    model: str
    tokenizer: int
    def __init__(self, version: _Optional[int] = ..., model: _Optional[str] = ..., tokenizer: _Optional[int] = ...) -> None: ...

class Description(_message.Message):
    __slots__ = ("version", "models")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    MODELS_FIELD_NUMBER: _ClassVar[int]
    version: int
    models: _containers.RepeatedCompositeFieldContainer[ModelDescription]
    def __init__(self, version: _Optional[int] = ..., models: _Optional[_Iterable[_Union[ModelDescription, _Mapping]]] = ...) -> None: ...

class ModelDescription(_message.Message):
    __slots__ = ("name", "model_digest", "vocabulary_digest", "numeric_class", "vocabulary_size", "context", "exact", "engine", "device", "dtype", "end_ids", "chat_template", "tokenizer_digest", "tokenizer_json", "created", "bos", "eos", "masks", "attestation")
    NAME_FIELD_NUMBER: _ClassVar[int]
    MODEL_DIGEST_FIELD_NUMBER: _ClassVar[int]
    VOCABULARY_DIGEST_FIELD_NUMBER: _ClassVar[int]
    NUMERIC_CLASS_FIELD_NUMBER: _ClassVar[int]
    VOCABULARY_SIZE_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_FIELD_NUMBER: _ClassVar[int]
    EXACT_FIELD_NUMBER: _ClassVar[int]
    ENGINE_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    END_IDS_FIELD_NUMBER: _ClassVar[int]
    CHAT_TEMPLATE_FIELD_NUMBER: _ClassVar[int]
    TOKENIZER_DIGEST_FIELD_NUMBER: _ClassVar[int]
    TOKENIZER_JSON_FIELD_NUMBER: _ClassVar[int]
    CREATED_FIELD_NUMBER: _ClassVar[int]
    BOS_FIELD_NUMBER: _ClassVar[int]
    EOS_FIELD_NUMBER: _ClassVar[int]
    MASKS_FIELD_NUMBER: _ClassVar[int]
    ATTESTATION_FIELD_NUMBER: _ClassVar[int]
    name: str
    model_digest: str
    vocabulary_digest: str
    numeric_class: str
    vocabulary_size: int
    context: int
    exact: int
    engine: str
    device: str
    dtype: str
    end_ids: bytes
    chat_template: str
    tokenizer_digest: str
    tokenizer_json: bytes
    created: int
    bos: str
    eos: str
    masks: str
    attestation: str
    def __init__(self, name: _Optional[str] = ..., model_digest: _Optional[str] = ..., vocabulary_digest: _Optional[str] = ..., numeric_class: _Optional[str] = ..., vocabulary_size: _Optional[int] = ..., context: _Optional[int] = ..., exact: _Optional[int] = ..., engine: _Optional[str] = ..., device: _Optional[str] = ..., dtype: _Optional[str] = ..., end_ids: _Optional[bytes] = ..., chat_template: _Optional[str] = ..., tokenizer_digest: _Optional[str] = ..., tokenizer_json: _Optional[bytes] = ..., created: _Optional[int] = ..., bos: _Optional[str] = ..., eos: _Optional[str] = ..., masks: _Optional[str] = ..., attestation: _Optional[str] = ...) -> None: ...

class Up(_message.Message):
    __slots__ = ("open", "hint", "close", "heartbeat", "hello", "finish", "frame")
    OPEN_FIELD_NUMBER: _ClassVar[int]
    HINT_FIELD_NUMBER: _ClassVar[int]
    CLOSE_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_FIELD_NUMBER: _ClassVar[int]
    HELLO_FIELD_NUMBER: _ClassVar[int]
    FINISH_FIELD_NUMBER: _ClassVar[int]
    FRAME_FIELD_NUMBER: _ClassVar[int]
    open: Open
    hint: bytes
    close: Close
    heartbeat: Heartbeat
    hello: bytes
    finish: bytes
    frame: bytes
    def __init__(self, open: _Optional[_Union[Open, _Mapping]] = ..., hint: _Optional[bytes] = ..., close: _Optional[_Union[Close, _Mapping]] = ..., heartbeat: _Optional[_Union[Heartbeat, _Mapping]] = ..., hello: _Optional[bytes] = ..., finish: _Optional[bytes] = ..., frame: _Optional[bytes] = ...) -> None: ...

class Down(_message.Message):
    __slots__ = ("opened", "commit", "finished", "heartbeat", "accept", "frame")
    OPENED_FIELD_NUMBER: _ClassVar[int]
    COMMIT_FIELD_NUMBER: _ClassVar[int]
    FINISHED_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_FIELD_NUMBER: _ClassVar[int]
    ACCEPT_FIELD_NUMBER: _ClassVar[int]
    FRAME_FIELD_NUMBER: _ClassVar[int]
    opened: Opened
    commit: bytes
    finished: Finished
    heartbeat: Heartbeat
    accept: bytes
    frame: bytes
    def __init__(self, opened: _Optional[_Union[Opened, _Mapping]] = ..., commit: _Optional[bytes] = ..., finished: _Optional[_Union[Finished, _Mapping]] = ..., heartbeat: _Optional[_Union[Heartbeat, _Mapping]] = ..., accept: _Optional[bytes] = ..., frame: _Optional[bytes] = ...) -> None: ...

class Open(_message.Message):
    __slots__ = ("version", "session", "fence", "model", "vocabulary_digest", "numeric_class", "exact_required", "slots", "prompt", "choices", "sampling", "seed", "max_tokens", "stop", "logprobs", "padding", "constraint")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    FENCE_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VOCABULARY_DIGEST_FIELD_NUMBER: _ClassVar[int]
    NUMERIC_CLASS_FIELD_NUMBER: _ClassVar[int]
    EXACT_REQUIRED_FIELD_NUMBER: _ClassVar[int]
    SLOTS_FIELD_NUMBER: _ClassVar[int]
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    CHOICES_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    MAX_TOKENS_FIELD_NUMBER: _ClassVar[int]
    STOP_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    PADDING_FIELD_NUMBER: _ClassVar[int]
    CONSTRAINT_FIELD_NUMBER: _ClassVar[int]
    version: int
    session: bytes
    fence: int
    model: str
    vocabulary_digest: str
    numeric_class: str
    exact_required: int
    slots: int
    prompt: bytes
    choices: _containers.RepeatedCompositeFieldContainer[ChoiceOpen]
    sampling: SamplingParams
    seed: bytes
    max_tokens: int
    stop: _containers.RepeatedScalarFieldContainer[bytes]
    logprobs: int
    padding: bytes
    constraint: Constraint
    def __init__(self, version: _Optional[int] = ..., session: _Optional[bytes] = ..., fence: _Optional[int] = ..., model: _Optional[str] = ..., vocabulary_digest: _Optional[str] = ..., numeric_class: _Optional[str] = ..., exact_required: _Optional[int] = ..., slots: _Optional[int] = ..., prompt: _Optional[bytes] = ..., choices: _Optional[_Iterable[_Union[ChoiceOpen, _Mapping]]] = ..., sampling: _Optional[_Union[SamplingParams, _Mapping]] = ..., seed: _Optional[bytes] = ..., max_tokens: _Optional[int] = ..., stop: _Optional[_Iterable[bytes]] = ..., logprobs: _Optional[int] = ..., padding: _Optional[bytes] = ..., constraint: _Optional[_Union[Constraint, _Mapping]] = ...) -> None: ...

class Constraint(_message.Message):
    __slots__ = ("kind", "text")
    KIND_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    kind: int
    text: bytes
    def __init__(self, kind: _Optional[int] = ..., text: _Optional[bytes] = ...) -> None: ...

class ChoiceOpen(_message.Message):
    __slots__ = ("choice", "committed")
    CHOICE_FIELD_NUMBER: _ClassVar[int]
    COMMITTED_FIELD_NUMBER: _ClassVar[int]
    choice: int
    committed: bytes
    def __init__(self, choice: _Optional[int] = ..., committed: _Optional[bytes] = ...) -> None: ...

class SamplingParams(_message.Message):
    __slots__ = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty", "logit_bias")
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    TOP_P_FIELD_NUMBER: _ClassVar[int]
    MIN_P_FIELD_NUMBER: _ClassVar[int]
    REPETITION_PENALTY_FIELD_NUMBER: _ClassVar[int]
    PRESENCE_PENALTY_FIELD_NUMBER: _ClassVar[int]
    FREQUENCY_PENALTY_FIELD_NUMBER: _ClassVar[int]
    LOGIT_BIAS_FIELD_NUMBER: _ClassVar[int]
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    logit_bias: bytes
    def __init__(self, temperature: _Optional[float] = ..., top_k: _Optional[int] = ..., top_p: _Optional[float] = ..., min_p: _Optional[float] = ..., repetition_penalty: _Optional[float] = ..., presence_penalty: _Optional[float] = ..., frequency_penalty: _Optional[float] = ..., logit_bias: _Optional[bytes] = ...) -> None: ...

class Opened(_message.Message):
    __slots__ = ("version", "fence", "model", "model_digest", "vocabulary_digest", "numeric_class", "exact", "context", "ahead", "heartbeat_ms", "resumed", "masks")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    FENCE_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    MODEL_DIGEST_FIELD_NUMBER: _ClassVar[int]
    VOCABULARY_DIGEST_FIELD_NUMBER: _ClassVar[int]
    NUMERIC_CLASS_FIELD_NUMBER: _ClassVar[int]
    EXACT_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_FIELD_NUMBER: _ClassVar[int]
    AHEAD_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_MS_FIELD_NUMBER: _ClassVar[int]
    RESUMED_FIELD_NUMBER: _ClassVar[int]
    MASKS_FIELD_NUMBER: _ClassVar[int]
    version: int
    fence: int
    model: str
    model_digest: str
    vocabulary_digest: str
    numeric_class: str
    exact: int
    context: int
    ahead: int
    heartbeat_ms: int
    resumed: int
    masks: str
    def __init__(self, version: _Optional[int] = ..., fence: _Optional[int] = ..., model: _Optional[str] = ..., model_digest: _Optional[str] = ..., vocabulary_digest: _Optional[str] = ..., numeric_class: _Optional[str] = ..., exact: _Optional[int] = ..., context: _Optional[int] = ..., ahead: _Optional[int] = ..., heartbeat_ms: _Optional[int] = ..., resumed: _Optional[int] = ..., masks: _Optional[str] = ...) -> None: ...

class Finished(_message.Message):
    __slots__ = ("fence", "choice", "reason", "tokens", "discarded", "queue_us", "prefill_us", "energy_uj", "energy_kind")
    FENCE_FIELD_NUMBER: _ClassVar[int]
    CHOICE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    DISCARDED_FIELD_NUMBER: _ClassVar[int]
    QUEUE_US_FIELD_NUMBER: _ClassVar[int]
    PREFILL_US_FIELD_NUMBER: _ClassVar[int]
    ENERGY_UJ_FIELD_NUMBER: _ClassVar[int]
    ENERGY_KIND_FIELD_NUMBER: _ClassVar[int]
    fence: int
    choice: int
    reason: int
    tokens: int
    discarded: int
    queue_us: int
    prefill_us: int
    energy_uj: int
    energy_kind: int
    def __init__(self, fence: _Optional[int] = ..., choice: _Optional[int] = ..., reason: _Optional[int] = ..., tokens: _Optional[int] = ..., discarded: _Optional[int] = ..., queue_us: _Optional[int] = ..., prefill_us: _Optional[int] = ..., energy_uj: _Optional[int] = ..., energy_kind: _Optional[int] = ...) -> None: ...

class Close(_message.Message):
    __slots__ = ("reason",)
    REASON_FIELD_NUMBER: _ClassVar[int]
    reason: int
    def __init__(self, reason: _Optional[int] = ...) -> None: ...

class Heartbeat(_message.Message):
    __slots__ = ("sent_us", "echo_us")
    SENT_US_FIELD_NUMBER: _ClassVar[int]
    ECHO_US_FIELD_NUMBER: _ClassVar[int]
    sent_us: int
    echo_us: int
    def __init__(self, sent_us: _Optional[int] = ..., echo_us: _Optional[int] = ...) -> None: ...

class StageQuery(_message.Message):
    __slots__ = ("version",)
    VERSION_FIELD_NUMBER: _ClassVar[int]
    version: int
    def __init__(self, version: _Optional[int] = ...) -> None: ...

class HostedModel(_message.Message):
    __slots__ = ("name", "digest", "layers")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    name: str
    digest: str
    layers: int
    def __init__(self, name: _Optional[str] = ..., digest: _Optional[str] = ..., layers: _Optional[int] = ...) -> None: ...

class LayerSpan(_message.Message):
    __slots__ = ("start", "stop", "embedding", "head")
    START_FIELD_NUMBER: _ClassVar[int]
    STOP_FIELD_NUMBER: _ClassVar[int]
    EMBEDDING_FIELD_NUMBER: _ClassVar[int]
    HEAD_FIELD_NUMBER: _ClassVar[int]
    start: int
    stop: int
    embedding: int
    head: int
    def __init__(self, start: _Optional[int] = ..., stop: _Optional[int] = ..., embedding: _Optional[int] = ..., head: _Optional[int] = ...) -> None: ...

class LoadedStage(_message.Message):
    __slots__ = ("digest", "layers", "memory", "busy")
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    MEMORY_FIELD_NUMBER: _ClassVar[int]
    BUSY_FIELD_NUMBER: _ClassVar[int]
    digest: str
    layers: LayerSpan
    memory: int
    busy: int
    def __init__(self, digest: _Optional[str] = ..., layers: _Optional[_Union[LayerSpan, _Mapping]] = ..., memory: _Optional[int] = ..., busy: _Optional[int] = ...) -> None: ...

class StageHost(_message.Message):
    __slots__ = ("version", "name", "kind", "memory", "claimed", "speed", "engines", "models", "loaded", "first_layer", "stop_layer", "draining", "accepts")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    MEMORY_FIELD_NUMBER: _ClassVar[int]
    CLAIMED_FIELD_NUMBER: _ClassVar[int]
    SPEED_FIELD_NUMBER: _ClassVar[int]
    ENGINES_FIELD_NUMBER: _ClassVar[int]
    MODELS_FIELD_NUMBER: _ClassVar[int]
    LOADED_FIELD_NUMBER: _ClassVar[int]
    FIRST_LAYER_FIELD_NUMBER: _ClassVar[int]
    STOP_LAYER_FIELD_NUMBER: _ClassVar[int]
    DRAINING_FIELD_NUMBER: _ClassVar[int]
    ACCEPTS_FIELD_NUMBER: _ClassVar[int]
    version: int
    name: str
    kind: str
    memory: int
    claimed: int
    speed: float
    engines: _containers.RepeatedScalarFieldContainer[str]
    models: _containers.RepeatedCompositeFieldContainer[HostedModel]
    loaded: _containers.RepeatedCompositeFieldContainer[LoadedStage]
    first_layer: int
    stop_layer: int
    draining: int
    accepts: int
    def __init__(self, version: _Optional[int] = ..., name: _Optional[str] = ..., kind: _Optional[str] = ..., memory: _Optional[int] = ..., claimed: _Optional[int] = ..., speed: _Optional[float] = ..., engines: _Optional[_Iterable[str]] = ..., models: _Optional[_Iterable[_Union[HostedModel, _Mapping]]] = ..., loaded: _Optional[_Iterable[_Union[LoadedStage, _Mapping]]] = ..., first_layer: _Optional[int] = ..., stop_layer: _Optional[int] = ..., draining: _Optional[int] = ..., accepts: _Optional[int] = ...) -> None: ...

class StageLoad(_message.Message):
    __slots__ = ("version", "pipeline", "index", "ticket", "layers", "model", "weights_digest", "engine", "device", "dtype", "numerics", "max_slots", "max_rows", "context", "options")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    PIPELINE_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    TICKET_FIELD_NUMBER: _ClassVar[int]
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_DIGEST_FIELD_NUMBER: _ClassVar[int]
    ENGINE_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    NUMERICS_FIELD_NUMBER: _ClassVar[int]
    MAX_SLOTS_FIELD_NUMBER: _ClassVar[int]
    MAX_ROWS_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    version: int
    pipeline: bytes
    index: int
    ticket: bytes
    layers: LayerSpan
    model: str
    weights_digest: str
    engine: str
    device: str
    dtype: str
    numerics: int
    max_slots: int
    max_rows: int
    context: int
    options: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, version: _Optional[int] = ..., pipeline: _Optional[bytes] = ..., index: _Optional[int] = ..., ticket: _Optional[bytes] = ..., layers: _Optional[_Union[LayerSpan, _Mapping]] = ..., model: _Optional[str] = ..., weights_digest: _Optional[str] = ..., engine: _Optional[str] = ..., device: _Optional[str] = ..., dtype: _Optional[str] = ..., numerics: _Optional[int] = ..., max_slots: _Optional[int] = ..., max_rows: _Optional[int] = ..., context: _Optional[int] = ..., options: _Optional[_Iterable[str]] = ...) -> None: ...

class StageLoaded(_message.Message):
    __slots__ = ("version", "engine", "model", "device", "dtype", "layers", "model_layers", "hidden_size", "vocabulary_digest", "vocabulary_size", "context", "max_slots", "max_rows", "exact", "least_rows", "row_multiple", "uniform", "weights_digest", "numeric_class", "memory")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    ENGINE_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    MODEL_LAYERS_FIELD_NUMBER: _ClassVar[int]
    HIDDEN_SIZE_FIELD_NUMBER: _ClassVar[int]
    VOCABULARY_DIGEST_FIELD_NUMBER: _ClassVar[int]
    VOCABULARY_SIZE_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_FIELD_NUMBER: _ClassVar[int]
    MAX_SLOTS_FIELD_NUMBER: _ClassVar[int]
    MAX_ROWS_FIELD_NUMBER: _ClassVar[int]
    EXACT_FIELD_NUMBER: _ClassVar[int]
    LEAST_ROWS_FIELD_NUMBER: _ClassVar[int]
    ROW_MULTIPLE_FIELD_NUMBER: _ClassVar[int]
    UNIFORM_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_DIGEST_FIELD_NUMBER: _ClassVar[int]
    NUMERIC_CLASS_FIELD_NUMBER: _ClassVar[int]
    MEMORY_FIELD_NUMBER: _ClassVar[int]
    version: int
    engine: str
    model: str
    device: str
    dtype: str
    layers: LayerSpan
    model_layers: int
    hidden_size: int
    vocabulary_digest: str
    vocabulary_size: int
    context: int
    max_slots: int
    max_rows: int
    exact: int
    least_rows: int
    row_multiple: int
    uniform: int
    weights_digest: str
    numeric_class: str
    memory: int
    def __init__(self, version: _Optional[int] = ..., engine: _Optional[str] = ..., model: _Optional[str] = ..., device: _Optional[str] = ..., dtype: _Optional[str] = ..., layers: _Optional[_Union[LayerSpan, _Mapping]] = ..., model_layers: _Optional[int] = ..., hidden_size: _Optional[int] = ..., vocabulary_digest: _Optional[str] = ..., vocabulary_size: _Optional[int] = ..., context: _Optional[int] = ..., max_slots: _Optional[int] = ..., max_rows: _Optional[int] = ..., exact: _Optional[int] = ..., least_rows: _Optional[int] = ..., row_multiple: _Optional[int] = ..., uniform: _Optional[int] = ..., weights_digest: _Optional[str] = ..., numeric_class: _Optional[str] = ..., memory: _Optional[int] = ...) -> None: ...

class StageOp(_message.Message):
    __slots__ = ("open", "rewind", "close", "work")
    OPEN_FIELD_NUMBER: _ClassVar[int]
    REWIND_FIELD_NUMBER: _ClassVar[int]
    CLOSE_FIELD_NUMBER: _ClassVar[int]
    WORK_FIELD_NUMBER: _ClassVar[int]
    open: OpenSlot
    rewind: RewindSlot
    close: CloseSlot
    work: Pass
    def __init__(self, open: _Optional[_Union[OpenSlot, _Mapping]] = ..., rewind: _Optional[_Union[RewindSlot, _Mapping]] = ..., close: _Optional[_Union[CloseSlot, _Mapping]] = ..., work: _Optional[_Union[Pass, _Mapping]] = ...) -> None: ...

class OpenSlot(_message.Message):
    __slots__ = ("slot", "sampling")
    SLOT_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    slot: int
    sampling: StageSampling
    def __init__(self, slot: _Optional[int] = ..., sampling: _Optional[_Union[StageSampling, _Mapping]] = ...) -> None: ...

class StageSampling(_message.Message):
    __slots__ = ("params", "seed", "choice", "prompt_length")
    PARAMS_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    CHOICE_FIELD_NUMBER: _ClassVar[int]
    PROMPT_LENGTH_FIELD_NUMBER: _ClassVar[int]
    params: SamplingParams
    seed: bytes
    choice: int
    prompt_length: int
    def __init__(self, params: _Optional[_Union[SamplingParams, _Mapping]] = ..., seed: _Optional[bytes] = ..., choice: _Optional[int] = ..., prompt_length: _Optional[int] = ...) -> None: ...

class RewindSlot(_message.Message):
    __slots__ = ("slot", "length")
    SLOT_FIELD_NUMBER: _ClassVar[int]
    LENGTH_FIELD_NUMBER: _ClassVar[int]
    slot: int
    length: int
    def __init__(self, slot: _Optional[int] = ..., length: _Optional[int] = ...) -> None: ...

class CloseSlot(_message.Message):
    __slots__ = ("slot",)
    SLOT_FIELD_NUMBER: _ClassVar[int]
    slot: int
    def __init__(self, slot: _Optional[int] = ...) -> None: ...

class Pass(_message.Message):
    __slots__ = ("number", "spans", "tokens", "activations", "trail")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    SPANS_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    ACTIVATIONS_FIELD_NUMBER: _ClassVar[int]
    TRAIL_FIELD_NUMBER: _ClassVar[int]
    number: int
    spans: bytes
    tokens: bytes
    activations: bytes
    trail: bytes
    def __init__(self, number: _Optional[int] = ..., spans: _Optional[bytes] = ..., tokens: _Optional[bytes] = ..., activations: _Optional[bytes] = ..., trail: _Optional[bytes] = ...) -> None: ...

class StageUp(_message.Message):
    __slots__ = ("attach", "detach", "beat")
    ATTACH_FIELD_NUMBER: _ClassVar[int]
    DETACH_FIELD_NUMBER: _ClassVar[int]
    BEAT_FIELD_NUMBER: _ClassVar[int]
    attach: Attach
    detach: Detach
    beat: Beat
    def __init__(self, attach: _Optional[_Union[Attach, _Mapping]] = ..., detach: _Optional[_Union[Detach, _Mapping]] = ..., beat: _Optional[_Union[Beat, _Mapping]] = ...) -> None: ...

class StageDown(_message.Message):
    __slots__ = ("attached", "passed", "failed", "forward", "broken", "beat")
    ATTACHED_FIELD_NUMBER: _ClassVar[int]
    PASSED_FIELD_NUMBER: _ClassVar[int]
    FAILED_FIELD_NUMBER: _ClassVar[int]
    FORWARD_FIELD_NUMBER: _ClassVar[int]
    BROKEN_FIELD_NUMBER: _ClassVar[int]
    BEAT_FIELD_NUMBER: _ClassVar[int]
    attached: Attached
    passed: Passed
    failed: Failed
    forward: bytes
    broken: bytes
    beat: Beat
    def __init__(self, attached: _Optional[_Union[Attached, _Mapping]] = ..., passed: _Optional[_Union[Passed, _Mapping]] = ..., failed: _Optional[_Union[Failed, _Mapping]] = ..., forward: _Optional[bytes] = ..., broken: _Optional[bytes] = ..., beat: _Optional[_Union[Beat, _Mapping]] = ...) -> None: ...

class Attach(_message.Message):
    __slots__ = ("version", "pipeline", "index", "codec", "next")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    PIPELINE_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    CODEC_FIELD_NUMBER: _ClassVar[int]
    NEXT_FIELD_NUMBER: _ClassVar[int]
    version: int
    pipeline: bytes
    index: int
    codec: int
    next: NextStage
    def __init__(self, version: _Optional[int] = ..., pipeline: _Optional[bytes] = ..., index: _Optional[int] = ..., codec: _Optional[int] = ..., next: _Optional[_Union[NextStage, _Mapping]] = ...) -> None: ...

class NextStage(_message.Message):
    __slots__ = ("address", "ticket", "authority")
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    TICKET_FIELD_NUMBER: _ClassVar[int]
    AUTHORITY_FIELD_NUMBER: _ClassVar[int]
    address: str
    ticket: bytes
    authority: bytes
    def __init__(self, address: _Optional[str] = ..., ticket: _Optional[bytes] = ..., authority: _Optional[bytes] = ...) -> None: ...

class Detach(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Beat(_message.Message):
    __slots__ = ("sent_us", "echo_us", "leaving")
    SENT_US_FIELD_NUMBER: _ClassVar[int]
    ECHO_US_FIELD_NUMBER: _ClassVar[int]
    LEAVING_FIELD_NUMBER: _ClassVar[int]
    sent_us: int
    echo_us: int
    leaving: int
    def __init__(self, sent_us: _Optional[int] = ..., echo_us: _Optional[int] = ..., leaving: _Optional[int] = ...) -> None: ...

class Attached(_message.Message):
    __slots__ = ("direct", "why")
    DIRECT_FIELD_NUMBER: _ClassVar[int]
    WHY_FIELD_NUMBER: _ClassVar[int]
    direct: int
    why: str
    def __init__(self, direct: _Optional[int] = ..., why: _Optional[str] = ...) -> None: ...

class Passed(_message.Message):
    __slots__ = ("number", "picked", "trail")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    PICKED_FIELD_NUMBER: _ClassVar[int]
    TRAIL_FIELD_NUMBER: _ClassVar[int]
    number: int
    picked: _containers.RepeatedCompositeFieldContainer[StagePicked]
    trail: bytes
    def __init__(self, number: _Optional[int] = ..., picked: _Optional[_Iterable[_Union[StagePicked, _Mapping]]] = ..., trail: _Optional[bytes] = ...) -> None: ...

class StagePicked(_message.Message):
    __slots__ = ("ids", "logprobs", "logprob_rows", "children", "child_ids", "scores", "score_rows")
    IDS_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    LOGPROB_ROWS_FIELD_NUMBER: _ClassVar[int]
    CHILDREN_FIELD_NUMBER: _ClassVar[int]
    CHILD_IDS_FIELD_NUMBER: _ClassVar[int]
    SCORES_FIELD_NUMBER: _ClassVar[int]
    SCORE_ROWS_FIELD_NUMBER: _ClassVar[int]
    ids: bytes
    logprobs: int
    logprob_rows: bytes
    children: int
    child_ids: bytes
    scores: int
    score_rows: bytes
    def __init__(self, ids: _Optional[bytes] = ..., logprobs: _Optional[int] = ..., logprob_rows: _Optional[bytes] = ..., children: _Optional[int] = ..., child_ids: _Optional[bytes] = ..., scores: _Optional[int] = ..., score_rows: _Optional[bytes] = ...) -> None: ...

class Failed(_message.Message):
    __slots__ = ("number", "error")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    number: int
    error: bytes
    def __init__(self, number: _Optional[int] = ..., error: _Optional[bytes] = ...) -> None: ...

class RelayReply(_message.Message):
    __slots__ = ("index",)
    INDEX_FIELD_NUMBER: _ClassVar[int]
    index: int
    def __init__(self, index: _Optional[int] = ...) -> None: ...

class JoinRequest(_message.Message):
    __slots__ = ("version", "name", "kind", "address", "key", "digests", "accepts", "leaving")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    DIGESTS_FIELD_NUMBER: _ClassVar[int]
    ACCEPTS_FIELD_NUMBER: _ClassVar[int]
    LEAVING_FIELD_NUMBER: _ClassVar[int]
    version: int
    name: str
    kind: str
    address: str
    key: str
    digests: _containers.RepeatedScalarFieldContainer[str]
    accepts: int
    leaving: int
    def __init__(self, version: _Optional[int] = ..., name: _Optional[str] = ..., kind: _Optional[str] = ..., address: _Optional[str] = ..., key: _Optional[str] = ..., digests: _Optional[_Iterable[str]] = ..., accepts: _Optional[int] = ..., leaving: _Optional[int] = ...) -> None: ...

class JoinReply(_message.Message):
    __slots__ = ("version", "lease_ms", "address", "models")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    LEASE_MS_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    MODELS_FIELD_NUMBER: _ClassVar[int]
    version: int
    lease_ms: int
    address: str
    models: _containers.RepeatedCompositeFieldContainer[HostedModel]
    def __init__(self, version: _Optional[int] = ..., lease_ms: _Optional[int] = ..., address: _Optional[str] = ..., models: _Optional[_Iterable[_Union[HostedModel, _Mapping]]] = ...) -> None: ...

class PushUp(_message.Message):
    __slots__ = ("offer", "chunk")
    OFFER_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    offer: PushOffer
    chunk: bytes
    def __init__(self, offer: _Optional[_Union[PushOffer, _Mapping]] = ..., chunk: _Optional[bytes] = ...) -> None: ...

class PushOffer(_message.Message):
    __slots__ = ("version", "digest", "name", "files")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    FILES_FIELD_NUMBER: _ClassVar[int]
    version: int
    digest: str
    name: str
    files: _containers.RepeatedCompositeFieldContainer[PushedFile]
    def __init__(self, version: _Optional[int] = ..., digest: _Optional[str] = ..., name: _Optional[str] = ..., files: _Optional[_Iterable[_Union[PushedFile, _Mapping]]] = ...) -> None: ...

class PushedFile(_message.Message):
    __slots__ = ("name", "size", "digest")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    name: str
    size: int
    digest: bytes
    def __init__(self, name: _Optional[str] = ..., size: _Optional[int] = ..., digest: _Optional[bytes] = ...) -> None: ...

class PushDown(_message.Message):
    __slots__ = ("want", "done")
    WANT_FIELD_NUMBER: _ClassVar[int]
    DONE_FIELD_NUMBER: _ClassVar[int]
    want: PushWant
    done: PushDone
    def __init__(self, want: _Optional[_Union[PushWant, _Mapping]] = ..., done: _Optional[_Union[PushDone, _Mapping]] = ...) -> None: ...

class PushWant(_message.Message):
    __slots__ = ("index", "offset")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    index: int
    offset: int
    def __init__(self, index: _Optional[int] = ..., offset: _Optional[int] = ...) -> None: ...

class PushDone(_message.Message):
    __slots__ = ("bytes",)
    BYTES_FIELD_NUMBER: _ClassVar[int]
    bytes: int
    def __init__(self, bytes: _Optional[int] = ...) -> None: ...

class MeasureLink(_message.Message):
    __slots__ = ("version", "ticket", "address", "authority")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    TICKET_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    AUTHORITY_FIELD_NUMBER: _ClassVar[int]
    version: int
    ticket: bytes
    address: str
    authority: bytes
    def __init__(self, version: _Optional[int] = ..., ticket: _Optional[bytes] = ..., address: _Optional[str] = ..., authority: _Optional[bytes] = ...) -> None: ...

class MeasuredLink(_message.Message):
    __slots__ = ("rtt_us", "up", "down", "bytes")
    RTT_US_FIELD_NUMBER: _ClassVar[int]
    UP_FIELD_NUMBER: _ClassVar[int]
    DOWN_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    rtt_us: int
    up: float
    down: float
    bytes: int
    def __init__(self, rtt_us: _Optional[int] = ..., up: _Optional[float] = ..., down: _Optional[float] = ..., bytes: _Optional[int] = ...) -> None: ...

class ProbeData(_message.Message):
    __slots__ = ("count", "data")
    COUNT_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    count: int
    data: bytes
    def __init__(self, count: _Optional[int] = ..., data: _Optional[bytes] = ...) -> None: ...
