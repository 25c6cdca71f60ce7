"""The pool is block-major, and its layout hash stands for all that two ends must share."""

import dataclasses

import pytest
import torch

from engine.kv_pool import KVLayout, KVPool

LAYOUT = KVLayout(num_layers=3, num_kv_heads=2, block_size=16, head_dim=10, dtype=torch.bfloat16)


def test_sizes() -> None:
    assert LAYOUT.token_bytes == 3 * 2 * 2 * 10 * 2
    assert LAYOUT.block_bytes == LAYOUT.token_bytes * 16
    pool = KVPool.allocate(LAYOUT, 5)
    assert pool.num_blocks == 5
    assert pool.tensor.nbytes == 5 * LAYOUT.block_bytes
    assert tuple(pool.tensor.shape) == (5, 3, 2, 2, 16, 10)


def test_a_block_is_one_run_of_bytes_with_every_layer_in_it() -> None:
    buffer = torch.zeros(5 * LAYOUT.block_bytes, dtype=torch.uint8)
    pool = KVPool.over(LAYOUT, buffer)
    for layer in range(3):
        key_cache, value_cache = pool.layer(layer)
        assert tuple(key_cache.shape) == (5, 2, 16, 10)
        key_cache[3] = layer + 1
        value_cache[3] = -layer - 1
    touched = buffer.view(5, LAYOUT.block_bytes).any(dim=1).tolist()
    assert touched == [False, False, False, True, False]
    values = buffer.view(5, LAYOUT.block_bytes)[3].view(torch.bfloat16).view(3, 2, -1)
    assert values[:, :, 0].tolist() == [[1, -1], [2, -2], [3, -3]]
    assert (values == values[:, :, :1]).all()


def test_unfit_memory_is_refused() -> None:
    with pytest.raises(ValueError, match="no whole blocks"):
        KVPool.over(LAYOUT, torch.zeros(LAYOUT.block_bytes + 1, dtype=torch.uint8))
    with pytest.raises(ValueError, match="cannot lie on"):
        KVPool(LAYOUT, torch.zeros((5, 3, 2, 2, 16, 11), dtype=torch.bfloat16))
    with pytest.raises(ValueError, match="cannot lie on"):
        KVPool(LAYOUT, torch.zeros((5, 3, 2, 2, 16, 10), dtype=torch.float16))


@pytest.mark.parametrize(
    "change",
    [{"num_layers": 4}, {"num_kv_heads": 1}, {"block_size": 32}, {"head_dim": 20}, {"dtype": torch.float16}],
)
def test_hash_moves_with_every_field_and_the_model(change: dict[str, object]) -> None:
    assert LAYOUT.hash("a") == dataclasses.replace(LAYOUT).hash("a")
    assert LAYOUT.hash("a") != LAYOUT.hash("b")
    assert LAYOUT.hash("a") != dataclasses.replace(LAYOUT, **change).hash("a")  # type: ignore[arg-type]
