"""The engine's state of one sequence: its tokens, how far their KV is computed, and where that KV lies.

Knows no queue, no record and no tensor. Whoever runs the sequence appends its tokens and owns its blocks.
"""

from dataclasses import dataclass, field

from engine.grammar_state import GrammarState
from engine.image_features import ImageFeatures
from messages import ImageRef, PromptLogprob, SamplingParams


@dataclass(slots=True, eq=False)
class Sequence:
    """One prompt and what was generated for it so far. Compared by identity.

    `token_ids` is prompt + output; a continuation on another worker starts with the published tokens in it, and
    `num_prompt_tokens` stays the length of the client's prompt. `block_table[i]` is the block of tokens
    [i * block_size, (i + 1) * block_size).
    """

    sequence_id: str
    token_ids: list[int]
    num_prompt_tokens: int
    sampling: SamplingParams
    num_computed_tokens: int = 0  # tokens whose KV is in the pool
    block_table: list[int] = field(default_factory=list)
    grammar: GrammarState | None = None  # where the sampling asks for one: once a worker has compiled it
    num_cached_tokens: int = 0  # of the computed ones, those that a prefix cache had
    images: tuple[ImageRef, ...] = ()  # of the prompt
    image_features: ImageFeatures | None = None  # of those that are yet to be computed: once a worker has them
    prompt_logprobs: list[PromptLogprob] = field(default_factory=list)  # of tokens 1 and up, as far as computed

    @property
    def num_tokens(self) -> int:
        """Prompt and output tokens."""
        return len(self.token_ids)

    @property
    def num_output_tokens(self) -> int:
        """Tokens generated so far; also the index of the next one."""
        return len(self.token_ids) - self.num_prompt_tokens

    @property
    def prompt_token_ids(self) -> list[int]:
        """A copy of the prompt's ids."""
        return self.token_ids[: self.num_prompt_tokens]

    @property
    def output_token_ids(self) -> list[int]:
        """A copy of the generated ids."""
        return self.token_ids[self.num_prompt_tokens :]

    @property
    def lists_prompt(self) -> bool:
        """Whether the logprobs of its prompt are wanted and not published yet: then all of it has to be computed, and
        no cached prefix is of use."""
        return self.sampling.num_prompt_logprobs is not None and not self.num_output_tokens

    @property
    def images_to_compute(self) -> list[ImageRef]:
        """Those with tokens whose KV is not in the pool."""
        return [image for image in self.images if image.end > self.num_computed_tokens]

    def num_blocks(self, block_size: int) -> int:
        """Blocks that hold the KV of all its tokens."""
        return -(-len(self.token_ids) // block_size)
