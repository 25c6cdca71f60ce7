"""Greedy tokens are those of transformers, for every family, however the work is cut and batched."""

import functools

import pytest
import torch
from torch import Tensor

from engine.model_runner import ModelRunner, PrefillChunk
from engine.prefill_rows import PrefillRows
from engine.step import PrefillStep
from kernels import cpu_build
from tests.tiny_models import (
    DECODERS,
    greedy,
    new_sequence,
    prefill_all,
    prompts,
    sequences_for,
    sharded,
    tiny_model,
    tiny_runner,
    transformers_greedy,
    transformers_logprobs,
)

NUM_TOKENS = 24
UNLIKE_LLAMA = ["gemma2", "gemma3", "phi4", "gpt_neox", "gpt2", "qwen2_moe"]
PROMPTS = prompts(count=5, longest=45)  # across block borders and, with 24 more, far across every sliding window


@functools.cache
def expected(name: str) -> list[list[int]]:
    path = tiny_model(name).oracle_path
    return [transformers_greedy(path, prompt, NUM_TOKENS) for prompt in PROMPTS]


@functools.cache
def runner_of(name: str) -> ModelRunner:
    return tiny_runner(tiny_model(name).path)


@pytest.mark.parametrize("name", DECODERS)
def test_every_family_generates_what_transformers_does(name: str) -> None:
    tokens = greedy(runner_of(name), PROMPTS, NUM_TOKENS)
    assert tokens == expected(name)
    assert all(len(set(row)) > 3 for row in tokens), "a degenerate model proves nothing"


@pytest.mark.parametrize("name", ["llama", "mistral", "qwen2_windowed", "internlm2", *UNLIKE_LLAMA])
@pytest.mark.parametrize("token_budget", [1, 7, 16, 33])
def test_chunking_changes_nothing(name: str, token_budget: int) -> None:
    assert greedy(runner_of(name), PROMPTS, NUM_TOKENS, token_budget) == expected(name)


@pytest.mark.parametrize("name", ["llama", "mistral", "qwen3", *UNLIKE_LLAMA])
def test_batch_composition_changes_nothing(name: str) -> None:
    alone = [greedy(runner_of(name), [prompt], NUM_TOKENS)[0] for prompt in PROMPTS]
    assert alone == expected(name)
    backwards = greedy(runner_of(name), PROMPTS[::-1], NUM_TOKENS)
    assert backwards[::-1] == expected(name)


