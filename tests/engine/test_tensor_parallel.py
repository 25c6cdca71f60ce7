"""A model that is cut into ranks says what the whole one says. Ranks are threads here, over Gloo."""

import math
import queue
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from msgspec import structs
from torch import Tensor
from torch._C._distributed_c10d import HashStore

from engine.checkpoint import Checkpoint
from engine.kv_pool import KVLayout, KVPool
from engine.model_config import ModelConfig
from engine.model_runner import ModelRunner, PrefillChunk
from engine.prefill_rows import PrefillRows
from engine.process_group import GroupCommunicator
from engine.step import PrefillStep, Step
from engine.tensor_parallel import WHOLE, Communicator, ModelSlice, Shard, SingleRank
from engine.weights import load_model
from errors import ConfigError
from tests.tiny_models import CUTTABLE, greedy, prefill_all, prompts, sequences_for, tiny_model, tiny_runner

CPU = torch.device("cpu")
NUM_TOKENS = 8
PROMPTS = prompts(count=4, longest=45)
DECODERS = [name for name in CUTTABLE if "reward" not in name]


def runner_of(path: Path, communicator: Communicator) -> ModelRunner:
    model = load_model(path, None, CPU, communicator=communicator)
    config = model.config
    layout = KVLayout(config.num_layers, model.num_kv_heads, 16, config.head_dim, model.dtype)
    return ModelRunner(model, KVPool.allocate(layout, 64))


@contextmanager
def cut(path: Path, num_ranks: int) -> Iterator[ModelRunner]:
    """Rank 0's runner; every other rank's is on a thread of its own and is told each step."""
    store = HashStore()
    steps: list[queue.SimpleQueue[Step | None]] = [queue.SimpleQueue() for _ in range(1, num_ranks)]

    def join(rank: int) -> ModelRunner:
        return runner_of(path, GroupCommunicator(Shard(rank, num_ranks), store, CPU, timeout_s=20))

    def follow(rank: int) -> None:
        runner = join(rank)
        while (step := steps[rank - 1].get()) is not None:
            runner.compute(step)

    @contextmanager
    def lead(step: Step) -> Iterator[None]:
        for inbox in steps:
            inbox.put(step)
        yield

    with ThreadPoolExecutor(num_ranks) as threads:
        followers = [threads.submit(follow, rank) for rank in range(1, num_ranks)]
        try:
            whole = join(0)
            yield ModelRunner(whole.model, whole.pool, lead)
        finally:
            for inbox in steps:
                inbox.put(None)
        for follower in followers:
            follower.result()


def logits_of(runner: ModelRunner) -> Tensor:
    """[num_prompts, vocab], of the tokens after the prompts"""
    sequences = sequences_for(runner, PROMPTS, 1)
    rows = PrefillRows.of([PrefillChunk(one, one.num_tokens) for one in sequences], 16)
    step = PrefillStep(rows, list(range(len(sequences))))
    with torch.inference_mode(), runner._lead(step):
        return runner.compute(step)


