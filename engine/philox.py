"""Philox4x32-10: random numbers that are a function of (seed, token index, vocabulary id) and of nothing else.

No generator state, so whoever continues a sequence draws the same numbers. For one seed and counter the four words
are those of Triton's `tl.randint4x(seed, offset)` with offset = vocab_id // 4 + (token_index << 32): key = (low, high
32 bits of the seed), counter = (vocab_id // 4, token_index, 0, 0); word `vocab_id % 4` belongs to the id.
Words are kept in int64 tensors as 0..2**32-1. Knows nothing of logits or requests.
"""

import torch
from torch import Tensor

_ROUND_A = 0xD2511F53
_ROUND_B = 0xCD9E8D57
_KEY_A = 0x9E3779B9
_KEY_B = 0xBB67AE85
_MASK = 0xFFFFFFFF
_NUM_ROUNDS = 10

Words = tuple[Tensor, Tensor, Tensor, Tensor]


def philox(counter: Words, key: tuple[Tensor, Tensor]) -> Words:
    """The four output words of each counter. All int64 holding 32-bit values, broadcast against each other."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_NUM_ROUNDS):
        # The product wraps to a negative int64; shift and mask still give its upper and lower 32 bits.
        product_a = c0 * _ROUND_A
        product_b = c2 * _ROUND_B
        c0 = ((product_b >> 32) & _MASK) ^ c1 ^ k0
        c2 = ((product_a >> 32) & _MASK) ^ c3 ^ k1
        c1 = product_b & _MASK
        c3 = product_a & _MASK
        k0 = (k0 + _KEY_A) & _MASK
        k1 = (k1 + _KEY_B) & _MASK
    return c0, c1, c2, c3


def random_words(seeds: Tensor, token_indexes: Tensor, vocab_size: int) -> Tensor:
    """The word of every vocabulary id.

    seeds, token_indexes: [R] int64. Returns [R, vocab_size] int64 in 0..2**32-1.
    """
    quads = torch.arange(-(-vocab_size // 4), device=seeds.device).unsqueeze(0)
    words = _words(seeds, token_indexes, quads)  # 4 of [R, ceil(vocab_size / 4)]
    return torch.stack(words, dim=-1).flatten(start_dim=1)[:, :vocab_size]


def random_words_at(seeds: Tensor, token_indexes: Tensor, vocab_ids: Tensor, vocab_size: int) -> Tensor:
    """The words of some vocabulary ids, [R, K] int64. seeds, token_indexes: [R] int64; vocab_ids: [R, K] int64."""
    if 4 * vocab_ids.shape[1] > vocab_size:  # four ids share their words, so all of them cost less than these
        return random_words(seeds, token_indexes, vocab_size).gather(-1, vocab_ids)
    words = torch.stack(_words(seeds, token_indexes, vocab_ids // 4), dim=-1)  # [R, K, 4]
    return words.gather(-1, (vocab_ids % 4).unsqueeze(-1)).squeeze(-1)


def gumbel(words: Tensor) -> Tensor:
    """Standard Gumbel noise of 32-bit words, float64: -log(-log(u)), u = (word + 1/2) / 2**32, always finite."""
    uniform = (words.double() + 0.5) * 2.0**-32
    return -torch.log(-torch.log(uniform))


def _words(seeds: Tensor, token_indexes: Tensor, quads: Tensor) -> Words:
    """Words of counter (quads, token_index, 0, 0) under key seed. seeds, token_indexes: [R]; quads: [1 or R, Q]."""
    seeds = seeds.unsqueeze(1)
    zero = torch.zeros_like(seeds)
    return philox((quads, token_indexes.unsqueeze(1) & _MASK, zero, zero), (seeds & _MASK, (seeds >> 32) & _MASK))
