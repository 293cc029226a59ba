"""Position-keyed sampling: the next token as a pure function of scores, seed and position.

Token t of choice n is `argmax over v in allowed(t) of s(t, v) + G(seed, n, t, v)`
where `s` are the processed scores and `G` is standard Gumbel noise from a
counter-based generator. This samples exactly from the processed distribution
(Gumbel-max; Maddison et al. 2014), and whoever knows the seed computes the same
noise, so a drafter proposes under the noise that the target will use
(drafter-invariant coupling, arXiv 2408.07978).

Order of processing: repetition, presence and frequency penalties; logit bias;
the mask of a constraint; temperature; top-k; top-p; min-p. Temperature 0 is plain
argmax after penalties, bias and mask. Ties go to the lowest id. Everything from the
scores on is float64; the generator's integers are bit-equal everywhere.

No I/O, no engine: numpy alone.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from outrider.errors import EngineFailed, InvalidRequest
from outrider.protocol.constraint import Constraint

Floats = NDArray[np.float64]
Ids = NDArray[np.int64]
Words = NDArray[np.uint64]
Mask = NDArray[np.bool_]
"""Shape [V]: which ids a constraint allows."""

VERSION = 1
"""Changes whenever any seed would give another text; part of the numeric class."""

MAX_NOISE = -math.log(-math.log1p(-(2.0**-53)))
"""The largest Gumbel value 52 bits can give: u = 1 - 2^-53, about 36.74."""
LEAST_NOISE = -math.log(53 * math.log(2.0))
"""The least one: u = 2^-53, about -3.60."""

LEAST_TEMPERATURE = 1e-6
"""Below it, scores over temperature could leave the range of float64; 0 is greedy."""
MOST_BIASES = 1024
TOP_P_SLACK = 1e-12
"""The token at which the sum reaches top_p up to this is the last one kept, so that rounding
of the sum has no say where equal probabilities meet top_p exactly."""


_WORD = 2**32 - 1


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How one token is chosen. Checked on construction; raises `InvalidRequest`."""

    temperature: float = 1.0
    """0 is greedy; else scores are divided by it, and it is at least 1e-6."""
    top_k: int | None = None
    """Keep the k best; None keeps all."""
    top_p: float = 1.0
    """Keep the smallest set of best tokens whose probability reaches this."""
    min_p: float = 0.0
    """Keep tokens of at least this share of the best token's probability."""
    repetition_penalty: float = 1.0
    """Divides positive and multiplies negative scores of tokens seen in prompt or answer (CTRL)."""
    presence_penalty: float = 0.0
    """Subtracted once from the score of a token already in the answer."""
    frequency_penalty: float = 0.0
    """Subtracted once per occurrence in the answer."""
    logit_bias: tuple[tuple[int, float], ...] = ()
    """(token id, added score) pairs."""

    def __post_init__(self) -> None:
        _check("temperature", self.temperature, 0.0, 100.0)
        if 0.0 < self.temperature < LEAST_TEMPERATURE:
            raise _refused("temperature", self.temperature, f"0, or {LEAST_TEMPERATURE:g} to 100")
        _check("top_p", self.top_p, 0.0, 1.0)
        _check("min_p", self.min_p, 0.0, 1.0)
        _check("repetition_penalty", self.repetition_penalty, 0.01, 100.0)
        _check("presence_penalty", self.presence_penalty, -100.0, 100.0)
        _check("frequency_penalty", self.frequency_penalty, -100.0, 100.0)
        if self.top_k is not None:
            _check("top_k", self.top_k, 1, _WORD)
        if self.top_p == 0.0:
            raise _refused("top_p", self.top_p, "above 0, at most 1")
        self._check_bias()

    def _check_bias(self) -> None:
        if len(self.logit_bias) > MOST_BIASES:
            raise _refused("logit_bias", "longer", f"at most {MOST_BIASES} ids")
        for token, bias in self.logit_bias:
            _check("logit_bias", token, 0, _WORD)
            _check("logit_bias", bias, -1000.0, 1000.0)
        if len({token for token, _ in self.logit_bias}) != len(self.logit_bias):
            raise _refused("logit_bias", "a repeated id", "each id once")

    @property
    def greedy(self) -> bool:
        return self.temperature == 0.0

    @property
    def penalised(self) -> bool:
        """Whether the tokens so far change the scores."""
        return (
            self.repetition_penalty != 1.0
            or self.presence_penalty != 0.0
            or self.frequency_penalty != 0.0
        )

    @property
    def plain(self) -> bool:
        """Whether the choice is the argmax of the scores as they are."""
        return self.temperature == 0.0 and not self.logit_bias and not self.penalised


