"""The sampler of `outrider.protocol.sampling` on tensors: many rows at once, on the model's device.

The generator's integers are those of the numpy twin bit for bit (64-bit products
wrap alike in int64 and uint64); logarithms may differ in the last bit, which no
choice hung on in any case tried.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from outrider.engine import Picked, Span
from outrider.engines.slots import Slot, masks_of, path_to
from outrider.protocol.sampling import (
    TOP_P_SLACK,
    Mask,
    Sampling,
    SamplingParams,
    Tally,
    TokenLogprobs,
    finite,
    nothing_left,
)

_WORD = 0xFFFFFFFF
_M0, _M1 = 0xD2511F53, 0xCD9E8D57
_W0, _W1 = 0x9E3779B9, 0xBB67AE85

ROWS_AT_ONCE = 64
"""Float64 rows of a large vocabulary take memory; more are done in turns."""


@dataclass(frozen=True, slots=True)
class Row:
    """What fixes the choice at one row beside its scores."""

    sampling: Sampling
    position: int
    """Absolute position of the token that is chosen."""
    tally: Tally | None = None
    """Counts along the row's path; only where there are penalties."""
    mask: Mask | None = None
    """Ids that a constraint allows, [V]; None allows all."""


# --- the generator -----------------------------------------------------------------------------


