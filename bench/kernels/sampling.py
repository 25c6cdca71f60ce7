"""Cases of kernels/gpu/logit_edit.py and sampling.py: one decode step's batch on the vocabularies of SmolLM2, Llama 3
and Qwen2.5."""

from typing import Any

import torch
from torch import Tensor

from bench.kernels.case import Expected, Inputs, KernelCase
from engine.gpu_sampler import sampling_inputs
from engine.penalties import apply_penalties
from engine.sampler import SamplingRow, sample
from kernels.gpu import logit_edit, sampling
from kernels.gpu.sampling_inputs import SamplingInputs
from messages.request import SamplingParams

_GREEDY: dict[str, Any] = {}
_DRAWN: dict[str, Any] = {"do_sample": True}
_CUT = [{"do_sample": True, **limit} for limit in ({"top_p": 0.9}, {"top_k": 50}, {"min_p": 0.05})]
_EDITED = {
    "do_sample": True,
    "temperature": 0.7,
    "frequency_penalty": 0.3,
    "repetition_penalty": 1.1,
    "logit_bias": {3: 2.0},
    "min_new_tokens": 999,
    "max_new_tokens": 999,
}


def cases() -> list[KernelCase]:
    """The edits; then the choice for greedy, drawn and cut rows."""
    shapes = ((16, 49152), (64, 128256), (16, 151936))
    kinds = {"greedy": [_GREEDY], "drawn": [_DRAWN], "greedy, drawn and cut": [_GREEDY, _DRAWN, *_CUT]}
    return [
        case
        for rows, vocab_size in shapes
        for case in (_edit(rows, vocab_size), *(_choose(rows, vocab_size, name, kinds[name]) for name in kinds))
    ]


def small_cases() -> list[KernelCase]:
    """For the interpreter."""
    return [_edit(2, 1031), _choose(5, 1031, "greedy, drawn and cut", [_GREEDY, _DRAWN, *_CUT])]


def _rows(count: int, kinds: list[dict[str, Any]]) -> list[SamplingRow]:
    output = [5, 6, 7, 5] * 64
    return [SamplingRow(SamplingParams(seed=row, **kinds[row % len(kinds)]), [], output, (2,)) for row in range(count)]


def _edit(num_rows: int, vocab_size: int) -> KernelCase:
    rows = _rows(num_rows, [_EDITED])

    def make(inputs: Inputs) -> tuple[Any, ...]:
        logits = inputs.randn(num_rows, vocab_size, dtype=torch.float32, scale=3.0)
        return logits, sampling_inputs(rows, vocab_size, inputs.device)

    def twin(logits: Tensor, _: SamplingInputs) -> Tensor:
        edited = logits.cpu().clone()
        apply_penalties(edited, rows)
        return edited / torch.tensor([[row.params.temperature] for row in rows])

    return KernelCase(
        family="sampling",
        name=f"edit {num_rows}x{vocab_size}",
        make=make,
        launch=logit_edit.edit,
        twin=twin,
        tolerance=0,
        traffic_bytes=8 * num_rows * vocab_size,
        expected=Expected(max_registers=64, opcodes_everywhere=("LDG.E.128", "STG.E.128")),
    )


def _choose(num_rows: int, vocab_size: int, name: str, kinds: list[dict[str, Any]]) -> KernelCase:
    rows = _rows(num_rows, kinds)

    def make(inputs: Inputs) -> tuple[Any, ...]:
        scaled = inputs.randn(num_rows, vocab_size, dtype=torch.float32, scale=3.0)
        return scaled, sampling_inputs(rows, vocab_size, inputs.device)

    def twin(scaled: Tensor, _: SamplingInputs) -> Tensor:
        chosen = [[one.token_id, one.logprob] for one in sample(scaled.cpu(), rows)]
        return torch.tensor(chosen, dtype=torch.float64)

    return KernelCase(
        family="sampling",
        name=f"{name} {num_rows}x{vocab_size}",
        make=make,
        launch=sampling.choose,
        twin=twin,
        tolerance=2e-6,  # below the next id of the largest vocabulary
        traffic_bytes=4 * num_rows * vocab_size,
        # A contracted product and sum would round once where the twin rounds twice.
        expected=Expected(max_registers=128, opcodes_everywhere=("LDG.E.128",), forbidden=("FFMA",)),
    )
