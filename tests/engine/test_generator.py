"""Generator: batch, chunks, prefix hits and preemption never change an output; every block comes back.

The scripted runner keeps a KV pool of (token, position) pairs and derives its logits from what it reads through the
block table, so a wrong block, a stale prefix or a token computed twice or never changes the output or fails.
"""

import functools
import hashlib
import itertools
import random
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from engine.block_allocator import OutOfBlocks
from engine.block_space import BlockSpace
from engine.generator import GeneratedSequence, Generator
from engine.model_runner import PrefillChunk
from engine.sampler import Sampled, SamplingRow, sample
from engine.sequence import Sequence
from engine.stopping import finish_reason
from messages.request import SamplingParams
from messages.token_event import FinishReason
from tests.tiny_models import prompts as tiny_prompts
from tests.tiny_models import tiny_model, tiny_runner, transformers_greedy


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny tensors: a second thread costs more than it brings, on a busy machine a hundred times more."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


VOCAB_SIZE = 17
EOS = 0
BLOCK_SIZE = 4


def scripted_logits(context: list[int]) -> Tensor:
    """[V] from all tokens of the context."""
    digest = hashlib.sha256(str(context).encode()).digest()
    return torch.tensor([float(byte) / 40 for byte in digest[:VOCAB_SIZE]])


