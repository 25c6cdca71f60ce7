"""How long a request may be, by which bound, and what would let a longer one in. Pure."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from messages.worker_status import WorkerState, WorkerStatus


@dataclass(frozen=True, slots=True)
class TokenLimits:
    """Bounds of prompt and output together, in tokens; 0: that one bounds nothing."""

    setting: int
    model: int
    workers: int  # of the smallest KV pool of those that are ready

    @property
    def most(self) -> int:
        """The smallest of them."""
        return min(bound for bound in (self.setting, self.model, self.workers) if bound > 0)

    def advice(self, prompt_tokens: int, new_tokens: int) -> str:
        """What to do about a request that is too long: as a client, and where it can help as an operator."""
        wanted = prompt_tokens + new_tokens
        left = self.most - prompt_tokens
        asked = f"ask for at most {left} new tokens" if left > 0 else f"shorten the prompt below {self.most} tokens"
        if 0 < self.model < wanted:
            return f"{asked}: the model was made for {self.model}"
        knobs = []
        if 0 < self.setting < wanted:
            knobs.append(f"PDQ_MODEL__MAX_TOTAL_TOKENS={wanted}")
        if 0 < self.workers < wanted:
            # Of a GPU's pool nobody knows here what its bytes are.
            times = math.ceil(100 * wanted / self.workers) / 100
            knobs.append(f"a KV pool {times:g} times as large (PDQ_KV__POOL_BYTES, or PDQ_KV__NUM_BLOCKS)")
        return f"{asked}, or the server takes it with {' and '.join(knobs)}"


def token_limits_of(workers: Sequence[WorkerStatus], setting: int, model: int) -> TokenLimits:
    """Of these workers and bounds."""
    capacities = [worker.capacity_tokens for worker in workers if worker.state == WorkerState.READY]
    return TokenLimits(setting, model, min((tokens for tokens in capacities if tokens > 0), default=0))
