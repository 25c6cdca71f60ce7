"""Cases of kernels/gpu/logits_bitmask.py: a whole batch under a grammar, and a few rows of one."""

from typing import Any

import torch
from torch import Tensor

from bench.kernels.case import Expected, Inputs, KernelCase
from kernels import logits_bitmask as twin
from kernels.gpu import logits_bitmask


def cases() -> list[KernelCase]:
    """Vocabularies of SmolLM2, Llama 3 and Qwen2.5."""
    return [_of(16, 49152, None), _of(64, 128256, None), _of(64, 151936, 8)]


def small_cases() -> list[KernelCase]:
    """For the interpreter."""
    return [_of(2, 1031, None), _of(3, 1031, 2)]


def _of(rows: int, vocab_size: int, num_masks: int | None) -> KernelCase:
    masked = rows if num_masks is None else num_masks
    words = -(-vocab_size // 32)

    def make(inputs: Inputs) -> tuple[Any, ...]:
        return (
            inputs.randn(rows, vocab_size, dtype=torch.float32),
            inputs.integers(-(2**31), 2**31, masked, words),
            None if num_masks is None else inputs.permutation(rows, masked),
        )

    def launch(logits: Tensor, bitmask: Tensor, which: Tensor | None) -> Tensor:
        logits_bitmask.logits_bitmask(logits, bitmask, which)
        return logits

    def plain(logits: Tensor, bitmask: Tensor, which: Tensor | None) -> Tensor:
        twin.logits_bitmask(logits, bitmask, which)
        return logits

    return KernelCase(
        family="logits_bitmask",
        name=f"{'all' if num_masks is None else masked} of {rows}x{vocab_size}",
        make=make,
        launch=launch,
        twin=plain,
        tolerance=0,
        traffic_bytes=masked * (4 * words + 2 * vocab_size),  # random bits: half of the logits are written
        expected=Expected(max_registers=64, forbidden=("LDG.E.U16",)),
    )
