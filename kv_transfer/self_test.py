"""Whether a transport works on this machine, found out at start and not by the first request."""

import os
import secrets

import torch

from kv_transfer.copy_runs import whole_blocks
from kv_transfer.driver import Driver
from kv_transfer.mapped_puller import MappedPuller
from kv_transfer.sender import KVSender
from kv_transfer.shared_memory import ShmDriver
from messages import DeviceError, KVTransferFailed

_NUM_BLOCKS = 5
_BLOCK_BYTES = 4099  # a prime: blocks that begin on odd addresses


def self_test(driver: Driver | None = None) -> None:
    """Export a small pool, write it, pull it back through its name, and see a withdrawn offer refused.

    Raises DeviceError that names the transport when any of it fails. Leaves nothing behind.
    """
    driver = driver or ShmDriver()
    layout_hash = f"self-test-{secrets.token_hex(4)}"
    puller = MappedPuller(driver, layout_hash, whole_blocks(_BLOCK_BYTES))
    try:
        with KVSender.create(f"self-test-{os.getpid()}", _NUM_BLOCKS, _BLOCK_BYTES, layout_hash, 2, driver) as sender:
            device = sender.buffer.device
            written = torch.randint(0, 256, (_NUM_BLOCKS, _BLOCK_BYTES), dtype=torch.uint8, device=device)
            sender.buffer[: written.numel()].copy_(written.flatten())
            sources, targets = [3, 0, 1, 4], [0, 2, 3, 4]
            read = torch.zeros_like(written)
            handle = sender.offer("self-test", sources, num_tokens=1)
            export = sender.export("self-test")
            puller.pull(export, handle, read, targets)
            if not torch.equal(read[targets], written[sources]) or bool(read[1].any()):
                raise DeviceError(f"self-test of the {driver.kind} transport: other bytes were read than written")
            sender.withdraw("self-test")
            try:
                puller.pull(export, handle, read, targets)
            except KVTransferFailed:
                return
            raise DeviceError(f"self-test of the {driver.kind} transport: a withdrawn offer could still be pulled")
    except KVTransferFailed as error:
        raise DeviceError(f"self-test of the {driver.kind} transport: {error}") from error
    finally:
        puller.close()
