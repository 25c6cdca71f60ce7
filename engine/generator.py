"""One-process inference: continuous batching over a runner and a block space, without any queue.

The in-process baseline of the cluster and the oracle of its tests: whatever the batch, the chunks, the prefix hits and
the preemptions, a prompt's output is the same. Knows no Redis and no text.
"""

from collections import deque
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Protocol

from engine.block_allocator import OutOfBlocks
from engine.block_space import BlockSpace
from engine.model_runner import PrefillChunk
from engine.sampler import Sampled
from engine.sequence import Sequence
from engine.stopping import finish_reason
from messages import FinishReason, SamplingParams


class Runner(Protocol):
    """What computes: `ModelRunner`, or a scripted one in tests."""

    def prefill(self, chunks: list[PrefillChunk]) -> list[Sampled | None]:
        """Computes the chunks; the next token for each that reaches its sequence's end."""
        ...

    def decode(self, sequences: list[Sequence]) -> list[Sampled]:
        """Computes the last token of each and chooses the next."""
        ...


@dataclass(slots=True)
class GeneratedSequence:
    """The output of one prompt. `logprobs[i]` belongs to `token_ids[i]`."""

    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    finish_reason: FinishReason | None = None  # None while it is being generated
    error: str = ""  # why, when the reason is ERROR


