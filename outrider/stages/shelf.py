"""What a worker has: models on disk, memory for stages, and the stages that are loaded.

A stage that its coordinator has left stays for the next one, which then need not load it
again, until its memory is wanted or its time is over.
"""

from __future__ import annotations

import importlib.util
import math
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from outrider.engine import EngineSpec, LayerRange, Stage, StageInfo
from outrider.errors import EngineMissing, HandshakeRefused, InvalidRequest, NotFound
from outrider.protocol.stages import HostedModel, LoadedStage, StageHost, StageLoad
from outrider.stages.emulate import Memory, Processor
from outrider.stages.post import Post
from outrider.stages.store import WeightStore

IDLE_S = 300.0
"""How long a stage that nobody uses stays loaded."""
LIBRARIES = {"torch": "torch", "onnx": "onnxruntime"}
"""Engines that run stages, and the library of each."""

Build = Callable[[EngineSpec, LayerRange], Stage]
Estimate = Callable[[EngineSpec, LayerRange], int]


@dataclass(frozen=True, slots=True)
class ShelfModel:
    """A model whose files lie here."""

    hosted: HostedModel
    path: str


@dataclass(slots=True, eq=False)
class Held:
    """A loaded stage."""

    key: tuple[EngineSpec, LayerRange]
    digest: str
    post: Post
    info: StageInfo
    claimed: int
    busy: bool = True
    idle_since: float = 0.0


@dataclass(slots=True)
class Shelf:
    """`take` and `give_back` block; they are called from any thread but an event loop's."""

    name: str
    kind: str
    models: dict[str, ShelfModel]
    memory: Memory
    processor: Processor
    clock: Callable[[], float]
    base: EngineSpec = EngineSpec(model="")
    """Engine, device, dtype and threads where a coordinator leaves them to the worker."""
    bounds: tuple[int, int] = (0, 0)
    """Decoder layers that it takes; stop 0 is the model's last."""
    store: WeightStore | None = None
    """Takes weights of models whose files do not lie here; None takes none."""
    build: Build = field(default_factory=lambda: _build)
    estimate: Estimate = field(default_factory=lambda: least_memory)
    held: list[Held] = field(default_factory=list)
    _loading: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        if self.store is not None:
            self.store.in_use = lambda: [held.key[0].model for held in list(self.held)]

    def describe(self) -> StageHost:
        return StageHost(
            name=self.name,
            kind=self.kind,
            memory_bytes=self.memory.limit or 0,
            claimed_bytes=sum(held.claimed for held in self.held if held.busy),
            speed=self.processor.speed,
            engines=engines(),
            models=tuple(model.hosted for model in self.models.values()),
            loaded=tuple(
                LoadedStage(held.digest, held.info.layers, held.claimed, held.busy)
                for held in self.held
            ),
            first_layer=self.bounds[0],
            stop_layer=self.bounds[1],
            accepts_bytes=self.store.limit if self.store is not None else 0,
        )

    def take(self, load: StageLoad, tenant: str = "") -> Held:
        """The stage, loaded now or found idle; of weights that were sent, those that `tenant`
        sent. Raises NotFound, HandshakeRefused,
        InvalidRequest, EngineFull, and what building it raises; then nothing has changed but
        that idle stages may have given way."""
        with self._loading:
            model = self.choose(load, tenant)
            self._check_bounds(load.layers, model.hosted.layers)
            key = (self._spec(load, model), load.layers)
            return self._idle(key) or self._loaded(key, model)

    def give_back(self, held: Held) -> None:
        """Its slots are closed; it is idle from now on."""
        held.busy, held.idle_since = False, self.clock()

    def expire(self) -> None:
        """Drop what was idle for long."""
        with self._loading:
            for held in [h for h in self.held if not h.busy]:
                if self.clock() - held.idle_since >= IDLE_S:
                    self._drop(held)

    def shutdown(self) -> None:
        self.processor.stop()
        with self._loading:
            for held in list(self.held):
                self._drop(held)

    def choose(self, load: StageLoad, tenant: str = "") -> ShelfModel:
        """By digest, among files and then among what was sent; else by name, else the only one."""
        if not load.weights_digest:
            return self._named(load)
        wanted = [m for m in self.models.values() if m.hosted.digest == load.weights_digest]
        found = wanted[0] if wanted else self._sent(load, tenant)
        if found is not None:
            return found
        raise HandshakeRefused(
            "weights digest",
            ours=self._named(load).hosted.digest,
            theirs=load.weights_digest,
            todo=f"start worker {self.name} with the same model files as the others",
        )

    def _sent(self, load: StageLoad, tenant: str) -> ShelfModel | None:
        digest, store = load.weights_digest, self.store
        folder = store.view(tenant, digest, load.layers) if store is not None else None
        if store is None or folder is None:
            return None
        hosted = HostedModel(load.model, digest, store.layers(tenant, digest))
        return ShelfModel(hosted, str(folder))

    def _named(self, load: StageLoad) -> ShelfModel:
        if load.model in self.models:
            return self.models[load.model]
        if self.models and (not load.model or load.weights_digest):
            return next(iter(self.models.values()))
        raise NotFound(
            f"worker {self.name} has no model {load.model!r}",
            param="model",
            why=f"it has {', '.join(self.models) or 'none'}",
            effect="nothing was loaded",
            todo="start it with --model NAME=PATH",
        )

    def _check_bounds(self, layers: LayerRange, count: int) -> None:
        first, stop = self.bounds[0], self.bounds[1] or max(count, layers.stop)
        if layers.start < first or layers.stop > stop:
            raise InvalidRequest(
                f"worker {self.name} takes layers {first}:{stop}, not {layers.start}:{layers.stop}",
                param="layers",
                why="it was started so",
                effect="nothing was loaded",
                todo="plan within them, or start it with --layers auto",
            )

    def _spec(self, load: StageLoad, model: ShelfModel) -> EngineSpec:
        def given(wanted: str, ours: str) -> str:
            return ours if wanted == "auto" else wanted

        return replace(
            self.base,
            model=model.path,
            engine=given(load.engine, self.base.engine),
            device=given(load.device, self.base.device),
            dtype=given(load.dtype, self.base.dtype),
            numerics=load.numerics,
            context=load.context,
            max_slots=load.max_slots,
            max_rows=load.max_rows,
            options=load.options,
        )

    def _idle(self, key: tuple[EngineSpec, LayerRange]) -> Held | None:
        for held in self.held:
            if held.key == key and not held.busy:
                held.busy = True
                return held
        return None

    def _loaded(self, key: tuple[EngineSpec, LayerRange], model: ShelfModel) -> Held:
        what = f"a stage of layers {key[1].start}:{key[1].stop}"
        self._make_room(self.estimate(*key), what)
        post = Post(lambda: self.build(*key), self.processor, what)
        info = post.ready()
        try:
            self._check_digest(info, model)
            self._make_room(info.memory_bytes, what)
            self.memory.claim(info.memory_bytes, what)
        except BaseException:
            post.shutdown()
            raise
        held = Held(key, model.hosted.digest, post, info, info.memory_bytes)
        self.held.append(held)
        return held

    def _check_digest(self, info: StageInfo, model: ShelfModel) -> None:
        """Files may have changed since the worker was started."""
        if info.weights_digest != model.hosted.digest:
            raise HandshakeRefused(
                "weights digest", ours=info.weights_digest, theirs=model.hosted.digest
            )

    def _make_room(self, size: int, what: str) -> None:
        """Idle stages give way, the longest idle first. Raises EngineFull."""
        idle = sorted((h for h in self.held if not h.busy), key=lambda held: held.idle_since)
        self.memory.check(size, what, sum(held.claimed for held in idle))
        while self.memory.missing(size):
            self._drop(idle.pop(0))

    def _drop(self, held: Held) -> None:
        self.held.remove(held)
        held.post.shutdown()
        self.memory.release(held.claimed)


