"""What the runner, the pool's sizing and the recorded steps ask of a model. `Model` and `TransformersModel` are two."""

from typing import Protocol

import torch
from torch import Tensor

from engine.kv_pool import KVPool
from engine.model import DecodeMeta
from engine.model_config import ModelConfig
from engine.tensor_parallel import Communicator
from kernels.decoder_step import StepRows
from kernels.ops import PrefillMeta


class ServedModel(Protocol):
    """Shapes and meanings: `engine.model.Model`."""

    config: ModelConfig
    dtype: torch.dtype
    device: torch.device
    model_hash: str

    @property
    def communicator(self) -> Communicator: ...
    @property
    def is_reward(self) -> bool: ...
    @property
    def num_kv_heads(self) -> int: ...
    @property
    def needs_clean_tails(self) -> bool: ...
    @property
    def has_whole_steps(self) -> bool: ...
    @property
    def can_be_recorded(self) -> bool: ...

    def step(self, rows: StepRows, pool: KVPool) -> tuple[Tensor, Tensor | None]: ...

    def largest_of_step(self, rows: StepRows, pool: KVPool) -> tuple[list[int], list[float]]: ...

    def embed(self, token_ids: Tensor) -> Tensor: ...

    def forward(
        self,
        token_ids: Tensor,
        positions: Tensor,
        slot_mapping: Tensor,
        meta: PrefillMeta | DecodeMeta,
        pool: KVPool,
        embedded: Tensor | None = None,
    ) -> Tensor: ...

    def logits(self, hidden: Tensor, out: Tensor | None = None) -> Tensor: ...

    def score(self, hidden: Tensor) -> Tensor: ...
