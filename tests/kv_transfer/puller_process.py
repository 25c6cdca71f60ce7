"""A decode worker's side of the transfer in a process of its own: one JSON command per line in, one answer out."""

import hashlib
import json
import os
import signal
import sys
from typing import Any

import msgspec
import torch

from errors import KVTransferFailed
from kv_transfer.copy_runs import BlockCopies, whole_blocks
from kv_transfer.host_copy import copy_on_host
from kv_transfer.pair_puller import PairPuller
from messages.kv_transfer import KVHandle, PoolExport
from settings.observability import LogSettings
from telemetry import configure_logging


def main() -> None:
    torch.set_num_threads(1)
    configure_logging(LogSettings(level="error"))  # stdout is for the answers
    num_blocks, block_bytes, staging_bytes = json.loads(sys.argv[1])
    is_stopping = False

    def copy(source: torch.Tensor, target: torch.Tensor, copies: BlockCopies) -> None:
        if is_stopping:
            answer("stops")
            os.kill(os.getpid(), signal.SIGSTOP)
        copy_on_host(source, target, copies)

    puller = PairPuller("gloo", whole_blocks(block_bytes), copy, staging_bytes=staging_bytes)
    answer("ready")
    for line in sys.stdin:
        command, export, handle, targets = json.loads(line)
        is_stopping = command == "stop"
        pool = torch.zeros(num_blocks, block_bytes, dtype=torch.uint8)
        try:
            puller.pull(msgspec.convert(export, PoolExport), msgspec.convert(handle, KVHandle), pool, targets)
        except KVTransferFailed:
            answer("failed")
        else:
            answer(hashlib.sha256(pool.numpy().tobytes()).hexdigest())
    puller.close()


def answer(reply: Any) -> None:
    sys.stdout.write(json.dumps(reply) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
