"""Prompts of an exact length, as token ids, distinct in every request so that no prefix cache answers for the model.

The same seed gives the same prompts. A server's prefix cache may remember an earlier run's prompts, so a run
draws a fresh seed unless it is told one.
"""

import random
from dataclasses import dataclass

from errors import ConfigError


@dataclass(frozen=True, slots=True)
class PromptSource:
    """Draws token ids from [min_token_id, max_token_id], a range that must hold no special tokens."""

    seed: int
    min_token_id: int = 1000
    max_token_id: int = 30000

    def prompt(self, group: str, index: int, num_tokens: int, shared_prefix_tokens: int = 0) -> list[int]:
        """Request `index` of `group`: `shared_prefix_tokens` ids equal in the whole group, then ids of its own."""
        prefix = self._draw(f"{group}/prefix", shared_prefix_tokens)
        return prefix + self._draw(f"{group}/{index}", num_tokens - shared_prefix_tokens)

    def _draw(self, name: str, num_tokens: int) -> list[int]:
        draws = random.Random(f"{self.seed}/{name}")
        return draws.choices(range(self.min_token_id, self.max_token_id + 1), k=num_tokens)


def prompt_source(seed: int | None, min_token_id: int, max_token_id: int) -> PromptSource:
    """A source; without a seed a fresh one is drawn. Raises ConfigError on an empty range."""
    if min_token_id >= max_token_id:
        raise ConfigError(f"--min-token-id {min_token_id} must be below --max-token-id {max_token_id}")
    return PromptSource(random.SystemRandom().getrandbits(31) if seed is None else seed, min_token_id, max_token_id)
