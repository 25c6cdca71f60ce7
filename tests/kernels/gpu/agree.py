"""A launch beside its twin on the CPU, with every access of the launch checked."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from bench.kernels.interpreter import watched

TOLERANCE = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}

Outputs = Tensor | Sequence[Tensor]


def assert_agrees(
    launch: Callable[..., Outputs],
    twin: Callable[..., Outputs],
    arguments: Sequence[Any],
    tolerance: float,
    also_read: Sequence[Tensor] = (),
) -> None:
    """Both get copies of the arguments; the outputs agree. 0: every bit.

    `also_read`: what the launch may touch besides.
    """
    ours, theirs = [_copied(arguments) for _ in range(2)]
    with watched(*(value for value in ours if isinstance(value, Tensor)), *also_read):
        mine = launch(*ours)
    wanted = twin(*theirs)
    for left, right in zip(_listed(mine), _listed(wanted), strict=True):
        _assert_close(left, right, tolerance)


def _copied(arguments: Sequence[Any]) -> list[Any]:
    """Strides are kept: a kernel that ignores them must be caught."""
    copies: dict[int, Tensor] = {}
    out = []
    for value in arguments:
        if not isinstance(value, Tensor):
            out.append(value)
            continue
        storage = value.untyped_storage()
        if storage.data_ptr() not in copies:  # views of one storage stay views of one storage
            copies[storage.data_ptr()] = torch.tensor([], dtype=value.dtype).set_(storage.clone())  # type: ignore[no-untyped-call]
        whole = copies[storage.data_ptr()].untyped_storage()
        out.append(torch.empty(0, dtype=value.dtype).set_(whole, value.storage_offset(), value.size(), value.stride()))
    return out


def _listed(outputs: Outputs) -> list[Tensor]:
    return [outputs] if isinstance(outputs, Tensor) else list(outputs)


def _bytes(values: Tensor) -> Tensor:
    return values.contiguous().view(-1).view(torch.uint8)


def _assert_close(ours: Tensor, wanted: Tensor, tolerance: float) -> None:
    assert ours.dtype == wanted.dtype and ours.shape == wanted.shape
    if tolerance == 0:
        assert torch.equal(_bytes(ours), _bytes(wanted))
    else:
        torch.testing.assert_close(ours.double(), wanted.double(), atol=tolerance, rtol=tolerance)