def _check(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise _refused(name, value, f"{low:g} to {high:g}")


def _refused(name: str, value: object, wanted: str) -> InvalidRequest:
    return InvalidRequest(
        f"{name} can not be {value}",
        param=name,
        why=f"it must be {wanted}",
        effect="the request was not started",
    )


GREEDY = SamplingParams(temperature=0.0)


@dataclass(frozen=True, slots=True)
class Sampling:
    """All that fixes a choice's text beside the target and the prompt."""

    params: SamplingParams
    seed: int
    """0 to 2^128 - 1."""
    choice: int = 0
    prompt_length: int = 0
    """Tokens before the answer; presence and frequency count from here."""
    constraint: Constraint | None = None
    """What the answer's text must match."""
    key: tuple[int, int, int, int] = field(init=False, repr=False, compare=False)
    """Two Philox key words and two counter words; written here from seed and choice."""

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**128:
            raise _refused("seed", "out of range", "0 to 2^128 - 1")
        object.__setattr__(self, "key", derive_key(self.seed, self.choice))


def derive_key(seed: int, choice: int) -> tuple[int, int, int, int]:
    """128 bits as four words: SHA-256 over a label, the seed and the choice."""
    message = b"outrider gumbel 1" + seed.to_bytes(16, "little") + choice.to_bytes(4, "little")
    words = np.frombuffer(hashlib.sha256(message).digest()[:16], dtype="<u4")
    return int(words[0]), int(words[1]), int(words[2]), int(words[3])


# --- the generator -----------------------------------------------------------------------------

# Arrays without dimension: numpy takes them faster than scalars.
_LOW, _SHIFT = np.array(0xFFFFFFFF, dtype=np.uint64), np.array(32, dtype=np.uint64)
_M0, _M1 = np.array(0xD2511F53, dtype=np.uint64), np.array(0xCD9E8D57, dtype=np.uint64)
_W0, _W1 = 0x9E3779B9, 0xBB67AE85
_BLOCK = 8192


@lru_cache(maxsize=256)
def _schedule(key: tuple[int, int]) -> tuple[tuple[Words, Words], ...]:
    """The two key words of each round."""
    turns = np.arange(10, dtype=np.uint64)
    first = (np.uint64(key[0]) + turns * np.uint64(_W0)) & _LOW
    second = (np.uint64(key[1]) + turns * np.uint64(_W1)) & _LOW
    return tuple((first[i, ...], second[i, ...]) for i in range(10))


def philox4x32(
    counter: Sequence[Words | int], key: tuple[int, int]
) -> tuple[Words, Words, Words, Words]:
    """Philox4x32-10 (Salmon et al., SC'11) on arrays of 32-bit words held in uint64."""
    shape = np.broadcast_shapes(*(np.shape(word) for word in counter))
    c0, c1, c2, c3 = (np.full(shape, word, dtype=np.uint64) for word in counter)
    p0, p1 = np.empty_like(c0), np.empty_like(c0)
    for k0, k1 in _schedule(key):
        np.multiply(c0, _M0, p0)
        np.multiply(c2, _M1, p1)
        np.right_shift(p1, _SHIFT, c0)
        np.bitwise_xor(c0, c1, c0)
        np.bitwise_xor(c0, k0, c0)
        np.bitwise_and(p1, _LOW, c1)
        np.right_shift(p0, _SHIFT, c2)
        np.bitwise_xor(c2, c3, c2)
        np.bitwise_xor(c2, k1, c2)
        np.bitwise_and(p0, _LOW, c3)
    return c0, c1, c2, c3


def random_bits(key: tuple[int, int, int, int], position: int, ids: Ids) -> Words:
    """52 random bits for each id at an absolute position, in blocks that fit a cache."""
    if len(ids) <= _FEW:
        return np.array([_bits_of_one(key, position, i) for i in ids.tolist()], dtype=np.uint64)
    result = np.empty(len(ids), dtype=np.uint64)
    for start in range(0, len(ids), _BLOCK):
        block = ids[start : start + _BLOCK].astype(np.uint64)
        x0, x1, _, _ = philox4x32((block, position, key[2], key[3]), (key[0], key[1]))
        result[start : start + _BLOCK] = (x0 << np.uint64(20)) | (x1 >> np.uint64(12))
    return result


_FEW = 8
"""Up to so many, Python's integers are done before numpy's hundred calls are."""


def _bits_of_one(key: tuple[int, int, int, int], position: int, token: int) -> int:
    """Philox4x32-10 on plain integers, the upper 52 bits of its first two words."""
    k0, k1, c2, c3 = key
    c0, c1 = token, position
    for _ in range(10):
        p0, p1 = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        c0, c1, c2, c3 = p1 >> 32 ^ c1 ^ k0, p1 & _WORD, p0 >> 32 ^ c3 ^ k1, p0 & _WORD
        k0, k1 = k0 + _W0 & _WORD, k1 + _W1 & _WORD
    return c0 << 20 | c1 >> 12


def gumbel(bits: Words) -> Floats:
    """Standard Gumbel noise from 52 bits k: -log(-log u) with u = (k + 1/2) 2^-52."""
    uniform = (bits.astype(np.float64) + 0.5) * 2.0**-52
    result: Floats = -np.log(-np.log(uniform))
    return result


def noise(key: tuple[int, int, int, int], position: int, ids: Ids) -> Floats:
    """Standard Gumbel noise for each id, float64."""
    return gumbel(random_bits(key, position, ids))


# --- scores ------------------------------------------------------------------------------------


def penalise(
    scores: Floats, params: SamplingParams, seen: Mapping[int, int], said: Mapping[int, int]
) -> Floats:
    """Penalties and bias. `seen`: counts in prompt and answer; `said`: in the answer alone."""
    result = scores.copy()
    if params.repetition_penalty != 1.0 and seen:
        ids = np.fromiter(seen, dtype=np.int64)
        part = result[ids]
        factor = params.repetition_penalty
        result[ids] = np.where(part > 0, part / factor, part * factor)
    if said:
        ids = np.fromiter(said, dtype=np.int64)
        counts = np.fromiter(said.values(), dtype=np.float64)
        result[ids] -= params.presence_penalty + params.frequency_penalty * counts
    for token, bias in params.logit_bias:
        if token < len(result):
            result[token] += bias
    return result


def allowed(scores: Floats, params: SamplingParams) -> tuple[Ids, Floats]:
    """Ids that may be chosen, ascending, and their scores over temperature.

    `scores` are penalised; temperature is above 0.
    """
    scaled = scores / params.temperature
    if params.top_k is None and params.top_p == 1.0:
        return _without_unlikely(np.arange(len(scaled), dtype=np.int64), scaled, params)
    ids = np.sort(_nucleus(scaled, params) if params.top_k is None else _few(scaled, params))
    return _without_unlikely(ids, scaled[ids], params)


_TRIES = (128, 512)
_ROUGH = 2e-5
"""More than float32 does to a sum of exponentials: its arguments, at most 104, and its exp are
off by 1e-7 each, relative; the sum is taken in float64."""


def _nucleus(scaled: Floats, params: SamplingParams) -> Ids:
    """Top-p of the whole vocabulary. A rough sum of all weights decides, unless the exact one
    could decide otherwise; few ids are sorted where few reach it."""
    top = scaled.max()
    weights = np.exp(np.maximum(scaled - top, -104.0).astype(np.float32))
    wanted = params.top_p * float(weights.sum(dtype=np.float64))
    for k in _TRIES:
        ids = _best(scaled, min(k, len(scaled)))
        reached = np.cumsum(np.exp(scaled[ids] - top))
        last = int(np.searchsorted(reached, wanted * (1.0 + _ROUGH)))
        if last < len(ids):
            sure = last == 0 or reached[last - 1] < wanted * (1.0 - _ROUGH)
            return ids[: last + 1] if sure else _exact_nucleus(scaled, params)
    return _exact_nucleus(scaled, params)


def _exact_nucleus(scaled: Floats, params: SamplingParams) -> Ids:
    size = len(scaled)
    weights = np.exp(scaled - scaled.max())
    wanted = (params.top_p - TOP_P_SLACK) * float(weights.sum())
    k = min(_TRIES[0], size)
    while True:
        ids = _best(scaled, k)
        reached = np.cumsum(weights[ids])
        if reached[-1] >= wanted or k == size:
            return ids[: int(np.searchsorted(reached, wanted)) + 1]
        k = min(8 * k, size)


def _few(scaled: Floats, params: SamplingParams) -> Ids:
    """Top-k, and top-p of what it left."""
    ids = _best(scaled, min(params.top_k or 1, len(scaled)))[: params.top_k]
    if params.top_p == 1.0:
        return ids
    weights = np.exp(scaled[ids] - scaled[ids[0]])
    wanted = (params.top_p - TOP_P_SLACK) * float(weights.sum())
    return ids[: int(np.searchsorted(np.cumsum(weights), wanted)) + 1]


def _without_unlikely(ids: Ids, scaled: Floats, params: SamplingParams) -> tuple[Ids, Floats]:
    """Min-p (shares of the best one's probability need no sum), and never an id at -inf."""
    if params.min_p > 0.0:
        keep = np.exp(scaled - scaled.max()) >= params.min_p
    elif math.isfinite(float(scaled.min())):
        return ids, scaled
    else:
        keep = scaled > -np.inf
    return ids[keep], scaled[keep]


def _best(scaled: Floats, k: int) -> Ids:
    """The best k and all ties of the last one; best first, ties by id."""
    if k < len(scaled):
        ids = np.flatnonzero(scaled >= np.partition(scaled, len(scaled) - k)[len(scaled) - k])
    else:
        ids = np.arange(len(scaled))
    result: Ids = ids[np.argsort(-scaled[ids], kind="stable")]
    return result


def finite(scores: NDArray[np.floating]) -> Floats:
    """Float64 copy of one row of scores; NaN, +inf or nothing above -inf raise `EngineFailed`."""
    wide = scores.astype(np.float64)
    if not len(wide) or not math.isfinite(wide.max()):
        raise _not_finite()
    return wide


def best(scores: NDArray[np.floating]) -> int:
    """The plain choice, see `SamplingParams.plain`, from one row of unprocessed scores.

    Raises as `finite` does: numpy takes a NaN for the largest value of a row.
    """
    found = int(scores.argmax()) if len(scores) else 0
    if not len(scores) or not math.isfinite(scores[found]):
        raise _not_finite()
    return found


def _not_finite() -> EngineFailed:
    return EngineFailed(
        "the model gave scores that are not finite",
        why="a NaN or an infinity came out of the last layer",
        effect="the token was not chosen",
    )


# --- the choice --------------------------------------------------------------------------------


def choose(scores: Floats, sampling: Sampling, position: int) -> int:
    """The token at `position` from penalised scores, shape [V]."""
    if sampling.params.greedy:
        return int(np.argmax(scores))
    ids, scaled = _contenders(*allowed(scores, sampling.params))
    if len(ids) == 1:
        return int(ids[0])
    bits = random_bits(sampling.key, position, ids)
    if len(ids) > 2 * _LEAD:
        keep = _hopeful(scaled, bits)
        ids, scaled, bits = ids[keep], scaled[keep], bits[keep]
    return int(ids[np.argmax(scaled + gumbel(bits))])


def rank(scores: Floats, sampling: Sampling, position: int, k: int) -> tuple[int, ...]:
    """The k best ids under score plus noise, best first: children of a draft tree."""
    if sampling.params.greedy:
        ids, keyed = np.arange(len(scores), dtype=np.int64), scores
    else:
        ids, scaled = allowed(scores, sampling.params)
        keyed = scaled + noise(sampling.key, position, ids)
    return tuple(int(ids[i]) for i in _best(keyed, k)[:k] if keyed[i] > -np.inf)


def _contenders(ids: Ids, scaled: Floats) -> tuple[Ids, Floats]:
    """Drop ids whose score plus the largest noise can not reach the best plus the least noise."""
    keep = scaled + MAX_NOISE >= scaled.max() + LEAST_NOISE
    return ids[keep], scaled[keep]


_LEAD = 256
_DOUBT = 1e-9
"""More than rounding can do to a sum of score and noise, relative to its parts."""


def _hopeful(scaled: Floats, bits: Words) -> NDArray[np.bool_]:
    """Which can still win: the best by score, and of the rest those with large enough bits.

    The rest score at most `cut`, so they need noise of at least `best - cut`, which
    is a bound on the integers; so few logarithms are taken.
    """
    lead = np.argpartition(scaled, len(scaled) - _LEAD)[-_LEAD:]
    cut = float(scaled[lead].min())
    best = float((scaled[lead] + gumbel(bits[lead])).max())
    needed = best - cut - _DOUBT * (1.0 + abs(best) + abs(cut))
    floor = int(math.exp(-math.exp(-needed)) * 2.0**52) - 4
    keep: NDArray[np.bool_] = bits >= np.uint64(max(0, floor))
    keep[lead] = True
    return keep


@dataclass(slots=True)
class Tally:
    """Token counts of one choice, grown along a path; only penalties need it."""

    prompt_length: int
    seen: dict[int, int] = field(default_factory=dict)
    said: dict[int, int] = field(default_factory=dict)
    length: int = 0

    def add(self, token: int) -> None:
        self.seen[token] = self.seen.get(token, 0) + 1
        if self.length >= self.prompt_length:
            self.said[token] = self.said.get(token, 0) + 1
        self.length += 1

    def extend(self, tokens: Sequence[int]) -> None:
        for token in tokens:
            self.add(token)

    def copy(self) -> Tally:
        return Tally(self.prompt_length, dict(self.seen), dict(self.said), self.length)


def prepare(
    row: NDArray[np.floating], sampling: Sampling, tally: Tally | None, mask: Mask | None = None
) -> Floats:
    """Unprocessed scores, shape [V], to penalised and masked float64 scores."""
    scores = finite(row)
    if tally is not None:
        scores = penalise(scores, sampling.params, tally.seen, tally.said)
    elif sampling.params.logit_bias:
        scores = penalise(scores, sampling.params, {}, {})
    return scores if mask is None else masked(scores, mask)


def masked(scores: Floats, mask: Mask) -> Floats:
    """In place: -inf where the mask forbids. Raises EngineFailed when nothing is left."""
    np.copyto(scores, -np.inf, where=~mask)
    if not math.isfinite(scores.max()):
        raise nothing_left()
    return scores


def nothing_left() -> EngineFailed:
    return EngineFailed(
        "the model gave no score to any token that the constraint allows",
        why="all of them are at minus infinity",
        effect="the token was not chosen",
    )


def pick_path(
    rows: NDArray[np.floating],
    sampling: Sampling,
    history: Sequence[int],
    tokens: Sequence[int],
    first: int = 0,
    masks: Sequence[Mask | None] | None = None,
) -> tuple[int, ...]:
    """The choice after each of `tokens[first:]`, a chain that follows `history`.

    `rows`: unprocessed scores, shape [len(tokens) - first, V]; row i is the
    model's output after `history + tokens[: first + i + 1]`, and its choice stands
    at position `len(history) + first + i + 1`. Penalties and mask of row i follow the
    chain up to and including its own token.
    """
    tally = _tally(sampling, history, tokens[:first])
    chosen = []
    for i, token in enumerate(tokens[first:]):
        if tally is not None:
            tally.add(token)
        scores = prepare(rows[i], sampling, tally, masks[i] if masks else None)
        chosen.append(choose(scores, sampling, len(history) + first + i + 1))
    return tuple(chosen)


def _tally(sampling: Sampling, *parts: Sequence[int]) -> Tally | None:
    if not sampling.params.penalised:
        return None
    tally = Tally(sampling.prompt_length)
    for part in parts:
        tally.extend(part)
    return tally


# --- the plain twin ----------------------------------------------------------------------------


def processed(row: Floats, params: SamplingParams) -> Floats:
    """Processed distribution over the vocabulary, shape [V], written plainly; for tests.

    `row` are penalised scores. Zero outside the allowed set; sums to one.
    """
    result = np.zeros(len(row))
    if params.greedy:
        result[int(np.argmax(row))] = 1.0
        return result
    ids, scaled = allowed_plain(row, params)
    weights = np.exp(scaled - scaled.max())
    result[ids] = weights / weights.sum()
    return result


def allowed_plain(row: Floats, params: SamplingParams) -> tuple[Ids, Floats]:
    """`allowed` without shortcuts: sort everything, then cut three times."""
    scaled = row / params.temperature
    ids = np.lexsort((np.arange(len(row)), -scaled))[: params.top_k]
    weights = np.exp(scaled[ids] - scaled[ids[0]])
    if params.top_p < 1.0:
        wanted = (params.top_p - TOP_P_SLACK) * weights.sum()
        keep = int(np.searchsorted(np.cumsum(weights), wanted)) + 1
        ids, weights = ids[:keep], weights[:keep]
    ids = np.sort(ids[weights >= params.min_p])
    ids = ids[scaled[ids] > -np.inf]
    return ids, scaled[ids]


def choose_plain(row: Floats, sampling: Sampling, position: int) -> int:
    """`choose` with noise for the whole vocabulary."""
    if sampling.params.greedy:
        return int(np.argmax(row))
    ids, scaled = allowed_plain(row, sampling.params)
    keyed = np.full(len(row), -np.inf)
    keyed[ids] = scaled + noise(sampling.key, position, np.arange(len(row)))[ids]
    return int(np.argmax(keyed))


# --- logprobs ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """Log-softmax of the unprocessed scores: of the chosen id, and the best `top` ids."""

    chosen: float
    top: tuple[tuple[int, float], ...]


def logprobs(row: NDArray[np.floating], chosen: int, top_n: int) -> TokenLogprobs:
    """Natural logarithms, float64; `top` best first, ties to the lowest id."""
    scores = finite(row)
    best = scores.max()
    normal = scores - (best + math.log(float(np.exp(scores - best).sum())))
    ids = _best(normal, top_n)[:top_n] if top_n else np.empty(0, dtype=np.int64)
    return TokenLogprobs(float(normal[chosen]), tuple((int(i), float(normal[i])) for i in ids))
