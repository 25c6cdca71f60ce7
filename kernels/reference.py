"""The ops table in plain torch: oracle for every other kernel, fallback on any device, and fast enough on a CPU.

A layer's caches are strided views of the pool, [num_blocks, num_kv_heads, block_size, head_dim], in which the last
three dimensions lie contiguously. Both paged operations therefore see a cache as a plain matrix whose rows are one
block of one head (or one slot of one head) and move whole rows: indexing the 4-D view instead is 7x slower.
Knows tensors only.
"""

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True, slots=True)
class PrefillMeta:
    """Where the sequences of a packed prefill begin, and what of each is in the cache already.

    Lists are what the host sizes its launches by, tensors are the same for kernels.
    """

    cu_seqlens_q: list[int]  # num_seqs + 1 prefix sums of new tokens, from 0
    context_lens: list[int]  # tokens of each sequence that are in the cache
    block_tables: Tensor  # int32 [num_seqs, max_blocks] on the device, padded with blocks of the same sequence
    cu_seqlens_q_device: Tensor  # int32 [num_seqs + 1]
    context_lens_device: Tensor  # int32 [num_seqs]
    # What a launcher works out once for all layers: by tokens per tile, int32 [num_tiles, 2] (sequence, first token).
    tiles: dict[int, Tensor] = field(default_factory=dict, compare=False)

    @classmethod
    def of(
        cls, cu_seqlens_q: list[int], context_lens: list[int], block_tables: list[list[int]], device: torch.device
    ) -> "PrefillMeta":
        """block_tables: per sequence the blocks of its context and its new tokens, at least one."""
        longest = max(map(len, block_tables), default=0)
        padded = [table + table[:1] * (longest - len(table)) for table in block_tables]

        def on_device(values: list[int] | list[list[int]]) -> Tensor:
            return torch.tensor(values, dtype=torch.int32, device=device)

        return cls(cu_seqlens_q, context_lens, on_device(padded), on_device(cu_seqlens_q), on_device(context_lens))


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """out = x @ weight.T + bias    x: [T, in], weight: [out, in], bias: [out] -> [T, out]"""
    return F.linear(x, weight, bias)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """out[..., j] = x[..., j] * weight[j] / sqrt(mean_j(x^2) + eps)    x: [..., hidden]

    A weight of more digits than x has is not rounded to them: the result is.
    """
    if weight.dtype != x.dtype:
        return F.rms_norm(x.to(weight.dtype), (x.shape[-1],), weight, eps).to(x.dtype)
    return F.rms_norm(x, (x.shape[-1],), weight, eps)


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """residual' = residual + x, rounded to their type; -> (rms_norm(residual'), residual')    x, residual: [T, hidden]

    `residual` may be overwritten with the sum; nobody reads the old one again.
    """
    residual = residual + x
    return rms_norm(residual, weight, eps), residual


def rope(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """x * cos + (-x[D/2:], x[:D/2]) * sin on q [T, H, D] and k [T, KVH, D]; cos, sin: [T, D], both halves equal.

    An implementation may turn q and k where they lie and return them.
    """
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    return _rotate(q, cos, sin), _rotate(k, cos, sin)


def norm_rope(
    q: Tensor, k: Tensor, q_weight: Tensor, k_weight: Tensor, eps: float, cos: Tensor, sin: Tensor
) -> tuple[Tensor, Tensor]:
    """`rope` of every head's `rms_norm` (Qwen3's qk_norm). q_weight, k_weight: [D]; the norm is rounded to q's type."""
    return rope(rms_norm(q, q_weight, eps), rms_norm(k, k_weight, eps), cos, sin)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    low, high = x.chunk(2, dim=-1)
    return torch.addcmul(x * cos, torch.cat((-high, low), dim=-1), sin)


def silu_mul(gate_up: Tensor) -> Tensor:
    """out = silu(gate) * up    gate_up: [T, 2 * I], gate first -> [T, I]"""
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate) * up


