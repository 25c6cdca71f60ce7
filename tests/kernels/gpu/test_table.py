"""The whole table: a model computed by our Triton kernels, under the interpreter, says what plain torch says."""

import pytest
import torch

from bench.kernels import interpreter
from engine.model_runner import ModelRunner
from engine.weights import load_model
from kernels.gpu.table import gpu_ops
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
