"""What a decode worker offers to prefill itself: how many prompts, and how long ones. Pure; Redis applies it.

`fits` is the rule of broker/lua/fits.lua, so that it can be read and tested without Redis.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Bid:
    """Stands for a moment, until it is used up. Tokens are those to prefill: the prompt's and the published ones."""

    num_jobs: int
    most_tokens: int  # however much waits for the prefill workers
    free_tokens: float  # a prompt may be so long where nothing is ahead of it
    tokens_per_token_ahead: float  # and by so much longer for each prompt token that would be computed before it
    look_tokens: int = 0  # a new prompt of at most so many may come too, to see how much of it is cached here

    def fits(self, num_tokens: int, tokens_ahead: int, *, is_new: bool) -> bool:
        """Whether such a job is one for the bidder."""
        allowed = min(float(self.most_tokens), self.free_tokens + tokens_ahead * self.tokens_per_token_ahead)
        return num_tokens <= allowed or (is_new and num_tokens <= self.look_tokens)

    def text(self) -> str:
        """As fits.lua reads it."""
        figures = self.num_jobs, self.most_tokens, self.free_tokens, self.tokens_per_token_ahead, self.look_tokens
        return " ".join(f"{figure:.17g}" for figure in figures)