def kv_write(k: Tensor, v: Tensor, key_cache: Tensor, value_cache: Tensor, slot_mapping: Tensor) -> None:
    """cache[slot // block_size, :, slot % block_size] = k or v    k, v: [T, KVH, D], slot_mapping: int64 [T], no -1

    A float8 cache takes them rounded to nearest and cut at its largest value.
    """
    num_kv_heads, block_size, head_dim = key_cache.shape[1:]
    blocks = torch.div(slot_mapping, block_size, rounding_mode="floor")
    heads = torch.arange(num_kv_heads, device=slot_mapping.device)
    for new, cache in ((k, key_cache), (v, value_cache)):
        rows, rows_per_block = _rows(cache, head_dim)
        first = blocks * rows_per_block + slot_mapping % block_size  # [T]
        index = first.unsqueeze(1) + heads * block_size  # [T, KVH]
        _as_bytes(rows).index_copy_(0, index.view(-1), _as_bytes(_to_cache(new, cache.dtype).reshape(-1, head_dim)))


def _to_cache(new: Tensor, dtype: torch.dtype) -> Tensor:
    if dtype == torch.float8_e4m3fn:
        largest = torch.finfo(dtype).max
        new = new.clamp(-largest, largest)  # torch's own cast makes NaN of what is larger
    return new.to(dtype)


def _as_bytes(rows: Tensor) -> Tensor:
    """torch copies no float8 rows by index, but their bytes; other types are as they are."""
    return rows.view(torch.uint8) if rows.dtype == torch.float8_e4m3fn else rows


