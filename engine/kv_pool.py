"""The paged KV pool: one tensor, block-major, so that one block is one contiguous run of bytes in every layer at once.

A transfer copies a block as it lies here; `KVLayout` says all that both ends must agree on before the first byte.
Knows no allocator: which block belongs to whom is decided elsewhere.
"""

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class KVLayout:
    """The shape of one block."""

    num_layers: int
    num_kv_heads: int
    block_size: int  # tokens per block
    head_dim: int
    dtype: torch.dtype

    @property
    def token_bytes(self) -> int:
        """Bytes of the keys and values of one token in all layers."""
        return self.num_layers * 2 * self.num_kv_heads * self.head_dim * self.dtype.itemsize

    @property
    def head_bytes(self) -> int:
        """Bytes of the keys, or values, of one head of one layer in a block."""
        return self.block_size * self.head_dim * self.dtype.itemsize

    @property
    def block_bytes(self) -> int:
        """Bytes of one block."""
        return self.token_bytes * self.block_size

    @property
    def block_shape(self) -> tuple[int, int, int, int, int]:
        """One block: [num_layers, 2 (keys, values), num_kv_heads, block_size, head_dim]."""
        return self.num_layers, 2, self.num_kv_heads, self.block_size, self.head_dim

    def hash(self, model_hash: str) -> str:
        """Hex digest that two pools share exactly when a block of one means the same in the other."""
        text = f"{model_hash} {self.block_shape} {self.dtype}"
        return hashlib.sha256(text.encode()).hexdigest()


class KVPool:
    """Keys and values of `num_blocks` blocks."""

    def __init__(self, layout: KVLayout, tensor: Tensor) -> None:
        """tensor: [num_blocks, *layout.block_shape], contiguous, of the layout's dtype."""
        if tensor.shape[1:] != layout.block_shape or tensor.dtype != layout.dtype or not tensor.is_contiguous():
            raise ValueError(f"a pool of {layout} cannot lie on a {tensor.dtype} tensor of shape {tuple(tensor.shape)}")
        self.layout = layout
        self.tensor = tensor
        self._layers = [(tensor[:, layer, 0], tensor[:, layer, 1]) for layer in range(layout.num_layers)]

    @classmethod
    def allocate(cls, layout: KVLayout, num_blocks: int, device: torch.device | str = "cpu") -> "KVPool":
        """A pool in memory of its own, zeroed; by writing, so that no later write has to wait for its page."""
        return cls(layout, torch.empty((num_blocks, *layout.block_shape), dtype=layout.dtype, device=device).zero_())

    @classmethod
    def over(cls, layout: KVLayout, buffer: Tensor) -> "KVPool":
        """A pool on given memory. buffer: uint8 [num_blocks * layout.block_bytes]."""
        if buffer.dtype != torch.uint8 or buffer.dim() != 1 or buffer.numel() % layout.block_bytes:
            raise ValueError(f"{buffer.numel()} x {buffer.dtype} are no whole blocks of {layout.block_bytes} bytes")
        return cls(layout, buffer.view(layout.dtype).view(-1, *layout.block_shape))

    @property
    def num_blocks(self) -> int:
        """Blocks in the pool."""
        return self.tensor.shape[0]

    def layer(self, index: int) -> tuple[Tensor, Tensor]:
        """(key_cache, value_cache) of one layer, views: [num_blocks, num_kv_heads, block_size, head_dim] each."""
        return self._layers[index]
