"""Philox4x32-10 against the Random123 known answers, an integer oracle, and Triton's own generator."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from engine.philox import gumbel, philox, random_words, random_words_at

MASK = 0xFFFFFFFF

# Random123's kat_vectors, philox 4x32 10: counter, key, answer.
KNOWN = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


def oracle(counter: list[int], key: list[int]) -> list[int]:
    """Philox4x32-10 in Python's integers."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        a, b = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        c0, c1, c2, c3 = (b >> 32) ^ c1 ^ k0, b & MASK, (a >> 32) ^ c3 ^ k1, a & MASK
        k0, k1 = (k0 + 0x9E3779B9) & MASK, (k1 + 0xBB67AE85) & MASK
    return [c0, c1, c2, c3]


def word(seed: int, token_index: int, vocab_id: int) -> int:
    return oracle([vocab_id // 4, token_index, 0, 0], [seed & MASK, seed >> 32])[vocab_id % 4]


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN)
def test_known_answers(counter: str, key: str, answer: str) -> None:
    c0, c1, c2, c3 = (torch.tensor([int(part, 16)]) for part in counter.split())
    k0, k1 = (torch.tensor([int(part, 16)]) for part in key.split())
    assert [f"{int(out):08x}" for out in philox((c0, c1, c2, c3), (k0, k1))] == answer.split()


SEEDS = [0, 1, 0xFFFFFFFF, 0x1_0000_0000, 2**63 - 1]


def test_words_of_a_vocabulary_match_the_oracle() -> None:
    indexes = [0, 1, 7, 1000, 16383]
    words = random_words(torch.tensor(SEEDS), torch.tensor(indexes), 1031)  # no multiple of 4
    assert words.shape == (5, 1031)
    for row, (seed, index) in enumerate(zip(SEEDS, indexes, strict=True)):
        for vocab_id in (0, 1, 2, 3, 4, 511, 1029, 1030):
            assert int(words[row, vocab_id]) == word(seed, index, vocab_id)


@pytest.mark.parametrize("num_ids", [3, 900])  # few ids draw their own words, many share them
def test_words_at_ids_are_the_words_of_the_vocabulary(num_ids: int) -> None:
    seeds, indexes = torch.tensor(SEEDS), torch.arange(5)
    whole = random_words(seeds, indexes, 1031)
    ids = torch.stack([torch.randperm(1031)[:num_ids] for _ in SEEDS])
    assert torch.equal(random_words_at(seeds, indexes, ids, 1031), whole.gather(1, ids))


def test_every_part_of_the_counter_matters() -> None:
    words = {word(seed, index, vocab_id) for seed in SEEDS for index in range(5) for vocab_id in range(40)}
    assert len(words) == len(SEEDS) * 5 * 40


def test_gumbel_is_finite_at_both_ends_and_has_the_right_moments() -> None:
    ends = gumbel(torch.tensor([0, MASK]))
    assert ends.isfinite().all() and ends[0] < -3 and ends[1] > 22
    noise = gumbel(random_words(torch.tensor([9]), torch.tensor([0]), 1 << 18))
    assert noise.mean().item() == pytest.approx(0.57722, abs=0.015)
    assert noise.var().item() == pytest.approx(torch.pi**2 / 6, abs=0.03)


TRITON_PROGRAM = """
import torch, triton, triton.language as tl

@triton.jit
def draw(out_ptr, seed, index, BLOCK: tl.constexpr):
    quads = tl.arange(0, BLOCK)
    w0, w1, w2, w3 = tl.randint4x(seed, quads.to(tl.int64) | (index.to(tl.int64) << 32))
    tl.store(out_ptr + quads * 4 + 0, w0)
    tl.store(out_ptr + quads * 4 + 1, w1)
    tl.store(out_ptr + quads * 4 + 2, w2)
    tl.store(out_ptr + quads * 4 + 3, w3)

for seed in (7, 2**40 + 12345, 2**63 - 1):
    out = torch.zeros(64, dtype=torch.int32)
    draw[(1,)](out, seed, 33, BLOCK=16)
    print(*(out.long() & 0xFFFFFFFF).tolist())
"""


def test_triton_draws_the_same_words(tmp_path: Path) -> None:
    program = tmp_path / "draw.py"  # triton reads a kernel's source from its file
    program.write_text(TRITON_PROGRAM)
    run = subprocess.run(
        [sys.executable, str(program)],
        env=os.environ | {"TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    lines = [[int(part) for part in line.split()] for line in run.stdout.splitlines()]
    seeds = torch.tensor([7, 2**40 + 12345, 2**63 - 1])
    assert lines == random_words(seeds, torch.full((3,), 33), 64).tolist()