def philox4x32(counter: Sequence[Tensor], key: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """First two words of Philox4x32-10; 32-bit words in int64, broadcast against each other."""
    c0, c1, c2, c3 = counter
    for turn in range(10):
        k0, k1 = (key[0] + turn * _W0) & _WORD, (key[1] + turn * _W1) & _WORD
        p0, p1 = c0 * _M0, c2 * _M1
        high0, high1 = (p0 >> 32) & _WORD, (p1 >> 32) & _WORD
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, p1 & _WORD, high0 ^ c3 ^ k1, p0 & _WORD
    return c0, c1


def noise(rows: Sequence[Row], size: int, device: torch.device) -> Tensor:
    """Standard Gumbel noise for ids 0 to size - 1 of each row, [R, size] float64."""
    words = torch.tensor(
        [(*row.sampling.key, row.position) for row in rows], dtype=torch.int64, device=device
    )
    k0, k1, c2, c3, position = (part.unsqueeze(-1) for part in words.unbind(-1))
    ids = torch.arange(size, device=device).unsqueeze(0)
    x0, x1 = philox4x32((ids, position, c2, c3), (k0, k1))
    bits = ((x0 << 20) | (x1 >> 12)).double()
    return -torch.log(-torch.log((bits + 0.5) * 2.0**-52))


# --- scores ------------------------------------------------------------------------------------


def keyed(scores: Tensor, rows: Sequence[Row]) -> Tensor:
    """Processed scores plus noise, [R, V] float64, -inf where an id is not allowed.

    Greedy rows have their penalised and masked scores. Raises `EngineFailed` like the numpy twin.
    """
    wide = scores.to(torch.float64, copy=True)
    _check_finite(wide)
    for number, row in enumerate(rows):
        _penalise(wide[number], row)
    _mask(wide, rows)
    params = [row.sampling.params for row in rows]
    if all(p.greedy for p in params):
        return wide
    scaled = wide / _column([p.temperature or 1.0 for p in params], wide)
    found = scaled + noise(rows, wide.shape[-1], wide.device)
    if any(_cuts(p) for p in params):
        found.masked_fill_(~_allowed(scaled, params), float("-inf"))
    greedy = torch.tensor([p.greedy for p in params], device=wide.device).unsqueeze(-1)
    return torch.where(greedy, wide, found)


def _column(values: Sequence[float], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=torch.float64, device=like.device).unsqueeze(-1)


def _check_finite(wide: Tensor) -> None:
    good = wide.amax(-1).isfinite()
    if not bool(good.all()):
        finite(wide[int((~good).nonzero()[0])].cpu().numpy())


def _mask(wide: Tensor, rows: Sequence[Row]) -> None:
    """In place, for all rows that have one at once."""
    numbers = [number for number, row in enumerate(rows) if row.mask is not None]
    if not numbers:
        return
    allowed = torch.from_numpy(np.stack([row.mask for row in rows if row.mask is not None]))
    at = torch.tensor(numbers, device=wide.device)
    kept = wide[at].masked_fill_(~allowed.to(wide.device), float("-inf"))
    if not bool(kept.amax(-1).isfinite().all()):
        raise nothing_left()
    wide[at] = kept


def _penalise(scores: Tensor, row: Row) -> None:
    """In place; the order and arithmetic of `sampling.penalise`."""
    params, tally = row.sampling.params, row.tally
    if tally is not None and tally.seen and params.repetition_penalty != 1.0:
        ids = torch.tensor(list(tally.seen), device=scores.device)
        part, factor = scores[ids], params.repetition_penalty
        scores[ids] = torch.where(part > 0, part / factor, part * factor)
    if tally is not None and tally.said:
        ids = torch.tensor(list(tally.said), device=scores.device)
        counts = torch.tensor(list(tally.said.values()), device=scores.device).double()
        scores[ids] -= params.presence_penalty + params.frequency_penalty * counts
    for token, bias in params.logit_bias:
        if token < len(scores):
            scores[token] += bias


def _cuts(params: SamplingParams) -> bool:
    narrowed = params.top_k is not None or params.top_p < 1.0 or params.min_p > 0.0
    return narrowed and not params.greedy


def _allowed(scaled: Tensor, params: Sequence[SamplingParams]) -> Tensor:
    """Which ids top-k, top-p and min-p leave, [R, V]; by score, then id."""
    size = scaled.shape[-1]
    values, order = scaled.sort(dim=-1, descending=True, stable=True)
    most = _column([size if p.top_k is None else p.top_k for p in params], scaled)
    kept = torch.arange(size, device=scaled.device) < most
    weights = torch.exp(values - values[:, :1]) * kept
    share = _column([p.top_p for p in params], scaled)
    wanted = (share - TOP_P_SLACK) * weights.sum(-1, keepdim=True)
    kept[:, 1:] &= (weights.cumsum(-1) < wanted)[:, :-1] | (share >= 1.0)
    kept &= weights >= _column([p.min_p for p in params], scaled)
    return torch.zeros_like(kept).scatter_(1, order, kept)


# --- the choice --------------------------------------------------------------------------------


def choose_rows(scores: Tensor, rows: Sequence[Row]) -> list[int]:
    """The chosen id of each row; `scores` unprocessed, [R, V]; ties go to the lowest id."""
    found: list[int] = []
    for part in range(0, len(rows), ROWS_AT_ONCE):
        stop = part + ROWS_AT_ONCE
        found += keyed(scores[part:stop], rows[part:stop]).argmax(-1).tolist()
    return found


def rank_rows(scores: Tensor, rows: Sequence[Row], k: int) -> list[tuple[int, ...]]:
    """The k best ids of each row under score plus noise, best first."""
    values, ids = keyed(scores, rows).sort(dim=-1, descending=True, stable=True)
    pairs = zip(values[:, :k].tolist(), ids[:, :k].tolist(), strict=True)
    return [
        tuple(i for value, i in zip(row, order, strict=True) if value > float("-inf"))
        for row, order in pairs
    ]


def logprob_rows(scores: Tensor, chosen: Sequence[int], top_n: int) -> list[TokenLogprobs]:
    """Log-softmax of unprocessed scores: of the chosen ids, and the best `top_n`."""
    normal = scores.double().log_softmax(-1)
    own = normal.gather(1, torch.tensor(chosen, device=scores.device).unsqueeze(-1))
    values, ids = normal.sort(dim=-1, descending=True, stable=True)
    best = zip(ids[:, :top_n].tolist(), values[:, :top_n].tolist(), strict=True)
    return [
        TokenLogprobs(value, tuple(zip(order, top, strict=True)))
        for value, (order, top) in zip(own.squeeze(-1).tolist(), best, strict=True)
    ]


# --- spans -------------------------------------------------------------------------------------


def pick_spans(spans: Sequence[Span], slots: Sequence[Slot], scores: Tensor) -> list[Picked]:
    """What each span asked for. `slots[i]` still ends at the base of `spans[i]`.

    `scores`: unprocessed, of all spans' rows from `first` on, [rows, vocabulary_size].
    """
    rows = [list(_rows(span, slot)) for span, slot in zip(spans, slots, strict=True)]
    chosen = choose_rows(scores, [row for part in rows for row in part])
    found, at = [], 0
    for span, part in zip(spans, rows, strict=True):
        stop = at + len(part)
        found.append(_picked(span, part, tuple(chosen[at:stop]), scores[at:stop]))
        at = stop
    return found


def _rows(span: Span, slot: Slot) -> Iterator[Row]:
    masks = masks_of(span, slot)
    for row in range(span.first, len(span.tokens)):
        path = path_to(span, row)
        tally = None
        if slot.sampling.params.penalised:
            tally = Tally(slot.sampling.prompt_length)
            tally.extend(slot.tokens)
            tally.extend(path)
        yield Row(slot.sampling, span.base + len(path), tally, masks[row - span.first])


def _picked(span: Span, rows: Sequence[Row], ids: tuple[int, ...], scores: Tensor) -> Picked:
    if span.want == "logprobs":
        return Picked(ids, logprobs=tuple(logprob_rows(scores, ids, span.top_n)))
    if span.want == "children":
        return Picked(ids, children=tuple(rank_rows(scores, rows, span.top_n)))
    if span.want == "scores":
        return Picked(ids, scores=scores.float().cpu().numpy())
    return Picked(ids)
