"""Where tests and benchmarks may do to a pull what a broken machine or owner would do. Workers never hand one in."""

from collections.abc import Sequence
from typing import Protocol

import torch

IdPairs = tuple[Sequence[int], Sequence[int]]


class TransferFaults(Protocol):
    """What happens at the places where faults strike. Called on the pulling thread."""

    def before_copy(self) -> None:
        """The offer was found to stand; nothing has been copied."""

    def blocks(self, source_ids: Sequence[int], target_ids: Sequence[int]) -> IdPairs:
        """Which blocks are copied, in place of those that should be; where it is the puller who copies them."""

    def arrived(self, staging: torch.Tensor) -> None:
        """Between hosts: blocks have come into this buffer, and go from there into the pool. uint8, 1-D."""

    def after_copy(self) -> None:
        """Everything was copied; whether the offer still stands is found out next."""