def engines() -> tuple[str, ...]:
    """Those that run stages and are installed."""
    return tuple(name for name, library in LIBRARIES.items() if importlib.util.find_spec(library))


def choose_engine(wanted: str) -> str:
    """`auto` takes the first that is installed. Raises EngineMissing."""
    found = engines()
    if wanted == "auto" and found:
        return found[0]
    if wanted not in found:
        name = "torch" if wanted == "auto" else wanted
        raise EngineMissing(name, name)
    return wanted


def models(named: Sequence[tuple[str, str]]) -> dict[str, ShelfModel]:
    """Models by name, from (name, path); reads headers and digests. Raises ModelError, NotFound."""
    from outrider.models.graph import read
    from outrider.models.source import resolve

    found = {}
    for name, path in named:
        files = resolve(path)
        hosted = HostedModel(name, files.digest, read(path).decoders)
        found[name] = ShelfModel(hosted, path)
    return found


def least_memory(spec: EngineSpec, layers: LayerRange) -> int:
    """Bytes that a stage can not do without, from headers: weights and KV of its layers.

    Checked before anything is loaded; what the loaded stage claims is checked again. 0 where
    the headers do not tell.
    """
    from outrider.models.config import load_config
    from outrider.models.source import resolve
    from outrider.models.weights import shapes_of

    files = resolve(spec.model)
    if files.kind != "safetensors" or files.config is None:
        return 0
    config = load_config(files.config)
    if layers.stop > config.layers:
        return 0
    item = 4 if spec.dtype == "float32" else 2
    weights = sum(math.prod(shape) for shape in shapes_of(config, layers).values())
    tokens = (spec.context or config.context) * spec.max_slots
    kv = 2 * (layers.stop - layers.start) * config.kv_heads * config.head_dim * tokens
    return (weights + kv) * item


def _build(spec: EngineSpec, layers: LayerRange) -> Stage:
    from outrider.engines.stages import build_stage

    return build_stage(spec, layers)
