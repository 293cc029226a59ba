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
    __slots__ = ("name", "model_digest", "vocabulary_digest", "numeric_class", "vocabulary_size", "context", "exact", "engine", "device", "dtype", "end_ids", "chat_template", "tokenizer_digest", "tokenizer_json", "created", "bos", "eos")
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
    def __init__(self, name: _Optional[str] = ..., model_digest: _Optional[str] = ..., vocabulary_digest: _Optional[str] = ..., numeric_class: _Optional[str] = ..., vocabulary_size: _Optional[int] = ..., context: _Optional[int] = ..., exact: _Optional[int] = ..., engine: _Optional[str] = ..., device: _Optional[str] = ..., dtype: _Optional[str] = ..., end_ids: _Optional[bytes] = ..., chat_template: _Optional[str] = ..., tokenizer_digest: _Optional[str] = ..., tokenizer_json: _Optional[bytes] = ..., created: _Optional[int] = ..., bos: _Optional[str] = ..., eos: _Optional[str] = ...) -> None: ...

class Up(_message.Message):
    __slots__ = ("open", "hint", "close", "heartbeat")
    OPEN_FIELD_NUMBER: _ClassVar[int]
    HINT_FIELD_NUMBER: _ClassVar[int]
    CLOSE_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_FIELD_NUMBER: _ClassVar[int]
    open: Open
    hint: bytes
    close: Close
    heartbeat: Heartbeat
    def __init__(self, open: _Optional[_Union[Open, _Mapping]] = ..., hint: _Optional[bytes] = ..., close: _Optional[_Union[Close, _Mapping]] = ..., heartbeat: _Optional[_Union[Heartbeat, _Mapping]] = ...) -> None: ...

class Down(_message.Message):
    __slots__ = ("opened", "commit", "finished", "heartbeat")
    OPENED_FIELD_NUMBER: _ClassVar[int]
    COMMIT_FIELD_NUMBER: _ClassVar[int]
    FINISHED_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_FIELD_NUMBER: _ClassVar[int]
    opened: Opened
    commit: bytes
    finished: Finished
    heartbeat: Heartbeat
    def __init__(self, opened: _Optional[_Union[Opened, _Mapping]] = ..., commit: _Optional[bytes] = ..., finished: _Optional[_Union[Finished, _Mapping]] = ..., heartbeat: _Optional[_Union[Heartbeat, _Mapping]] = ...) -> None: ...

class Open(_message.Message):
    __slots__ = ("version", "session", "fence", "model", "vocabulary_digest", "numeric_class", "exact_required", "slots", "prompt", "choices", "sampling", "seed", "max_tokens", "stop", "logprobs", "padding")
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
    def __init__(self, version: _Optional[int] = ..., session: _Optional[bytes] = ..., fence: _Optional[int] = ..., model: _Optional[str] = ..., vocabulary_digest: _Optional[str] = ..., numeric_class: _Optional[str] = ..., exact_required: _Optional[int] = ..., slots: _Optional[int] = ..., prompt: _Optional[bytes] = ..., choices: _Optional[_Iterable[_Union[ChoiceOpen, _Mapping]]] = ..., sampling: _Optional[_Union[SamplingParams, _Mapping]] = ..., seed: _Optional[bytes] = ..., max_tokens: _Optional[int] = ..., stop: _Optional[_Iterable[bytes]] = ..., logprobs: _Optional[int] = ..., padding: _Optional[bytes] = ...) -> None: ...

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
    __slots__ = ("version", "fence", "model", "model_digest", "vocabulary_digest", "numeric_class", "exact", "context", "ahead", "heartbeat_ms", "resumed")
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
    def __init__(self, version: _Optional[int] = ..., fence: _Optional[int] = ..., model: _Optional[str] = ..., model_digest: _Optional[str] = ..., vocabulary_digest: _Optional[str] = ..., numeric_class: _Optional[str] = ..., exact: _Optional[int] = ..., context: _Optional[int] = ..., ahead: _Optional[int] = ..., heartbeat_ms: _Optional[int] = ..., resumed: _Optional[int] = ...) -> None: ...

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
