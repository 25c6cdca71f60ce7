"""One forward pass over some sequences: the tensors for it, the pass, the next tokens. Knows no queue and no policy.

Who runs, in which chunks and on which blocks is decided by the caller; the runner computes, writes KV into the blocks
it is given, and advances `num_computed_tokens`. It does not append tokens.
"""

from collections.abc import Callable
from collections.abc import Sequence as Rows
from concurrent.futures import Future
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace

import torch
from torch import Tensor

from engine.decode_graphs import DecodeGraphs
from engine.decode_rows import DecodeRows
from engine.grammars import Grammars, Next
from engine.kv_pool import KVLayout, KVPool
from engine.logprobs import PromptListing, top_logprobs
from engine.model import DecodeMeta
from engine.placed_features import Placed, placed_features
from engine.prefill_rows import PrefillChunk, PrefillRows
from engine.sampler import Sampled, SamplingRow, select_sampler, takes_largest, to_sampled
from engine.sequence import Sequence
from engine.served_model import ServedModel
from engine.step import DecodeStep, PrefillStep, ScoreStep, Step
from kernels.decoder_step import StepRows
from kernels.ops import PrefillMeta

__all__ = ["ModelRunner", "PrefillChunk", "alone"]

LISTED_ROWS = 64  # logits of so many prompt tokens are there at once
SCORE_CHUNK_TOKENS = 512  # bounds the activations of a long prompt; a score has no one to share a step with

# Has the other ranks compute a step while it is entered; they and we must come to its end.
Lead = Callable[[Step], AbstractContextManager[None]]


def alone(step: Step) -> AbstractContextManager[None]:
    """There are no other ranks."""
    return nullcontext()


