"""Copies between tensors in host memory, one memcpy per run, on the calling thread."""

from collections.abc import Sequence

import torch

from kv_transfer.copy_runs import CopyRun


def copy_on_host(source: torch.Tensor, target: torch.Tensor, runs: Sequence[CopyRun]) -> None:
    """source, target: uint8, 1-D. Through numpy, which drops the GIL and takes no thread of torch's."""
    theirs, ours = source.numpy(), target.numpy()
    for run in runs:
        ours[run.target_byte : run.target_byte + run.num_bytes] = theirs[
            run.source_byte : run.source_byte + run.num_bytes
        ]
