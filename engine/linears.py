"""From a checkpoint's matrices to linears as kernels multiply by them: joined, cut to a rank's part, quantized, packed.

Knows how a linear is stored and what this process computes of it; which linears a model has is `engine/weights.py`'s.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.checkpoint import Checkpoint
from engine.feed_forward import Linear
from engine.gguf_codes import CodesFile
from engine.model_config import ModelConfig
from engine.quantized_weights import is_quantized, take_quantized
from engine.tensor_names import LAYOUTS
from engine.tensor_parallel import ModelSlice, Shard
from errors import ConfigError, ModelError
from kernels.ops import Ops
from kernels.panels import Codes, Kind, quantize
from kernels.quantized_linear import QuantizedWeight, concatenated, dequantize


class Linears:
    """Of one checkpoint, for one rank. `kind`: what linears are quantized to; None: not at all."""

    def __init__(
        self,
        config: ModelConfig,
        checkpoint: Checkpoint,
        ops: Ops,
        dtype: torch.dtype,
        device: torch.device,
        shard: Shard,
        kind: Kind | None,
    ) -> None:
        """Raises ConfigError where this process cannot multiply by weights of `kind`."""
        if kind is not None and ops.packer is None:
            raise ConfigError(
                f"PDQ_MODEL__WEIGHTS={kind.name.lower()} needs a CPU with AVX2, a C++ compiler and dtype bfloat16; "
                f"this is {dtype} on {device.type}"
            )
        self.kind, self.codes = kind, CodesFile(checkpoint.model_dir)
        self.config, self.checkpoint, self.ops = config, checkpoint, ops
        self.dtype, self.device = dtype, device
        self.layout = LAYOUTS[config.names]
        self.slice = ModelSlice.of(config, shard)
        self.is_first_rank, self.num_ranks = shard.rank == 0, shard.num_ranks

    def fused(
        self, parts: Sequence[tuple[str, int, Sequence[range]]], bias: bool, transposed: bool | None = None
    ) -> Linear:
        """One linear of the hidden state, outputs in the order given. parts: name, all its outputs, which of them."""
        transposed = self.layout.is_transposed if transposed is None else transposed
        hidden = self.config.hidden_size
        joined = None
        if bias:
            joined = torch.cat(
                [self.checkpoint.take(f"{name}.bias", (size,), rows) for name, size, ranges in parts for rows in ranges]
            )
        quantized = self.quantized([(name, size) for name, size, _ in parts], hidden)
        if quantized is not None:
            return Linear(quantized, None if joined is None else joined.to(self.device, self.dtype))
        weight = [
            self.matrix(name, (size, hidden), rows, transposed=transposed)
            for name, size, ranges in parts
            for rows in ranges
        ]
        places = [(name, rows, range(hidden)) for name, _, ranges in parts for rows in ranges]
        return self.linear(torch.cat(weight), joined, places)

    def quantized(self, parts: Sequence[tuple[str, int]], in_size: int) -> QuantizedWeight | None:
        """One linear of the named ones as kernels multiply by it; None where one is not quantized, or no kernel does.

        parts: name, outputs.
        """
        quantization = self.config.quantization
        if quantization is None or not self.ops.takes_quantized:
            return None
        if not all(is_quantized(self.checkpoint, quantization, name) for name, _ in parts):
            return None
        if self.num_ranks > 1:
            raise ModelError(
                f"{quantization.format} weights cannot be cut into ranks on a GPU; set TENSOR_PARALLEL to 1"
            )
        return concatenated(
            [take_quantized(self.checkpoint, quantization, name, size, in_size, self.device) for name, size in parts]
        )

    def matrix(
        self,
        name: str,
        shape: tuple[int, int],
        rows: range | None = None,
        columns: range | None = None,
        transposed: bool = False,
    ) -> Tensor:
        """The weight of a linear, or some of its rows or columns; dequantized where it is quantized.

        `transposed`: the checkpoint has it [in, out].
        """
        if transposed:
            return self.checkpoint.take(f"{name}.weight", (shape[1], shape[0]), columns, rows).T
        quantization = self.config.quantization
        if quantization is None or not is_quantized(self.checkpoint, quantization, name):
            return self.checkpoint.take(f"{name}.weight", shape, rows, columns)
        weight = dequantize(take_quantized(self.checkpoint, quantization, name, *shape, self.device), self.dtype)
        rows, columns = rows or range(shape[0]), columns or range(shape[1])
        return weight[rows.start : rows.stop, columns.start : columns.stop]

    def summand(self, name: str, in_size: int, columns: range, bias: bool) -> Linear:
        """The part of a linear to the hidden state that takes these inputs; all ranks' parts add up to it."""
        hidden = self.config.hidden_size
        whole_bias = self.checkpoint.take(f"{name}.bias", (hidden,)) if bias else None
        quantized = self.quantized([(name, hidden)], in_size)
        if quantized is not None:
            return Linear(quantized, None if whole_bias is None else whole_bias.to(self.device, self.dtype))
        weight = self.matrix(name, (hidden, in_size), columns=columns, transposed=self.layout.is_transposed)
        places = [(name, range(hidden), columns)]
        return self.linear(weight.clone(), whole_bias if self.is_first_rank else None, places)  # added once

    def whole(self, name: str, size: int, bias: bool) -> Linear:
        """A linear of the hidden state that every rank has whole."""
        return self.fused([(name, size, [range(size)])], bias, transposed=False)

    def exact(self, name: str, size: int) -> Linear:
        """A small linear of the hidden state that decides something: never quantized, whole in every rank."""
        weight = self.matrix(name, (size, self.config.hidden_size))
        return Linear(self.ops.pack_linear(weight.to(self.device, self.dtype)))

    def language_head(self, name: str, weight: Tensor) -> Linear:
        """weight: our rows; every rank gets equally many, so that their logits can be gathered."""
        places = [(name, self.slice.vocab, range(weight.shape[1]))]
        missing = self.slice.vocab_rows - weight.shape[0]
        if missing:
            return self.linear(F.pad(weight, (0, 0, 0, missing)), None, [], Kind.INT8)
        return self.linear(weight, None, places, Kind.INT8)

    def linear(
        self,
        weight: Tensor,
        bias: Tensor | None,
        places: Sequence[tuple[str, range, range]],
        least: Kind | None = None,
    ) -> Linear:
        """places: the name, rows and columns that `weight` is made of.

        `least`: no kind of fewer bits than it, unless a GGUF has that one.
        """
        # A bias of its own: a view would keep the file mapped.
        bias = None if bias is None else bias.to(self.device, self.dtype, copy=True)
        if self.kind is None or self.ops.packer is None:
            return Linear(self.ops.pack_linear(weight.to(self.device, self.dtype)), bias)
        codes = self.known_codes(places, self.kind)
        if least is not None:
            codes = codes or self.known_codes(places, least)
        codes = codes or quantize(weight, least or self.kind)
        return Linear(self.ops.packer.pack_codes(codes), bias)

    def known_codes(self, places: Sequence[tuple[str, range, range]], kind: Kind) -> Codes | None:
        """What a GGUF has for all of these, if it is of this kind."""
        found = [self.codes.of(*place) for place in places]
        parts = [part for part in found if part is not None and (part.minima is None) == (kind is Kind.INT8)]
        if not parts or len(parts) < len(places):
            return None
        minima = [part.minima for part in parts if part.minima is not None]
        return Codes(
            torch.cat([part.codes for part in parts]),
            torch.cat([part.scales for part in parts]),
            torch.cat(minima) if minima else None,
        )
