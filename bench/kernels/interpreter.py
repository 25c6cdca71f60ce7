"""Triton's interpreter made strict: right bfloat16, no access out of bounds, no address written by two programs.

The stock interpreter holds bfloat16 as uint16 and computes with the bits (garbage, no error), and reads whatever memory
a pointer names. Patches private names of triton 3.7's interpreter; needs kernels defined under TRITON_INTERPRET=1.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import triton.language as tl
from torch import Tensor
from triton.runtime import interpreter

_Builder = interpreter.InterpreterBuilder
_TensorHandle = interpreter.TensorHandle


class OutOfBounds(Exception):
    """A program read or wrote what belongs to no watched tensor."""


class WriteRace(Exception):
    """Two programs stored to one address."""


class _Watch:
    """The memory that kernels may touch, and who wrote where since the last launch."""

    def __init__(self, tensors: list[Tensor]) -> None:
        storages = [tensor.untyped_storage() for tensor in tensors]
        self.regions = [(storage.data_ptr(), storage.data_ptr() + storage.nbytes()) for storage in storages]
        self.writers: dict[int, tuple[int, ...]] = {}

    def check(self, kind: str, pointers: Any, mask: Any, program: tuple[int, ...]) -> None:
        num_bytes = max(1, pointers.get_element_ty().primitive_bitwidth // 8)
        addresses, active = np.broadcast_arrays(np.asarray(pointers.data), np.asarray(mask.data).astype(bool))
        wanted = addresses[active].astype(np.uint64)
        inside = np.zeros(wanted.shape, bool)
        for first, end in self.regions:
            inside |= (wanted >= first) & (wanted + num_bytes <= end)
        if not inside.all():
            raise OutOfBounds(f"{kind} of program {program}: {int((~inside).sum())} of {wanted.size} addresses")
        if kind == "store":
            for address in wanted.tolist():
                other = self.writers.setdefault(address, program)
                if other != program:
                    raise WriteRace(f"programs {other} and {program} both store to {address:#x}")


_watch: list[_Watch] = []


@contextmanager
def watched(*tensors: Tensor) -> Iterator[None]:
    """Inside, kernels may touch the storages of `tensors` and of whatever torch allocates meanwhile, nothing else."""
    allocations: list[Tensor] = list(tensors)
    factories = {
        name: getattr(torch, name)
        for name in ("empty", "zeros", "full", "empty_like", "zeros_like", "tensor", "index_select")
    }

    def recording(factory: Any) -> Any:
        def make(*args: Any, **kwargs: Any) -> Any:
            tensor = factory(*args, **kwargs)
            allocations.append(tensor)
            storage = tensor.untyped_storage()
            if _watch:
                _watch[-1].regions.append((storage.data_ptr(), storage.data_ptr() + storage.nbytes()))
            return tensor

        return make

    _watch.append(_Watch(allocations))
    for name, factory in factories.items():
        setattr(torch, name, recording(factory))
    try:
        yield
    finally:
        for name, factory in factories.items():
            setattr(torch, name, factory)
        _watch.pop()


def new_launch() -> None:
    """A launch ends before the next begins: what it wrote may be written again."""
    if _watch:
        _watch[-1].writers.clear()


def _upcast(handle: Any) -> Any:
    if handle.dtype.scalar != tl.bfloat16:
        return handle
    return _TensorHandle((handle.data.astype(np.uint32) << 16).view(np.float32), tl.float32)


def _downcast(handle: Any) -> Any:
    """float32 -> bfloat16, to nearest even; a NaN stays one."""
    values = np.ascontiguousarray(handle.data, dtype=np.float32)
    bits = values.view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return _TensorHandle(np.where(np.isnan(values), 0x7FC0, rounded).astype(np.uint16), tl.bfloat16)


def _to_float8(handle: Any) -> Any:
    """float32 -> e4m3 as the hardware's saturating conversion does; the stock one truncates and loses NaN."""
    values = torch.from_numpy(np.ascontiguousarray(handle.data, dtype=np.float32))
    largest = torch.finfo(torch.float8_e4m3fn).max
    bits = values.clamp(-largest, largest).to(torch.float8_e4m3fn).view(torch.uint8)
    return _TensorHandle(bits.numpy(), tl.float8e4nv)


def install() -> None:
    """Patch the interpreter, once per process."""
    if getattr(_Builder, "is_strict", False):
        return
    load, store, dot = _Builder.create_masked_load, _Builder.create_masked_store, _Builder.create_dot
    binary, unary, cast, convert = _Builder.binary_op, _Builder.unary_op, _Builder.cast_impl, _Builder.create_fp_to_fp
    launch = interpreter.GridExecutor.__call__

    def strict_load(self: Any, pointers: Any, mask: Any, *rest: Any) -> Any:
        if _watch:
            _watch[-1].check("load", pointers, mask, self.grid_idx)
        return load(self, pointers, mask, *rest)

    def strict_store(self: Any, pointers: Any, value: Any, mask: Any, *rest: Any) -> Any:
        if _watch:
            _watch[-1].check("store", pointers, mask, self.grid_idx)
        return store(self, pointers, value, mask, *rest)

    def right_dot(self: Any, a: Any, b: Any, accumulator: Any, *rest: Any) -> Any:
        return dot(self, _upcast(a), _upcast(b), accumulator, *rest)

    def right_binary(self: Any, left: Any, right: Any, operation: Any) -> Any:
        if getattr(left.dtype, "scalar", None) != tl.bfloat16:
            return binary(self, left, right, operation)
        out = binary(self, _upcast(left), _upcast(right), operation)
        return out if out.dtype.scalar == tl.int1 or out.data.dtype == np.bool_ else _downcast(out)

    def right_unary(self: Any, operand: Any, operation: Any) -> Any:
        if operand.dtype.scalar != tl.bfloat16:
            return unary(self, operand, operation)
        return _downcast(unary(self, _upcast(operand), operation))

    def right_cast(self: Any, source: Any, target: Any) -> Any:
        if target.scalar == tl.bfloat16 and source.dtype.scalar != tl.bfloat16:
            as_float = _TensorHandle(source.data.astype(np.float32), tl.float32)
            return _downcast(as_float)
        if source.dtype.scalar == tl.bfloat16 and target.scalar not in (tl.bfloat16, tl.float32):
            return cast(self, _upcast(source), target)
        return cast(self, source, target)

    def right_conversion(self: Any, source: Any, target: Any, rounding: Any) -> Any:
        if source.dtype.scalar == tl.bfloat16 and target.scalar != tl.bfloat16:
            source = _upcast(source)
            if target.scalar == tl.float32:
                return source
        if target.scalar == tl.float8e4nv:
            return _to_float8(source)
        if target.scalar == tl.bfloat16 and source.dtype.scalar == tl.float32:
            return _downcast(source)
        return convert(self, source, target, rounding)

    def launch_anew(self: Any, *args: Any, **kwargs: Any) -> Any:
        new_launch()
        return launch(self, *args, **kwargs)

    _Builder.create_masked_load, _Builder.create_masked_store = strict_load, strict_store
    _Builder.create_dot, _Builder.binary_op, _Builder.unary_op = right_dot, right_binary, right_unary
    _Builder.cast_impl, _Builder.create_fp_to_fp = right_cast, right_conversion
    interpreter.GridExecutor.__call__ = launch_anew
    _Builder.is_strict = True