class Generator:
    """Runs prompts to their end. Not for use from two threads at once."""

    def __init__(
        self,
        runner: Runner,
        block_space: BlockSpace,
        eos_token_ids: Collection[int],
        token_budget: int = 512,
        max_running: int = 64,
    ) -> None:
        """`token_budget`: most prompt tokens computed in one step; `max_running`: most sequences in it."""
        self._runner = runner
        self._space = block_space
        self._eos_token_ids = frozenset(eos_token_ids)
        self._token_budget = token_budget
        self._max_running = max_running
        self._waiting: deque[Sequence] = deque()
        self._running: list[Sequence] = []  # oldest first; each holds blocks for all its tokens
        self._outputs: dict[Sequence, GeneratedSequence] = {}
        self.num_steps = 0
        self.num_preemptions = 0
        self.num_cached_tokens = 0  # not computed because the prefix cache had them

    def generate(self, prompts: list[list[int]], params: list[SamplingParams]) -> list[GeneratedSequence]:
        """The outputs, in the order of `prompts`. Raises OutOfBlocks when one cannot fit even alone."""
        sequences = [
            Sequence(f"generate-{index}", list(prompt), len(prompt), sampling)
            for index, (prompt, sampling) in enumerate(zip(prompts, params, strict=True))
        ]
        for sequence in sequences:
            self._check_fits(sequence)
        self._outputs = {sequence: GeneratedSequence() for sequence in sequences}
        self._waiting.extend(sequences)
        try:
            while self._waiting or self._running:
                self.step()
        finally:
            self._waiting.clear()
            while self._running:
                self._retire(self._running[-1], remember=False)
        return [self._outputs[sequence] for sequence in sequences]

    def step(self) -> None:
        """Admits what fits, decodes one token of every sequence that is ready, spends the budget on prompts."""
        self.num_steps += 1
        self._admit()
        self._decode()
        self._prefill()

    def _check_fits(self, sequence: Sequence) -> None:
        if not sequence.token_ids:
            raise ValueError("a prompt needs at least one token")
        # The last output token is never computed, so its KV needs no place.
        num_tokens = sequence.num_tokens + sequence.sampling.max_new_tokens - 1
        num_blocks = -(-num_tokens // self._space.block_size)
        if num_blocks > self._space.num_blocks:
            raise OutOfBlocks(f"{num_tokens} tokens need {num_blocks} blocks; there are {self._space.num_blocks}")

    def _admit(self) -> None:
        """First come, first served: takes blocks for all tokens known so far.

        Not before the budget reaches it: the later a sequence is matched, the more of it may be cached.
        """
        pending = sum(_num_uncomputed(sequence) for sequence in self._running if not _is_decoding(sequence))
        while self._waiting and len(self._running) < self._max_running and pending < self._token_budget:
            sequence = self._waiting[0]
            matched = [] if sequence.lists_prompt else self._space.match(sequence.token_ids, sequence.images)
            num_blocks = sequence.num_blocks(self._space.block_size) - len(matched)
            # One block to grow into for each that runs, or the newcomer would be preempted at once.
            reserve = len(self._running)
            if not self._space.can_allocate(num_blocks + reserve):
                self._space.free(matched)
                return
            sequence.block_table = matched + self._space.allocate(num_blocks)
            sequence.num_computed_tokens = len(matched) * self._space.block_size
            self.num_cached_tokens += sequence.num_computed_tokens
            pending += _num_uncomputed(sequence)
            self._running.append(self._waiting.popleft())

    def _decode(self) -> None:
        for sequence in list(self._running):
            if sequence in self._running and _is_decoding(sequence):
                self._grow(sequence)
        batch = [sequence for sequence in self._running if _is_decoding(sequence)]
        if batch:
            for sequence, sampled in zip(batch, self._runner.decode(batch), strict=True):
                self._append(sequence, sampled)

    def _prefill(self) -> None:
        budget = self._token_budget
        chunks: list[PrefillChunk] = []
        for sequence in self._running:
            if budget and not _is_decoding(sequence):
                chunks.append(PrefillChunk(sequence, min(_num_uncomputed(sequence), budget)))
                budget -= chunks[-1].num_tokens
        if chunks:
            for chunk, sampled in zip(chunks, self._runner.prefill(chunks), strict=True):
                if sampled is not None:
                    self._append(chunk.sequence, sampled)

    def _grow(self, sequence: Sequence) -> None:
        """Sees to the block of its last token, taking the newest sequences' blocks away if there is no other."""
        while len(sequence.block_table) < sequence.num_blocks(self._space.block_size):
            if self._space.can_allocate(1):
                sequence.block_table += self._space.allocate(1)
                continue
            newest = self._running[-1]
            self._preempt(newest)
            if newest is sequence:
                return

    def _preempt(self, sequence: Sequence) -> None:
        """Gives its blocks back; it starts over from its tokens, before all others that wait."""
        self.num_preemptions += 1
        self._retire(sequence, remember=True)
        self._waiting.appendleft(sequence)

    def _append(self, sequence: Sequence, sampled: Sampled) -> None:
        output = self._outputs[sequence]
        if sampled.error:
            output.error = sampled.error
            output.finish_reason = FinishReason.ERROR
        else:
            output.finish_reason = finish_reason(sequence, sampled.token_id, self._eos_token_ids)
            output.token_ids.append(sampled.token_id)
            output.logprobs.append(sampled.logprob)
            sequence.token_ids.append(sampled.token_id)
            if sequence.num_output_tokens == 1:
                self._remember(sequence)  # the next prompts need not wait for this one's end
        if output.finish_reason is not None:
            # Logits that are not finite mean KV that is not to be reused.
            self._retire(sequence, remember=not sampled.error)

    def _retire(self, sequence: Sequence, remember: bool) -> None:
        """Takes it out of the running batch; what it computed stays in the prefix cache while there is room."""
        if remember:
            self._remember(sequence)
        self._space.free(sequence.block_table)
        sequence.block_table = []
        sequence.num_computed_tokens = 0
        self._running.remove(sequence)

    def _remember(self, sequence: Sequence) -> None:
        self._space.remember(sequence.token_ids[: sequence.num_computed_tokens], sequence.block_table, sequence.images)


def _is_decoding(sequence: Sequence) -> bool:
    """Whether only its last token is left to compute."""
    return _num_uncomputed(sequence) == 1


def _num_uncomputed(sequence: Sequence) -> int:
    return sequence.num_tokens - sequence.num_computed_tokens