class ModelRunner:
    """A model on a pool. One thread at a time.

    Of a tensor-parallel model, rank 0's plans, samples and leads the others, who `compute` what they are told.
    """

    def __init__(
        self,
        model: ServedModel,
        pool: KVPool,
        lead: Lead = alone,
        graphs: DecodeGraphs | None = None,
        grammars: Grammars | None = None,
    ) -> None:
        """`graphs`: recorded decode steps of this model on this pool, for the batches that they can run. `grammars`:
        who knows what a sequence's grammar lets come next; without it such sequences fail."""
        self.model = model
        self.pool = pool
        self._graphs = graphs
        self._sampler = select_sampler(model.device)
        self.eos_token_ids = model.config.eos_token_ids
        self._lead = lead
        self.grammars = grammars or Grammars(None, model.config.vocab_size, self.eos_token_ids)

    @property
    def device_type(self) -> str:
        """`cpu` or `cuda`."""
        return self.model.device.type

    @property
    def kv_layout(self) -> KVLayout:
        """The layout of the pool."""
        return self.pool.layout

    @torch.inference_mode()
    def prefill(self, chunks: list[PrefillChunk]) -> list[Sampled | None]:
        """Compute the chunks in one pass. A chunk that reaches its sequence's end gets the next token, others None."""
        if not chunks:
            return []
        ends = [index for index, chunk in enumerate(chunks) if chunk.is_last]
        listing = PromptListing(chunks)
        step = PrefillStep(PrefillRows.of(chunks, self.pool.layout.block_size), ends, listing.places)
        sequences = [chunks[index].sequence for index in ends]
        placed = placed_features(chunks, self.model.config.image_token_id)
        nexts = self.grammars.follow(sequences)
        with self._lead(step):
            logits = self.compute(step, listing.take, placed)
            sampled = dict(zip(ends, self._sample(logits, sequences, nexts), strict=True))
        for chunk in chunks:
            chunk.sequence.num_computed_tokens += chunk.num_tokens
            if not chunk.sequence.images_to_compute:
                chunk.sequence.image_features = None
        return [sampled.get(index) for index in range(len(chunks))]

    @torch.inference_mode()
    def decode(self, sequences: list[Sequence]) -> list[Sampled]:
        """Compute the last token of each sequence and choose the next. Everything before it must be computed."""
        if not sequences:
            return []
        rows = DecodeRows.of(sequences, self.pool.layout.block_size)
        if self.model.has_whole_steps and all(takes_largest(one.sampling, one.num_output_tokens) for one in sequences):
            sampled = to_sampled(*self.model.largest_of_step(_decode_rows(rows), self.pool))
        else:
            step = DecodeStep(rows)
            nexts = self.grammars.follow(sequences)
            with self._lead(step):
                sampled = self._sample(self.compute(step), sequences, nexts)
        for sequence in sequences:
            sequence.num_computed_tokens += 1
        return sampled

    @torch.inference_mode()
    def score(self, sequence: Sequence) -> float:
        """Compute what is left of the sequence and return the reward head's raw output at its last token."""
        # The last token is computed again when its KV is there already: KV has no hidden state to score.
        sequence.num_computed_tokens = min(sequence.num_computed_tokens, sequence.num_tokens - 1)
        while True:
            num_tokens = min(SCORE_CHUNK_TOKENS, sequence.num_tokens - sequence.num_computed_tokens)
            step = ScoreStep(PrefillRows.of([PrefillChunk(sequence, num_tokens)], self.pool.layout.block_size))
            with self._lead(step):
                score = float(self.compute(step)[0])
            sequence.num_computed_tokens += num_tokens
            if sequence.num_computed_tokens == sequence.num_tokens:
                return score

    @torch.inference_mode()
    def compute(
        self, step: Step, take_listed: Callable[[Tensor], None] | None = None, placed: Placed | None = None
    ) -> Tensor:
        """This rank's part of a step. -> float32 [num_wanted, vocab], or [num_chunks] scores; the same in every rank

        `take_listed` is given the logits of a prefill step's listed tokens, [at most LISTED_ROWS, vocab] at a time.
        `placed`: what stands in place of some tokens' embeddings.
        """
        embedded = None
        if placed is not None:
            embedded = self.model.embed(self._tensor(step.rows.token_ids))
            embedded[self._tensor(placed.places)] = placed.features.to(embedded.device)
        if self.model.has_whole_steps:
            return self._compute_whole(step, take_listed, embedded)
        if isinstance(step, DecodeStep):
            if self._graphs is not None and self._graphs.can_run(step.rows):
                return self._graphs.run(step.rows)
            return self.model.logits(self._forward_rows(step.rows))
        hidden = self._forward_chunks(step.rows, embedded)
        if isinstance(step, PrefillStep) and step.listed:
            self._list(hidden[self._tensor(step.listed)], take_listed)
        hidden = hidden[self._tensor(step.rows.last_tokens)]
        if isinstance(step, ScoreStep):
            return self.model.score(hidden)
        if not step.ends:  # the head is worth sparing
            return hidden.new_empty((0, self.model.config.vocab_size), dtype=torch.float32)
        return self.model.logits(hidden[step.ends])

    def _list(self, hidden: Tensor, take_listed: Callable[[Tensor], None] | None) -> None:
        """hidden: [N, hidden] of the listed tokens"""
        for some in torch.split(hidden, LISTED_ROWS):
            logits = self.model.logits(some)  # of several ranks, all compute it
            if take_listed is not None:
                take_listed(logits)

    def _compute_whole(
        self, step: Step, take_listed: Callable[[Tensor], None] | None, embedded: Tensor | None
    ) -> Tensor:
        """What `compute` returns, in one call."""
        rows, listed = step.rows, step.listed if isinstance(step, PrefillStep) else []
        if isinstance(rows, DecodeRows):
            _, logits = self.model.step(_decode_rows(rows), self.pool)
            assert logits is not None, "a reward model does not decode"
            return logits
        wanted = [rows.last_tokens[end] for end in step.ends] if isinstance(step, PrefillStep) else rows.last_tokens
        hidden, logits = self.model.step(
            StepRows(
                token_ids=rows.token_ids,
                positions=rows.positions,
                slots=rows.slots,
                starts=rows.cu_seqlens_q,
                contexts=rows.context_lens,
                block_tables=rows.block_tables,
                wanted=[*wanted, *listed] if listed else wanted,
                num_answered=len(wanted),
                embedded=embedded,
                is_prefill=True,
            ),
            self.pool,
        )
        if listed:
            self._list(hidden[len(wanted) :], take_listed)
        return self.model.score(hidden) if logits is None else logits

    def _forward_rows(self, rows: DecodeRows) -> Tensor:
        """-> [num_seqs, hidden]"""
        self._clear_unwritten(rows.block_tables, rows.positions, rows.seq_lens)
        meta = DecodeMeta(
            block_tables=self._tensor(rows.padded_tables(), torch.int32),
            seq_lens=self._tensor(rows.seq_lens, torch.int32),
        )
        return self.model.forward(
            self._tensor(rows.token_ids), self._tensor(rows.positions), self._tensor(rows.slots), meta, self.pool
        )

    def _forward_chunks(self, rows: PrefillRows, embedded: Tensor | None) -> Tensor:
        """-> [num_tokens, hidden], packed"""
        self._clear_unwritten(rows.block_tables, rows.context_lens, rows.seq_lens)
        meta = PrefillMeta.of(rows.cu_seqlens_q, rows.context_lens, rows.block_tables, self.model.device)
        return self.model.forward(
            self._tensor(rows.token_ids),
            self._tensor(rows.positions),
            self._tensor(rows.slots),
            meta,
            self.pool,
            embedded,
        )

    def _clear_unwritten(self, block_tables: Rows[list[int]], firsts: Rows[int], ends: Rows[int]) -> None:
        """Zero the last block of each sequence when its first token is about to be written.

        The block's unwritten end is read and masked, and zero weight times a former owner's NaN would still be NaN.
        firsts, ends: the first position that is about to be written, and the one after the last.
        """
        if not self.model.needs_clean_tails:
            return
        block_size = self.pool.layout.block_size
        for table, first, end in zip(block_tables, firsts, ends, strict=True):
            last_block = (end - 1) // block_size
            if end % block_size and first <= last_block * block_size:
                self.pool.tensor[table[last_block]].zero_()

    def _sample(
        self, logits: Tensor, sequences: list[Sequence], nexts: Future[dict[int, Next]] | None
    ) -> list[Sampled]:
        """`nexts`: by place in `sequences`, what the grammars of some allow."""
        if not sequences:
            return []
        allowed = {} if nexts is None else nexts.result()
        rows = [
            SamplingRow(
                params=sequence.sampling,
                prompt_token_ids=sequence.prompt_token_ids,
                output_token_ids=sequence.output_token_ids,
                eos_token_ids=self.eos_token_ids,
                allowed_bits=allowed[place].bits if place in allowed else None,
            )
            for place, sequence in enumerate(sequences)
        ]
        sampled = self._sampler(logits, rows)
        for place, following in allowed.items():
            if following.error is not None:
                sampled[place] = Sampled.failed(str(following.error), following.error.status)
        asking = [index for index, row in enumerate(rows) if row.params.num_top_logprobs]
        if asking:
            listed = top_logprobs(logits[asking], [rows[index] for index in asking])
            for index, logprobs in zip(asking, listed, strict=True):
                if not sampled[index].error:
                    token_id = sampled[index].token_id
                    sampled[index] = replace(sampled[index], logprob=float(logprobs.row[token_id]), top=logprobs.top)
        return sampled

    def _tensor(self, values: list[int] | list[list[int]], dtype: torch.dtype = torch.int64) -> Tensor:
        return torch.tensor(values, dtype=dtype, device=self.model.device)


def _decode_rows(rows: DecodeRows) -> StepRows:
    """A token for each sequence, all answered."""
    places = range(len(rows) + 1)
    return StepRows(
        token_ids=rows.token_ids,
        positions=rows.positions,
        slots=rows.slots,
        starts=places,
        contexts=rows.positions,
        block_tables=rows.block_tables,
        wanted=places[:-1],
        num_answered=len(rows),
        embedded=None,
        is_prefill=False,
    )