class ScriptedRunner:
    """Stands for ModelRunner: writes and reads a KV pool through the block tables."""

    def __init__(self, poison: int | None = None) -> None:
        self.kv: dict[int, tuple[int, int]] = {}  # slot -> (token id, position)
        self.poison = poison  # a context with this token has no finite logits
        self.batch_sizes: list[int] = []
        self.chunk_sizes: list[int] = []
        self.events: list[str] = []
        self.num_computed = 0

    def prefill(self, chunks: list[PrefillChunk]) -> list[Sampled | None]:
        self.events.append("prefill")
        self.chunk_sizes.append(sum(chunk.num_tokens for chunk in chunks))
        return [self._compute(chunk.sequence, chunk.num_tokens) for chunk in chunks]

    def decode(self, sequences: list[Sequence]) -> list[Sampled]:
        self.events.append("decode")
        self.batch_sizes.append(len(sequences))
        sampled = []
        for sequence in sequences:
            assert sequence.num_computed_tokens == sequence.num_tokens - 1
            token = self._compute(sequence, 1)
            assert token is not None
            sampled.append(token)
        return sampled

    def _compute(self, sequence: Sequence, num_tokens: int) -> Sampled | None:
        assert num_tokens > 0
        end = sequence.num_computed_tokens + num_tokens
        assert end <= sequence.num_tokens
        for position in range(sequence.num_computed_tokens, end):
            self.kv[self._slot(sequence, position)] = (sequence.token_ids[position], position)
        sequence.num_computed_tokens = end
        self.num_computed += num_tokens
        if end < sequence.num_tokens:
            return None
        read = [self.kv[self._slot(sequence, position)] for position in range(end)]
        assert [position for _, position in read] == list(range(end))
        logits = scripted_logits([token_id for token_id, _ in read])
        if self.poison is not None and self.poison in sequence.token_ids:
            logits[:] = torch.nan
        row = SamplingRow(sequence.sampling, sequence.prompt_token_ids, sequence.output_token_ids, [EOS])
        return sample(logits.unsqueeze(0), [row])[0]

    def _slot(self, sequence: Sequence, position: int) -> int:
        return sequence.block_table[position // BLOCK_SIZE] * BLOCK_SIZE + position % BLOCK_SIZE


def plain_loop(prompt: list[int], params: SamplingParams) -> GeneratedSequence:
    """The oracle: no blocks, no batch."""
    sequence = Sequence("plain", list(prompt), len(prompt), params)
    output = GeneratedSequence()
    while output.finish_reason is None:
        row = SamplingRow(params, prompt, sequence.output_token_ids, [EOS])
        (sampled,) = sample(scripted_logits(sequence.token_ids).unsqueeze(0), [row])
        output.finish_reason = finish_reason(sequence, sampled.token_id, [EOS])
        output.token_ids.append(sampled.token_id)
        output.logprobs.append(sampled.logprob)
        sequence.token_ids.append(sampled.token_id)
    return output


def requests(num: int, seed: int) -> tuple[list[list[int]], list[SamplingParams]]:
    """Prompts, many with a common beginning; greedy and seeded parameters."""
    draw = random.Random(seed)
    common = [draw.randrange(1, VOCAB_SIZE) for _ in range(20)]
    prompts, params = [], []
    for index in range(num):
        own = [draw.randrange(1, VOCAB_SIZE) for _ in range(draw.randrange(1, 12))]
        prompts.append(common[: draw.choice([0, 4, 9, 20])] + own)
        kind: dict[str, Any] = draw.choice(
            [{}, {"do_sample": True}, {"do_sample": True, "top_p": 0.8}, {"repetition_penalty": 1.3}]
        )
        params.append(SamplingParams(seed=index, max_new_tokens=draw.choice([1, 5, 25]), **kind))
    return prompts, params


@functools.cache
def expected_outputs(num: int, seed: int) -> list[GeneratedSequence]:
    """What `requests(num, seed)` must give."""
    return [plain_loop(*pair) for pair in zip(*requests(num, seed), strict=True)]


def check_blocks_are_back(space: BlockSpace) -> None:
    space.check_integrity()
    assert (space.num_free, space.num_used) == (space.num_blocks, 0)


@pytest.mark.parametrize(("token_budget", "max_running"), list(itertools.product([1, 3, 7, 512], [1, 3, 64])))
@pytest.mark.parametrize("prefix_cache", [False, True])
@pytest.mark.parametrize("num_blocks", [14, 400])  # the longest takes 14
def test_nothing_changes_an_output(token_budget: int, max_running: int, prefix_cache: bool, num_blocks: int) -> None:
    prompts, params = requests(12, seed=5)
    space = BlockSpace(num_blocks, BLOCK_SIZE, prefix_cache)
    runner = ScriptedRunner()
    generator = Generator(runner, space, [EOS], token_budget, max_running)
    assert generator.generate(prompts, params) == expected_outputs(12, 5)
    check_blocks_are_back(space)
    assert max(runner.chunk_sizes) <= token_budget
    assert max(runner.batch_sizes) <= max_running
    assert prefix_cache or generator.num_cached_tokens == 0
    assert generator.num_cached_tokens > 0 or not prefix_cache or max_running == 64
    if num_blocks == 400:
        assert generator.num_preemptions == 0
        num_outputs = sum(len(output.token_ids) - 1 for output in expected_outputs(12, 5))  # the last is not computed
        assert runner.num_computed == sum(map(len, prompts)) + num_outputs - generator.num_cached_tokens


@given(
    seed=st.integers(0, 10**6),
    num=st.integers(1, 8),
    token_budget=st.integers(1, 40),
    max_running=st.integers(1, 8),
    prefix_cache=st.booleans(),
    num_blocks=st.integers(14, 40),
)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_mix_changes_an_output(
    seed: int, num: int, token_budget: int, max_running: int, prefix_cache: bool, num_blocks: int
) -> None:
    prompts, params = requests(num, seed)
    space = BlockSpace(num_blocks, BLOCK_SIZE, prefix_cache)
    generator = Generator(ScriptedRunner(), space, [EOS], token_budget, max_running)
    assert generator.generate(prompts, params) == [plain_loop(*pair) for pair in zip(prompts, params, strict=True)]
    check_blocks_are_back(space)


@pytest.mark.parametrize("prefix_cache", [False, True])
def test_running_out_of_blocks_preempts_the_newest_and_recomputes(prefix_cache: bool) -> None:
    prompts = [[1, 2, 3], [4, 5, 6], [7, 8, 9]]
    params = [SamplingParams(seed=3, max_new_tokens=30, ignore_eos=True)] * 3
    space = BlockSpace(10, BLOCK_SIZE, prefix_cache)  # each grows to 8
    generator = Generator(ScriptedRunner(), space, [EOS])
    outputs = generator.generate(prompts, params)
    assert generator.num_preemptions > 0
    assert outputs == [plain_loop(*pair) for pair in zip(prompts, params, strict=True)]
    check_blocks_are_back(space)


def test_the_oldest_is_never_preempted() -> None:
    preempted: list[str] = []

    class Watched(Generator):
        def _preempt(self, sequence: Sequence) -> None:
            assert sequence is self._running[-1]
            preempted.append(sequence.sequence_id)
            super()._preempt(sequence)

    params = [SamplingParams(seed=3, max_new_tokens=30, ignore_eos=True)] * 4
    Watched(ScriptedRunner(), BlockSpace(10, BLOCK_SIZE, False), [EOS]).generate([[n, 2, 3] for n in range(4)], params)
    assert preempted and "generate-0" not in preempted


def test_sequences_share_steps() -> None:
    params = [SamplingParams(seed=0, max_new_tokens=10, ignore_eos=True)] * 8
    runner = ScriptedRunner()
    generator = Generator(runner, BlockSpace(100, BLOCK_SIZE, False), [EOS], token_budget=512)
    generator.generate([[n + 1] * 5 for n in range(8)], params)
    assert runner.chunk_sizes == [40] and runner.batch_sizes == [8] * 9


def test_a_long_prompt_does_not_stop_the_running_ones() -> None:
    params = [SamplingParams(seed=0, max_new_tokens=4, ignore_eos=True)] * 2
    runner = ScriptedRunner()
    Generator(runner, BlockSpace(100, BLOCK_SIZE, False), [EOS], token_budget=8).generate([[1, 2], [3] * 40], params)
    # The short one is done while the long one is still computed in chunks: 6 beside its prompt, then 8 a step, then 2.
    assert runner.events == [*["prefill"], *["decode", "prefill"] * 3, *["prefill"] * 2, *["decode"] * 3]
    assert runner.chunk_sizes == [8, 8, 8, 8, 8, 2]


def test_prompts_that_wait_for_the_budget_hit_what_was_computed_meanwhile() -> None:
    params = [SamplingParams(seed=0, max_new_tokens=2, ignore_eos=True)] * 5
    generator = Generator(ScriptedRunner(), BlockSpace(100, BLOCK_SIZE, True), [EOS], token_budget=16)
    generator.generate([[7] * 16 + [n] for n in range(5)], params)
    assert generator.num_cached_tokens >= 3 * 16


def test_a_second_run_hits_what_the_first_one_computed() -> None:
    space = BlockSpace(50, BLOCK_SIZE, True)
    runner = ScriptedRunner()
    generator = Generator(runner, space, [EOS])
    prompt, params = list(range(1, 17)), SamplingParams(seed=0, max_new_tokens=4, ignore_eos=True)
    first = generator.generate([prompt], [params])
    assert generator.num_cached_tokens == 0
    assert generator.generate([prompt], [params]) == first
    assert generator.num_cached_tokens == 12  # never all 16: the last token must be computed
    turn = [*prompt, *first[0].token_ids, 5, 6]
    generator.generate([turn], [params])
    assert generator.num_cached_tokens == 12 + 16  # 19 tokens had their KV: 4 whole blocks


@pytest.mark.parametrize("ignore_eos", [False, True])
def test_eos_ends_a_sequence_unless_ignored(ignore_eos: bool) -> None:
    params = SamplingParams(seed=0, max_new_tokens=3, ignore_eos=ignore_eos, allowed_token_ids=(EOS,))
    (output,) = Generator(ScriptedRunner(), BlockSpace(9, BLOCK_SIZE, True), [EOS]).generate([[1, 2]], [params])
    expected = ([EOS] * 3, FinishReason.LENGTH) if ignore_eos else ([EOS], FinishReason.STOP)
    assert (output.token_ids, output.finish_reason) == expected
    assert output.logprobs == [0.0] * len(output.token_ids)


def test_a_sequence_without_logits_ends_in_an_error_and_leaves_no_kv_behind() -> None:
    space = BlockSpace(60, BLOCK_SIZE, True)
    generator = Generator(ScriptedRunner(poison=16), space, [EOS])
    params = [SamplingParams(seed=0, max_new_tokens=5, ignore_eos=True, logit_bias={16: -99.0})] * 3
    prompts = [[1] * 9, [16] * 9, [2] * 9]
    before, failed, after = generator.generate(prompts, params)
    assert (failed.token_ids, failed.finish_reason) == ([], FinishReason.ERROR) and "not finite" in failed.error
    assert [before, after] == [plain_loop(prompts[0], params[0]), plain_loop(prompts[2], params[2])]
    assert space.match([16] * 9) == []
    check_blocks_are_back(space)


def test_what_cannot_fit_even_alone_is_refused_before_anything_runs() -> None:
    space = BlockSpace(4, BLOCK_SIZE, True)
    generator = Generator(ScriptedRunner(), space, [EOS])
    fits = SamplingParams(seed=0, max_new_tokens=9, ignore_eos=True)  # 8 + 9 - 1 = 16 tokens
    assert len(generator.generate([[1] * 8], [fits])[0].token_ids) == 9
    with pytest.raises(OutOfBlocks, match="17 tokens need 5 blocks; there are 4"):
        generator.generate([[1] * 9], [fits])
    with pytest.raises(ValueError, match="at least one token"):
        generator.generate([[]], [fits])
    check_blocks_are_back(space)


def test_a_failing_runner_leaves_no_blocks_behind() -> None:
    class Broken(ScriptedRunner):
        def decode(self, sequences: list[Sequence]) -> list[Sampled]:
            raise RuntimeError("broken")

    space = BlockSpace(20, BLOCK_SIZE, True)
    with pytest.raises(RuntimeError, match="broken"):
        Generator(Broken(), space, [EOS]).generate([[1, 2], [3, 4]], [SamplingParams(seed=0)] * 2)
    check_blocks_are_back(space)


# ---- with a model


@pytest.mark.parametrize("name", ["llama", "mistral", "qwen3"])
def test_a_model_generates_the_same_however_it_is_run(name: str) -> None:
    path = tiny_model(name).path
    common = tiny_prompts(2, 40, seed=2)[1]
    prompts = tiny_prompts(5, 30) + [common[:33] + own for own in tiny_prompts(4, 9, seed=3)]
    params = [
        SamplingParams(seed=index, max_new_tokens=10, ignore_eos=True, do_sample=index % 3 == 1, top_p=0.9)
        for index in range(len(prompts))
    ]

    def run(num_blocks: int, prefix_cache: bool, **limits: int) -> tuple[list[GeneratedSequence], Generator]:
        runner = tiny_runner(path, num_blocks, BLOCK_SIZE)
        space = BlockSpace(num_blocks, BLOCK_SIZE, prefix_cache)
        generator = Generator(runner, space, runner.eos_token_ids, **limits)
        outputs = generator.generate(prompts, params)
        check_blocks_are_back(space)
        return outputs, generator

    plain, _ = run(200, prefix_cache=False, max_running=1)
    for prompt, sampling, output in zip(prompts, params, plain, strict=True):
        if not sampling.do_sample:
            assert output.token_ids == transformers_greedy(path, prompt, sampling.max_new_tokens)
    batched, _ = run(200, prefix_cache=False)
    chunked, _ = run(200, prefix_cache=False, token_budget=7)
    hits, hitting = run(200, prefix_cache=True, token_budget=16)
    squeezed, squeezing = run(14, prefix_cache=True, token_budget=16)
    assert hitting.num_cached_tokens > 0 and squeezing.num_preemptions > 0
    for outputs in (batched, chunked, hits, squeezed):
        assert [output.token_ids for output in outputs] == [output.token_ids for output in plain]
        for output, expected in zip(outputs, plain, strict=True):
            assert output.logprobs == pytest.approx(expected.logprobs, abs=1e-3)
