"""A whole step of a decoder as one call of the C++ library: `kernels/cpu/decoder_step.cpp`.

It hands over the weights once and the lists of each step as they are; no tensor is made but the two that are returned.
The twin is `engine/model.py` over the plain ops table. Knows no sequence and no allocator.
"""

import ctypes
from array import array
from collections.abc import Sequence
from ctypes import POINTER, Structure, c_float, c_int64, c_void_p
from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.panels import NativeMatrix, PanelMatrix

VECTOR = 8  # elements; heads are whole ones of it


class _Linear(Structure):
    _fields_ = [("matrix", NativeMatrix), ("bias", c_void_p)]


class _Layer(Structure):
    _fields_ = [
        *((name, c_void_p) for name in ("input_norm", "query_norm", "key_norm", "post_norm")),
        *((name, _Linear) for name in ("qkv", "output", "gate_up", "down")),
        ("window", c_int64),
    ]


class _Decoder(Structure):
    _fields_ = [
        ("layers", POINTER(_Layer)),
        ("embedding", c_void_p),
        ("final_norm", c_void_p),
        ("head", _Linear),
        *((name, c_int64) for name in ("num_layers", "hidden", "heads", "kv_heads", "head_dim", "intermediate")),
        ("eps", c_float),
        ("scale", c_float),
    ]


class _Pool(Structure):
    _fields_ = [
        ("memory", c_void_p),
        *((name, c_int64) for name in ("block_stride", "layer_stride", "value_offset", "block_size")),
    ]


class _Step(Structure):
    _fields_ = [
        ("tokens", c_int64),
        ("seqs", c_int64),
        *(
            (name, c_void_p)
            for name in ("token_ids", "positions", "slots", "cos", "sin", "starts", "contexts", "tables")
        ),
        ("table_stride", c_int64),
        ("wanted", c_int64),
        ("answered", c_int64),
        *((name, c_void_p) for name in ("wanted_tokens", "hidden", "logits", "places", "logprobs")),
        ("many_rows", c_int64),
    ]


@dataclass(frozen=True, slots=True)
class StepLinear:
    """A linear layer whose weight lies in panels."""

    matrix: PanelMatrix
    bias: Tensor | None  # [outs]


@dataclass(frozen=True, slots=True)
class StepLayer:
    """A decoder layer: the fields of `engine.model.LayerWeights`."""

    input_norm: Tensor
    query_norm: Tensor | None
    key_norm: Tensor | None
    post_norm: Tensor
    qkv: StepLinear
    output: StepLinear
    gate_up: StepLinear
    down: StepLinear
    sliding_window: int | None


@dataclass(frozen=True, slots=True)
class StepDecoder:
    """A decoder's weights and shape. Every tensor is bfloat16 and contiguous."""

    layers: Sequence[StepLayer]
    embedding: Tensor  # [vocab, hidden]
    final_norm: Tensor  # [hidden]
    head: StepLinear | None  # to the vocabulary
    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    rms_norm_eps: float
    scale: float


@dataclass(frozen=True, slots=True)
class StepRows:
    """Sequences with their new tokens, packed one after the other."""

    token_ids: Sequence[int]
    positions: Sequence[int]
    slots: Sequence[int]  # block_id * block_size + place in the block
    starts: Sequence[int]  # where each sequence begins, and the end
    contexts: Sequence[int]  # tokens of each sequence that are in the pool already
    block_tables: Sequence[Sequence[int]]  # up to the last new token
    wanted: Sequence[int]  # tokens whose output is wanted
    num_answered: int  # of the first so many of those, the logits too
    embedded: Tensor | None  # bfloat16 [tokens, hidden]: in place of the embeddings of `token_ids`
    is_prefill: bool  # quantized weights are multiplied as bfloat16: many rows make up for their expansion


