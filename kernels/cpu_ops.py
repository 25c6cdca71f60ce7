"""Launchers of the C++ kernels but for linears: entries of the ops table on a CPU with AVX2, for float32 and bfloat16.

Each takes and returns what its twin in `kernels/reference.py` does, checks types and strides, and hands pointers over.
ctypes lets go of the GIL meanwhile. The threads are the library's own (`kernels/cpu/team.h`). No result depends on how
many they are, or on the other rows of a batch. A whole model goes another way: `kernels/decoder_step.py`.
"""

import ctypes
from ctypes import c_float, c_int64, c_void_p

import torch
from torch import Tensor

from kernels import reference
from kernels.cpu_linear import native_function
from kernels.reference import PrefillMeta

VECTOR = 8  # floats; what attention wants a head to be whole ones of
SUFFIXES = {torch.bfloat16: "bf16", torch.float32: "f32"}

_POINTER, _SIZE = c_void_p, c_int64
_SIGNATURES: dict[str, list[type]] = {
    "rms_norm": [_POINTER, _SIZE, _SIZE, _POINTER, _POINTER, *[_SIZE] * 3, c_float],
    "rope": [_POINTER, _SIZE, _SIZE, *[_POINTER] * 3, *[_SIZE] * 3],
    "silu_mul": [_POINTER, _SIZE, _POINTER, _SIZE, _SIZE],
    "kv_write": [*[_POINTER, _SIZE, _SIZE] * 2, _POINTER, _POINTER, _SIZE, _POINTER, *[_SIZE] * 4],
    "attention_decode": [
        *[_POINTER, _SIZE, _SIZE, _POINTER, _POINTER, _SIZE, _POINTER, _SIZE, _POINTER, _POINTER],
        *[_SIZE] * 5,
        *[c_float, _SIZE],
    ],
}


