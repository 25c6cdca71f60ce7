"""The tensors of one quantized linear, out of a checkpoint and into the layout of the kernels.

Knows the names, shapes and types of every format on disk; knows no layer and no family.
"""

import torch
from torch import Tensor

from engine.checkpoint import FLOATS, Checkpoint
from engine.quantization import Quantization, WeightFormat
from errors import ModelError
from kernels.quantized_linear import (
    FLOAT8,
    Fp8Weight,
    Int4Weight,
    QuantizedWeight,
    awq_codes,
    gptq_codes,
    pack_int4,
)

# The tensor that a linear has only where it is quantized.
_MARKS = {
    WeightFormat.FP8: "weight_scale_inv",
    WeightFormat.COMPRESSED_TENSORS: "weight_scale",
    WeightFormat.AWQ: "qweight",
    WeightFormat.GPTQ: "qweight",
}
_INTEGERS = (torch.int32,)
CODES_PER_WORD = 8


def is_quantized(checkpoint: Checkpoint, quantization: Quantization, name: str) -> bool:
    """Whether the linear `name` is; a model's head, for one, seldom is."""
    return f"{name}.{_MARKS[quantization.format]}" in checkpoint


def take_quantized(
    checkpoint: Checkpoint,
    quantization: Quantization,
    name: str,
    num_outputs: int,
    num_inputs: int,
    device: torch.device,
) -> QuantizedWeight:
    """The linear `name` on the device. Raises ModelError for a tensor that is missing or of another shape or type."""
    if quantization.format in (WeightFormat.FP8, WeightFormat.COMPRESSED_TENSORS):
        return _take_fp8(checkpoint, quantization, name, num_outputs, num_inputs, device)
    return _take_int4(checkpoint, quantization, name, num_outputs, num_inputs, device)


def _take_fp8(
    checkpoint: Checkpoint,
    quantization: Quantization,
    name: str,
    num_outputs: int,
    num_inputs: int,
    device: torch.device,
) -> Fp8Weight:
    values = checkpoint.take(f"{name}.weight", (num_outputs, num_inputs), dtypes=(FLOAT8,)).to(device)
    if quantization.group_size is not None:
        block = quantization.group_size
        blocks = (-(-num_outputs // block), -(-num_inputs // block))
        of_blocks = checkpoint.take(f"{name}.weight_scale_inv", blocks, dtypes=FLOATS).to(device, torch.float32)
        scales = of_blocks.T.repeat_interleave(block, dim=1)[:, :num_outputs]
        return Fp8Weight(values, scales.contiguous(), block)
    shape = checkpoint.shape(f"{name}.weight_scale")
    if shape not in ((), (1,)):
        shape = (num_outputs, 1)
    scale = checkpoint.take(f"{name}.weight_scale", shape, dtypes=FLOATS).to(device, torch.float32)
    if f"{name}.input_scale" in checkpoint:
        # Activations are scaled by what they are, which is never coarser than what calibration saw.
        checkpoint.take(f"{name}.input_scale", checkpoint.shape(f"{name}.input_scale"), dtypes=FLOATS)
    return Fp8Weight(values, scale.reshape(1, -1).expand(1, num_outputs).contiguous(), num_inputs)


def _take_int4(
    checkpoint: Checkpoint,
    quantization: Quantization,
    name: str,
    num_outputs: int,
    num_inputs: int,
    device: torch.device,
) -> Int4Weight:
    group_size = quantization.group_size or num_inputs
    num_groups = -(-num_inputs // group_size)
    is_awq = quantization.format is WeightFormat.AWQ
    in_words = num_outputs if is_awq else num_inputs
    if num_outputs % CODES_PER_WORD or in_words % CODES_PER_WORD:
        raise ModelError(f"{name}: {num_inputs} x {num_outputs} codes do not fill words of {CODES_PER_WORD}")

    def take(kind: str, shape: tuple[int, ...], dtypes: tuple[torch.dtype, ...]) -> Tensor:
        return checkpoint.take(f"{name}.{kind}", shape, dtypes=dtypes).to(device)

    zeros = take("qzeros", (num_groups, num_outputs // CODES_PER_WORD), _INTEGERS)
    scales = take("scales", (num_groups, num_outputs), FLOATS)
    if is_awq:
        codes = awq_codes(take("qweight", (num_inputs, num_outputs // CODES_PER_WORD), _INTEGERS))
        return pack_int4(codes, scales, awq_codes(zeros), group_size, None)
    codes = gptq_codes(take("qweight", (num_inputs // CODES_PER_WORD, num_outputs), _INTEGERS).T).T
    inputs = None
    if f"{name}.g_idx" in checkpoint:
        inputs = _order_of(name, take("g_idx", (num_inputs,), _INTEGERS), group_size)
        codes = codes if inputs is None else codes[inputs]
    zero_points = gptq_codes(zeros) + quantization.zero_offset
    return pack_int4(codes, scales, zero_points, group_size, None if inputs is None else inputs.int())


def _order_of(name: str, groups: Tensor, group_size: int) -> Tensor | None:
    """groups: int32 [in], the group of each input. -> int64 [in], inputs group by group; None: they lie so."""
    wanted = torch.arange(len(groups), device=groups.device) // group_size
    if torch.equal(groups.long(), wanted):
        return None
    order = torch.argsort(groups, stable=True)
    if not torch.equal(groups[order].long(), wanted):
        raise ModelError(f"{name}.g_idx does not put {group_size} inputs into every group, as group_size says")
    return order
