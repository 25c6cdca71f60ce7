"""How a model is cut into one part per process (Megatron's way), and what its parts ask of each other in a step.

Attention is cut by heads and the MLP by its intermediate size. So a layer's first products (queries, keys and values;
gate and up) need nothing of the other ranks, and its second ones (output; down) give a sum that is completed by one
all-reduce each. The language head is cut by the vocabulary. Knows no process and no transport.
"""

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from engine.model_config import ModelConfig
from messages import ConfigError


@dataclass(frozen=True, slots=True)
class Shard:
    """Which part of how many."""

    rank: int = 0
    num_ranks: int = 1

    def part(self, size: int) -> range:
        """Our part of `size` things, which every rank has equally many of."""
        assert size % self.num_ranks == 0, f"{size} things on {self.num_ranks} ranks"
        count = size // self.num_ranks
        return range(self.rank * count, (self.rank + 1) * count)


WHOLE = Shard()


def kv_heads_of(num_kv_heads: int, shard: Shard) -> range:
    """The key-value heads in the rank's KV pool; where there are more ranks than heads, several ranks have the same."""
    if shard.num_ranks <= num_kv_heads:
        return shard.part(num_kv_heads)
    head = shard.rank * num_kv_heads // shard.num_ranks
    return range(head, head + 1)


@dataclass(frozen=True, slots=True)
class ModelSlice:
    """What one rank has of a model."""

    heads: range
    kv_heads: range  # those that `heads` attend to
    vocab: range  # of the language head's rows; the last ranks may have fewer, or none
    vocab_rows: int  # of every rank's part of the head, padding included

    @classmethod
    def of(cls, config: ModelConfig, shard: Shard) -> "ModelSlice":
        """Raises ConfigError when the model cannot be cut into so many parts."""
        count = shard.num_ranks
        if config.reads_images and count > 1:
            raise ConfigError(
                f"TENSOR_PARALLEL = {count}: {config.architecture} reads images, it is not cut into ranks; set it to 1"
            )
        experts = config.experts
        sizes = {
            "attention heads": config.num_heads,
            "intermediate size": config.intermediate_size,
            "experts' intermediate size": 0 if experts is None else experts.intermediate_size,
            "shared expert's intermediate size": 0 if experts is None else experts.shared_intermediate_size,
        }
        for name, size in sizes.items():
            if size % count:
                raise ConfigError(f"TENSOR_PARALLEL = {count}: the model's {name}, {size}, do not divide by it")
        if config.num_kv_heads % count and count % config.num_kv_heads:
            raise ConfigError(
                f"TENSOR_PARALLEL = {count}: neither a divisor nor a multiple of the model's {config.num_kv_heads} "
                "key-value heads"
            )
        vocab_rows = -(-config.vocab_size // count)
        first = min(shard.rank * vocab_rows, config.vocab_size)
        return cls(
            heads=shard.part(config.num_heads),
            kv_heads=kv_heads_of(config.num_kv_heads, shard),
            vocab=range(first, min(first + vocab_rows, config.vocab_size)),
            vocab_rows=vocab_rows,
        )


class Communicator(Protocol):
    """What the ranks of a model do together. Every rank calls the same, in the same order."""

    @property
    def shard(self) -> Shard:
        """Which rank this is."""

    def all_reduce(self, part: Tensor) -> Tensor:
        """The sum of all ranks' parts, in each rank; `part` may be overwritten with it."""

    def all_gather(self, part: Tensor) -> Tensor:
        """[rows, columns], equally many in every rank -> [rows, num_ranks * columns], rank 0's columns first."""


class SingleRank:
    """The communicator of a model that is not cut."""

    shard = WHOLE

    def all_reduce(self, part: Tensor) -> Tensor:
        """See Communicator."""
        return part

    def all_gather(self, part: Tensor) -> Tensor:
        """See Communicator."""
        return part
