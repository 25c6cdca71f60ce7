"""Logprobs of prompts and of the likeliest ids: transformers' figures, however the prompt is cut."""

import math

import pytest
import torch
from msgspec import structs

from engine.logprobs import top_logprobs
from engine.model_runner import LISTED_ROWS, ModelRunner, PrefillChunk
from engine.penalties import SamplingRow
from engine.sequence import Sequence
from messages.request import SamplingParams
from tests.tiny_models import _oracle, prefill_all, prompts, sequences_for, tiny_model, tiny_runner

PROMPTS = prompts(count=3, longest=2 * LISTED_ROWS + 11)


def asking(runner: ModelRunner, num_tokens: int, num_top: int) -> list[Sequence]:
    sequences = sequences_for(runner, PROMPTS, num_tokens)
    for sequence in sequences:
        sequence.sampling = structs.replace(sequence.sampling, num_prompt_logprobs=num_top, num_top_logprobs=num_top)
    return sequences


def oracle_logprobs(name: str, token_ids: list[int]) -> torch.Tensor:
    """[len(token_ids), V]: row i is of the token after the first i + 1."""
    with torch.inference_mode():
        logits = _oracle(tiny_model(name).oracle_path)(torch.tensor([token_ids])).logits[0]
    return torch.log_softmax(logits.float(), dim=-1)


@pytest.mark.parametrize(
    ("dtype", "atol"),
    [(torch.float32, 1e-3), (torch.bfloat16, 0.1)],  # bfloat16: a whole step, and 3 layers of 8-bit mantissas
)
@pytest.mark.parametrize("token_budget", [7, 512])
def test_a_prompts_logprobs_are_those_of_transformers(dtype: torch.dtype, atol: float, token_budget: int) -> None:
    runner = tiny_runner(tiny_model("llama").path, dtype=dtype)
    sequences = asking(runner, 1, 3)
    prefill_all(runner, sequences, token_budget)
    errors = []
    for sequence, prompt in zip(sequences, PROMPTS, strict=True):
        exact = oracle_logprobs("llama", prompt)
        assert len(sequence.prompt_logprobs) == len(prompt) - 1
        for row, token_id, said in zip(exact, prompt[1:], sequence.prompt_logprobs, strict=False):
            assert [logprob for _, logprob in said.top] == sorted((one for _, one in said.top), reverse=True)
            errors += [abs(logprob - float(row[other])) for other, logprob in (*said.top, (token_id, said.logprob))]
            if any(other == token_id for other, _ in said.top):
                assert dict(said.top)[token_id] == said.logprob  # to the bit: lm-eval compares them
    assert sum(errors) / len(errors) < atol


def test_asking_changes_no_token_and_listing_begins_anew_with_the_prompt() -> None:
    runner = tiny_runner(tiny_model("llama").path)
    plain, told = sequences_for(runner, PROMPTS, 1), asking(runner, 1, 2)
    for one, other in zip(plain, told, strict=True):
        other.block_table = one.block_table
    prefill_all(runner, plain, 33)
    prefill_all(runner, told, 33)
    assert [one.token_ids for one in told] == [one.token_ids for one in plain]
    assert all(not one.prompt_logprobs for one in plain)
    sequence, before = told[1], list(told[1].prompt_logprobs)
    sequence.token_ids.pop()
    sequence.num_computed_tokens = 0  # preempted before its first token was published
    runner.prefill([PrefillChunk(sequence, sequence.num_tokens)])
    assert len(sequence.prompt_logprobs) == len(before)
    for again, first in zip(sequence.prompt_logprobs, before, strict=True):
        assert again.logprob == pytest.approx(first.logprob, abs=1e-4)


def test_a_continuation_lists_nothing_of_its_prompt_again() -> None:
    runner = tiny_runner(tiny_model("llama").path)
    sequence = asking(runner, 2, 2)[1]
    sequence.token_ids.append(5)
    (sampled,) = runner.prefill([PrefillChunk(sequence, sequence.num_tokens)])
    assert sampled is not None and len(sampled.top) == 2
    assert sequence.prompt_logprobs == []


def test_generated_tokens_come_with_the_likeliest_where_they_are_asked_for() -> None:
    runner = tiny_runner(tiny_model("llama").path)
    sequences = asking(runner, 3, 4)
    sequences[0].sampling = SamplingParams(seed=0, max_new_tokens=9)
    prefill_all(runner, sequences, 512)
    for _ in range(2):
        sampled = runner.decode(sequences)
        assert sampled[0].top == ()
        for sequence, token in zip(sequences[1:], sampled[1:], strict=True):
            row = oracle_logprobs("llama", sequence.token_ids)[-1]
            assert token.top[0] == (token.token_id, token.logprob)  # greedy
            assert [one for one, _ in token.top] == row.topk(4).indices.tolist()
        for sequence, token in zip(sequences, sampled, strict=True):
            sequence.token_ids.append(token.token_id)


def test_they_are_taken_after_penalties_and_temperature() -> None:
    params = SamplingParams(seed=0, do_sample=True, temperature=0.5, logit_bias={1: 3.0}, num_top_logprobs=2)
    (said,) = top_logprobs(torch.tensor([[1.0, 0.0, 2.0]]), [SamplingRow(params, [], [], [])])
    weights = [math.exp(2 * logit) for logit in (1.0, 3.0, 2.0)]
    assert [token_id for token_id, _ in said.top] == [1, 2]
    assert said.top[0][1] == pytest.approx(math.log(weights[1] / sum(weights)), abs=1e-5)
