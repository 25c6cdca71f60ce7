"""The demo model in float32 says, token for token, what transformers says. Fetches the model on first use."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer

from engine.model_files import resolve_model
from engine.model_runner import ModelRunner
from settings.model import ModelSettings
from tests.tiny_models import greedy, tiny_runner

pytestmark = pytest.mark.timeout(400)

NUM_TOKENS = 64
TEXTS = [
    "What is AI?",
    "The capital of France is",
    "def fibonacci(n):",
    "Once upon a time, in a village by the sea,",
    "Water boils at",
    "1, 2, 3, 4,",
    "Dear Sir or Madam,",
    "The three laws of thermodynamics are",
    "To bake bread you need",
    "In 1969",
    "A",
    "Photosynthesis is the process by which plants",
    "SELECT name, age FROM people WHERE",
    "Q: How many legs has a spider?\nA:",
    "The best thing about autumn is",
    "Im Jahre 1815 wurde",
    "My favourite book is one that I read when I was twelve years old, and it was about",
    "Here is a list of the planets of the solar system, from the sun outwards:\n1. Mercury\n2.",
    "Shakespeare wrote",
    "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n",
]


@pytest.fixture(scope="module")
def model_dir() -> Path:
    return resolve_model(ModelSettings(), lambda text: None)


@pytest.fixture(scope="module")
def tokenizer(model_dir: Path) -> Any:
    return Tokenizer.from_file(str(model_dir / "tokenizer.json"))


@pytest.fixture(scope="module")
def prompt_list(tokenizer: Any) -> list[list[int]]:
    return [tokenizer.encode(text, add_special_tokens=False).ids for text in TEXTS]


@pytest.fixture(scope="module")
def runner(model_dir: Path) -> ModelRunner:
    return tiny_runner(model_dir, dtype=torch.float32)


@pytest.fixture(scope="module")
def ours(runner: ModelRunner, prompt_list: list[list[int]]) -> list[list[int]]:
    return greedy(runner, prompt_list, NUM_TOKENS, token_budget=48)


def test_twenty_prompts_token_for_token(model_dir: Path, prompt_list: list[list[int]], ours: list[list[int]]) -> None:
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32).eval()
    model.generation_config.eos_token_id = None
    longest = max(map(len, prompt_list))
    padded = torch.tensor([[2] * (longest - len(prompt)) + prompt for prompt in prompt_list])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompt_list])
    out = model.generate(padded, attention_mask=mask, max_new_tokens=NUM_TOKENS, do_sample=False, pad_token_id=2)
    assert len(prompt_list) == 20
    assert ours == out[:, longest:].tolist()


def test_known_answers(tokenizer: Any, ours: list[list[int]]) -> None:
    wanted = " AI refers to machines that can perform tasks that typically require human intelligence"
    assert tokenizer.decode(ours[0]).startswith(wanted)
    assert tokenizer.decode(ours[-1], skip_special_tokens=False).startswith("The capital of France is Paris.<|im_end|>")


def test_the_converted_directory_serves(model_dir: Path, runner: ModelRunner) -> None:
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(model_dir)
    rendered = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True
    )
    assert rendered.endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")
    assert runner.eos_token_ids == (tokenizer.convert_tokens_to_ids("<|im_end|>"),) == (2,)
    assert runner.model.config.max_position_embeddings == 8192


def test_bfloat16_gives_the_known_answer_too(model_dir: Path, tokenizer: Any, prompt_list: list[list[int]]) -> None:
    tokens = greedy(tiny_runner(model_dir), [prompt_list[-1]], 8)[0]
    assert tokenizer.decode(tokens, skip_special_tokens=True).startswith("The capital of France is Paris")
