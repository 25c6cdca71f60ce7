"""Every entry of the plain ops table against a direct, dense formula in float64."""

import math

import pytest
import torch
from torch import Tensor

from engine.kv_pool import KVLayout, KVPool
from kernels.ops import PrefillMeta, plain_ops

CPU = torch.device("cpu")
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 4e-2, torch.float16: 5e-3}
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def assert_near(ours: Tensor, wanted: Tensor, dtype: torch.dtype) -> None:
    assert ours.dtype == dtype
    torch.testing.assert_close(ours.double(), wanted.double(), atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("num_rows", [1, 2, 7, 33])
@pytest.mark.parametrize("with_bias", [False, True])
def test_linear(dtype: torch.dtype, num_rows: int, with_bias: bool) -> None:
    ops = plain_ops(CPU, dtype)
    x, weight, bias = randn(num_rows, 61, dtype=dtype), randn(37, 61, seed=1, dtype=dtype) / 8, randn(37, dtype=dtype)
    out = ops.linear(x, ops.pack_linear(weight), bias if with_bias else None)
    assert_near(out, x.double() @ weight.double().T + (bias.double() if with_bias else 0), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 60), (7, 61), (3, 5, 16)])  # the last: one norm per head
def test_rms_norm(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    x, weight = randn(*shape, dtype=dtype), randn(shape[-1], seed=1, dtype=dtype)
    wanted = x.double() / (x.double().pow(2).mean(-1, keepdim=True) + 1e-5).sqrt() * weight.double()
    assert_near(plain_ops(CPU, dtype).rms_norm(x, weight, 1e-5), wanted, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_rope_turns_pairs_by_the_angle(dtype: torch.dtype) -> None:
    q, k = randn(5, 6, 10, dtype=dtype), randn(5, 2, 10, seed=1, dtype=dtype)
    angles = randn(5, 5, seed=2).double()
    cos, sin = (torch.cat((part, part), -1).to(dtype) for part in (angles.cos(), angles.sin()))
    for ours, x in zip(plain_ops(CPU, dtype).rope(q, k, cos, sin), (q, k), strict=True):
        turned = torch.complex(x.double()[..., :5], x.double()[..., 5:]) * torch.exp(1j * angles)[:, None]
        assert_near(ours, torch.cat((turned.real, turned.imag), -1), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_silu_mul(dtype: torch.dtype) -> None:
    gate_up = randn(5, 22, dtype=dtype)
    gate, up = gate_up.double()[:, :11], gate_up.double()[:, 11:]
    assert_near(plain_ops(CPU, dtype).silu_mul(gate_up), gate / (1 + (-gate).exp()) * up, dtype)


class Paged:
    """Sequences with known keys and values, on scattered blocks of the second layer of a pool."""

    def __init__(self, lens: list[int], dtype: torch.dtype, block_size: int = 16) -> None:
        self.num_heads, self.num_kv_heads, self.head_dim, self.lens = 6, 2, 10, lens
        layout = KVLayout(3, self.num_kv_heads, block_size, self.head_dim, dtype)
        self.pool = KVPool.allocate(layout, 64)
        self.pool.tensor.normal_(generator=torch.Generator().manual_seed(9))  # what is not ours is not zero
        self.key_cache, self.value_cache = self.pool.layer(1)
        self.keys = [randn(n, self.num_kv_heads, self.head_dim, seed=n, dtype=dtype) for n in lens]
        self.values = [randn(n, self.num_kv_heads, self.head_dim, seed=n + 1, dtype=dtype) for n in lens]
        order = torch.randperm(64, generator=torch.Generator().manual_seed(3)).tolist()
        self.tables = [[order.pop() for _ in range(-(-n // block_size))] for n in lens]
        self.ops = plain_ops(CPU, dtype)
        self.scale = 1 / math.sqrt(self.head_dim)

    def slots(self, index: int, first: int, end: int) -> list[int]:
        size = self.pool.layout.block_size
        return [self.tables[index][place // size] * size + place % size for place in range(first, end)]

    def write(self, index: int, first: int, end: int) -> None:
        slots = torch.tensor(self.slots(index, first, end))
        k, v = self.keys[index][first:end], self.values[index][first:end]
        self.ops.kv_write(k, v, self.key_cache, self.value_cache, slots)

    def wanted(self, q: Tensor, index: int, position: int, window: int | None, cap: float | None) -> Tensor:
        """Attention of one query [H, D] at `position`, head by head."""
        first = 0 if window is None else max(0, position - window + 1)
        out = torch.empty(q.shape, dtype=torch.float64)
        for head in range(self.num_heads):
            kv_head = head // (self.num_heads // self.num_kv_heads)
            keys = self.keys[index][first : position + 1, kv_head].double()
            scores = keys @ q[head].double() * self.scale
            weights = (scores if cap is None else cap * (scores / cap).tanh()).softmax(0)
            out[head] = weights @ self.values[index][first : position + 1, kv_head].double()
        return out


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("block_size", [16, 32])
def test_kv_write_touches_its_slots_only(dtype: torch.dtype, block_size: int) -> None:
    paged = Paged([1, 37], dtype, block_size)
    before = paged.pool.tensor.clone()
    for index, length in enumerate(paged.lens):
        paged.write(index, 0, length)
        for place, slot in enumerate(paged.slots(index, 0, length)):
            block, offset = slot // block_size, slot % block_size
            before[block, 1, 0, :, offset] = paged.keys[index][place]
            before[block, 1, 1, :, offset] = paged.values[index][place]
    assert torch.equal(paged.pool.tensor, before)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("window", [None, 1, 13, 16, 400])
@pytest.mark.parametrize("cap", [None, 0.7])
@pytest.mark.parametrize("lens", [[37], [1, 16, 17, 70], [33, 33]], ids=str)  # alone; ragged (mask); equal (no mask)
def test_attention_decode(dtype: torch.dtype, window: int | None, lens: list[int], cap: float | None) -> None:
    paged = Paged(lens, dtype)
    for index, length in enumerate(lens):
        paged.write(index, 0, length)
    longest = max(len(table) for table in paged.tables)
    tables = torch.tensor([table + table[:1] * (longest - len(table)) for table in paged.tables], dtype=torch.int32)
    q = randn(len(lens), 6, 10, seed=5, dtype=dtype)
    out = paged.ops.attention_decode(
        q, paged.key_cache, paged.value_cache, tables, torch.tensor(lens, dtype=torch.int32), paged.scale, window, cap
    )
    wanted = torch.stack([paged.wanted(q[index], index, length - 1, window, cap) for index, length in enumerate(lens)])
    assert_near(out, wanted, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("window", [None, 1, 13, 400])
@pytest.mark.parametrize("cap", [None, 0.7])
def test_attention_prefill(dtype: torch.dtype, window: int | None, cap: float | None) -> None:
    # no context; one token; context that ends on a block's border; within a block; one token after context
    lens, context_lens = [37, 1, 48, 50, 20], [0, 0, 32, 21, 19]
    paged = Paged(lens, dtype)
    cu_seqlens_q, queries, keys, values = [0], [], [], []
    for index, (length, context_len) in enumerate(zip(lens, context_lens, strict=True)):
        if context_len:
            paged.write(index, 0, context_len)
        queries.append(randn(length - context_len, 6, 10, seed=index, dtype=dtype))
        keys.append(paged.keys[index][context_len:])
        values.append(paged.values[index][context_len:])
        cu_seqlens_q.append(cu_seqlens_q[-1] + length - context_len)
    meta = PrefillMeta.of(cu_seqlens_q, context_lens, paged.tables, CPU)
    out = paged.ops.attention_prefill(
        torch.cat(queries), torch.cat(keys), torch.cat(values), paged.key_cache, paged.value_cache,
        meta, paged.scale, window, cap,
    )  # fmt: skip
    wanted = [
        paged.wanted(q, index, context_lens[index] + place, window, cap)
        for index, packed in enumerate(queries)
        for place, q in enumerate(packed)
    ]
    assert_near(out, torch.stack(wanted), dtype)