class DecoderStep:
    """One decoder's steps."""

    def __init__(self, library: ctypes.CDLL, decoder: StepDecoder) -> None:
        assert takes(decoder), "not every decoder has steps as one call"
        self._run = library.pdq_decoder_step
        self._run.argtypes, self._run.restype = [POINTER(_Decoder), POINTER(_Pool), POINTER(_Step)], None
        self._shape = decoder  # and the owner of the memory
        self._layers = (_Layer * len(decoder.layers))(*(_layer(layer) for layer in decoder.layers))
        self._decoder = self._over(decoder.embedding)

    def _over(self, embedding: Tensor) -> _Decoder:
        """The decoder with these rows, [any, hidden], in place of its vocabulary's."""
        decoder = self._shape
        return _Decoder(
            self._layers,
            _pointer(embedding),
            decoder.final_norm.data_ptr(),
            _Linear(NativeMatrix(None, 0, 0, 0), None) if decoder.head is None else _linear(decoder.head),
            len(decoder.layers),
            decoder.hidden_size,
            decoder.num_heads,
            decoder.num_kv_heads,
            decoder.head_dim,
            decoder.intermediate_size,
            decoder.rms_norm_eps,
            decoder.scale,
        )

    def __call__(self, rows: StepRows, cos: Tensor, sin: Tensor, pool: Tensor) -> tuple[Tensor, Tensor | None]:
        """Compute the new tokens and write their keys and values.

        cos, sin: bfloat16 [positions, head_dim], of every position there is; pool: bfloat16 [num_blocks, num_layers, 2,
        num_kv_heads, block_size, head_dim], contiguous.
        -> bfloat16 [wanted, hidden], before the final norm; float32 [num_answered, vocab], or None without a head
        """
        head = self._shape.head
        logits = None if head is None else torch.empty(rows.num_answered, head.matrix.outs)
        return self._compute(rows, cos, sin, pool, logits, (None, None)), logits

    def largest(self, rows: StepRows, cos: Tensor, sin: Tensor, pool: Tensor) -> tuple[list[int], list[float]]:
        """The same, and of the logits only what `kernels.greedy` finds in them: they are never written down. Steps of
        SmolLM2 on two cores of Zen 4: of one row 8.4 ms instead of 8.6, of 16 rows 16.6 instead of 17.8. For a decoder
        with a head.

        -> for each answered token the place of the largest logit, and the log of its probability
        """
        assert self._shape.head is not None, "without a head there are no logits"
        places, logprobs = array("q", bytes(8 * rows.num_answered)), array("f", bytes(4 * rows.num_answered))
        self._compute(rows, cos, sin, pool, None, (_address(places), _address(logprobs)))
        return places.tolist(), logprobs.tolist()

    def _compute(
        self,
        rows: StepRows,
        cos: Tensor,
        sin: Tensor,
        pool: Tensor,
        logits: Tensor | None,
        largest: tuple[int | None, int | None],
    ) -> Tensor:
        """-> bfloat16 [wanted, hidden]"""
        shape = self._shape
        assert pool.dtype == cos.dtype == sin.dtype == torch.bfloat16 and pool.is_contiguous()
        assert pool.shape[1:4] == (len(shape.layers), 2, shape.num_kv_heads) and pool.shape[5] == shape.head_dim
        assert cos.is_contiguous() and sin.is_contiguous() and max(rows.positions) < len(cos) == len(sin)
        longest = max(map(len, rows.block_tables))
        tables = array("i", bytes(4 * longest * len(rows.block_tables)))
        for index, table in enumerate(rows.block_tables):
            tables[index * longest : index * longest + len(table)] = array("i", table)
        decoder, token_ids = self._decoder, array("q", rows.token_ids)
        if rows.embedded is not None:
            assert rows.embedded.shape == (len(token_ids), shape.hidden_size)
            decoder, token_ids = self._over(rows.embedded), array("q", range(len(token_ids)))
        positions, slots = array("q", rows.positions), array("q", rows.slots)
        starts, contexts, wanted = array("i", rows.starts), array("i", rows.contexts), array("q", rows.wanted)
        hidden = torch.empty(len(wanted), shape.hidden_size, dtype=torch.bfloat16)
        step = _Step(
            len(token_ids),
            len(contexts),
            *(_address(values) for values in (token_ids, positions, slots)),
            cos.data_ptr(),
            sin.data_ptr(),
            *(_address(values) for values in (starts, contexts, tables)),
            longest,
            len(wanted),
            rows.num_answered,
            _address(wanted),
            hidden.data_ptr(),
            None if logits is None else logits.data_ptr(),
            *largest,
            rows.is_prefill,
        )
        block_size = pool.shape[4]
        place = _Pool(pool.data_ptr(), pool.stride(0), pool.stride(1), pool.stride(2), block_size)
        self._run(decoder, place, step)
        return hidden


def takes(decoder: StepDecoder) -> bool:
    """Whether there are steps as one call for such a decoder: its heads are whole vectors."""
    return decoder.head_dim % (2 * VECTOR) == 0


def _address(values: "array[int] | array[float]") -> int:
    return values.buffer_info()[0]


def _pointer(tensor: Tensor | None) -> int | None:
    if tensor is None:
        return None
    assert tensor.dtype == torch.bfloat16 and tensor.is_contiguous() and tensor.device.type == "cpu"
    return tensor.data_ptr()


def _linear(linear: StepLinear) -> _Linear:
    assert linear.bias is None or linear.bias.shape == (linear.matrix.outs,)
    return _Linear(linear.matrix.native, _pointer(linear.bias))


def _layer(layer: StepLayer) -> _Layer:
    return _Layer(
        *map(_pointer, (layer.input_norm, layer.query_norm, layer.key_norm, layer.post_norm)),
        *map(_linear, (layer.qkv, layer.output, layer.gate_up, layer.down)),
        layer.sliding_window or 0,
    )
