"""The ranks of one worker as a communicator: Gloo on a CPU, NCCL on GPUs, one group straight on a store.

There is no default group: nothing global is set up, so a process can be in any number of groups, or leave them. Knows
neither model nor step; who starts the ranks and notices their death is `engine/ranks.py`.
"""

import os
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import Store  # torch.distributed's own name for it has no type

from engine.tensor_parallel import Shard

LOOPBACK = "127.0.0.1"  # ranks share a host; another interface might be unreachable from here, or a way in


class GroupCommunicator:
    """A `Communicator` over a process group. One thread at a time."""

    def __init__(self, shard: Shard, store: Store, device: torch.device, timeout_s: float) -> None:
        """Returns when every rank has joined.

        `timeout_s`: how long a rank waits for the others here, and in every step. Raises RuntimeError, of which
        torch's DistError is one, when one does not come.
        """
        self.shard = shard
        self._device = device
        store.set_timeout(timedelta(seconds=timeout_s))
        self._group: Any = _nccl(shard, store, timeout_s) if device.type == "cuda" else _gloo(shard, store, timeout_s)
        # Connects them: NCCL sets up at the first call, and who is missing is to be missed here.
        joined = self.all_reduce(torch.ones(1, device=device))
        assert joined.item() == shard.num_ranks, "the ranks do not add up"

    def all_reduce(self, part: Tensor) -> Tensor:
        """See Communicator. In place."""
        part = part.contiguous()
        self._group.allreduce([part]).wait()
        return part

    def all_gather(self, part: Tensor) -> Tensor:
        """See Communicator."""
        num_rows, num_columns = part.shape
        num_ranks = self.shard.num_ranks
        parts = torch.empty((num_ranks * num_rows, num_columns), dtype=part.dtype, device=part.device)
        self._group._allgather_base(parts, part.contiguous()).wait()
        return parts.view(num_ranks, num_rows, num_columns).transpose(0, 1).reshape(num_rows, -1)

    def abort(self) -> None:
        """Whoever waits in the group gets an error, or garbage; from any thread. The group is of no use any more."""
        if self._device.type == "cuda":
            self._group.abort()  # Gloo notices by itself that a peer is gone, and cannot be aborted


def _gloo(shard: Shard, store: Store, timeout_s: float) -> Any:
    options: Any = dist.ProcessGroupGloo._Options()  # type: ignore[attr-defined]
    options._timeout = timedelta(seconds=timeout_s)
    options._devices = [dist.ProcessGroupGloo.create_device(hostname=LOOPBACK)]
    return dist.ProcessGroupGloo(store, shard.rank, shard.num_ranks, options)


def _nccl(shard: Shard, store: Store, timeout_s: float) -> Any:
    # By default its watchdog aborts the process; who is lost is `engine/ranks.py`'s to say.
    os.environ.setdefault("TORCH_NCCL_ASYNC_ERROR_HANDLING", "2")
    options = dist.ProcessGroupNCCL.Options()
    options._timeout = timedelta(seconds=timeout_s)
    return dist.ProcessGroupNCCL(store, shard.rank, shard.num_ranks, options)
