"""The choice of the next token on a GPU: the token that `engine.sampler.sample` chooses. No sort, no host decision.

From the logits that count, which `logit_edit.py` makes, it takes the best score, logit + Gumbel noise, of the ids that
top_p, top_k and min_p keep. What they keep is a beginning of the ids in order of falling logit, equals by rising
id. So the best score of all is tried first: the ids before it are counted and weighed, which says whether it is kept;
if not, the best score among the ids before it is tried, and so on. That is one look at the row per trial, of which a
row needs 1 + log(1 / kept probability) on average (a trial's place among the ids before the last one is uniform in
probability), seldom more than two. The idea is FlashInfer's rejection sampling; with fixed noise it has one answer.

One row is split over several programs for the scores and the first trial; later trials are one program's. Splits depend
on the vocabulary's size alone, so that few kernels are compiled, and no result depends on them: sums are of integers.
Arithmetic that decides is float32 without contraction (`enable_fp_fusion=False`), like the twin's on the CPU
(`kernels/softmax_mass.py`); the noise is float64, whose logarithms are most of the work: 60 operations per drawn id.

Bound by memory on data-center GPUs (4 bytes read, 12 more for rows that are cut), by float64 on others.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels import softmax_mass
from kernels.gpu.sampling_inputs import SamplingInputs

_TILE = 1024  # ids per turn of a program's loop
_FINISH_TILE = 4096
_MAX_SPLITS = 32
_TILES_PER_SPLIT = 3  # at least, so that a program's start is paid for

_LOG2_E = tl.constexpr(softmax_mass.LOG2_E)
_LOWEST_POWER = tl.constexpr(softmax_mass.LOWEST_POWER)
_FRACTION_BITS = tl.constexpr(softmax_mass.FRACTION_BITS)
_C1, _C2, _C3, _C4, _C5 = (tl.constexpr(coefficient) for coefficient in softmax_mass.POWER)
_NO_ID = tl.constexpr(2**31 - 1)
_NO_LIMIT = tl.constexpr(2**63 - 1)


@triton.jit
def _gumbel(seed, token_index, first_id, TILE: tl.constexpr):
    """`philox.gumbel` of the ids first_id ... first_id + TILE - 1, float64; first_id is a multiple of 4."""
    quads = (first_id // 4 + tl.arange(0, TILE // 4)).to(tl.int64)
    words0, words1, words2, words3 = tl.randint4x(seed, quads | (token_index << 32))
    words = tl.interleave(tl.interleave(words0, words2), tl.interleave(words1, words3))
    uniform = (words.to(tl.uint32).to(tl.float64) + 0.5) * 2.3283064365386963e-10  # 2**-32
    return -tl.log(-tl.log(uniform))


@triton.jit
def _best(scores, ids):
    """The largest score and the lowest id that has it."""
    score = tl.max(scores, axis=0)
    return score, tl.min(tl.where(scores == score, ids, _NO_ID), axis=0)


@triton.jit
def _score_kernel(
    scaled_ptr,
    scores_ptr,
    seeds_ptr,
    token_indexes_ptr,
    draws_ptr,
    largest_ptr,
    best_ptr,
    best_ids_ptr,
    vocab_size,
    tiles_per_split,
    STORES: tl.constexpr,
    TILE: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    split = tl.program_id(1)
    seed = tl.load(seeds_ptr + row)
    token_index = tl.load(token_indexes_ptr + row)
    draws = tl.load(draws_ptr + row)
    lanes = tl.arange(0, TILE)
    largest = tl.full([TILE], float("-inf"), tl.float32)
    best = tl.full([TILE], float("-inf"), tl.float64)
    best_ids = tl.full([TILE], _NO_ID, tl.int32)
    end = tl.minimum((split + 1) * tiles_per_split, tl.cdiv(vocab_size, TILE))
    for tile in range(split * tiles_per_split, end):
        ids = tile * TILE + lanes
        inside = ids < vocab_size
        x = tl.load(scaled_ptr + row * vocab_size + ids, mask=inside, other=float("-inf"))
        x = tl.where(x == x, x, float("inf"))  # what has a NaN has no probabilities, as with +inf
        largest = tl.maximum(largest, x)
        scores = x.to(tl.float64)
        if draws != 0:
            scores += _gumbel(seed, token_index, tile * TILE, TILE)
        if STORES:
            tl.store(scores_ptr + row * vocab_size + ids, scores, mask=inside)
        best_ids = tl.where(scores > best, ids, best_ids)
        best = tl.where(scores > best, scores, best)
    score, best_id = _best(best, best_ids)
    place = row * tl.num_programs(1) + split
    tl.store(largest_ptr + place, tl.max(largest, axis=0))
    tl.store(best_ptr + place, score)
    tl.store(best_ids_ptr + place, best_id)


@triton.jit
def _mass(below):
    """`softmax_mass` of logit - largest."""
    power = tl.maximum(below * _LOG2_E, _LOWEST_POWER)
    whole = power.to(tl.int32)
    fraction = power - whole.to(tl.float32)
    value = fraction * _C5 + _C4
    value = value * fraction + _C3
    value = value * fraction + _C2
    value = value * fraction + _C1
    value = value * fraction + 1.0
    scale = ((whole + (127 + _FRACTION_BITS)) << 23).to(tl.float32, bitcast=True)
    return (value * scale).to(tl.int64)


@triton.jit
def _weigh(
    x_row, scores_row, largest, tried, tried_id, begin, end, vocab_size, HAS_SCORES: tl.constexpr, TILE: tl.constexpr
):
    """The tiles' whole mass; and of the ids before the tried one: count, mass, best score and its id."""
    lanes = tl.arange(0, TILE)
    total = tl.zeros([TILE], tl.int64)
    mass = tl.zeros([TILE], tl.int64)
    count = tl.zeros([TILE], tl.int32)
    best = tl.full([TILE], float("-inf"), tl.float64)
    best_ids = tl.full([TILE], _NO_ID, tl.int32)
    for tile in range(begin, end):
        ids = tile * TILE + lanes
        x = tl.load(x_row + ids, mask=ids < vocab_size, other=float("-inf"))
        own = _mass(x - largest)
        total += own
        if HAS_SCORES:
            before = (x > tried) | ((x == tried) & (ids < tried_id))
            mass += tl.where(before, own, 0)
            count += before.to(tl.int32)
            scores = tl.load(scores_row + ids, mask=before, other=float("-inf"))
            best_ids = tl.where(scores > best, ids, best_ids)
            best = tl.where(scores > best, scores, best)
    score, best_id = _best(best, best_ids)
    return tl.sum(total, axis=0), tl.sum(count, axis=0), tl.sum(mass, axis=0), score, best_id