class CpuOps:
    """The launchers of one dtype."""

    def __init__(self, library: ctypes.CDLL, dtype: torch.dtype) -> None:
        self.dtype = dtype
        functions = {
            name: native_function(library, f"{name}_{SUFFIXES[dtype]}", _SIGNATURES[name]) for name in _SIGNATURES
        }
        self._rms_norm, self._rope, self._silu_mul = functions["rms_norm"], functions["rope"], functions["silu_mul"]
        self._kv_write, self._attention_decode = functions["kv_write"], functions["attention_decode"]

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """`reference.rms_norm` of [rows, size] or [rows, heads, size]; itself where the weight has another type."""
        if weight.dtype != self.dtype:
            return reference.rms_norm(x, weight, eps)
        self._check(x)
        size = x.shape[-1]
        assert x.dim() in (2, 3) and x.stride(-1) == 1
        assert weight.dtype == self.dtype and weight.shape == (size,) and weight.is_contiguous()
        inner, inner_stride = (1, 0) if x.dim() == 2 else (x.shape[1], x.stride(1))
        out = torch.empty(x.shape, dtype=self.dtype)
        self._rms_norm(
            x.data_ptr(),
            x.stride(0),
            inner_stride,
            weight.data_ptr(),
            out.data_ptr(),
            x.shape[0],
            inner,
            size,
            eps,
        )
        return out

    def add_rms_norm(self, x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        """`reference.add_rms_norm`"""
        residual = residual + x
        return self.rms_norm(residual, weight, eps), residual

    def rope(self, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        """`reference.rope`"""
        tokens, head_dim = cos.shape
        assert cos.dtype == sin.dtype == self.dtype and cos.is_contiguous() and sin.is_contiguous()
        assert sin.shape == cos.shape and head_dim % 2 == 0
        return self._rotated(q, cos, sin), self._rotated(k, cos, sin)

    def norm_rope(
        self, q: Tensor, k: Tensor, q_weight: Tensor, k_weight: Tensor, eps: float, cos: Tensor, sin: Tensor
    ) -> tuple[Tensor, Tensor]:
        """`reference.norm_rope`"""
        return self.rope(self.rms_norm(q, q_weight, eps), self.rms_norm(k, k_weight, eps), cos, sin)

    def _rotated(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        self._check(x)
        tokens, heads, head_dim = x.shape
        assert x.stride(2) == 1 and cos.shape == (tokens, head_dim)
        out = torch.empty(tokens, heads, head_dim, dtype=self.dtype)
        self._rope(
            x.data_ptr(),
            x.stride(0),
            x.stride(1),
            cos.data_ptr(),
            sin.data_ptr(),
            out.data_ptr(),
            tokens,
            heads,
            head_dim,
        )
        return out

    def silu_mul(self, gate_up: Tensor) -> Tensor:
        """`reference.silu_mul`"""
        self._check(gate_up)
        rows, doubled = gate_up.shape
        assert gate_up.stride(1) == 1 and doubled % 2 == 0
        out = torch.empty(rows, doubled // 2, dtype=self.dtype)
        self._silu_mul(gate_up.data_ptr(), gate_up.stride(0), out.data_ptr(), rows, doubled // 2)
        return out

    def kv_write(self, k: Tensor, v: Tensor, key_cache: Tensor, value_cache: Tensor, slot_mapping: Tensor) -> None:
        """`reference.kv_write`"""
        self._check(k)
        self._check(v)
        self._check_caches(key_cache, value_cache)
        num_kv_heads, block_size, head_dim = key_cache.shape[1:]
        tokens = slot_mapping.shape[0]
        assert k.shape == v.shape == (tokens, num_kv_heads, head_dim) and k.stride(2) == v.stride(2) == 1
        assert slot_mapping.dtype == torch.int64 and slot_mapping.is_contiguous()
        self._kv_write(
            k.data_ptr(),
            k.stride(0),
            k.stride(1),
            v.data_ptr(),
            v.stride(0),
            v.stride(1),
            key_cache.data_ptr(),
            value_cache.data_ptr(),
            key_cache.stride(0),
            slot_mapping.data_ptr(),
            tokens,
            num_kv_heads,
            block_size,
            head_dim,
        )

    def attention_prefill(
        self,
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
        """`reference.attention_prefill`"""
        return reference.attention_prefill(q, k, v, key_cache, value_cache, meta, scale, sliding_window, cap)

    def attention_decode(
        self,
        q: Tensor,
        key_cache: Tensor,
        value_cache: Tensor,
        block_tables: Tensor,
        seq_lens: Tensor,
        scale: float,
        sliding_window: int | None,
        cap: float | None = None,
    ) -> Tensor:
        """`reference.attention_decode`, straight from the pool; that itself for a cap or heads of no whole vectors."""
        num_seqs, num_heads, head_dim = q.shape
        if head_dim % VECTOR or cap is not None:
            return reference.attention_decode(
                q, key_cache, value_cache, block_tables, seq_lens, scale, sliding_window, cap
            )
        self._check(q)
        self._check_caches(key_cache, value_cache)
        num_kv_heads, block_size = key_cache.shape[1:3]
        assert key_cache.shape[3] == head_dim and num_heads % num_kv_heads == 0 and q.stride(2) == 1
        assert block_tables.dtype == seq_lens.dtype == torch.int32
        assert block_tables.shape[0] == num_seqs and block_tables.stride(1) == 1
        assert seq_lens.shape == (num_seqs,) and seq_lens.is_contiguous()
        out = torch.empty(num_seqs, num_heads, head_dim, dtype=self.dtype)
        self._attention_decode(
            q.data_ptr(),
            q.stride(0),
            q.stride(1),
            key_cache.data_ptr(),
            value_cache.data_ptr(),
            key_cache.stride(0),
            block_tables.data_ptr(),
            block_tables.stride(0),
            seq_lens.data_ptr(),
            out.data_ptr(),
            num_seqs,
            num_heads,
            num_kv_heads,
            block_size,
            head_dim,
            scale,
            sliding_window or 0,
        )
        return out

    def _check(self, x: Tensor) -> None:
        assert x.dtype == self.dtype and x.device.type == "cpu", f"{x.dtype} on {x.device} given to {self.dtype}"

    def _check_caches(self, key_cache: Tensor, value_cache: Tensor) -> None:
        self._check(key_cache)
        assert value_cache.dtype == self.dtype and value_cache.shape == key_cache.shape
        _, num_kv_heads, block_size, head_dim = key_cache.shape
        wanted = (key_cache.stride(0), block_size * head_dim, head_dim, 1)
        assert key_cache.stride() == wanted == value_cache.stride(), "a block of one layer is contiguous"
