"""The largest step a worker may ever compute, run once before the pool is sized: it shows the working memory.

It goes through the same runner and sampler as any step, on a few blocks that all its sequences share. On a GPU it also
compiles the kernels. Knows no meter.
"""

import torch

from engine.kv_pool import KVLayout, KVPool
from engine.model_runner import SCORE_CHUNK_TOKENS, ModelRunner, PrefillChunk
from engine.sequence import Sequence
from engine.served_model import ServedModel
from messages.request import SamplingParams

# Everything that needs memory: penalties count tokens, top_p sorts.
_SAMPLING = SamplingParams(seed=0, do_sample=True, top_p=0.9, presence_penalty=0.1, repetition_penalty=1.1)


def worst_prefill(model: ServedModel, layout: KVLayout, token_budget: int, max_running: int) -> None:
    """A whole budget of tokens, ending as many sequences as it can; a reward model's longest chunk."""
    if model.is_reward:
        _runner(model, layout, SCORE_CHUNK_TOKENS).score(_sequence(SCORE_CHUNK_TOKENS, layout))
        return
    num_sequences = min(max_running, token_budget)
    longest = -(-token_budget // num_sequences)
    lengths = [longest] * (token_budget // longest) + [token_budget % longest]
    chunks = [PrefillChunk(_sequence(length, layout), length) for length in lengths if length]
    _runner(model, layout, longest).prefill(chunks)


def worst_decode(model: ServedModel, layout: KVLayout, max_running: int) -> None:
    """As many rows as there may be, of one token each: what a step holds does not depend on how much KV it reads."""
    _runner(model, layout, 1).decode([_sequence(1, layout) for _ in range(max_running)])


@torch.inference_mode()
def _runner(model: ServedModel, layout: KVLayout, num_tokens: int) -> ModelRunner:
    return ModelRunner(model, KVPool.allocate(layout, -(-num_tokens // layout.block_size), model.device))


def _sequence(num_tokens: int, layout: KVLayout) -> Sequence:
    blocks = list(range(-(-num_tokens // layout.block_size)))
    return Sequence("worst case", [0] * num_tokens, num_tokens, _SAMPLING, block_table=blocks)
