"""Copies between tensors in host memory, one memcpy per row of a run, on the calling thread."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from kernels.block_sums import Bytes
from kv_transfer.copy_runs import BlockCopies, CopyRun


def copy_on_host(source: torch.Tensor, target: torch.Tensor, copies: BlockCopies) -> None:
    """source, target: uint8, 1-D. Through numpy, which drops the GIL and takes no thread of torch's."""
    copy_runs(source.numpy(), target.numpy(), copies.runs())


def copy_runs(source: Bytes, target: Bytes, runs: Sequence[CopyRun]) -> None:
    """The same on arrays, of which `source` may be read-only. Raises ValueError where a run leaves either."""
    for run in runs:
        _rows(target, run.target_byte, run.target_pitch, run)[...] = _rows(
            source, run.source_byte, run.source_pitch, run
        )


def _rows(memory: Bytes, first: int, pitch: int, run: CopyRun) -> Any:
    end = first + (run.num_rows - 1) * pitch + run.num_bytes
    if not 0 <= first <= end <= len(memory):
        raise ValueError(f"bytes {first} to {end} of a pool of {len(memory)}")
    if run.num_rows == 1:
        return memory[first:end]
    return np.lib.stride_tricks.as_strided(memory[first:end], (run.num_rows, run.num_bytes), (pitch, 1))