@pytest.mark.parametrize("num_ranks", [2, 4])
@pytest.mark.parametrize("name", DECODERS)
def test_greedy_tokens_are_those_of_the_whole_model(name: str, num_ranks: int) -> None:
    path = tiny_model(name).path
    whole = tiny_runner(path, num_blocks=64)
    with cut(path, num_ranks) as runner:
        assert runner.pool.layout.num_kv_heads == max(1, whole.pool.layout.num_kv_heads // num_ranks)
        assert greedy(runner, PROMPTS, NUM_TOKENS, token_budget=33) == greedy(whole, PROMPTS, NUM_TOKENS)
        torch.testing.assert_close(logits_of(runner), logits_of(whole), atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("num_ranks", [2, 4])
def test_scores_are_those_of_the_whole_model(num_ranks: int) -> None:
    path = tiny_model("qwen2_reward_even").path
    whole = tiny_runner(path, num_blocks=64)
    with cut(path, num_ranks) as runner:
        scores = [[each.score(one) for one in sequences_for(each, PROMPTS, 1)] for each in (runner, whole)]
    assert scores[0] == pytest.approx(scores[1], abs=1e-3)


def test_a_prompts_logprobs_are_those_of_the_whole_model() -> None:
    def listed(runner: ModelRunner) -> list[float]:
        (sequence,) = sequences_for(runner, PROMPTS[1:2], 1)
        sequence.sampling = structs.replace(sequence.sampling, num_prompt_logprobs=0)
        prefill_all(runner, [sequence], token_budget=33)
        return [one.logprob for one in sequence.prompt_logprobs]

    path = tiny_model("llama_even").path
    with cut(path, 2) as runner:
        assert listed(runner) == pytest.approx(listed(tiny_runner(path, num_blocks=64)), abs=1e-3)


class FarRank(SingleRank):
    """The communicator of a rank that is loaded and never run."""

    def __init__(self, shard: Shard) -> None:
        self.shard = shard


@pytest.mark.parametrize("name", ["llama_even", "internlm2_even"])
def test_the_ranks_read_every_matrix_once_together(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    read: dict[str, int] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    take = Checkpoint.take

    def counted(
        self: Checkpoint,
        name: str,
        shape: tuple[int, ...],
        rows: range | None = None,
        columns: range | None = None,
    ) -> Tensor:
        tensor = take(self, name, shape, rows, columns)
        read[name] = read.get(name, 0) + tensor.numel()
        shapes[name] = shape
        return tensor

    monkeypatch.setattr(Checkpoint, "take", counted)
    for rank in range(2):
        load_model(tiny_model(name).path, None, CPU, communicator=FarRank(Shard(rank, 2)))
    for tensor, shape in shapes.items():
        is_cut = len(shape) == 2 and "embed" not in tensor
        # What is added to a row-parallel product, norms and the embedding are in both.
        is_cut = is_cut or tensor.endswith(("q_proj.bias", "k_proj.bias", "v_proj.bias", "wqkv.bias"))
        is_cut = is_cut or tensor.endswith(("gate_proj.bias", "up_proj.bias"))
        assert read[tensor] == math.prod(shape) * (1 if is_cut else 2), tensor


def test_ranks_without_a_row_of_the_vocabulary() -> None:
    config = replace(ModelConfig.from_dir(tiny_model("llama_even").path), vocab_size=5)
    slices = [ModelSlice.of(config, Shard(rank, 4)) for rank in range(4)]
    assert [(one.vocab.start, one.vocab.stop, one.vocab_rows) for one in slices] == [
        (0, 2, 2),
        (2, 4, 2),
        (4, 5, 2),
        (5, 5, 2),
    ]


@pytest.mark.parametrize(
    ("name", "num_ranks", "message"),
    [
        (
            "llama_even",
            3,
            "TENSOR_PARALLEL = 3: the model's attention heads, 8, do not divide by it; PDQ_.* may be 1, 2, 4",
        ),
        ("llama", 2, "TENSOR_PARALLEL = 2: the model's intermediate size, 101, do not divide by it"),
    ],
)
def test_what_cannot_be_cut_is_refused(name: str, num_ranks: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_model(tiny_model(name).path, None, CPU, communicator=FarRank(Shard(0, num_ranks)))


def test_experts_that_cannot_be_cut_are_refused() -> None:
    config = ModelConfig.from_dir(tiny_model("qwen2_moe_even").path)
    assert config.experts is not None
    odd = replace(config, experts=replace(config.experts, intermediate_size=37))
    with pytest.raises(ConfigError, match="the model's experts' intermediate size, 37, do not divide by it"):
        ModelSlice.of(odd, Shard(0, 2))


def test_key_value_heads_that_cannot_be_cut_are_refused() -> None:
    config = replace(
        ModelConfig.from_dir(tiny_model("llama").path), num_heads=12, num_kv_heads=6, intermediate_size=100
    )
    with pytest.raises(ConfigError, match="4: neither a divisor nor a multiple of the model's 6 key-value heads"):
        ModelSlice.of(config, Shard(0, 4))
    assert ModelSlice.of(config, WHOLE).kv_heads == range(6)