def attention_prefill(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    meta: PrefillMeta,
    scale: float,
    sliding_window: int | None,
    cap: float | None = None,
) -> Tensor:
    """Causal attention of new tokens over their sequence's cached context and each other.

    q: [T, H, D]; k, v: [T, KVH, D]; T packs the new tokens of all sequences. A token sees itself and what is before
    it, with a window of w only the last w of these. With a cap of c scores are c * tanh(scores / c). -> [T, H, D]
    """
    out = torch.empty_like(q)
    for index, context_len in enumerate(meta.context_lens):
        rows = slice(meta.cu_seqlens_q[index], meta.cu_seqlens_q[index + 1])
        keys, values = k[rows].transpose(0, 1), v[rows].transpose(0, 1)  # [KVH, new, D]
        num_new = keys.shape[1]
        # Context that no new token can see any more is not even read.
        first = 0 if sliding_window is None else max(0, context_len - sliding_window + 1)
        if first < context_len:
            cached_k, cached_v = (
                _gather_context(cache, meta.block_tables[index], first, context_len).to(q.dtype)
                for cache in (key_cache, value_cache)
            )
            keys, values = torch.cat((cached_k, keys), dim=1), torch.cat((cached_v, values), dim=1)
        mask = _prefill_mask(num_new, keys.shape[1], sliding_window, q.device)
        if cap is not None:
            if mask is None and num_new > 1:
                mask = torch.ones(num_new, num_new, dtype=torch.bool, device=q.device).tril()
            by_group = (len(keys), q.shape[1] // len(keys), num_new, q.shape[2])
            grouped = q[rows].transpose(0, 1).reshape(by_group)  # [KVH, group, new, D]
            attended = _capped_attention(grouped, keys.unsqueeze(1), values.unsqueeze(1), mask, scale, cap)
            out[rows] = attended.flatten(0, 1).transpose(0, 1)
            continue
        attended = F.scaled_dot_product_attention(
            q[rows].transpose(0, 1).unsqueeze(0),
            keys.unsqueeze(0),
            values.unsqueeze(0),
            attn_mask=mask,
            is_causal=mask is None and num_new > 1,
            scale=scale,
            enable_gqa=q.shape[1] != k.shape[1],
        )
        out[rows] = attended.squeeze(0).transpose(0, 1)
    return out


def _capped_attention(q: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, scale: float, cap: float) -> Tensor:
    """softmax(cap * tanh(q . k * scale / cap)) . v in float32. q: [..., n, D]; keys, values: [..., m, D] -> like q"""
    scores = torch.tanh(q.float() @ keys.float().mT * (scale / cap)) * cap
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    return (scores.softmax(dim=-1) @ values.float()).to(q.dtype)


def _prefill_mask(num_new: int, num_keys: int, sliding_window: int | None, device: torch.device) -> Tensor | None:
    """bool [num_new, num_keys], or None where plain causality says the same. The last key is the last new token."""
    within_window = sliding_window is None or num_keys <= sliding_window
    if within_window and (num_keys == num_new or num_new == 1):
        return None
    distance = torch.arange(num_keys - num_new, num_keys, device=device).unsqueeze(1) - torch.arange(
        num_keys, device=device
    )
    mask = distance >= 0
    return mask if sliding_window is None else mask & (distance < sliding_window)


def _gather_context(cache: Tensor, block_table: Tensor, first: int, end: int) -> Tensor:
    """Tokens [first, end) of a sequence out of its blocks. -> [KVH, end - first, D]"""
    block_size = cache.shape[2]
    first_block = first // block_size
    wanted = block_table[first_block : -(-end // block_size)].long()
    gathered = _gather_blocks(cache, wanted.unsqueeze(0)).squeeze(0)
    return gathered[:, first - first_block * block_size : end - first_block * block_size]


def attention_decode(
    q: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    block_tables: Tensor,
    seq_lens: Tensor,
    scale: float,
    sliding_window: int | None,
    cap: float | None = None,
) -> Tensor:
    """Attention of one new token per sequence over its cached tokens, its own (written before) included.

    q: [B, H, D]; block_tables: int32 [B, max_blocks], entries past a sequence's end are any valid block; seq_lens:
    [B]. With a window of w only the last w tokens are seen. With a cap of c scores are c * tanh(scores / c).
    -> [B, H, D]
    """
    num_seqs, num_heads, head_dim = q.shape
    num_kv_heads, block_size = key_cache.shape[1:3]
    longest = int(seq_lens.max())
    shortest = longest if num_seqs == 1 else int(seq_lens.min())
    # Blocks that every sequence's window has left behind are not read.
    first = 0 if sliding_window is None else max(0, shortest - sliding_window) // block_size * block_size
    tables = block_tables[:, first // block_size : -(-longest // block_size)].long()
    keys = _gather_blocks(key_cache, tables)[:, :, : longest - first].to(q.dtype)
    values = _gather_blocks(value_cache, tables)[:, :, : longest - first].to(q.dtype)
    mask = None
    if shortest != longest or (sliding_window is not None and longest - first > sliding_window):
        positions = torch.arange(first, longest, device=q.device)
        lens = seq_lens.unsqueeze(1)
        mask = positions < lens
        if sliding_window is not None:
            mask &= positions >= lens - sliding_window
        mask = mask[:, None, None]
    # The heads that share a KV head stand as its queries: no key is repeated (enable_gqa is 6x slower here).
    grouped = q.reshape(num_seqs, num_kv_heads, num_heads // num_kv_heads, head_dim)
    if cap is not None:
        attended = _capped_attention(grouped, keys, values, mask, scale, cap)
    else:
        attended = F.scaled_dot_product_attention(grouped, keys, values, attn_mask=mask, scale=scale)
    return attended.reshape(num_seqs, num_heads, head_dim)


def _gather_blocks(cache: Tensor, block_tables: Tensor) -> Tensor:
    """block_tables: int64 [B, n] -> [B, KVH, n * block_size, D], one copy of whole (block, head) rows."""
    _, num_kv_heads, block_size, head_dim = cache.shape
    num_seqs, num_blocks = block_tables.shape
    rows, rows_per_block = _rows(cache, block_size * head_dim)
    heads = torch.arange(num_kv_heads, device=cache.device).view(1, -1, 1)
    index = block_tables.unsqueeze(1) * rows_per_block + heads  # [B, KVH, n]
    picked = _as_bytes(rows).index_select(0, index.view(-1)).view(cache.dtype)
    return picked.view(num_seqs, num_kv_heads, num_blocks * block_size, head_dim)


def _rows(cache: Tensor, row_size: int) -> tuple[Tensor, int]:
    """The cache's memory as a matrix of rows of `row_size` elements, and how many rows lie from block to block."""
    num_blocks, num_kv_heads, block_size, head_dim = cache.shape
    assert cache[0].is_contiguous() and cache.stride(0) % row_size == 0, "a block of one layer is contiguous"
    rows_per_block = cache.stride(0) // row_size
    own_rows = num_kv_heads * block_size * head_dim // row_size
    return cache.as_strided(((num_blocks - 1) * rows_per_block + own_rows, row_size), (row_size, 1)), rows_per_block
