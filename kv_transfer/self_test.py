"""Whether a transport works on this machine, found out at start and not by the first request."""

import os
import secrets

import torch

from errors import DeviceError, KVTransferFailed
from kv_transfer.copy_runs import BlockCut, whole_blocks
from kv_transfer.driver import Driver
from kv_transfer.mapped_puller import MappedPuller
from kv_transfer.sender import KVSender
from kv_transfer.shared_memory import ShmDriver

_NUM_BLOCKS = 5
_CUTS = (
    whole_blocks(4099),  # a prime: blocks that begin on odd addresses
    # As between other numbers of ranks. On a GPU this compiles the kernel that serves every cut.
    BlockCut(6 * 160, 6 * 96, num_rows=6, source_byte=64, target_byte=16, row_bytes=80),
)


def self_test(driver: Driver | None = None) -> None:
    """Export a small pool, write it, pull it back through its name, whole blocks and cut ones, and see a withdrawn
    offer refused.

    Raises DeviceError that names the transport when any of it fails. Leaves nothing behind.
    """
    for cut in _CUTS:
        _pull_back(driver or ShmDriver(), cut)


def _pull_back(driver: Driver, cut: BlockCut) -> None:
    layout_hash = f"self-test-{secrets.token_hex(4)}"
    puller = MappedPuller(driver, layout_hash, cut)
    try:
        name = f"self-test-{os.getpid()}"
        with KVSender.create(name, _NUM_BLOCKS, cut.source_block_bytes, layout_hash, 2, driver) as sender:
            # From and to the host's memory, which waits; a pull runs on a stream of its own.
            written = torch.randint(0, 256, (_NUM_BLOCKS, cut.num_rows, cut.source_row_bytes), dtype=torch.uint8)
            sender.buffer[: written.numel()].copy_(written.flatten())
            sources, targets = [3, 0, 1, 4], [0, 2, 3, 4]
            wanted = torch.zeros(_NUM_BLOCKS, cut.num_rows, cut.target_row_bytes, dtype=torch.uint8)
            read = wanted.to(sender.buffer.device, copy=True)
            runs = written.narrow(2, cut.source_byte, cut.run_bytes)
            wanted.narrow(2, cut.target_byte, cut.run_bytes)[targets] = runs[sources]
            handle = sender.offer("self-test", sources, num_tokens=1)
            export = sender.export("self-test")
            puller.pull(export, handle, read, targets)
            if not torch.equal(read.cpu(), wanted):
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