@triton.jit
def _first_try(largest_ptr, best_ptr, best_ids_ptr, row, SPLITS: tl.constexpr):
    """The row's largest logit and the id of its best score."""
    places = row * SPLITS + tl.arange(0, SPLITS)
    _, best_id = _best(tl.load(best_ptr + places), tl.load(best_ids_ptr + places))
    return tl.max(tl.load(largest_ptr + places), axis=0), best_id


@triton.jit
def _weigh_kernel(
    scaled_ptr,
    scores_ptr,
    largest_ptr,
    best_ptr,
    best_ids_ptr,
    totals_ptr,
    counts_ptr,
    masses_ptr,
    next_best_ptr,
    next_ids_ptr,
    vocab_size,
    tiles_per_split,
    SPLITS: tl.constexpr,
    HAS_SCORES: tl.constexpr,
    TILE: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    split = tl.program_id(1)
    largest, tried_id = _first_try(largest_ptr, best_ptr, best_ids_ptr, row, SPLITS)
    if tl.abs(largest) < float("inf"):
        x_row = scaled_ptr + row * vocab_size
        tried = tl.load(x_row + tried_id)
        begin = split * tiles_per_split
        end = tl.minimum(begin + tiles_per_split, tl.cdiv(vocab_size, TILE))
        scores_row = scores_ptr + row * vocab_size
        total, count, mass, score, best_id = _weigh(
            x_row, scores_row, largest, tried, tried_id, begin, end, vocab_size, HAS_SCORES, TILE
        )
        place = row * SPLITS + split
        tl.store(totals_ptr + place, total)
        tl.store(counts_ptr + place, count)
        tl.store(masses_ptr + place, mass)
        tl.store(next_best_ptr + place, score)
        tl.store(next_ids_ptr + place, best_id)


@triton.jit
def _finish_kernel(
    scaled_ptr,
    scores_ptr,
    top_p_ptr,
    lowest_ptr,
    top_k_ptr,
    largest_ptr,
    best_ptr,
    best_ids_ptr,
    totals_ptr,
    counts_ptr,
    masses_ptr,
    next_best_ptr,
    next_ids_ptr,
    out_ptr,
    vocab_size,
    SPLITS: tl.constexpr,
    HAS_SCORES: tl.constexpr,
    TILE: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    largest, tried_id = _first_try(largest_ptr, best_ptr, best_ids_ptr, row, SPLITS)
    if tl.abs(largest) < float("inf"):
        x_row = scaled_ptr + row * vocab_size
        tried = tl.load(x_row + tried_id)
        places = row * SPLITS + tl.arange(0, SPLITS)
        total = tl.sum(tl.load(totals_ptr + places), axis=0)
        if HAS_SCORES:
            count = tl.sum(tl.load(counts_ptr + places), axis=0)
            mass = tl.sum(tl.load(masses_ptr + places), axis=0)
            _, best_id = _best(tl.load(next_best_ptr + places), tl.load(next_ids_ptr + places))
            top_p = tl.load(top_p_ptr + row)
            limit = tl.where(top_p < 1.0, (total.to(tl.float64) * top_p).to(tl.int64), _NO_LIMIT)
            top_k = tl.load(top_k_ptr + row)
            lowest = largest + tl.load(lowest_ptr + row)
            # The first of all ids is kept whatever the limits: a loop on a GPU must end.
            while (count > 0) & ((count >= top_k) | (mass > limit) | (tried < lowest)):
                tried_id = best_id
                tried = tl.load(x_row + tried_id)
                _, count, mass, _, best_id = _weigh(
                    x_row,
                    scores_ptr + row * vocab_size,
                    largest,
                    tried,
                    tried_id,
                    0,
                    tl.cdiv(vocab_size, TILE),
                    vocab_size,
                    True,
                    TILE,
                )
        share = total.to(tl.float64) * 9.094947017729282e-13  # 2**-40
        tl.store(out_ptr + row * 2, tried_id.to(tl.float64))
        tl.store(out_ptr + row * 2 + 1, (tried - largest).to(tl.float64) - tl.log(share))
    else:
        tl.store(out_ptr + row * 2, -1.0)
        tl.store(out_ptr + row * 2 + 1, float("-inf"))


def choose(scaled: Tensor, inputs: SamplingInputs, tile: int = _TILE, finish_tile: int = _FINISH_TILE) -> Tensor:
    """[B, 2] float64: token id and logprob; -1 and -inf where the row has a NaN or +inf or nothing finite.

    scaled: of `logit_edit.edit`. The tiles (powers of 2) are for tests.
    """
    num_rows, vocab_size = scaled.shape
    device = scaled.device
    out = torch.empty((num_rows, 2), dtype=torch.float64, device=device)
    if not num_rows:
        return out
    splits, tiles_per_split = _shares(triton.cdiv(vocab_size, tile))
    shape = (num_rows, splits)
    scores = torch.empty((num_rows, vocab_size) if inputs.cuts else (1,), dtype=torch.float64, device=device)
    best, next_best = (torch.empty(shape, dtype=torch.float64, device=device) for _ in range(2))
    totals, masses = (torch.empty(shape, dtype=torch.int64, device=device) for _ in range(2))
    best_ids, next_ids, counts = (torch.empty(shape, dtype=torch.int32, device=device) for _ in range(3))
    largest = torch.empty(shape, dtype=torch.float32, device=device)
    _score_kernel[shape](
        scaled,
        scores,
        inputs.seeds,
        inputs.token_indexes,
        inputs.draws,
        largest,
        best,
        best_ids,
        vocab_size,
        tiles_per_split,
        STORES=inputs.cuts,
        TILE=tile,
        num_warps=4,
        enable_fp_fusion=False,
    )
    first = (largest, best, best_ids)
    second = (totals, counts, masses, next_best, next_ids)
    _weigh_kernel[shape](
        scaled,
        scores,
        *first,
        *second,
        vocab_size,
        tiles_per_split,
        SPLITS=splits,
        HAS_SCORES=inputs.cuts,
        TILE=tile,
        num_warps=4,
        enable_fp_fusion=False,
    )
    _finish_kernel[(num_rows,)](
        scaled,
        scores,
        inputs.top_p,
        inputs.lowest,
        inputs.top_k,
        *first,
        *second,
        out,
        vocab_size,
        SPLITS=splits,
        HAS_SCORES=inputs.cuts,
        TILE=finish_tile,
        num_warps=16,
        enable_fp_fusion=False,
    )
    return out


def _shares(num_tiles: int) -> tuple[int, int]:
    """How many programs a row is split over, a power of 2, and the tiles of each."""
    splits = 1 << (min(_MAX_SPLITS, max(1, num_tiles // _TILES_PER_SPLIT)).bit_length() - 1)
    return splits, -(-num_tiles // splits)