def test_sequences_may_join_and_leave_between_steps() -> None:
    runner = runner_of("llama")
    sequences = sequences_for(runner, PROMPTS, NUM_TOKENS)
    running = []
    steps = 0
    while any(one.num_output_tokens < NUM_TOKENS for one in sequences):
        if steps % 3 == 0 and steps // 3 < len(sequences):
            prefill_all(runner, [sequences[steps // 3]], token_budget=512)
            running.append(sequences[steps // 3])
        running = [one for one in running if one.num_output_tokens < NUM_TOKENS]
        for sequence, sampled in zip(running, runner.decode(running), strict=True):
            sequence.token_ids.append(sampled.token_id)
        steps += 1
    assert [one.output_token_ids for one in sequences] == expected("llama")


@pytest.mark.parametrize("name", ["llama", "mistral", *UNLIKE_LLAMA])
def test_shared_prefix_blocks_are_as_good_as_computed_ones(name: str) -> None:
    runner = runner_of(name)
    block_size = runner.kv_layout.block_size
    prompt = prompts(count=2, longest=45)[1]
    first, second = sequences_for(runner, [prompt, prompt], NUM_TOKENS)
    prefill_all(runner, [first], token_budget=512)
    num_shared = len(prompt) // block_size
    assert num_shared == 2
    second.block_table[:num_shared] = first.block_table[:num_shared]
    second.num_computed_tokens = num_shared * block_size
    (sampled,) = runner.prefill([PrefillChunk(second, second.num_tokens - second.num_computed_tokens)])
    assert sampled is not None
    second.token_ids.append(sampled.token_id)
    for _ in range(NUM_TOKENS - 1):
        second.token_ids.append(runner.decode([second])[0].token_id)
    assert second.output_token_ids == transformers_greedy(tiny_model(name).oracle_path, prompt, NUM_TOKENS)


def test_recompute_after_preemption_goes_on_with_the_same_tokens() -> None:
    runner = runner_of("llama")
    done = expected("llama")[1]
    resumed = sequences_for(runner, [PROMPTS[1] + done[:10]], NUM_TOKENS)[0]
    resumed.num_prompt_tokens = len(PROMPTS[1])
    (sampled,) = runner.prefill([PrefillChunk(resumed, resumed.num_tokens)])
    assert sampled is not None
    assert sampled.token_id == done[10]


def test_an_unfinished_chunk_gives_no_token_and_advances() -> None:
    runner = runner_of("llama")
    long, short = sequences_for(runner, [list(range(40)), [1, 2, 3]], 1)
    results = runner.prefill([PrefillChunk(long, 20), PrefillChunk(short, 3)])
    assert results[0] is None
    assert results[1] is not None
    assert (long.num_computed_tokens, short.num_computed_tokens) == (20, 3)
    assert long.num_tokens == 40


def test_nothing_to_do_is_no_forward() -> None:
    runner = runner_of("llama")
    assert runner.prefill([]) == []
    assert runner.decode([]) == []


def test_decode_refuses_a_sequence_with_a_gap() -> None:
    runner = runner_of("llama")
    with pytest.raises(AssertionError, match="exactly the last token"):
        runner.decode([new_sequence([1, 2, 3], [0])])


def test_a_former_owners_nan_does_not_leak_out_of_the_blocks() -> None:
    runner = tiny_runner(tiny_model("llama").path)
    runner.pool.tensor.fill_(torch.nan)
    assert greedy(runner, PROMPTS, NUM_TOKENS, token_budget=33) == expected("llama")


def test_only_the_blocks_of_the_sequences_are_written() -> None:
    runner = tiny_runner(tiny_model("llama").path, num_blocks=32)
    sequence = new_sequence(list(range(20)), [5, 9])
    runner.prefill([PrefillChunk(sequence, 20)])
    written = runner.pool.tensor.flatten(1).any(dim=1).nonzero().flatten().tolist()
    assert written == [5, 9]


def test_blocks_copied_to_another_pool_go_on_there() -> None:
    path = tiny_model("mistral").path
    prefill_runner, decode_runner = tiny_runner(path), tiny_runner(path)
    sequence = sequences_for(prefill_runner, [PROMPTS[1]], NUM_TOKENS)[0]
    prefill_all(prefill_runner, [sequence], token_budget=16)
    elsewhere = list(range(100, 100 + len(sequence.block_table)))
    for source, target in zip(sequence.block_table, elsewhere, strict=True):
        decode_runner.pool.tensor[target].copy_(prefill_runner.pool.tensor[source])
    sequence.block_table = elsewhere
    for _ in range(NUM_TOKENS - 1):
        sequence.token_ids.append(decode_runner.decode([sequence])[0].token_id)
    assert sequence.output_token_ids == expected("mistral")[1]


def test_sharded_checkpoint_is_the_same_model() -> None:
    path = sharded("llama")
    assert len(list(path.glob("*.safetensors"))) > 2
    assert greedy(tiny_runner(path), PROMPTS, NUM_TOKENS) == expected("llama")


@pytest.mark.parametrize(
    ("name", "has_whole_steps"),
    [("phi_whole", True), ("llama", False), ("gemma2", False), ("gpt_neox", False), ("mixtral", False)],
)
def test_bfloat16_is_as_near_to_float32_as_transformers_is(name: str, has_whole_steps: bool) -> None:
    path = tiny_model(name).path
    runner = tiny_runner(path, dtype=torch.bfloat16)
    if cpu_build.load() is not None:
        assert runner.model.has_whole_steps == has_whole_steps  # of heads that are whole vectors
    exact = logprobs_of(runner_of(name))
    ours, theirs = logprobs_of(runner), transformers_logprobs(path, PROMPTS, torch.bfloat16)
    # Rounded in other places, so not the same; a wrong layout is off by the whole spread, 20 times as much.
    assert (ours - exact).abs().mean() < 1.5 * (theirs - exact).abs().mean()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_near_float32(dtype: torch.dtype) -> None:
    near = logprobs_of(tiny_runner(tiny_model("llama").path, dtype=dtype))
    # 3 layers of 8-bit mantissas on logits of spread ~5; a wrong layout is off by that spread.
    assert (logprobs_of(runner_of("llama")) - near).abs().mean() < 0.05


def logprobs_of(runner: ModelRunner) -> Tensor:
    """[num_prompts, vocab], of the tokens after the prompts"""
    assert runner.pool.tensor.dtype == runner.model.dtype
    sequences = sequences_for(runner, PROMPTS, 1)
    rows = PrefillRows.of([PrefillChunk(one, one.num_tokens) for one in sequences], runner.kv_layout.block_size)
    return runner.compute(PrefillStep(rows, list(range(len(sequences))))).log_softmax(dim=-1)
