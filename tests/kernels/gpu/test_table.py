"""The whole table: a model computed by our Triton kernels, under the interpreter, says what plain torch says."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bench.kernels import interpreter
from engine.model_runner import ModelRunner
from engine.weights import load_model
from kernels.gpu.table import gpu_ops
from kernels.ops import plain_ops
from kernels.quantized_linear import Fp8Weight, scaled_linear
from tests.quantized_models import quantized_model
from tests.tiny_models import greedy, prompts, tiny_model, tiny_runner

NUM_TOKENS = 3
PROMPTS = prompts(count=2, longest=18)


@pytest.mark.parametrize("name", ["llama_biased", "mistral", "qwen3"])
def test_a_model_generates_the_same(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = tiny_runner(tiny_model(name).path)
    interpreter.install()
    monkeypatch.setattr("engine.weights.select_ops", lambda device, dtype: gpu_ops())
    model = load_model(tiny_model(name).path, torch.float32, torch.device("cpu"))
    runner = ModelRunner(model, plain.pool)
    # Tails of blocks are not cleaned for these kernels: what lies there must not matter.
    plain.pool.tensor.fill_(torch.nan)
    ours = greedy(runner, PROMPTS, NUM_TOKENS, token_budget=11)
    plain.pool.tensor.zero_()
    assert ours == greedy(plain, PROMPTS, NUM_TOKENS, token_budget=11)


@pytest.mark.parametrize("name", ["gptq_act_order", "fp8_block"])
def test_a_quantized_model_generates_the_same(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """4-bit weights as dequantized ones; float8 as the plain product of quantized activations."""
    path, short = quantized_model(name, tmp_path).path, [[token % 67 for token in prompt[:9]] for prompt in PROMPTS]
    plain = plain_ops(torch.device("cpu"), torch.float32)

    def linear(x: Tensor, weight: Any, bias: Tensor | None) -> Tensor:
        return scaled_linear(x, weight, bias) if isinstance(weight, Fp8Weight) else plain.linear(x, weight, bias)

    twin = replace(plain, linear=linear, takes_quantized=True) if name.startswith("fp8") else plain
    generated = []
    for ops in (twin, gpu_ops()):
        monkeypatch.setattr("engine.weights.select_ops", lambda device, dtype, ops=ops: ops)
        generated.append(greedy(tiny_runner(path, num_blocks=8), short, num_tokens=2))
    assert generated[0] == generated[1]
